"""Ours and the peers on the same work in the same run: one command, five tables, as text and as a picture.

    python benchmarks/all.py [--only inference,training,start,growth,loading] [--quick] [--threads 1 2] [-o benchmarks.png]

PyTorch, ONNX Runtime and LiteRT take part where they are installed (pip install 'minitl[peers]'). Real weights and photos are used where
they are found, in ../shared beside the checkout or in MINITL_SHARED; random ones otherwise. Memory is measured on Linux only.
Absolute times are of this machine and this moment; only ratios travel. --quick: the small network
and a few rounds, to see whether it runs, not how fast.
"""

import argparse
import importlib
import os
import time
from pathlib import Path

from machine import description, taken
from tables import write

TABLES = ("inference", "training", "start", "growth", "loading")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TABLES), help="tables, with commas between")
    parser.add_argument("--quick", action="store_true", help="a few rounds of the small network")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2][: os.cpu_count()])
    parser.add_argument("-o", type=Path, default=Path("benchmarks.png"), help="picture; the text goes beside it")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(TABLES):
        parser.error(f"--only takes {', '.join(TABLES)}, found {', '.join(sorted(unknown))}")
    about, tables = description(), []
    print(about, flush=True)
    for name in chosen:
        started, busy = time.monotonic(), taken()
        tables.append(importlib.import_module(name).report(options.quick, options.threads))
        busy = max(busy, taken())
        if busy > 0.1:
            tables[-1].remark(f"OTHERS HAD {100 * busy:.0f} % OF THE PROCESSORS when this began or ended: these figures say little.")
        print(tables[-1].text(), f"\n({time.monotonic() - started:.0f} s)", flush=True)
        write(tables, about, options.o)
    print(f"written: {options.o.with_suffix('.txt')}, {options.o.with_suffix('.png')}")


if __name__ == "__main__":
    main()
