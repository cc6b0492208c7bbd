"""Foreign weights in, ours out: read(path) recognises the format by its first bytes.

Enters: a Keras .h5 file (whole model or weights alone) or a .tflite file (float, or quantised and then dequantised). Leaves: Imported:
the network, its arrays under our names and in our layouts, its preprocessing, where it came from. Left out: training state, and any
network that architectures/ does not have. Files are taken as hostile: only MinitlError leaves read().
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import MinitlError
from ..files import printable
from . import hdf5, keras_h5, onnx, tflite, tflite_float
from .beside import Beside
from .names import Imported

__all__ = ["Imported", "file_bytes", "in_plain_words", "read"]

Result = TypeVar("Result")

LARGEST_FILE = 1 << 30
LONGEST_ERROR = 500


def read(path: str | os.PathLike[str]) -> Imported:
    """The network in a .h5 or .tflite file, whatever its name ends with. Raises MinitlError for anything else, or damaged."""
    data = file_bytes(path)
    name = printable(Path(path).name)
    beside = Beside(path, LARGEST_FILE)
    imported = in_plain_words(lambda data, name: _convert(data, name, beside), data, name)
    imported.provenance.update(file=name, sha256=hashlib.sha256(data).hexdigest())
    if beside.files:
        imported.provenance["beside"] = beside.sums
    return imported


def in_plain_words(reader: Callable[[bytes, str], Result], data: bytes, name: str) -> Result:
    """reader(data, name); its error as one line that can be shown: it may quote names of any length and content from the file."""
    try:
        return reader(data, name)
    except MinitlError as problem:
        text = printable(str(problem))
        raise MinitlError(text if len(text) <= LONGEST_ERROR else text[:LONGEST_ERROR] + " ...") from None


def _convert(data: bytes, name: str, beside: Beside) -> Imported:
    if data.startswith(hdf5.SIGNATURE):
        return keras_h5.convert(data, name)
    if data[4:8] == tflite.SIGNATURE:
        return tflite_float.convert(data, name)
    if onnx.is_model(data):
        return onnx.convert(data, name, beside)
    kind = next((kind for start, kind in KNOWN.items() if data.startswith(start)), f"a file that begins with {data[:8]!r}")
    raise MinitlError(f"cannot read {name}: expected Keras' .h5 or a .tflite file, found {kind}")


KNOWN = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"PK\x03\x04": "a ZIP archive (.keras, .npz and PyTorch's .pth are such): save it as .h5 or .tflite first",
    b"\x80\x02": "a Python pickle (an old PyTorch file?)",
    b"<": "a web page: the download went wrong",
    b"version https://git-lfs": "a Git LFS pointer instead of the file: fetch it with `git lfs pull`",
}


def file_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole file, read once. Raises MinitlError where it is missing, no ordinary file, empty or too large."""
    shown = printable(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
            raise MinitlError(f"cannot read {shown}: it is {what}; give a .h5 or .tflite file")
        if not 0 < status.st_size <= LARGEST_FILE:
            raise MinitlError(f"cannot read {shown}: it has {status.st_size} bytes, expected 1 to {LARGEST_FILE}")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise MinitlError(f"cannot read {shown}: there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, MinitlError):
            raise
        raise MinitlError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from None
