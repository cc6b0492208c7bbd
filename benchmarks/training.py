"""Memory and time of one training step, ours and PyTorch's: the same network, the same numbers, batch 32, float32.

    python benchmarks/training.py [--quick] [--threads 1 2]

PyTorch takes part where it is installed; Linux only (/proc/self/clear_refs).

Each figure comes from a fresh process, ours and theirs in turn; medians of three. Two peaks, both of resident memory:

    the step       highest point of a step above the state before it. Before it, three steps have been made: code is compiled, optimisers
                   hold their state, and unused memory has been given back to the system (malloc_trim). Images are there already.
    the process    highest point since it began: Python, the libraries, compiling, everything.

"last three blocks": all below is frozen, its BatchNorms included; both sides start from the images. PyTorch runs the frozen part without
keeping anything, we run it folded and one image at a time (folding.py). --quick: MobileNetV1 0.25 at 96x96 only, one process each.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH, STEPS, RATE, MOMENTUM, DECAY = 32, 10, 0.01, 0.9, 1e-4
NETWORKS = {
    "MobileNetV1 0.25 at 96x96": ("mobilenet_v1", 0.25, 96, "..conv_pw_10"),
    "MobileNetV1 0.25 at 224x224": ("mobilenet_v1", 0.25, 224, "..conv_pw_10"),
    "MobileNetV2 0.35 at 96x96": ("mobilenet_v2", 0.35, 96, "..block_13"),
}
CASES = ("all layers", "last three blocks")


def status(key):
    """A line of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def step_of(who, network, case, threads):
    """A function that makes one training step."""
    import numpy as np

    from minitl.architectures import build

    architecture, alpha, size, border = NETWORKS[network]
    graph = build(architecture, alpha=alpha, input_shape=[size, size, 3], classes=10).initialise(0)
    if case != CASES[0]:
        graph.freeze(border)
    rng = np.random.default_rng(0)
    images, labels = rng.random((BATCH, size, size, 3), np.float32), rng.integers(0, 10, BATCH)
    if who == "minitl":
        from minitl import training

        optimiser, targets = training.SGD(graph, MOMENTUM, DECAY), training.one_hot(labels, 10)
        feeds = lambda: {"input": images}  # noqa: E731
        if case != CASES[0]:
            from minitl.folding import frozen_part

            frozen = frozen_part(graph)
            feeds = lambda: frozen.values(images)  # noqa: E731
        return lambda: training.train_step(graph, feeds(), targets, optimiser, RATE, None)

    import torch
    from twins import Twin, to_torch, torch_step

    torch.set_num_threads(threads)
    twin = Twin(graph)
    x, y = to_torch(images), torch.from_numpy(labels)
    optimiser = torch.optim.SGD(twin.groups(DECAY), RATE, momentum=MOMENTUM, nesterov=True)
    return lambda: torch_step(twin, optimiser, x, y)


def measure(who, network, case, threads):
    """{"step": MiB, "process": MiB, "seconds": of a step}"""
    step = step_of(who, network, case, threads)
    for _ in range(3):
        step()
    process, peaks, times = status("VmHWM"), [], []
    for _ in range(3):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
        step()
        peaks.append(status("VmHWM") - before)
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {"step": statistics.median(peaks), "process": process, "seconds": statistics.median(times)}


def in_a_process(*arguments):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(arguments[-1]), "OMP_NUM_THREADS": str(arguments[-1])}
    command = [sys.executable, __file__, "--one", json.dumps(arguments)]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2][: os.cpu_count()])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    sides = ["minitl"]
    try:
        import torch

        sides.append("PyTorch")
        print(f"PyTorch {torch.__version__}, channels last, activations in place")
    except ImportError:
        print("PyTorch is not installed, so minitl runs alone: pip install minitl[peers]")
    for network in list(NETWORKS)[: 1 if arguments.quick else None]:
        for case in CASES:
            for threads in arguments.threads:
                runs = {who: [] for who in sides}
                for _ in range(1 if arguments.quick else 3):
                    for who in sides:
                        runs[who].append(in_a_process(who, network, case, threads))
                found = {who: {key: statistics.median(run[key] for run in of_it) for key in of_it[0]} for who, of_it in runs.items()}
                print(f"\n{network}, {case}, batch {BATCH}, {threads} thread{'s' if threads > 1 else ''}")
                for who, figures in found.items():
                    step, process, time_ = (found["minitl"][key] / figures[key] for key in ("step", "process", "seconds"))
                    print(
                        f"  {who:<8} step {figures['step']:6.1f} MiB, process {figures['process']:4.0f} MiB,"
                        f" {1000 * figures['seconds']:6.1f} ms;  ours / this one: step {step:.2f}, process {process:.2f}, time {time_:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
