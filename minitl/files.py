"""Writing files whole or not at all.

Enters: a path and the complete bytes. Leaves: the file, either as it was or with the new content, also after kill -9 or a power
cut at any moment. Left out: appending, locking, making folders.
"""

from __future__ import annotations

import glob
import os
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import MinitlError

FOREIGN = "a Keras .h5, a PyTorch .pth, a .safetensors, .onnx or .tflite file, TensorFlow.js' model.json, or a .tgz with a .tflite"
"""What importers.read takes, in words."""


def printable(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """A path as one line that any output can hold: bytes that are no text, line breaks and the like become question marks."""
    text = os.fsdecode(path).encode("utf-8", "replace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def cache_folder() -> Path:
    """$MINITL_CACHE, or the place that the platform keeps for caches."""
    if chosen := os.environ.get("MINITL_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minitl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "minitl" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitl"


def is_private(folder: Path) -> bool:
    """Whether only this user may write to a folder, as far as the platform says: what lies in it can then be trusted."""
    if os.name != "posix":
        return True
    found = folder.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; see write_together."""
    write_together({path: data})


def write_together(contents: Mapping[Any, bytes]) -> None:
    """Write {path: bytes} so that every file is either as it was or new, and all stay as they were unless all can be written.

    Each goes into a hidden temporary file beside its path, forced to the disk; only when all are there are they renamed, one after
    the other. A symbolic link is followed, so that the link stays. Raises MinitlError where a folder is missing or read-only, the
    disk is full, or a path is a folder or a device; the temporary files are then removed.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for path, data in contents.items():
            target = _target(path)
            _sweep(target)
            staged.append((_stage(path, target, data), target))
        for temporary, target in staged:
            os.replace(temporary, target)
    except OSError as error:
        raise MinitlError(f"cannot write {printable(target)}: {error.strerror}; check the permissions of its folder") from error
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
    for folder in {target.parent for _, target in staged}:
        _sync_folder(folder)


def _sweep(target: Path) -> None:
    """Remove what a killed process left beside a target: temporary files of ours, more than an hour old."""
    for left in target.parent.glob(f".{glob.escape(target.name[:40])}.{'[0-9a-f]' * 16}.tmp"):
        try:
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
        except OSError:
            pass


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that a path means, links followed."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a zero byte in the name
        raise MinitlError(f"cannot write {printable(path)}: {error}; give another name") from None


def _stage(path: str | os.PathLike[str], target: Path, data: bytes) -> Path:
    """A temporary file with `data` beside `target`, on the disk; MinitlError, and nothing left, where that fails."""
    temporary = target.parent / f".{target.name[:40]}.{os.urandom(8).hex()}.tmp"
    try:
        try:
            if not stat.S_ISREG(os.stat(target).st_mode):
                what = "a folder" if target.is_dir() else "not an ordinary file"
                raise MinitlError(f"cannot write {printable(path)}: it is {what}; give the name of a file")
        except FileNotFoundError:
            if not target.parent.is_dir():
                raise MinitlError(f"cannot write {printable(path)}: its folder does not exist; create it first") from None
        # os.open and not tempfile: the file gets the permissions that the user's umask asks for, instead of 0600
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MinitlError(
            f"cannot write {printable(path)}: {error.strerror}; check the free space and the permissions of its folder"
        ) from error
    return temporary


def _sync_folder(folder: Path) -> None:
    """Force the rename itself to the disk, where the system can (POSIX); the content is safe already."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
