"""FlatBuffers without a compiler: a table at an offset, its fields by number, every offset checked.

Enters: bytes, which may be hostile. Leaves: numbers, strings, tables, and vectors as read-only NumPy views. Left out: writing, structs.
A field that is absent has its default, as the format wants it.

Source: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ..errors import MinitlError

_CODES: dict[str, struct.Struct] = {}
"""Layouts, as struct has compiled them: saves a tenth of the time of a file."""


class Table:
    """A table at byte `at` of `data`; `what` names the file in errors."""

    def __init__(self, data: bytes, at: int, what: str) -> None:
        self.data, self.at, self.what = data, at, what
        self._fields = at - self.unpack("i", at)
        if self._fields < 0:
            raise self.error()
        self._fields_size, self._size = self.unpack("HH", self._fields)

    @classmethod
    def root(cls, data: bytes, what: str) -> Table:
        """The table that the file begins with."""
        if len(data) < 4:
            raise MinitlError(f"{what} is cut off: it has only {len(data)} bytes")
        return cls(data, struct.unpack_from("<I", data)[0], what)

    def error(self) -> MinitlError:
        """The error for an offset that leaves the file."""
        return MinitlError(f"{self.what} is damaged or cut off: a part of it lies beyond its end at byte {len(self.data)}; get it again")

    def unpack(self, layout: str, at: int) -> Any:
        """Little-endian numbers at byte `at`: the number, or the tuple if there are several."""
        code = _CODES.get(layout) or _CODES.setdefault(layout, struct.Struct("<" + layout))
        if at < 0 or at + code.size > len(self.data):
            raise self.error()
        values = code.unpack_from(self.data, at)
        return values[0] if len(values) == 1 else values

    def _field(self, number: int) -> int | None:
        """Where field `number` is; None if it is absent."""
        slot = 4 + 2 * number
        if slot + 2 > self._fields_size:
            return None
        offset = self.unpack("H", self._fields + slot)
        if offset >= self._size:
            raise self.error()
        return self.at + offset if offset else None

    def number(self, field: int, layout: str, default: float = 0) -> Any:
        """A number inside of the table."""
        at = self._field(field)
        return default if at is None else self.unpack(layout, at)

    def _target(self, field: int) -> int | None:
        """Where the table, vector or string of a field begins: always further on in the file."""
        at = self._field(field)
        return None if at is None else at + self.unpack("I", at)

    def table(self, field: int) -> Table | None:
        """A table; None if absent."""
        at = self._target(field)
        return None if at is None else Table(self.data, at, self.what)

    def vector(self, field: int, dtype: str) -> np.ndarray:
        """A vector of numbers as a view; empty if absent."""
        at = self._target(field)
        if at is None:
            return np.empty(0, dtype)
        count, size = self.unpack("I", at), np.dtype(dtype).itemsize
        if at + 4 + count * size > len(self.data):
            raise self.error()
        return np.frombuffer(self.data, dtype, count, at + 4) if count else np.empty(0, dtype)

    def tables(self, field: int, most: int) -> list[Table]:
        """A vector of tables, at most `most`."""
        offsets, start = self.vector(field, "<u4"), self._target(field)
        if len(offsets) > most:
            raise MinitlError(f"{self.what} is damaged: it lists {len(offsets)} parts where at most {most} were expected")
        return [Table(self.data, (start or 0) + 4 + 4 * i + int(offset), self.what) for i, offset in enumerate(offsets)]

    def string(self, field: int) -> str:
        """Text, at most its first 1,000 bytes; bytes that are no UTF-8 are replaced."""
        return self.vector(field, "u1")[:1000].tobytes().decode(errors="replace")
