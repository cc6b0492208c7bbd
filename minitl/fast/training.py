"""The kernels of training: forward and backward of convolutions and of BatchNorm with its ReLU. kernels_fast.py calls them.

Arrays are NHWC, float32, in one piece, as NumPy has them; channels are a multiple of `lanes`, the floats of a vector. Each kernel is called
by several threads at once with the same arguments, except for `scratch`, a place of the thread's own: its work is cut into tasks, in a way
that depends on shapes only, and who is free takes the next one from `counters`, int64 that start at 0. Sums over a batch are left
as one part per task, and the caller adds them in their order: so the bits of a result do not depend on the number of threads.

A window of 3x3 never meets an edge: a few rows of an image at a time are first copied into the middle of a frame of zeros, which stays
in the first-level cache. Left out: checks; kernels_fast.py knows that everything fits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..native import LANES
from .inference import TILES, product
from .vectors import F32, I8, I32, I64, Emit, arrive, clear, copy, emitted, int64, kernel, look, number, rest

FIELDS = (
    "images height width channels top left frame_height frame_width out_height out_width outputs columns kernel_height kernel_width "
    "stride_y stride_x band bands groups"
).split()
"""Geometry of a sliding window: a row of int64. height ... channels: of what is framed; frame_...: with its border; columns: outputs
filled up. band: output rows at a time, of which an image has `bands`; groups: in how many parts the images are summed."""

(IMAGES, HEIGHT, WIDTH, CHANNELS, TOP, LEFT, FRAME_HEIGHT, FRAME_WIDTH, OUT_HEIGHT, OUT_WIDTH, OUTPUTS, COLUMNS, KERNEL_HEIGHT,
 KERNEL_WIDTH, STRIDE_Y, STRIDE_X, BAND, BANDS, GROUPS) = range(len(FIELDS))  # fmt: skip


@kernel
def _frame(g, image, first, count, frame):  # type: ignore[no-untyped-def]
    """Rows first ... first + count - 1 of the framed image, copied to frame."""
    height, pixel = number(g, HEIGHT), 4 * number(g, CHANNELS)
    row, left, whole = number(g, WIDTH) * pixel, number(g, LEFT) * pixel, number(g, FRAME_WIDTH) * pixel
    for r in range(count):
        at, place = first + r - number(g, TOP), frame + r * whole
        if 0 <= at < height:
            clear(place, left)
            copy(place + left, image + at * row, row)
            clear(place + left + row, whole - left - row)
        else:
            clear(place, whole)


# ---- convolutions as matrix products


@kernel
def _rows(count, columns, outputs, a, a_row, segments, a_segment, depth, b, bias, c, bounds, scratch):  # type: ignore[no-untyped-def]
    """`product` for any number of outputs: where they do not fill whole vectors, it goes through scratch."""
    if columns == outputs:
        product(count, columns, a, a_row, segments, a_segment, depth, b, bias, c, 4 * outputs, bounds, 0)
    else:
        product(count, columns, a, a_row, segments, a_segment, depth, b, bias, scratch, 4 * columns, bounds, 0)
        for r in range(count):
            copy(c + 4 * outputs * r, scratch + 4 * columns * r, 4 * outputs)


@kernel
def convolution(g, x, weights, bias, y, bounds, scratch, counters):  # type: ignore[no-untyped-def]
    """Any convolution, and its dx where it is 1x1. Tasks: images; a frame of height 0 means pixels by themselves, `band` of them at a time.

    scratch: a frame, in which a row of a window lies in one piece, and a row of columns.
    """
    height, width, channels, outputs, columns = (
        number(g, FRAME_HEIGHT),
        number(g, FRAME_WIDTH),
        number(g, CHANNELS),
        number(g, OUTPUTS),
        number(g, COLUMNS),
    )
    out_height, out_width, row, band = number(g, OUT_HEIGHT), number(g, OUT_WIDTH), 4 * width * channels, number(g, BAND)
    task = arrive(counters)
    while height == 0 and task * band < out_width:
        first = task * band
        count = min(band, out_width - first)
        _rows(
            count,
            columns,
            outputs,
            x + 4 * channels * first,
            4 * channels,
            1,
            0,
            channels,
            weights,
            bias,
            y + 4 * outputs * first,
            bounds,
            scratch,
        )
        task = arrive(counters)
    while height > 0 and task < number(g, IMAGES):
        _frame(g, x + 4 * task * number(g, HEIGHT) * number(g, WIDTH) * channels, 0, height, scratch)
        for r in range(out_height):
            place = y + 4 * (task * out_height + r) * out_width * outputs
            _rows(out_width, columns, outputs, scratch + r * number(g, STRIDE_Y) * row, 4 * number(g, STRIDE_X) * channels,
                  number(g, KERNEL_HEIGHT), row, number(g, KERNEL_WIDTH) * channels, weights, bias, place, bounds,
                  scratch + height * row)  # fmt: skip
        task = arrive(counters)


def _transposed(lanes: int) -> Any:
    """c[i, n] += sum over p of a[p, i] * b[p, n]: what every kernel gradient is."""

    def tile_of(panels: int) -> Any:
        @emitted(8)
        def tile(emit: Emit, rows, count, a, a_step, b, b_step, c, c_row):  # type: ignore[no-untyped-def]
            def with_rows(height: int) -> None:
                def step(_: Any, a_at: Any, b_at: Any, *sums: Any) -> list[Any]:
                    right = [emit.load(emit.add(b_at, 4 * lanes * p), lanes) for p in range(panels)]
                    new = []
                    for r in range(height):
                        left = emit.load_splat(emit.add(a_at, 4 * r), lanes)
                        new += [emit.fma(left, right[p], sums[r * panels + p]) for p in range(panels)]
                    return [emit.add(a_at, a_step), emit.add(b_at, b_step), *new]

                _, _, *sums = emit.loop(count, [a, b, *[emit.zeros(lanes)] * (height * panels)], step)
                for i, value in enumerate(sums):
                    place = emit.add(c, emit.add(emit.mul(c_row, i // panels), 4 * lanes * (i % panels)))
                    emit.store(emit.builder.fadd(value, emit.load(place, lanes)), place)

            emit.choose(rows, {height: lambda height=height: with_rows(height) for height in range(1, TILES[panels] + 1)})  # type: ignore[misc]

        return tile

    one, two, most_one, most_two = tile_of(1), tile_of(2), TILES[1], TILES[2]

    @kernel
    def transposed(count, rows, columns, a, a_step, b, b_step, c):  # type: ignore[no-untyped-def]
        """count pixels; rows of c, and its columns, a multiple of lanes."""
        n = 0
        while n < columns:
            pair = columns - n >= 2 * lanes
            most = most_two if pair else most_one
            tiles, first = (rows + most - 1) // most, 0
            for i in range(tiles):
                last = rows * (i + 1) // tiles
                place = c + 4 * (first * columns + n)
                if pair:
                    two(last - first, count, a + 4 * first, a_step, b + 4 * n, b_step, place, 4 * columns)
                else:
                    one(last - first, count, a + 4 * first, a_step, b + 4 * n, b_step, place, 4 * columns)
                first = last
            n += 2 * lanes if pair else lanes

    return transposed


def _pointwise_dkernel(lanes: int) -> Any:
    transposed = _transposed(lanes)

    @kernel
    def pointwise_dkernel(pixels, rows, at_once, columns, outputs, groups, x, dy, parts, scratch, counters):  # type: ignore[no-untyped-def]
        """parts (groups, rows, outputs), zeros before. Tasks: groups of pixels, for each at_once rows of the kernel."""
        blocks = (rows + at_once - 1) // at_once
        task = arrive(counters)
        while task < groups * blocks:
            group, top = task // blocks, task % blocks * at_once
            height = min(at_once, rows - top)
            first, last = pixels * group // groups, pixels * (group + 1) // groups
            chunk = max(32, 32768 // (4 * (height + outputs)))
            place = parts + 4 * (group * rows + top) * outputs
            while first < last:
                count = min(chunk, last - first)
                transposed(count, height, outputs, x + 4 * (first * rows + top), 4 * rows, dy + 4 * first * outputs, 4 * outputs, place)
                first += count
            task = arrive(counters)

    @kernel
    def conv_dkernel(g, x, dy, parts, scratch, counters):  # type: ignore[no-untyped-def]
        """parts (groups, kernel_height, kernel_width * channels, outputs), zeros before. Tasks: groups of images. scratch: a frame."""
        height, channels, outputs, segments = number(g, FRAME_HEIGHT), number(g, CHANNELS), number(g, OUTPUTS), number(g, KERNEL_HEIGHT)
        out_height, out_width, row = number(g, OUT_HEIGHT), number(g, OUT_WIDTH), 4 * number(g, FRAME_WIDTH) * channels
        depth, groups, images = number(g, KERNEL_WIDTH) * channels, number(g, GROUPS), number(g, IMAGES)
        group = arrive(counters)
        while group < groups:
            for image in range(images * group // groups, images * (group + 1) // groups):
                _frame(g, x + 4 * image * number(g, HEIGHT) * number(g, WIDTH) * channels, 0, height, scratch)
                for r in range(out_height):
                    at = scratch + r * number(g, STRIDE_Y) * row
                    from_dy = dy + 4 * (image * out_height + r) * out_width * outputs
                    for s in range(segments):
                        transposed(out_width, depth, outputs, at + s * row, 4 * number(g, STRIDE_X) * channels, from_dy, 4 * outputs,
                                   parts + 4 * (group * segments + s) * depth * outputs)  # fmt: skip
            group = arrive(counters)

    return pointwise_dkernel, conv_dkernel


# ---- depthwise 3x3, strides 1 and 2: one vector of channels at a time, the nine weights or nine sums in registers


def _depthwise(lanes: int) -> Any:
    def rows_of(stride: int, at_once: int) -> Any:
        """at_once outputs side by side share the inputs that their windows share; the last ones of a row may be computed twice."""

        @emitted(9)
        def rows(emit: Emit, count, groups, last, source, source_row, step, weights, bias, target):  # type: ignore[no-untyped-def]
            taps = [emit.load(emit.add(weights, emit.mul(step, t)), lanes) for t in range(9)]
            start = emit.load(bias, lanes)
            columns = [emit.mul(step, i) for i in range(stride * (at_once - 1) + 3)]
            source_rows = [emit.mul(source_row, i) for i in range(3)]
            target_row = emit.mul(step, emit.add(last, at_once))

            def row(_: Any, source_at: Any, target_at: Any) -> list[Any]:
                def group(i: Any) -> list[Any]:
                    first = emit.mul(i, at_once)
                    first = emit.builder.select(emit.builder.icmp_signed("<", first, last), first, last)
                    sums = [start] * at_once
                    for y in range(3):
                        base = emit.add(emit.add(source_at, source_rows[y]), emit.mul(emit.mul(first, stride), step))
                        for column, shift in enumerate(columns):
                            users = [u for u in range(at_once) if 0 <= column - stride * u < 3]
                            value = emit.load(emit.add(base, shift), lanes) if users else None
                            for u in users:
                                sums[u] = emit.fma(value, taps[3 * y + column - stride * u], sums[u])
                    for u, value in enumerate(sums):
                        emit.store(value, emit.add(target_at, emit.mul(step, emit.add(first, u))))
                    return []

                emit.loop(groups, [], group)
                return [emit.add(source_at, emit.mul(source_row, stride)), emit.add(target_at, target_row)]

            emit.loop(count, [source, target], row)

        return rows

    three, one, two_by_three, two_by_one = rows_of(1, 3), rows_of(1, 1), rows_of(2, 3), rows_of(2, 1)

    @kernel
    def depthwise(g, x, weights, bias, y, scratch, counters):  # type: ignore[no-untyped-def]
        """Tasks: bands of rows of images. scratch: the frame of a band."""
        channels, height, bands, band = number(g, CHANNELS), number(g, OUT_HEIGHT), number(g, BANDS), number(g, BAND)
        width, stride, step = number(g, OUT_WIDTH), number(g, STRIDE_Y), 4 * channels
        row = number(g, FRAME_WIDTH) * step
        groups = (width + 2) // 3 if width >= 3 else width
        last = width - 3 if width >= 3 else width - 1
        task = arrive(counters)
        while task < number(g, IMAGES) * bands:
            image, first = task // bands, task % bands * band
            count = min(band, height - first)
            _frame(g, x + image * number(g, HEIGHT) * number(g, WIDTH) * step, first * stride, (count - 1) * stride + 3, scratch)
            place = y + (image * height + first) * width * step
            for p in range(0, step, 4 * lanes):
                if stride == 1:
                    if width >= 3:
                        three(count, groups, last, scratch + p, row, step, weights + p, bias + p, place + p)
                    else:
                        one(count, groups, last, scratch + p, row, step, weights + p, bias + p, place + p)
                elif width >= 3:
                    two_by_three(count, groups, last, scratch + p, row, step, weights + p, bias + p, place + p)
                else:
                    two_by_one(count, groups, last, scratch + p, row, step, weights + p, bias + p, place + p)
            task = arrive(counters)

    return depthwise


def _depthwise_dx(lanes: int) -> Any:
    def pairs_of(even: bool) -> Any:
        """Two pixels of a row of dx for each of dy: with stride 2, one is seen by taps 0 and 2, the next by tap 1, of rows and columns."""

        @emitted(6)
        def pairs(emit: Emit, count, here, above, step, weights, target):  # type: ignore[no-untyped-def]
            taps = [emit.load(emit.add(weights, emit.mul(step, t)), lanes) for t in range(9)]
            rows = ((here, taps[0:3]), (above, taps[6:9])) if even else ((here, taps[3:6]),)
            pair = emit.mul(step, 2)

            def column(i: Any, target_at: Any, *before: Any) -> list[Any]:
                first, second, now = emit.zeros(lanes), emit.zeros(lanes), []
                for (row, tap), last in zip(rows, before, strict=True):
                    value = emit.load(emit.add(row, emit.mul(i, step)), lanes)
                    first = emit.fma(last, tap[2], emit.fma(value, tap[0], first))
                    second = emit.fma(value, tap[1], second)
                    now.append(value)
                emit.store(first, target_at)
                emit.store(second, emit.add(target_at, step))
                return [emit.add(target_at, pair), *now]

            start = [emit.load(emit.builder.sub(row, step), lanes) for row, _ in rows]
            emit.loop(count, [target, *start], column)

        return pairs

    even, odd = pairs_of(True), pairs_of(False)

    @kernel
    def depthwise_dx(g, dy, weights, dx, scratch, counters):  # type: ignore[no-untyped-def]
        """Stride 2. Row m of the framed dy reaches rows 2m - 2 - out_top and the next of dx. top, left (of dy in its frame): 1.

        kernel_height, kernel_width hold the padding of the forward pass. Tasks: images. scratch: a frame and a row of dx.
        """
        step, height, width, top, left = (
            4 * number(g, CHANNELS),
            number(g, OUT_HEIGHT),
            number(g, OUT_WIDTH),
            number(g, KERNEL_HEIGHT),
            number(g, KERNEL_WIDTH),
        )
        frame_height, row = number(g, FRAME_HEIGHT), number(g, FRAME_WIDTH) * step
        beside, columns = scratch + frame_height * row, number(g, FRAME_WIDTH) - 1
        image = arrive(counters)
        while image < number(g, IMAGES):
            _frame(g, dy + image * number(g, HEIGHT) * number(g, WIDTH) * step, 0, frame_height, scratch)
            for r in range(height):
                at = r + top
                here = scratch + (at // 2 + 1) * row + step
                for p in range(0, step, 4 * lanes):
                    if at % 2 == 0:
                        even(columns, here + p, here - row + p, step, weights + p, beside + p)
                    else:
                        odd(columns, here + p, here - row + p, step, weights + p, beside + p)
                copy(dx + (image * height + r) * width * step, beside + left * step, width * step)
            image = arrive(counters)

    return depthwise_dx


def _depthwise_dkernel(lanes: int) -> Any:
    @emitted(8)
    def sums_of(emit: Emit, count, width, source, source_row, stride_step, step, dy, parts):  # type: ignore[no-untyped-def]
        shifts = [emit.add(emit.mul(source_row, t // 3), emit.mul(step, t % 3)) for t in range(9)]
        down = emit.mul(source_row, emit.builder.sdiv(stride_step, step))

        def row(_: Any, source_at: Any, dy_at: Any, *sums: Any) -> list[Any]:
            def column(_: Any, at: Any, dy_at: Any, *sums: Any) -> list[Any]:
                value = emit.load(dy_at, lanes)
                new = [emit.fma(value, emit.load(emit.add(at, shifts[t]), lanes), sums[t]) for t in range(9)]
                return [emit.add(at, stride_step), emit.add(dy_at, step), *new]

            _, *after = emit.loop(width, [source_at, dy_at, *sums], column)
            return [emit.add(source_at, down), *after]

        _, _, *sums = emit.loop(count, [source, dy, *[emit.zeros(lanes)] * 9], row)
        for t, value in enumerate(sums):
            place = emit.add(parts, emit.mul(step, t))
            emit.store(emit.builder.fadd(value, emit.load(place, lanes)), place)

    @kernel
    def depthwise_dkernel(g, x, dy, parts, scratch, counters):  # type: ignore[no-untyped-def]
        """parts (groups, 9, channels), zeros before. Tasks: groups of images. scratch: the frame of a band."""
        step, height, width, bands, band = (
            4 * number(g, CHANNELS),
            number(g, OUT_HEIGHT),
            number(g, OUT_WIDTH),
            number(g, BANDS),
            number(g, BAND),
        )
        stride, row, groups, images = number(g, STRIDE_Y), number(g, FRAME_WIDTH) * step, number(g, GROUPS), number(g, IMAGES)
        group = arrive(counters)
        while group < groups:
            for task in range(images * group // groups * bands, images * (group + 1) // groups * bands):
                image, first = task // bands, task % bands * band
                count = min(band, height - first)
                _frame(g, x + image * number(g, HEIGHT) * number(g, WIDTH) * step, first * stride, (count - 1) * stride + 3, scratch)
                place = dy + (image * height + first) * width * step
                for p in range(0, step, 4 * lanes):
                    sums_of(count, width, scratch + p, row, stride * step, step, place + p, parts + group * 9 * step + p)
            group = arrive(counters)

    return depthwise_dkernel


# ---- BatchNorm, and the ReLU after it: z = clamp((x - mean) * scale + beta); a bound that is not a number bounds nothing


def _norms(lanes: int) -> Any:
    """Passes over rows of channels, four vectors of channels at a time. A chunk of rows stays in the first-level cache."""

    def passing(arguments: int) -> Any:
        """Make body(emit, panels, count, step, ...) an instruction sequence for 1, 2 or 4 vectors of channels."""

        def decorate(body: Any) -> Any:
            def both(emit: Emit, panels: Any, *values: Any) -> None:
                emit.choose(panels, {n: lambda n=n: body(emit, n, *values) for n in (1, 2, 4)})  # type: ignore[misc]

            both.__name__ = body.__name__
            return emitted(1 + arguments)(both)

        return decorate

    def vectors(emit: Emit, address: Any, panels: int) -> list[Any]:
        return [emit.load(emit.add(address, 4 * lanes * p), lanes) for p in range(panels)]

    def put(emit: Emit, values: list[Any], address: Any) -> None:
        for p, value in enumerate(values):
            emit.store(value, emit.add(address, 4 * lanes * p))

    @passing(5)
    def chunk_moments(emit: Emit, panels: int, count, step, x, means, squares):  # type: ignore[no-untyped-def]
        """The mean of these rows, and the sum of the squares around it."""
        builder, zeros = emit.builder, [emit.zeros(lanes)] * panels
        sums = emit.loop(
            count,
            zeros,
            lambda i, *sums: [builder.fadd(s, v) for s, v in zip(sums, vectors(emit, emit.add(x, emit.mul(i, step)), panels), strict=True)],
        )
        total = emit.splat(builder.sitofp(count, F32), lanes)
        mean = [builder.fdiv(value, total) for value in sums]

        def square(i: Any, *sums: Any) -> list[Any]:
            away = [builder.fsub(v, m) for v, m in zip(vectors(emit, emit.add(x, emit.mul(i, step)), panels), mean, strict=True)]
            return [emit.fma(v, v, s) for v, s in zip(away, sums, strict=True)]

        put(emit, mean, means)
        put(emit, emit.loop(count, zeros, square), squares)

    @passing(8)
    def chunk_normalise(emit: Emit, panels: int, count, step, x, mean, scale, beta, bounds, y):  # type: ignore[no-untyped-def]
        m, s, b = (vectors(emit, address, panels) for address in (mean, scale, beta))
        low, high = emit.load_splat(bounds, lanes), emit.load_splat(emit.add(bounds, 4), lanes)

        def row(i: Any) -> list[Any]:
            at = emit.mul(i, step)
            values = vectors(emit, emit.add(x, at), panels)
            values = [emit.clamp(emit.fma(emit.builder.fsub(v, m[p]), s[p], b[p]), low, high) for p, v in enumerate(values)]
            put(emit, values, emit.add(y, at))
            return []

        emit.loop(count, [], row)

    def let_through(emit: Emit, z: Any, dy: Any, low: Any, high: Any) -> Any:
        """dy where z lies strictly between the bounds, else 0."""
        outside = emit.builder.or_(emit.builder.fcmp_ordered("<=", z, low), emit.builder.fcmp_ordered(">=", z, high))
        return emit.builder.select(outside, emit.zeros(lanes), dy)

    @passing(10)
    def chunk_sums(emit: Emit, panels: int, count, step, dy, x, mean, scale, beta, bounds, total, products):  # type: ignore[no-untyped-def]
        """The sums of what passes, and of its products with x - mean."""
        m, s, b = (vectors(emit, address, panels) for address in (mean, scale, beta))
        low, high = emit.load_splat(bounds, lanes), emit.load_splat(emit.add(bounds, 4), lanes)

        def row(i: Any, *sums: Any) -> list[Any]:
            at = emit.mul(i, step)
            new = []
            for p, (v, g) in enumerate(zip(vectors(emit, emit.add(x, at), panels), vectors(emit, emit.add(dy, at), panels), strict=True)):
                away = emit.builder.fsub(v, m[p])
                g = let_through(emit, emit.fma(away, s[p], b[p]), g, low, high)
                new += [emit.builder.fadd(sums[2 * p], g), emit.fma(g, away, sums[2 * p + 1])]
            return new

        sums = emit.loop(count, [emit.zeros(lanes)] * (2 * panels), row)
        put(emit, sums[0::2], total)
        put(emit, sums[1::2], products)

    @passing(11)
    def chunk_dx(emit: Emit, panels: int, count, step, dy, x, mean, scale, beta, slope, shift, bounds, dx):  # type: ignore[no-untyped-def]
        """dx = scale * what passes + slope * (x - mean) + shift."""
        m, s, b, k, d = (vectors(emit, address, panels) for address in (mean, scale, beta, slope, shift))
        low, high = emit.load_splat(bounds, lanes), emit.load_splat(emit.add(bounds, 4), lanes)

        def row(i: Any) -> list[Any]:
            at = emit.mul(i, step)
            values = []
            for p, (v, g) in enumerate(zip(vectors(emit, emit.add(x, at), panels), vectors(emit, emit.add(dy, at), panels), strict=True)):
                away = emit.builder.fsub(v, m[p])
                g = let_through(emit, emit.fma(away, s[p], b[p]), g, low, high)
                values.append(emit.fma(g, s[p], emit.fma(away, k[p], d[p])))
            put(emit, values, emit.add(dx, at))
            return []

        emit.loop(count, [], row)

    # ---- the parts of all chunks become one, in double precision and always in the same order

    double = ir.VectorType(ir.DoubleType(), lanes)

    def wide(emit: Emit, address: Any) -> Any:
        return emit.builder.fpext(emit.load(address, lanes), double)

    def whole(emit: Emit, count: Any) -> Any:
        return emit.splat(emit.builder.sitofp(count, ir.DoubleType()), lanes)

    def put_narrow(emit: Emit, value: Any, address: Any) -> None:
        emit.store(emit.builder.fptrunc(value, ir.VectorType(F32, lanes)), address)

    @emitted(8)
    def all_moments(emit: Emit, chunks, step, at_once, rows, means, squares, mean, variance):  # type: ignore[no-untyped-def]
        """From means and sums of squares of chunks of at_once rows, the last one shorter: mean and variance, of one vector of channels."""
        builder, zero = emit.builder, ir.Constant(double, [0.0] * lanes)
        total = whole(emit, rows)

        def weight(i: Any) -> Any:
            left = builder.sub(rows, emit.mul(i, at_once))
            return whole(emit, builder.select(builder.icmp_signed("<", left, at_once), left, at_once))

        (sums,) = emit.loop(
            chunks, [zero], lambda i, s: [builder.fadd(s, builder.fmul(weight(i), wide(emit, emit.add(means, emit.mul(i, step)))))]
        )
        middle = builder.fdiv(sums, total)

        def spread(i: Any, s: Any) -> list[Any]:
            away = builder.fsub(wide(emit, emit.add(means, emit.mul(i, step))), middle)
            added = builder.fadd(wide(emit, emit.add(squares, emit.mul(i, step))), builder.fmul(builder.fmul(away, away), weight(i)))
            return [builder.fadd(s, added)]

        (sums,) = emit.loop(chunks, [zero], spread)
        put_narrow(emit, middle, mean)
        put_narrow(emit, builder.fdiv(sums, total), variance)

    @emitted(3)
    def choose(emit: Emit, norm, step, epsilon):  # type: ignore[no-untyped-def]
        """Stored statistics in place of the batch's where from_batch is 0, then the scale, of one vector of channels. See norm_forward."""
        row = [emit.add(norm, emit.mul(step, r)) for r in range(8)]
        stored_mean, stored_variance, gamma, _, from_batch, mean, variance, _ = (emit.load(address, lanes) for address in row)
        own = emit.builder.fcmp_ordered(">", from_batch, emit.zeros(lanes))
        variance = emit.builder.select(own, variance, stored_variance)
        emit.store(emit.builder.select(own, mean, stored_mean), row[5])
        emit.store(variance, row[6])
        deviation = emit.call("llvm.sqrt", variance.type, emit.builder.fadd(variance, emit.load_splat(epsilon, lanes)))
        emit.store(emit.builder.fdiv(gamma, deviation), row[7])

    @emitted(5)
    def all_sums(emit: Emit, chunks, step, parts, products, norm):  # type: ignore[no-untyped-def]
        """Of one vector of channels, see norm_backward."""
        zero = ir.Constant(double, [0.0] * lanes)
        row = [emit.add(norm, emit.mul(step, r)) for r in range(10)]
        totals = []
        for part in (products, parts):
            (sums,) = emit.loop(
                chunks, [zero], lambda i, s, part=part: [emit.builder.fadd(s, wide(emit, emit.add(part, emit.mul(i, step))))]
            )
            totals.append(sums)
        totals[0] = emit.builder.fmul(totals[0], wide(emit, row[3]))
        for n, total in enumerate(totals):
            put_narrow(emit, total, row[6 + n])
            put_narrow(emit, emit.builder.fmul(total, wide(emit, row[4 + n])), row[8 + n])

    one, two, four = 4 * lanes, 8 * lanes, 16 * lanes

    @kernel
    def at_a_time(left):  # type: ignore[no-untyped-def]
        """How many vectors, where so many bytes of channels are left."""
        return 4 if left >= four else 2 if left >= two else 1

    @kernel
    def moments(rows, at_once, step, x, parts, mean, variance, scratch, counters):  # type: ignore[no-untyped-def]
        """parts: places for the mean, and for the sum of squares around it, of every chunk. Who ends last puts them together: 1, else 0."""
        chunks = (rows + at_once - 1) // at_once
        squares, last = parts + chunks * step, 0
        chunk = arrive(counters)
        while chunk < chunks:
            count = min(at_once, rows - chunk * at_once)
            p = 0
            while p < step:
                panels, at = at_a_time(step - p), chunk * step + p
                chunk_moments(panels, count, step, x + chunk * at_once * step + p, parts + at, squares + at)
                p += panels * one
            if arrive(counters + 8) == chunks - 1:
                last = 1
                for p in range(0, step, one):
                    all_moments(chunks, step, at_once, rows, parts + p, squares + p, mean + p, variance + p)
            chunk = arrive(counters)
        return last

    @kernel
    def normalise(rows, at_once, step, x, mean, scale, beta, bounds, y, scratch, counters):  # type: ignore[no-untyped-def]
        first = arrive(counters) * at_once
        while first < rows:
            count = min(at_once, rows - first)
            p = 0
            while p < step:
                panels, at = at_a_time(step - p), first * step + p
                chunk_normalise(panels, count, step, x + at, mean + p, scale + p, beta + p, bounds, y + at)
                p += panels * one
            first = arrive(counters) * at_once

    @kernel
    def norm_forward(rows, at_once, step, x, parts, norm, epsilon, bounds, y, scratch, counters):  # type: ignore[no-untyped-def]
        """norm: rows stored mean and variance, gamma, beta, from_batch (1 or 0); for what comes out: mean, variance, scale."""
        if moments(rows, at_once, step, x, parts, norm + 5 * step, norm + 6 * step, scratch, counters):
            for p in range(0, step, one):
                choose(norm + p, step, epsilon)
            arrive(counters + 16)
        turns = 0
        while look(counters + 16) == 0:
            turns += 1
            rest(turns)
        normalise(rows, at_once, step, x, norm + 5 * step, norm + 7 * step, norm + 3 * step, bounds, y, scratch, counters + 24)

    @kernel
    def norm_backward(rows, at_once, step, dy, x, norm, bounds, parts, dx, scratch, counters):  # type: ignore[no-untyped-def]
        """norm: rows mean, scale, beta, 1 / deviation, factors for slope and shift; for what comes out: dgamma, dbeta, slope, shift."""
        chunks = (rows + at_once - 1) // at_once
        products = parts + chunks * step
        chunk = arrive(counters)
        while chunk < chunks:
            count = min(at_once, rows - chunk * at_once)
            p = 0
            while p < step:
                panels, at, place, by = at_a_time(step - p), chunk * at_once * step + p, chunk * step + p, norm + p
                chunk_sums(panels, count, step, dy + at, x + at, by, by + step, by + 2 * step, bounds, parts + place, products + place)
                p += panels * one
            if arrive(counters + 8) == chunks - 1:
                for p in range(0, step, one):
                    all_sums(chunks, step, parts + p, products + p, norm + p)
                arrive(counters + 16)
            chunk = arrive(counters)
        turns = 0
        while look(counters + 16) == 0:
            turns += 1
            rest(turns)
        first = arrive(counters + 24) * at_once
        while first < rows:
            count = min(at_once, rows - first)
            p = 0
            while p < step:
                panels, at, by = at_a_time(step - p), first * step + p, norm + p
                chunk_dx(panels, count, step, dy + at, x + at, by, by + step, by + 2 * step, by + 8 * step, by + 9 * step, bounds, dx + at)
                p += panels * one
            first = arrive(counters + 24) * at_once

    return normalise, norm_forward, norm_backward, moments


# ---- threads that are there: to wake a thread of Python for each kernel would take as long as many a kernel

BOX = "job function nothing table scratch size parts".split()
"""What helpers see: the number of the job, 0 if none; the kernel's address, and what it wants beside its own arguments; its table, the
scratch of the first thread, bytes of scratch, how many threads take part. 128 bytes from the start: how many helpers are at it."""


@emitted(4)
def _call(emit: Emit, function, nothing, table, scratch):  # type: ignore[no-untyped-def]
    """A kernel by its address, as Numba compiles functions."""
    byte = I8.as_pointer()
    kind = ir.FunctionType(I32, [byte, byte, I64, I64])
    nowhere = emit.builder.inttoptr(nothing, byte)
    emit.builder.call(emit.builder.inttoptr(function, kind.as_pointer()), [nowhere, nowhere, table, scratch])


@emitted(2)
def _tell(emit: Emit, place, value):  # type: ignore[no-untyped-def]
    """Store an int64 so that other threads see it, and all that was stored before."""
    emit.builder.store_atomic(value, emit.pointer(place, I64), "seq_cst", 8)


@emitted(1, int64)
def _see(emit: Emit, place):  # type: ignore[no-untyped-def]
    """The int64 there, as other threads have told it."""
    return emit.builder.load_atomic(emit.pointer(place, I64), "seq_cst", 8)


@emitted(1)
def _leave(emit: Emit, counter):  # type: ignore[no-untyped-def]
    """One less."""
    emit.builder.atomic_rmw("sub", emit.pointer(counter, I64), emit.const(1), "seq_cst")


@kernel
def lead(box, job, function, nothing, table, scratch, size, parts):  # type: ignore[no-untyped-def]
    """Run a kernel together with the helpers that are awake; they take tasks as the caller does. job: never used before."""
    _tell(box + 8, function)
    _tell(box + 16, nothing)
    _tell(box + 24, table)
    _tell(box + 32, scratch)
    _tell(box + 40, size)
    _tell(box + 48, parts)
    _tell(box, job)
    _call(function, nothing, table, scratch)
    _tell(box, 0)
    turns = 0
    while _see(box + 128) > 0:
        turns += 1
        rest(turns)


@kernel
def serve(box, part, patience):  # type: ignore[no-untyped-def]
    """Help with every job, until there was none for so many looks. part: from 1; a helper more than a job has parts stays away."""
    last, idle = 0, 0
    while idle < patience:
        idle += 1
        rest(0)
        job = _see(box)
        if job > 0 and job != last:
            arrive(box + 128)
            if _see(box) == job:  # from here on the caller waits
                if part < number(box, 6):
                    _call(number(box, 1), number(box, 2), number(box, 3), number(box, 4) + part * number(box, 5))
                last, idle = job, 0
            _leave(box + 128)


def _from_table(function: Any, arguments: int) -> tuple[Any, int]:
    """The kernel as it is called: with scratch, and the address of a table of its arguments, the four counters behind them.

    That is much faster than a dozen arguments through ctypes.
    """
    read = ", ".join(f"number(table, {i})" for i in range(arguments))
    scope = {"function": function, "number": number}
    exec(f"def from_table(table, scratch):\n    function({read}, scratch, table + {8 * arguments})", scope)
    return kernel(scope["from_table"]), 2


EXPORTS = {"convolution": _from_table(convolution, 6), "lead": (lead, 8), "serve": (serve, 3)}
for _lanes in sorted({LANES, min(LANES, 8)}):  # 8 for channels that are a multiple of 8 only
    _kernels = (*_pointwise_dkernel(_lanes), _depthwise(_lanes), _depthwise_dx(_lanes), _depthwise_dkernel(_lanes), *_norms(_lanes))
    for _kernel, _count in zip(_kernels, (9, 4, 5, 4, 4, 9, 9, 9, 7), strict=True):
        EXPORTS[f"{_kernel.py_func.__name__}_{_lanes}"] = _from_table(_kernel, _count)
