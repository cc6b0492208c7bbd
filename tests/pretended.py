"""The kernels of fast/ and small networks for a processor that is not this one: run as a program, in a process of its own.

    python pretended.py PROCESSOR FOLDER

FOLDER holds `graphs`, pickled: {file of fast/: [(graph, images)]}. What is added are the object files that native.py would make there, and
`networks`: for each network the memory that its run needs, in which all addresses are as if it began at BASE, behind a head that main.c
reads. What main.c prints are the networks' outputs.
"""

import ctypes
import json
import pickle
import platform
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

BASE = 1 << 37
"""Where nothing else lies in a small program."""

KERNELS = ("inference", "integers")


class Processor(NamedTuple):
    """machine: what platform.machine() says. name, features: what LLVM says. lanes, instruction: what minitl must make of it."""

    machine: str
    triple: str
    name: str
    features: str
    lanes: int
    instruction: str = ""


ARM, X86 = ("aarch64", "aarch64-unknown-linux-gnu"), ("AMD64", "x86_64-unknown-linux-gnu")
PROCESSORS = {
    "neoverse-n1": Processor(*ARM, "neoverse-n1", "+neon,+fp-armv8,+lse,+dotprod", 4, "llvm.aarch64.neon.sdot.v4i32.v16i8"),
    "cortex-a72": Processor(*ARM, "cortex-a72", "+neon,+fp-armv8", 4),
    "sse2": Processor(*X86, "x86-64", "+sse2", 4, "llvm.x86.sse2.pmadd.wd"),
    "avx": Processor(*X86, "sandybridge", "+sse2,+avx", 4, "llvm.x86.sse2.pmadd.wd"),
    "skylake": Processor(*X86, "skylake-avx512", "+avx2,+avx512f,+avx512bw,+avx512vl", 16, "llvm.x86.avx512.pmaddw.d.512"),
    "icelake": Processor(*X86, "icelake-server", "+avx2,+avx512f,+avx512bw,+avx512vl,+avx512vnni", 16, "llvm.x86.avx512.vpdpbusd.512"),
}


def pretend(processor):
    """From here on minitl believes to be there, and native.py compiles for it. Numba runs here, but its own code is never needed."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    asked = llvm.get_host_cpu_name, llvm.get_host_cpu_features
    import numba  # noqa: F401
    from numba.core import codegen, cpu, registry

    registry.cpu_target.target_context.refresh()  # of its runtime, too, which is of this processor
    platform.machine = lambda: processor.machine
    llvm.get_host_cpu_name = lambda: processor.name
    llvm.get_host_cpu_features = lambda: SimpleNamespace(flatten=lambda: processor.features)
    from minitl import native

    llvm.get_host_cpu_name, llvm.get_host_cpu_features = asked
    assert (native.LANES, native.DOT[2]) == (processor.lanes, processor.instruction), (native.LANES, native.DOT)

    codegen.JITCodeLibrary._finalize_specific = lambda library: None
    # Numba tells functions apart by what stands for their machine code.
    cpu.CPUContext.get_executable = lambda context, library, *rest: (library._ensure_finalized(), [].append)[1]
    target = llvm.Target.from_triple(processor.triple)
    llvm.Target.from_default_triple = lambda: target
    layout, text = target.create_target_machine().target_data, codegen.CPUCodeLibrary.get_llvm_str

    def for_it(library):
        found = re.sub(r'^target datalayout = ".*"$', f'target datalayout = "{layout}"', text(library), flags=re.MULTILINE)
        return re.sub(r'^target triple = ".*"$', f'target triple = "{processor.triple}"', found, flags=re.MULTILINE)

    codegen.CPUCodeLibrary.get_llvm_str = for_it
    return native


# ---- a run -> what it needs in memory


def record(kernel, program, arguments):
    """A call of `run`, whose arguments they are -> head and memory."""
    table, _, arena, arena_bytes, feeds, first, last, _, _, _, _, counter = arguments
    count = 2 * (1 + len(program.wanted))
    given = np.frombuffer(ctypes.string_at(feeds, 8 * count), np.int64)
    arrays = [(int(at), int(size) * (last - first)) for at, size in given.reshape(-1, 2)]
    outputs, images = arrays[1:], arrays[0]
    constants = [(array.ctypes.data, array.nbytes) for array in (*program._keep, program._zeros)]
    regions = [
        *outputs,
        images,
        *constants,
        (arena, arena_bytes + 64 * 256),
        (counter, 8),
        (feeds, 8 * count),
        (table, program.table.nbytes),
    ]
    places, memory = {}, bytearray()
    for at, size in regions:
        places[at], memory = len(memory), memory + ctypes.string_at(at, size) + bytes(-size % 64)

    def there(value):
        found = [BASE + place + value - at for (at, size), place in zip(regions, places.values(), strict=True) if at <= value < at + size]
        return found[0] if found else value

    for at, size in regions[-2:]:  # what holds addresses
        moved = [there(value) for value in struct.unpack(f"{size // 8}q", ctypes.string_at(at, size))]
        struct.pack_into(f"{size // 8}q", memory, places[at], *moved)
    end = places[images[0]]
    return struct.pack("15q", KERNELS.index(kernel), len(memory), end, *map(there, arguments)) + bytes(memory)


def recorded(kernel, module, networks):
    """(what main.c reads, the operations that are in it)."""
    calls, kinds = [], set()
    module.load = lambda name: SimpleNamespace(run=lambda *arguments: calls.append(arguments))
    found = b""
    for graph, images in networks:
        program = module.Engine(graph, threads=1)
        kinds |= {module.KINDS[row[0]] for row in program.table}
        program._blocks_kept = program.run(images)  # what is recorded must not be freed
        found += record(kernel, program, calls.pop())
    return found, kinds


MAIN = """
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#define ARGUMENTS void *, void *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t
int run_inference(ARGUMENTS) __asm__("INFERENCE"), run_integers(ARGUMENTS) __asm__("INTEGERS");

int main(void)
{
    static char unused[64];
    int64_t h[15];
    while (fread(h, 1, sizeof h, stdin) == sizeof h) {
        char *memory = mmap((void *)BASE, h[1], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (memory == MAP_FAILED || fread(memory, 1, h[1], stdin) != (size_t)h[1]) {
            return 1;
        }
        (h[0] ? run_integers : run_inference)(unused, unused, h[3], h[4], h[5], h[6], h[7], h[8], h[9], h[10], h[11], h[12], h[13], h[14]);
        fwrite(memory, 1, h[2], stdout);
        munmap(memory, h[1]);
    }
    return 0;
}
"""


def main(name, folder):
    processor, folder = PROCESSORS[name], Path(folder)
    native = pretend(processor)
    text = MAIN.replace("BASE", f"{BASE}")
    for kernel in KERNELS:
        line, _, code = native._compile(kernel).partition(b"\n")
        (folder / f"{kernel}.o").write_bytes(code)
        text = text.replace(kernel.upper(), json.loads(line)["symbols"]["run"])
    (folder / "main.c").write_text(text)
    from minitl import engine, int8_engine

    engine.WORTH_STRIPS, engine.STRIP = {3: 20_000, 2: 20_000}, {3: 20_000, 2: 20_000}
    found = b""
    graphs = pickle.loads((folder / "graphs").read_bytes())
    for kernel, module in zip(KERNELS, (engine, int8_engine), strict=True):
        memory, kinds = recorded(kernel, module, graphs[kernel])
        assert kinds == set(module.KINDS), set(module.KINDS) - kinds
        found += memory
    (folder / "networks").write_bytes(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
