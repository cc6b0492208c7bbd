"""Integer graph -> one self-contained C99 header that computes exactly what IntegerGraph.run computes.

In: an integer graph, a name, class names, the recipe for photos, where the weights come from. Out: the text of the header, the same
for the same arguments. The kernels come from c/kernels.h, the memory from memory.plan.

All constants are one object whose size the compiler must confirm, so the flash and RAM figures in the header's first comment are
facts, not estimates. Left out: kernels for one processor, self-tests, weights outside the header; and no compiler is run here.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from . import memory
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
    Pool,
    Requantise,
    Reshape,
    Tensor,
    Weighted,
    quantise_multiplier,
)

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


def table(values: np.ndarray, indent: str) -> str:
    """The numbers of an array in rows, separated by commas."""
    texts = list(map(str, values.ravel().tolist()))
    width = max(map(len, texts)) + 1
    each = max(1, (LINE - len(indent)) // width)
    return ",\n".join(indent + ",".join(texts[i : i + each]) for i in range(0, len(texts), each))


# ---- constants ---------------------------------------------------------------------------------------------------------------

WINDOW = "minitl_window"
SUM = "minitl_sum"
SIZES = {"int32_t": 4, SUM: 44, WINDOW: 32, "int8_t": 1}
"""Types of constants with their bytes, in the order in which they follow each other: no gap can open between them."""


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
            count[purpose] = count.get(purpose, 0) + (SIZES[type_name] if type_name in (SUM, WINDOW) else values.size * SIZES[type_name])
        if gap := -sum(count.values()) % 4:
            count["padding"] = gap
        return count

    def text(self) -> str:
        """The definition of the object."""
        order = list(SIZES)
        members = sorted(self.members, key=lambda member: order.index(member[0]))  # stable: layers stay in order
        if gap := self.bytes_by_purpose().get("padding"):
            members.append(("int8_t", "padding", np.zeros(gap, np.int8), ""))
        declarations, values = [], []
        for type_name, name, array, _ in members:
            if type_name in (SUM, WINDOW):
                declarations.append(f"    {_prefixed(type_name, self.name)} {name};")
                numbers = [str(v) for v in array.tolist()]
                if type_name == SUM:  # three arrays of three, then the clamp
                    numbers = [f"{{{', '.join(numbers[i : i + 3])}}}" for i in (0, 3, 6)] + numbers[9:]
                values.append(f"    /* {name} */ {{{', '.join(numbers)}}}")
            else:
                declarations.append(f"    {type_name} {name}[{array.size}];")
                values.append(f"    /* {name} */ {{\n{table(array, '    ')}}}")
        return "static const struct {\n" + "\n".join(declarations) + f"\n}} {self.name}_constants = {{\n" + ",\n".join(values) + "\n};\n"


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

    def call(self, kernel: str, *arguments: object) -> str:
        """A call of a kernel, which thereby becomes part of the header."""
        self.kernels.add(kernel)
        return f"{self.constants.name}_{kernel}({', '.join(map(str, arguments))});"


def _window(context: Context, i: int, op: Conv2D | DepthwiseConv2D | Pool) -> str:
    """Registers the window of op number i and returns its address."""
    ins, out = context.graph.ends(op)
    size = op.window if isinstance(op, Pool) else op.kernel.shape[:2]
    numbers = [*ins[0].shape, *out.shape, *size, *op.strides, op.padding[0], op.padding[2]]
    numbers += [ins[0].zero_point, out.zero_point, op.act_min, op.act_max]
    if max(numbers) > 32767:
        raise op.fail(f"the C kernels count rows, columns and channels up to 32767, found {max(numbers)}: use a smaller network")
    return "&" + context.constants.add(WINDOW, f"window_{i}", numbers, "shapes")


def _weights(context: Context, i: int, op: Weighted, kernel: np.ndarray, fold: bool) -> list[str]:
    """Registers kernel (in the order in which C reads it), bias (with the input's zero point folded in if `fold`), multiplier, shift."""
    zero = context.graph.ends(op)[0][0].zero_point
    folded = op.bias.astype(np.int64) - (zero * op.kernel.astype(np.int64).reshape(-1, len(op.bias)).sum(0) if fold else 0)
    assert np.abs(folded).max() < 2**31, "Weighted.check_parameters proves this"
    add = context.constants.add
    return [
        add("int8_t", f"kernel_{i}", kernel, "kernels"),
        add("int32_t", f"bias_{i}", folded, "biases"),
        add("int32_t", f"multiplier_{i}", op.multiplier, "multipliers"),
        add("int8_t", f"shift_{i}", op.shift, "shifts"),
    ]


def _conv2d(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Conv2D)
    window = _window(context, i, op)
    pointwise = op.kernel.shape[:2] == tuple(op.strides) == (1, 1) and not any(op.padding)
    weights = _weights(context, i, op, op.kernel.transpose(3, 0, 1, 2), fold=pointwise)
    return [context.call("pointwise" if pointwise else "conv2d", context.at(op.inputs[0]), context.at(op.output), window, *weights)]


def _depthwise_conv2d(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, DepthwiseConv2D)
    window = _window(context, i, op)
    weights = _weights(context, i, op, op.kernel, fold=False)
    return [context.call("depthwise_conv2d", context.at(op.inputs[0]), context.at(op.output), window, *weights)]


def _dense(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Dense)
    weights = _weights(context, i, op, op.kernel.T, fold=True)
    zero = context.graph.tensors[op.output].zero_point
    ends = context.at(op.inputs[0]), context.at(op.output)
    return [context.call("dense", *ends, *op.kernel.shape, *weights, zero, op.act_min, op.act_max)]


def _pool(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Pool)
    window = _window(context, i, op)
    return [context.call(op.kind, context.at(op.inputs[0]), context.at(op.output), window)]


def _global_mean(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, GlobalMean)
    (source,), out = context.graph.ends(op)
    h, w, c = source.shape
    numbers = (h * w, c, op.multiplier, op.shift, source.zero_point, out.zero_point)
    return [context.call("global_mean", context.at(source.name), context.at(out.name), *numbers)]


def _add(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Add)
    (a, b), out = context.graph.ends(op)
    numbers = [a.zero_point, b.zero_point, out.zero_point, *op.multipliers, *op.shifts, op.act_min, op.act_max]
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
    source, target = context.plan.where[op.inputs[0]], context.plan.where[op.output]
    return [] if source == target else [context.call("copy_rows", source[0], target[0], 1, context.graph.tensors[op.output].size, 0)]


def _requantise(context: Context, i: int, op: Op) -> list[str]:
    assert isinstance(op, Requantise)
    (source,), out = context.graph.ends(op)
    numbers = (out.size, op.multiplier, op.shift, source.zero_point, out.zero_point)
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


def _kernel_text(used: set[str]) -> str:
    """The C of the kernels used and of all that they need, in the file's order."""
    sections, wanted, queue = _sections(), set[str](), list(used)
    while queue:
        wanted.add(name := queue.pop())
        queue += [other for other in sections[name][0] if other not in wanted]
    return "\n".join(text.strip() + "\n" for name, (_, text) in sections.items() if name in wanted)


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
        f"{box}, and scale it to {w}x{h} pixels, {recipe.interpolation}{average}. Turn it upright first.",
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


def _check(graph: IntegerGraph, name: str, classes: list[str], recipe: Recipe | None) -> None:
    """What only the header asks of its arguments."""
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


# ---- the header --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What a header costs, in bytes, exactly: its arena (RAM), and its constants (flash) by purpose. Code is not in it."""

    arena: int
    constants: dict[str, int]


def figures(graph: IntegerGraph, classes: list[str]) -> Figures:
    """The figures that emit() states for this graph and these class names."""
    context, _ = _compile(graph, "figures")
    return Figures(max(context.plan.size, 1), context.constants.bytes_by_purpose() | {"class names": len(classes) * _longest(classes)})


def _longest(classes: list[str]) -> int:
    """Bytes of one row of the table of class names: the longest name and its final zero."""
    return max(len(c.encode()) for c in classes) + 1


def _compile(graph: IntegerGraph, name: str) -> tuple[Context, list[str]]:
    """Constants, kernels and the calls, one text for each op."""
    context = Context(graph, memory.plan(graph), Constants(name))
    calls = []
    for i, op in enumerate(graph.ops):
        calls.append(f"    /* {_describe(graph, i, op)} */\n" + "".join(f"    {call}\n" for call in EMITTERS[type(op)](context, i, op)))
    return context, calls


def emit(
    graph: IntegerGraph,
    name: str,
    classes: list[str],
    recipe: Recipe | None,
    provenance: Mapping[str, object],
    version: str,
    file: str | None = None,
) -> str:
    """The text of NAME.h; write it as ASCII or UTF-8.

    name: prefix of everything in the header, a C identifier (identifier_from() makes one of a file's name).
    classes: one name per output. recipe: how a photo becomes the input; None leaves the words and the pixel macro out.
    provenance: printed as it is, one line per key; 'source' and 'licence' matter most. version: minitl's.
    file: what the header will be called, for its manual (default NAME.h).
    Raises MinitlError for names that C forbids and arguments that disagree.
    """
    _check(graph, name, classes, recipe)
    context, calls = _compile(graph, name)
    size = figures(graph, classes)
    upper = name.upper()
    names = [c_string(c) for c in classes]
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
    macros |= {"ARENA_BYTES": size.arena, "CONSTANT_BYTES": sum(size.constants.values())}

    words = _manual(graph, name, recipe, provenance, version, size, comment_text(file or f"{name}.h"))
    return _prefixed(TEMPLATE, name).format(
        words="\n".join(words),
        macros="\n".join(f"#define {upper}_{key} {value}" for key, value in macros.items()),
        pixel=_pixel_macro(recipe, upper) if recipe is not None else "",
        kernels=_prefixed(_kernel_text(context.kernels), name),
        constants=context.constants.text() if context.constants.members else "",
        size=f"sizeof({name}_constants) + " if context.constants.members else "",
        names=",\n".join(f"    {literal} /* {i} */" for i, literal in enumerate(names)),
        calls="".join(calls).rstrip("\n"),
    )


def _manual(
    graph: IntegerGraph,
    name: str,
    recipe: Recipe | None,
    provenance: Mapping[str, object],
    version: str,
    size: Figures,
    file: str,
) -> list[str]:
    """The header's first comment, line by line."""
    upper = name.upper()
    image, logits = graph.tensors[graph.input], graph.tensors[graph.output]
    parts = ", ".join(f"{purpose} {count:,}" for purpose, count in size.constants.items())

    def scale(end: str, tensor: Tensor) -> str:
        exact = f"{upper}_{end}_SCALE_MULTIPLIER * 2^({upper}_{end}_SCALE_SHIFT - 31)"
        return f"real = scale * (q - {upper}_{end}_ZERO_POINT), zero point {tensor.zero_point}, scale {tensor.scale!r}, to 31 bits {exact}."

    lines = [
        f"{file}: an image classifier in C99, {_shape(image.shape)} -> {logits.size} classes. Written by minitl {comment_text(version)}.",
        "",
        "HOW TO USE. In exactly one C or C++ file:",
        f"    #define {upper}_IMPLEMENTATION",
        f'    #include "{file}"',
        "Everywhere else include it without the #define. Then:",
        f"    int8_t logits[{upper}_CLASSES];",
        "    int i, best = 0;",
        f"    if ({name}_run(image, logits) != 0) {{ return 1; }}",
        f"    for (i = 1; i < {upper}_CLASSES; i++) {{ if (logits[i] > logits[best]) {{ best = i; }} }}",
        f"    puts({name}_class_names[best]);",
    ]
    lines += _paragraph(
        f"THE IMAGE. const int8_t image[{upper}_INPUT_BYTES], {_shape(image.shape)}; it is only read.",
        *(_recipe_words(recipe, upper) if recipe is not None else ["Order: rows, columns, channels."]),
        scale("INPUT", image),
    )
    lines += _paragraph(
        f"THE LOGITS. int8_t logits[{upper}_CLASSES], one per class, the largest wins. They overlap neither image nor arena.",
        scale("OUTPUT", logits),
    )
    lines += _paragraph(
        "MEMORY, exact.",
        f"RAM: {size.arena:,} bytes, the arena. {name}_run has a static one, so that two calls must not run at the same time. "
        f"If {upper}_CALLER_ARENA is defined, there is none: call {name}_run_in(arena, image, logits) with {upper}_ARENA_BYTES bytes of "
        "yours, at any address, free for other use between calls. Image and logits are yours in either case; the image may be const.",
        "Stack: no recursion, no arrays, calls at most four deep; with gcc (-fstack-usage, x86-64 and Cortex-M4) below 512 bytes at -Os "
        "and -O2, below 1,024 at -O3. No heap.",
        f"Flash: {sum(size.constants.values()):,} bytes of constants ({parts}), held by a compile-time check. Code comes on top: a few "
        "kilobytes, depending on the compiler.",
    )
    lines += _paragraph("WORK.", f"{graph.macs():,} multiplications with a weight (MACs) per image in {len(graph.ops)} operations.")
    return lines + _paragraph("ORIGIN.", *_provenance(provenance, graph.digest()))


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

/* One image to logits: 0, or 1 if a pointer is NULL (then nothing is written). */
#ifndef MINITL_CALLER_ARENA
int minitl_run(const int8_t *image, int8_t *logits);
#endif

/* The same in MINITL_ARENA_BYTES bytes of the caller's. */
int minitl_run_in(void *arena, const int8_t *image, int8_t *logits);

#ifdef __cplusplus
}}
#endif

#endif /* MINITL_H */

#ifdef MINITL_IMPLEMENTATION
#ifndef MINITL_IMPLEMENTED
#define MINITL_IMPLEMENTED

{kernels}
{constants}
const char minitl_class_names[MINITL_CLASSES][MINITL_CLASS_NAME_BYTES] = {{
{names}
}};

typedef char minitl_constants_have_the_stated_size[{size}sizeof(minitl_class_names) == MINITL_CONSTANT_BYTES ? 1 : -1];

int minitl_run_in(void *memory, const int8_t *image, int8_t *logits)
{{
    int8_t *const arena = (int8_t *)memory;
    if (arena == 0 || image == 0 || logits == 0) {{
        return 1;
    }}
{calls}
    return 0;
}}

#ifndef MINITL_CALLER_ARENA
int minitl_run(const int8_t *image, int8_t *logits)
{{
    static int8_t arena[MINITL_ARENA_BYTES];
    return minitl_run_in(arena, image, logits);
}}
#endif

#endif /* MINITL_IMPLEMENTED */
#endif /* MINITL_IMPLEMENTATION */
"""
