"""Ours and the peers in turn, on the same work, in one run: medians, ratios and the peak memory of this process.

    python benchmarks/speed.py            PyTorch takes part where it is installed

MobileNetV1 0.25 at 96x96, ten classes, random weights, float32, one thread each. This is the plain engine, made to be read; the ratio says
what that costs. Absolute times are of this machine and this moment; only the ratios travel.
"""

import resource
import statistics
import time

import minitl  # isort: skip  (before NumPy: it asks for one thread in BLAS)
import numpy as np

from minitl.architectures import build
from minitl.folding import fold
from minitl.training import SGD, Settings, one_hot, train_step

ROUNDS = 15


def torch_twin(graph):
    """The same network and weights as PyTorch modules, channels last."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    modules = []
    for node in graph.nodes:
        kind, params, layer = type(node.layer).__name__, graph.params.get(node.name, {}), node.layer
        if kind in ("Conv2D", "DepthwiseConv2D"):
            top, bottom, left, right = layer.pads(graph.input_shapes(node)[0])
            channels, kernel = graph.input_shapes(node)[0][2], torch.from_numpy(params["kernel"].copy())
            depthwise = kind == "DepthwiseConv2D"
            weight = kernel.permute(2, 0, 1)[:, None] if depthwise else kernel.permute(3, 2, 0, 1)
            conv = nn.Conv2d(channels, len(weight), layer.window, layer.strides, groups=channels if depthwise else 1, bias=False)
            conv.weight.data = weight.contiguous()
            modules += [nn.ZeroPad2d((left, right, top, bottom)), conv]
        elif kind == "BatchNorm":
            modules.append(nn.BatchNorm2d(len(params["gamma"]), eps=layer.epsilon, momentum=1 - layer.momentum))
        elif kind == "ReLU6":
            modules.append(nn.ReLU6())
        elif kind == "GlobalAveragePool":
            modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        elif kind == "Dense":
            dense = nn.Linear(*params["kernel"].shape)
            dense.weight.data, dense.bias.data = torch.from_numpy(params["kernel"].T.copy()), torch.from_numpy(params["bias"].copy())
            modules.append(dense)
    return nn.Sequential(*modules).to(memory_format=torch.channels_last)


def in_turn(work):
    """{name: function} -> {name: median seconds}, each called once a round, after two rounds that do not count."""
    times = {name: [] for name in work}
    for round_number in range(ROUNDS + 2):
        for name, function in work.items():
            started = time.perf_counter()
            function()
            if round_number >= 2:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title, images, medians):
    ours = medians["minitl"]
    print(f"\n{title}")
    for name, seconds in medians.items():
        print(f"  {name:<20} {1000 * seconds:9.3f} ms  {images / seconds:9.0f} images/s   ours / this one: {seconds / ours:.2f}")


def main():
    graph = build("mobilenet_v1", alpha=0.25, input_shape=[96, 96, 3], classes=10).initialise(0)
    folded = fold(graph)
    rng = np.random.default_rng(0)
    images = rng.random((32, 96, 96, 3), np.float32)
    targets = one_hot(rng.integers(0, 10, 32), 10)
    settings = Settings()
    optimiser = SGD(graph, settings.momentum, settings.decay)
    try:
        import torch

        twin = torch_twin(graph)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        y = torch.from_numpy(targets.argmax(axis=1))
        theirs = torch.optim.SGD(twin.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    except ImportError:
        torch = None
        print("PyTorch is not installed, so minitl runs alone: pip install minitl[peers]")

    def torch_forward(count):
        twin.eval()
        with torch.inference_mode():
            twin(x[:count])

    def torch_step():
        twin.train()
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(twin(x), y).backward()
        theirs.step()

    for count in (1, 32):
        work = {"minitl": lambda count=count: [folded.evaluate(images[i : i + 1]) for i in range(count)]}
        if torch:
            work["PyTorch eager"] = lambda count=count: torch_forward(count)
        show(f"inference, BatchNorm folded, batch {count}", count, in_turn(work))
    work = {"minitl": lambda: train_step(graph, {"input": images}, targets, optimiser, 0.01, None)}
    if torch:
        work["PyTorch eager"] = torch_step
    show("one training step, all layers, batch 32", 32, in_turn(work))
    print(
        f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB (minitl {minitl.__version__})"
    )


if __name__ == "__main__":
    main()
