"""The kernels of float inference, and the loop that runs a whole network with them.

A network is a table of int64 (engine.py makes it): one row per operation, its fields below. run() walks it for a few images at a time, so
that their values stay in the cache of the processor, and never goes back to Python. Values are NHWC, their channels filled up with zeros
to a multiple of LANES; weights are packed in panels of LANES outputs, (outputs / LANES, K, LANES), as they are read.

Every output is its bias plus its products in one fixed order, so that its bits depend neither on the tiles, nor on the number of threads,
nor on the other images of a batch. Left out: checks; engine.py knows that everything fits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ..native import LANES
from .vectors import F32, I64, VECTOR, Emit, barrier, clear, copy, emitted, kernel, number

FIELDS = (
    "kind source target height width channels out_height out_width outputs kernel_height kernel_width stride_y stride_x top left "
    "weights bias bounds residual depth at extra scratch"
).split()
"""A row of the table. source, target, residual: bytes into the arena, -1 for none. height ... outputs: of source and target, filled up.
weights, bias, bounds (low, high): addresses. depth: products per output and row of the kernel. at, extra: see the operations."""

ROW = len(FIELDS)
(KIND, SOURCE, TARGET, HEIGHT, WIDTH, CHANNELS, OUT_HEIGHT, OUT_WIDTH, OUTPUTS, KERNEL_HEIGHT, KERNEL_WIDTH, STRIDE_Y, STRIDE_X, TOP, LEFT,
 WEIGHTS, BIAS, BOUNDS, RESIDUAL, DEPTH, AT, EXTRA, SCRATCH) = range(ROW)  # fmt: skip

KINDS = "block stem frame conv pointwise depthwise average maximum add clamp place flatten take".split()
BLOCK, STEM, FRAME, CONV, POINTWISE, DEPTHWISE, AVERAGE, MAXIMUM, ADD, CLAMP, PLACE, FLATTEN, TAKE = range(len(KINDS))

TILES = {4: {1: 8, 2: 8, 3: 6}, 8: {1: 10, 2: 6, 3: 4}, 16: {1: 14, 2: 14, 3: 9}}[LANES]
"""{panels: rows} of the largest tile of sums that fits into the registers: 32 of them with AVX-512 and NEON, 16 with AVX2."""


# ---- matrix products


def _tile(panels: int) -> Any:
    """rows x (panels * LANES) outputs at once, 1 <= rows <= TILES[panels]: all sums in registers."""

    @emitted(13)
    def tile(emit: Emit, rows, a, a_row, segments, a_segment, depth, b, b_panel, bias, c, c_row, bounds, residual):  # type: ignore[no-untyped-def]
        def with_rows(count: int) -> None:
            start = [emit.load(emit.add(bias, VECTOR * p)) for p in range(panels)]
            a_rows = [emit.mul(a_row, r) for r in range(count)]
            b_panels = [emit.mul(b_panel, p) for p in range(panels)]

            def segment(_: Any, a_start: Any, b_start: Any, *sums: Any) -> list[Any]:
                def step(k: Any, b_at: Any, *sums: Any) -> list[Any]:
                    a_at = emit.add(a_start, emit.mul(k, 4))
                    weights = [emit.load(emit.add(b_at, at)) for at in b_panels]
                    new = []
                    for r in range(count):
                        value = emit.load_splat(emit.add(a_at, a_rows[r]))
                        new += [emit.fma(value, weights[p], sums[r * panels + p]) for p in range(panels)]
                    return [emit.add(b_at, VECTOR), *new]

                return [emit.add(a_start, a_segment), *emit.loop(depth, [b_start, *sums], step)]

            _, _, *sums = emit.loop(segments, [a, b, *start * count], segment)
            low, high = emit.load_splat(bounds), emit.load_splat(emit.add(bounds, 4))
            places = [emit.add(emit.mul(c_row, r), VECTOR * p) for r in range(count) for p in range(panels)]

            def finish(plus: Any) -> None:
                for value, place in zip(sums, places, strict=True):
                    if plus is not None:
                        value = emit.builder.fadd(value, emit.load(emit.add(plus, place)))
                    emit.store(emit.clamp(value, low, high), emit.add(c, place))

            with emit.builder.if_else(emit.builder.icmp_signed("!=", residual, emit.const(0))) as (there, none):
                with there:
                    finish(residual)
                with none:
                    finish(None)

        emit.choose(rows, {count: functools.partial(with_rows, count) for count in range(1, TILES[panels] + 1)})

    @kernel
    def block(count, a, a_row, segments, a_segment, depth, b, b_panel, bias, c, c_row, bounds, residual):  # type: ignore[no-untyped-def]
        most = TILES_OF
        tiles = (count + most - 1) // most
        first = 0
        for i in range(tiles):
            last = count * (i + 1) // tiles
            plus = residual + first * c_row if residual != 0 else 0
            tile(last - first, a + first * a_row, a_row, segments, a_segment, depth, b, b_panel, bias, c + first * c_row, c_row, bounds,
                 plus)  # fmt: skip
            first = last

    TILES_OF = TILES[panels]
    return block


_one, _two, _three = _tile(1), _tile(2), _tile(3)


@kernel
def product(rows, columns, a, a_row, segments, a_segment, depth, b, bias, c, c_row, bounds, residual):  # type: ignore[no-untyped-def]
    """c[r, n] = clamp(bias[n] + sum over segments s and k of a[r][s][k] * b[n][s][k] (+ residual[r, n])).

    a_row, a_segment, c_row: bytes from one to the next. columns: a multiple of LANES. Rows are taken in such numbers that their part of a
    stays in the cache while all panels pass by.
    """
    panel = segments * depth * VECTOR
    at_once = max(60, 65536 // (4 * segments * depth) // 12 * 12)
    panels = columns // LANES
    first = 0
    while first < rows:
        count = min(at_once, rows - first)
        if rows - first - count < 12:
            count = rows - first
        a_at, c_at = a + first * a_row, c + first * c_row
        plus = residual + first * c_row if residual != 0 else 0
        p = 0
        while p < panels:
            left = panels - p
            weights, shift, sums = b + p * panel, p * VECTOR, bias + p * VECTOR
            added = plus + shift if plus != 0 else 0
            if left == 1:
                _one(count, a_at, a_row, segments, a_segment, depth, weights, panel, sums, c_at + shift, c_row, bounds, added)
                p += 1
            elif left == 3:
                _three(count, a_at, a_row, segments, a_segment, depth, weights, panel, sums, c_at + shift, c_row, bounds, added)
                p += 3
            else:
                _two(count, a_at, a_row, segments, a_segment, depth, weights, panel, sums, c_at + shift, c_row, bounds, added)
                p += 2
        first += count


# ---- 3x3 windows: outputs side by side share what their windows share


def _step_by_step(emit: Emit, start: Any, step: Any, count: int) -> list[Any]:
    """start, start + step, ...; each comes from the one before, which an empty instruction hides from LLVM, unless step is a Python int.

    LLVM would keep all of them in registers from one turn of the loop to the next, where there are not enough.
    """
    if isinstance(step, int):
        return [emit.add(start, step * i) for i in range(count)]
    found, kind = [start], ir.FunctionType(I64, [I64])
    for _ in range(count - 1):
        found.append(emit.builder.asm(kind, "", "=r,0", [emit.add(found[-1], step)], False))
    return found


def _windows_in_rows(sizes: Sequence[int], channels: int, stride: int) -> Any:
    """Rows first ... first + count - 1 of the outputs of a 3x3 window, all their channels, `size` outputs side by side at a time.

    size: one of `sizes`, at most out_width. The last outputs of a row may be done twice. channels: 0 where each lane of the input goes into
    the same lane of the output (depthwise), else so many values of a pixel, each of which goes into every lane. Rows outside of the image,
    and the one column on either side that may be outside (left, right: 0 or 1), are read from zeros. row, out_row, step, out_step: bytes
    from one row, or one pixel, to the next; w_step from one weight of a channel to the next.
    """

    @emitted(20)
    def rows(  # type: ignore[no-untyped-def]
        emit: Emit, size, panels, first, count, image, height, row, step, top, left, right, zeros, weights, w_step, bias, target, out_width,
        out_row, out_step, bounds,
    ):  # fmt: skip
        builder, low, high = emit.builder, emit.load_splat(bounds), emit.load_splat(emit.add(bounds, 4))
        step = 4 * channels or step

        def with_size(size: int) -> None:
            columns, taps = stride * (size - 1) + 3, max(channels, 1)
            groups, last_x = builder.sdiv(emit.add(out_width, size - 1), emit.const(size)), emit.add(out_width, -size)

            def one_row(index: Any, place: Any) -> list[Any]:
                y = builder.sub(emit.mul(emit.add(first, index), stride), top)
                ys = [emit.add(y, i) for i in range(3)]
                inside = [builder.select(builder.icmp_unsigned("<", y, height), emit.add(image, builder.mul(y, row)), zeros) for y in ys]

                def group(index: Any) -> list[Any]:
                    x = emit.mul(index, size)
                    x = builder.select(builder.icmp_signed("<", x, last_x), x, last_x)
                    at = emit.mul(builder.sub(emit.mul(x, stride), left), step)
                    no_first = builder.and_(builder.icmp_signed("==", index, emit.const(0)), builder.icmp_signed("!=", left, emit.const(0)))
                    no_last = builder.and_(builder.icmp_signed("==", x, last_x), builder.icmp_signed("!=", right, emit.const(0)))
                    bases = [emit.add(base, at) for base in inside]
                    firsts = [builder.select(no_first, zeros, base) for base in bases]
                    lasts = [builder.select(no_last, zeros, emit.add(base, emit.mul(emit.const(columns - 1), step))) for base in bases]
                    goal = emit.add(place, builder.mul(x, out_step))

                    def panel(p: Any) -> list[Any]:
                        here = emit.mul(p, VECTOR)
                        factors, shift = (emit.add(weights, emit.mul(here, 27)), 0) if channels else (emit.add(weights, here), here)
                        kernel = [] if channels else [emit.load(factor) for factor in _step_by_step(emit, factors, w_step, 9)]
                        sums = [emit.load(emit.add(bias, here))] * size
                        # In an order in which every input is read once, and one sum after the other gets its turn.
                        for y in range(3):
                            sources = _step_by_step(emit, emit.add(bases[y], shift), step, columns)
                            sources[0], sources[-1] = emit.add(firsts[y], shift), emit.add(lasts[y], shift)
                            for residue, tap in itertools.product(range(stride), range(taps)):
                                numbers = {x: (3 * y + x) * taps + tap for x in range(residue, 3, stride)}
                                factors_now = kernel or {n: emit.load(emit.add(factors, VECTOR * n)) for n in numbers.values()}
                                for column in range(residue, columns, stride):
                                    value = emit.load_splat(emit.add(sources[column], 4 * tap)) if channels else emit.load(sources[column])
                                    for x, tap_number in reversed(numbers.items()):
                                        u = (column - x) // stride
                                        if 0 <= u < size:
                                            sums[u] = emit.fma(value, factors_now[tap_number], sums[u])
                        for total, output in zip(sums, _step_by_step(emit, emit.add(goal, here), out_step, size), strict=True):
                            emit.store(emit.clamp(total, low, high), output)
                        return []

                    emit.loop(panels, [], panel)
                    return []

                emit.loop(groups, [], group)
                return [emit.add(place, out_row)]

            emit.loop(count, [target], one_row)

        emit.choose(size, {size: functools.partial(with_size, size) for size in sizes})

    return rows


MOST = 8
"""Outputs side by side: their sums, three weights and an input fit into 16 registers. 24 x 24 x 32 take 4.3 us, with four at once 5.8."""

AT_THE_STEM = 12
"""The same for the first convolution, which loads its weights one by one: 96 x 96 x 3 take 11.7 us, with eight at once 12.5."""

_depthwise_1, _depthwise_2 = (_windows_in_rows(range(3, MOST + 1), 0, stride) for stride in (1, 2))
_stem = _windows_in_rows((AT_THE_STEM,), 3, 2)


@kernel
def _side_by_side(width):  # type: ignore[no-untyped-def]
    """How many outputs of a row at once take the least time: what is done for each group of them costs as much as two outputs more."""
    best, least = 3, (width + 2) // 3 * 5
    for size in range(4, min(width, MOST) + 1):
        cost = (width + size - 1) // size * (size + 2)
        if cost <= least:
            best, least = size, cost
    return best


# ---- windows of any size


def _window(what: str) -> Any:
    """One output pixel, all channels, from those taps of its window that meet the image; at least one does, or the sum is the bias."""

    @emitted(11)
    def window(emit: Emit, panels, taps_y, taps_x, source, y_step, x_step, weights, w_y_step, start, target, bounds):  # type: ignore[no-untyped-def]
        low, high = emit.load_splat(bounds), emit.load_splat(emit.add(bounds, 4))

        def panel(p: Any) -> list[Any]:
            shift = emit.mul(p, VECTOR)
            image = emit.add(source, shift)

            def in_y(y: Any, total: Any) -> list[Any]:
                row, w_row = emit.add(image, emit.mul(y_step, y)), emit.add(emit.add(weights, shift), emit.mul(w_y_step, y))

                def in_x(x: Any, total: Any) -> list[Any]:
                    value = emit.load(emit.add(row, emit.mul(x_step, x)))
                    if what == "products":
                        return [emit.fma(value, emit.load(emit.add(w_row, emit.mul(x_step, x))), total)]
                    if what == "sum":
                        return [emit.builder.fadd(total, value)]
                    return [emit.builder.select(emit.builder.fcmp_unordered("<=", value, total), total, value)]

                return emit.loop(taps_x, [total], in_x)

            first = emit.load(image) if what == "maximum" else emit.load(emit.add(start, shift)) if what == "products" else emit.zeros()
            (total,) = emit.loop(taps_y, [first], in_y)
            if what == "sum":
                total = emit.builder.fdiv(total, emit.load_splat(start))
            emit.store(emit.clamp(total, low, high), emit.add(target, shift))
            return []

        emit.loop(panels, [], panel)

    return window


_products, _sum, _maximum = _window("products"), _window("sum"), _window("maximum")


@emitted(5)
def _elementwise(emit: Emit, vectors, source, other, target, bounds):  # type: ignore[no-untyped-def]
    """clamp(source + other); other 0: none."""
    low, high = emit.load_splat(bounds), emit.load_splat(emit.add(bounds, 4))

    def plain(i: Any) -> list[Any]:
        at = emit.mul(i, VECTOR)
        emit.store(emit.clamp(emit.load(emit.add(source, at)), low, high), emit.add(target, at))
        return []

    def summed(i: Any) -> list[Any]:
        at = emit.mul(i, VECTOR)
        value = emit.builder.fadd(emit.load(emit.add(source, at)), emit.load(emit.add(other, at)))
        emit.store(emit.clamp(value, low, high), emit.add(target, at))
        return []

    with emit.builder.if_else(emit.builder.icmp_signed("!=", other, emit.const(0))) as (there, none):
        with there:
            emit.loop(vectors, [], summed)
        with none:
            emit.loop(vectors, [], plain)


# ---- the operations: each does part `thread` of `threads` of one image or of a group of images


@kernel
def _share(count, thread, threads):  # type: ignore[no-untyped-def]
    return count * thread // threads, count * (thread + 1) // threads


@kernel
def _frame(op, source, target, images, source_step, thread, threads):  # type: ignore[no-untyped-def]
    """Copy images into the middle of frames of zeros: (height, width) into (out_height, out_width) at (top, left); depth: channels."""
    height, out_height = number(op, HEIGHT), number(op, OUT_HEIGHT)
    row, out_row, left = (
        number(op, WIDTH) * number(op, DEPTH) * 4,
        number(op, OUT_WIDTH) * number(op, DEPTH) * 4,
        number(op, LEFT) * number(op, DEPTH) * 4,
    )
    top = number(op, TOP)
    right = out_row - left - row
    first, last = _share(images * out_height, thread, threads)
    for y in range(first, last):
        image, at = y // out_height, y % out_height - top
        place = target + y * out_row
        if 0 <= at < height:
            clear(place, left)
            copy(place + left, source + image * source_step + at * row, row)
            clear(place + left + row, right)
        else:
            clear(place, out_row)


@kernel
def _conv(op, source, target, residual, images, thread, threads):  # type: ignore[no-untyped-def]
    """Any convolution, as products of whole windows: a row of a window lies in one piece. No padding: _frame has made it."""
    height, row = number(op, HEIGHT), number(op, WIDTH) * number(op, CHANNELS) * 4
    out_height, out_width, outputs = number(op, OUT_HEIGHT), number(op, OUT_WIDTH), number(op, OUTPUTS)
    stride_y, a_row = number(op, STRIDE_Y), number(op, STRIDE_X) * number(op, CHANNELS) * 4
    out_row = 4 * outputs
    first, last = _share(images * out_height, thread, threads)
    for y in range(first, last):
        at = source + ((y // out_height) * height + (y % out_height) * stride_y) * row
        place = y * out_width * out_row
        plus = residual + place if residual != 0 else 0
        product(out_width, outputs, at, a_row, number(op, KERNEL_HEIGHT), row, number(op, DEPTH), number(op, WEIGHTS), number(op, BIAS),
                target + place, out_row, number(op, BOUNDS), plus)  # fmt: skip


@kernel
def _pointwise(op, source, target, residual, images, thread, threads):  # type: ignore[no-untyped-def]
    """A 1x1 convolution: one product over all pixels; threads divide the pixels, or the outputs where there are few pixels."""
    pixels, outputs, depth = images * number(op, OUT_HEIGHT) * number(op, OUT_WIDTH), number(op, OUTPUTS), number(op, DEPTH)
    a_row, c_row, weights, bias, bounds = 4 * number(op, CHANNELS), 4 * outputs, number(op, WEIGHTS), number(op, BIAS), number(op, BOUNDS)
    if pixels >= 24 * threads or threads == 1:
        first, last = _share(pixels, thread, threads)
        if last > first:
            plus = residual + first * c_row if residual != 0 else 0
            product(
                last - first,
                outputs,
                source + first * a_row,
                a_row,
                1,
                0,
                depth,
                weights,
                bias,
                target + first * c_row,
                c_row,
                bounds,
                plus,
            )
    else:
        first, last = _share(outputs // LANES, thread, threads)
        if last > first:
            shift = first * VECTOR
            plus = residual + shift if residual != 0 else 0
            product(
                pixels,
                (last - first) * LANES,
                source,
                a_row,
                1,
                0,
                depth,
                weights + shift * depth,
                bias + shift,
                target + shift,
                c_row,
                bounds,
                plus,
            )


@kernel
def _depthwise(op, image, target, zeros, first, last):  # type: ignore[no-untyped-def]
    """Rows first ... last - 1 of the output of one image; target: where the first of them goes. image: where its row 0 is, or would be."""
    height, width, channels, out_width = number(op, HEIGHT), number(op, WIDTH), number(op, CHANNELS), number(op, OUT_WIDTH)
    kernel_height, kernel_width, stride_y, stride_x = (
        number(op, KERNEL_HEIGHT),
        number(op, KERNEL_WIDTH),
        number(op, STRIDE_Y),
        number(op, STRIDE_X),
    )
    top, left, weights, bias, bounds = number(op, TOP), number(op, LEFT), number(op, WEIGHTS), number(op, BIAS), number(op, BOUNDS)
    step = 4 * channels
    row, out_row = width * step, out_width * step
    right = (out_width - 1) * stride_x - left + 3 - width  # columns of the last window outside of the image
    if (
        kernel_height == 3
        and kernel_width == 3
        and stride_y == stride_x
        and stride_x <= 2
        and 0 <= left <= 1
        and right <= 1
        and out_width >= 3
    ):
        size, count, panels = _side_by_side(out_width), last - first, channels // LANES
        if stride_x == 1:
            _depthwise_1(size, panels, first, count, image, height, row, step, top, left, max(right, 0), zeros, weights, step, bias, target,
                         out_width, out_row, step, bounds)  # fmt: skip
        else:
            _depthwise_2(size, panels, first, count, image, height, row, step, top, left, max(right, 0), zeros, weights, step, bias, target,
                         out_width, out_row, step, bounds)  # fmt: skip
        return
    for y in range(first, last):
        at, place = y * stride_y - top, target + (y - first) * out_row
        top_tap, bottom_tap = max(0, -at), min(kernel_height, height - at)
        for x in range(out_width):
            column = x * stride_x - left
            left_tap, right_tap = max(0, -column), min(kernel_width, width - column)
            taps_y, taps_x = bottom_tap - top_tap, right_tap - left_tap
            if taps_y > 0 and taps_x > 0:
                from_image = image + (at + top_tap) * row + (column + left_tap) * step
                from_weights = weights + (top_tap * kernel_width + left_tap) * step
                _products(
                    channels // LANES,
                    taps_y,
                    taps_x,
                    from_image,
                    row,
                    step,
                    from_weights,
                    kernel_width * step,
                    bias,
                    place + x * step,
                    bounds,
                )
            else:
                _elementwise(channels // LANES, bias, 0, place + x * step, bounds)


@kernel
def _depthwise_images(op, source, target, zeros, images, thread, threads):  # type: ignore[no-untyped-def]
    size, out_height = number(op, HEIGHT) * number(op, WIDTH) * number(op, CHANNELS) * 4, number(op, OUT_HEIGHT)
    out_row = number(op, OUT_WIDTH) * number(op, CHANNELS) * 4
    y, end = _share(images * out_height, thread, threads)
    while y < end:
        image, first = y // out_height, y % out_height
        last = min(out_height, first + end - y)
        _depthwise(op, source + image * size, target + y * out_row, zeros, first, last)
        y += last - first


@kernel
def _first(op, source, image_step, target, zeros, images, thread, threads):  # type: ignore[no-untyped-def]
    """The first convolution of most networks, 3x3 with stride 2 from three colours to few channels, straight from the images."""
    height, width, out_height, out_width, outputs = (
        number(op, HEIGHT),
        number(op, WIDTH),
        number(op, OUT_HEIGHT),
        number(op, OUT_WIDTH),
        number(op, OUTPUTS),
    )
    top, left, weights, bias, bounds = number(op, TOP), number(op, LEFT), number(op, WEIGHTS), number(op, BIAS), number(op, BOUNDS)
    out_row = 4 * outputs * out_width
    right = max(0, (out_width - 1) * 2 - left + 3 - width)
    y, end = _share(images * out_height, thread, threads)
    while y < end:
        image, first = source + (y // out_height) * image_step, y % out_height
        count = min(out_height - first, end - y)
        _stem(AT_THE_STEM, outputs // LANES, first, count, image, height, 12 * width, 12, top, left, right, zeros, weights, 0, bias,
              target + y * out_row, out_width, out_row, 4 * outputs, bounds)  # fmt: skip
        y += count


@kernel
def _block(op, source, target, residual, scratch, zeros, images, thread, threads):  # type: ignore[no-untyped-def]
    """Several layers at once, a strip of `at` rows after the other, so that what is between them never leaves the cache.

    The following `depth` rows of the table are the layers: a pointwise convolution (or none), a depthwise one, a pointwise one. Rows of the
    first one's output that two strips need are kept. extra: bytes of scratch for each thread.
    """
    layers, strip = number(op, DEPTH), number(op, AT)
    scratch += thread * number(op, EXTRA)
    expand, depthwise, project = op + 8 * ROW, op + 8 * ROW * (layers - 1), op + 8 * ROW * layers
    height, width, middle, stride, top = (
        number(depthwise, HEIGHT),
        number(depthwise, WIDTH),
        number(depthwise, CHANNELS),
        number(depthwise, STRIDE_Y),
        number(depthwise, TOP),
    )
    out_height, out_width, outputs, window = (
        number(project, OUT_HEIGHT),
        number(project, OUT_WIDTH),
        number(project, OUTPUTS),
        number(depthwise, KERNEL_HEIGHT),
    )
    row, in_row, out_row = 4 * width * middle, 4 * width * number(op, CHANNELS), 4 * out_width * outputs
    strips = (out_height + strip - 1) // strip
    rows = scratch + 4 * strip * out_width * middle  # behind the depthwise output: rows of the expanded input, the first of them row `kept`
    kept, done = 0, 0
    start, end = _share(images * strips, thread, threads)
    for u in range(start, end):
        image, first = u // strips, u % strips * strip
        last = min(out_height, first + strip)
        place = source + image * height * in_row
        if layers == 3:
            begin, stop = max(0, first * stride - top), min(height, (last - 1) * stride - top + window)
            if u == start or first == 0:
                kept, done = begin, begin
            for y in range(begin, done):
                copy(rows + (y - begin) * row, rows + (y - kept) * row, row)
            done, kept = max(begin, done), begin
            if stop > done:
                product((stop - done) * width, middle, place + done * in_row, in_row // width, 1, 0, number(expand, DEPTH),
                        number(expand, WEIGHTS), number(expand, BIAS), rows + (done - begin) * row, 4 * middle, number(expand, BOUNDS),
                        0)  # fmt: skip
                done = stop
            place = rows - begin * row
        _depthwise(depthwise, place, scratch, zeros, first, last)
        shift = (image * out_height + first) * out_row
        product((last - first) * out_width, outputs, scratch, 4 * middle, 1, 0, number(project, DEPTH), number(project, WEIGHTS),
                number(project, BIAS), target + shift, 4 * outputs, number(project, BOUNDS),
                residual + shift if residual != 0 else 0)  # fmt: skip


@emitted(2)
def _store_count(emit: Emit, place, count):  # type: ignore[no-untyped-def]
    emit.store_as(emit.builder.sitofp(count, F32), place, 4)


@kernel
def _pool(op, source, target, images, maximum, scratch, thread, threads):  # type: ignore[no-untyped-def]
    """Mean or maximum of those pixels of each window that lie in the image. scratch: a place for a float."""
    height, width, channels = number(op, HEIGHT), number(op, WIDTH), number(op, CHANNELS)
    out_height, out_width, top, left, bounds = (
        number(op, OUT_HEIGHT),
        number(op, OUT_WIDTH),
        number(op, TOP),
        number(op, LEFT),
        number(op, BOUNDS),
    )
    step = 4 * channels
    row = width * step
    first, last = _share(images * out_height, thread, threads)
    for y in range(first, last):
        image, at = source + (y // out_height) * height * row, (y % out_height) * number(op, STRIDE_Y) - top
        top_tap, bottom_tap = max(0, -at), min(number(op, KERNEL_HEIGHT), height - at)
        for x in range(out_width):
            column = x * number(op, STRIDE_X) - left
            left_tap, right_tap = max(0, -column), min(number(op, KERNEL_WIDTH), width - column)
            taps_y, taps_x = bottom_tap - top_tap, right_tap - left_tap
            from_image = image + (at + top_tap) * row + (column + left_tap) * step
            place = target + (y * out_width + x) * step
            if maximum:
                _maximum(channels // LANES, taps_y, taps_x, from_image, row, step, 0, 0, 0, place, bounds)
            else:
                _store_count(scratch, taps_y * taps_x)
                _sum(channels // LANES, taps_y, taps_x, from_image, row, step, 0, 0, scratch, place, bounds)


# ---- a whole network


@kernel
def run(table, operations, arena, arena_bytes, feeds, first, last, at_once, zeros, thread, threads, counter):  # type: ignore[no-untyped-def]
    """Images first ... last - 1 through all operations, at_once at a time.

    feeds: (address, bytes per image) of the images, then of each array that a `take` fills. zeros: address of a row of zeros. arena: of a
    block for all threads together, which divide each operation and wait for each other (counter); scratch floats lie behind it.
    """
    scratch = arena + arena_bytes + 64 * thread
    done = first
    while done < last:
        images = min(at_once, last - done)
        i = 0
        while i < operations:
            op = table + i * ROW * 8
            i += 1
            kind, target = number(op, KIND), arena + number(op, TARGET)
            source = arena + number(op, SOURCE)
            residual = arena + number(op, RESIDUAL) if number(op, RESIDUAL) >= 0 else 0
            if kind == POINTWISE:
                _pointwise(op, source, target, residual, images, thread, threads)
            elif kind == DEPTHWISE:
                _depthwise_images(op, source, target, zeros, images, thread, threads)
            elif kind == BLOCK:
                _block(op, source, target, residual, arena + number(op, SCRATCH), zeros, images, thread, threads)
                i += number(op, DEPTH)
            elif kind == CONV:
                _conv(op, source, target, residual, images, thread, threads)
            elif kind == STEM:
                step = number(feeds, 1)
                _first(op, number(feeds, 0) + done * step, step, target, zeros, images, thread, threads)
            elif kind == FRAME:
                step = number(op, EXTRA)
                if number(op, SOURCE) < 0:
                    step = number(feeds, 1)
                    source = number(feeds, 0) + done * step
                _frame(op, source, target, images, step, thread, threads)
            elif kind == AVERAGE or kind == MAXIMUM:
                _pool(op, source, target, images, kind == MAXIMUM, scratch, thread, threads)
            elif kind == ADD or kind == CLAMP:
                vectors = images * number(op, OUT_HEIGHT) * number(op, OUT_WIDTH) * number(op, OUTPUTS) // LANES
                start, end = _share(vectors, thread, threads)
                if end > start:
                    shift = start * VECTOR
                    _elementwise(end - start, source + shift, residual + shift if residual != 0 else 0, target + shift, number(op, BOUNDS))
            elif kind == PLACE:  # channels of a value beside those of others; the last to come clears what fills up
                pixels = images * number(op, OUT_HEIGHT) * number(op, OUT_WIDTH)
                start, end = _share(pixels, thread, threads)
                for pixel in range(start, end):
                    place = target + 4 * (pixel * number(op, OUTPUTS) + number(op, AT))
                    copy(place, source + 4 * pixel * number(op, CHANNELS), 4 * number(op, DEPTH))
                    clear(place + 4 * number(op, DEPTH), 4 * number(op, EXTRA))
            elif kind == FLATTEN and thread == 0:  # all channels of all pixels side by side
                pixels, depth = number(op, HEIGHT) * number(op, WIDTH), 4 * number(op, DEPTH)
                for image in range(images):
                    place = target + 4 * image * number(op, OUTPUTS)
                    for pixel in range(pixels):
                        copy(place + pixel * depth, source + 4 * (image * pixels + pixel) * number(op, CHANNELS), depth)
                    clear(place + pixels * depth, 4 * number(op, EXTRA))
            elif kind == TAKE and thread == 0:  # to the caller, without the channels that fill up
                pixels, depth = number(op, OUT_HEIGHT) * number(op, OUT_WIDTH), 4 * number(op, DEPTH)
                place, step = number(feeds, 2 * number(op, AT)), number(feeds, 2 * number(op, AT) + 1)
                for image in range(images):
                    for pixel in range(pixels):
                        copy(
                            place + (done + image) * step + pixel * depth,
                            source + 4 * (image * pixels + pixel) * number(op, CHANNELS),
                            depth,
                        )
            barrier(counter, threads)
        done += images


EXPORTS = {"run": (run, 12)}
