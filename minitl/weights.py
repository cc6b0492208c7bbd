"""The project's own weights file: a .npz that carries all that is needed to use it.

In and out: a `Weights` (arrays and what they mean) and a file. The file is a plain ZIP of .npy arrays, stored without compression, that
numpy.load can read too; the entry `minitl.json` holds everything that is no array, as UTF-8 bytes. Nothing is pickled. The same
content always gives the same bytes, and its SHA-256 stands in the JSON.

A file from elsewhere is hostile: sizes are checked against the bytes that are there before anything is allocated, dtypes against
a short list, the JSON against what the network needs. Left out: foreign formats (importers/).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import golden as goldens
from . import zips
from .architectures import build, complete, feature_node
from .errors import MinitlError
from .files import printable
from .golden import Golden
from .graph import Graph
from .images import Recipe
from .neither import LARGEST, Neither, read
from .quantize import Calibration, Statistics

FORMAT = 1
JSON_ENTRY, CALIBRATION, NEITHER = "minitl.json", "calibration", "neither/directions"
GOLDEN = ("golden/input", "golden/output")
DTYPES = ("<f4", "<f2", "|u1")
LARGEST_JSON, DEEPEST = 32 << 20, 40


@dataclass
class Weights:
    """Arrays and everything needed to use them.

    architecture, arguments: for architectures.build. arrays: {'node/parameter': float32 array}.
    recipe: how a photo becomes the input. classes: names in output order, or None where nobody knows them.
    frozen: {node: True or list of booleans}: the freeze mask of the last training.
    calibration: statistics of the values of the folded network, or {}: what int8 needs.
    neither: what to call none of the classes, or None.
    provenance: where the numbers come from: source, licence, training, notes; shown by `minitl info`.
    golden: an input and what the framework that the numbers come from answered, or None.
    """

    architecture: str
    arguments: dict[str, Any]
    arrays: dict[str, np.ndarray]
    recipe: Recipe
    classes: list[str] | None = None
    frozen: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    neither: Neither | None = None
    golden: Golden | None = None

    def graph(self) -> Graph:
        """The network with these weights and this freeze mask. Raises MinitlError where they do not fit each other."""
        graph = build(self.architecture, **self.arguments).load(self.arrays)
        for name, mask in self.frozen.items():
            graph.freeze("=" + name, None if mask is True else np.array(mask))
        return graph

    def meta(self) -> dict[str, Any]:
        """What the JSON entry holds, without the hash."""
        return {
            "format": FORMAT,
            "architecture": self.architecture,
            "arguments": complete(self.architecture, self.arguments),
            "recipe": self.recipe.to_dict(),
            "classes": self.classes,
            "frozen": {name: True if mask is True else [bool(b) for b in mask] for name, mask in self.frozen.items()},
            "provenance": self.provenance,
            **({"neither": self.neither.facts()} if self.neither else {}),
            **({"golden": self.golden.facts()} if self.golden else {}),
        }

    def entries(self) -> dict[str, np.ndarray]:
        """All arrays of the file: the parameters, and two for each calibrated value (its range, its channels' means)."""
        entries = dict(self.arrays)
        for name, seen in sorted(self.calibration.items()):
            entries[f"{CALIBRATION}/{name}/range"] = np.array([seen.low, seen.high], np.float32)
            entries[f"{CALIBRATION}/{name}/mean"] = seen.mean
        if self.neither:
            entries[NEITHER] = (self.neither.directions.astype(np.int16) + LARGEST).astype(np.uint8)
        if self.golden:
            entries |= zip(GOLDEN, (self.golden.input, self.golden.output), strict=True)
        return entries

    def content_hash(self) -> str:
        """SHA-256 of everything that the file holds, in hexadecimal digits."""
        return content_hash(self.meta(), self.entries())


def content_hash(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the JSON and of each array's name, type, shape and bytes."""
    digest = hashlib.sha256(_json(meta))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _json(meta: Mapping[str, Any]) -> bytes:
    return json.dumps(meta, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "surrogatepass")


# ---- arrays <-> .npz


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """{name: array} -> the bytes of an .npz: fixed dates and attributes, so that equal arrays give equal bytes."""
    import zipfile  # whoever reads needs it not

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(name + ".npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # otherwise Windows and Unix would write different bytes
            npy = io.BytesIO()
            np.lib.format.write_array(npy, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(entry, npy.getvalue())
    return file.getvalue()


def unpack(data: bytes | memoryview, what: str, hashed: bool = False) -> dict[str, np.ndarray]:
    """The inverse of pack, for hostile bytes; `what` names the file in errors. The arrays are read-only.

    hashed: the caller compares a hash of all arrays, so their check sums are left alone; they then lie within data, at any address.
    """
    try:
        arrays: dict[str, np.ndarray] = {}
        for full, content, crc in zips.entries(memoryview(data)):
            name = full.removesuffix(".npy")
            if name == full or len(name) > 200:
                raise MinitlError(f"{what}: entry {full!r:.60} is no .npy array: not written by minitl")
            if not hashed and zlib.crc32(content) != crc:
                raise ValueError(f"the entry {full!r:.60} has another check sum")
            arrays[name] = _array(content if hashed else bytes(content), f"{what}: entry {name!r:.60}")
        return arrays
    except MinitlError:
        raise
    except zips.CompressedError as problem:
        raise MinitlError(f"{what} {problem}") from None
    except Exception as problem:  # damaged files raise a dozen different ones
        why = printable(str(problem))
        raise MinitlError(f"{what} is damaged or no .npz file ({why:.100}); download or write it again") from None


HEAD_BYTES = 256
"""So many bytes of a file show what it is."""
HEAD = re.compile(rb"\x93NUMPY\x01\x00(..){'descr': '(.{3})', 'fortran_order': False, 'shape': \(([0-9, ]*)\), } *\n", re.DOTALL)
"""How a .npy of ours begins. NumPy's own reader takes that for Python, and ten times as long, so it gets all others only."""


def _array(npy: bytes | memoryview, what: str) -> np.ndarray:
    """One .npy file -> a read-only array, without believing its header."""
    head = HEAD.match(npy)
    if head and head[2].decode("latin-1") in DTYPES and struct.unpack("<H", head[1])[0] == head.end() - 10:
        start, fortran, dtype = head.end(), False, np.dtype(head[2].decode())
        shape = tuple(map(int, re.findall(rb"\d+", head[3])))
    else:
        file = io.BytesIO(npy)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise MinitlError(f"{what} is a .npy of version {version}; minitl writes (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if dtype.str not in DTYPES or fortran or any(n < 0 for n in shape) or len(shape) > 8:
        raise MinitlError(f"{what} is {dtype.str} with {len(shape)} axes; minitl reads row-major {', '.join(DTYPES)}")
    if math.prod(shape) * dtype.itemsize != len(npy) - start:
        raise MinitlError(f"{what} claims shape {tuple(shape)}, but holds {len(npy) - start} bytes of data: the file is damaged")
    return np.frombuffer(npy, dtype, math.prod(shape), start).reshape(shape)


# ---- weights <-> file


def to_bytes(weights: Weights) -> bytes:
    """The content of a weights file, its hash included."""
    meta = weights.meta()
    text = _json(meta | {"sha256": weights.content_hash()})
    return pack({JSON_ENTRY: np.frombuffer(text, np.uint8), **weights.entries()})


def is_npz(data: bytes | memoryview) -> bool:
    """Whether a file that begins with these bytes is a ZIP archive of .npy files, as far as its first entry says."""
    head = bytes(data[:HEAD_BYTES])
    named = int.from_bytes(head[26:28], "little")
    return head.startswith(b"PK\x05\x06") or (head.startswith(b"PK\x03\x04") and head[30 : 30 + named].endswith(b".npy"))


def parse(data: bytes | memoryview, what: str) -> Weights:
    """The bytes of a file -> Weights, checked: hash, names, shapes, finite numbers. `what` names the file in errors."""
    arrays = unpack(data, what, hashed=True)
    if JSON_ENTRY not in arrays:
        raise MinitlError(f"{what} has no entry {JSON_ENTRY}: it is a .npz, but not one of minitl's; see `minitl convert --help`")
    text = arrays.pop(JSON_ENTRY).tobytes()
    try:
        if len(text) > LARGEST_JSON:
            raise ValueError("it is too long")
        meta = json.loads(text.decode("utf-8", "surrogatepass"), parse_constant=_refuse_constant)
        if not isinstance(meta, dict):
            raise ValueError("it is no object")
        said = meta.pop("sha256", None)
        found = content_hash(meta, arrays)
    except (ValueError, RecursionError) as problem:
        raise MinitlError(f"{what}: entry {JSON_ENTRY} cannot be read ({problem}); the file is damaged") from None
    if meta.get("format") != FORMAT:
        raise MinitlError(
            f"{what} is of format {meta.get('format')!r:.20}; this minitl reads format {FORMAT}: use the version that wrote it"
        )
    if said != found:
        said = printable(str(said)[:12])
        raise MinitlError(f"{what}: the content hash is {found[:12]}..., the file says {said}...: it was damaged or changed")
    given, answer = (None if array is None else np.array(array) for array in (arrays.pop(name, None) for name in GOLDEN))
    block = np.empty(sum(array.size for array in arrays.values()), np.float32)  # a large one costs less than many small ones
    floats, end = {}, 0
    for name, array in arrays.items():
        start, end = end, end + array.size
        floats[name] = block[start:end].reshape(array.shape)
        floats[name][...] = array
    with np.errstate(all="ignore"):
        fine = np.isfinite(block @ block)  # says it four times as fast; large numbers are looked at again
    for name, array in floats.items():
        if not fine and not np.isfinite(array).all():
            raise MinitlError(f"{what}: {name} holds numbers that are not finite (NaN or infinity): the training went wrong")
    statistics = {name: floats.pop(name) for name in list(floats) if name.startswith(CALIBRATION + "/")}
    directions = floats.pop(NEITHER, None)
    weights = _from_meta(meta, floats, statistics, what)
    if "neither" in meta or directions is not None:
        try:
            shape = build(weights.architecture, **weights.arguments).shapes[feature_node(weights.architecture, **weights.arguments)]
            rows = None if directions is None else directions - LARGEST
            weights.neither = read(meta.get("neither"), rows, (weights.arguments.get("classes") or 0, shape[0]))
        except ValueError as problem:
            raise MinitlError(f"{what}: what it says about 'neither' does not fit the network ({problem}): the file was changed") from None
    if "golden" in meta or given is not None or answer is not None:
        try:
            weights.golden = goldens.read(meta.get("golden"), given, answer, build(weights.architecture, **weights.arguments))
        except ValueError as problem:
            raise MinitlError(f"{what}: its golden answer does not fit the network ({problem}): the file was changed") from None
    return weights


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _is_shallow(value: Any, levels: int) -> bool:
    """Whether a JSON value nests at most so many levels: what is printed later walks it recursively."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(_is_shallow(item, levels - 1) for item in inner)


def _from_meta(meta: dict[str, Any], arrays: dict[str, np.ndarray], statistics: dict[str, np.ndarray], what: str) -> Weights:
    def expect(name: str, good: bool) -> None:
        if not good:
            raise MinitlError(f"{what}: entry {name!r} of {JSON_ENTRY} is missing or not what minitl writes: the file was changed")

    architecture, arguments, classes = meta.get("architecture"), meta.get("arguments"), meta.get("classes")
    frozen, provenance = meta.get("frozen"), meta.get("provenance")
    expect("architecture", isinstance(architecture, str))
    expect("arguments", isinstance(arguments, dict))
    names = isinstance(classes, list) and all(isinstance(name, str) and name.isprintable() for name in classes)
    expect("classes", classes is None or names)
    expect("frozen", isinstance(frozen, dict))
    expect("provenance", isinstance(provenance, dict) and _is_shallow(provenance, DEEPEST))
    assert isinstance(frozen, dict) and isinstance(arguments, dict)
    for mask in frozen.values():
        expect("frozen", mask is True or (isinstance(mask, list) and all(isinstance(b, bool) for b in mask)))
    try:
        recipe = Recipe.from_dict(meta.get("recipe"))
        weights = Weights(str(architecture), arguments, arrays, recipe, classes, frozen, {}, provenance or {})
        graph = weights.graph()
    except MinitlError as problem:
        raise MinitlError(f"{what}: {problem!s:.500}") from None
    outputs = arguments.get("classes")
    if classes is not None and len(classes) != outputs:
        raise MinitlError(f"{what}: {len(classes)} class names for {outputs} outputs: the file was changed")
    if (weights.recipe.height, weights.recipe.width, 3) != graph.input_shape:
        raise MinitlError(
            f"{what}: the recipe makes {weights.recipe.height}x{weights.recipe.width} RGB, the network takes {graph.input_shape}"
        )
    for name in sorted({name.removeprefix(CALIBRATION + "/").rpartition("/")[0] for name in statistics}):
        limits, mean = (statistics.pop(f"{CALIBRATION}/{name}/{kind}", None) for kind in ("range", "mean"))
        known = limits is not None and mean is not None and mean.shape == graph.shapes.get(name, ())[-1:] and limits.shape == (2,)
        if limits is None or mean is None or not known or limits[0] > limits[1]:
            raise MinitlError(f"{what}: the calibration of {name!r:.60} does not fit the network: the file was changed")
        weights.calibration[name] = Statistics(float(limits[0]), float(limits[1]), mean)
    if statistics:
        raise MinitlError(f"{what}: entry {min(statistics)!r:.60} is not what minitl writes: the file was changed")
    return weights
