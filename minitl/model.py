"""A model as its users see it: weights, recipe and class names together, with a verb for everything that one does with them.

    model = minitl.load("model.npz")             a model of ours, or a file of Keras, PyTorch, ...
    model = model.replace_head(["cat", "dog"])   a new classifier on the same backbone
    model.freeze("all")                          everything but the classifier
    logits = model.forward(x)                    x: preprocessed float32 (N, H, W, 3); model.recipe makes it from photos
    header = model.emit("my_model")              int8, as one C header

    network = model.deploy()                     the int8 network as it goes into a header, without its constant channels
    network = deployable("quantised.tflite")     the same of a quantised file, or of a model of ours

In: files, photos, arrays. Out: the same, and new models; only freeze() and what trains change a model in place. Left out: the course of
a whole training run from a folder to files (transfer.py).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import golden, weights
from .architectures import blocks, build, complete, feature_node
from .engine import Values
from .errors import MinitlError
from .files import FOREIGN, printable, write_atomically
from .folding import fold
from .golden import TOLERANCE, Finding
from .graph import Graph
from .images import PhotoError, Recipe, read_photos
from .layers import Array, Dense
from .neither import Neither, Rule
from .quantize import Calibration, calibrate, quantise
from .reference import softmax
from .version import __version__
from .weights import Weights

if TYPE_CHECKING:  # int8 and foreign files import what they need: a prediction in float is quicker without
    from . import int8_engine
    from .constant_channels import Removal
    from .emit_c import About, Figures, Header
    from .importers import Imported
    from .integer import IntegerGraph

VIEWS: dict[str, dict[str, Any]] = {
    "centre": {"resize": "crop", "crop_fraction": 0.875},
    "square": {"resize": "crop", "crop_fraction": 1.0},
    "whole": {"resize": "squash"},
}
"""What a network sees of a photo: the middle, as most of ImageNet's networks were tested; the largest box of its shape; all, squashed."""

CALIBRATION_PHOTOS = 256
"""Photos of the training part, chosen by content; calibration takes about as long as reading them."""


@dataclass(frozen=True)
class Answer:
    """What a model says about one photo: (class name, probability) from the likeliest down; or, where it cannot be read, why not.

    neither: it shows none of them, as far as the model was told how to know (neither.py).
    """

    path: Path
    classes: list[tuple[str, float]]
    problem: str = ""
    neither: bool = False


class Model:
    """A network with weights and everything needed to use them. See the head of this file."""

    def __init__(self, content: Weights) -> None:
        self._weights = content
        self.graph: Graph = content.graph()
        self._made: tuple[Any, dict[tuple[str, ...], Values]] = None, {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the engine is made anew, since it holds addresses."""
        return {**self.__dict__, "_made": (None, {})}

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
    def neither(self) -> Neither | None:
        """How it knows photos of none of its classes; None where it was never told, or has changed since."""
        return self._weights.neither

    @property
    def classes(self) -> list[str]:
        """Names of the outputs; 'class 0', 'class 1', ... where the file does not know them. [] without a classifier."""
        return self._weights.classes or _numbered(self.arguments["classes"] or 0)

    def named(self, classes: Sequence[str]) -> Model:
        """The same with other names for its outputs. MinitlError unless there is one for each."""
        self.needs_classifier()
        return Model(replace(self.content(), classes=_names(classes, self.arguments["classes"])))

    def viewing(self, part: str) -> Model:
        """The same, for another part of every photo: one of VIEWS. Where what matters lies at the edges, seeing more pays."""
        if part not in VIEWS:
            raise MinitlError(f"a view is one of {', '.join(VIEWS)}, found {part!r:.80}")
        content = self.content()
        return Model(replace(content, recipe=replace(content.recipe, **VIEWS[part]), calibration={}, neither=None, golden=None))

    # ---- what it computes

    def forward(self, x: Array) -> Array:
        """Preprocessed images (N, H, W, 3) float32 -> logits (N, classes) float32; features where there is no classifier."""
        return self._evaluate(x, self.graph.output)[0]

    def features(self, x: Array) -> Array:
        """Preprocessed images (N, H, W, 3) float32 -> what the classifier reads (N, C) float32."""
        return self._evaluate(x, self.feature_node)[0]

    def _evaluate(self, x: Array, *nodes: str, engine: Values | None = None) -> list[Array]:
        x = np.ascontiguousarray(x, np.float32)
        if x.shape[1:] != self.graph.input_shape:
            raise MinitlError(f"the network takes images (N, {', '.join(map(str, self.graph.input_shape))}), found {x.shape}")
        found = (engine or self._engine(nodes)).run(x)
        values = [found[node] for node in nodes]
        if not all(np.isfinite(value).all() for value in values):
            raise MinitlError("the network answers with numbers that are not finite (NaN or infinity): its weights are damaged")
        return values

    def _engine(self, nodes: tuple[str, ...]) -> Values:
        """Computes these nodes with the weights of now: one made before, unless they have changed since.

        Sums of all their bits, and of those of every seventh weight, tell: a tenth of the time of one photo, where a hash would take half.
        """
        arrays = [np.ascontiguousarray(array).reshape(-1).view(np.uint32) for array in self.graph.arrays().values()]
        now = self.graph, [(int(bits.sum()), int(bits[::7].sum())) for bits in arrays]
        state, made = self._made  # which another thread may replace
        if state != now:
            made = {}
        if nodes not in made:
            made[nodes] = Values(self.graph, nodes)
        self._made = now, made
        return made[nodes]

    def logits(self, pixels: Array) -> Array:
        """Prepared photos (N, H, W, 3) uint8 -> what the float network answers (N, classes) float32."""
        return self.forward(self.recipe.normalise(pixels))

    def predict(self, photos: str | Path | Sequence[str | Path], int8: bool = False) -> list[Answer]:
        """An Answer for every photo, all classes sorted by probability. A photo that cannot be read gets an Answer with `problem`."""
        self.needs_classifier()
        if int8:
            return self.deploy().predict(photos)
        engine = self._engine((self.graph.output, self.feature_node))
        return _answers(photos, self.recipe, self.classes, lambda pixels: self.judge(pixels, engine))

    def judge(self, pixels: Array, engine: Values | None = None) -> tuple[Array, Array]:
        """Prepared photos (N, H, W, 3) uint8 -> logits (N, classes), and whether each shows none of the classes (N,) bool.

        engine: what predict has made for all its photos.
        """
        logits, features = self._evaluate(self.recipe.normalise(pixels), self.graph.output, self.feature_node, engine=engine)
        rule = replace(self.neither, threshold_int8=self.neither.threshold).rule() if self.neither else None
        return logits, rule.is_neither(features) if rule else np.zeros(len(logits), bool)

    # ---- how it changes

    def freeze(self, what: str = "all", more: bool = False) -> Model:
        """'all': everything but the classifier; 'none': nothing; a layer: everything up to it; or a pattern of Graph.match.

        Several may be given, with commas between. Replaces the mask that was there, unless `more` is asked for. Returns self.
        """
        if not more:
            self.graph.frozen = {}
        for part in what.split(","):
            if part == "all":
                self.graph.freeze(".." + self.feature_node)
            elif part != "none":
                plain = not re.search(r"[*?\[=]|^\.\.", part)
                self.graph.freeze(".." + part if plain else part)
        return self

    def unfreeze(self, what: str = "all") -> Model:
        """'all': everything; a number: so many blocks of the backbone, counted from the classifier; a layer or a block: from it on.

        What lies below stays as it is. Returns self.
        """
        names, blocks = [node.name for node in self.graph.nodes], self.blocks()
        most = len(blocks) - 1
        if what == "all":
            first = names[0]
        elif what.isascii() and what.isdigit():
            if not 1 <= int(what) <= most:
                raise MinitlError(f"the backbone has {most} blocks, {', '.join(list(blocks)[:-1])}: expected 1 to {most}, found {what}")
            first = list(blocks.values())[-1 - int(what)][0]
        else:
            first = blocks[what][0] if what in blocks else self.graph.match(what)[0]
        for name in names[names.index(first) :]:
            self.graph.frozen.pop(name, None)
        return self

    def blocks(self) -> dict[str, list[str]]:
        """{block: its layers} from the image up; the last one is the classifier with the features that it reads."""
        return blocks(self._weights.architecture, **self._weights.arguments)

    @property
    def pretrained(self) -> bool:
        """Whether the weights are more than random numbers, as far as their origin says."""
        origin = self.provenance.get("backbone", self.provenance)
        return "training" in self.provenance or not str(origin.get("source", "") if isinstance(origin, dict) else "").startswith("random")

    def replace_head(
        self, classes: Sequence[str], seed: int = 0, dropout: float = 0.0, hidden: Sequence[int] = (), cut: str | None = None
    ) -> Model:
        """A new model with the same backbone and a fresh classifier for these classes; its numbers are drawn from the seed.

        hidden: units of layers with ReLU between the features and the classifier. dropout: rate before each layer of the head.
        cut: the layer where the backbone ends from now on, and the features are taken.
        """
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise MinitlError(f"a classifier needs at least two different classes, found {', '.join(classes) or 'none'}")
        arguments = self.arguments | {"classes": len(classes), "dropout": dropout, "hidden": list(hidden)}
        arguments |= {} if cut is None else {"cut": cut}
        graph = build(self.architecture, **arguments).initialise(seed)
        for name in graph.match(".." + feature_node(self.architecture, **arguments)):
            if name in graph.params:
                if name not in self.graph.params:
                    raise MinitlError(f"these weights end at {self.arguments['cut']!r} and lack {name!r}: cut at a layer that they have")
                graph.params[name] = self.graph.params[name]
        provenance = {"backbone": self.provenance}
        return Model(replace(self._weights, arguments=arguments, arrays=graph.arrays(), classes=list(classes), calibration={}, frozen={},
                             provenance=provenance, neither=None, golden=None))  # fmt: skip

    def calibrate(self, pixels: Iterable[Array]) -> Model:
        """Measure what int8 needs to know of all values on photos (H, W, 3) uint8, at best those of the training. Returns self.

        What it knows of "neither" is forgotten, since its thresholds are those of the network before.
        """
        self._weights.neither = None
        images = (self.recipe.normalise(photo[None]) for photo in pixels)
        self._weights.calibration = calibrate(fold(self.graph), images)
        return self

    def tell_neither(self, neither: Neither | None) -> Model:
        """Answer from now on that a photo shows none of the classes where it does not, see neither.choose; None: never. Returns self."""
        self.needs_classifier()
        expected = (self.arguments["classes"], self.graph.shapes[self.feature_node][0])
        if neither is not None and neither.directions.shape != expected:
            raise MinitlError(f"'neither' is told for {neither.directions.shape} classes and features, the model has {expected}")
        self._weights.neither = neither
        return self

    def with_golden(
        self, given: Array, answer: Array, framework: str = "", version: str = "", node: str | None = None, tolerance: float = TOLERANCE
    ) -> Model:
        """Keep with the weights what the framework that they come from answered, for check(). Returns self.

        given: images (N, H, W, 3) uint8, or (N, H, W, 3) or (N, 3, H, W) float32 as the network takes them; at most 8. answer: the output
        (N, ...) float32, or its probabilities, or the value of `node`. tolerance: as a share of the largest number of the answer.
        """
        self._weights.golden = golden.make(given, answer, self.graph, node, tolerance, framework, version, self.graph.arrays())
        return self

    def check(self) -> Finding | None:
        """How what the network computes compares with that answer, and why it differs if it does; None where none was kept."""
        content = self.content()
        if content.golden is None:
            return None
        return golden.check(content.golden, content.architecture, content.arguments, content.arrays, content.recipe)

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

    def save_safetensors(self, path: str | Path) -> str:
        """Write the arrays under our names, and beside them what they mean, without calibration and `neither`. Returns as save does."""
        from .importers import safetensors, torch_state

        content = self.content()
        write_atomically(path, safetensors.write(content.arrays, torch_state.metadata(content.meta())))
        return content.content_hash()

    def quantise(self) -> IntegerGraph:
        """The int8 network. Raises MinitlError for a model that was never calibrated."""
        self.needs_classifier()
        if not self.calibration:
            raise MinitlError("this model was never calibrated, so int8 is not possible: train it with `minitl train`, or call calibrate()")
        graph = quantise(fold(self.graph), self.calibration, self.recipe)
        return replace(graph, watched=self.feature_node) if self.neither else graph

    def deploy(self, keep_constant: bool = False) -> Deployment:
        """The int8 network as it leaves Python. keep_constant: also the channels that no image can change; the answers are the same."""
        from . import constant_channels

        original = self.quantise()
        facts = self.provenance | {"model content hash": self.content().content_hash()}
        removal = None if keep_constant else constant_channels.remove(original)
        return Deployment(original, removal, self.classes, self.recipe, facts, model=self, neither=self.neither)

    def emit(self, name: str, file: str | None = None, keep_constant: bool = False) -> str:
        """deploy() as one C header; `name` begins every name in it, `file` is what it will be called (see emit_c.py)."""
        return self.deploy(keep_constant).emit(name, file)

    def needs_classifier(self) -> None:
        """Raises MinitlError for a backbone that ends in features."""
        if not isinstance(self.graph[self.graph.output].layer, Dense):
            raise MinitlError("this model ends in features and has no classifier: train one with `minitl train`")


def _answers(
    photos: str | Path | Sequence[str | Path], recipe: Recipe, classes: list[str], judge: Callable[[Array], tuple[Array, Array]]
) -> list[Answer]:
    """See Model.predict."""
    paths = [Path(photos)] if isinstance(photos, (str, Path)) else [Path(p) for p in photos]
    answers = []
    for path, found in read_photos(paths, recipe):
        if isinstance(found, PhotoError):
            answers.append(Answer(path, [], found.reason))
        else:
            logits, neither = judge(found[None])
            p = softmax(logits)[0]
            answers.append(Answer(path, [(classes[i], float(p[i])) for i in np.argsort(-p, kind="stable")], neither=bool(neither[0])))
    return answers


# ---- the int8 network


@dataclass(frozen=True)
class Deployment:
    """An int8 network and all that leaves Python with it.

    original: with all channels. removal: what is left without those that never change; None: all are kept. recipe: None where the input
    is no photo. provenance: for the header. notes: what a foreign file left open, for the user. model: the float network behind it, None
    for a file that was quantised elsewhere. neither: how it knows photos of none of the classes, if it does.
    """

    original: IntegerGraph
    removal: Removal | None
    classes: list[str]
    recipe: Recipe | None
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    model: Model | None = None
    neither: Neither | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the engines, which are made anew, since they hold addresses."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_engine", "_features")}

    @property
    def graph(self) -> IntegerGraph:
        """The network that is emitted and that runs; its logits are those of `original`, bit for bit."""
        return self.removal.graph if self.removal else self.original

    @property
    def summary(self) -> list[str]:
        """What was proved about constant channels, in sentences; [] where they are kept."""
        return [f"Constant channels: {line}" if i == 0 else line for i, line in enumerate(self.removal.summary())] if self.removal else []

    def named(self, classes: Sequence[str]) -> Deployment:
        """The same with other names for its outputs. MinitlError unless there is one for each."""
        return replace(self, classes=_names(classes, self.graph.tensors[self.graph.output].size))

    def figures(self) -> Figures:
        """Bytes of RAM and flash that a header states."""
        from .emit_c import figures

        return figures(self.graph, self.classes, self.rule)

    def pictures(self) -> Recipe:
        """The recipe. Raises MinitlError where the input is no photo."""
        if self.recipe is None:
            shape = "x".join(map(str, self.graph.tensors[self.graph.input].shape))
            raise MinitlError(f"the network's input ({shape}) is made from no photos that minitl knows of; export and report take it")
        return self.recipe

    def logits(self, pixels: Array) -> Array:
        """Prepared photos (N, H, W, 3) uint8 -> what the int8 network answers, as real numbers (N, classes) float32."""
        return self._real(self._engine.run(self.pictures().quantise_pixels(pixels))[self.graph.output])

    def _real(self, q: Array) -> Array:
        """What int8 logits stand for."""
        out = self.graph.tensors[self.graph.output]
        return ((q.astype(np.float32) - out.zero_point) * np.float32(out.scale)).astype(np.float32)

    def features(self, pixels: Array) -> Array:
        """Prepared photos (N, H, W, 3) uint8 -> what the classifier of a model of ours reads (N, C) int64, its zero point taken off."""
        assert self.model is not None, "a foreign file does not say where its features are"
        node = self.model.feature_node
        values = self._features.run(self.pictures().quantise_pixels(pixels))[node]
        return values.astype(np.int64) - self.original.tensors[node].zero_point

    @functools.cached_property
    def _engine(self) -> int8_engine.Engine | int8_engine.Plain:
        """Computes the output of `graph` and what is watched in it."""
        from .int8_engine import make

        return make(self.graph, [name for name in (self.graph.output, self.graph.watched) if name])

    @functools.cached_property
    def _features(self) -> int8_engine.Engine | int8_engine.Plain:
        """Computes what the classifier of a model of ours reads, all of it."""
        from .int8_engine import make

        return make(self.original, [self.original.watched or (self.model.feature_node if self.model else "")])

    @functools.cached_property
    def rule(self) -> Rule | None:
        """How `graph` knows photos of none of the classes, in integers; None where it does not."""
        if self.neither is None:
            return None
        if self.removal is None:
            return self.neither.rule()
        node, image = self.original.watched, self.original.tensors[self.original.input]
        values = self._features.run(np.zeros((1, *image.shape), np.int8))[node][0].astype(np.int64)
        kept = self.removal.kept[node]
        return self.neither.rule(kept, np.delete(values, kept) - self.original.tensors[node].zero_point)

    def judge(self, pixels: Array) -> tuple[Array, Array]:
        """As Model.judge, by the int8 network."""
        rule, watched = self.rule, self.graph.watched
        if rule is None:
            return self.logits(pixels), np.zeros(len(pixels), bool)
        values = self._engine.run(self.pictures().quantise_pixels(pixels))
        features = values[watched].astype(np.int64) - self.graph.tensors[watched].zero_point
        return self._real(values[self.graph.output]), rule.is_neither(features)

    def predict(self, photos: str | Path | Sequence[str | Path]) -> list[Answer]:
        """As Model.predict, by the int8 network."""
        return _answers(photos, self.pictures(), self.classes, self.judge)

    def emit(self, name: str, file: str | None = None) -> str:
        """The network as one C header; see Model.emit."""
        from .emit_c import emit

        return emit(self.graph, self._about(name, file))

    def emit_blob(self, name: str, file: str | None = None) -> Header:
        """The same with the weights as bytes in a file of their own."""
        from .emit_c import emit_blob

        return emit_blob(self.graph, self._about(name, file))

    def _about(self, name: str, file: str | None) -> About:
        from .emit_c import About

        return About(name, self.classes, self.recipe, self.provenance, __version__, file or "", self.summary, self.rule)


def deployable(path: str | Path, keep_constant: bool = False) -> Deployment:
    """The int8 network of a file: a trained model of ours (.npz), or an int8 or uint8 .tflite as it is, of whatever supported layers.

    keep_constant: as Model.deploy. Raises MinitlError for anything else; a float network is told what to do.
    """
    name, head = printable(Path(path).name), bytes(_head(path))
    if weights.is_npz(head):
        return load(path).deploy(keep_constant)
    from . import importers
    from .importers import hdf5, tflite

    if head.startswith(hdf5.SIGNATURE):
        raise MinitlError(f"{name}: {FLOAT}")
    if head[4:8] != tflite.SIGNATURE:
        return load(path).deploy(keep_constant)
    return importers.in_plain_words(lambda data, name: _quantised(data, name, keep_constant), importers.file_bytes(path), name)


FLOAT = "this network computes in float; `minitl train PHOTOS --weights FILE -o OUT` quantises it: give the OUT/model.npz that it writes"


def _quantised(data: bytes, name: str, keep_constant: bool) -> Deployment:
    """See deployable; the bytes of a .tflite file called `name`."""
    from . import constant_channels
    from .importers import tflite, tflite_int8

    if not any(tensor.dtype in (np.int8, np.uint8) and tensor.data is None for tensor in tflite.parse(data, name).tensors):
        raise MinitlError(f"{name}: {FLOAT}")
    found = tflite_int8.read(data, name)
    removal = None if keep_constant else constant_channels.remove(found.graph)
    count = found.graph.tensors[found.graph.output].size
    classes = [printable(text) for text in found.classes] if found.classes else _numbered(count)
    facts = found.provenance | ({"notes": found.notes} if found.notes else {})
    return Deployment(found.graph, removal, classes, found.recipe, facts, found.notes)


def _numbered(count: int) -> list[str]:
    """Names for classes that have none."""
    return [f"class {i}" for i in range(count)]


def _names(classes: Sequence[str], count: int) -> list[str]:
    """Names from elsewhere, checked."""
    if len(classes) != count:
        raise MinitlError(f"the network has {count} classes, found {len(classes)} names: give one for each, in the order of its outputs")
    if bad := [i for i, name in enumerate(classes) if not name or printable(name) != name]:
        raise MinitlError(f"the name of class {bad[0]}, {classes[bad[0]]!r}, is empty or holds characters that cannot be shown")
    return list(classes)


# ---- where models come from


def _head(path: str | Path, whole: Callable[[bytes], bool] = lambda head: False) -> bytes | memoryview:
    """The first bytes of a file; all of it, read-only, where whole(those). MinitlError where it cannot be read."""
    expected = f"expected minitl's .npz, {FOREIGN}"
    if os.path.exists(path) and not os.path.isfile(path):
        raise MinitlError(f"{printable(path)} is {'a folder' if os.path.isdir(path) else 'no ordinary file'}; {expected}")
    try:
        with open(path, "rb") as file:
            head = file.read(weights.HEAD_BYTES)
            if not whole(head):
                return head
            file.seek(0)
            everything = np.empty(os.fstat(file.fileno()).st_size, np.uint8)  # in pages of 2 MB: a quarter of the time
            return everything.data[: file.readinto(everything.data)].toreadonly()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise MinitlError(f"{printable(path)} cannot be read ({getattr(error, 'strerror', None) or error}); {expected}") from None


BUNDLED = "minitl_mobilenet_v1_0.25_96"
"""The backbone that comes with the package: weights/README.md says how it was made."""


def bundled() -> Path:
    """The file of BUNDLED: in an installed package, or in weights/ of a clone."""
    here = Path(__file__).parent
    places = [folder / f"{BUNDLED}.npz" for folder in (here / "bundled", here.parent / "weights")]
    found = next((path for path in places if path.exists()), None)
    if found is None:
        looked = " and ".join(printable(path.parent) for path in places)
        raise MinitlError(f"{BUNDLED}.npz is missing from this installation (looked in {looked}): install it anew")
    return found


def _fetched(name: str | Path) -> str | Path:
    """The file that `minitl weights pull NAME` has made; whatever is no name of the manifest, as it is."""
    from .manifest import ENTRIES

    entry = ENTRIES.get(str(name))
    if entry and not entry.kept.exists():
        raise MinitlError(f"{name} has not been fetched yet: `minitl weights pull {name}` does so, once")
    return entry.kept if entry else name


def load(path: str | Path) -> Model:
    """A model from a file: minitl's own .npz, or a foreign one of importers.read, recognised by content. MinitlError for anything wrong.

    BUNDLED is the one that comes with the package; names of the manifest are known once `minitl weights pull` has fetched them.
    """
    return read(path)[0]


def read(path: str | Path) -> tuple[Model, Imported | None]:
    """As load; and, of a foreign file, what its reader found: what the file calls each array, and what was not used."""
    if not os.path.exists(path):
        path = bundled() if path == BUNDLED else _fetched(path)
    data = _head(path, weights.is_npz)
    if weights.is_npz(data):
        return Model(weights.parse(data, printable(path))), None
    from . import importers

    found = importers.read(path)
    classes = [printable(name) for name in found.classes] if found.classes else None
    return Model(Weights(found.architecture, found.arguments, found.arrays, found.recipe, classes, provenance=found.provenance)), found


RANDOM = re.compile(r"random:(\w+?)(?:_([0-9]*\.?[0-9]+))?_([0-9]{1,5})(?:x([0-9]{1,5}))?", re.ASCII)


def find(name: str, seed: int = 0) -> Model:
    """A model by file or by name.

    'random:mobilenet_v1_0.25_96' is that network at 96x96 with weights drawn from the seed, for training from
    scratch; 'random:inception_v3_139' has alpha 1.
    """
    if os.path.exists(name) or not name.startswith("random:"):
        return load(name)
    match = RANDOM.fullmatch(name)
    if not match:
        raise MinitlError(f"{name!r} is no network: expected random:NETWORK_ALPHA_SIZE such as random:mobilenet_v1_0.25_96")
    height, width = int(match[3]), int(match[4] or match[3])
    return random_backbone(match[1], {"alpha": float(match[2] or 1), "input_shape": [height, width, 3]}, Recipe(height, width), name, seed)


def random_backbone(architecture: str, arguments: dict[str, Any], recipe: Recipe, source: str, seed: int = 0) -> Model:
    """A network without classifier, all weights drawn from the seed."""
    arguments = arguments | {"classes": None}
    graph = build(architecture, **arguments).initialise(seed)
    return Model(Weights(architecture, complete(architecture, arguments), graph.arrays(), recipe, provenance={"source": source}))
