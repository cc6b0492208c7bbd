"""safetensors: a JSON header that says where each tensor lies, and the numbers behind it. Read and written.

Enters: the bytes of a file, or arrays by name. Leaves: arrays by name, as read-only views, in the header's order, and what the header says
beside them; or bytes. Everything in the header is checked before use: no tensor overlaps another, none ends behind the file, and no byte
belongs to none. Left out: 8-bit and 4-bit floats.

Format: https://github.com/huggingface/safetensors, README.md. u64 length of the header, header, numbers; all little-endian, row-major.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import MinitlError

BFLOAT16 = "bfloat16"
"""What NumPy has no type for: the upper half of a float32."""
TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
LARGEST_HEADER, MOST_AXES = 16 << 20, 8


def is_safetensors(data: bytes) -> bool:
    """Whether a file begins like this format: the length of a header that is in the file, and the first brace of JSON."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def read(data: bytes, what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays by name, the header's __metadata__). `what` names the file in errors."""

    def damaged(why: str) -> MinitlError:
        return MinitlError(f"{what} is no safetensors file, or damaged: {why}")

    length = int.from_bytes(data[:8], "little")
    if not is_safetensors(data) or length > LARGEST_HEADER:
        raise damaged(f"a header of {length} bytes in a file of {len(data)}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name stands there twice")
        return found

    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as problem:
        raise damaged(f"its header is no JSON ({problem!s:.60})") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise damaged("its __metadata__ is no table of texts")
    buffer = memoryview(data)[8 + length :]
    arrays, spans = {}, []
    for name, entry in header.items():
        kind, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets")) if isinstance(entry, dict) else (None,) * 3
        if not isinstance(kind, str) or kind not in TYPES:
            raise damaged(f"tensor {name!r:.60} is of type {kind!r:.20}, expected one of {', '.join(TYPES)}")
        if not (isinstance(shape, list) and len(shape) <= MOST_AXES and all(type(n) is int and 0 <= n <= len(data) for n in shape)):
            raise damaged(f"tensor {name!r:.60} has the shape {shape!r:.60}")
        if not (isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span) and 0 <= span[0] <= span[1] <= len(buffer)):
            raise damaged(f"tensor {name!r:.60} lies at {span!r:.60}, expected [begin, end] within {len(buffer)} bytes")
        stored = np.dtype("<u2" if TYPES[kind] == BFLOAT16 else TYPES[kind])
        if span[1] - span[0] != math.prod(shape) * stored.itemsize:
            raise damaged(f"tensor {name!r:.60} has {span[1] - span[0]} bytes, {kind} of shape {shape} needs another number")
        array = np.frombuffer(buffer[span[0] : span[1]], stored).reshape(shape)
        arrays[name] = from_bfloat16(array) if TYPES[kind] == BFLOAT16 else array
        spans.append((*span, name))
    end = 0
    for begin, stop, name in sorted(spans):
        if begin != end:
            raise damaged(f"tensor {name!r:.60} begins at {begin}, expected {end}: tensors overlap, or bytes belong to none")
        end = stop
    if end != len(buffer):
        raise damaged(f"its tensors end at {end} of {len(buffer)} bytes")
    return arrays, metadata


def from_bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, as uint16 -> those numbers."""
    return (array.astype(np.uint32) << 16).view(np.float32)


def write(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file; the numbers begin at a multiple of 8. Equal content gives equal bytes."""
    codes = {np.dtype(code): kind for kind, code in TYPES.items() if code != BFLOAT16}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, end = [], 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
        header[name] = {"dtype": codes[array.dtype], "shape": list(arrays[name].shape), "data_offsets": [end, end + array.nbytes]}
        parts.append(array.tobytes())
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
