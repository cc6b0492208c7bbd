"""The kernels of int8 inference, and the loop that runs a whole integer network with them: reference_int8.py's bits, by vectors.

A table of int64 (int8_engine.py makes it) holds one row per operation, its fields below; run() walks it for a few images at a time. Values
are NHWC, channels filled up to a multiple of LANES (what lies there is read, but counts nowhere). How a value q is kept depends on what the
processor multiplies:

    pairs   int16, q - zero point: two products are added to each 32-bit sum at once (vpmaddwd); weights are int16 and already doubled
    quads   one byte, q + BYTE_OFFSET: four products at once (vpdpbusd with VNNI, sdot on ARM); the zero point goes into the bias

A requantisation is that of TFLite, two roundings included, in 64-bit products of the even and the odd lanes: exact by construction.
Left out: checks; int8_engine.py knows that everything fits, integer.py that no sum overflows.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir

from ..native import DOT, LANES
from .vectors import I8, I16, I32, I64, VECTOR, Emit, barrier, copy, emitted, kernel, number

FIELDS = (
    "kind source target height width channels out_height out_width outputs kernel_height kernel_width stride_y stride_x top left "
    "weights numbers bounds residual depth at extra outside"
).split()
"""A row of the table. source, target, residual: bytes into the arena. height ... outputs: of source and target, channels filled up.
weights, numbers: addresses, the latter of the blocks of requantisation (below). bounds: address of three int32: zero point, low, high of
what is kept. outside: address of a row of what stands for zero. depth: groups of products per output and row of the kernel.
at, extra: see the operations."""

GROUP, BYTE_OFFSET, INSTRUCTION = DOT

ROW = len(FIELDS)
(KIND, SOURCE, TARGET, HEIGHT, WIDTH, CHANNELS, OUT_HEIGHT, OUT_WIDTH, OUTPUTS, KERNEL_HEIGHT, KERNEL_WIDTH, STRIDE_Y, STRIDE_X, TOP, LEFT,
 WEIGHTS, NUMBERS, BOUNDS, RESIDUAL, DEPTH, AT, EXTRA, OUTSIDE) = range(ROW)  # fmt: skip

KINDS = "convert frame conv pointwise depthwise window average maximum mean add rescale place reshape take".split()
CONVERT, FRAME, CONV, POINTWISE, DEPTHWISE, WINDOW, AVERAGE, MAXIMUM, MEAN, ADD, RESCALE, PLACE, RESHAPE, TAKE = range(len(KINDS))

BIAS, DOUBLING, EVEN, ODD, EVEN_ROUND, ODD_ROUND, NEGATIVE, RIGHT = (VECTOR * i for i in range(8))
BLOCK = 8 * VECTOR
"""A block of requantisation: eight vectors for LANES channels. Bias; shift to the left, one more than TFLite's; multipliers, and once more
for the odd lanes; what rounds the 64-bit products of even and odd lanes; above what 1 is missing; shift to the right."""

SIZE = 4 // GROUP
"""Bytes of a value."""
STEP = SIZE * LANES
"""Bytes of LANES values side by side."""

TILES = {
    4: {1: (1, 4, 8), 2: (1, 3, 5, 6), 3: (1, 2, 4)},
    8: {1: (1, 4, 8), 2: (1, 3, 5, 6), 3: (1, 2, 4)},
    16: {1: (1, 6, 12), 2: (1, 4, 7, 12), 3: (1, 4, 8)},
}[LANES]
"""{panels: rows} of the tiles of sums, up to the largest that fits into the registers."""

WIDE = ir.VectorType(I32, LANES)
HALF = ir.VectorType(I64, LANES // 2)
KEPT = ir.VectorType(I16 if GROUP == 2 else I8, LANES)


# ---- what differs between processors


def _dot(emit: Emit, total: Any, values: Any, weights: Any) -> Any:
    """total + the sum of GROUP products per lane. All three are LANES x int32, of which values and weights hold GROUP numbers each."""
    builder, name, parts = emit.builder, INSTRUCTION + "!", ir.VectorType(KEPT.element, LANES * GROUP)
    if INSTRUCTION and GROUP == 4 and "x86" in name:
        return emit.call(name, WIDE, total, values, weights)
    if INSTRUCTION:
        both = builder.bitcast(values, parts), builder.bitcast(weights, parts)
        return builder.add(total, emit.call(name, WIDE, *both)) if GROUP == 2 else emit.call(name, WIDE, total, *both)
    bits = 32 // GROUP
    for part in range(GROUP):
        value, weight = (builder.shl(x, _all(bits * (GROUP - 1 - part))) for x in (values, weights))
        unsigned = GROUP == 4 and BYTE_OFFSET
        value = (builder.lshr if unsigned else builder.ashr)(value, _all(32 - bits))
        total = builder.add(total, builder.mul(value, builder.ashr(weight, _all(32 - bits))))
    return total


def _all(value: int) -> Any:
    return ir.Constant(WIDE, [value] * LANES)


def _read(emit: Emit, address: Any, signed: bool = GROUP == 2 or not BYTE_OFFSET) -> Any:
    """LANES kept values as int32."""
    return (emit.builder.sext if signed else emit.builder.zext)(emit.load_as(KEPT, address), WIDE)


# ---- requantisation


def _requantise(emit: Emit, total: Any, block: Any, doubled: bool) -> Any:
    """reference_int8.requantise of sums, which are twice as large and shifted to the left where `doubled`.

    high = (2 a m + 2**31) >> 32, then (high + half - (high < 0)) >> right. What is added first, and half - 1, are added in one, 64 bits
    wide; then high >= 0 where the upper 32 bits are above half - 2, and 1 is missing there.
    """
    builder = emit.builder

    def vector(at: int, kind: Any = WIDE) -> Any:
        return emit.load_as(kind, emit.add(block, at), 4)

    def low(wide: Any) -> Any:
        up = ir.Constant(HALF, [32] * (LANES // 2))
        return builder.ashr(builder.shl(wide, up), up)

    if not doubled:
        total = builder.shl(total, vector(DOUBLING))
    even = builder.bitcast(total, HALF)
    odd = builder.lshr(even, ir.Constant(HALF, [32] * (LANES // 2)))
    even = builder.add(builder.mul(low(even), low(vector(EVEN, HALF))), vector(EVEN_ROUND, HALF))
    odd = builder.add(builder.mul(low(odd), low(vector(ODD, HALF))), vector(ODD_ROUND, HALF))
    upper = ir.Constant(WIDE, [i + 1 if i % 2 == 0 else i + LANES for i in range(LANES)])
    high = builder.shuffle_vector(builder.bitcast(even, WIDE), builder.bitcast(odd, WIDE), upper)
    minus = builder.sext(builder.icmp_signed(">", high, vector(NEGATIVE)), WIDE)
    return builder.ashr(builder.sub(high, minus), vector(RIGHT))


class _Bounds:
    """Zero point, low and high of what is kept, in all lanes of one or two vectors of int16."""

    def __init__(self, emit: Emit, address: Any) -> None:
        self.emit = emit
        values = [emit.builder.trunc(emit.load_as(I32, emit.add(address, 4 * i), 4), I16) for i in range(3)]
        self.splats = {count: [emit.splat(value, count * LANES) for value in values] for count in (1, 2)}

    def store(self, values: list[Any], *addresses: Any) -> None:
        """Keep one or two vectors of int32, side by side or at two addresses."""
        builder, count = self.emit.builder, len(values)
        zero, low, high = self.splats[count]
        both = self._narrow(values)
        if GROUP == 4:
            both = self.emit.call("llvm.sadd.sat", both.type, both, zero)
        both = builder.select(builder.icmp_signed("<", both, low), low, both)
        both = builder.select(builder.icmp_signed(">", both, high), high, both)
        if GROUP == 4:
            both = builder.trunc(both, ir.VectorType(I8, count * LANES))
        if len(addresses) == 1:
            self.emit.store_as(both, addresses[0])
            return
        for i, address in enumerate(addresses):
            half = ir.Constant(ir.VectorType(I32, LANES), list(range(i * LANES, (i + 1) * LANES)))
            self.emit.store_as(builder.shuffle_vector(both, both, half), address)

    def _narrow(self, values: list[Any]) -> Any:
        """int32 -> int16, what is too large or too small as near as possible."""
        builder, lanes = self.emit.builder, len(values) * LANES
        whole = values[0]
        if len(values) == 2:
            whole = builder.shuffle_vector(*values, ir.Constant(ir.VectorType(I32, lanes), list(range(lanes))))
        low, high = (ir.Constant(whole.type, [limit] * lanes) for limit in (-(2**15), 2**15 - 1))
        whole = builder.select(builder.icmp_signed("<", whole, low), low, whole)
        whole = builder.select(builder.icmp_signed(">", whole, high), high, whole)
        return builder.trunc(whole, ir.VectorType(I16, lanes))


# ---- products: a tile of pixels x panels of LANES outputs, its sums in registers


def _tile(panels: int) -> Any:
    @emitted(12)
    def tile(emit: Emit, rows, a, a_row, segments, a_segment, depth, b, b_panel, numbers, c, c_row, bounds):  # type: ignore[no-untyped-def]
        def with_rows(count: int) -> None:
            start = [emit.load_as(WIDE, emit.add(numbers, BLOCK * p + BIAS), 4) for p in range(panels)]
            within = [emit.mul(a_row, r) for r in range(3)]  # what an x86 address can add to one of a few pointers
            thirds = [emit.mul(a_row, r) for r in range(0, count, 3)]
            b_panels = [emit.mul(b_panel, p) for p in range(panels)]

            def segment(_: Any, a_start: Any, b_start: Any, *sums: Any) -> list[Any]:
                def step(_: Any, b_at: Any, *carried: Any) -> list[Any]:
                    a_at, before = carried[: len(thirds)], carried[len(thirds) :]
                    weights = [emit.load_as(WIDE, emit.add(b_at, at), 4) for at in b_panels]
                    new = []
                    for r in range(count):
                        value = emit.splat(emit.load_as(I32, emit.add(a_at[r // 3], within[r % 3])))
                        new += [_dot(emit, before[r * panels + p], value, weights[p]) for p in range(panels)]
                    return [emit.add(b_at, VECTOR), *(emit.add(at, 4) for at in a_at), *new]

                b_at, *after = emit.loop(depth, [b_start, *(emit.add(a_start, third) for third in thirds), *sums], step)
                return [emit.add(a_start, a_segment), b_at, *after[len(thirds) :]]

            _, _, *sums = emit.loop(segments, [a, b, *start * count], segment)
            limits = _Bounds(emit, bounds)
            for p in range(0, panels, 2):
                side = range(p, min(p + 2, panels))
                for r in range(count):
                    found = [_requantise(emit, sums[r * panels + q], emit.add(numbers, BLOCK * q), GROUP == 2) for q in side]
                    limits.store(found, emit.add(c, emit.add(emit.mul(c_row, r), STEP * p)))

        emit.choose(rows, {count: functools.partial(with_rows, count) for count in sizes})

    sizes = TILES[panels]
    most = sizes[-1]

    @kernel
    def block(count, a, a_row, segments, a_segment, depth, b, b_panel, numbers, c, c_row, bounds):  # type: ignore[no-untyped-def]
        tiles = (count + most - 1) // most
        size = 1
        for larger in sizes:
            if larger <= count and size * tiles < count:
                size = larger
        for i in range(0, count, size):  # some rows are done twice where they do not add up
            first = min(i, count - size)
            tile(size, a + first * a_row, a_row, segments, a_segment, depth, b, b_panel, numbers, c + first * c_row, c_row, bounds)

    return block


_one, _two, _three = _tile(1), _tile(2), _tile(3)


@kernel
def product(rows, columns, a, a_row, segments, a_segment, depth, b, numbers, c, c_row, bounds):  # type: ignore[no-untyped-def]
    """c[r, n] = kept(bias[n] + sum over segments s, groups k and what is in them of a[r][s][k] * b[n][s][k]).

    a_row, a_segment, c_row: bytes from one to the next. Rows are taken in such numbers that their part of a stays in the first-level cache.
    """
    panel = segments * depth * VECTOR
    at_once = max(24, 16384 // (4 * segments * depth) // 12 * 12)
    panels = columns // LANES
    first = 0
    while first < rows:
        count = min(at_once, rows - first)
        if rows - first - count < 12:
            count = rows - first
        a_at, c_at = a + first * a_row, c + first * c_row
        p = 0
        while p < panels:
            left = panels - p
            weights, place, block = b + p * panel, c_at + p * STEP, numbers + p * BLOCK
            if left == 1:
                _one(count, a_at, a_row, segments, a_segment, depth, weights, panel, block, place, c_row, bounds)
                p += 1
            elif left == 3:
                _three(count, a_at, a_row, segments, a_segment, depth, weights, panel, block, place, c_row, bounds)
                p += 3
            else:
                _two(count, a_at, a_row, segments, a_segment, depth, weights, panel, block, place, c_row, bounds)
                p += 2
        first += count


# ---- depthwise 3x3: rows of outputs for one panel of channels; values one above the other make a group


AT_ONCE = 4
"""Outputs of a depthwise row at once, where it has so many."""


@emitted(16)
def _depthwise_rows(emit: Emit, at_once, stride, count, row0, row1, row2, row, out_width, left, right, step, outside, weights, numbers, target, bounds):  # type: ignore[no-untyped-def]  # noqa: E501  # fmt: skip
    """`count` rows of outputs. at_once (AT_ONCE or 1) outputs side by side share their columns; the last ones of a row may be done twice.

    At most one column of the windows lies outside of the image on either side (left, right: 0 or 1): there, `outside` is read.
    """

    def case(at_once: int, stride: int) -> None:
        builder, limits = emit.builder, _Bounds(emit, bounds)
        columns = stride * (at_once - 1) + 3
        groups = [range(first, min(3, first + GROUP)) for first in range(0, 3, GROUP)]
        start = emit.load_as(WIDE, emit.add(numbers, BIAS), 4)
        kernel = [emit.load_as(WIDE, emit.add(weights, VECTOR * t), 4) for t in range(3 * len(groups))]
        steps = [emit.mul(step, i) for i in range(columns)]
        turns = builder.sdiv(emit.add(out_width, at_once - 1), emit.const(at_once))
        last_x = emit.add(out_width, -at_once)

        def packed(bases: list[Any], column: Any, group: range) -> Any:
            """Values one above the other, in one lane."""
            found = None
            for position, y in enumerate(group):
                value = _read(emit, column(bases[y]), signed=False)
                found = value if found is None else builder.or_(found, builder.shl(value, _all(32 // GROUP * position)))
            return found

        def one_row(_: Any, shift: Any, place: Any) -> list[Any]:
            bases = [emit.add(base, shift) for base in (row0, row1, row2)]

            def turn(number: Any) -> list[Any]:
                x = emit.mul(number, at_once)
                x = builder.select(builder.icmp_signed("<", x, last_x), x, last_x)
                at = emit.mul(builder.sub(emit.mul(x, stride), left), step)
                beyond = {
                    0: builder.and_(builder.icmp_signed("==", x, emit.const(0)), builder.icmp_signed("!=", left, emit.const(0))),
                    columns - 1: builder.and_(builder.icmp_signed("==", x, last_x), builder.icmp_signed("!=", right, emit.const(0))),
                }

                def address(base: Any, column: int) -> Any:
                    inside = emit.add(emit.add(base, at), steps[column])
                    return builder.select(beyond[column], outside, inside) if column in beyond else inside

                sums = [start] * at_once
                for column in range(columns):
                    users = [u for u in range(at_once) if 0 <= column - stride * u < 3]
                    for index, group in enumerate(groups if users else []):
                        values = packed(bases, lambda base, column=column: address(base, column), group)
                        for u in users:
                            sums[u] = _dot(emit, sums[u], values, kernel[(column - stride * u) * len(groups) + index])
                goal = emit.add(place, emit.mul(x, step))
                for u in range(0, at_once, 2):
                    side = range(u, min(u + 2, at_once))
                    found = [_requantise(emit, sums[v], numbers, GROUP == 2) for v in side]
                    limits.store(found, *(emit.add(goal, steps[v]) for v in side))
                return []

            emit.loop(turns, [], turn)
            return [emit.add(shift, emit.mul(row, stride)), emit.add(place, emit.mul(out_width, step))]

        emit.loop(count, [emit.const(0), target], one_row)

    number = emit.add(emit.mul(at_once, 4), stride)
    cases = [(few, by) for few in (AT_ONCE, 1) for by in (1, 2)]
    emit.choose(number, {4 * few + by: functools.partial(case, few, by) for few, by in cases})


ROWS_IN_CACHE = 12288
"""Bytes of input that a depthwise convolution reads for one panel of channels before it goes to the next."""


# ---- windows of any size, sums of whole images, and what goes value by value


def _windows(what: str) -> Any:
    """One output pixel, all channels, from the taps of its window: products, or the sum, mean or maximum. There is at least one tap."""

    @emitted(11)
    def window(emit: Emit, panels, taps_y, taps_x, source, y_step, x_step, weights, w_y_step, w_x_step, numbers, ends):  # type: ignore[no-untyped-def]
        builder = emit.builder
        target, bounds, offset = (emit.load_as(I64, emit.add(ends, 8 * i)) for i in range(3))
        limits = _Bounds(emit, bounds)

        def panel(p: Any) -> list[Any]:
            image, block = emit.add(source, emit.mul(p, STEP)), emit.add(numbers, emit.mul(p, BLOCK))

            def in_y(y: Any, total: Any) -> list[Any]:
                row, w_row = emit.add(image, emit.mul(y_step, y)), emit.add(emit.add(weights, emit.mul(p, VECTOR)), emit.mul(w_y_step, y))

                def in_x(x: Any, total: Any) -> list[Any]:
                    value = _read(emit, emit.add(row, emit.mul(x_step, x)))
                    if what == "maximum":
                        return [builder.select(builder.icmp_signed("<", value, total), total, value)]
                    if what == "products":
                        value = builder.mul(value, emit.load_as(WIDE, emit.add(w_row, emit.mul(w_x_step, x)), 4))
                    return [builder.add(value, total)]

                return emit.loop(taps_x, [total], in_x)

            first = (
                _read(emit, image) if what == "maximum" else _all(0) if what == "average" else emit.load_as(WIDE, emit.add(block, BIAS), 4)
            )
            (total,) = emit.loop(taps_y, [first], in_y)
            if what == "average":
                total = _mean(emit, total, emit.mul(taps_y, taps_x), offset)
            elif what != "maximum":
                total = _requantise(emit, total, block, what == "products" and GROUP == 2)
            if what in ("average", "maximum") and GROUP == 4:  # bounds add the zero point, which values here have already
                total = builder.sub(total, builder.sext(limits.splats[1][0], WIDE))
            limits.store([total], emit.add(target, emit.mul(p, STEP)))
            return []

        emit.loop(panels, [], panel)

    return window


def _mean(emit: Emit, total: Any, count: Any, offset: Any) -> Any:
    """Sums of `count` kept values -> mean of the q, halves away from zero, as kept. offset: what a kept value is above q.

    In float64: |total| + count / 2 is below 2**53, and a quotient below an integer k by at least 1 / count is no nearer to k than that.
    """
    builder = emit.builder
    doubles = ir.VectorType(ir.DoubleType(), LANES)
    narrow = lambda value: emit.splat(builder.trunc(value, I32))  # noqa: E731
    total = builder.sub(total, narrow(emit.mul(count, offset)))
    below = builder.icmp_signed("<", total, _all(0))
    size = builder.add(builder.select(below, builder.sub(_all(0), total), total), narrow(builder.lshr(count, emit.const(1))))
    size = builder.fptosi(builder.fdiv(builder.sitofp(size, doubles), builder.sitofp(narrow(count), doubles)), WIDE)
    return builder.add(builder.select(below, builder.sub(_all(0), size), size), narrow(offset))


_products, _sums, _means, _maxima = _windows("products"), _windows("sum"), _windows("average"), _windows("maximum")


@emitted(4)
def _ends(emit: Emit, place, target, bounds, offset):  # type: ignore[no-untyped-def]
    """What _windows reads at `place`."""
    for i, value in enumerate((target, bounds, offset)):
        emit.store_as(value, emit.add(place, 8 * i))


@emitted(5)
def _rescaled(emit: Emit, vectors, source, target, numbers, bounds):  # type: ignore[no-untyped-def]
    limits = _Bounds(emit, bounds)

    def vector(i: Any) -> list[Any]:
        total = emit.builder.add(_read(emit, emit.add(source, emit.mul(i, STEP))), emit.load_as(WIDE, emit.add(numbers, BIAS), 4))
        limits.store([_requantise(emit, total, numbers, False)], emit.add(target, emit.mul(i, STEP)))
        return []

    emit.loop(vectors, [], vector)


@emitted(6)
def _added(emit: Emit, vectors, source, other, target, numbers, bounds):  # type: ignore[no-untyped-def]
    """Three blocks of requantisation: of both inputs, of their sum."""
    limits = _Bounds(emit, bounds)

    def vector(i: Any) -> list[Any]:
        at, parts = emit.mul(i, STEP), []
        for place, block in ((source, numbers), (other, emit.add(numbers, BLOCK))):
            value = emit.builder.add(_read(emit, emit.add(place, at)), emit.load_as(WIDE, emit.add(block, BIAS), 4))
            parts.append(_requantise(emit, value, block, False))
        limits.store([_requantise(emit, emit.builder.add(*parts), emit.add(numbers, 2 * BLOCK), False)], emit.add(target, at))
        return []

    emit.loop(vectors, [], vector)


def _converted(inwards: bool) -> Any:
    """So many values from int8 to what is kept, which is `offset` above it, or back; nothing beyond them is touched."""

    @emitted(4)
    def convert(emit: Emit, count, source, target, offset):  # type: ignore[no-untyped-def]
        builder = emit.builder
        from_size, to_size = (1, SIZE) if inwards else (SIZE, 1)

        def some(lanes: int, index: Any, shift: Any) -> None:
            kinds = [ir.VectorType(I8, lanes), ir.VectorType(KEPT.element, lanes)]
            before, after = kinds if inwards else kinds[::-1]
            at = emit.add(shift, emit.mul(index, lanes))
            value = emit.load_as(before, emit.add(source, emit.mul(at, from_size)))
            both = I16 if GROUP == 2 else I8
            wide = ir.VectorType(both, lanes)
            value = builder.sext(value, wide) if value.type != wide else value
            plus = emit.splat(builder.trunc(offset, both), lanes)
            value = builder.add(value, plus) if inwards else builder.sub(value, plus)
            value = builder.trunc(value, after) if value.type != after else value
            emit.store_as(value, emit.add(target, emit.mul(at, to_size)))

        whole = builder.and_(count, emit.const(-16))
        rest = builder.sub(count, whole)

        def vectors(i: Any) -> list[Any]:
            some(16, i, emit.const(0))
            return []

        def singles(i: Any) -> list[Any]:
            some(1, i, whole)
            return []

        with builder.if_then(builder.icmp_signed(">", whole, emit.const(0))):
            emit.loop(builder.lshr(whole, emit.const(4)), [], vectors)
        with builder.if_then(builder.icmp_signed(">", rest, emit.const(0))):
            emit.loop(rest, [], singles)

    return convert


_keep, _give = _converted(True), _converted(False)


@emitted(3)
def _fill(emit: Emit, target, count, value):  # type: ignore[no-untyped-def]
    """So many bytes of this value."""
    name = "llvm.memset.p0.i64"
    kinds = [I8.as_pointer(), I8, I64, ir.IntType(1)]
    module = emit.builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    emit.builder.call(function, [emit.pointer(target, I8), emit.builder.trunc(value, I8), count, ir.Constant(ir.IntType(1), 0)])


# ---- the operations: each does part `thread` of `threads` of a group of images


@kernel
def _share(count, thread, threads):  # type: ignore[no-untyped-def]
    return count * thread // threads, count * (thread + 1) // threads


@kernel
def _frame(op, source, target, images, image_step, from_images, thread, threads):  # type: ignore[no-untyped-def]
    """Copy images into the middle of frames of zeros, bytes of `extra`; from_images: convert them from int8 to what is `at` above.

    depth: values of a pixel.
    """
    height, out_height, depth, fill = number(op, HEIGHT), number(op, OUT_HEIGHT), number(op, DEPTH), number(op, EXTRA)
    row, out_row, left = number(op, WIDTH) * depth, number(op, OUT_WIDTH) * depth * SIZE, number(op, LEFT) * depth * SIZE
    right = out_row - left - row * SIZE
    first, last = _share(images * out_height, thread, threads)
    for y in range(first, last):
        image, at = y // out_height, y % out_height - number(op, TOP)
        place = target + y * out_row
        if 0 <= at < height:
            _fill(place, left, fill)
            if from_images:
                _keep(row, source + image * image_step + at * row, place + left, number(op, AT))
            else:
                copy(place + left, source + image * image_step + at * row * SIZE, row * SIZE)
            _fill(place + left + row * SIZE, right, fill)
        else:
            _fill(place, out_row, fill)


@kernel
def _conv(op, source, target, images, thread, threads):  # type: ignore[no-untyped-def]
    """Any convolution, as products of whole windows: a row of a window lies in one piece. No padding: _frame has made it."""
    height, row = number(op, HEIGHT), number(op, WIDTH) * number(op, CHANNELS) * SIZE
    out_height, out_width, outputs = number(op, OUT_HEIGHT), number(op, OUT_WIDTH), number(op, OUTPUTS)
    stride_y, a_row = number(op, STRIDE_Y), number(op, STRIDE_X) * number(op, CHANNELS) * SIZE
    out_row = SIZE * outputs
    first, last = _share(images * out_height, thread, threads)
    for y in range(first, last):
        at = source + ((y // out_height) * height + (y % out_height) * stride_y) * row
        product(out_width, outputs, at, a_row, number(op, KERNEL_HEIGHT), row, number(op, DEPTH), number(op, WEIGHTS), number(op, NUMBERS),
                target + y * out_width * out_row, out_row, number(op, BOUNDS))  # fmt: skip


@kernel
def _pointwise(op, source, target, images, thread, threads):  # type: ignore[no-untyped-def]
    """A 1x1 convolution: one product over all pixels; threads divide the pixels, or the outputs where there are few pixels."""
    pixels, outputs, depth = images * number(op, OUT_HEIGHT) * number(op, OUT_WIDTH), number(op, OUTPUTS), number(op, DEPTH)
    a_row, c_row, weights = SIZE * number(op, CHANNELS), SIZE * outputs, number(op, WEIGHTS)
    numbers, bounds = number(op, NUMBERS), number(op, BOUNDS)
    if pixels >= 24 * threads or threads == 1:
        first, last = _share(pixels, thread, threads)
        if last > first:
            product(
                last - first, outputs, source + first * a_row, a_row, 1, 0, depth, weights, numbers, target + first * c_row, c_row, bounds
            )
    else:
        first, last = _share(outputs // LANES, thread, threads)
        if last > first:
            product(pixels, (last - first) * LANES, source, a_row, 1, 0, depth, weights + first * VECTOR * depth, numbers + first * BLOCK,
                    target + first * STEP, c_row, bounds)  # fmt: skip


@kernel
def _depthwise(op, source, target, images, thread, threads):  # type: ignore[no-untyped-def]
    """3x3 with stride 1 or 2 and at most one column outside on either side."""
    height, width, out_height, out_width = number(op, HEIGHT), number(op, WIDTH), number(op, OUT_HEIGHT), number(op, OUT_WIDTH)
    channels, stride, outside = number(op, CHANNELS), number(op, STRIDE_X), number(op, OUTSIDE)
    top, left = number(op, TOP), number(op, LEFT)
    weights, numbers, bounds = number(op, WEIGHTS), number(op, NUMBERS), number(op, BOUNDS)
    step = SIZE * channels
    row, right = width * step, max(0, (out_width - 1) * stride - left + 3 - width)
    some, at_once = max(1, ROWS_IN_CACHE // row), AT_ONCE if out_width >= AT_ONCE else 1
    panel = 3 * ((2 + GROUP) // GROUP) * VECTOR
    first, last = _share(images * out_height, thread, threads)
    y = first
    while y < last:
        image, in_image = source + (y // out_height) * height * row, y % out_height
        at = in_image * stride - top
        row0 = image + at * row if 0 <= at < height else outside
        row1 = image + (at + 1) * row if 0 <= at + 1 < height else outside
        row2 = image + (at + 2) * row if 0 <= at + 2 < height else outside
        count = 1
        if at >= 0:  # rows that see three rows of the image are done together, as many as stay in the cache
            count = max(1, min((height - 3 - at) // stride + 1, min(last - y, min(out_height - in_image, some))))
        for p in range(channels // LANES):
            at0, at1, at2, place = row0 + p * STEP, row1 + p * STEP, row2 + p * STEP, target + y * out_width * step + p * STEP
            w, n = weights + p * panel, numbers + p * BLOCK
            _depthwise_rows(at_once, stride, count, at0, at1, at2, row, out_width, left, right, step, outside, w, n, place, bounds)
        y += count


@kernel
def _window(op, source, target, images, kind, scratch, thread, threads):  # type: ignore[no-untyped-def]
    """Depthwise products of any window (no padding), means and maxima of what lies in the image, sums of whole images (mean)."""
    height, width, channels = number(op, HEIGHT), number(op, WIDTH), number(op, CHANNELS)
    out_height, out_width, top, left = number(op, OUT_HEIGHT), number(op, OUT_WIDTH), number(op, TOP), number(op, LEFT)
    weights, numbers, bounds, panels = number(op, WEIGHTS), number(op, NUMBERS), number(op, BOUNDS), channels // LANES
    step = SIZE * channels
    row, w_step = width * step, 4 * channels
    first, last = _share(images * out_height, thread, threads)
    for y in range(first, last):
        image, at = source + (y // out_height) * height * row, (y % out_height) * number(op, STRIDE_Y) - top
        top_tap, bottom_tap = max(0, -at), min(number(op, KERNEL_HEIGHT), height - at)
        for x in range(out_width):
            column = x * number(op, STRIDE_X) - left
            left_tap, right_tap = max(0, -column), min(number(op, KERNEL_WIDTH), width - column)
            taps_y, taps_x = bottom_tap - top_tap, right_tap - left_tap
            place = image + (at + top_tap) * row + (column + left_tap) * step
            _ends(scratch, target + (y * out_width + x) * step, bounds, number(op, AT))
            if kind == WINDOW:
                _products(panels, taps_y, taps_x, place, row, step, weights, number(op, KERNEL_WIDTH) * w_step, w_step, numbers, scratch)
            elif kind == MEAN:
                _sums(panels, taps_y, taps_x, place, row, step, 0, 0, 0, numbers, scratch)
            elif kind == AVERAGE:
                _means(panels, taps_y, taps_x, place, row, step, 0, 0, 0, 0, scratch)
            else:
                _maxima(panels, taps_y, taps_x, place, row, step, 0, 0, 0, 0, scratch)


# ---- a whole network


@kernel
def run(table, operations, arena, arena_bytes, feeds, first, last, at_once, zeros, thread, threads, counter):  # type: ignore[no-untyped-def]
    """Images first ... last - 1 through all operations, at_once at a time. Arguments as in fast/inference.py."""
    scratch = arena + arena_bytes + 64 * thread
    done = first
    while done < last:
        images = min(at_once, last - done)
        for i in range(operations):
            op = table + i * ROW * 8
            kind, source, target = number(op, KIND), arena + number(op, SOURCE), arena + number(op, TARGET)
            if kind == POINTWISE:
                _pointwise(op, source, target, images, thread, threads)
            elif kind == DEPTHWISE:
                _depthwise(op, source, target, images, thread, threads)
            elif kind == CONV:
                _conv(op, source, target, images, thread, threads)
            elif kind == CONVERT:
                step = number(feeds, 1)
                _frame(op, number(feeds, 0) + done * step, target, images, step, True, thread, threads)
            elif kind == FRAME:
                _frame(
                    op, source, target, images, number(op, HEIGHT) * number(op, WIDTH) * number(op, DEPTH) * SIZE, False, thread, threads
                )
            elif kind == WINDOW or kind == AVERAGE or kind == MAXIMUM or kind == MEAN:
                _window(op, source, target, images, kind, scratch, thread, threads)
            elif kind == ADD or kind == RESCALE:
                start, end = _share(images * number(op, OUT_HEIGHT) * number(op, OUT_WIDTH) * number(op, OUTPUTS) // LANES, thread, threads)
                if end > start:
                    shift = start * STEP
                    if kind == ADD:
                        _added(
                            end - start,
                            source + shift,
                            arena + number(op, RESIDUAL) + shift,
                            target + shift,
                            number(op, NUMBERS),
                            number(op, BOUNDS),
                        )
                    else:
                        _rescaled(end - start, source + shift, target + shift, number(op, NUMBERS), number(op, BOUNDS))
            elif kind == PLACE:  # channels of a value beside those of others
                start, end = _share(images * number(op, OUT_HEIGHT) * number(op, OUT_WIDTH), thread, threads)
                for pixel in range(start, end):
                    copy(
                        target + SIZE * (pixel * number(op, OUTPUTS) + number(op, AT)),
                        source + SIZE * pixel * number(op, CHANNELS),
                        SIZE * number(op, DEPTH),
                    )
            elif (
                kind == RESHAPE and thread == 0
            ):  # depth: channels of the source, extra: of the target, at: as many as are in one piece in both
                pixels, out_pixels, piece = (
                    number(op, HEIGHT) * number(op, WIDTH),
                    number(op, OUT_HEIGHT) * number(op, OUT_WIDTH),
                    number(op, AT),
                )
                depth, out_depth = number(op, DEPTH), number(op, EXTRA)
                for image in range(images):
                    for value in range(0, pixels * depth, piece):
                        place = (image * out_pixels + value // out_depth) * number(op, OUTPUTS) + value % out_depth
                        copy(
                            target + SIZE * place,
                            source + SIZE * ((image * pixels + value // depth) * number(op, CHANNELS) + value % depth),
                            SIZE * piece,
                        )
            elif (
                kind == TAKE and thread == 0
            ):  # to the caller as int8, without the channels that fill up; extra: what is kept is so much above
                pixels, depth = number(op, OUT_HEIGHT) * number(op, OUT_WIDTH), number(op, DEPTH)
                place, step = number(feeds, 2 * number(op, AT)), number(feeds, 2 * number(op, AT) + 1)
                for image in range(images):
                    for pixel in range(pixels):
                        _give(
                            depth,
                            source + SIZE * (image * pixels + pixel) * number(op, CHANNELS),
                            place + (done + image) * step + pixel * depth,
                            number(op, EXTRA),
                        )
            barrier(counter, threads)
        done += images


EXPORTS = {"run": (run, 12)}
