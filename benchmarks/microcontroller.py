"""The person detector of MLPerf Tiny on Cortex-M: our header beside TensorFlow Lite Micro and CMSIS-NN, in instructions, flash and RAM.

    python benchmarks/microcontroller.py [--quick] [vww_96_int8.tflite]

--quick: Cortex-M4 only. Without a path the file is looked for in ../shared/weights beside the checkout (or in MINITL_SHARED). Needs
arm-none-eabi-gcc and qemu-system-arm (7.2 was used). Figures are instructions, not cycles, and the same on every computer. Ours are
measured now; those of the others are constants below, counted in the same way once (same file, same compiler, arm-none-eabi-gcc 12.2).

RAM is the arena, with the image in it, and the painted stack; flash is what the network adds to a program that does nothing, code and
constants (the start-up code that runs it here adds less than a kilobyte); softmax is left out on our side. "removed": without the channels
that are proved constant for every image (minitl/constant_channels.py), which changes no bit of any answer.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from minitl import constant_channels, emit_c, qemu
from minitl.errors import MinitlError
from minitl.importers import tflite_int8
from minitl.version import __version__

SHARED = Path(os.environ.get("MINITL_SHARED") or Path(__file__).resolve().parents[2] / "shared")

PEERS = (
    # system, core, flags, million instructions, flash, RAM (None: not measured)
    ("TFLM, reference kernels", "cortex-m4", "-O2", 100.2, 375_088, 101_900),
    ("TFLM + CMSIS-NN", "cortex-m4", "-O2", 24.7, 420_376, 102_500),
    ("CMSIS-NN called directly", "cortex-m4", "-O3", 24.71, 274_048, 57_108),
    ("TFLM + CMSIS-NN", "cortex-m55", "-O2", 6.43, 410_456, 102_700),
    ("CMSIS-NN called directly", "cortex-m55", "-O3", 6.42, 268_656, 60_608),
    ("CMSIS-NN called directly", "cortex-m3", "-O3", 32.1, 267_296, None),
    ("CMSIS-NN called directly", "cortex-m0plus", "-O3", 86.9, 271_216, None),
)
"""Counted with qemu-system-arm 7.2, -icount shift=0 and SysTick. Arena, scratch and painted stack."""

TARGETS = {
    ("cortex-m4", "removed"): (10.0, 57_000, 38_500),
    ("cortex-m4", "kept"): (15.5, 240_000, 38_500),
    ("cortex-m3", "removed"): (16.0, 57_000, 38_500),
    ("cortex-m55", "removed"): (6.4, 57_000, 38_500),
}
"""What we set ourselves: million instructions, flash, RAM, at most."""

CORES = ("cortex-m4", "cortex-m55", "cortex-m7", "cortex-m33", "cortex-m3", "cortex-m0plus")
IMAGES = 3  # whose logits are compared with Python's before anything is counted


def ratio(peer, ours):
    """How many times more the other one takes."""
    return "" if peer is None else f"{peer / ours:.2f}x"


def row(system, core, flags, millions, macs, flash, ram, last):
    """One line that ends in three short texts."""
    line = f"{system:38} {core.removeprefix('cortex-').upper():7} {flags:5} {millions:8.2f} {1e6 * millions / macs:6.2f} {flash:9,} "
    line += f"{ram:9,}" if ram else " " * 9
    return line + "".join(f" {text:>10}" for text in last)


def measure(graph, core, rng):
    """Profile of the graph's header on a core, after a comparison of its logits with Python's."""
    size = graph.tensors[graph.output].size
    header = emit_c.emit(graph, emit_c.About("vww", ["non_person", "person"][:size], None, {"licence": "Apache-2.0"}, __version__))
    x = rng.integers(-128, 128, (IMAGES, *graph.tensors[graph.input].shape), dtype=np.int8)
    assert np.array_equal(qemu.logits(header, "vww", core, x), graph.run(x)), f"{core}: not Python's logits"
    return qemu.profile(header, "vww", core, x[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=SHARED / "weights/vww_96_int8.tflite")
    parser.add_argument("--quick", action="store_true", help="Cortex-M4 only")
    options = parser.parse_args()
    if not options.file.is_file():
        parser.exit(1, f"no {options.file}: get vww_96_int8.tflite from github.com/mlcommons/tiny and give its path\n")
    try:
        network = tflite_int8.read(options.file.read_bytes(), options.file.name).graph
    except MinitlError as error:
        parser.exit(1, f"{error}\n")
    macs = network.macs()
    variants = {"removed": constant_channels.remove(network).graph, "kept": network}
    print(f"{options.file.name}: {macs:,} MACs, {variants['removed'].macs():,} without constant channels; one image")
    print("The last three columns: our targets, and the others over ours (constant channels removed)")
    print(f"{'':38} {'core':7} {'':5} {'M instr':>8} {'/MAC':>6} {'flash':>9} {'RAM':>9} {'instr':>10} {'flash':>10} {'RAM':>10}")
    rng = np.random.default_rng(0)
    for core in CORES[:1] if options.quick else CORES:
        if why := qemu.unavailable(core):
            print(why)
            continue
        best = None
        for name, graph in variants.items():
            p = measure(graph, core, rng)
            best = best or (p.instructions / 1e6, p.flash, p.ram)
            system = f"minitl, constant channels {name}"
            targets = [f"<={target:,}" for target in TARGETS.get((core, name), ())]
            print(row(system, core, " ".join(p.flags), p.instructions / 1e6, macs, p.flash, p.ram, targets), flush=True)
        for system, where, flags, millions, flash, ram in PEERS:
            if where == core:
                ratios = [ratio(theirs, ours) for theirs, ours in zip((millions, flash, ram), best, strict=True)]
                print(row(system, core, flags, millions, macs, flash, ram, ratios))


if __name__ == "__main__":
    main()
