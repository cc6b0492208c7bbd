"""What this machine is and what it can do at most: multiply-adds and bytes read a second, measured with loops written in LLVM.

Out: a sentence about the machine, two contenders for turns.py that do a known amount of work, and how busy others are. Left out: int8
arithmetic; shares of the limit are always of float32.
"""

import ctypes
import importlib.metadata
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import minitl

ACCUMULATORS, LOOPS = 12, 2_000_000
"""Independent sums, enough to hide how long a multiply-add takes, few enough for 16 registers."""
BYTES = 256 << 20


def description():
    """One line: processor, threads, versions."""
    cpu = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in cpu.read_text().splitlines() if ":" in line) if cpu.is_file() else {}
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    flags = lines.get("flags", lines.get("Features", "")).split()
    known = [flag for flag in ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp") if flag in flags]
    model = [lines[key] for key in ("model name", "cpu family", "model") if key in lines]
    packages = [f"minitl {minitl.__version__}"]
    for package in ("numpy", "numba", "llvmlite", "pillow", "torch", "onnxruntime", "ai-edge-litert"):
        try:
            packages.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            packages.append(f"no {package}")
    return (
        f"{' '.join(model) or platform.machine()} ({', '.join(known)}), {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        + ", ".join(packages)
    )


def _loops(lanes):
    """Machine code: fma(count) and read(address, vectors), addresses of both, and what must stay alive."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    i64, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), lanes)
    module = ir.Module()

    def loop(name, arguments, step, starts):
        """A loop over `count`, the last argument, that carries vectors; returns one lane of their sum, so that nothing is left out."""
        function = ir.Function(module, ir.FunctionType(ir.FloatType(), [i64] * arguments), name)
        entry, body, end = (function.append_basic_block(part) for part in ("entry", "body", "end"))
        ir.IRBuilder(entry).branch(body)
        b = ir.IRBuilder(body)
        i, sums = b.phi(i64), [b.phi(vector) for _ in range(ACCUMULATORS)]
        after = step(b, function.args, i, sums)
        next_i = b.add(i, i64(1))
        i.add_incoming(i64(0), entry)
        i.add_incoming(next_i, body)
        for start, total, then in zip(starts, sums, after, strict=True):
            total.add_incoming(start, entry)
            total.add_incoming(then, body)
        b.cbranch(b.icmp_unsigned("<", next_i, function.args[-1]), body, end)
        b = ir.IRBuilder(end)
        total = after[0]
        for more in after[1:]:
            total = b.fadd(total, more)
        b.ret(b.extract_element(total, ir.IntType(32)(0)))

    fma = ir.Function(module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f32")
    zeros = [vector([0.0] * lanes)] * ACCUMULATORS

    def multiply_add(b, arguments, i, sums):
        return [b.call(fma, [total, vector([0.5] * lanes), vector([1.0 + k] * lanes)]) for k, total in enumerate(sums)]

    def read(b, arguments, i, sums):
        after, width = [], 4 * lanes
        start = b.add(arguments[0], b.mul(i, i64(width * ACCUMULATORS)))
        for k, total in enumerate(sums):
            value = b.load(b.inttoptr(b.add(start, i64(width * k)), vector.as_pointer()))
            value.align = 4
            after.append(b.fadd(total, value))
        return after

    loop("multiply_add", 1, multiply_add, zeros)
    loop("read", 2, read, zeros)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    kinds = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64), ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64, ctypes.c_int64)
    return *(kind(engine.get_function_address(name)) for kind, name in zip(kinds, ("multiply_add", "read"), strict=True)), engine


def _on_threads(work, threads):
    pool = ThreadPoolExecutor(threads)

    def step():
        for _ in pool.map(work, range(threads)):
            pass

    return step


def arithmetic(threads):
    """The contender that only multiplies and adds: flops() in one piece of work."""
    from minitl.native import LANES

    multiply_add, _, keep = _loops(LANES)
    return _on_threads(lambda _: (keep, multiply_add(LOOPS)), threads)


def flops(threads):
    """Of one piece of work of arithmetic(): a multiplication and an addition are two."""
    from minitl.native import LANES

    return 2 * LANES * ACCUMULATORS * LOOPS * threads


def reading(threads):
    """The contender that only reads: BYTES in one piece of work, far more than caches hold."""
    import numpy as np

    from minitl.native import LANES

    _, read, keep = _loops(LANES)
    memory = np.ones(BYTES // 4, np.float32)
    share = BYTES // threads
    return _on_threads(lambda k: (keep, read(memory.ctypes.data + k * share, share // (4 * LANES * ACCUMULATORS))), threads)


def taken(seconds=0.3):
    """Share of the processors that somebody else has at this moment, 0 to 1."""
    from minitl.native import LANES

    multiply_add, _, keep = _loops(LANES)
    step = _on_threads(lambda _: (keep, multiply_add(LOOPS)), os.cpu_count() or 1)
    started, worked = time.perf_counter(), time.process_time()
    while time.perf_counter() < started + seconds:
        step()
    return max(0.0, 1 - (time.process_time() - worked) / (time.perf_counter() - started) / (os.cpu_count() or 1))
