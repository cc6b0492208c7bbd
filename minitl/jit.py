"""One way to compile a kernel: Numba with the options that every kernel of the project wants, when it is first called.

Importing Numba takes longer than importing all the rest, and compiling takes seconds; a program that calls no kernel needs neither.
Compiled code is kept in the cache folder, a file for each kernel and the types that it was called with, and not in Numba's own cache,
which believes what lies there: our files begin with their own hash, so that a damaged one is compiled anew, and their names hold a hash
of all that the code depends on: processor, platform, versions, the sources of the kernel's module and of those that it imports from.
Where nothing can be kept, or others could write to the folder (what lies in it is executed), kernels are compiled anew in each process.

No fastmath: results must not depend on how a compiler reorders sums. No eager signatures: read-only and memory-mapped arrays
are welcome.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import MinitlError
from .files import cache_folder, is_private, write_atomically

announce: Callable[[str], None] = lambda sentence: None  # noqa: E731
"""Called with a sentence before something that takes seconds; the command line prints it."""

PATIENCE = 0.3
"""Seconds of compiling that need no announcement."""

_began, _lock = time.time(), threading.Lock()


def njit(function: Callable[..., Any]) -> Kernel:
    """Compile `function` when it is first called, without the GIL, with division by zero as in NumPy."""
    return Kernel(function)


class Kernel:
    """A function that Numba compiles when it is called, by us or by another kernel."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.made: Any = None

    def compiled(self) -> Any:
        """Numba's function; from here on the module holds that instead of this object, so that calls take no detour."""
        with _lock:
            if self.made is None:
                import numba

                self.made = numba.njit(nogil=True, error_model="numpy")(self.function)
                if self.made is not self.function:  # as it is with NUMBA_DISABLE_JIT=1
                    self.made._cache = Kept(self.function)
                names = self.function.__globals__
                if names.get(self.function.__name__) is self:
                    names[self.function.__name__] = self.made
            return self.made

    def __call__(self, *arguments: Any) -> Any:
        """The first call; through the module, later ones do not come here."""
        return self.compiled()(*arguments)

    @property
    def _numba_type_(self) -> Any:
        """What Numba asks for where a kernel that it compiles calls this one."""
        return self.compiled()._numba_type_


class Kept:
    """What Numba asks for compiled code before it compiles, and gives it to afterwards. `sig` are types; a result is Numba's CompileResult.

    Takes the place of numba.core.caching.FunctionCache.
    """

    spent = 0.0
    """Seconds of compiling so far."""

    announced = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.started = 0.0
        try:
            self.source = source_hash(Path(function.__code__.co_filename))
        except OSError:  # no source, as in a notebook, or a new one: nothing is kept
            self.source = ""

    def load_overload(self, sig: Any, target: Any) -> Any:
        """Code that was kept, ready to run; None where there is none."""
        target.refresh()
        path = self._path(sig, target.codegen())
        try:
            content = path.read_bytes() if path else b""
            if content and hashlib.sha256(content[32:]).digest() == content[:32]:
                from numba.core.compiler import CompileResult

                return CompileResult._rebuild(target, *pickle.loads(content[32:]))
        except Exception:  # whatever it was: it is compiled anew
            pass
        if Kept.spent > PATIENCE and not Kept.announced:
            Kept.announced = True
            announce(f"compiling for this processor{', once' if path else ''} ...")
        self.started = time.monotonic()
        return None

    def save_overload(self, sig: Any, result: Any) -> None:
        """Keep code, if possible. Two processes may do so at once: each writes a whole file."""
        Kept.spent += time.monotonic() - self.started
        path = self._path(sig, result.codegen)
        if path and not result.library.has_dynamic_globals:
            from numba.core.serialize import dumps

            try:
                code = dumps(result._reduce())
                write_atomically(path, hashlib.sha256(code).digest() + code)
            except (MinitlError, OSError, pickle.PicklingError):
                pass

    def _path(self, sig: Any, codegen: Any) -> Path | None:
        """Where the code belongs; None where nothing can be kept."""
        folder = kernels_folder() if self.source else None
        if folder is None:
            return None
        name, line = self.function.__qualname__, self.function.__code__.co_firstlineno
        key = repr((self.source, name, line, str(sig), codegen.magic_tuple(), versions()))
        return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.numba"


def kernels_folder() -> Path | None:
    """Where compiled code is kept; None where it cannot be, or where others could put theirs."""
    try:
        folder = cache_folder() / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder if is_private(folder) else None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None


@functools.cache
def versions() -> tuple[Any, ...]:
    """All that compiled code depends on beside source, types and processor."""
    import llvmlite
    import numba
    import numpy

    chosen = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    return sys.version, platform.machine(), numba.__version__, llvmlite.__version__, numpy.__version__, chosen


@functools.cache
def source_hash(file: Path) -> str:
    """SHA-256 of a module's source and of all that it imports from its own package, directly or not.

    OSError where one cannot be read, or was changed after this process began, which may therefore run what stood there before.
    """
    sources: dict[Path, bytes] = {}
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if file not in sources:
            if file.stat().st_mtime > _began:
                raise OSError
            sources[file] = file.read_bytes()
            for dots, module, names in IMPORT.findall(sources[file].decode()):
                folder = file.parents[len(dots) - 1].joinpath(*module.split("."))
                places = [folder, *(folder / name for name in re.findall(r"\w+", names))]
                waiting += [path for place in places if (path := place.with_suffix(".py")).is_file()]
    return hashlib.sha256(b"".join(sources[path] for path in sorted(sources))).hexdigest()


IMPORT = re.compile(r"^\s*from (\.+)([\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)
"""An import from our own package; all of ours begin with a dot."""
