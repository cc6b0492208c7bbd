"""PyTorch's .pth, .pt and .bin files without PyTorch: the ZIP container of 1.6 and later, and the stream of several pickles from before.

Enters: the bytes of a file. Leaves: the tensors of its state_dict by name, in its order, as read-only views; and the names of what lies
beside it (optimizer, epoch, ...). Left out: TorchScript, the tar archives of before 0.2, big-endian files.

Source: torch/serialization.py.
"""

from __future__ import annotations

import math
import pickle
import struct
import zlib
from typing import Any

import numpy as np

from .. import zips
from ..errors import MinitlError
from .pickles import ADVICE, Machine, Table, Tensor
from .safetensors import BFLOAT16, from_bfloat16

LARGEST_PICKLE, MOST_AXES = 16 << 20, 8
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
    "state_dict", "model_state_dict", "model_state", "model", "net", "weights",
)  # fmt: skip
"""Where programs put a state_dict beside other things; averaged weights first, since those are the ones that their makers measure."""


def is_stream(data: bytes) -> bool:
    """Whether a file begins like a pickle."""
    return data[:1] == pickle.PROTO and data[1:2] in (b"\2", b"\3", b"\4", b"\5")


def read(data: bytes, what: str) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """(tensors by name, what else the file holds, notes). `what` names the file in errors. Raises MinitlError."""
    notes: list[str] = []
    root, rows = _archive(data, what) if data.startswith(b"PK") else _stream(data, what)
    if not isinstance(root, Table):
        raise MinitlError(f"{what} holds no table of tensors, expected a state_dict: {ADVICE}")
    found, beside = root.texts(), []
    known: dict[int, bool] = {}  # of a table that is there many times, only the first is looked into
    for value in found.values():
        if isinstance(value, Table) and id(value) not in known:
            known[id(value)] = any(isinstance(inner, Tensor) for inner in value.texts().values())
    tables = [name for name, value in found.items() if known.get(id(value))]
    flat = any(isinstance(value, Tensor) for value in found.values())
    if chosen := next((name for name in (*WRAPPERS, *([] if flat else tables)) if name in tables), None):
        others = [f", not from {name!r:.40}" for name in tables if name != chosen]
        notes.append(f"weights taken from its {chosen!r:.40}{''.join(others[:3])}")
        beside, found = [name for name in found if name != chosen], found[chosen].texts()
    elif not flat:
        raise MinitlError(f"{what} has no tensors in {', '.join(list(found)[:8]) or 'its empty table'}, expected a state_dict: {ADVICE}")
    left = 2 * len(data) + 4096  # bytes: a small file must not become large arrays
    tensors: dict[str, np.ndarray] = {}
    for name, value in found.items():
        if isinstance(value, Tensor):
            tensors[name] = _array(value, rows, left, f"{what}: tensor {name!r:.80}")
            left -= tensors[name].nbytes
        else:
            beside.append(name)
    return tensors, beside, notes


def _array(tensor: Tensor, rows: dict[str, memoryview], left: int, what: str) -> np.ndarray:
    """The window as an array, once it is known to lie within its storage, and to have no more bytes than are left."""
    row, storage = rows.get(tensor.storage.key), tensor.storage
    dtype = np.dtype("<u2" if storage.dtype == BFLOAT16 else storage.dtype)
    if row is None or len(row) != storage.size * dtype.itemsize:
        raise MinitlError(f"{what} lies in storage {storage.key!r:.40}, which is missing or not {storage.size} numbers of {dtype} long")
    shape, strides = _whole_numbers(tensor.shape), _whole_numbers(tensor.strides)
    if shape is None or strides is None or len(shape) != len(strides) or _whole_numbers((tensor.offset,)) is None:
        raise MinitlError(f"{what} has a shape, strides or an offset that are no whole numbers: the file is damaged")
    if 0 in shape:
        return np.zeros((0,) * len(shape), dtype)
    if tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) >= storage.size:
        raise MinitlError(f"{what} ends behind its storage of {storage.size} numbers: the file is damaged")
    if math.prod(shape) * dtype.itemsize > left:
        raise MinitlError(f"{what} and those before it share their numbers: the file is damaged")
    steps = tuple(s * dtype.itemsize if n > 1 else 0 for n, s in zip(shape, strides, strict=True))
    array = np.ndarray(shape, dtype, row, tensor.offset * dtype.itemsize, steps)
    return from_bfloat16(array) if storage.dtype == BFLOAT16 else array


def _whole_numbers(found: Any) -> tuple[int, ...] | None:
    """A short tuple of numbers from 0, or None for anything else."""
    fine = isinstance(found, tuple) and len(found) <= MOST_AXES and all(type(n) is int and n >= 0 for n in found)
    return found if fine else None


def _archive(data: bytes, what: str) -> tuple[Any, dict[str, memoryview]]:
    """(what the pickle of a ZIP describes, its storages by key)."""
    try:
        if script := next((name for name in zips.names(memoryview(data)) if name.endswith("/constants.pkl")), None):
            raise MinitlError(
                f"{what} is a TorchScript program (it has {script!r:.60}), expected weights alone: where you trust it and PyTorch is, "
                "torch.save(torch.jit.load('x.pt').state_dict(), 'x.pth')"
            )
        entries = {}
        for name, content, crc in zips.entries(memoryview(data)):
            if zlib.crc32(content) != crc:
                raise ValueError(f"entry {name!r:.60} has another check sum, if torch.serialization.set_crc32_options did not leave it out")
            entries[name] = content
    except MinitlError:
        raise
    except zips.CompressedError as problem:
        raise MinitlError(f"{what} {problem}") from None
    except (ValueError, struct.error) as problem:
        raise MinitlError(f"{what} is damaged, or no archive of PyTorch's ({problem!s:.200}); download or save it again") from None
    top = next((name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")), None)
    if top is None:
        raise MinitlError(f"{what} is a ZIP archive without data.pkl ({', '.join(list(entries)[:3])}): no file of PyTorch's torch.save")
    if bytes(entries.get(f"{top}byteorder", b"little")) != b"little":
        raise MinitlError(f"{what} was written on a big-endian machine; expected little-endian numbers: save it again on another")
    program = entries[f"{top}data.pkl"]
    if len(program) > LARGEST_PICKLE:
        raise MinitlError(f"{what} is refused: its pickle has {len(program)} bytes, expected at most {LARGEST_PICKLE}")
    rows = {name.removeprefix(f"{top}data/"): content for name, content in entries.items() if name.startswith(f"{top}data/")}
    return Machine(bytes(program), what).run(), rows


def _stream(data: bytes, what: str) -> tuple[Any, dict[str, memoryview]]:
    """The same for five pickles in a row (magic, version, system, root, keys of the storages) and the storages behind them."""
    machine = Machine(data, what)
    if machine.run() != MAGIC:
        raise MinitlError(f"{what} is a Python pickle that PyTorch's torch.save did not write; {ADVICE}")
    version, system, root, keys = (machine.run() for _ in range(4))
    if version != VERSION or not isinstance(system, Table) or system.texts().get("little_endian") is not True:
        raise MinitlError(f"{what} is of a version that is not read here, or was written on a big-endian machine: {ADVICE}")
    sizes = machine.storages
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(sizes):
        raise MinitlError(f"{what} is damaged: the storages that it lists are not those that its tensors are in")
    rows, at = {}, machine.at
    for key in keys:
        size = sizes[key].size * np.dtype("<u2" if sizes[key].dtype == BFLOAT16 else sizes[key].dtype).itemsize
        if len(data) - at - 8 < size or int.from_bytes(data[at : at + 8], "little") != sizes[key].size:
            raise MinitlError(f"{what} is damaged or cut off: storage {key!r:.40} should have {sizes[key].size} numbers")
        rows[key] = memoryview(data)[at + 8 : at + 8 + size]
        at += 8 + size
    return root, rows
