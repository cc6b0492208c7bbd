"""Who does the work: ours, PyTorch, ONNX Runtime and LiteRT, each function in a process of its own (turns.py).

In: the name of a network, "V1 0.25@96", batch, threads, and the file of the network for those that read one. Out: a function that does one
piece of work and returns its answer: logits, the loss of a step, the best validation loss of a classifier. Weights, images and labels
are the same for all: real weights where they are found, random ones otherwise. Left out: comparing and timing.
"""

import os
from pathlib import Path

import numpy as np
from turns import imported

SHARED = Path(os.environ.get("MINITL_SHARED") or Path(__file__).resolve().parents[2] / "shared")
WEIGHTS = SHARED / "weights"

FILES = {  # where the weights are, else they are drawn; an int8 file of the same network
    "V1 0.25@96": ("vww_96_float.tflite", "vww_96_int8.tflite"),
    "V2 1.0@224": ("mobilenet_v2_1.0_224_quant.tflite", "tf2_mobilenet_v2_1.0_224_ptq.tflite"),
}
CASES = {  # {case: the last frozen layer of each architecture}
    "all layers": {},
    "the last three blocks": {"mobilenet_v1": "conv_pw_10", "mobilenet_v2": "block_13"},
    "the last two blocks": {"mobilenet_v1": "conv_pw_11"},
}
BATCH, RATE, HEAD_RATE, MOMENTUM, DECAY = 32, 0.001, 0.01, 0.9, 1e-4
PHOTOS, VALIDATION, FEATURES, CLASSES = 1097, 272, 256, 10


# ---- the work


def parts(name):
    """'V1 0.25@96' -> ('mobilenet_v1', 0.25, 96)"""
    version, alpha, size = name.replace("@", " ").split()
    return f"mobilenet_{version.lower()}", float(alpha), int(size)


def model_of(name):
    """The model, BatchNorms and all."""
    from minitl import model
    from minitl.architectures import build
    from minitl.images import Recipe
    from minitl.weights import Weights

    if name in FILES and (WEIGHTS / FILES[name][0]).is_file():
        return model.load(WEIGHTS / FILES[name][0])
    architecture, alpha, size = parts(name)
    arguments = {"alpha": alpha, "input_shape": [size, size, 3], "classes": 10}
    arrays = build(architecture, **arguments).initialise(0).arrays()
    return model.Model(Weights(architecture, arguments, arrays, Recipe(size, size, (0, 0, 0), (255, 255, 255), "squash")))


def network(name):
    """The folded graph."""
    from minitl.folding import fold

    return fold(model_of(name).graph)


def images_of(shape, batch):
    """(N, H, W, 3) float32 in -1..1."""
    return np.random.default_rng(0).uniform(-1, 1, (batch, *shape)).astype(np.float32)


def int8_images_of(shape, batch):
    """(N, H, W, 3) int8."""
    return np.random.default_rng(0).integers(-128, 128, (batch, *shape), np.int8)


def work(network, case, batch):
    """The graph with its freeze mask, images (N, H, W, 3) float32, labels (N,)."""
    from minitl.architectures import build

    architecture, alpha, size = parts(network)
    graph = build(architecture, alpha=alpha, input_shape=[size, size, 3], classes=CLASSES).initialise(0)
    if CASES[case]:
        graph.freeze(".." + CASES[case][architecture])
    rng = np.random.default_rng(0)
    # pure noise makes all images alike for deep layers, whose BatchNorms then magnify rounding
    coarse = rng.random((batch, 8, 8, 3), np.float32)
    images = np.ascontiguousarray(coarse.repeat(size // 8, axis=1).repeat(size // 8, axis=2))
    return graph, images, rng.integers(0, CLASSES, batch)


def photos():
    """Features (N, F) float32 around one point for each class, labels (N,): training photos, then validation photos."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, PHOTOS + VALIDATION)
    rows = 0.3 * rng.standard_normal((CLASSES, FEATURES))[labels] + rng.standard_normal((len(labels), FEATURES))
    return rows.astype(np.float32), labels


# ---- inference


def inference_of_ours(name, batch, threads, **_):
    from minitl import engine

    imported()
    graph = network(name)
    x, fast = images_of(graph.input_shape, batch), engine.make(graph, threads=threads)
    return lambda: fast.run(x)[graph.output]


def int8_of_ours(batch, file, keep_constant, threads, **_):
    from minitl import int8_engine, model

    imported()
    graph = model.deployable(file, keep_constant).graph
    x, fast = int8_images_of(graph.tensors[graph.input].shape, batch), int8_engine.make(graph, threads=threads)
    return lambda: fast.run(x)[graph.output]


def inference_of_pytorch(name, batch, threads, how):
    import torch
    from twins import Twin, to_torch

    imported()
    torch.set_num_threads(threads)
    graph = network(name)
    x, twin = to_torch(images_of(graph.input_shape, batch)), Twin(graph).eval()
    if how == "eager, NCHW":
        x, twin = x.contiguous(), twin.to(memory_format=torch.contiguous_format)
    elif how.startswith("optimised"):
        if how.endswith("NCHW"):
            x, twin = x.contiguous(), twin.to(memory_format=torch.contiguous_format)
        with torch.inference_mode():
            twin = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(twin, x)))

    def step():
        with torch.inference_mode():
            return twin(x).numpy()

    return step


def onnx_runtime(batch, threads, file, name, **_):
    import onnxruntime

    imported()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    x = np.ascontiguousarray(images_of((parts(name)[2],) * 2 + (3,), batch).transpose(0, 3, 1, 2))
    return lambda: session.run(None, {"input": x})[0]


def litert(batch, threads, file, **_):
    from ai_edge_litert.interpreter import Interpreter

    imported()
    interpreter, at_once = Interpreter(file, num_threads=threads), batch
    image, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
    shape = tuple(map(int, image["shape"][1:]))
    interpreter.resize_tensor_input(image["index"], [batch, *shape])
    try:
        interpreter.allocate_tensors()
    except RuntimeError:  # a Reshape in the file asks for a batch of one: one image after the other
        interpreter, at_once = Interpreter(file, num_threads=threads), 1
        interpreter.allocate_tensors()
    x = images_of(shape, batch) if image["dtype"] == np.float32 else int8_images_of(shape, batch)
    x = (x.view(np.uint8) ^ 128) if image["dtype"] == np.uint8 else x

    def step():
        answers = []
        for i in range(0, batch, at_once):
            interpreter.set_tensor(image["index"], x[i : i + at_once])
            interpreter.invoke()
            answers.append(interpreter.get_tensor(output))
        return answers[0] if at_once == batch else np.concatenate(answers)

    return step


# ---- training


def step_of_ours(network, case, batch, kept, threads):
    from minitl import training

    imported()
    graph, images, labels = work(network, case, batch)
    optimiser, targets = training.SGD(graph, MOMENTUM, DECAY), training.one_hot(labels, CLASSES)
    if case == "all layers":
        feeds = lambda: {"input": images}  # noqa: E731
    else:
        from minitl.engine import Values

        frozen = Values(graph, graph.border(), threads)
        features = frozen.run(images)
        feeds = (lambda: features) if kept else lambda: frozen.run(images)
    return lambda: training.train_step(graph, feeds(), targets, optimiser, RATE, None)[1].mean()


def step_of_pytorch(network, case, batch, threads, **_):
    import torch
    from twins import Twin, to_torch, torch_step

    imported()
    torch.set_num_threads(threads)
    graph, images, labels = work(network, case, batch)
    twin, x, y = Twin(graph), to_torch(images), torch.from_numpy(labels)
    optimiser = torch.optim.SGD(twin.groups(DECAY), RATE, momentum=MOMENTUM, nesterov=True)
    return lambda: torch_step(twin, optimiser, x, y).numpy()


def head_of_ours(epochs, **_):
    from minitl import features, images, training
    from minitl.graph import Graph, Node
    from minitl.layers import Dense

    imported()
    rows, labels = photos()
    recipe = images.Recipe(96, 96)
    source = features.Features(rows, [("input", (FEATURES,))], recipe)
    train, val = source.take(np.arange(PHOTOS)), source.take(np.arange(PHOTOS, PHOTOS + VALIDATION))
    settings = training.Settings(epochs=epochs, batch=BATCH, rate=HEAD_RATE, momentum=MOMENTUM, decay=DECAY, patience=epochs)

    def step():
        graph = Graph([Node("logits", Dense(CLASSES), ("input",))], (FEATURES,)).initialise(0)
        history = training.fit(graph, train, labels[:PHOTOS], val, labels[PHOTOS:], settings)
        return np.float64(history.epochs[history.best - 1].val_loss)

    return step


def head_of_pytorch(threads, epochs):
    import torch
    from torch.nn.functional import cross_entropy

    imported()
    torch.set_num_threads(threads)
    rows, labels = map(torch.from_numpy, photos())
    x, y, val_x, val_y = rows[:PHOTOS], labels[:PHOTOS], rows[PHOTOS:], labels[PHOTOS:]

    def step():
        torch.manual_seed(0)
        head = torch.nn.Linear(FEATURES, CLASSES)
        optimiser = torch.optim.SGD(head.parameters(), HEAD_RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
        steps = epochs * -(-PHOTOS // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        best, kept = float("inf"), None
        for _ in range(epochs):
            for chosen in torch.randperm(PHOTOS).split(BATCH):
                optimiser.zero_grad()
                cross_entropy(head(x[chosen]), y[chosen]).backward()
                optimiser.step()
                schedule.step()
            with torch.inference_mode():
                loss = cross_entropy(head(val_x), val_y).item()
            if loss < best:
                best, kept = loss, {name: value.clone() for name, value in head.state_dict().items()}
        head.load_state_dict(kept)
        return np.float64(best)

    return step
