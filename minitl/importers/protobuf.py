"""Protocol buffers without a compiler: the fields of a message by their numbers, every length checked.

Enters: bytes, which may be hostile. Leaves: numbers, texts, messages, and vectors as NumPy arrays, views where the bytes are the numbers.
Left out: writing, groups, merging of messages that are given twice (the last one counts).

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct

import numpy as np

from ..errors import MinitlError

MOST_FIELDS = 1 << 18
"""Of a whole file, which takes half a second. The networks here have some thousands."""
MOST_VARINTS = 1 << 24
"""Bytes of numbers of varying length in one vector; they take 40 times as much while they are decoded."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SIZES = {FIXED64: 8, FIXED32: 4}


class Message:
    """A message in `data`; `what` names the file in errors. The messages inside of it share the count of fields that may still come."""

    def __init__(self, data: memoryview, what: str, left: list[int] | None = None) -> None:
        self.data, self.what = data, what
        self._left = [MOST_FIELDS] if left is None else left
        self._fields: dict[int, list[tuple[int, int, int]]] = {}  # number -> (wire type, its value or where it begins, where it ends)
        at = 0
        while at < len(data):
            self._left[0] -= 1
            if self._left[0] < 0:
                raise MinitlError(f"{what} has more than {MOST_FIELDS} fields: it is no network, or damaged")
            tag, at = self._varint(at)
            wire, end = tag & 7, at
            if wire == VARINT:
                value, end = self._varint(at)
            elif wire == BYTES:
                size, value = self._varint(at)
                end = value + size
            elif wire in SIZES:
                value, end = at, at + SIZES[wire]
            else:
                raise self.error()
            if end > len(data):
                raise self.error()
            self._fields.setdefault(tag >> 3, []).append((wire, value, end))
            at = end

    def error(self) -> MinitlError:
        """The error for a message that is none."""
        return MinitlError(f"{self.what} is damaged or cut off: a part of it is no message of the kind expected there; get it again")

    def _varint(self, at: int) -> tuple[int, int]:
        """(the number at `at`, where it ends): seven bits in each byte, the lowest first, the top bit says whether more follow."""
        value = 0
        for i, byte in enumerate(self.data[at : at + 10]):
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value & (1 << 64) - 1, at + i + 1
        raise self.error()

    def _all(self, field: int, *wires: int) -> list[tuple[int, int, int]]:
        found = self._fields.get(field, [])
        if any(wire not in wires for wire, _, _ in found):
            raise self.error()
        return found

    def has(self, field: int) -> bool:
        """Whether the message has that field."""
        return field in self._fields

    def number(self, field: int, default: int = 0) -> int:
        """A whole number (int32, int64, enum)."""
        found = self._all(field, VARINT)
        return _signed(found[-1][1]) if found else default

    def real(self, field: int, default: float = 0.0) -> float:
        """A float32."""
        found = self._all(field, FIXED32)
        return float(struct.unpack_from("<f", self.data, found[-1][1])[0]) if found else default

    def slices(self, field: int) -> list[memoryview]:
        """The bytes of a field of bytes, texts or messages, as often as it is given."""
        return [self.data[start:end] for _, start, end in self._all(field, BYTES)]

    def texts(self, field: int) -> list[str]:
        """A repeated text."""
        try:
            return [str(part, "utf-8") for part in self.slices(field)]
        except UnicodeDecodeError:
            raise self.error() from None

    def text(self, field: int) -> str:
        """A text, '' where it is absent."""
        return (self.texts(field) or [""])[-1]

    def messages(self, field: int, most: int) -> list[Message]:
        """A repeated message; more than `most` are refused."""
        parts = self.slices(field)
        if len(parts) > most:
            raise MinitlError(f"{self.what} is no network: it lists {len(parts)} parts of one kind, expected at most {most}")
        return [Message(part, self.what, self._left) for part in parts]

    def message(self, field: int) -> Message:
        """A message, empty where it is absent."""
        return Message((self.slices(field) or [self.data[:0]])[-1], self.what, self._left)

    def integers(self, field: int) -> np.ndarray:
        """Repeated whole numbers as int64, packed or not."""
        parts = []
        for wire, start, end in self._all(field, VARINT, BYTES):
            parts.append(self._varints(self.data[start:end]) if wire == BYTES else np.array([_signed(start)], np.int64))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _varints(self, data: memoryview) -> np.ndarray:
        """A packed vector of varints, decoded byte by byte of all of them at once."""
        if len(data) > MOST_VARINTS:
            raise MinitlError(f"{self.what} holds {len(data)} bytes of numbers of varying length in one piece, expected raw data")
        raw = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(raw < 128) + 1
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)]
        lengths = ends - starts
        if len(raw) != (ends[-1] if len(ends) else 0) or lengths.max(initial=0) > 10:
            raise self.error()
        values = np.zeros(len(ends), np.uint64)
        for i in range(lengths.max(initial=0)):
            long = lengths > i
            values[long] |= (raw[starts[long] + i] & 127).astype(np.uint64) << np.uint64(7 * i)
        return values.view(np.int64)

    def reals(self, field: int, dtype: str) -> np.ndarray:
        """Repeated numbers of a fixed size: dtype '<f4' or '<f8'; packed or not."""
        wire = FIXED32 if dtype == "<f4" else FIXED64
        parts = [self.data[start:end] for _, start, end in self._all(field, wire, BYTES)]
        if any(len(part) % np.dtype(dtype).itemsize for part in parts):
            raise self.error()
        return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype)


def _signed(value: int) -> int:
    """64 bits as a number with a sign."""
    return value - (1 << 64) if value >> 63 else value
