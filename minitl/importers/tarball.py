"""The .tflite inside of a .tgz, as TensorFlow publishes MobileNets: beside a checkpoint that needs TensorFlow, and its frozen graph.

Enters: the bytes of the archive, read through once. Leaves: what tflite_float makes of the one .tflite in it; nothing is written to the
disk, and nothing else is kept in memory. Left out: links, names longer than 100 bytes, sparse files; archives that grow as bombs do.

Layout: https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

import zlib

from ..errors import MinitlError
from ..files import printable
from . import tflite, tflite_float
from .names import Imported

SIGNATURE = b"\x1f\x8b\x08"
LARGEST, RATIO, MOST_FILES = 1 << 30, 50, 1000
"""Of an archive, unpacked: bytes, how many times those of the file, files. The published ones are 1.1 times their file."""
PIECE, BLOCK = 1 << 18, 512


def convert(data: bytes, what: str) -> Imported:
    """The network of the .tflite in a .tgz. `what` is the file's name. Raises MinitlError."""
    name, content = _find(_Stream(data, what), what)
    if content[4:8] != tflite.SIGNATURE:
        raise MinitlError(f"{what}: {name} in it is no TensorFlow Lite file")
    imported = tflite_float.convert(content, what)
    imported.provenance["inside"] = name
    return imported


def _find(stream: _Stream, what: str) -> tuple[str, bytes]:
    """(name, bytes) of the only .tflite."""
    listed: list[str] = []
    found: tuple[str, bytes] | None = None
    while any(header := stream.take(BLOCK)):
        checked = header[:148] + b" " * 8 + header[156:]
        size, total = (_octal(field) for field in (header[124:136], header[148:156]))
        if size is None or total != sum(checked) or len(listed) == MOST_FILES:
            raise MinitlError(f"{what} is no .tgz of a published network, or damaged: get it again")
        name = printable(header[:100].split(b"\0")[0])
        listed.append(name)
        if name.endswith(".tflite") and header[156:157] in (b"0", b"\0"):
            if found is not None:
                raise MinitlError(f"{what} holds {found[0]} and {name}: unpack it and give one of them")
            found = name, stream.take(size)
        else:
            stream.skip(size)
        stream.skip(-size % BLOCK)
    stream.drain()
    if found is None:
        raise MinitlError(f"{what} holds no .tflite, which is what can be read of it: {', '.join(listed[:5]) or 'nothing'}")
    return found


def _octal(field: bytes) -> int | None:
    """A number of tar's headers."""
    text = field.strip(b" \0")
    return int(text, 8) if text.isdigit() and not set(text) & set(b"89") else None


class _Stream:
    """What a gzip file holds, piece by piece."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what, self.at = memoryview(data), what, 0
        self.most = min(LARGEST, RATIO * len(data) + PIECE)
        self.unzip = zlib.decompressobj(wbits=31)  # 31: with gzip's head and checksum
        self.ready = b""

    def _fill(self) -> bool:
        """Unpack the next piece; False: there is none."""
        while not self.ready and not self.unzip.eof:
            tail = self.unzip.unconsumed_tail
            if not tail and self.at >= len(self.data):
                raise MinitlError(f"{self.what} is cut off: get it again")
            if not tail:
                tail, self.at = bytes(self.data[self.at : self.at + PIECE]), self.at + PIECE
            try:
                self.ready = self.unzip.decompress(tail, PIECE)
            except zlib.error:
                raise MinitlError(f"{self.what} is damaged: it cannot be unpacked; get it again") from None
            self.most -= len(self.ready)
            if self.most < 0:
                raise MinitlError(f"{self.what} unpacks to more than {RATIO} times its size or {LARGEST} bytes: it is no published network")
        return bool(self.ready)

    def _pieces(self, size: int) -> list[bytes]:
        pieces = []
        while size:
            if not self._fill():
                raise MinitlError(f"{self.what} is damaged: it ends inside of a file")
            pieces.append(self.ready[:size])
            self.ready = self.ready[size:]
            size -= len(pieces[-1])
        return pieces

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        return b"".join(self._pieces(size))

    def skip(self, size: int) -> None:
        """The same without keeping them."""
        while size:
            part = min(size, PIECE)
            self._pieces(part)
            size -= part

    def drain(self) -> None:
        """To the end, where the checksum stands."""
        while self._fill():
            self.ready = b""
