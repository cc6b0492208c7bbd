"""Photos -> features: the frozen part of the network runs once per photo, and its results are kept on disk.

In: a Graph with its freeze mask, a Recipe, paths of photos. Out: one row of numbers per photo: the values that cross the border from
frozen to trainable (graph.border()), side by side; or the photo's pixels where nothing is frozen.

The cache: a folder per key, in it files of a few hundred rows each, written whole and then renamed. A row is known by the SHA-256 of
the photo's bytes; the folder by the SHA-256 of everything else that can change a row: the frozen layers and their weights, the recipe, the
versions of this package and of Pillow. So renaming a photo costs nothing, a new one costs one pass through the network, other weights
never meet old rows, a kill loses at most the rows not yet written, and a damaged file is only computed again. Two processes may share
a cache: each writes files of its own. Rows are computed one photo at a time, so that they do not depend on the neighbours.

Left out: tidying up old keys; the folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from .errors import MinitlError
from .files import write_atomically
from .folders import difference_hash
from .graph import INPUT, Graph
from .images import PhotoError, Recipe, digest, photos_ahead, read_bytes, read_photo
from .layers import Array, Shape
from .version import __version__
from .weights import pack, unpack

ROWS_PER_FILE = 256
SECONDS_PER_FILE = 5.0
"""A file of the cache is written after so many rows or seconds, whichever comes first: what a kill can lose."""

Progress = Callable[[int, int], None]
"""Called with (photos done, photos in all)."""


@dataclass
class Features:
    """Rows of N photos and how to cut them into the values that the trainable part of a graph reads.

    rows: (N, F) float32 features, or (N, H * W * C) uint8 pixels. parts: (node, shape without the batch), in the order of the row.
    """

    rows: Array
    parts: list[tuple[str, Shape]]
    recipe: Recipe

    def __len__(self) -> int:
        return len(self.rows)

    def feeds(self, indices: Array | slice = slice(None)) -> dict[str, Array]:
        """{node: (n, *shape) float32} of the chosen photos: what Graph.forward and Graph.evaluate start from."""
        rows = self.rows[indices]
        if self.parts[0][0] == INPUT and rows.dtype == np.uint8:
            return {INPUT: self.recipe.normalise(rows.reshape(-1, *self.parts[0][1]))}
        feeds, first = {}, 0
        for name, shape in self.parts:
            size = int(np.prod(shape))
            feeds[name] = np.ascontiguousarray(rows[:, first : first + size]).reshape(-1, *shape)
            first += size
        return feeds

    def mean_squared_length(self) -> float:
        """Mean over the photos of the sum of the squares of a row."""
        return float(np.square(self.rows, dtype=np.float64).sum(axis=1).mean())

    def take(self, indices: Array) -> Features:
        """The features of some of the photos."""
        return Features(self.rows[indices], self.parts, self.recipe)


# ---- the cache on disk


def default_cache() -> Path:
    """$MINITL_CACHE, or the place that the platform keeps for caches."""
    if chosen := os.environ.get("MINITL_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minitl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "minitl" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitl"


def cache_key(graph: Graph, recipe: Recipe) -> str:
    """SHA-256 of all that a row depends on, but for the photo."""
    sha = hashlib.sha256(repr((__version__, PIL.__version__, sorted(recipe.to_dict().items()), graph.input_shape, graph.border())).encode())
    prefix = set(graph.frozen_prefix())
    for node in graph.nodes:
        if node.name in prefix:
            sha.update(repr(node).encode())
            for name, array in sorted(graph.params.get(node.name, {}).items()):
                sha.update(name.encode() + array.tobytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class Row:
    """What is known of one photo: its features (F,), and its difference hash (folders.py), which the split needs."""

    values: Array
    look: int


class Cache:
    """The rows of one key. folder None: nothing is kept on disk. `problem` says why the disk could not be used, if so."""

    def __init__(self, folder: Path | None, key: str, width: int) -> None:
        self.width = width
        self.rows: dict[str, Row] = {}
        self.problem = ""
        self._fresh: dict[str, Row] = {}
        self._written = time.monotonic()
        self.folder = folder / "features" / key[:32] if folder else None
        if self.folder:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in sorted(self.folder.glob("*.npz")):
                    self._read(path)
            except OSError as error:
                self.problem, self.folder = f"the cache folder {self.folder} cannot be used ({error.strerror})", None

    def _read(self, path: Path) -> None:
        try:
            arrays = unpack(path.read_bytes(), str(path))
            keys, looks, values = arrays["keys"], arrays["looks"], arrays["values"]
            shapes = (keys.shape, looks.shape, values.shape)
            if shapes != ((len(values), 32), (len(values), 8), (len(values), self.width)) or values.dtype != np.float32:
                raise MinitlError(f"{path} holds rows of another shape")
        except (MinitlError, KeyError):
            path.unlink(missing_ok=True)  # damaged: ours to throw away and compute again
            return
        for key, look, row in zip(keys, looks, values, strict=True):
            self.rows[bytes(key).hex()] = Row(row, int.from_bytes(bytes(look), "big"))

    def add(self, key: str, row: Row) -> None:
        """Keep a row; now and then write those that came since the last time."""
        self.rows[key] = self._fresh[key] = row
        if len(self._fresh) >= ROWS_PER_FILE or time.monotonic() - self._written > SECONDS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet. A disk that cannot be written costs the cache, not the work."""
        if self._fresh and self.folder:
            rows = list(self._fresh.values())
            arrays = {
                "keys": np.array([list(bytes.fromhex(key)) for key in self._fresh], np.uint8),
                "looks": np.array([list(row.look.to_bytes(8, "big")) for row in rows], np.uint8),
                "values": np.stack([row.values for row in rows]),
            }
            try:
                write_atomically(self.folder / f"{secrets.token_hex(8)}.npz", pack(arrays))
            except MinitlError as error:
                self.problem, self.folder = str(error), None
        self._fresh, self._written = {}, time.monotonic()


# ---- extraction


@dataclass
class Extraction:
    """What came of reading photos: features of the good ones, and the rest by name.

    kept: indices into the paths, one per row. digests, looks: of the kept photos, for folders.split. skipped: (path, reason).
    reused: how many rows came from the cache.
    """

    features: Features
    kept: list[int]
    digests: list[str]
    looks: list[int]
    skipped: list[tuple[Path, str]]
    reused: int
    cache_problem: str = ""


def extract(graph: Graph, recipe: Recipe, paths: Iterable[Path], cache: Path | None = None, progress: Progress | None = None) -> Extraction:
    """Rows for all photos that can be read. cache: the folder to keep features in, None to keep nothing (pixels are never kept)."""
    paths = list(paths)
    parts = [(name, graph.shapes[name]) for name in graph.border()]
    assert parts, "nothing in the graph is trainable, so there is no border"
    pixels = [name for name, _ in parts] == [INPUT]
    width = sum(int(np.prod(shape)) for _, shape in parts)
    store = Cache(None if pixels else cache, "" if pixels else cache_key(graph, recipe), width)
    known = frozenset(store.rows)

    def read(path: Path) -> tuple[str, Array | None] | PhotoError:
        try:
            data = read_bytes(path)
            key = digest(data)
            return key, None if key in known else read_photo(data, recipe, str(path))
        except PhotoError as error:
            return error

    rows: list[Array] = []
    result = Extraction(Features(np.zeros((0, width), np.float32), parts, recipe), [], [], [], [], 0)
    try:
        for index, (path, found) in enumerate(photos_ahead(read, paths)):
            if isinstance(found, PhotoError):
                result.skipped.append((path, found.reason))
            else:
                key, photo = found
                if photo is None:
                    result.reused += 1
                elif key not in store.rows:
                    values = photo.reshape(-1) if pixels else features_of(graph, recipe, photo, parts)
                    store.add(key, Row(values, difference_hash(photo)))
                rows.append(store.rows[key].values)
                result.looks.append(store.rows[key].look)
                result.kept.append(index)
                result.digests.append(key)
            if progress:
                progress(index + 1, len(paths))
    finally:  # Ctrl-C included
        store.flush()
    result.cache_problem = store.problem
    if rows:
        result.features.rows = np.stack(rows)
    return result


def features_of(graph: Graph, recipe: Recipe, photo: Array, parts: Iterable[tuple[str, Shape]]) -> Array:
    """(H, W, 3) uint8 -> (F,) float32."""
    image = recipe.normalise(photo[None])
    names = [name for name, _ in parts]
    values: Mapping[str, Array] = {INPUT: image, **graph.evaluate(image, [name for name in names if name != INPUT])}
    return np.concatenate([values[name].reshape(-1) for name in names]).astype(np.float32)
