"""Writing files whole or not at all.

Enters: a path and the complete bytes. Leaves: the file, either as it was or with the new content, also after kill -9 or a power
cut at any moment. Left out: appending, locking, making folders.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from minitl.errors import MinitlError


def printable(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """A path as one line that any output can hold: bytes that are no text, line breaks and the like become question marks."""
    text = os.fsdecode(path).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in text)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` into a hidden temporary file beside `path`, force it to the disk, and rename it over `path`.

    A symbolic link is followed, so that the link stays. Raises MinitlError where the folder is missing or read-only, the disk
    is full, or `path` is a folder or a device; the temporary file is then removed and `path` is as it was.
    """
    try:
        target = Path(os.path.realpath(path))
    except ValueError as error:
        raise MinitlError(f"cannot write {printable(path)}: {error}; give another name") from None
    temporary = target.parent / f".{target.name[:40]}.{secrets.token_hex(8)}.tmp"
    try:
        try:
            if not stat.S_ISREG(os.stat(target).st_mode):
                what = "a folder" if target.is_dir() else "not an ordinary file"
                raise MinitlError(f"cannot write {printable(path)}: it is {what}; give the name of a file")
        except FileNotFoundError:
            if not target.parent.is_dir():
                raise MinitlError(
                    f"cannot write {printable(path)}: the folder {printable(target.parent)} does not exist; create it first"
                ) from None
        # os.open and not tempfile: the file gets the permissions that the user's umask asks for, instead of 0600
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MinitlError(
            f"cannot write {printable(path)}: {error.strerror}; check the free space and the permissions of {printable(target.parent)}"
        ) from error
    _sync_folder(target.parent)


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
