"""A file of fast/ -> machine code, compiled once by Numba, kept on disk, and from then on loaded without Numba.

Importing Numba takes twice as long as importing NumPy, and compiling takes seconds; a program that answers for one photo should need neither.
So the machine code of all kernels of a file is written to the cache folder as one object file, and LLVM (llvmlite) loads it into the
process. The file's name holds a hash of all that it depends on: processor, platform, versions, the source of fast/. Its content begins with its own
hash: a damaged file is compiled anew and replaced. A folder that others may write to is not used, since what lies in it is executed.

In: the name of a file of fast/, and its EXPORTS {name: (kernel, number of int64 arguments)}. Out: an object with these names as functions; they
take integers (addresses and counts), return nothing and let go of the GIL. Left out: tidying up; the folder can be deleted at any time.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import os
import platform
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from . import jit
from .errors import MinitlError
from .files import write_atomically
from .version import __version__


def plain() -> bool:
    """Whether MINITL_ENGINE asks for the plain kernels everywhere."""
    chosen = os.environ.get("MINITL_ENGINE", "fast")
    if chosen not in ("fast", "plain"):
        raise MinitlError(f"MINITL_ENGINE is {chosen!r}: expected fast or plain")
    return chosen == "plain"


@functools.cache
def _cpu() -> tuple[str, str]:
    """(name, features) of this processor, as LLVM knows them."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    try:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM does not know this processor
        return "", ""


def _lanes() -> int:
    """Floats of a vector register. MINITL_LANES overrides it, for tests: the numbers are the same, only the speed differs."""
    if chosen := os.environ.get("MINITL_LANES"):
        return int(chosen)
    features = _cpu()[1].split(",")
    return 16 if "+avx512f" in features else 8 if "+avx2" in features else 4


LANES = _lanes()


def _dot() -> tuple[int, int, str]:
    """How int8 networks multiply here: (products at once per 32-bit lane, what is added to an int8 to keep it in a byte, LLVM's name of the instruction).

    The name is "" where the same is put together from ordinary instructions. MINITL_DOT=2 or 4 overrides the first, for tests: the bits are the same.
    """
    has = {feature[1:] for feature in _cpu()[1].split(",") if feature.startswith("+")}
    x86, arm = platform.machine().lower() in ("x86_64", "amd64"), platform.machine().lower() in ("arm64", "aarch64")
    chosen = os.environ.get("MINITL_DOT")
    if chosen != "2":
        if x86 and LANES == 16 and "avx512vnni" in has:
            return 4, 128, "llvm.x86.avx512.vpdpbusd.512"
        if x86 and LANES == 8 and ("avxvnni" in has or {"avx512vnni", "avx512vl"} <= has):
            return 4, 128, "llvm.x86.avx512.vpdpbusd.256"
        if arm and LANES == 4 and "dotprod" in has:
            return 4, 0, "llvm.aarch64.neon.sdot.v4i32.v16i8"
        if chosen == "4":
            return 4, 0 if arm else 128, ""
    names = {16: ("avx512bw", "llvm.x86.avx512.pmaddw.d.512"), 8: ("avx2", "llvm.x86.avx2.pmadd.wd"), 4: ("sse2", "llvm.x86.sse2.pmadd.wd")}
    return 2, 0, names[LANES][1] if x86 and names[LANES][0] in has else ""


DOT = _dot()


@functools.cache
def load(name: str) -> Any:
    """The kernels of fast/NAME.py as functions of an object. MinitlError where this machine cannot compile or load them."""
    try:
        path = _place(name)
        code = _read(path) if path else None
        if code is None:
            jit.announce("compiling for this processor, once ...")
            code = _compile(name)
            if path:
                _write(path, code)
        return _link(code)
    except (OSError, RuntimeError, ImportError) as error:
        raise MinitlError(f"the fast kernels cannot be used on this machine ({error}); MINITL_ENGINE=plain runs without them") from error


def _place(name: str) -> Path | None:
    """Where the object file belongs; None where nothing can be kept."""
    sha = hashlib.sha256(
        repr(
            (
                __version__,
                llvmlite.__version__,
                llvm.llvm_version_info,
                sys.version_info[:2],
                sys.platform,
                platform.machine(),
                LANES,
                DOT,
                _cpu(),
            )
        ).encode()
    )
    for source in sorted(Path(__file__).with_name("fast").glob("*.py")):
        sha.update(source.read_bytes())
    sha.update(Path(__file__).read_bytes())
    folder = jit.kernels_folder()
    return folder / f"{name}-{sha.hexdigest()[:32]}.bin" if folder else None


def _read(path: Path) -> bytes | None:
    """What _write kept; None where there is nothing, or something damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def _write(path: Path, code: bytes) -> None:
    """Keep it, if possible. Two processes may do so at once: each writes a whole file."""
    try:
        write_atomically(path, hashlib.sha256(code).digest() + code)
    except MinitlError:
        pass


def _compile(name: str) -> bytes:
    """Names and numbers of arguments of the exports as one line, then the object file.

    Numba optimises what a function calls again with every function that calls it; here that is done once, in the end, which halves the time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exports = importlib.import_module(f".fast.{name}", __package__).EXPORTS
        numba = importlib.import_module("numba")
    level, at_the_end = numba.config.OPT, hasattr(llvm, "create_pass_builder")
    linked, lines = llvm.parse_assembly(""), []
    try:
        numba.config.OPT = type(level)(0) if at_the_end else level
        for exported, (kernel, arguments) in exports.items():
            types = (numba.types.int64,) * arguments
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kernel.compile(types)
            linked.link_in(llvm.parse_assembly(kernel.overloads[types].library.get_llvm_str()))
            lines.append(f"{exported} {kernel.overloads[types].fndesc.llvm_func_name} {arguments}")
    finally:
        numba.config.OPT = level
    cpu, features = _cpu()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, reloc="pic", codemodel="jitdefault")
    if at_the_end:
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(linked, passes)
    return "\t".join(lines).encode() + b"\n" + bytes(machine.emit_object(linked))


_KEPT: list[Any] = []  # what must live as long as the process

BORROWED = ("memset", "memcpy", "memmove", "expf", "logf")
"""Functions of C that LLVM, or a kernel, calls."""


def _lend() -> None:
    """Tell LLVM where these are: in a process with PyTorch, which has an LLVM of its own, it finds none, and calls address 0."""
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    for name in BORROWED:
        try:
            llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
        except AttributeError:
            raise OSError(f"the C library has no {name}") from None


def _link(code: bytes) -> SimpleNamespace:
    """Object file -> functions. What Numba calls a function returns a status and takes two addresses more, which we do not need."""
    _cpu()
    _lend()
    lines, _, content = code.partition(b"\n")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(content))
    engine.finalize_object()
    nothing = ctypes.create_string_buffer(64)
    _KEPT.extend((engine, nothing))
    address = ctypes.addressof(nothing)
    functions = {}
    for line in lines.decode().split("\t"):
        exported, symbol, arguments = line.split(" ")
        kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * (2 + int(arguments)))
        functions[exported] = functools.partial(kind(engine.get_function_address(symbol)), address, address)
    return SimpleNamespace(**functions)
