"""A file of fast/ -> machine code, compiled once by Numba, kept on disk, and from then on loaded without Numba.

Importing Numba takes twice as long as importing NumPy, and compiling takes seconds; a program that answers for one photo should need
neither. So the machine code of all kernels of a file is written to the cache folder: on Linux and x86-64 as a block that linker.py puts
into memory, elsewhere as an object file that LLVM (llvmlite) loads. The file's name holds a hash of all that it depends on: processor,
platform, versions, sources. Its content begins with its own hash: a damaged file is compiled anew and replaced. A folder that others may
write to is not used, since what lies in it is executed. What nobody has loaded for a month makes room when something new is written.

In: the name of a file of fast/, and its EXPORTS {name: (kernel, number of int64 arguments)}. Out: an object with these names as
functions; they take integers (addresses and counts), return nothing and let go of the GIL. Left out: everything that the kernels do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import platform
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import jit, linker
from .errors import MinitlError
from .files import write_atomically
from .processor import DOT, LANES, LINUX_X86, dot, host, lanes, named, said_by_llvm
from .version import __version__

MONTH = 30 * 86_400
"""Seconds after which a file that was not loaded may go."""

BORROWED = ("memset", "memcpy", "memmove", "expf", "logf", *(() if sys.platform == "win32" else ("usleep",)))
"""Functions of C that LLVM, or a kernel, calls."""

_lock = threading.Lock()
_KEPT: list[Any] = []  # what must live as long as the process


def plain() -> bool:
    """Whether MINITL_ENGINE asks for the plain kernels everywhere."""
    chosen = os.environ.get("MINITL_ENGINE", "fast")
    if chosen not in ("fast", "plain"):
        raise MinitlError(f"MINITL_ENGINE is {chosen!r}: expected fast or plain")
    return chosen == "plain"


def load(name: str) -> Any:
    """The kernels of fast/NAME.py as functions of an object. MinitlError where this machine cannot compile or load them."""
    with _lock:  # Numba is set for us while we compile
        found = _loaded(name)
    if isinstance(found, MinitlError):
        raise MinitlError(f"{found}; MINITL_ENGINE=plain runs without them")
    return found


@functools.cache
def _loaded(name: str) -> Any:
    """The same, or the MinitlError: it is not tried again."""
    try:
        path = _place(name)
        kept = _read(path) if path else None
        if kept is not None:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # well signed, and yet nothing of ours: compiled anew
                return _functions(kept)
        jit.announce(f"compiling the {name} kernels for this processor{', once' if path else ''} ...")
        content = _compile(name)
        if path and path == _place(name, again=True):
            _write(path, content)
        return _functions(content)
    except Exception as error:  # whatever it is, also errors of Numba's own kinds: the plain kernels can do it
        why = f"the fast kernels cannot be used on this machine ({' '.join(str(error).split())[:200] or type(error).__name__})"
        _say_once(f"{why}: plain ones, which are slower, take over")
        return MinitlError(why)


@functools.cache
def _say_once(sentence: str) -> None:
    jit.announce(sentence)


def _place(name: str, again: bool = False) -> Path | None:
    """Where the machine code belongs; None where nothing can be kept, or sources have changed since the process began.

    again: look at the sources once more.
    """
    find = jit.source_hash.__wrapped__ if again else jit.source_hash
    try:
        source = find(Path(__file__).with_name("fast") / f"{name}.py")
        versions = __version__, _version("numba"), _version("llvmlite"), sys.version_info[:2], sys.platform, platform.machine()
        key = repr((versions, LANES, DOT, host()[0], source))
    except OSError:
        return None
    folder = jit.kernels_folder()
    return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin" if folder else None


def _version(package: str) -> str:
    """The version of a package that is not to be imported, as the file says that it has for this."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise OSError(f"there is no {package}")
    return Path(spec.origin).with_name("_version.py").read_text("utf-8")


def _read(path: Path) -> bytes | None:
    """What _write kept; None where there is nothing, or something damaged."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return None
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a disk that is only read from
        os.utime(path)
    return content[32:]


def _write(path: Path, content: bytes) -> None:
    """Keep it, if possible. Two processes may do so at once: each writes a whole file."""
    with contextlib.suppress(MinitlError, OSError):
        write_atomically(path, hashlib.sha256(content).digest() + content)
        for other in path.parent.glob("*.bin"):
            if time.time() - other.stat().st_mtime > MONTH:
                other.unlink()


def _compile(name: str) -> bytes:
    """What is kept: facts as a line of JSON, then the block or, where LLVM is to load it, the object file.

    Numba optimises what a function calls again with every function that calls it; here that is done once, in the end: half the time.
    """
    import llvmlite.binding as llvm

    cpu, features = said_by_llvm()
    if (lanes(named(features)), dot(named(features))) != (LANES, DOT):
        raise OSError("the system and LLVM disagree about this processor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exports = importlib.import_module(f".fast.{name}", __package__).EXPORTS
        numba = importlib.import_module("numba")
    level, at_the_end = numba.config.OPT, hasattr(llvm, "create_pass_builder")
    linked, symbols = llvm.parse_assembly(""), {}
    try:
        numba.config.OPT = type(level)(0) if at_the_end else level
        for exported, (kernel, arguments) in exports.items():
            types = (numba.types.int64,) * arguments
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kernel.compile(types)
            linked.link_in(llvm.parse_assembly(kernel.overloads[types].library.get_llvm_str()))
            symbols[exported] = kernel.overloads[types].fndesc.llvm_func_name
    finally:
        numba.config.OPT = level
    target = llvm.Target.from_default_triple()
    options = {"cpu": cpu, "features": features, "opt": 3, "reloc": "pic"}
    machine = target.create_target_machine(**options, codemodel="jitdefault")
    if at_the_end:
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(linked, passes)
    counts = {exported: arguments for exported, (_, arguments) in exports.items()}
    if LINUX_X86:
        with contextlib.suppress(linker.Unlinkable):
            small = target.create_target_machine(**options, codemodel="small")
            block = linker.link(small.emit_object(linked), symbols, BORROWED)
            return _packed(block.code, counts, places=block.functions, slots=block.slots)
    return _packed(machine.emit_object(linked), counts, symbols=symbols)


def _packed(code: bytes, arguments: dict[str, int], **facts: Any) -> bytes:
    return json.dumps({"arguments": arguments, **facts}).encode() + b"\n" + code


def _functions(content: bytes) -> SimpleNamespace:
    """What _compile gave -> functions. What Numba calls a function returns a status and takes two addresses more, which we do not need."""
    line, _, code = content.partition(b"\n")
    facts = json.loads(line)
    if "places" in facts:
        start = linker.place(linker.Block(code, facts["places"], facts["slots"]))
        addresses = {name: start + at for name, at in facts["places"].items()}
    else:
        addresses = _loaded_by_llvm(code, facts["symbols"])
    nothing = ctypes.create_string_buffer(64)
    _KEPT.append(nothing)
    unused = ctypes.addressof(nothing)
    functions = {}
    number = ctypes.c_void_p if ctypes.sizeof(ctypes.c_void_p) == 8 else ctypes.c_int64  # the same 64 bits, in half the time: 1.4 us a call
    for name, arguments in facts["arguments"].items():
        kind = ctypes.CFUNCTYPE(None, *[number] * (2 + arguments))
        functions[name] = functools.partial(kind(addresses[name]), unused, unused)
    return SimpleNamespace(**functions)


def _loaded_by_llvm(code: bytes, symbols: dict[str, str]) -> dict[str, int]:
    """Object file -> {name: address}.

    LLVM is told where functions of C are: in a process with PyTorch, which has an LLVM of its own, it finds none, and calls address 0.
    """
    import llvmlite.binding as llvm

    said_by_llvm()  # makes LLVM ready
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    for name in BORROWED:
        if not hasattr(library, name):
            raise OSError(f"the C library has no {name}")
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _KEPT.append(engine)
    return {name: engine.get_function_address(symbol) for name, symbol in symbols.items()}
