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

import contextlib
import hashlib
import math
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import PIL

from .engine import Values, plain
from .errors import MinitlError
from .files import printable, write_atomically
from .folders import difference_hash
from .graph import INPUT, Graph
from .images import PhotoError, Recipe, digest, photos_ahead, read_bytes, read_photo
from .layers import Array, Shape
from .threads import threads
from .version import __version__
from .weights import pack, unpack

PHOTOS_AT_ONCE, BYTES_AT_ONCE, SECONDS_AT_ONCE = 8, 1 << 20, 0.02
"""What a thread takes at a time, the least: being handed a small photo costs a tenth of its time, and a stop loses what is begun."""
PIXELS_KEPT = 64 << 20
"""Bytes of pixels that are kept for whoever wants the same photos again."""
ROWS_PER_FILE = 256
FILES_OPEN = 8
SECONDS_PER_FILE = 5.0
"""A file of the cache is written after so many rows or seconds, whichever comes first: what a kill can lose. So many stay in memory."""

Progress = Callable[[int, int], None]
"""Called with (photos done, photos in all)."""


@dataclass
class Features:
    """Rows of N photos and how to cut them into the values that the trainable part of a graph reads.

    rows: (N, F) float32 features, or (N, H * W * C) uint8 pixels. parts: (node, shape without the batch), in the order of the row.
    index: which of the rows these photos are, None for all: parts of a set share its rows.
    """

    rows: Array
    parts: list[tuple[str, Shape]]
    recipe: Recipe
    index: Array | None = None
    ahead: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.rows) if self.index is None else len(self.index)

    def values(self, indices: Array | slice = slice(None)) -> Array:
        """(n, F) rows of the chosen photos."""
        return self.rows[indices if self.index is None else self.index[indices]]

    def feeds(self, indices: Array | slice = slice(None), epoch: int = 0) -> dict[str, Array]:
        """{node: (n, *shape) float32} of the chosen photos: what Graph.forward and Graph.evaluate start from; the same in every epoch."""
        rows = self.values(indices)
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
        return sum(float(np.square(self.values(slice(i, i + 1024)), dtype=np.float64).sum()) for i in range(0, len(self), 1024)) / len(self)

    def take(self, indices: Array) -> Features:
        """The features of some of the photos; no row is copied."""
        return Features(self.rows, self.parts, self.recipe, indices if self.index is None else self.index[indices])


IN_MEMORY = 1 << 30
"""Bytes of an array of rows; a larger one lies in a file without a name that the system reads as it is needed."""


def large_array(shape: tuple[int, ...], dtype: type, folder: Path | None) -> Array:
    """An empty array, in memory or, above IN_MEMORY bytes, in a file that vanishes with the process. folder: None: the system's."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # else a disk that fills up would kill the process later
            return np.memmap(file, dtype, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
    except OSError as error:
        where = printable(folder or tempfile.gettempdir())
        raise MinitlError(f"{size / 1e9:.1f} GB for the photos do not fit into {where} ({error.strerror}); "
                          "choose another place with --cache, or freeze more layers") from None  # fmt: skip


# ---- the cache on disk


def cache_key(graph: Graph, recipe: Recipe) -> str:
    """SHA-256 of all that a row depends on, but for the photo."""
    sha = hashlib.sha256(
        repr((__version__, PIL.__version__, sorted(recipe.to_dict().items()), graph.input_shape, graph.border(), plain())).encode()
    )
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
        self.places: dict[str, tuple[Path, int]] = {}
        self.problem = ""
        self._open: dict[Path, dict[str, Array]] = {}
        self._fresh: dict[str, Row] = {}
        self._written = time.monotonic()
        self.folder = folder / "features" / key[:32] if folder else None
        if self.folder:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in sorted(self.folder.glob("*.npz")):
                    arrays = self._read(path)
                    self.places |= {bytes(key).hex(): (path, i) for i, key in enumerate(arrays["keys"] if arrays else ())}
            except OSError as error:
                self.problem, self.folder = f"the cache folder {self.folder} cannot be used ({error.strerror})", None

    def _read(self, path: Path) -> dict[str, Array] | None:
        """The arrays of a file, a few of which stay open; None for a damaged one, which is thrown away."""
        if path not in self._open:
            try:
                arrays = unpack(path.read_bytes(), str(path))
                keys, looks, values = arrays["keys"], arrays["looks"], arrays["values"]
                shapes = (keys.shape, looks.shape, values.shape)
                if shapes != ((len(values), 32), (len(values), 8), (len(values), self.width)) or values.dtype != np.float32:
                    raise MinitlError(f"{path} holds rows of another shape")
            except (MinitlError, KeyError):
                path.unlink(missing_ok=True)  # ours to throw away and compute again
                return None
            while len(self._open) >= FILES_OPEN:
                del self._open[next(iter(self._open))]
            self._open[path] = arrays
        return self._open[path]

    def get(self, key: str) -> Row | None:
        """The row of a photo, None where it has to be computed."""
        if key in self._fresh:
            return self._fresh[key]
        path, i = self.places.get(key, (None, 0))
        try:
            arrays = self._read(path) if path else None
        except OSError:  # somebody tidied up
            arrays = None
        return Row(arrays["values"][i], int.from_bytes(bytes(arrays["looks"][i]), "big")) if arrays else None

    def add(self, key: str, row: Row) -> None:
        """Keep a row; now and then write those that came since the last time."""
        self._fresh[key] = row
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
            path = self.folder / f"{secrets.token_hex(8)}.npz"
            try:
                write_atomically(path, pack(arrays))
                self.places |= {key: (path, i) for i, key in enumerate(self._fresh)}
            except MinitlError as error:
                self.problem, self.folder = str(error), None
        self._fresh, self._written = {}, time.monotonic()


# ---- extraction


@dataclass
class Extraction:
    """What came of reading photos: features of the good ones, and the rest by name.

    kept: indices into the paths, one per row. digests, looks: of the kept photos, for folders.split. skipped: (path, reason).
    reused: how many rows came from the cache. pixels: of some of the photos, as read_photo gave them, PIXELS_KEPT bytes at most.
    """

    features: Features
    kept: list[int]
    digests: list[str]
    looks: list[int]
    skipped: list[tuple[Path, str]]
    reused: int
    cache_problem: str = ""
    pixels: dict[Path, Array] = field(default_factory=dict)


def extract(graph: Graph, recipe: Recipe, paths: Iterable[Path], cache: Path | None = None, progress: Progress | None = None) -> Extraction:
    """Rows for all photos that can be read. cache: the folder to keep features in, None to keep nothing (pixels are never kept).

    As many threads as there are processors take some photos each all the way, from JPEG to row: none waits for another, and few photos
    are in memory. Other threads read and hash the files, ahead of these. What is new is decided in between, in the order of the paths.
    """
    paths = list(paths)
    parts = [(name, graph.shapes[name]) for name in graph.border()]
    assert parts, "nothing in the graph is trainable, so there is no border"
    pixels = [name for name, _ in parts] == [INPUT]
    width = sum(int(np.prod(shape)) for _, shape in parts)
    store = Cache(None if pixels else cache, "" if pixels else cache_key(graph, recipe), width)
    rows = large_array((len(paths), width), np.uint8 if pixels else np.float32, cache)
    frozen = None if pixels else Values(graph, graph.border(), threads=1)

    def hashed(path: Path) -> tuple[str, bytes] | PhotoError:
        try:
            data = read_bytes(path)
            return digest(data), data
        except PhotoError as error:
            return error

    begun: set[str] = set()
    pace = [SECONDS_AT_ONCE]

    def task(found: tuple[str, bytes] | PhotoError) -> Task:
        if isinstance(found, PhotoError):
            return "", found
        if found[0] in begun:
            return found[0], None
        begun.add(found[0])
        return found[0], store.get(found[0]) or found[1]

    def finished(task: Task) -> tuple[Row | PhotoError | None, Array | None]:
        """What came of it, and the pixels of a photo that was decoded."""
        if not isinstance(task[1], bytes):
            return task[1], None
        try:
            photo = read_photo(task[1], recipe)
        except PhotoError as error:
            return error, None
        return Row(features_of(frozen, recipe, photo) if frozen else photo.reshape(-1), difference_hash(photo)), photo

    def all_finished(some: list[Task]) -> list[tuple[Row | PhotoError | None, Array | None]]:
        begun = time.monotonic()
        done = [finished(task) for task in some]
        pace[0] = (time.monotonic() - begun) / len(some)
        return done

    def results() -> Iterator[tuple[Task, tuple[Row | PhotoError | None, Array | None]]]:
        """One by one, made some at a time."""
        files = photos_ahead(lambda some: [hashed(path) for path in some], _some_at_once(paths, pace), ahead=2 * threads())
        tasks = ([task(found) for found in some] for _, some in files)
        for some, done in photos_ahead(all_finished, tasks):
            yield from zip(some, done, strict=True)

    result = Extraction(Features(rows, parts, recipe), [], [], [], [], 0)
    kept_bytes = 0
    known: dict[str, int | PhotoError] = {}  # digest -> number of its row: the same photo again costs nothing
    try:
        for index, ((key, given), (row, pixels_of)) in enumerate(results()):
            at = len(result.kept)
            found = row or known[key]
            known.setdefault(key, found if isinstance(found, PhotoError) else at)
            if isinstance(found, PhotoError):
                result.skipped.append((paths[index], found.reason))
            else:
                rows[at], look = (found.values, found.look) if isinstance(found, Row) else (rows[found], result.looks[found])
                result.reused += isinstance(given, Row)
                if isinstance(given, bytes) and isinstance(found, Row) and not pixels:
                    if not np.isfinite(found.values).all():
                        raise MinitlError(f"{printable(paths[index])}: its features are not finite, the weights are damaged")
                    store.add(key, found)
                if pixels_of is not None and not pixels and kept_bytes + pixels_of.nbytes <= PIXELS_KEPT:
                    result.pixels[paths[index]] = pixels_of
                    kept_bytes += pixels_of.nbytes
                result.looks.append(look)
                result.kept.append(index)
                result.digests.append(key)
            if progress:
                progress(index + 1, len(paths))
    finally:  # Ctrl-C included
        store.flush()
    result.cache_problem = store.problem
    result.features.rows = rows[: len(result.kept)]
    return result


Task = tuple[str, bytes | Row | PhotoError | None]
"""(digest, the bytes of a photo that is new, the row of one that is not, or why there is neither); None: as an earlier one."""


def _some_at_once(paths: Sequence[Path], pace: Sequence[float]) -> Iterator[list[Path]]:
    """The paths, see PHOTOS_AT_ONCE. pace: seconds that a photo took lately."""
    some: list[Path] = []
    size = 0
    for path in paths:
        with contextlib.suppress(OSError, ValueError):  # reading it will say why
            size += path.stat().st_size
        some.append(path)
        if len(some) == PHOTOS_AT_ONCE or size >= BYTES_AT_ONCE or (len(some) + 1) * pace[0] > SECONDS_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def features_of(frozen: Values, recipe: Recipe, photo: Array) -> Array:
    """(H, W, 3) uint8 -> (F,) float32."""
    return np.concatenate([value.reshape(-1) for value in frozen.run(recipe.normalise(photo[None])).values()])
