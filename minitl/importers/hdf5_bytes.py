"""The bytes of an HDF5 file, every read checked, and what a dataset or an attribute is made of: type, shape, values.

Enters: bytes, which may be hostile. Leaves: numbers, names, and arrays as read-only views. Left out: groups and headers (hdf5.py).

No length, offset or count of the file is trusted: every read is checked against the bytes present, nothing larger than the file is
allocated, and the work done for one file is bounded.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from ..errors import MinitlError
from ..files import printable

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MOST_WORK = 1_000_000  # messages, entries and objects looked at; MobileNetV2 needs about 10,000
MOST_AXES = 8
ADVICE = "save the weights again with Keras' save_weights(), or copy them with h5py's default settings"

# (bit offset, precision, exponent at, bits, mantissa at, bits, bias) of the IEEE floats of 2, 4 and 8 bytes
IEEE = {2: (0, 16, 10, 5, 0, 10, 15), 4: (0, 32, 23, 8, 0, 23, 127), 8: (0, 64, 52, 11, 0, 52, 1023)}


class File:
    """The bytes of a file, and the only place that touches them."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name = data, name
        self._work = 0
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        if not data.startswith(SIGNATURE):
            raise self.error("does not begin as an HDF5 file does")
        if self.unpack("B", 8) != (0,):
            raise self.error(f"has a superblock of version {data[8]}, expected 0 (it was written with libver='latest'?): {ADVICE}")
        if self.unpack("BB", 13) != (8, 8):
            raise self.error(f"has offsets and lengths of {data[13]} and {data[14]} bytes, expected 8: {ADVICE}")
        base, _, end, _, _, root = self.unpack("6Q", 24)
        if base != 0:
            raise self.error(f"begins at byte {base}, expected 0: {ADVICE}")
        if end > len(data):
            raise self.error(f"is cut off: it should have {end} bytes and has {len(data)}; download or copy it again")
        self.root: int = root  # address of the root group's header

    def error(self, what: str) -> MinitlError:
        """The error to raise, with the name of the file in front."""
        return MinitlError(printable(f"{self.name} {what}"))

    def work(self, amount: int = 1) -> None:
        """Count one step of work; refuse files that loop or that point at the same bytes from everywhere."""
        self._work += amount
        if self._work > MOST_WORK:
            raise self.error("is damaged: its parts point at each other without end")

    def block(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, all of which are in the file."""
        if offset + size > len(self.data):
            raise self.error(f"is damaged or cut off: {size} bytes at {offset} lie beyond its end at {len(self.data)}")
        return self.data[offset : offset + size]

    def unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        """Little-endian numbers at `offset`, as struct describes them."""
        return struct.unpack("<" + layout, self.block(offset, struct.calcsize("<" + layout)))

    def expect(self, signature: bytes, offset: int, what: str) -> None:
        """Check the four letters that open a structure."""
        if self.block(offset, 4) != signature:
            raise self.error(f"is damaged: no {what} at byte {offset}")

    def text(self, raw: bytes) -> str:
        """Name or string: UTF-8 up to the first zero."""
        try:
            return raw.split(b"\0", 1)[0].decode()
        except UnicodeDecodeError:
            raise self.error(f"is damaged: {raw[:40]!r} is no text") from None

    def heap_object(self, address: int, index: int) -> tuple[int, int]:
        """(offset, size) of an object in a global heap collection, where strings of any length live."""
        if address not in self._heaps:
            self.expect(b"GCOL", address, "heap of strings")
            (size,) = self.unpack("Q", address + 8)
            self.block(address, size)
            objects: dict[int, tuple[int, int]] = {}
            at, end = address + 16, address + size
            while at + 16 <= end:
                self.work()
                number, _, length = self.unpack("HH4xQ", at)
                if number == 0:  # the free space at the end
                    break
                if at + 16 + length > end:
                    raise self.error(f"is damaged: a string of {length} bytes at {at} leaves its heap")
                objects[number] = (at + 16, length)
                at += 16 + -(-length // 8) * 8
            self._heaps[address] = objects
        if index not in self._heaps[address]:
            raise self.error(f"is damaged: string {index} is not in the heap at {address}")
        return self._heaps[address][index]


class Type:
    """A datatype message: a NumPy dtype, or (dtype None) strings of any length, 16 bytes each that point into a heap."""

    def __init__(self, file: File, offset: int, where: str) -> None:
        head, bits, _, _, self.size = file.unpack("4BI", offset)
        kind, order = head & 15, ">" if bits & 1 else "<"
        self.dtype: np.dtype[Any] | None = None
        if kind == 0 and self.size in (1, 2, 4, 8) and file.unpack("HH", offset + 8) == (0, 8 * self.size):
            self.dtype = np.dtype(f"{order}{'i' if bits & 8 else 'u'}{self.size}")
        elif kind == 1 and not bits & 64 and file.unpack("HH4BI", offset + 8) == IEEE.get(self.size):
            self.dtype = np.dtype(f"{order}f{self.size}")
        elif kind == 3 and 0 < self.size <= len(file.data):
            self.dtype = np.dtype(f"S{self.size}")
        elif not (kind == 9 and bits & 15 == 1 and self.size == 16):
            raise file.error(
                f"holds {where or '/'} as type {kind} with {self.size} bytes, which is not a float, an integer or text: {ADVICE}"
            )


def shape_at(file: File, offset: int, where: str) -> tuple[int, ...]:
    """A dataspace message: the sizes of the axes; () for a single value. An axis is never longer than the file."""
    version, rank, _, kind = file.unpack("4B", offset)
    if version not in (1, 2) or rank > MOST_AXES:
        raise file.error(f"is damaged: {where or '/'} has {rank} axes, at most {MOST_AXES} were expected")
    if version == 2 and kind == 2:  # "null": no value at all
        return (0,)
    shape = file.unpack(f"{rank}Q", offset + (8 if version == 1 else 4))
    if any(n > len(file.data) for n in shape):
        raise file.error(f"is damaged: {where} has shape {shape}, more than the file can hold")
    return shape


def values_at(file: File, kind: Type, shape: tuple[int, ...], offset: int, size: int, where: str) -> np.ndarray:
    """The array of that type and shape whose `size` bytes are at `offset`. Strings of any length become an object array of str."""
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, kind.dtype or object)
    if count * kind.size > size:
        raise file.error(f"is damaged: {where} has shape {shape}, which takes {count * kind.size} bytes, and has {size}")
    file.block(offset, count * kind.size)
    if kind.dtype is not None:
        return np.frombuffer(file.data, kind.dtype, count, offset).reshape(shape)
    strings = np.empty(count, object)
    for i in range(count):
        length, address, index = file.unpack("IQI", offset + 16 * i)
        at, available = file.heap_object(address, index) if length else (0, 0)
        file.work(1 + length // 64)
        strings[i] = file.text(file.block(at, min(length, available)))
    return strings.reshape(shape)
