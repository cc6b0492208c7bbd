"""Onto our names: what a foreign file holds, layer by layer -> a network of architectures/ and its arrays.

Enters: the layers that a reader found, in order, as `Seen`: kernels already in our layouts, strides, padding and connections where the file
tells them. Leaves: which network it is, with which arguments, and every array under our name. There is no list of layers here: the
network itself (architectures.build) says what must be there, so a new network needs no line in this file.

A layer that differs from the network's in kind, window, stride, padding, activation or connections is refused by name: a network that is
only similar would run without an error and be wrong. Left out: anything about a format (the readers).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..architectures import ARCHITECTURES, build, complete, parameters
from ..errors import MinitlError
from ..geometry import Pair, resolve
from ..graph import INPUT, Graph
from ..images import Recipe
from ..layers import Add, AveragePool, BatchNorm, Concat, Conv2D, Dense, DepthwiseConv2D, GlobalAveragePool, Layer, MaxPool, ReLU, ReLU6

IMAGE = -1
"""The network's input in `Seen.inputs`."""
ABSENT = {"bias": "(not in the file: zeros)", "gamma": "(not in the file: ones)"}
SIZES = (96, 128, 160, 192, 224, 256, 299)  # the published inputs; part of the official file names
ALPHAS = (0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # published widths; others are tried after these
OVERRIDE = " (the file does not say; to use another, replace `recipe` of what importers.read returns)"
OLD_NAMES = {"Logits": "predictions"}  # Keras' names of before 2019 -> ours
TORCH_MEAN, TORCH_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # 255 * (.485, .456, .406) and 255 * (.229, .224, .225)
Triple = tuple[float, float, float]  # red, green, blue
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
ACTIVATIONS: dict[type[Layer], str] = {ReLU: "relu", ReLU6: "relu6"}
WORDS: dict[type[Layer], str] = {
    Conv2D: "a convolution",
    DepthwiseConv2D: "a depthwise convolution",
    Dense: "a dense layer",
    Add: "a sum of two",
    GlobalAveragePool: "a global average pool",
    MaxPool: "a max pool",
    AveragePool: "an average pool",
    Concat: "images side by side",
}


@dataclass
class Imported:
    """What every reader hands back: enough to build the network and to feed it.

    architecture, arguments: for architectures.build. arrays: float32, {'node/name': array}, complete for that network. classes: names of
    the outputs if the file has them. provenance: format, file, sha256, notes (what was assumed, in sentences).
    mapping: (what the file calls a tensor, our 'node/array'), in the network's order; what the file lacks and may lack stands there as
    one of ABSENT. unused: what the file calls the tensors that have no place in the network, and are none of its weights.
    """

    architecture: str
    arguments: dict[str, Any]
    arrays: dict[str, np.ndarray]
    recipe: Recipe
    classes: list[str] | None
    provenance: dict[str, Any]
    mapping: list[tuple[str, str]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


class Fitted(NamedTuple):
    """What fit() finds: see Imported."""

    architecture: str
    arguments: dict[str, Any]
    arrays: dict[str, np.ndarray]
    mapping: list[tuple[str, str]]


@dataclass(eq=False)
class Seen:
    """A layer that a file holds, with its bias, its BatchNorm and its activation. None: the file does not tell.

    label: what the file calls it, for errors. inputs: indices into the list of Seen, or IMAGE; where the first layer
    has None, only layers with kernels are compared. window: of a pool (None: global).
    padding: 'same', 'valid', or four numbers. activation: 'linear', 'relu', 'relu6'. norm: the arrays of NORM (gamma may be missing) or {}.
    names: what the file calls its arrays, {'kernel', 'bias' or one of NORM: name}; else label and part.
    """

    label: str
    kind: type[Layer]
    inputs: tuple[int, ...] | None = None
    kernel: np.ndarray | None = None
    bias: np.ndarray | None = None
    strides: Pair | None = None
    padding: str | tuple[int, int, int, int] | None = None
    window: Pair | None = None
    activation: str | None = None
    norm: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Outputs of a layer with a kernel."""
        return 0 if self.kernel is None else int(self.kernel.shape[-1])


@dataclass
class Step:
    """The same from the network's side: a node with the BatchNorm and the activation that follow it."""

    name: str
    layer: Layer
    inputs: tuple[int, ...]
    shape: tuple[int, ...]  # of its first input
    norm: str | None = None
    norm_parts: tuple[str, ...] = ()
    activation: str = "linear"

    @property
    def kernel_shape(self) -> tuple[int, ...] | None:
        """Shape of its kernel, None if it has none."""
        return self.layer.param_shapes(self.shape).get("kernel")


def steps(graph: Graph) -> list[Step]:
    """The nodes of a network that a foreign file can be compared with, BatchNorms and activations joined to what they follow."""
    found: list[Step] = []
    source = {INPUT: IMAGE}  # node -> index of the step that its value belongs to
    for node in graph.nodes:
        first = source[node.inputs[0]]
        if isinstance(node.layer, BatchNorm):
            found[first].norm, found[first].norm_parts = node.name, tuple(node.layer.param_shapes((1,)))
        elif type(node.layer) in ACTIVATIONS:
            found[first].activation = ACTIVATIONS[type(node.layer)]
        elif type(node.layer) in WORDS:
            found.append(Step(node.name, node.layer, tuple(source[name] for name in node.inputs), graph.input_shapes(node)[0]))
            first = len(found) - 1
        source[node.name] = first
    return found


Listed = TypeVar("Listed", Seen, Step)


def ordered(items: list[Listed]) -> list[Listed]:
    """The same in the order of a walk from the last one towards the image, inputs first: the same for the same network, however listed.

    Of a sum, the input that is further from the image comes first. What the last one does not need stays behind. `inputs` are renumbered.
    """
    inputs = [item.inputs or () for item in items]
    far: list[int] = []
    for reads in inputs:
        far.append(1 + max((far[i] for i in reads if i != IMAGE), default=0))
    order: list[int] = []
    place = {IMAGE: IMAGE}
    stack = [len(items) - 1]
    while stack:
        at = stack[-1]
        item, reads = items[at], inputs[at]
        if (item.kind if isinstance(item, Seen) else type(item.layer)) is Add:
            reads = tuple(sorted(reads, key=lambda i: -1 if i == IMAGE else -far[i]))
        before = next((i for i in reads if i not in place), None)
        if before is not None:
            stack.append(before)
            continue
        if stack.pop() not in place:
            place[at] = len(order)
            order.append(at)
    for at in range(len(items)):
        if at not in place:
            place[at] = len(order)
            order.append(at)
    return [replace(items[at], inputs=tuple(place[i] for i in inputs[at])) for at in order]


def _most(seen: Iterable[Seen], kind: type[Layer]) -> int:
    return sum(s.kind is kind for s in seen)


@functools.cache
def _counts(architecture: str) -> tuple[int, int]:
    """(depthwise, other) convolutions of a network without its classifier."""
    kinds = [type(step.layer) for step in steps(build(architecture, classes=None))]
    return kinds.count(DepthwiseConv2D), kinds.count(Conv2D)


def recognise(seen: list[Seen], what: str) -> str:
    """The network that has as many convolutions as the file. `what` names the file in errors.

    Depthwise ones tell it: one of the others may be the classifier, and which is wrong is better said by the comparison.
    """
    depthwise, others = _most(seen, DepthwiseConv2D), _most(seen, Conv2D)
    for name in ARCHITECTURES:
        expected = _counts(name)
        if depthwise == expected[0] and (depthwise or others == expected[1]):
            return name
    known = ", ".join("{} has {} and {}".format(name, *_counts(name)) for name in ARCHITECTURES)
    raise MinitlError(f"{what} is another network: it has {depthwise} depthwise and {others} other convolutions ({known})")


def _expected(graph: Graph, connected: bool) -> list[Step]:
    """The steps of a network in the order of the file's: with branches side by side, that of ordered(); of a list, those with kernels."""
    found = steps(graph)
    if not connected:
        return [step for step in found if step.kernel_shape]
    return ordered(found) if any(type(step.layer) is Concat for step in found) else found


def _alpha(architecture: str, convolutions: list[Seen], arguments: dict[str, Any], connected: bool) -> float:
    """The width multiplier that gives the most layers their number of channels; a published one if possible."""
    kind = DepthwiseConv2D if _most(convolutions, DepthwiseConv2D) else Conv2D
    widest = [s.channels for s in convolutions if s.kind is kind][-1]
    at_1 = [s.kernel_shape for s in _expected(build(architecture, **arguments), connected) if type(s.layer) is kind][-1]
    assert at_1 is not None
    ratio = widest / at_1[-1]
    guesses = [*ALPHAS, ratio, *(round(ratio + d / 100, 2) for d in (0, 1, -1, 2, -2, 3, -3))]
    best, most = 1.0, -1
    for alpha in guesses:
        if not (0.05 <= alpha <= 4 and abs(alpha - ratio) < 0.1):
            continue
        graph = build(architecture, **arguments, alpha=alpha)
        expected = [s.layer.output_shape(s.shape)[-1] for s in _expected(graph, connected) if s.kernel_shape]
        same = sum(a == s.channels for a, s in zip(expected, convolutions, strict=False))
        if same > most:
            best, most = alpha, same
        if same == len(convolutions):  # none can be better; to build a network takes as long as to read a file
            break
    return best


def fit(seen: list[Seen], what: str, input_shape: tuple[int, int, int], paddings: tuple[str, ...], **known: Any) -> Fitted:
    """Which network the layers are: (architecture, all its arguments, arrays, mapping). `what` names the file in errors.

    paddings: the padding rules to try, the one that the source uses first; several can mean the same numbers. known: arguments that the
    reader knows (epsilon, momentum). Raises MinitlError naming the first layer that no network of ours has in that place.
    """
    architecture = recognise(seen, what)
    takes = parameters(architecture)
    if not _most(seen, GlobalAveragePool) and not _most(seen, Dense):  # features before pooling: we pool
        seen = [*seen, Seen("the end", GlobalAveragePool, (len(seen) - 1,))]
    connected = seen[0].inputs is not None
    seen = ordered(seen) if connected and _most(seen, Concat) else seen
    convolutions = [s for s in seen if s.kind in (Conv2D, DepthwiseConv2D)]
    dense = [s for s in seen if s.kind is Dense]
    if seen[-1] in convolutions:  # Keras' V1 classifies with a 1x1 convolution
        dense.append(convolutions.pop())
    given: dict[str, Any] = {}
    flat = connected and not _most(seen, GlobalAveragePool)  # of an image of one pixel, flattening and pooling are the same
    if "top" in takes and dense and dense[0].kernel is not None and (flat or len(dense[0].kernel) != convolutions[-1].channels):
        given["top"], dense = True, dense[2:]
    given |= {
        "input_shape": list(input_shape),
        "classes": dense[-1].channels if dense else None,
        "hidden": [s.channels for s in dense[:-1]],
        "activation": convolutions[0].activation if convolutions[0].activation in ("relu", "relu6") else "relu6",
        "batch_norm": bool(convolutions[0].norm),
        "use_bias": bool(convolutions[0].norm) and convolutions[0].bias is not None,
        **known,
    }
    arguments = {name: value for name, value in given.items() if name in takes}
    try:
        arguments["alpha"] = _alpha(architecture, convolutions, arguments, connected)
    except MinitlError as problem_found:
        raise MinitlError(f"{what} cannot be used: {problem_found}") from None
    seen = seen if connected else [s for s in seen if s.kernel is not None]
    problem: MinitlError | None = None
    for padding in paddings:
        chosen = {**arguments, "padding": padding} if "padding" in takes else arguments
        graph = build(architecture, **chosen)
        try:
            arrays, mapping = _match(seen, _expected(graph, connected), f"{what} is not {architecture} alpha {arguments['alpha']:g}")
        except _PaddingError as error:
            problem = problem or MinitlError(str(error))
            continue
        _check_numbers(arrays, what)
        return Fitted(architecture, complete(architecture, chosen), graph.load(arrays).arrays(), mapping)
    assert problem is not None
    raise problem


class _PaddingError(MinitlError):
    """Everything agreed but the padding: another rule may fit."""


def _match(seen: list[Seen], expected: list[Step], refusal: str) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """Compare layer by layer. Returns the arrays under our names, and what the file calls each of them."""
    arrays: dict[str, np.ndarray] = {}
    mapping: list[tuple[str, str]] = []
    for s, step in zip(seen, expected, strict=False):
        kernel, kind = s.kernel, s.kind
        if type(step.layer) is Dense and kind is Conv2D and kernel is not None and kernel.shape[:2] == (1, 1):
            kernel, kind = kernel[0, 0], Dense  # a 1x1 convolution of one pixel is a dense layer

        def differs(of: str, has: object, needs: object, label: str = s.label, name: str = step.name) -> str:
            return f"{refusal}: {label} has {of} {has}, {name} needs {needs}"

        if kind is not type(step.layer):
            raise MinitlError(f"{refusal}: {s.label} is {WORDS[kind]}, expected {WORDS[type(step.layer)]} ({step.name})")
        if kernel is not None and kernel.shape != step.kernel_shape:
            raise MinitlError(differs("a kernel of shape", kernel.shape, step.kernel_shape))
        reads, needs_read = (s.inputs, step.inputs) if kind is Concat else (sorted(s.inputs or ()), sorted(step.inputs))
        if s.inputs is not None and reads != needs_read:
            names = [seen[i].label if i != IMAGE else "the image" for i in s.inputs]
            needs = [seen[i].label if i != IMAGE else "the image" for i in step.inputs]
            raise MinitlError(f"{refusal}: {s.label} reads {' and '.join(names)}, {step.name} needs {' and '.join(needs)}")
        if s.activation is not None and s.activation != step.activation:
            raise MinitlError(differs("the activation", s.activation, step.activation))
        if type(step.layer) is GlobalAveragePool and s.window not in (None, step.shape[:2]):
            raise MinitlError(differs("a window of", s.window, f"all of {step.shape[:2]}"))
        if isinstance(step.layer, (Conv2D, DepthwiseConv2D, MaxPool, AveragePool)):
            if s.window is not None and s.window != step.layer.window:
                raise MinitlError(differs("a window of", s.window, step.layer.window))
            if s.strides is not None and s.strides != step.layer.strides:
                raise MinitlError(differs("strides", s.strides, step.layer.strides))
            if s.padding is not None:
                h, w = step.shape[:2]
                pads, needs_pads = resolve(s.padding, h, w, step.layer.window, step.layer.strides), step.layer.pads(step.shape)
                if pads != needs_pads:
                    raise _PaddingError(differs("padding (top, bottom, left, right)", pads, needs_pads))
        if bool(step.norm) != bool(s.norm):
            raise MinitlError(
                f"{refusal}: {s.label} has {'a' if s.norm else 'no'} BatchNorm, {step.name} has {'one' if step.norm else 'none'}"
            )
        if wrong := [array.shape for array in s.norm.values() if array.shape != (s.channels,)]:
            raise MinitlError(differs("a BatchNorm of shape", wrong[0], (s.channels,)))
        norm, bias = dict(s.norm), s.bias
        sources = {part: s.names.get(part, f"{s.label}: {part}") for part in ("kernel", "bias", *NORM)}
        if kernel is not None and "gamma" in norm and "gamma" not in step.norm_parts:  # gamma (Wx - m) / s = (gamma Wx - gamma m) / s
            gamma = norm.pop("gamma")
            kernel, norm["moving_mean"] = kernel * gamma, norm["moving_mean"] * gamma
            bias = None if bias is None else bias * gamma
            mapping.append((sources["gamma"], f"{step.name}/kernel"))
        if "gamma" in step.norm_parts and "gamma" not in norm:
            norm["gamma"], sources["gamma"] = np.ones(s.channels, np.float32), ABSENT["gamma"]
        if kernel is not None and "bias" in step.layer.param_shapes(step.shape):
            if bias is None and step.norm:
                raise MinitlError(f"{refusal}: {s.label} has no bias, {step.name} needs one")
            if bias is None:
                bias, sources["bias"] = np.zeros(s.channels, np.float32), ABSENT["bias"]
        elif bias is not None:
            raise MinitlError(f"{refusal}: {s.label} has a bias, {step.name} has none")
        own = {"kernel": kernel, "bias": bias}
        for node, parts in ((step.name, own), (step.norm, {part: norm[part] for part in NORM if part in norm})):
            for part, array in parts.items():
                if array is not None:
                    arrays[f"{node}/{part}"] = array
                    mapping.append((sources[part], f"{node}/{part}"))
    if len(seen) != len(expected):
        extra = (
            f"{seen[len(expected)].label} follows where it ends" if len(seen) > len(expected) else f"{expected[len(seen)].name} is missing"
        )
        raise MinitlError(f"{refusal}: {extra}")
    return arrays, mapping


def _check_numbers(arrays: dict[str, np.ndarray], what: str) -> None:
    """Refuse what would turn every prediction into NaN, by name. Converts to float32 in place."""
    for name, array in arrays.items():
        with np.errstate(over="ignore"):
            arrays[name] = np.ascontiguousarray(array, np.float32)
        bad = np.count_nonzero(~np.isfinite(arrays[name]))
        if bad:
            raise MinitlError(f"{what} is damaged: {bad} of {array.size} numbers of {name} are NaN or infinite")


def is_visual_wake_words(architecture: str, arguments: dict[str, Any]) -> bool:
    """MLPerf Tiny's person detector, the only published MobileNet with plain ReLUs and two classes: no file says its preprocessing."""
    return architecture == "mobilenet_v1" and arguments["activation"] == "relu" and arguments["classes"] == 2


def size_from_name(what: str, usual: int, notes: list[str]) -> tuple[int, int]:
    """Height and width from a file name such as mobilenet_2_5_224_tf_no_top.h5, ..._r224_in1k or mobilenetv2_96x96-ff0e83d8.pth."""
    for text in re.findall(r"(?<![0-9a-z.])r?(\d{2,3})(?:x\1)?(?![0-9a-z])", what.lower()):
        if int(text) in SIZES:
            notes.append(f"input size {text} x {text} taken from the file's name")
            return int(text), int(text)
    notes.append(f"input size {usual} x {usual} assumed: neither the file nor its name says it")
    return usual, usual


def usual_recipe(architecture: str, arguments: dict[str, Any], notes: list[str]) -> Recipe:
    """The preprocessing of networks trained with Keras or TensorFlow, for files that do not say; appends a note that it was assumed."""
    height, width, _ = arguments["input_shape"]
    if is_visual_wake_words(architecture, arguments):
        notes.append(f"preprocessing assumed: MLPerf Tiny's visual wake words, pixels / 255, the whole picture squashed to size{OVERRIDE}")
        return Recipe(height, width, (0.0,) * 3, (255.0,) * 3, "squash")
    notes.append(f"preprocessing assumed: pixels / 127.5 - 1, centre crop 0.875, as Keras and TensorFlow train MobileNets{OVERRIDE}")
    return Recipe(height, width)


def torch_recipe(arguments: dict[str, Any], notes: list[str]) -> Recipe:
    """The preprocessing of networks trained with PyTorch (torchvision's constants), for files that do not say; notes the assumption."""
    height, width, _ = arguments["input_shape"]
    notes.append(f"preprocessing assumed: pixels / 255, torchvision's mean and std, centre crop 0.875, as PyTorch trains{OVERRIDE}")
    return Recipe(height, width, TORCH_MEAN, TORCH_STD)


def rescaled(scale: np.ndarray, offset: np.ndarray, whole: bool, fail: Callable[[str], MinitlError]) -> tuple[Triple, Triple, bool]:
    """(mean, std, whether it takes pixels 0..255) of a graph that begins with scale * raw + offset, float64 (3,) each.

    No file says whether raw means pixels 0..255 or pixels / 255. The raw value that becomes 0 lies among the pixels, so above 1 they are
    0..255 and above 0 they are / 255; where it is 0, nobody makes pixels / 255 ten times smaller. whole: 0..255 is known. fail: makes the
    error for numbers that are no scale.
    """
    if not (np.isfinite(scale).all() and np.isfinite(offset).all() and (scale > 0).all()):
        raise fail("its first operators rescale the picture by numbers that are no scale")
    with np.errstate(all="ignore"):
        zero = -offset / scale
        whole = whole or bool(zero.max() > 1 or (zero.max() <= 0 and scale.max() < 0.1))
        pixel = 1.0 if whole else 255.0
        (m0, m1, m2), (s0, s1, s2) = ([float(f"{v:.6g}") + 0.0 for v in values] for values in (zero * pixel, pixel / scale))
    return (m0, m1, m2), (s0, s1, s2), whole


def map_lines(found: Imported) -> list[str]:
    """Imported.mapping and unused as text: a line for each node of ours, then what is left on either side."""
    nodes: dict[str, list[tuple[str, str]]] = {}
    for source, ours in found.mapping:
        nodes.setdefault(ours.rpartition("/")[0], []).append((source, ours))
    absent = [ours for source, ours in found.mapping if source in ABSENT.values()]
    rows = [(_braces([a for a, b in pairs if b not in absent]), _braces([b for _, b in pairs])) for pairs in nodes.values()]
    width = min(max((len(left) for left, _ in rows), default=0), 80)
    lines = [f"  {left:<{width}}  ->  {right}" for left, right in rows]
    lines += [f"  not in the file: {', '.join(absent)}"] if absent else []
    lines += ["  no classifier in the file: it ends with the features"] if found.arguments.get("classes") is None else []
    kinds: dict[str, list[str]] = {}
    for name in found.unused:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    return lines + [f"  not used: {_braces(list(of_kind))}" for of_kind in kinds.values()]


def _braces(texts: list[str]) -> str:
    """['conv.weight', 'conv.bias'] -> 'conv.{weight, bias}'; what begins and ends alike, written once."""
    texts = list(dict.fromkeys(texts))
    if len(texts) < 2:
        return "".join(texts)
    rows = [re.findall(r"[^./: ]*[./: ]|[^./: ]+", text) for text in texts]
    start = _alike(rows)
    rest = ["".join(row[start:]) for row in rows]
    ends = [re.findall(r"[./: ][^./: ]*|[^./: ]+", text)[::-1] for text in rest]
    end = _alike(ends)
    inner = ", ".join("".join(row[end:][::-1]) for row in ends)
    return f"{''.join(rows[0][:start])}{{{inner}}}{''.join(ends[0][:end][::-1])}"


def _alike(rows: list[list[str]]) -> int:
    """How many first items all rows share, if each keeps one that is its own."""
    shortest = min(len(row) for row in rows) - 1
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
