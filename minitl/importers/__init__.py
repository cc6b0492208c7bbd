"""Foreign weights in, ours out: read(path) recognises the format by its first bytes.

Enters: a file of Keras (.h5), PyTorch (.pth, either container), safetensors, ONNX, TensorFlow.js (model.json) or TensorFlow Lite (float, or
quantised and then dequantised; alone or in a .tgz). Leaves: Imported: the network, its arrays under our names and in our layouts, its
preprocessing, where it came from, what the file calls each array. Left out: training state, and any network that architectures/ does not
have. Files are taken as hostile: only MinitlError leaves read().
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .. import zips
from ..errors import MinitlError
from ..files import FOREIGN, printable
from . import hdf5, keras_archive, keras_h5, onnx, safetensors, tarball, tfjs, tflite, tflite_float, torch_files, torch_state
from .beside import Beside
from .names import Imported

__all__ = ["Imported", "file_bytes", "in_plain_words", "read"]

Result = TypeVar("Result")

LARGEST_FILE = 1 << 30
LONGEST_ERROR = 500


def read(path: str | os.PathLike[str]) -> Imported:
    """The network in a file of any format that is read, whatever its name ends with. Raises MinitlError for anything else, or damaged."""
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
    except RecursionError:
        raise MinitlError(f"{name} is damaged: it nests deeper than any network") from None


def _convert(data: bytes, name: str, beside: Beside) -> Imported:
    if data.startswith(hdf5.SIGNATURE):
        return keras_h5.convert(data, name)
    if data[4:8] == tflite.SIGNATURE:
        return tflite_float.convert(data, name)
    if data.startswith(b"PK\x03\x04"):
        return _archive(data, name)
    if safetensors.is_safetensors(data):
        arrays, metadata = safetensors.read(data, name)
        if torch_state.METADATA in metadata:
            return torch_state.own(arrays, metadata[torch_state.METADATA], name)
        return torch_state.convert(arrays, [], [], name, "safetensors")
    if torch_files.is_stream(data):
        return torch_state.convert(*torch_files.read(data, name), name, "torch")
    if onnx.is_model(data):
        return onnx.convert(data, name, beside)
    if data.startswith(tarball.SIGNATURE):
        return tarball.convert(data, name)
    if tfjs.is_model(data):
        return tfjs.convert(data, name, beside)
    kind = next((kind for start, kind in KNOWN.items() if data.startswith(start)), f"a file that begins with {data[:8]!r}")
    raise MinitlError(f"cannot read {name}: expected {FOREIGN}, found {kind}")


def _archive(data: bytes, name: str) -> Imported:
    """The network in a ZIP archive."""
    try:
        inside = zips.names(memoryview(data))
    except (ValueError, struct.error) as problem:
        raise MinitlError(f"{name} is a damaged ZIP archive ({problem!s:.200}); download or save it again") from None
    if any(entry.endswith("/data.pkl") for entry in inside):
        return torch_state.convert(*torch_files.read(data, name), name, "torch")
    if keras_archive.CONFIG in inside:
        return keras_h5.convert_archive(data, name)
    raise MinitlError(f"cannot read {name}: expected {FOREIGN}, found a ZIP archive of {', '.join(inside[:5])}")


KNOWN = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
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
            raise MinitlError(f"cannot read {shown}: it is {what}; give {FOREIGN}")
        if not 0 < status.st_size <= LARGEST_FILE:
            raise MinitlError(f"cannot read {shown}: it has {status.st_size} bytes, expected 1 to {LARGEST_FILE}")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise MinitlError(f"cannot read {shown}: there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, MinitlError):
            raise
        raise MinitlError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from None
