"""Integer graph -> one self-contained C99 header that computes exactly what IntegerGraph.run computes.

In: an integer graph, and what to say about it (About). Out: the text of the header, the same for the same arguments. The kernels come
from c/kernels.h, the memory from memory.plan.

All constants are one object whose size the compiler must confirm, so the flash and RAM figures in the header's first comment are
facts, not estimates. The header can test itself: it carries a hash of every layer's output for images that both sides make from numbers.
Left out: folders to flash from (projects.py); and no compiler is run here.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from . import int8_engine, memory
from .errors import MinitlError
from .images import Recipe
from .integer import (
    Add,
    AveragePool,
    Concat,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    GlobalMean,
    IntegerGraph,
    MaxPool,
    Op,
    Pad,
    Pool,
    Requantise,
    Reshape,
    Tensor,
    Weighted,
    quantise_multiplier,
)
from .neither import Rule, word

KERNELS = Path(__file__).parent / "c" / "kernels.h"
LINE = 120
LONGEST_NAME = 48

KEYWORDS = frozenset(
    """alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t class co_await co_return
    co_yield compl concept const const_cast consteval constexpr constinit continue decltype default delete do double dynamic_cast else
    enum explicit export extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr
    operator or or_eq private protected public register reinterpret_cast requires restrict return short signed sizeof static
    static_assert static_cast struct switch template this thread_local throw true try typedef typeid typename typeof union unsigned
    using virtual void volatile wchar_t while xor xor_eq""".split()
)
"""Words of C99, C23 and C++20 that cannot name anything."""


# ---- names -------------------------------------------------------------------------------------------------------------------


def identifier_from(stem: str) -> str:
    """A C name made of a file's name: 'my-model.h' -> 'my_model', '2nd try' -> 'model_2nd_try'; always passes check_name."""
    stem = stem[:-2] if stem.lower().endswith(".h") else stem
    name = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[:LONGEST_NAME].rstrip("_") or "model"
    if not name[0].isalpha() or name in KEYWORDS:
        name = f"model_{name}"[:LONGEST_NAME].rstrip("_")
    return name


def check_name(name: str) -> None:
    """MinitlError unless `name` can begin every name in the header, in C and in C++."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or "__" in name or name.endswith("_") or len(name) > LONGEST_NAME:
        why = f"expected a letter, then letters, digits and single underscores, at most {LONGEST_NAME} in all"
    elif name in KEYWORDS:
        why = "that is a word of the language itself"
    else:
        return
    raise MinitlError(f"C name {name!r}: {why}; use for instance {identifier_from(name)!r}")


# ---- text that is safe inside C ----------------------------------------------------------------------------------------------


def c_string(text: str) -> str:
    """A C string literal of the UTF-8 bytes of `text`: octal escapes always have three digits, so that none runs into what follows.

    The question mark is escaped, too: two of them begin a trigraph.
    """
    plain = "".join(chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{plain}"'


def comment_text(text: object) -> str:
    """`text` on one line of ASCII that can neither end a comment nor begin one, splice lines or form a trigraph."""
    line = re.sub(r"\s+", " ", str(text)).replace("\\", "/")
    line = "".join(c if " " <= c <= "~" else f"<U+{ord(c):04X}>" for c in line)
    return line.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")


def table(values: np.ndarray, indent: str, suffix: str = "") -> str:
    """The numbers of an array in rows, separated by commas, each with a suffix of C's."""
    texts = [f"{value}{suffix}" for value in values.ravel().tolist()]
    width = max(map(len, texts)) + 1
    each = max(1, (LINE - len(indent)) // width)
    return ",\n".join(indent + ",".join(texts[i : i + each]) for i in range(0, len(texts), each))


# ---- constants ---------------------------------------------------------------------------------------------------------------

WINDOW = "minitl_window"
SUM = "minitl_sum"
SIZES = {"int32_t": 4, SUM: 44, WINDOW: 34, "int8_t": 1}
"""Types of constants with their bytes."""


def _size(type_name: str, values: np.ndarray) -> int:
    """Bytes of a member."""
    return SIZES[type_name] if type_name in (SUM, WINDOW) else values.size * SIZES[type_name]


@dataclass
class Constants:
    """Members of the one constant object, and what they are for (the flash figures by purpose). name: the header's prefix."""

    name: str
    members: list[tuple[str, str, np.ndarray, str]] = field(default_factory=list)  # type, name, values, purpose

    def add(self, type_name: str, name: str, values: np.ndarray | list[int], purpose: str) -> str:
        """Registers a member and returns the C expression that names it."""
        self.members.append((type_name, name, np.asarray(values), purpose))
        return f"{self.name}_constants.{name}"

    def bytes_by_purpose(self) -> dict[str, int]:
        """Bytes of each purpose; filling up to a multiple of 4 included, under 'padding'."""
        count: dict[str, int] = {}
        for type_name, _, values, purpose in self.members:
            count[purpose] = count.get(purpose, 0) + _size(type_name, values)
        if gap := -sum(count.values()) % 4:
            count["padding"] = gap
        return count

    def ordered(self) -> list[tuple[str, str, np.ndarray]]:
        """(type, name, values) in the order of the object: no gap can open, and kernels that are read as words lie at multiples of 4."""

        def alignment(member: tuple[str, str, np.ndarray, str]) -> int:
            type_name, _, values, _ = member
            return {"int32_t": 0, SUM: 1, WINDOW: 3}.get(type_name, 4 if values.size % 4 else 2)

        members = [(type_name, name, values) for type_name, name, values, _ in sorted(self.members, key=alignment)]  # stable
        if gap := self.bytes_by_purpose().get("padding"):
            members.append(("int8_t", "padding", np.zeros(gap, np.int8)))
        return members

    def declarations(self) -> str:
        """The members of the struct, a line each."""
        return "".join(
            f"    {_prefixed(kind, self.name)} {name};\n" if kind in (SUM, WINDOW) else f"    {kind} {name}[{values.size}];\n"
            for kind, name, values in self.ordered()
        )

    def initialiser(self) -> str:
        """The values of the members, as C."""
        parts = []
        for kind, name, values in self.ordered():
            if kind in (SUM, WINDOW):
                numbers = [str(v) for v in values.tolist()]
                if kind == SUM:  # three arrays of three, then the clamp
                    numbers = [f"{{{', '.join(numbers[i : i + 3])}}}" for i in (0, 3, 6)] + numbers[9:]
                parts.append(f"    /* {name} */ {{{', '.join(numbers)}}}")
            else:
                parts.append(f"    /* {name} */ {{\n{table(values, '    ')}}}")
        return ",\n".join(parts)

    def to_bytes(self) -> bytes:
        """The object as a little-endian processor has it in memory."""
        layouts = {"int32_t": "<i4", SUM: "<i4", WINDOW: "<i2", "int8_t": "i1"}
        return b"".join(values.astype(layouts[kind]).tobytes() for kind, _, values in self.ordered())


# ---- one function per op: registers constants, returns the call ----------------------------------------------------------------


@dataclass
class Context:
    """What the emitters of ops share: the graph, where tensors are, the constants, the kernels used so far."""

    graph: IntegerGraph
    plan: memory.Plan
    constants: Constants
    kernels: set[str] = field(default_factory=set)

    def at(self, name: str, extra: int = 0) -> str:
        """The C expression for the address of a tensor (or `extra` bytes into it)."""
        place, offset = self.plan.where[name]
        offset += extra
        return f"{place} + {offset}" if offset else place

    def scratch(self, i: int) -> str:
        """The C expression for the scratch memory of op number i."""
        return f"arena + {self.plan.scratch[i]}"

    def call(self, kernel: str, *arguments: object) -> str:
        """A call of a kernel, which thereby becomes part of the header."""
        self.kernels.add(kernel)
        return f"{self.constants.name}_{kernel}({', '.join(map(str, arguments))});"


def _window(context: Context, i: int, op: Conv2D | DepthwiseConv2D | Pool | Pad | Dense) -> str:
    """Registers the window of op number i and returns its address."""
    ins, out = context.graph.ends(op)
    shapes = [tensor.shape if len(tensor.shape) == 3 else (1, 1, *tensor.shape) for tensor in (ins[0], out)]
    size = op.window if isinstance(op, Pool) else op.kernel.shape[:2] if isinstance(op, (Conv2D, DepthwiseConv2D)) else (1, 1)
    strides = (1, 1) if isinstance(op, (Pad, Dense)) else op.strides
    top, _, left, _ = (0, 0, 0, 0) if isinstance(op, Dense) else op.padding
    low, high = (-128, 127) if isinstance(op, Pad) else (op.act_min, op.act_max)
    if isinstance(op, Dense):  # its input may be longer than 16 bits can count; the kernel gets it as an argument
        shapes[0] = (1, 1, 1)
    numbers = [*shapes[0], *shapes[1], *size, *strides, top, left]
    numbers += [ins[0].zero_point, op.kernel_zero if isinstance(op, Weighted) else 0, out.zero_point, low, high]
    if max(numbers) > 32767:
        raise op.fail(f"the C kernels count rows, columns and channels up to 32767, found {max(numbers)}: use a smaller network")
    return "&" + context.constants.add(WINDOW, f"window_{i}", numbers, "shapes")


def _weights(context: Context, i: int, op: Weighted, kernel: np.ndarray) -> list[str]:
    """Registers kernel (in C's order), bias (with the input's zero point folded in), doubled multiplier, shift to the right."""
    zero = context.graph.ends(op)[0][0].zero_point
    folded = op.bias.astype(np.int64) - zero * (op.kernel.astype(np.int64) - op.kernel_zero).reshape(-1, len(op.bias)).sum(0)
    assert np.abs(folded).max() < 2**31, "Weighted.check_parameters proves this"
    # A factor of 0 becomes 2**-32, which is 0 after rounding, too: C counts on multipliers from 2**30.
    twice = 2 * np.where(op.multiplier == 0, 2**30, op.multiplier).astype(np.int64) - 2**32
    assert twice.min() >= -(2**31), "quantise_multiplier() makes no other"
    add = context.constants.add
    return [
        add("int8_t", f"kernel_{i}", kernel, "kernels"),
        add("int32_t", f"bias_{i}", folded, "biases"),
        add("int32_t", f"twice_{i}", twice, "multipliers"),
        add("int8_t", f"right_{i}", np.where(op.multiplier == 0, 31, -op.shift), "shifts"),
    ]


def _rows(kernel: np.ndarray, outputs: int) -> np.ndarray:
    """Kernels (outputs, ...) as rows, each filled up with zeros to a multiple of 8 bytes, the last one to a multiple of 16.

    So no loop has a rest, and vectors of 16 bytes may read a little too far.
    """
    flat = kernel.reshape(outputs, -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8)))
    return np.pad(flat.ravel(), (0, flat.shape[1] % 16))


def _conv2d(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Conv2D)
    kernel = "pointwise" if memory.is_pointwise(op) else "conv2d"
    weights = _weights(context, i, op, _rows(op.kernel.transpose(3, 0, 1, 2), op.kernel.shape[3]))
    window = _window(context, i, op)
    return [context.call(kernel, context.at(op.inputs[0]), context.at(op.output), window, *weights, context.scratch(i))]


def _pointwise_depthwise(context: Context, i: int, op: Op) -> list[str]:
    """Op number i - 1, a pointwise convolution, inside of op number i."""
    first = context.graph.ops[i - 1]
    assert isinstance(first, Conv2D) and isinstance(op, DepthwiseConv2D)
    numbers = [
        _window(context, i - 1, first),
        *_weights(context, i - 1, first, _rows(first.kernel.transpose(3, 0, 1, 2), first.kernel.shape[3])),
    ]
    numbers += [_window(context, i, op), *_weights(context, i, op, op.kernel.transpose(2, 0, 1))]
    ends = context.at(first.inputs[0]), context.at(op.output), context.scratch(i)
    return [context.call("pointwise_depthwise_3x3", *ends, *numbers)]


def _depthwise_conv2d(context: Context, i: int, op: Op) -> list[str]:
    if i - 1 in context.plan.fused:
        return _pointwise_depthwise(context, i, op)
    assert isinstance(op, DepthwiseConv2D)
    kernel = "depthwise_3x3" if op.kernel.shape[:2] == (3, 3) and op.strides[1] <= 2 else "depthwise_conv2d"
    weights = _weights(context, i, op, op.kernel.transpose(2, 0, 1))
    window = _window(context, i, op)
    return [context.call(kernel, context.at(op.inputs[0]), context.at(op.output), window, *weights, context.scratch(i))]


def _dense(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Dense)
    weights = _weights(context, i, op, _rows(op.kernel.T, op.kernel.shape[1]))
    ends = context.at(op.inputs[0]), context.at(op.output)
    return [context.call("dense", *ends, op.kernel.shape[0], _window(context, i, op), *weights)]


def _pool(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Pool)
    return [context.call(op.kind, context.at(op.inputs[0]), context.at(op.output), _window(context, i, op))]


def _pad(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Pad)
    return [context.call("pad", context.at(op.inputs[0]), context.at(op.output), _window(context, i, op))]


def _global_mean(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, GlobalMean)
    (source,), out = context.graph.ends(op)
    h, w, c = source.shape
    numbers = (h * w, c, op.multiplier, -op.shift, source.zero_point, out.zero_point)
    return [context.call("global_mean", context.at(source.name), context.at(out.name), *numbers)]


def _add(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Add)
    (a, b), out = context.graph.ends(op)
    numbers = [a.zero_point, b.zero_point, out.zero_point, *op.multipliers, *(-shift for shift in op.shifts), op.act_min, op.act_max]
    constants = context.constants.add(SUM, f"sum_{i}", numbers, "shapes")
    return [context.call("add", context.at(a.name), context.at(b.name), context.at(out.name), out.size, f"&{constants}")]


def _concat(context: Context, i: int, op: Op) -> list[str]:
    ins, out = context.graph.ends(op)
    calls, done, stride = [], 0, out.shape[-1]
    for source in ins:
        size = source.shape[-1]
        calls.append(context.call("copy_rows", context.at(source.name), context.at(out.name, done), source.size // size, size, stride))
        done += size
    return calls


def _reshape(context: Context, i: int, op: Op) -> list[str]:
    """Nothing to do, but where the image itself is to become the logits."""
    source, target = (context.at(name) for name in (op.inputs[0], op.output))
    return [] if source == target else [context.call("copy_rows", source, target, 1, context.graph.tensors[op.output].size, 0)]


def _requantise(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Requantise)
    (source,), out = context.graph.ends(op)
    numbers = (out.size, op.multiplier, -op.shift, source.zero_point, out.zero_point, op.act_min, op.act_max)
    return [context.call("rescale", context.at(source.name), context.at(out.name), *numbers)]


EMITTERS: dict[type[Op], Callable[[Context, int, Op], list[str]]] = {
    Conv2D: _conv2d,
    DepthwiseConv2D: _depthwise_conv2d,
    Dense: _dense,
    AveragePool: _pool,
    MaxPool: _pool,
    GlobalMean: _global_mean,
    Add: _add,
    Concat: _concat,
    Reshape: _reshape,
    Pad: _pad,
    Requantise: _requantise,
}


def _prefixed(text: str, name: str) -> str:
    """C of kernels.h or of TEMPLATE under the header's own prefix. Never applied to words of the user's."""
    return re.sub("minitl_|MINITL_", lambda found: f"{name if found[0].islower() else name.upper()}_", text)


@cache
def _sections() -> dict[str, tuple[tuple[str, ...], str]]:
    """Section of kernels.h -> (sections that it needs, its C text)."""
    parts = re.split(r"/\* == (\w+)(?: \(needs ([\w, ]+)\))? == \*/\n", KERNELS.read_text())
    return {name: (tuple(needs.split(", ")) if needs else (), text) for name, needs, text in zip(*[iter(parts[1:])] * 3, strict=True)}


def _needed(used: set[str]) -> list[str]:
    """The sections of the kernels used and of all that they need, in the file's order."""
    sections, wanted, queue = _sections(), set[str](), ["processor", *used]
    while queue:
        wanted.add(name := queue.pop())
        queue += [other for other in sections[name][0] if other not in wanted]
    return [name for name in sections if name in wanted]


def _kernel_text(used: set[str]) -> str:
    """The C of the kernels used and of all that they need."""
    return "\n".join(_sections()[name][1].strip() + "\n" for name in _needed(used))


STACK = 1024
"""Bytes of stack that a run takes at most, with gcc on Cortex-M at every level of optimisation but -O0 (there less than twice that)."""

CODE = {
    "matrix": 1280, "pointwise": 64, "conv2d": 832, "row_3x3": 1152, "depthwise_3x3": 64, "pointwise_depthwise_3x3": 320,
    "depthwise_conv2d": 768, "dense": 448, "average_pool": 576, "max_pool": 128, "global_mean": 64, "add": 64, "rescale": 128,
    "copy_rows": 64, "pad": 64, "neither": 256, "the rest": 288, "a call": 72, "a macro": 96,
}  # fmt: skip
"""Bytes of code at most, by section of kernels.h, with gcc -Os and -O2 on Cortex-M: fitted to what 45 networks take on five cores (the
M0+ and the M55 take the most), with some room. -O1 takes up to 1.1 times that, -O3 1.5 times, -O0 2.5 times (on the M55).
tests/test_qemu.py holds all of it against compiled networks."""


def _code(context: Context) -> int:
    """Bytes of code at most, a multiple of 64."""
    bytes_ = sum(CODE.get(section, 0) for section in _needed(context.kernels)) + CODE["the rest"]
    bytes_ += CODE["a call"] * len(context.graph.ops) + CODE["a macro"] * sum(_needs(context.graph).values())
    return -(-bytes_ // 64) * 64


# ---- the words ---------------------------------------------------------------------------------------------------------------


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _describe(graph: IntegerGraph, i: int, op: Op) -> str:
    """One line about op number i, for the comment above its call."""
    ins, out = graph.ends(op)
    macs = op.macs(ins, out)
    sizes = f"{' + '.join(_shape(tensor.shape) for tensor in ins)} -> {_shape(out.shape)}"
    return comment_text(f"{i} {op.name}: {op.kind}, {sizes}" + (f", {macs:,} MACs" if macs else ""))


def _paragraph(title: str, *texts: str) -> list[str]:
    """A titled part of the first comment, wrapped."""
    lines = ["", title]
    for text in texts:
        lines += textwrap.wrap(text, LINE, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False) or [""]
    return lines


def _flatten(value: object) -> str:
    """Provenance of any shape as one text."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key} = {_flatten(entry)}" for key, entry in sorted(value.items()))
    return "; ".join(map(_flatten, value)) if isinstance(value, (list, tuple)) else str(value)


def _names_licence(provenance: Mapping[str, object]) -> bool:
    """Whether a licence stands anywhere in the provenance, that of the backbone included."""
    inner = any(_names_licence(value) for value in provenance.values() if isinstance(value, Mapping))
    return inner or bool({"licence", "license"} & set(provenance))


def _provenance(provenance: Mapping[str, object], digest: str) -> list[str]:
    lines = [f"{comment_text(key)}: {comment_text(_flatten(provenance[key]))}" for key in sorted(provenance)]
    if not _names_licence(provenance):
        lines.append("licence: not known to minitl; find out before you pass this file on")
    return [*lines, f"network: sha256 {digest} (equal digests compute equal logits)"]


def _recipe_words(recipe: Recipe, upper: str) -> list[str]:
    """How a photo becomes the image, for people."""
    h, w = recipe.height, recipe.width
    if recipe.resize == "crop":
        box = f"Take the largest centred box of width : height = {w} : {h}"
        box += "" if recipe.crop_fraction == 1 else f", make it {recipe.crop_fraction:g} times as wide and as high"
    else:
        box = "Take the whole picture, whatever its aspect ratio"
    average = "" if recipe.interpolation == "nearest" else " (shrinking averages over all source pixels under the filter, as Pillow does)"
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (recipe.mean, recipe.std))
    return [
        f"{box}, and scale it to {w}x{h} pixels, {recipe.interpolation}{average}. Turn it upright first. "
        f"{upper}_INPUT_CROP_PER_MILLE says the same in a number: the side of that box in thousandths, 0 for the whole picture.",
        "Order: rows from the top, pixels from the left, then red, green, blue.",
        f"Values: image[...] = {upper}_QUANTIZE_PIXEL(p, c) for p = 0..255 and c = 0, 1, 2 for red, green, blue. It stands for "
        f"(p - mean) / std with mean {mean} and std {std}.",
    ]


def _pixel_macro(recipe: Recipe, upper: str) -> str:
    """Recipe.quantise_pixels for one pixel, as a constant expression of C."""
    multipliers, offsets = recipe.pixel_multipliers, recipe.pixel_offsets
    if multipliers == (65536,) * 3 and all(0 <= offset + 128 * 65536 < 65536 for offset in offsets):
        return f"#define {upper}_QUANTIZE_PIXEL(p, c) ((int8_t)((p) - 128))\n"
    if max(255 * m + abs(b) for m, b in zip(multipliers, offsets, strict=True)) >= 2**30:
        raise MinitlError(f"recipe: mean {recipe.mean} and std {recipe.std} do not fit the integer arithmetic of a header")
    # 2**30 makes the sum positive before the shift, 2**14 is taken off after it.
    terms = [f"((int32_t)(p) * {m} + {b + 2**30}) >> 16" for m, b in zip(multipliers, offsets, strict=True)]
    return (
        f"#define {upper}_PIXEL_(p, c) (((c) == 0 ? {terms[0]} : (c) == 1 ? {terms[1]} : {terms[2]}) - 16384)\n"
        f"#define {upper}_QUANTIZE_PIXEL(p, c) /* evaluates p and c more than once */ \\\n"
        f"    ((int8_t)({upper}_PIXEL_(p, c) < -128 ? -128 : {upper}_PIXEL_(p, c) > 127 ? 127 : {upper}_PIXEL_(p, c)))\n"
    )


def _check(graph: IntegerGraph, about: About) -> None:
    """What only the header asks of its arguments."""
    name, classes, recipe = about.name, about.classes, about.recipe
    check_name(name)
    image, logits = graph.tensors[graph.input], graph.tensors[graph.output]
    if graph.input == graph.output:
        raise MinitlError(f"header {name!r}: the network has no operation")
    if not classes or len(classes) != logits.size:
        raise MinitlError(f"header {name!r}: the network has {logits.size} outputs, but {len(classes)} class names were given")
    if bad := [c for c in classes if "\0" in c]:
        raise MinitlError(f"header {name!r}: class name {bad[0]!r} holds a zero character, which ends a string in C")
    if recipe is not None:
        if image.shape != (recipe.height, recipe.width, 3):
            raise MinitlError(f"header {name!r}: the network expects {image.shape}, the recipe makes {recipe.height}x{recipe.width}x3")
        scale, zero = recipe.input_quantisation
        if image.zero_point != zero or not math.isclose(image.scale, scale, rel_tol=1e-6):
            raise MinitlError(
                f"header {name!r}: the network's input has scale and zero point {image.quantisation}, the recipe makes {(scale, zero)}"
            )


# ---- the test that the header carries ----------------------------------------------------------------------------------------

VECTORS = 3


def test_images(size: int) -> np.ndarray:
    """The images of the self-test, int8 (VECTORS, size): noise, a slow ramp with a little noise, black and white noise."""
    i = np.arange(size, dtype=np.uint32)
    rows = []
    for vector in range(VECTORS):
        u = (i + np.uint32(1)) * np.uint32(0x9E3779B1) + np.uint32(vector)
        u = (u ^ (u >> np.uint32(15))) * np.uint32(0x85EBCA6B)
        u ^= u >> np.uint32(13)
        ramp = (i >> np.uint32(6)) + (u >> np.uint32(29))
        rows.append((u >> np.uint32(24), ramp, np.where(u >> np.uint32(31), 127, 128))[vector].astype(np.uint8).view(np.int8))
    return np.stack(rows)


def layer_hash(values: np.ndarray) -> int:
    """32 bits of any int8 array: its bytes times odd numbers that follow no rule, added up modulo 2**32; one changed byte always shows."""
    factors = np.arange(1, values.size + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)
    factors = factors ^ (factors >> np.uint32(15)) | np.uint32(1)
    return int((values.ravel().view(np.uint8) * factors).sum(dtype=np.uint32))


def layer_hashes(graph: IntegerGraph) -> list[list[int]]:
    """For every vector, the hash of every op's output."""
    image = graph.tensors[graph.input]
    values = int8_engine.make(graph, [op.output for op in graph.ops]).run(test_images(image.size).reshape(VECTORS, *image.shape))
    return [[layer_hash(values[op.output][vector]) for op in graph.ops] for vector in range(VECTORS)]


# ---- the header --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What a header costs, in bytes: exactly its arena (RAM) and its constants (flash) by purpose; at most the code.

    The code is gcc's for Cortex-M at -Os and -O2, see CODE; STACK is the bound of the stack.
    """

    arena: int
    constants: dict[str, int]
    code: int

    @property
    def flash(self) -> int:
        """All constants."""
        return sum(self.constants.values())


@dataclass(frozen=True)
class About:
    """What a header says besides the network.

    name: prefix of everything in it, a C identifier (identifier_from() makes one of a file's name). classes: one name per output.
    recipe: how a photo becomes the input; None leaves the words and the pixel macro out. provenance: printed as it is, one line per key;
    'source' and 'licence' matter most. version: minitl's. file: what the header will be called (NAME.h where it is empty).
    notes: sentences for the manual, such as the proof of what was left out. neither: how it knows images of none of the classes; then
    the graph keeps the features (IntegerGraph.watched).
    """

    name: str
    classes: Sequence[str]
    recipe: Recipe | None
    provenance: Mapping[str, object]
    version: str
    file: str = ""
    notes: Sequence[str] = ()
    neither: Rule | None = None


@dataclass(frozen=True)
class Header:
    """text: of NAME.h. blob: bytes of NAME_weights.bin. stub: text of NAME_weights.S, which includes it."""

    text: str
    blob: bytes
    stub: str


def figures(graph: IntegerGraph, classes: Sequence[str], neither: Rule | None = None) -> Figures:
    """The figures that emit() states for this graph, these class names and this rule."""
    context = _compile(graph, "figures")[0]
    _neither(context, neither, classes)
    return _figures(context, classes, neither)


def constant_bytes(graph: IntegerGraph) -> list[int]:
    """Bytes of the constants of every op, in order; what figures() states beyond their sum are class names and padding."""
    count = [0] * len(graph.ops)
    for type_name, name, values, _ in _compile(graph, "figures")[0].constants.members:  # such as kernel_3
        count[int(name.rpartition("_")[2])] += _size(type_name, values)
    return count


def _figures(context: Context, classes: Sequence[str], neither: Rule | None) -> Figures:
    names = {"class names": len(classes) * _longest(classes)}
    code = _code(context) + (CODE["neither"] if neither else 0)
    return Figures(_arena(context.plan), context.constants.bytes_by_purpose() | names, code)


def _arena(plan: memory.Plan) -> int:
    """Bytes of the arena, a multiple of 4 and never 0."""
    return max(-(-plan.size // 4) * 4, 4)


def _longest(classes: Sequence[str]) -> int:
    """Bytes of one row of the table of class names: the longest name and its final zero."""
    return max(len(c.encode()) for c in classes) + 1


def _compile(graph: IntegerGraph, name: str) -> tuple[Context, list[str]]:
    """Constants, kernels and the calls, one text for each op."""
    context = Context(graph, memory.plan(graph), Constants(name))
    calls = []
    for i, op in enumerate(graph.ops):
        if i in context.plan.fused:
            calls.append(f"    /* {_describe(graph, i, op)}, inside of the next, row by row */\n")
            continue
        lines = EMITTERS[type(op)](context, i, op)
        lines.append(f"{name.upper()}_AFTER({i}, {context.at(op.output)}, {graph.tensors[op.output].size});")
        calls.append(f"    /* {_describe(graph, i, op)} */\n" + "".join(f"    {line}\n" for line in lines))
    return context, calls


def _needs(graph: IntegerGraph) -> dict[str, int]:
    """The macros that leave out of the kernels what this network does not need."""
    weighted = [op for op in graph.ops if isinstance(op, Weighted)]
    shifts = [int(op.shift.max()) for op in weighted] + [op.shift for op in graph.ops if isinstance(op, (GlobalMean, Requantise))]
    shifts += [max(op.shifts) for op in graph.ops if isinstance(op, Add)]
    ends = [(getattr(op, "act_min", -128), getattr(op, "act_max", 127)) for op in graph.ops]
    return {
        "LEFT_SHIFTS": int(max(shifts, default=0) > 0),
        "CLAMPS": int(any(end != (-128, 127) for end in ends)),
        "KERNEL_ZEROS": int(any(op.kernel_zero for op in weighted)),
    }


def emit(graph: IntegerGraph, about: About) -> str:
    """The text of NAME.h; write it as ASCII or UTF-8. MinitlError for names that C forbids and words that do not fit the network."""
    return _emit(graph, about, blob=False)[0]


def emit_blob(graph: IntegerGraph, about: About) -> Header:
    """Like emit(), for large networks: the weights as bytes beside the header instead of inside it."""
    text, constants = _emit(graph, about, blob=True)
    return Header(text, constants.to_bytes(), _prefixed(STUB, about.name))


def _emit(graph: IntegerGraph, about: About, blob: bool) -> tuple[str, Constants]:
    _check(graph, about)
    name, classes, recipe = about.name, about.classes, about.recipe
    context, calls = _compile(graph, name)
    identity = int(graph.digest()[:8], 16)
    if blob:
        context.constants.members.insert(0, ("int32_t", "identity", np.array([identity - 2**31]), "identity"))
    declared, defined = _neither(context, about.neither, classes)
    size = _figures(context, classes, about.neither)
    upper = name.upper()
    image, logits = graph.tensors[graph.input], graph.tensors[graph.output]
    macros: dict[str, int] = {}
    if len(image.shape) == 3:
        macros |= dict(zip(("INPUT_HEIGHT", "INPUT_WIDTH", "INPUT_CHANNELS"), image.shape, strict=True))
    for end, tensor in (("INPUT", image), ("OUTPUT", logits)):
        multiplier, shift = quantise_multiplier(tensor.scale)
        macros |= {f"{end}_ZERO_POINT": tensor.zero_point, f"{end}_SCALE_MULTIPLIER": multiplier, f"{end}_SCALE_SHIFT": shift}
    if recipe is not None:
        macros |= {"INPUT_CROP_PER_MILLE": round(1000 * recipe.crop_fraction) if recipe.resize == "crop" else 0}
    macros |= {"INPUT_BYTES": image.size, "CLASSES": len(classes), "CLASS_NAME_BYTES": _longest(classes)}
    macros |= {"ARENA_BYTES": size.arena, "IMAGE_OFFSET": context.plan.image, "STACK_BYTES": STACK, "CODE_BYTES": size.code}
    macros |= {"CONSTANT_BYTES": size.flash}

    words = _manual(graph, about, size, blob)
    hashes = layer_hashes(graph)
    text = _prefixed(TEMPLATE, name).format(
        words="\n".join(words),
        macros=_defines(upper, macros),
        pixel=_pixel_macro(recipe, upper) if recipe is not None else "",
        needs=_defines(upper, _needs(graph)),
        kernels=_prefixed(_kernel_text(context.kernels), name),
        constants=_object(context.constants, blob),
        size=f"sizeof({name}_constants) + " if context.constants.members else "",
        names=",\n".join(f"    {c_string(c)} /* {i} */" for i, c in enumerate(classes)),
        other=", 2 if the weights are those of another header" if blob else "",
        identity=f"    if ({name}_constants.identity[0] != {identity - 2**31}) {{\n        return 2;\n    }}\n" if blob else "",
        calls="".join(calls).rstrip("\n"),
        neither=declared,
        is_neither=defined,
        vectors=VECTORS,
        layers=len(graph.ops),
        layer_names=",\n".join(f"    {c_string(f'{i} {op.name}')}" for i, op in enumerate(graph.ops)),
        hashes=",\n".join("    {\n" + table(np.array(row, dtype=object), "    ", "u") + "}" for row in hashes),
    )
    return text, context.constants


NEITHER_H = """
/* 1 if the image of the last run shows none of the classes, else 0; the arena must be as that run left it. */
#define MINITL_NEITHER {word}
#ifndef MINITL_CALLER_ARENA
int minitl_is_neither(void);
#endif
int minitl_is_neither_in(const void *arena);
"""

NEITHER_C = """
/* best / length: the square of the cosine between the features and the class that they are most like. */
int minitl_is_neither_in(const void *memory)
{{
    const int8_t *const features = (const int8_t *)memory + {offset}, *direction = {directions};
    uint32_t length = {length}u, best = 0;
    int32_t i, c;
    for (i = 0; i < {channels}; i++) {{
        const int32_t value = features[i] - ({zero});
        length += (uint32_t)(value * value);
    }}
    for (c = 0; c < MINITL_CLASSES; c++) {{
        int32_t sum = {start};
        for (i = 0; i < {channels}; i++) {{
            sum += (features[i] - ({zero})) * *direction++;
        }}
        best = sum > 0 && (uint32_t)sum > best ? (uint32_t)sum : best;
    }}
    return best == 0 || (uint64_t)best * best < (uint64_t){threshold}u * length;
}}

#ifndef MINITL_CALLER_ARENA
int minitl_is_neither(void)
{{
    return minitl_is_neither_in(minitl_arena);
}}
#endif
"""


def _neither(context: Context, rule: Rule | None, classes: Sequence[str]) -> tuple[str, str]:
    """Registers the directions; returns declarations and definitions, "" and "" without a rule."""
    if rule is None:
        return "", ""
    tensor = context.graph.tensors[context.graph.watched]
    assert rule.directions.shape == (len(classes), tensor.size)
    # a feature without its zero point is at most 255, a direction 127: sums fit int32, the length uint32, the products of both uint64
    assert 255 * 127 * tensor.size + np.abs(rule.start).max() < 2**31 and 255**2 * tensor.size + rule.length < 2**32
    add, name = context.constants.add, context.constants.name
    words = {
        "offset": context.plan.where[tensor.name][1],
        "directions": add("int8_t", "directions", rule.directions, "neither"),
        "start": f"{add('int32_t', 'start', rule.start, 'neither')}[c]" if rule.start.any() else "0",
        "channels": tensor.size,
        "zero": tensor.zero_point,
        "length": rule.length,
        "threshold": rule.threshold,
    }
    return _prefixed(NEITHER_H, name).format(word=c_string(word(classes))), _prefixed(NEITHER_C, name).format(**words)


def _defines(upper: str, macros: Mapping[str, int]) -> str:
    return "\n".join(f"#define {upper}_{key} {value}" for key, value in macros.items())


def _object(constants: Constants, blob: bool) -> str:
    """The definition of the constants, or the declaration of those in a blob."""
    name = constants.name
    if not constants.members:
        return ""
    struct = f"struct {name}_weights {{\n{constants.declarations()}}}"
    if not blob:
        return f"static const {struct} {name}_constants = {{\n{constants.initialiser()}\n}};\n"
    return (
        f'{struct};\n#ifdef __cplusplus\nextern "C"\n#else\nextern\n#endif\n'
        f"const struct {name}_weights {name}_constants; /* {name}_weights.S */\n"
    )


def _manual(graph: IntegerGraph, about: About, size: Figures, blob: bool) -> list[str]:
    """The header's first comment, line by line."""
    name, recipe, file = about.name, about.recipe, comment_text(about.file or f"{about.name}.h")
    upper = name.upper()
    image, logits = graph.tensors[graph.input], graph.tensors[graph.output]
    parts = ", ".join(f"{purpose} {count:,}" for purpose, count in size.constants.items())

    def scale(end: str, tensor: Tensor) -> str:
        exact = f"{upper}_{end}_SCALE_MULTIPLIER * 2^({upper}_{end}_SCALE_SHIFT - 31)"
        return (
            f"real = scale * (q - {upper}_{end}_ZERO_POINT), zero point {tensor.zero_point}, scale {tensor.scale!r} "
            f"(the same in integers: {exact})."
        )

    lines = [
        f"{file}: an image classifier in C99, {_shape(image.shape)} -> {logits.size} classes. "
        f"Written by minitl {comment_text(about.version)}.",
        "",
        "HOW TO USE. In exactly one C or C++ file:",
        f"    #define {upper}_IMPLEMENTATION",
        f'    #include "{file}"',
        "Everywhere else include it without the #define. Then:",
        f"    int8_t logits[{upper}_CLASSES];",
        "    int i, best = 0;",
        f"    int8_t *image = {name}_image();    (fill it before every run, which uses it up)",
        f"    if ({name}_run(image, logits) != 0) {{ return 1; }}",
        f"    for (i = 1; i < {upper}_CLASSES; i++) {{ if (logits[i] > logits[best]) {{ best = i; }} }}",
        f"    puts({name}_class_names[best]);",
    ]
    if blob:
        lines.append(f"The weights are in {name}_weights.bin: compile {name}_weights.S, too. A run returns 2 if they are another header's.")
    lines += _paragraph(
        f"THE IMAGE. int8_t image[{upper}_INPUT_BYTES], {_shape(image.shape)}.",
        f"{name}_image() is its place inside the arena, where it costs nothing and is overwritten by the run. An image anywhere else "
        "is only read, and copied there first.",
        *(_recipe_words(recipe, upper) if recipe is not None else ["Order: rows, columns, channels."]),
        scale("INPUT", image),
    )
    lines += _paragraph(
        f"THE LOGITS. int8_t logits[{upper}_CLASSES], one per class, the largest wins. They overlap neither image nor arena.",
        scale("OUTPUT", logits),
        "Probabilities are the softmax of the real values. A threshold on the difference of two logits does without: the odds of their "
        "classes are exp(scale * difference) to 1.",
    )
    if about.neither:
        lines += _paragraph(
            f"{word(about.classes).upper()}.",
            f"{name}_is_neither() says, after a run, whether the image shows none of the classes. It compares the angle between what the "
            "classifier reads and the mean of each class with a threshold that was chosen on validation photos. The arena must be as the "
            f"run left it; {name}_is_neither_in(arena) is for one of yours. {upper}_NEITHER is what to call this answer.",
        )
    lines += _paragraph(
        "MEMORY, known before compiling.",
        f"RAM: {size.arena:,} bytes, the arena, in which the image and all scratch memory lie. {name}_run has a static one, so that two "
        f"calls must not run at the same time. If {upper}_CALLER_ARENA is defined, there is none: call {name}_run_in(arena, image, "
        f"logits) with {upper}_ARENA_BYTES bytes of yours, aligned to 4, free for other use between calls; the image may lie in them at "
        f"{upper}_IMAGE_OFFSET.",
        f"Stack: below {STACK:,} bytes ({upper}_STACK_BYTES; gcc on Cortex-M, every level but -O0). No recursion, no heap.",
        f"Flash: {size.flash:,} bytes of constants ({parts}), and below {size.code:,} bytes of code ({upper}_CODE_BYTES; "
        "gcc -Os and -O2 on Cortex-M; -O3 makes more of it).",
        f"Arena and constants are held by compile-time checks; define {upper}_RAM_LIMIT (arena and stack) or {upper}_FLASH_LIMIT "
        "(constants and code) and the compiler holds yours, too; without -Os it counts half as much code again, at -O0 twice the stack.",
    )
    lines += _paragraph(
        "WORK.",
        f"{graph.macs():,} multiplications with a weight (MACs) per image in {len(graph.ops)} operations.",
        *map(comment_text, about.notes),
    )
    lines += _paragraph(
        "MACROS to define before the implementation.",
        f"{upper}_PORTABLE: plain C also where the processor has DSP or vector instructions (same bits). {upper}_SELFTEST: adds "
        f"{name}_selftest(), which returns 0, or the name of the first layer that computes something else than Python did. "
        f"{upper}_LAYER(i, values, bytes): called after operation i with its output, for profiling; not after one that runs inside of "
        "the next.",
    )
    return lines + _paragraph("ORIGIN.", *_provenance(about.provenance, graph.digest()))


STUB = """\
/* The weights of a header, taken in from minitl_weights.bin: assemble this file with the C compiler, the .bin beside it. */
#if defined(__APPLE__)
    .section __TEXT,__const
#elif defined(_WIN32)
    .section .rdata, "dr"
#else
    .section .rodata.minitl_constants, "a"
#endif
#if defined(__APPLE__) || (defined(_WIN32) && !defined(_WIN64))
    .globl _minitl_constants
    .balign 4
_minitl_constants:
#else
    .globl minitl_constants
    .balign 4
minitl_constants:
#endif
    .incbin "minitl_weights.bin"
#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
"""

TEMPLATE = """\
/* {words}
*/
#ifndef MINITL_H
#define MINITL_H

#include <stdint.h>

{macros}

{pixel}
#ifdef __cplusplus
extern "C" {{
#endif

/* UTF-8, in the order of the logits. */
extern const char minitl_class_names[MINITL_CLASSES][MINITL_CLASS_NAME_BYTES];

/* One image to logits. 0, or 1 if a pointer is NULL or the arena does not lie at a multiple of 4{other}; then nothing is
   written. minitl_image() is where the image costs no copy: inside the arena, where the run overwrites it. */
#ifndef MINITL_CALLER_ARENA
int8_t *minitl_image(void);
int minitl_run(const int8_t *image, int8_t *logits);
#endif

/* The same in MINITL_ARENA_BYTES bytes of the caller's. */
int minitl_run_in(void *arena, const int8_t *image, int8_t *logits);
{neither}
/* 0 if every layer computes what it should, else the name of the first one that does not. Three runs; uses up the image; one at a time. */
#ifdef MINITL_SELFTEST
#ifndef MINITL_CALLER_ARENA
const char *minitl_selftest(void);
#endif
const char *minitl_selftest_in(void *arena);
#endif

#ifdef __cplusplus
}}
#endif

#endif /* MINITL_H */

#ifdef MINITL_IMPLEMENTATION
#ifndef MINITL_IMPLEMENTED
#define MINITL_IMPLEMENTED

#if defined(__cplusplus) && __cplusplus >= 201103L
#define MINITL_ASSERT(fact, word) static_assert(fact, #word);
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define MINITL_ASSERT(fact, word) _Static_assert(fact, #word);
#else
#define MINITL_ASSERT(fact, word) typedef char minitl_##word[(fact) ? 1 : -1];
#endif

/* What the kernels need for this network. */
{needs}

{kernels}
{constants}
const char minitl_class_names[MINITL_CLASSES][MINITL_CLASS_NAME_BYTES] = {{
{names}
}};

MINITL_ASSERT({size}sizeof(minitl_class_names) == MINITL_CONSTANT_BYTES, constants_have_the_stated_size)
#ifdef MINITL_RAM_LIMIT
#if defined(__GNUC__) && !defined(__OPTIMIZE__) /* -O0 takes up to twice the stack */
MINITL_ASSERT(MINITL_ARENA_BYTES + 2 * MINITL_STACK_BYTES <= MINITL_RAM_LIMIT, arena_and_stack_fit_the_limit)
#else
MINITL_ASSERT(MINITL_ARENA_BYTES + MINITL_STACK_BYTES <= MINITL_RAM_LIMIT, arena_and_stack_fit_the_limit)
#endif
#endif
#ifdef MINITL_FLASH_LIMIT
#if defined(__OPTIMIZE_SIZE__) /* -Os; above it code grows by up to a half, and -O0 makes up to two and a half times as much */
MINITL_ASSERT(MINITL_CONSTANT_BYTES + MINITL_CODE_BYTES <= MINITL_FLASH_LIMIT, constants_and_code_fit_the_limit)
#elif defined(__OPTIMIZE__)
MINITL_ASSERT(MINITL_CONSTANT_BYTES + MINITL_CODE_BYTES / 2 * 3 <= MINITL_FLASH_LIMIT, constants_and_code_fit_the_limit)
#else
MINITL_ASSERT(MINITL_CONSTANT_BYTES + MINITL_CODE_BYTES / 2 * 5 <= MINITL_FLASH_LIMIT, constants_and_code_fit_the_limit)
#endif
#endif

#ifndef MINITL_LAYER
#define MINITL_LAYER(i, values, bytes) ((void)0)
#endif
#ifndef MINITL_SELFTEST
#define MINITL_AFTER(i, values, bytes) MINITL_LAYER(i, values, bytes)
#else
#define MINITL_AFTER(i, values, bytes) minitl_check(i, values, bytes); MINITL_LAYER(i, values, bytes)

static const char *const minitl_layer_names[{layers}] = {{
{layer_names}
}};
static const uint32_t minitl_hashes[{vectors}][{layers}] = {{
{hashes}
}};
static int32_t minitl_vector = -1, minitl_wrong = -1; /* the vector that runs in a self-test, the first wrong layer */

static MINITL_ONCE void minitl_check(int32_t layer, const int8_t *values, int32_t bytes)
{{
    uint32_t hash = 0, i;
    if (minitl_vector < 0 || minitl_wrong >= 0) {{
        return;
    }}
    for (i = 0; i < (uint32_t)bytes; i++) {{
        const uint32_t factor = (i + 1u) * (uint32_t)0x9E3779B1;
        hash += (uint32_t)(uint8_t)values[i] * ((factor ^ (factor >> 15)) | 1u);
    }}
    if (hash != minitl_hashes[minitl_vector][layer]) {{
        minitl_wrong = layer;
    }}
}}
#endif

MINITL_ONCE int minitl_run_in(void *memory, const int8_t *image, int8_t *logits)
{{
    int8_t *const arena = (int8_t *)memory;
    int32_t i;
    if (arena == 0 || image == 0 || logits == 0 || ((uintptr_t)memory & 3u) != 0) {{
        return 1;
    }}
{identity}    for (i = 0; image != arena + MINITL_IMAGE_OFFSET && i < MINITL_INPUT_BYTES; i++) {{
        arena[MINITL_IMAGE_OFFSET + i] = image[i];
    }}
{calls}
    return 0;
}}

#ifdef MINITL_SELFTEST
const char *minitl_selftest_in(void *arena)
{{
    int8_t *const image = (int8_t *)arena + MINITL_IMAGE_OFFSET;
    static int8_t logits[MINITL_CLASSES];
    int failed = arena == 0 || ((uintptr_t)arena & 3u) != 0;
    minitl_wrong = -1;
    for (minitl_vector = 0; minitl_vector < {vectors} && failed == 0; minitl_vector++) {{
        uint32_t i;
        for (i = 0; i < MINITL_INPUT_BYTES; i++) {{
            uint32_t u = (i + 1u) * (uint32_t)0x9E3779B1 + (uint32_t)minitl_vector;
            u = (u ^ (u >> 15)) * (uint32_t)0x85EBCA6B;
            u ^= u >> 13;
            u = minitl_vector == 0 ? u >> 24 : minitl_vector == 1 ? (i >> 6) + (u >> 29) : u >> 31 ? 127 : 128;
            image[i] = (int8_t)((int32_t)((u & 255u) ^ 128u) - 128);
        }}
        failed = minitl_run_in(arena, image, logits);
    }}
    minitl_vector = -1;
    return failed ? "the call itself" : minitl_wrong < 0 ? 0 : minitl_layer_names[minitl_wrong];
}}
#endif

#ifndef MINITL_CALLER_ARENA
static int32_t minitl_arena[MINITL_ARENA_BYTES / 4];

int8_t *minitl_image(void)
{{
    return (int8_t *)minitl_arena + MINITL_IMAGE_OFFSET;
}}

int minitl_run(const int8_t *image, int8_t *logits)
{{
    return minitl_run_in(minitl_arena, image, logits);
}}

#ifdef MINITL_SELFTEST
const char *minitl_selftest(void)
{{
    return minitl_selftest_in(minitl_arena);
}}
#endif
#endif
{is_neither}
#endif /* MINITL_IMPLEMENTED */
#endif /* MINITL_IMPLEMENTATION */
"""
