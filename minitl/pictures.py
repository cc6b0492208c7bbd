"""Training photos that look different in every epoch: kept whole and small, changed by augment.py, run through the frozen part.

In: paths, a Recipe, a Graph with its freeze mask, an Augmentation. Out: a training.Source whose batches are the values that cross the
border from frozen to trainable (graph.border()), computed anew for every view; or pixels, where nothing below is frozen. The photos
are read once; they take 1.6 times the pixels of the network's input, in memory or (features.large_array) on disk.
Left out: features that stay the same (features.py), which need neither the photos nor the frozen part a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .augment import Augmentation, augmented_batch, source_recipe
from .engine import Values
from .errors import MinitlError
from .features import Progress, large_array
from .files import printable
from .graph import Graph
from .images import PhotoError, Recipe, aspect, digest, photos_ahead, read_bytes, read_photo
from .layers import Array

CHANGED = "has vanished or changed since it was first read: leave the photos alone while they are used"


@dataclass(frozen=True)
class Pictures:
    """pixels: (N, S, T, 3) uint8, whole photos, squashed. aspects: (N,) float64, width / height of the originals."""

    pixels: Array
    aspects: Array


def read_pictures(
    paths: Sequence[Path], digests: Sequence[str], recipe: Recipe, folder: Path | None = None, progress: Progress | None = None
) -> Pictures:
    """The photos that were read before and had these digests. MinitlError where one has vanished or changed since."""
    whole = source_recipe(recipe)
    pixels = large_array((len(paths), whole.height, whole.width, 3), np.uint8, folder)
    aspects = np.empty(len(paths))

    def read(path: Path) -> tuple[str, Array, float] | PhotoError:
        try:
            data = read_bytes(path)
            return digest(data), read_photo(data, whole, str(path)), aspect(data)
        except PhotoError as error:
            return error

    for i, (path, found) in enumerate(photos_ahead(read, paths)):
        if isinstance(found, PhotoError) or found[0] != digests[i]:
            raise MinitlError(f"{printable(path)} {CHANGED}")
        _, pixels[i], aspects[i] = found
        if progress:
            progress(i + 1, len(paths))
    return Pictures(pixels, np.full(len(paths), recipe.width / recipe.height) if recipe.resize == "squash" else aspects)


class Views:
    """A training.Source of augmented photos. graph: with its mask of now; its frozen part runs folded, as inference does.

    index: which of the pictures, None for all.
    """

    ahead = 2

    def __init__(
        self, pictures: Pictures, recipe: Recipe, augmentation: Augmentation, graph: Graph, seed: int, index: Array | None = None
    ) -> None:
        self.index = np.arange(len(pictures.pixels)) if index is None else index
        self.pictures, self.recipe, self.augmentation, self.seed = pictures, recipe, augmentation, seed
        self.frozen = Values(graph, graph.border())

    def __len__(self) -> int:
        return len(self.index)

    def feeds(self, indices: Array | slice = slice(None), epoch: int = 0) -> dict[str, Array]:
        """See training.Source; the views of an epoch depend on the seed, the epoch and the photo's number, and on nothing else."""
        size = (self.recipe.height, self.recipe.width)
        central = 1.0 if self.recipe.resize == "squash" else self.recipe.crop_fraction
        pixels, aspects = self.pictures.pixels, self.pictures.aspects
        images = self.recipe.normalise(
            augmented_batch(pixels, aspects, size, self.seed, epoch, self.index[indices], self.augmentation, central)
        )
        return self.frozen.run(images)
