"""A model as its users see it: weights, recipe and class names together, with a verb for everything that one does with them.

    model = minitl.load("model.npz")             a model of ours, or an .h5 or .tflite of others
    model = model.replace_head(["cat", "dog"])   a new classifier on the same backbone
    model.freeze("all")                          everything but the classifier
    logits = model.forward(x)                    x: preprocessed float32 (N, H, W, 3); model.recipe makes it from photos
    header = model.emit("my_model")              int8, as one C header

In: files, photos, arrays. Out: the same, and new models; only freeze() and what trains change a model in place. Left out: the course of
a whole training run from a folder to files (transfer.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import emit_c, importers, kernels, weights
from .architectures import build, complete, feature_node
from .errors import MinitlError
from .files import printable, write_atomically
from .folding import fold
from .graph import Graph
from .images import PhotoError, Recipe, read_photos
from .integer import IntegerGraph
from .layers import Array, Dense
from .quantize import Calibration, calibrate, quantise
from .version import __version__
from .weights import Weights

CALIBRATION_PHOTOS = 256
"""Photos of the training part, chosen by content; calibration takes about as long as reading them."""

BATCH = 16
"""Images at once in forward(): few enough that activations stay small."""


@dataclass(frozen=True)
class Answer:
    """What a model says about one photo: (class name, probability) from the likeliest down; or, where it cannot be read, why not."""

    path: Path
    classes: list[tuple[str, float]]
    problem: str = ""


class Model:
    """A network with weights and everything needed to use them. See the head of this file."""

    def __init__(self, content: Weights) -> None:
        self._weights = content
        self.graph: Graph = content.graph()

    # ---- what it is

    @property
    def recipe(self) -> Recipe:
        """How a photo becomes the network's input."""
        return self._weights.recipe

    @property
    def architecture(self) -> str:
        """Name of the network, one of architectures.ARCHITECTURES."""
        return self._weights.architecture

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the network, all of them."""
        return complete(self._weights.architecture, self._weights.arguments)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights come from."""
        return self._weights.provenance

    @property
    def calibration(self) -> Calibration:
        """Statistics of the values on calibration photos, {} before calibrate()."""
        return self._weights.calibration

    @property
    def feature_node(self) -> str:
        """The node whose value (N, C) the classifier reads."""
        return feature_node(self._weights.architecture, **self._weights.arguments)

    @property
    def classes(self) -> list[str]:
        """Names of the outputs; 'class 0', 'class 1', ... where the file does not know them. [] without a classifier."""
        count = self.arguments["classes"] or 0
        return self._weights.classes or [f"class {i}" for i in range(count)]

    # ---- what it computes

    def forward(self, x: Array) -> Array:
        """Preprocessed images (N, H, W, 3) float32 -> logits (N, classes) float32; features where there is no classifier."""
        return self._evaluate(x, self.graph.output)

    def features(self, x: Array) -> Array:
        """Preprocessed images (N, H, W, 3) float32 -> what the classifier reads (N, C) float32."""
        return self._evaluate(x, self.feature_node)

    def _evaluate(self, x: Array, node: str) -> Array:
        x = np.ascontiguousarray(x, np.float32)
        if x.shape[1:] != self.graph.input_shape:
            raise MinitlError(f"the network takes images (N, {', '.join(map(str, self.graph.input_shape))}), found {x.shape}")
        starts = range(0, max(len(x), 1), BATCH)
        values = np.concatenate([self.graph.evaluate(x[i : i + BATCH], [node])[node] for i in starts])
        if not np.isfinite(values).all():
            raise MinitlError("the network answers with numbers that are not finite (NaN or infinity): its weights are damaged")
        return values

    def predict(self, photos: str | Path | Sequence[str | Path], int8: bool = False) -> list[Answer]:
        """An Answer for every photo, all classes sorted by probability. A photo that cannot be read gets an Answer with `problem`."""
        self.needs_classifier()
        paths = [Path(photos)] if isinstance(photos, (str, Path)) else [Path(p) for p in photos]
        integer = self.quantise() if int8 else None
        return [
            Answer(path, [], found.reason) if isinstance(found, PhotoError) else Answer(path, self._ranked(found, integer))
            for path, found in read_photos(paths, self.recipe)
        ]

    def _ranked(self, photo: Array, integer: IntegerGraph | None) -> list[tuple[str, float]]:
        logits = self.logits_int8(photo[None], integer) if integer else self.forward(self.recipe.normalise(photo[None]))
        p = kernels.softmax(logits)[0]
        return [(self.classes[i], float(p[i])) for i in np.argsort(-p, kind="stable")]

    def logits_int8(self, pixels: Array, integer: IntegerGraph) -> Array:
        """Photos (N, H, W, 3) uint8 -> what the integer network answers, as real numbers (N, classes) float32."""
        out = integer.tensors[integer.output]
        return ((integer.run(self.recipe.quantise_pixels(pixels)).astype(np.float32) - out.zero_point) * np.float32(out.scale)).astype(
            np.float32
        )

    # ---- how it changes

    def freeze(self, what: str = "all") -> Model:
        """'all': everything but the classifier; 'none': nothing; a layer: everything up to it; or a pattern of Graph.match.

        Replaces the mask that was there. Returns self.
        """
        self.graph.frozen = {}
        if what == "all":
            self.graph.freeze(".." + self.feature_node)
        elif what != "none":
            plain = not re.search(r"[*?\[=]|^\.\.", what)
            self.graph.freeze(".." + what if plain else what)
        return self

    def replace_head(self, classes: Sequence[str], seed: int = 0, dropout: float = 0.0) -> Model:
        """A new model with the same backbone and a fresh classifier for these classes; its numbers are drawn from the seed."""
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise MinitlError(f"a classifier needs at least two different classes, found {', '.join(classes) or 'none'}")
        arguments = self.arguments | {"classes": len(classes), "dropout": dropout}
        graph = build(self.architecture, **arguments).initialise(seed)
        for name in graph.match(".." + self.feature_node):
            if name in graph.params:
                graph.params[name] = self.graph.params[name]
        provenance = {"backbone": self.provenance}
        return Model(replace(self._weights, arguments=arguments, arrays=graph.arrays(), classes=list(classes), calibration={}, frozen={},
                             provenance=provenance))  # fmt: skip

    def calibrate(self, pixels: Iterable[Array]) -> Model:
        """Measure what int8 needs to know of all values on photos (H, W, 3) uint8, at best those of the training. Returns self."""
        images = (self.recipe.normalise(photo[None]) for photo in pixels)
        self._weights.calibration = calibrate(fold(self.graph), images)
        return self

    def note(self, **facts: Any) -> Model:
        """Add to the provenance. Returns self."""
        self._weights.provenance = self.provenance | facts
        return self

    # ---- what leaves it

    def content(self) -> Weights:
        """What save() writes."""
        frozen = {
            name: True if mask is True else mask.tolist() for name, mask in self.graph.frozen.items() if not isinstance(mask, bool) or mask
        }
        return replace(self._weights, arrays=self.graph.arrays(), frozen=frozen)

    def save(self, path: str | Path) -> str:
        """Write the model as .npz, whole or not at all. Returns the content hash."""
        content = self.content()
        write_atomically(path, weights.to_bytes(content))
        return content.content_hash()

    def quantise(self) -> IntegerGraph:
        """The int8 network. Raises MinitlError for a model that was never calibrated."""
        self.needs_classifier()
        if not self.calibration:
            raise MinitlError("this model was never calibrated, so int8 is not possible: train it with `minitl train`, or call calibrate()")
        return quantise(fold(self.graph), self.calibration, self.recipe)

    def emit(self, name: str, file: str | None = None) -> str:
        """The int8 network as one C header; `name` begins every name in it, `file` is what it will be called (see emit_c.py)."""
        facts = self.provenance | {"model content hash": self.content().content_hash()}
        return emit_c.emit(self.quantise(), name, self.classes, self.recipe, facts, __version__, file)

    def needs_classifier(self) -> None:
        """Raises MinitlError for a backbone that ends in features."""
        if not isinstance(self.graph[self.graph.output].layer, Dense):
            raise MinitlError("this model ends in features and has no classifier: train one with `minitl train`")


# ---- where models come from


def load(path: str | Path) -> Model:
    """A model from a file: minitl's own .npz, or a foreign one (.h5, .tflite), recognised by content. MinitlError for anything wrong."""
    expected = "expected a weights file (.npz, .h5, .tflite)"
    if os.path.exists(path) and not os.path.isfile(path):
        raise MinitlError(f"{printable(path)} is {'a folder' if os.path.isdir(path) else 'no ordinary file'}; {expected}")
    try:
        with open(path, "rb") as file:
            head = file.read(4)
            ours = head + file.read() if weights.is_npz(head) else b""
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise MinitlError(f"{printable(path)} cannot be read ({getattr(error, 'strerror', None) or error}); {expected}") from None
    if ours:
        return Model(weights.parse(ours, printable(path)))
    found = importers.read(path)
    classes = [printable(name) for name in found.classes] if found.classes else None
    return Model(Weights(found.architecture, found.arguments, found.arrays, found.recipe, classes, provenance=found.provenance))


RANDOM = re.compile(r"random:(\w+?)_([0-9]*\.?[0-9]+)_([0-9]{1,5})(?:x([0-9]{1,5}))?", re.ASCII)


def find(name: str, seed: int = 0) -> Model:
    """A model by file or by name.

    'random:mobilenet_v1_0.25_96' is that network at 96x96 with weights drawn from the seed, for training from scratch.
    """
    if os.path.exists(name) or not name.startswith("random:"):
        return load(name)
    match = RANDOM.fullmatch(name)
    if not match:
        raise MinitlError(f"{name!r} is no network: expected random:NETWORK_ALPHA_SIZE such as random:mobilenet_v1_0.25_96")
    height, width = int(match[3]), int(match[4] or match[3])
    return random_backbone(match[1], {"alpha": float(match[2]), "input_shape": [height, width, 3]}, Recipe(height, width), name, seed)


def random_backbone(architecture: str, arguments: dict[str, Any], recipe: Recipe, source: str, seed: int = 0) -> Model:
    """A network without classifier, all weights drawn from the seed."""
    arguments = arguments | {"classes": None}
    graph = build(architecture, **arguments).initialise(seed)
    return Model(Weights(architecture, complete(architecture, arguments), graph.arrays(), recipe, provenance={"source": source}))
