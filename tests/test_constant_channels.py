"""Constant channels: the proof against what networks really do, and every value that is left against the network as it was."""

import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from conftest import DATA, WEIGHTS, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_graphs import Builder, images, random_graph
from litert_graphs import integer_graph, interpreter
from PIL import Image

from minitl import constant_channels, integer, reference_int8
from minitl.constant_channels import intervals, remove
from minitl.integer import AveragePool, IntegerGraph, MaxPool, Pad, Weighted


def saturated(graph, seed):
    """The same ops, many of whose channels hardly change or not at all: huge biases, factors of zero, weights of zero, cut at any op."""
    rng = np.random.default_rng(seed)
    ops = []
    for op in graph.ops:
        if isinstance(op, Weighted):
            kernel, bias, multiplier, shift = op.kernel.copy(), op.bias.astype(np.int64), op.multiplier.copy(), op.shift.copy()
            zero = graph.tensors[op.inputs[0]].zero_point
            weights = (np.abs(kernel.astype(np.int64)) + abs(op.kernel_zero)).reshape(-1, len(bias)).sum(0) * (128 + abs(zero))
            largest = (integer.SUM_LIMIT - 1 >> np.maximum(shift, 0)) - weights - 128 * kernel[..., 0].size * 256
            what = rng.integers(0, 7, len(bias))
            bias = np.where(what < 3, np.clip(rng.choice([-1, 1], len(bias)) * weights * rng.integers(1, 9), -largest, largest), bias)
            multiplier[what == 3], shift[what == 3] = 0, 0
            kernel[..., what == 4] = op.kernel_zero
            if kernel.ndim != 3:
                kernel[..., rng.random(kernel.shape[-2]) < 0.2, :] = op.kernel_zero
            op = replace(op, kernel=kernel, bias=bias.astype(np.int32), multiplier=multiplier, shift=shift)
        ops.append(op)
    ops = ops[: rng.integers(1, len(ops) + 1)] if rng.random() < 0.3 else ops
    return IntegerGraph({n: graph.tensors[n] for n in (graph.input, *(op.output for op in ops))}, tuple(ops), graph.input, ops[-1].output)


def adversaries(shape, count, seed=0):
    """Flat images, checkerboards of every period, gradients of every direction, single pixels, noise of every contrast: int8."""
    h, w, c = shape
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w]
    found = [np.full(shape, value) for value in (-128, 127, 0, -1)]
    for period in (1, 2, 3, 8):
        found += [np.broadcast_to((sign * ((y // period + x // period) % 2 * 255 - 128))[..., None], shape) for sign in (1, -1)]
    for sign, axis in product((1, -1), (y / max(h - 1, 1), x / max(w - 1, 1), (y + x) / max(h + w - 2, 1))):
        found.append(np.broadcast_to((sign * (axis * 255 - 127.5))[..., None], shape))
    for channel in range(c):
        for value in (-128, 127):
            one = np.full(shape, -1 - value)
            one[..., channel] = value
            found.append(one)
    while len(found) < count:
        values = rng.normal(rng.uniform(-128, 128), rng.choice([1, 20, 80, 1000]), shape)
        found.append(values if rng.random() < 0.5 else np.broadcast_to(values[..., :1], shape))
    return np.clip(np.round(np.stack(found)), -128, 127).astype(np.int8)


def check_equal(removal, x):
    """Every kept channel of every tensor is what it was; the number of values compared."""
    before, after = removal.original.run_all(x), removal.graph.run_all(x)
    assert list(before) == list(after)
    for name, y in after.items():
        np.testing.assert_array_equal(before[name][..., removal.kept[name]], y, err_msg=name)
    np.testing.assert_array_equal(before[removal.original.output], after[removal.graph.output])
    return sum(y.size for y in after.values())


def check_bounds(graph, x):
    """No value is out of its interval; (channels that stood still on x, channels proved to)."""
    still = proved = 0
    bounds, values = intervals(graph), graph.run_all(x)
    assert bounds.keys() == values.keys()
    for name, (low, high) in bounds.items():
        assert low.dtype == high.dtype == np.int64 and low.shape == high.shape == graph.tensors[name].shape[-1:]
        seen = values[name].reshape(-1, len(low))
        assert (low <= seen.min(0)).all() and (seen.max(0) <= high).all(), name
        still, proved = still + (seen.min(0) == seen.max(0)).sum(), proved + (low == high).sum()
    return still, proved


# ---- intervals ---------------------------------------------------------------------------------------------------------------


def test_every_op_is_known():
    assert sorted(op.kind for op in integer.OPS) == sorted(
        op.kind for op in constant_channels.MIXES + constant_channels.MOVES + constant_channels.KEEPS
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_no_image_leaves_the_intervals(seed, extreme):
    graph = random_graph(seed)
    check_bounds(saturated(graph, seed) if extreme else graph, adversaries(graph.tensors[graph.input].shape, 40, seed))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(-31, 30), st.lists(st.integers(1 - 2**30, 2**30 - 1), min_size=2, max_size=50))
def test_requantisation_never_falls_where_its_argument_grows(multiplier, shift, values):
    sums = np.unique(np.array(values, np.int64) >> max(shift, 0))
    sums = np.unique(np.concatenate([sums, sums + 1, sums - 1]))
    assert (np.diff(reference_int8.requantise(sums, multiplier, shift)) >= 0).all()


@pytest.mark.parametrize("kernel_zero", [0, -7])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0), (3, 2, 0, 3)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_bounds_of_one_layer_are_reached(depthwise, padding, kernel_zero):
    """A sum is largest where every pixel is at an end of int8: all 2**9 such images of 3 x 3 pixels, every window."""
    x = np.array(list(product((-128, 127), repeat=9)), np.int8).reshape(-1, 3, 3, 1)
    for seed, strides in enumerate(((1, 1), (2, 1), (2, 3))):
        build = Builder(np.random.default_rng(seed), (3, 3, 1))
        if depthwise:
            build.depthwise((3, 3), strides, padding)
        else:
            build.conv(6, (3, 2), strides, padding)
        build.ops[0] = replace(build.ops[0], kernel_zero=kernel_zero)
        graph = build.graph()
        low, high = intervals(graph)[graph.output]
        seen = graph.run(x)
        np.testing.assert_array_equal(seen.min((0, 1, 2)), low)
        np.testing.assert_array_equal(seen.max((0, 1, 2)), high)


def test_a_reshape_that_moves_channels_keeps_its_bounds():
    build = Builder(np.random.default_rng(0), (2, 3, 4))
    build.conv(4, (1, 1))
    first = build.last
    for shape in ((24,), (3, 2, 4), (2, 2, 6), (1, 12, 2), (24,)):
        build.reshape(shape)
    graph = build.graph()
    bounds = intervals(graph)
    np.testing.assert_array_equal(bounds["t2"][0], np.tile(bounds[first][0], 6))
    np.testing.assert_array_equal(bounds["t3"][1], bounds[first][1])
    np.testing.assert_array_equal(bounds["t5"][1], bounds[first][1].reshape(2, 2).max(0))
    check_bounds(graph, adversaries((2, 3, 4), 60))


# ---- removal -----------------------------------------------------------------------------------------------------------------


def test_random_networks_keep_every_bit():
    values = channels = left = proved = still = smaller = 0
    kinds = set()
    for seed in range(400):
        graph = saturated(random_graph(seed), seed)
        x = adversaries(graph.tensors[graph.input].shape, 36, seed)
        observed = check_bounds(graph, x)
        still, proved = still + observed[0], proved + observed[1]
        removal = remove(graph)
        values += check_equal(removal, x)
        channels += sum(t.shape[-1] for t in graph.tensors.values())
        left += sum(t.shape[-1] for t in removal.graph.tensors.values())
        for op in graph.ops:
            if any(len(removal.kept[name]) < graph.tensors[name].shape[-1] for name in (*op.inputs, op.output)):
                kinds.add(type(op))
        smaller += removal.graph is not graph
    print(f"{values} values equal; {proved} of {still} channels that stood still proved constant; {smaller} networks went from", end=" ")
    print(f"{channels} to {left} channels")
    assert kinds == set(integer.OPS), f"never made smaller: {set(integer.OPS) - kinds}"


def lively(build):
    """Gives the last layer no clamp but int8's own and no channel that is flushed to zero."""
    op = build.ops[-1]
    multiplier, shift = op.multiplier.copy(), op.shift.copy()
    multiplier[-1], shift[-1] = multiplier[0], shift[0]
    build.ops[-1] = replace(op, multiplier=multiplier, shift=shift, act_min=-128, act_max=127)


def pin(build, channels, value):
    """Makes the last layer's channels constants: weights of zero, and the bias that gives `value`, as near as it can."""
    lively(build)
    op, out = build.ops[-1], build.tensors[build.last]
    kernel, bias = op.kernel.copy(), op.bias.copy()
    multiplier, shift = op.multiplier.copy(), op.shift.copy()
    kernel[..., channels] = op.kernel_zero
    multiplier[channels], shift[channels], bias[channels] = 2**30, 0, 2 * (value - out.zero_point)
    build.ops[-1] = replace(op, kernel=kernel, bias=bias, multiplier=multiplier, shift=shift)


def block(value, padding, *, seed=0):
    """conv -> depthwise -> conv, with channels 1 and 3 of the first always `value`."""
    build = Builder(np.random.default_rng(seed), (5, 5, 2))
    build.conv(5, (1, 1))
    name = build.last
    build.tensors[name] = replace(build.tensors[name], zero_point=-20)
    pin(build, [1, 3], value)
    build.depthwise((3, 3), (1, 1), padding)
    lively(build)
    build.conv(3, (1, 1))
    lively(build)
    return build.graph()


@pytest.mark.parametrize(
    ("value", "padding", "goes"),
    [(-20, (1, 1, 1, 1), True), (60, (0, 0, 0, 0), True), (60, (1, 1, 1, 1), False), (60, (0, 1, 0, 0), False)],
    ids=["zero point, padded", "not padded", "padded", "padded on one side"],
)
def test_a_constant_under_padding_is_removed_only_at_the_zero_point(value, padding, goes):
    """Inside, the depthwise sees the constant, at the border real zeros: its output is no constant then, if no clamp makes it one."""
    graph = block(value, padding)
    bounds = intervals(graph)
    assert all(bounds["t1"][0][c] == bounds["t1"][1][c] == value for c in (1, 3))
    removal = remove(graph)
    moving = np.flatnonzero(bounds["t2"][0] != bounds["t2"][1]).tolist()
    assert removal.kept["t1"].tolist() == removal.kept["t2"].tolist() == moving
    assert bool({1, 3} & set(moving)) != goes and {0, 2, 4} <= set(moving)
    check_equal(removal, adversaries((5, 5, 2), 40))


@pytest.mark.parametrize(("value", "left"), [(-20, 4), (60, 6)])
def test_a_convolution_with_padding_folds_only_the_zero_point(value, left):
    build = Builder(np.random.default_rng(1), (5, 5, 2))
    build.conv(6, (1, 1))
    build.tensors["t1"] = replace(build.tensors["t1"], zero_point=-20)
    pin(build, [0, 4], value)
    build.conv(3, (3, 3), padding=(1, 1, 1, 1))
    lively(build)
    removal = remove(build.graph())
    assert len(removal.kept["t1"]) == left
    check_equal(removal, adversaries((5, 5, 2), 40))


def test_padding_that_no_window_reaches_is_no_border():
    build = Builder(np.random.default_rng(1), (4, 4, 2))
    build.conv(6, (1, 1))
    pin(build, [0, 4], 60)
    build.conv(3, (2, 2), (2, 2), (0, 1, 0, 1))
    removal = remove(build.graph())
    assert removal.kept["t1"].tolist() == [1, 2, 3, 5]
    check_equal(removal, adversaries((4, 4, 2), 40))


def test_a_channel_stays_if_one_of_its_readers_needs_it():
    """A residual: the sum needs every channel that its own reader needs, whatever the branch makes of it."""
    build = Builder(np.random.default_rng(2), (4, 4, 3))
    build.conv(8, (1, 1))
    start = build.last
    pin(build, [2, 5], 7)
    build.conv(8, (3, 3), padding=(1, 1, 1, 1))
    pin(build, [2, 6], -9)
    build.add(start, build.last)
    total = build.last
    build.conv(2, (1, 1))
    removal = remove(build.graph())
    low, high = intervals(build.graph())[total]
    assert 2 in np.flatnonzero(low == high) and {5, 6}.isdisjoint(np.flatnonzero(low == high))
    # Channel 2 of the sum is constant, but the padded convolution sees channel 2 of the first tensor: it stays.
    assert removal.graph is removal.original
    assert "nothing was removed" in removal.summary()[0]


def test_concat_and_flatten_follow_their_inputs():
    build = Builder(np.random.default_rng(3), (3, 3, 4))
    build.conv(6, (1, 1))
    one = build.last
    pin(build, [0, 1, 5], 33)
    build.conv(5, (1, 1))
    build.tensors[build.last] = replace(build.tensors[build.last], scale=build.tensors[one].scale, zero_point=build.tensors[one].zero_point)
    pin(build, [4], -50)
    build.concat((one, build.last, one))
    joined = build.last
    build.dense(3)
    graph = build.graph()
    removal = remove(graph)
    assert removal.kept[joined].tolist() == [2, 3, 4, 6, 7, 8, 9, 13, 14, 15]
    flat = graph.ops[-1].inputs[0]
    assert removal.kept[flat].tolist() == [17 * pixel + c for pixel in range(9) for c in removal.kept[joined]]
    print(check_equal(removal, adversaries((3, 3, 4), 60)), "values equal")


def test_a_tensor_that_never_changes_keeps_one_channel_and_asks_for_nothing():
    """Its one channel is a bias without weights, so that nothing before it is computed for its sake."""
    build = Builder(np.random.default_rng(4), (4, 4, 3))
    build.conv(8, (3, 3))
    build.conv(6, (1, 1))
    pin(build, range(6), 25)
    build.dense(3)
    removal = remove(build.graph())
    assert len(removal.kept["t1"]) == len(removal.kept["t2"]) == 1
    assert not removal.graph.ops[1].kernel.any() or removal.graph.ops[1].kernel_zero
    check_equal(removal, adversaries((4, 4, 3), 40))
    low, high = intervals(removal.graph)[removal.graph.output]
    assert (low == high).all()


def test_an_output_that_never_changes_keeps_its_channels():
    for kernel_zero in (0, 50):
        build = Builder(np.random.default_rng(5), (4, 4, 3))
        build.conv(6, (3, 3))
        build.dense(4)
        build.ops[-1] = replace(build.ops[-1], kernel_zero=kernel_zero)
        pin(build, [0, 1, 2, 3], 90)
        removal = remove(build.graph())
        assert removal.graph.tensors[removal.graph.output].shape == (4,) and len(removal.kept["t1"]) == 1
        check_equal(removal, adversaries((4, 4, 3), 40))
        assert (removal.graph.run(images(removal.graph, 3)) == 90).all()


def test_a_kernel_of_zeros_that_the_proof_would_refuse_is_not_made():
    """kernel_zero counts twice in a weight of zero; a constant at the limit of the proof keeps the weights that it has."""
    build = Builder(np.random.default_rng(6), (2, 2, 3))
    build.conv(12, (1, 1))
    build.tensors["t1"] = replace(build.tensors["t1"], zero_point=100)
    pin(build, [3], 0)
    build.conv(3, (1, 1))
    op = build.ops[-1]
    bias = np.array([integer.SUM_LIMIT - 1 - 12 * 100 * 228, 0, 0], np.int32)
    build.ops[-1] = replace(op, kernel=op.kernel * 0, kernel_zero=100, bias=bias, shift=np.minimum(op.shift, 0))
    low, high = intervals(build.graph())[build.last]
    assert low[0] == high[0]
    removal = remove(build.graph())
    assert len(removal.kept["t1"]) == 11
    check_equal(removal, adversaries((2, 2, 3), 30))


def test_a_channel_that_nobody_reads_needs_no_constant():
    build = Builder(np.random.default_rng(7), (4, 4, 3))
    build.conv(6, (1, 1))
    build.depthwise((3, 3), padding=(1, 1, 1, 1))
    build.conv(4, (1, 1))
    kernel = build.ops[-1].kernel.copy()
    kernel[..., [0, 3], :] = build.ops[-1].kernel_zero
    build.ops[-1] = replace(build.ops[-1], kernel=kernel)
    removal = remove(build.graph())
    assert {0, 3}.isdisjoint(removal.kept["t1"]) and removal.kept["t1"].tolist() == removal.kept["t2"].tolist()
    check_equal(removal, adversaries((4, 4, 3), 40))


def test_image_and_output_keep_all_channels():
    for seed in range(100):
        graph = saturated(random_graph(seed), seed)
        removal = remove(graph)
        assert removal.graph.tensors[graph.input] == graph.tensors[graph.input]
        assert removal.graph.tensors[graph.output] == graph.tensors[graph.output]
        assert [op.name for op in removal.graph.ops] == [op.name for op in graph.ops]


def test_a_network_without_constants_is_returned_as_it_is():
    build = Builder(np.random.default_rng(8), (6, 6, 3))
    build.conv(2, (3, 3))
    build.pool(MaxPool, (2, 2), (2, 2))
    build.pool(AveragePool, (2, 2), (1, 1))
    build.dense(2)
    removal = remove(build.graph())
    assert removal.graph is removal.original
    assert removal.summary() == ["0 of 4 channels never change, whatever the image (integer interval analysis); nothing was removed"]


def test_removal_is_deterministic_and_done_at_once():
    again = 0
    for seed in range(60):
        graph = saturated(random_graph(seed), seed)
        one, two = remove(graph), remove(graph)
        assert one.graph.digest() == two.graph.digest() and one.summary() == two.summary()
        again += remove(one.graph).graph.macs() < one.graph.macs()
    print(f"{again} of 60 networks get smaller still when done twice")
    assert again == 0


def test_an_image_that_is_the_output_and_a_dead_end_are_left_alone():
    build = Builder(np.random.default_rng(9), (4, 4, 3))
    assert remove(build.graph()).graph.ops == ()
    build.conv(8, (1, 1))
    dead = build.last
    build.push(Pad("p", ("x",), "p", (1, 1, 1, 1)), build.tensors.setdefault("p", replace(build.tensors["x"], name="p", shape=(6, 6, 3))))
    removal = remove(build.graph())
    assert len(removal.kept[dead]) == 1
    check_equal(removal, adversaries((4, 4, 3), 40))


# ---- real networks -----------------------------------------------------------------------------------------------------------


def photos(shape, count):
    """Real pictures, int8."""
    files = [WEIGHTS / "grace_hopper.bmp", WEIGHTS / "cat.bmp", *sorted((DATA / "person/val").glob("*/*.jpg"))[: count - 2]]
    return np.stack([np.asarray(Image.open(f).convert("RGB").resize(shape[1::-1])).astype(np.int16) - 128 for f in files]).astype(np.int8)


def measure(file, made_up, real):
    """The removal on a published network, checked on made_up + real images and printed."""
    graph = integer_graph(interpreter(WEIGHTS / file))[0]
    shape = graph.tensors[graph.input].shape
    x = np.concatenate([adversaries(shape, made_up)[:made_up], photos(shape, real)])
    start = time.perf_counter()
    removal = remove(graph)
    seconds = time.perf_counter() - start
    still, proved = check_bounds(graph, x)
    values = check_equal(removal, x)
    print("\n".join(removal.summary()))
    print(f"{values:,} values equal on {len(x)} images; {seconds:.2f} s; {still:,} channels of tensors stood still, {proved:,} proved to")
    assert seconds < 5
    return removal


@needs_shared
def test_the_person_detector_shrinks_to_a_seventh_and_keeps_every_bit():
    removal = measure("vww_96_int8.tflite", 56, 24)
    assert removal.macs == (7_489_664, 3_727_313) and removal.kernel_bytes == (208_112, 29_066)


@needs_shared
def test_kernels_with_a_zero_point_keep_every_bit():
    """In the uint8 network three of the first eight channels go, with 5 % of its multiplications."""
    removal = measure("mobilenet_v1_0.25_128_quant.tflite", 56, 8)
    assert removal.macs == (13_570_304, 12_868_864)


@needs_shared
def test_a_network_trained_on_much_has_little_to_remove():
    removal = measure("tf2_mobilenet_v2_1.0_224_ptq.tflite", 18, 2)
    assert removal.macs == (300_775_552, 294_726_208)
