"""Onto our names: what a foreign file holds, layer by layer -> a network of architectures/ and its arrays.

Enters: the layers that a reader found, in order, as `Seen`: kernels already in our layouts, strides, padding and connections where the file
tells them. Leaves: which network it is, with which arguments, and every array under our name. There is no list of layers here: the
network itself (architectures.build) says what must be there, so a new network needs no line in this file.

A layer that differs from the network's in kind, window, stride, padding, activation or connections is refused by name: a network that is
only similar would run without an error and be wrong. Left out: anything about a format (the readers).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..architectures import ARCHITECTURES, build, complete
from ..errors import MinitlError
from ..geometry import Pair, resolve
from ..graph import INPUT, Graph
from ..images import Recipe
from ..layers import Add, BatchNorm, Conv2D, Dense, DepthwiseConv2D, GlobalAveragePool, Layer, ReLU, ReLU6

IMAGE = -1
"""The network's input in `Seen.inputs`."""
ABSENT = "(not in the file: zeros)"
ALPHAS = (0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # published widths; others are tried after these
OVERRIDE = " (the file does not say; to use another, replace `recipe` of what importers.read returns)"
OLD_NAMES = {"Logits": "predictions"}  # Keras' names of before 2019 -> ours
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
ACTIVATIONS: dict[type[Layer], str] = {ReLU: "relu", ReLU6: "relu6"}
WORDS: dict[type[Layer], str] = {
    Conv2D: "a convolution",
    DepthwiseConv2D: "a depthwise convolution",
    Dense: "a dense layer",
    Add: "a sum of two",
    GlobalAveragePool: "a global average pool",
}


@dataclass
class Imported:
    """What every reader hands back: enough to build the network and to feed it.

    architecture, arguments: for architectures.build. arrays: float32, {'node/name': array}, complete for that network. classes: names of
    the outputs if the file has them. provenance: format, file, sha256, notes (what was assumed, in sentences).
    mapping: (what the file calls a tensor, our 'node/array'), in the network's order; what the file lacks and may lack stands there as
    ABSENT. unused: what the file calls the tensors that have no place in the network, and are none of its weights.
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
    has None, the list has no sums. window: of a pool (None: global).
    padding: 'same', 'valid', or four numbers. activation: 'linear', 'relu', 'relu6'. norm: the four arrays of NORM, or {}.
    names: what the file calls its arrays, {'kernel', 'bias' or one of NORM: name}; for those that are missing here, label and part.
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
            found[first].norm = node.name
        elif type(node.layer) in ACTIVATIONS:
            found[first].activation = ACTIVATIONS[type(node.layer)]
        elif type(node.layer) in WORDS:
            found.append(Step(node.name, node.layer, tuple(source[name] for name in node.inputs), graph.input_shapes(node)[0]))
            first = len(found) - 1
        source[node.name] = first
    return found


def _most(seen: Iterable[Seen], kind: type[Layer]) -> int:
    return sum(s.kind is kind for s in seen)


def recognise(seen: list[Seen], what: str) -> str:
    """The network that has as many depthwise convolutions as the file. `what` names the file in errors."""
    found = _most(seen, DepthwiseConv2D)
    expected = {name: sum(type(s.layer) is DepthwiseConv2D for s in steps(build(name))) for name in ARCHITECTURES}
    for name, count in expected.items():
        if count == found:
            return name
    known = ", ".join(f"{name} has {count}" for name, count in expected.items())
    raise MinitlError(f"{what} is another network: it has {found} depthwise convolutions ({known})")


def _alpha(architecture: str, seen: list[Seen], arguments: dict[str, Any]) -> float:
    """The width multiplier that gives the most layers their number of channels; a published one if possible."""
    widest = [s.channels for s in seen if s.kind is DepthwiseConv2D][-1]
    at_1 = [s.kernel_shape for s in steps(build(architecture, **arguments)) if type(s.layer) is DepthwiseConv2D][-1]
    assert at_1 is not None
    ratio = widest / at_1[-1]
    guesses = [*ALPHAS, ratio, *(round(ratio + d / 100, 2) for d in (0, 1, -1, 2, -2, 3, -3))]
    best, most = 1.0, -1
    for alpha in guesses:
        if not (0.05 <= alpha <= 4 and abs(alpha - ratio) < 0.1):
            continue
        expected = [s.layer.output_shape(s.shape)[-1] for s in steps(build(architecture, **arguments, alpha=alpha)) if s.kernel_shape]
        same = sum(a == s.channels for a, s in zip(expected, (s for s in seen if s.channels), strict=False))
        if same > most:
            best, most = alpha, same
    return best


def fit(seen: list[Seen], what: str, input_shape: tuple[int, int, int], paddings: tuple[str, ...], **known: Any) -> Fitted:
    """Which network the layers are: (architecture, all its arguments, arrays, mapping). `what` names the file in errors.

    paddings: the padding rules to try, the one that the source uses first; several can mean the same numbers. known: arguments that the
    reader knows (epsilon, momentum). Raises MinitlError naming the first layer that no network of ours has in that place.
    """
    architecture = recognise(seen, what)
    if seen[-1].kind is Conv2D and not _most(seen, GlobalAveragePool):  # features before pooling: we pool
        seen = [*seen, Seen("the end", GlobalAveragePool, (len(seen) - 1,))]
    convolutions = [s for s in seen if s.kind in (Conv2D, DepthwiseConv2D)]
    last = seen[-1]
    classes = last.channels if last.kind in (Dense, Conv2D) else None
    if classes is not None and last in convolutions:  # Keras' V1 classifies with a 1x1 convolution
        convolutions.remove(last)
    arguments: dict[str, Any] = {
        "input_shape": list(input_shape),
        "classes": classes,
        "activation": convolutions[0].activation if convolutions[0].activation in ("relu", "relu6") else "relu6",
        "batch_norm": bool(convolutions[0].norm),
        "use_bias": bool(convolutions[0].norm) and convolutions[0].bias is not None,
        **known,
    }
    try:
        arguments["alpha"] = _alpha(architecture, seen, arguments)
    except MinitlError as problem_found:
        raise MinitlError(f"{what} cannot be used: {problem_found}") from None
    problem: MinitlError | None = None
    for padding in paddings:
        graph = build(architecture, **arguments, padding=padding)
        expected = [s for s in steps(graph) if seen[0].inputs is not None or type(s.layer) is not Add]
        try:
            arrays, mapping = _match(seen, expected, f"{what} is not {architecture} alpha {arguments['alpha']:g}")
        except _PaddingError as error:
            problem = problem or MinitlError(str(error))
            continue
        _check_numbers(arrays, what)
        return Fitted(architecture, complete(architecture, {**arguments, "padding": padding}), graph.load(arrays).arrays(), mapping)
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
        if s.inputs is not None and sorted(s.inputs) != sorted(step.inputs):
            names = [seen[i].label if i != IMAGE else "the image" for i in s.inputs]
            needs = [seen[i].label if i != IMAGE else "the image" for i in step.inputs]
            raise MinitlError(f"{refusal}: {s.label} reads {' and '.join(names)}, {step.name} needs {' and '.join(needs)}")
        if s.activation is not None and s.activation != step.activation:
            raise MinitlError(differs("the activation", s.activation, step.activation))
        if type(step.layer) is GlobalAveragePool and s.window not in (None, step.shape[:2]):
            raise MinitlError(differs("a window of", s.window, f"all of {step.shape[:2]}"))
        if isinstance(step.layer, (Conv2D, DepthwiseConv2D)):
            if s.strides is not None and s.strides != step.layer.strides:
                raise MinitlError(differs("strides", s.strides, step.layer.strides))
            if s.padding is not None:
                h, w = step.shape[:2]
                pads, needs_pads = resolve(s.padding, h, w, step.layer.window, step.layer.strides), step.layer.pads(step.shape)
                if pads != needs_pads:
                    raise _PaddingError(differs("padding (top, bottom, left, right)", pads, needs_pads))
        parts: dict[str, np.ndarray | None] = {} if kernel is None else {f"{step.name}/kernel": kernel}
        needs_parts = set(step.layer.param_shapes(step.shape))
        if "bias" in needs_parts and kernel is not None:
            parts[f"{step.name}/bias"] = np.zeros(s.channels, np.float32) if s.bias is None and not step.norm else s.bias
        elif s.bias is not None:
            raise MinitlError(f"{refusal}: {s.label} has a bias, {step.name} has none")
        if bool(step.norm) != bool(s.norm):
            raise MinitlError(
                f"{refusal}: {s.label} has {'a' if s.norm else 'no'} BatchNorm, {step.name} has {'one' if step.norm else 'none'}"
            )
        parts.update({f"{step.norm}/{name}": s.norm[name] for name in s.norm})
        for name, array in parts.items():
            if array is None:
                raise MinitlError(f"{refusal}: {s.label} has no bias, {step.name} needs one")
            arrays[name] = array
            part = name.rpartition("/")[2]
            given = s.bias is not None if part == "bias" else True
            mapping.append((s.names.get(part, f"{s.label}: {part}") if given else ABSENT, name))
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
    mean, std = (tuple(round(255 * v, 3) for v in values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return Recipe(height, width, mean, std)  # type: ignore[arg-type]
