"""Files beside the one that is read: the only way for a reader to open anything.

Enters: the path of the file that the user named, and names that this file lists. Leaves: bytes, and what was read. Left out, and refused:
names that are paths, links, whatever is no ordinary file, and files larger than the reader can account for.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from ..errors import MinitlError
from ..files import printable


class Beside:
    """The folder of the file at `path`. In all, at most `most` bytes are read."""

    def __init__(self, path: str | os.PathLike[str], most: int) -> None:
        self.folder, self.what, self.left = Path(path).parent, printable(Path(path).name), most
        self.files: dict[str, bytes] = {}

    @property
    def sums(self) -> dict[str, str]:
        """SHA-256 of each file that was read."""
        return {printable(name): hashlib.sha256(data).hexdigest() for name, data in self.files.items()}

    def read(self, name: str, most: int) -> bytes:
        """All of the file called `name`; MinitlError where it has more than `most` bytes, before any is read."""
        shown = printable(name[:100])
        if name in ("", ".", "..") or len(name) > 200 or any(c in "/\\:" or not c.isprintable() for c in name):
            raise MinitlError(f"{self.what} wants to read {shown!r}: only files beside it, with plain names, are read")
        if name not in self.files:
            data = self._read(name, shown, most)
            self.left -= len(data)
            self.files[name] = data
        return self.files[name]

    def _read(self, name: str, shown: str, most: int) -> bytes:
        path = self.folder / name
        # a pipe would wait for its writer; what has become a link since it was looked at is not followed
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            if path.is_symlink() or not path.is_file():
                problem = "a link: put the file itself there" if path.is_symlink() else "no ordinary file" if path.exists() else "not there"
                raise MinitlError(f"{self.what} needs {shown!r} beside it, which is {problem}")
            with os.fdopen(os.open(path, flags), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise MinitlError(f"{self.what} needs {shown!r} beside it, which has changed meanwhile")
                if status.st_size > min(most, self.left):
                    raise MinitlError(
                        f"{self.what} does not fit {shown!r} beside it: that has {status.st_size} bytes, expected at most "
                        f"{min(most, self.left)}; get both again, from the same place"
                    )
                return file.read(status.st_size)
        except OSError as error:
            raise MinitlError(f"{self.what} needs {shown!r} beside it, which cannot be read ({error.strerror})") from None
