"""Folders that minitl writes again and again, and in which the user may work, too.

Enters: files that stand alone, and folders as {path below it: bytes}. Leaves: all of them on the disk, or none; sentences on what was left
as it is. Each folder keeps a list of what minitl wrote (minitl.sha256, which `sha256sum -c` reads), and whatever is not in it, or is not
any more as it was written, is the user's and is never changed. Left out: merging; what goes into the folders (projects.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from .errors import MinitlError
from .files import printable, write_together

LIST = "minitl.sha256"


def deliver(files: Mapping[Path, bytes], folders: Mapping[Path, Mapping[str, bytes]], fixed: tuple[str, ...] = ()) -> list[str]:
    """Write files, and folders that are made where they do not exist yet (their parents are not). Returns sentences for the user.

    In a folder, what minitl wrote is replaced, and removed where it is not wanted any more. What the user has changed stays as it is, with
    a sentence. Raises MinitlError, and changes nothing, where a file in the way is none of ours, where one below the folders `fixed` was
    changed (an old one would not fit the others), where one that was changed names files of those folders that come or go (it would not
    build any more), where two outputs are one file, and where anything cannot be written.
    """
    contents, stale, notes, made = dict(files), list[Path](), list[str](), list[Path]()
    for folder, wanted in folders.items():
        known = _written(folder)
        listing = dict(known)
        moved = {PurePosixPath(path).name for path in known.keys() ^ wanted.keys() if path.startswith(fixed)} if known else set()
        for path, data in wanted.items():
            there = _hash(folder / path)
            if there in (None, known.get(path), _digest(data)):
                contents[folder / path], listing[path] = data, _digest(data)
            elif path not in known:
                raise MinitlError(f"{printable(folder / path)} is there and not minitl's: move it away, or choose another folder")
            elif path.startswith(fixed):
                raise MinitlError(f"{printable(folder / path)} was changed after minitl wrote it: move it away, then try again")
            else:
                _fits(folder / path, data, moved)
                notes.append(f"{printable(folder / path)} stays as it is, since you changed it; move it away to get the new one")
        for path in known.keys() - wanted.keys():
            if _hash(folder / path) == known[path]:
                stale.append(folder / path)
            elif os.path.lexists(folder / path):
                _fits(folder / path, b"", moved)
            del listing[path]
        contents[folder / LIST] = "".join(f"{listing[path]}  {path}\n" for path in sorted(listing)).encode()
    outputs = _distinct([*files, *(folder / path for folder, wanted in folders.items() for path in (*wanted, LIST))])
    try:
        for folder, wanted in folders.items():
            for below in dict.fromkeys((folder, *(p for path in wanted for p in reversed((folder / path).parents) if folder in p.parents))):
                _make(below, made)
        write_together(contents)
    except BaseException:
        for below in reversed(made):
            with contextlib.suppress(OSError):
                below.rmdir()
        raise
    for old in stale:
        if _real(old) in outputs:
            continue
        with contextlib.suppress(OSError):
            old.unlink()
            old.parent.rmdir()  # only if it is empty
    return notes


def _written(folder: Path) -> dict[str, str]:
    """{path: digest} of what minitl wrote into a folder, by the list in it; paths that lead out of it are ignored."""
    try:
        lines = (folder / LIST).read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MinitlError(
            f"{printable(folder)} cannot be used: {getattr(error, 'strerror', None) or error}; choose another folder"
        ) from None
    pairs = [(path, digest) for digest, gap, path in (line.partition("  ") for line in lines) if gap and len(digest) == 64]
    return {path: digest for path, digest in pairs if "\0" not in path and not {"..", "/"} & set(PurePosixPath(path).parts)}


def _fits(path: Path, new: bytes, moved: set[str]) -> None:
    """MinitlError where a file that the user changed names other files of those that come or go than its new version would."""
    try:
        own = path.read_bytes()
    except OSError:
        return
    for name in sorted(moved):
        if (name.encode() in own) != (name.encode() in new):
            raise MinitlError(
                f"{printable(path)} was changed by you and would not fit the other files any more, because of {name}: "
                "export as before (the same --name, --blob or not), or move it away, then try again"
            )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hash(path: Path) -> str | None:
    """Digest of a file; None where there is nothing, 'another thing' where it is no file that can be read."""
    try:
        return _digest(path.read_bytes()) if path.is_file() else "another thing" if os.path.lexists(path) else None
    except OSError:
        return "another thing"


def _distinct(paths: list[Path]) -> set[str]:
    """What the paths mean; MinitlError where two of them are one file."""
    seen: set[str] = set()
    for path in paths:
        if _real(path) in seen:
            raise MinitlError(f"two outputs would be one file, {printable(path)}: give them different names or folders")
        seen.add(_real(path))
    return seen


def _real(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder if it is not there, and remember it."""
    if folder.is_dir():
        return
    try:
        folder.mkdir()
    except FileExistsError:
        raise MinitlError(f"{printable(folder)} is a file; expected a folder, or a name that does not exist yet") from None
    except FileNotFoundError:
        raise MinitlError(f"cannot make {printable(folder)}: the folder it is to lie in does not exist; create it first") from None
    except (OSError, ValueError) as error:
        raise MinitlError(f"cannot make {printable(folder)} ({getattr(error, 'strerror', None) or error}); choose another folder") from None
    made.append(folder)
