"""Does a network compute what its maker meant? A small input and the answer of the framework that it comes from, kept with the weights.

In: such a pair, and a network. Out: how far the network's answer is from that one; where too far, which of the usual mistakes would explain
it, found by making them: all shapes agree whatever the padding, BatchNorm's epsilon, the scaling of pixels, the order of the
channels or the number of the first class, so nothing but the answer tells. Left out: where the pair comes from (`minitl convert --golden`
takes one from a file).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .architectures import build, complete
from .engine import Values
from .errors import MinitlError
from .graph import Graph
from .images import Recipe
from .layers import Array, Dense
from .reference import softmax

PROBABILITIES = "softmax"
"""In place of a node: the output's probabilities."""
TOLERANCE = 1e-3
MOST_IMAGES, MOST_BYTES, LONGEST = 8, 16 << 20, 80
ROUNDED = 0.1
"""A difference below this may be rounding: LiteRT's answers with quantised values are 0.02 to 0.03 from those in float."""
IMAGES_TRIED = 2
"""Of so many images, each of up to 48 suspicions is computed."""

Mapped = tuple[str, tuple[float, ...], tuple[float, ...]]
SCALINGS: tuple[Mapped, ...] = (  # how the field makes a network's input of pixels: (pixel - mean) / std
    ("to [-1, 1]", (127.5,) * 3, (127.5,) * 3),
    ("to [0, 1]", (0.0,) * 3, (255.0,) * 3),
    ("not at all, 0 to 255", (0.0,) * 3, (1.0,) * 3),
    ("by ImageNet's mean and deviation", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
)
PADDINGS, EPSILONS = ("same", "keras", "torch"), (1e-3, 1e-5)


@dataclass(frozen=True, eq=False)
class Golden:
    """input: (N, H, W, 3), uint8 as Recipe.normalise takes it, or float32 as the network does. output: (N, ...) float32.

    node: whose value the output is, or PROBABILITIES. tolerance: largest difference, as a share of the largest number of the output.
    framework, version: what computed it. weights: digest of the parameters that it was computed with.
    """

    input: Array
    output: Array
    node: str
    tolerance: float
    framework: str
    version: str
    weights: str

    def facts(self) -> dict[str, Any]:
        """All but the arrays, as plain JSON values."""
        return {name: getattr(self, name) for name in FACTS}

    @property
    def maker(self) -> str:
        """What computed the output, in words."""
        return f"{self.framework} {self.version}".strip() or "the framework that these weights come from"


FACTS = ("node", "tolerance", "framework", "version", "weights")


def digest(arrays: Mapping[str, Array]) -> str:
    """What tells whether parameters are still the same: the first 16 hexadecimal digits of a SHA-256."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(name.encode() + b"\n" + np.ascontiguousarray(arrays[name], np.float32).tobytes())
    return sha.hexdigest()[:16]


def read(facts: Any, given: Array | None, answer: Array | None, graph: Graph) -> Golden:
    """The inverse of Golden.facts(), for a file that may be hostile. Raises ValueError."""
    if not isinstance(facts, dict) or set(facts) != set(FACTS) or given is None or answer is None:
        raise ValueError(f"expected input, output and {', '.join(FACTS)}")
    for name in FACTS:
        text = facts[name]
        if name != "tolerance" and not (isinstance(text, str) and len(text) <= LONGEST and (text.isprintable() or not text)):
            raise ValueError(f"{name} must be a short text")
    tolerance = facts["tolerance"]
    if type(tolerance) not in (int, float) or not 0 < tolerance <= 1:
        raise ValueError("the tolerance must be a share between 0 and 1")
    if facts["node"] != PROBABILITIES and facts["node"] not in graph.shapes:
        raise ValueError("its node is none of the network")
    if given.dtype not in (np.uint8, np.float32) or answer.dtype != np.float32:
        raise ValueError(f"the input must be uint8 or float32, the output float32, found {given.dtype} and {answer.dtype}")
    if given.shape[1:] != graph.input_shape or answer.ndim < 2 or len(given) != len(answer):
        shape = ", ".join(map(str, graph.input_shape))
        raise ValueError(f"expected input (N, {shape}) and output (N, ...), found {given.shape} and {answer.shape}")
    if not 1 <= len(given) <= MOST_IMAGES or given.nbytes + answer.nbytes > MOST_BYTES:
        raise ValueError(f"at most {MOST_IMAGES} images and {MOST_BYTES >> 20} MiB are kept, found {len(given)} images")
    if not answer.size or not np.isfinite(answer).all() or not np.isfinite(given).all():
        raise ValueError("it holds no numbers, or some that are not finite")
    return Golden(given, answer, **facts)


def make(
    given: Array, answer: Array, graph: Graph, node: str | None, tolerance: float, framework: str, version: str, arrays: Mapping[str, Array]
) -> Golden:
    """A Golden for this network. Raises MinitlError for arrays that cannot be one.

    given: (N, H, W, 3), or as PyTorch has it (N, 3, H, W). node None: the output, or its probabilities, whichever the answer looks like.
    """
    given, answer = np.asarray(given), np.asarray(answer)
    h, w, c = graph.input_shape
    if given.shape[1:] == (c, h, w) != (h, w, c):
        given = given.transpose(0, 2, 3, 1)
    if answer.ndim > 2 and answer[0].size == answer.shape[-1] and len(graph.shapes.get(node or graph.output, ())) == 1:
        answer = answer.reshape(len(answer), -1)  # (N, 1, 1, C)
    given, answer = (np.array(a, np.float32) if a.dtype.kind == "f" else np.array(a) for a in (given, answer))
    if node is None:
        node = PROBABILITIES if isinstance(graph[graph.output].layer, Dense) and _are_shares(answer) else graph.output
    facts = {"node": node, "tolerance": tolerance, "framework": framework, "version": version, "weights": digest(arrays)}
    try:
        return read(facts, given, answer, graph)
    except ValueError as problem:
        raise MinitlError(f"this is no golden answer for the network: {problem}") from None


def _are_shares(answer: Array) -> bool:
    """Whether each row looks like probabilities; quantised ones, of which many are rounded to 0, do not quite add up to 1."""
    if answer.ndim != 2 or answer.dtype != np.float32 or (answer < 0).any():
        return False
    sums = answer.sum(axis=1)
    return bool((sums > 0).all() and (sums < 1.02).all())


# ---- the check


@dataclass(frozen=True)
class Finding:
    """How a network compares with its golden answer. difference: largest, as a share of the largest number of the answer; None: not
    comparable. causes: the mistakes, each in words, that would explain it; nearest: the best of those that do not, and its difference."""

    maker: str
    tolerance: float
    difference: float | None
    causes: tuple[str, ...] = ()
    nearest: tuple[str, float] | None = None
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether the answers agree."""
        return self.difference is not None and self.difference <= self.tolerance

    def sentence(self) -> str:
        """All of it in words."""
        if self.difference is None:
            return f"the answer of {self.maker} cannot be compared: {self.note}"
        allowed = f"(of the largest value; {self.tolerance:g} is allowed)"
        if self.good:
            return f"computes what {self.maker} computed: the largest difference is {self.difference:.2g} {allowed}"
        text = f"does not compute what {self.maker} computed: {self.note or f'a difference of {self.difference:.2g} {allowed}'}"
        if self.causes:
            return f"{text}; likeliest cause: {', or '.join(self.causes)}: with this the answer is reproduced"
        text += "; none of the usual mistakes (padding, BatchNorm's epsilon, scaling, order of channels, first class) explains it"
        if self.difference < ROUNDED:
            text += ", but rounding may, if its maker's framework computed with quantised values: then allow more"
        return text + (f", {self.nearest[0]} comes nearest ({self.nearest[1]:.2g})" if self.nearest else "")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "good": self.good, "sentence": self.sentence()}


def check(golden: Golden, architecture: str, arguments: dict[str, Any], arrays: Mapping[str, Array], recipe: Recipe) -> Finding:
    """Compute the answer anew; where it differs, look for a mistake that explains it: one, or else two together, or more."""
    if digest(arrays) != golden.weights:
        return Finding(golden.maker, golden.tolerance, None, note="the weights were changed (trained?) after it was recorded")
    arguments = complete(architecture, arguments)
    difference, note = _difference(_answer(golden, architecture, arguments, arrays, _input(golden.input, recipe)), golden.output)
    if difference <= golden.tolerance:
        return Finding(golden.maker, golden.tolerance, difference)
    causes: list[str] = []
    nearest, level = ("", difference / 2), 0
    wanted = golden.output[:IMAGES_TRIED]
    for names, changed, x in _suspicions(golden.input[:IMAGES_TRIED], arguments, recipe):
        if len(names) > level and causes:
            break
        level = len(names)
        answer = _answer(golden, architecture, changed, arrays, x)
        for shift, found, expected in _first_class(answer, wanted):
            words = " and ".join([*names, *shift])
            distance = _difference(found, expected)[0]
            if words and distance <= golden.tolerance:
                causes.append(words)
            elif words and distance < nearest[1]:
                nearest = words, distance
    return Finding(golden.maker, golden.tolerance, difference, tuple(causes), nearest if nearest[0] and not causes else None, note)


def _answer(golden: Golden, architecture: str, arguments: dict[str, Any], arrays: Mapping[str, Array], x: Array) -> Array:
    """What the network with these arguments answers."""
    graph = build(architecture, **arguments).load(arrays)
    node = graph.output if golden.node == PROBABILITIES else golden.node
    value = Values(graph, [node]).run(np.ascontiguousarray(x, np.float32))[node]
    return softmax(value) if golden.node == PROBABILITIES else value


def _difference(found: Array, expected: Array) -> tuple[float, str]:
    """(the largest difference as a share of the largest expected value, what forbids a comparison); numbers that are not finite: 1e9."""
    if found.shape != expected.shape:
        shapes = [" x ".join(map(str, a.shape[1:])) for a in (expected, found)]
        return 1e9, f"it has {shapes[0]} outputs, the network {shapes[1]}"
    with np.errstate(all="ignore"):
        share = float(np.abs(found - expected).max() / (np.abs(expected).max() or 1))
    return (share if np.isfinite(share) else 1e9), ""


def _input(given: Array, recipe: Recipe) -> Array:
    return recipe.normalise(given) if given.dtype == np.uint8 else given


def _suspicions(given: Array, arguments: dict[str, Any], recipe: Recipe) -> Iterator[tuple[list[str], dict[str, Any], Array]]:
    """(what would be different, in words; arguments; input), nothing different first, then one thing, then two, ..."""
    inputs: list[tuple[list[str], Array]] = []
    for order in ([], ["channels in the order blue, green, red"]):
        ordered = np.ascontiguousarray(given[..., ::-1]) if order else given
        as_said = _input(ordered, recipe)
        inputs.append((order, as_said))
        for words, mean, std in SCALINGS:
            if given.dtype == np.uint8:
                x = (ordered - np.array(mean, np.float32)) / np.array(std, np.float32)
            else:  # made so from pixels by whoever recorded it, where the recipe has the scaling that the network here needs
                pixels = ordered * np.array(std, np.float32) + np.array(mean, np.float32)
                x = (pixels - np.array(recipe.mean, np.float32)) / np.array(recipe.std, np.float32)
            if not np.allclose(x, as_said):
                inputs.append(([*order, f"pixels scaled {words}"], x))
    paddings = [p for p in PADDINGS if p != arguments["padding"]] if "padding" in arguments else []
    epsilons = [e for e in EPSILONS if e != arguments.get("epsilon")] if arguments.get("batch_norm") and "epsilon" in arguments else []
    changes = itertools.product(
        inputs,
        [([], {}), *(([f"padding {p!r} instead of {arguments['padding']!r}"], {"padding": p}) for p in paddings)],
        [([], {}), *(([f"BatchNorm's epsilon {e:g} instead of {arguments['epsilon']:g}"], {"epsilon": e}) for e in epsilons)],
    )
    found = [([*words, *one, *other], {**arguments, **pad, **eps}, x) for (words, x), (one, pad), (other, eps) in changes]
    yield from sorted(found, key=lambda suspicion: len(suspicion[0]))


def _first_class(found: Array, expected: Array) -> Iterator[tuple[list[str], Array, Array]]:
    """Both answers as they are; then with the classes of one moved by one."""
    yield [], found, expected
    if found.ndim != 2 or expected.ndim != 2 or min(found.shape[1], expected.shape[1]) < 3:
        return
    width = min(found.shape[1], expected.shape[1]) - (found.shape[1] == expected.shape[1])
    if abs(found.shape[1] - expected.shape[1]) <= 1:
        if found.shape[1] > width:
            yield ["the first class here is none of the source's (background?)"], found[:, 1:][:, :width], expected[:, :width]
        if expected.shape[1] > width:
            yield ["the first class of the source (background?) is missing here"], found[:, :width], expected[:, 1:][:, :width]
