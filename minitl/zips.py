"""The list of entries of a ZIP archive, for hostile bytes: .npz, .keras and PyTorch's .pth are such archives.

Enters: the whole file. Leaves: the name, the bytes (not copied) and the check sum of every entry; or the names alone, which need not be
of stored entries. Left out: compression, encryption, archives in parts, comments; none of the three formats uses them. zipfile would copy
each entry four times, and take long to import.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MOST_ENTRIES = 20_000
LOCAL, LISTED, END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
"""Before an entry, in the list of entries, behind that: 4.3.7, 4.3.12 and 4.3.16 of PKWARE's APPNOTE.TXT,
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""
LARGE = 56 + 20  # bytes of 4.3.14 and 4.3.15, which PyTorch writes before END whatever the size; they repeat what END says


class CompressedError(ValueError):
    """The archive may be whole, but is not stored as its format is; the text follows upon the name of the file."""


class Listed(NamedTuple):
    """A line of the list of entries."""

    text: str
    name: bytes
    flags: int
    method: int
    crc: int
    size: int
    start: int


def names(data: memoryview) -> list[str]:
    """Every entry's name, also of compressed ones, from the list alone. Raises ValueError, struct.error, UnicodeDecodeError."""
    return [entry.text for entry in _listed(data)]


def entries(data: memoryview) -> Iterator[tuple[str, memoryview, int]]:
    """(name, content, CRC-32) of every entry, each name once. Raises ValueError, struct.error, UnicodeDecodeError for what is damaged."""
    claimed = 0
    for text, name, flags, method, crc, size, start in _listed(data):
        if flags & 1 or (size > len(data) and not method):
            raise ValueError(f"entry {text!r:.60} is encrypted or larger than the file")
        if method:
            raise CompressedError(
                f"has compressed entries ({text!r:.60}), expected stored ones: it was packed again by something else; unpack it and pack "
                "what was in it without compression (zip -0 -r), or save it again"
            )
        mark, *_, known, extra = LOCAL.unpack_from(data, start)
        start += LOCAL.size
        content = data[start + known + extra : start + known + extra + size]
        if mark != b"PK\x03\x04" or data[start : start + known] != name or len(content) != size:
            raise ValueError(f"the entry {text!r:.60} is not what the list of entries says")
        claimed += size
        if claimed > len(data):  # entries that overlap: each is small, together they are a bomb
            raise ValueError("it claims more bytes than it has")
        yield text, content, crc


def _listed(data: memoryview) -> Iterator[Listed]:
    """The list of entries, each name once; nothing of it checked yet against the entries."""
    stop = len(data) - END.size
    mark, disk, first, here, count, length, at, remark = END.unpack_from(data, max(stop, 0))
    if stop >= LARGE and data[stop - 20 : stop - 16] == b"PK\x06\x07" and data[stop - LARGE : stop - LARGE + 4] == b"PK\x06\x06":
        stop -= LARGE
    if mark != b"PK\x05\x06" or disk or first or here != count or remark or at + length != stop:
        raise ValueError("it does not end with a list of entries")
    if count > MOST_ENTRIES:
        raise ValueError(f"it has {count} entries, at most {MOST_ENTRIES} are read")
    seen: set[str] = set()
    for _ in range(count):
        mark, _, _, flags, method, _, _, crc, _, size, named, more, remark, _, _, _, start = LISTED.unpack_from(data, at)
        name = bytes(data[at + LISTED.size : at + LISTED.size + named])
        text = name.decode("utf-8" if flags & 0x800 else "ascii")
        if mark != b"PK\x01\x02":
            raise ValueError("the list of entries is cut short")
        if text in seen:
            raise ValueError(f"entry {text!r:.60} appears twice")
        at += LISTED.size + named + more + remark
        seen.add(text)
        yield Listed(text, name, flags, method, crc, size, start)
