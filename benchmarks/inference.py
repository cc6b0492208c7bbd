"""Inference: the same network, the same weights, the same images; ours, PyTorch, ONNX Runtime and LiteRT.

In: the names of networks. Out: rows of figures. BatchNorms are folded on all sides; every answer is compared before anything is timed.
"""

import os
from pathlib import Path

import numpy as np

SHARED = Path(os.environ.get("MINITL_SHARED") or Path(__file__).resolve().parents[2] / "shared")
WEIGHTS = SHARED / "weights"

NETWORKS = {
    # architecture, alpha, size, classes; where the weights are (else they are drawn); an int8 file of the same network
    "V1 0.25@96": ("mobilenet_v1", 0.25, 96, 2, "vww_96_float.tflite", "vww_96_int8.tflite"),
    "V2 1.0@224": ("mobilenet_v2", 1.0, 224, 1001, "mobilenet_v2_1.0_224_quant.tflite", "tf2_mobilenet_v2_1.0_224_ptq.tflite"),
}


def network(name):
    """The folded graph."""
    from minitl import model
    from minitl.architectures import build
    from minitl.folding import fold

    architecture, alpha, size, classes, file, _ = NETWORKS[name]
    if (WEIGHTS / file).is_file():
        return fold(model.load(WEIGHTS / file).graph)
    return fold(build(architecture, alpha=alpha, input_shape=[size, size, 3], classes=classes).initialise(0))


def images(shape, batch):
    """(N, H, W, 3) float32 in -1..1."""
    return np.random.default_rng(0).uniform(-1, 1, (batch, *shape)).astype(np.float32)


def int8_images(shape, batch):
    """(N, H, W, 3) int8."""
    return np.random.default_rng(0).integers(-128, 128, (batch, *shape), np.int8)


# ---- float, each in its process (turns.py)


def ours(name, batch, threads, **_):
    import minitl  # noqa: F401
    from turns import imported

    try:
        from minitl.engine import Engine
    except ImportError:
        Engine = None
    imported()
    graph = network(name)
    x = images(graph.input_shape, batch)
    if Engine is None:  # the plain path
        return lambda: np.concatenate([graph.evaluate(x[i : i + 1])[graph.output] for i in range(batch)])
    engine = Engine(graph, threads=threads)
    return lambda: engine.run(x)[graph.output]


def pytorch(name, batch, threads, how):
    import torch
    from turns import imported
    from twins import Twin, to_torch

    imported()
    torch.set_num_threads(threads)
    graph = network(name)
    x, twin = to_torch(images(graph.input_shape, batch)), Twin(graph).eval()
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
    from turns import imported

    imported()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    x = np.ascontiguousarray(images((NETWORKS[name][2],) * 2 + (3,), batch).transpose(0, 3, 1, 2))
    return lambda: session.run(None, {"input": x})[0]


def litert(batch, threads, file, **_):
    from ai_edge_litert.interpreter import Interpreter
    from turns import imported

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
    x = images(shape, batch) if image["dtype"] == np.float32 else int8_images(shape, batch)
    x = (x.view(np.uint8) ^ 128) if image["dtype"] == np.uint8 else x

    def step():
        answers = []
        for i in range(0, batch, at_once):
            interpreter.set_tensor(image["index"], x[i : i + at_once])
            interpreter.invoke()
            answers.append(interpreter.get_tensor(output))
        return answers[0] if at_once == batch else np.concatenate(answers)

    return step
