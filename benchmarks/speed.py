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
        from twins import Twin, to_torch, torch_step

        torch.set_num_threads(1)
        twin = Twin(graph)
        x, y = to_torch(images), torch.from_numpy(targets.argmax(axis=1))
        theirs = torch.optim.SGD(twin.groups(1e-4), 0.01, momentum=0.9, nesterov=True)
    except ImportError:
        torch = None
        print("PyTorch is not installed, so minitl runs alone: pip install minitl[peers]")

    def torch_forward(count):
        twin.eval()
        with torch.inference_mode():
            twin(x[:count])

    for count in (1, 32):
        work = {"minitl": lambda count=count: [folded.evaluate(images[i : i + 1]) for i in range(count)]}
        if torch:
            work["PyTorch eager"] = lambda count=count: torch_forward(count)
        show(f"inference, BatchNorm folded, batch {count}", count, in_turn(work))
    work = {"minitl": lambda: train_step(graph, {"input": images}, targets, optimiser, 0.01, None)}
    if torch:
        twin.train()
        work["PyTorch eager"] = lambda: torch_step(twin, theirs, x, y)
    show("one training step, all layers, batch 32", 32, in_turn(work))
    print(
        f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB (minitl {minitl.__version__})"
    )


if __name__ == "__main__":
    main()
