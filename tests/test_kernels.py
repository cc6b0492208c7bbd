"""Every kernel, plain, compiled and with vector instructions: one body for all, against definitions spelt out, each other, and PyTorch.

Which inputs: odd and even sizes, strides 1 to 3, one channel, 1x1 images, batches of 1 and 33, windows larger and smaller than their
strides, all padding rules, float32 and float64, arrays that are read-only or not contiguous. Gradients have their own proof, by finite
differences, in test_layers.py.
"""

import inspect
import os
import threading

import numpy as np
import pytest
from gradients import relative_error
from peers import pytorch

from minitl import kernels, kernels_fast, reference
from minitl.geometry import output_hw, resolve

TWINS = [reference, kernels, kernels_fast]
all_twins = pytest.mark.parametrize("ops", TWINS, ids=["reference", "kernels", "kernels_fast"])

# (batch, height, width, channels), window, strides, padding
WINDOWS = [
    ((1, 1, 1, 1), (1, 1), (1, 1), "same"),
    ((1, 1, 1, 3), (3, 3), (2, 2), "same"),
    ((33, 5, 7, 1), (3, 3), (2, 2), "same"),
    ((2, 8, 6, 5), (3, 3), (2, 2), "same"),
    ((2, 8, 7, 4), (3, 3), (1, 1), "same"),
    ((2, 7, 9, 3), (3, 3), (2, 2), "keras"),
    ((1, 8, 7, 4), (3, 3), (2, 2), "torch"),
    ((1, 9, 8, 2), (5, 3), (1, 2), "same"),
    ((2, 7, 8, 3), (2, 2), (3, 3), "valid"),
    ((1, 4, 3, 2), (7, 7), (1, 1), "same"),
    ((2, 4, 5, 17), (1, 1), (1, 1), "same"),
    ((1, 6, 5, 3), (1, 1), (2, 2), "same"),
    ((1, 5, 4, 2), (3, 3), (1, 1), (2, 0, 1, 2)),
    ((33, 5, 7, 8), (3, 3), (2, 2), "same"),
    ((1, 8, 6, 24), (3, 3), (2, 2), "keras"),
    ((3, 3, 2, 40), (3, 3), (1, 1), "same"),
    ((2, 2, 9, 16), (3, 3), (1, 1), "same"),
    ((2, 6, 5, 8), (3, 3), (2, 2), (2, 1, 0, 2)),
    ((2, 5, 7, 48), (1, 1), (1, 1), "same"),
    ((33, 1, 1, 16), (1, 1), (1, 1), "same"),
]
IDS = [f"{'x'.join(map(str, s))}-{w[0]}x{w[1]}-{t[0]}-{p if isinstance(p, str) else 'own'}" for s, w, t, p in WINDOWS]
windows = pytest.mark.parametrize(("shape", "window", "strides", "padding"), WINDOWS, ids=IDS)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def public(module):
    return {name: f for name, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__ and name[0] != "_"}


def test_every_kernel_has_a_twin_of_the_same_name_and_parameters():
    plain = public(reference)
    assert plain.keys() == public(kernels).keys() > public(kernels_fast).keys() - {"let_go"} and len(plain) >= 25
    for name in plain:
        assert inspect.signature(plain[name]) == inspect.signature(getattr(kernels, name)) == inspect.signature(getattr(kernels_fast, name))


# ---- definitions spelt out: one output value, one sum


def seen(x, n, r, c, window, strides, pads):
    """(row in the window, column in the window, pixel (C,)) of the real pixels that the window at output (r, c) meets."""
    for i in range(window[0]):
        for j in range(window[1]):
            row, column = r * strides[0] + i - pads[0], c * strides[1] + j - pads[2]
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                yield i, j, x[n, row, column]


def by_definition(x, window, strides, pads, channels, value):
    """Fill (N, OH, OW, channels) with value(list of what each window sees)."""
    y = np.empty((len(x), *output_hw(x.shape[1], x.shape[2], window, strides, pads), channels))
    for n, r, c in np.ndindex(y.shape[:3]):
        y[n, r, c] = value(list(seen(x, n, r, c, window, strides, pads)))
    return y


@all_twins
@windows
def test_sliding_windows_compute_what_their_definition_says(ops, shape, window, strides, padding):
    pads = resolve(padding, shape[1], shape[2], window, strides)
    channels = shape[3]
    x, kernel, each = draw(0, *shape), draw(1, *window, channels, 6), draw(2, *window, channels)
    found_and_expected = {
        "conv2d": (
            ops.conv2d(x, kernel, strides, pads),
            by_definition(x, window, strides, pads, 6, lambda sees: sum((p @ kernel[i, j] for i, j, p in sees), np.zeros(6))),
        ),
        "depthwise_conv2d": (
            ops.depthwise_conv2d(x, each, strides, pads),
            by_definition(x, window, strides, pads, channels, lambda sees: sum((p * each[i, j] for i, j, p in sees), np.zeros(channels))),
        ),
        "average_pool": (
            ops.average_pool(x, window, strides, pads),
            by_definition(x, window, strides, pads, channels, lambda sees: np.mean([p for _, _, p in sees], axis=0)),
        ),
        "max_pool": (
            ops.max_pool(x, window, strides, pads),
            by_definition(x, window, strides, pads, channels, lambda sees: np.max([p for _, _, p in sees], axis=0)),
        ),
    }
    errors = {name: relative_error(found, expected) for name, (found, expected) in found_and_expected.items()}
    print(errors)
    assert max(errors.values()) < 1e-13


@all_twins
def test_a_convolution_of_known_numbers(ops):
    x = np.arange(9.0).reshape(1, 3, 3, 1)
    kernel = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    np.testing.assert_array_equal(ops.conv2d(x, kernel, (1, 1), (0, 0, 0, 0))[0, :, :, 0], [[27, 37], [57, 67]])
    np.testing.assert_array_equal(ops.conv2d(x, kernel, (2, 2), (0, 1, 0, 1))[0, :, :, 0], [[27, 17], [20, 8]])
    np.testing.assert_array_equal(ops.conv2d(x, kernel, (2, 2), (1, 0, 1, 0))[0, :, :, 0], [[0, 11], [30, 67]])


@all_twins
def test_padding_does_not_count_in_pools(ops):
    x = -np.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(ops.max_pool(x, (3, 3), (2, 2), (1, 1, 1, 1))[0, :, :, 0], [[-1]])
    np.testing.assert_array_equal(ops.average_pool(x, (3, 3), (1, 1), (1, 1, 1, 1))[0, :, :, 0], [[-2.5, -2.5], [-2.5, -2.5]])
    np.testing.assert_array_equal(ops.average_pool(x, (2, 2), (1, 1), (1, 0, 1, 0))[0, :, :, 0], [[-1, -1.5], [-2, -2.5]])


@all_twins
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equals(ops):
    x = np.zeros((1, 3, 3, 1))
    dy = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    y = ops.max_pool(x, (2, 2), (1, 1), (0, 0, 0, 0))
    np.testing.assert_array_equal(ops.max_pool_dx(dy, x, y, (2, 2), (1, 1), (0, 0, 0, 0))[0, :, :, 0], [[1, 2, 0], [3, 4, 0], [0, 0, 0]])


@all_twins
def test_the_gradient_of_a_maximum_never_ends_in_the_padding(ops):
    x = np.full((1, 3, 3, 2), -np.inf)
    y = ops.max_pool(x, (3, 3), (2, 2), (1, 1, 1, 1))
    dx = ops.max_pool_dx(np.ones(y.shape), x, y, (3, 3), (2, 2), (1, 1, 1, 1))
    assert dx.sum() == y.size


@all_twins
def test_statistics_and_normalisation_of_known_numbers(ops):
    x = np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 10.0], [7.0, 10.0]])
    mean, variance = ops.moments(x)
    np.testing.assert_array_equal(mean, [4, 10])
    np.testing.assert_array_equal(variance, [5, 0])
    y = ops.batch_norm(x, mean, variance, np.array([2.0, 1.0]), np.array([1.0, 3.0]), 4.0)
    np.testing.assert_allclose(y, [[-1, 3], [1 / 3, 3], [5 / 3, 3], [3, 3]], atol=1e-14)


@all_twins
@pytest.mark.parametrize("channels", [2, 8])
def test_sums_and_statistics_survive_a_large_mean_and_a_large_batch(ops, channels):
    x = (1000 + draw(3, 33, 40, 40, channels)).astype(np.float32)
    mean, variance = ops.moments(x)
    errors = relative_error(mean, x.mean((0, 1, 2), dtype=np.float64)), relative_error(variance, x.var((0, 1, 2), dtype=np.float64))
    print("mean", errors[0], "variance", errors[1])
    assert errors[0] < 1e-6 and errors[1] < 1e-4
    total = relative_error(ops.channel_sum(x), x.sum((0, 1, 2), dtype=np.float64))
    print("sum", total)
    assert total < 1e-7


@all_twins
@pytest.mark.parametrize("channels", [3, 8])
def test_gradients_keep_their_digits_in_a_large_batch_far_from_zero(ops, channels):
    """Activations are positive, so that means are several deviations from 0, and a batch has 10^5 pixels: nothing may cancel."""
    x, gamma, beta = 50 + draw(3, 32, 40, 40, channels), draw(5, channels), draw(6, channels)
    dy = x - 50 + 0.1 * draw(4, *x.shape)  # most of it goes through the statistics, and leaves a tenth
    results = {}
    for dtype in (np.float64, np.float32):
        a, da, scale, shift = (array.astype(dtype) for array in (x, dy, gamma, beta))
        mean, variance = ops.moments(a)
        y = ops.batch_norm(a, mean, variance, scale, shift, 1e-3)
        back = ops.batch_norm_backward(da, a, mean, variance, scale, shift, 1e-3, np.ones(channels, bool))
        results[dtype] = (y, *back, ops.depthwise_conv2d_dkernel(a, da, (1, 1), (1, 1, 1, 1), (3, 3)))
    errors = [relative_error(found, exact) for found, exact in zip(results[np.float32], results[np.float64], strict=True)]
    print("y, dx, dgamma, dbeta, depthwise dkernel:", [f"{error:.1e}" for error in errors])
    assert max(errors) < 1e-5


@all_twins
def test_probabilities_of_known_numbers_and_of_huge_logits(ops):
    logits = np.array([[0.0, np.log(3.0)], [1e4, 1e4], [-1e4, 1e4]])
    np.testing.assert_allclose(ops.softmax(logits), [[0.25, 0.75], [0.5, 0.5], [0, 1]], atol=1e-15)
    targets = np.array([[0.0, 1.0], [0.5, 0.5], [0.0, 1.0]])
    losses, gradient = ops.softmax_cross_entropy(logits, targets)
    np.testing.assert_allclose(losses, [np.log(4 / 3), np.log(2), 0], atol=1e-15)
    np.testing.assert_allclose(gradient, np.array([[0.25, -0.25], [0, 0], [0, 0]]) / 3, atol=1e-15)


@all_twins
def test_activations_keep_between_their_bounds_and_gradients_stop_there(ops):
    x = np.array([-np.inf, -1.0, -0.0, 0.0, 1e-300, 3.0, 6.0, 7.0, np.inf])
    np.testing.assert_array_equal(ops.relu(x), [0, 0, 0, 0, 1e-300, 3, 6, 7, np.inf])
    np.testing.assert_array_equal(ops.relu6(x), [0, 0, 0, 0, 1e-300, 3, 6, 6, 6])
    dy = np.array([np.inf, np.nan, 1.0, 2.0, 3.0, 4.0, 5.0, np.nan, np.inf])  # what is stopped leaves no trace
    np.testing.assert_array_equal(ops.relu_dx(dy, ops.relu(x)), [0, 0, 0, 0, 3, 4, 5, np.nan, np.inf])
    np.testing.assert_array_equal(ops.relu6_dx(dy, ops.relu6(x)), [0, 0, 0, 0, 3, 4, 0, 0, 0])


# ---- both twins on every case


def cases():
    """(name, arguments) of calls: together every kernel, most of them for every row of WINDOWS."""
    for shape, window, strides, padding in WINDOWS:
        n, h, w, c = shape
        pads = resolve(padding, h, w, window, strides)
        out = output_hw(h, w, window, strides, pads)
        filters = 5 if c < 8 else 24
        x, dy, dout = draw(1, *shape), draw(2, n, *out, c), draw(3, n, *out, filters)
        kernel, each = draw(4, *window, c, filters), draw(5, *window, c)
        yield "conv2d", (x, kernel, strides, pads)
        yield "conv2d", (x, kernel, strides, pads, draw(17, filters))
        yield "conv2d_dx", (dout, kernel, strides, pads, (h, w))
        yield "conv2d_dkernel", (x, dout, strides, pads, window)
        yield "depthwise_conv2d", (x, each, strides, pads)
        yield "depthwise_conv2d", (x, each, strides, pads, draw(17, c))
        yield "depthwise_conv2d_dx", (dy, each, strides, pads, (h, w))
        yield "depthwise_conv2d_dkernel", (x, dy, strides, pads, window)
        yield "average_pool", (x, window, strides, pads)
        yield "average_pool_dx", (dy, window, strides, pads, (h, w))
        yield "max_pool", (x, window, strides, pads)
        yield "max_pool_dx", (dy, x, None, window, strides, pads)
    for shape in [(1, 1, 1, 1), (33, 5, 3, 1), (2, 7, 6, 5), (1, 4), (33, 17), (33, 9, 7, 8), (2, 3, 5, 40), (33, 16)]:
        x, dy, scale = draw(6, *shape), draw(7, *shape), np.abs(draw(8, shape[-1])) + 0.1
        mean, vector, from_batch = draw(9, shape[-1]), draw(10, shape[-1]), np.arange(shape[-1]) % 2 == 0
        yield "channel_sum", (x,)
        yield "moments", (x,)
        for high in (None, np.inf, 0.5):
            yield "batch_norm", (x, mean, scale, vector, mean, 1e-3, high)
            yield "batch_norm_training", (x, mean, scale, from_batch, vector, mean, 1e-3, high)
            yield "batch_norm_backward", (dy, x, mean, scale, vector, mean, 1e-3, from_batch, high)
        yield "relu", (x,)
        yield "relu_dx", (dy, x)
        yield "relu6", (9 * x,)
        yield "relu6_dx", (dy, 9 * x)
        yield "add", (x, dy)
        yield "concat", ([x, dy[..., :1], dy],)
        if len(shape) == 4:
            yield "global_average_pool", (x,)
            yield "global_average_pool_dx", (dy[:, 0, 0], shape[1:3])
        else:
            kernel, dout = draw(11, shape[-1], 6), draw(12, shape[0], 6)
            targets = np.abs(dout) / np.abs(dout).sum(1, keepdims=True)
            yield "dense", (x, kernel)
            yield "dense", (x, kernel, draw(17, 6))
            yield "dense_dx", (dout, kernel)
            yield "dense_dkernel", (x, dout)
            yield "softmax", (9 * x,)
            yield "softmax_cross_entropy", (dout, targets)


CALLS = {}
for name, arguments in cases():
    CALLS.setdefault(name, []).append(arguments)


def plain(array):
    return array


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array):
    """The same numbers, read-only, every second one of a larger array along each axis: what a slice of a memory-mapped file may be."""
    larger = np.full([2 * n for n in array.shape], np.nan).astype(array.dtype) if array.dtype != bool else np.zeros(2 * array.size, bool)
    inside = larger[tuple(slice(1, None, 2) for _ in array.shape)]
    inside[...] = array
    inside.flags.writeable = False
    return inside


def prepared(argument, dtype, layout):
    if isinstance(argument, list):
        return [prepared(a, dtype, layout) for a in argument]
    if not isinstance(argument, np.ndarray):
        return argument
    return layout(np.array(argument, argument.dtype if argument.dtype == bool else dtype))


@pytest.mark.parametrize("name", sorted(public(reference)))
@pytest.mark.parametrize(("dtype", "layout"), [(np.float32, read_only), (np.float64, strided)])
def test_twins_agree(name, dtype, layout):
    tolerance, worst = (2e-6 if dtype == np.float32 else 1e-13), 0.0
    for arguments in CALLS[name]:
        if name == "max_pool_dx":  # its third argument is what max_pool gave
            arguments = (*arguments[:2], reference.max_pool(arguments[1], *arguments[3:]), *arguments[3:])
        untouched = [prepared(a, dtype, plain) for a in arguments]
        given = [prepared(a, dtype, layout) for a in arguments]
        expected, *others = ((r if isinstance(r, tuple) else (r,)) for r in (getattr(ops, name)(*given) for ops in TWINS))
        for e, f in [pair for found in others for pair in zip(expected, found, strict=True)]:
            assert e.dtype == f.dtype == dtype
            assert f.flags.writeable
            worst = max(worst, relative_error(f, e))
        for before, after in zip(untouched, given, strict=True):
            np.testing.assert_equal(after, before)  # nothing is changed in place
    print(f"{name}: largest relative difference {worst:.1e}")
    assert worst < tolerance


NAN_STOPS = {"relu_dx", "relu6_dx", "max_pool_dx"}  # where a gradient goes is decided by y, which is no number


@pytest.mark.parametrize("name", sorted(set(public(reference)) - NAN_STOPS))
@all_twins
def test_a_nan_comes_out_where_it_went_in(name, ops):
    """One NaN in the first array, first or last: the twins put NaNs into the same places, where it was the first into at least one."""
    for arguments in CALLS[name]:
        if name == "batch_norm_backward" and arguments[-1] is not None:  # a clamp decides by y, too
            continue
        for place in (0, -1):
            spoilt = prepared(arguments[0], np.float64, plain)
            first = spoilt[0] if isinstance(spoilt, list) else spoilt
            first.reshape(-1)[place] = np.nan
            found, expected = (getattr(o, name)(spoilt, *arguments[1:]) for o in (ops, reference))
            found, expected = ((r if isinstance(r, tuple) else (r,)) for r in (found, expected))
            assert all(np.array_equal(np.isnan(f), np.isnan(e)) for f, e in zip(found, expected, strict=True))
            assert place == -1 or any(np.isnan(f).any() for f in found)  # the last pixel may lie between strides


@all_twins
def test_an_answer_for_a_photo_does_not_depend_on_its_neighbours(ops):
    if ops is not reference:  # the plain twin leaves the order of its sums to BLAS
        x, kernel = draw(13, 33, 64).astype(np.float32), draw(14, 64, 10).astype(np.float32)
        alone = np.concatenate([ops.dense(row[None], kernel) for row in x])
        np.testing.assert_array_equal(ops.dense(x, kernel), alone)
    images, each = draw(15, 5, 9, 9, 8).astype(np.float32), draw(16, 3, 3, 8).astype(np.float32)
    alone = np.concatenate([ops.depthwise_conv2d(image[None], each, (2, 2), (1, 1, 1, 1)) for image in images])
    np.testing.assert_array_equal(ops.depthwise_conv2d(images, each, (2, 2), (1, 1, 1, 1)), alone)


# ---- PyTorch


def nchw(torch, x):
    return torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), requires_grad=True)


def nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


TORCH_WINDOWS = [
    ((33, 5, 7, 1), 3, 2),
    ((2, 8, 6, 5), 3, 2),
    ((1, 9, 9, 4), 3, 1),
    ((2, 6, 7, 3), 1, 1),
    ((1, 8, 8, 2), 5, 3),
    ((1, 1, 1, 2), 3, 2),
]


@all_twins
@pytest.mark.parametrize(("shape", "size", "stride"), TORCH_WINDOWS)
@pytest.mark.parametrize("kind", ["conv2d", "depthwise_conv2d"])
def test_convolutions_and_their_gradients_are_those_of_pytorch(ops, shape, size, stride, kind):
    torch = pytorch()
    channels, pad = shape[3], size // 2
    depthwise = kind == "depthwise_conv2d"
    x, bias = draw(20, *shape), draw(22, channels if depthwise else 6)
    kernel = draw(21, size, size, channels) if depthwise else draw(21, size, size, channels, 6)
    # PyTorch: (O, I, kh, kw), and (C, 1, kh, kw) where each channel is its own group
    theirs = kernel.transpose(2, 0, 1)[:, None] if depthwise else kernel.transpose(3, 2, 0, 1)
    tx, tk, tb = nchw(torch, x), torch.tensor(theirs.copy(), requires_grad=True), torch.tensor(bias, requires_grad=True)
    ty = torch.nn.functional.conv2d(tx, tk, tb, stride, pad, groups=channels if depthwise else 1)
    y = getattr(ops, kind)(x, kernel, (stride, stride), (pad,) * 4, bias)
    dy = draw(23, *y.shape)
    ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2).copy()))
    dx = getattr(ops, f"{kind}_dx")(dy, kernel, (stride, stride), (pad,) * 4, shape[1:3])
    dkernel = getattr(ops, f"{kind}_dkernel")(x, dy, (stride, stride), (pad,) * 4, (size, size))
    their_dkernel = tk.grad.numpy()[:, 0].transpose(1, 2, 0) if depthwise else tk.grad.numpy().transpose(2, 3, 1, 0)
    pairs = [(y, nhwc(ty)), (dx, nhwc(tx.grad)), (dkernel, their_dkernel), (ops.channel_sum(dy), tb.grad.numpy())]
    errors = [relative_error(a, b) for a, b in pairs]
    print("y, dx, dkernel, dbias:", errors)
    assert max(errors) < 1e-12


@all_twins
@pytest.mark.parametrize(("shape", "size", "stride"), TORCH_WINDOWS)
def test_pools_and_their_gradients_are_those_of_pytorch(ops, shape, size, stride):
    torch = pytorch()
    x, pad = draw(30, *shape), size // 2
    window, strides, pads = (size, size), (stride, stride), (pad,) * 4
    pools = torch.nn.functional
    for name, theirs in {
        "max_pool": lambda t: pools.max_pool2d(t, size, stride, pad),
        "average_pool": lambda t: pools.avg_pool2d(t, size, stride, pad, count_include_pad=False),
        "global_average_pool": lambda t: pools.adaptive_avg_pool2d(t, 1),
    }.items():
        tx = nchw(torch, x)
        ty = theirs(tx)
        if name == "global_average_pool":
            y = ops.global_average_pool(x)
            dy = draw(31, *y.shape)
            dx = ops.global_average_pool_dx(dy, shape[1:3])
            y, dy = y[:, None, None], dy[:, None, None]
        else:
            y = getattr(ops, name)(x, window, strides, pads)
            dy = draw(31, *y.shape)
            dx = (
                ops.max_pool_dx(dy, x, y, window, strides, pads)
                if name == "max_pool"
                else ops.average_pool_dx(dy, window, strides, pads, shape[1:3])
            )
        ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2).copy()))
        errors = relative_error(y, nhwc(ty)), relative_error(dx, nhwc(tx.grad))
        print(name, errors)
        assert max(errors) < 1e-12


@all_twins
@pytest.mark.parametrize("training", [True, False], ids=["batch", "stored"])
def test_normalisation_and_its_gradients_are_those_of_pytorch(ops, training):
    torch = pytorch()
    x, dy, gamma, beta = 3 * draw(40, 4, 5, 3, 7) + 2, draw(41, 4, 5, 3, 7), draw(42, 7), draw(43, 7)
    mean, variance = draw(44, 7), np.abs(draw(45, 7)) + 0.5
    tx, tg, tb = nchw(torch, x), torch.tensor(gamma, requires_grad=True), torch.tensor(beta, requires_grad=True)
    ty = torch.nn.functional.batch_norm(tx, torch.tensor(mean), torch.tensor(variance), tg, tb, training, 0.0, 1e-3)
    ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2).copy()))
    if training:
        mean, variance = ops.moments(x)
    y = ops.batch_norm(x, mean, variance, gamma, beta, 1e-3)
    dx, dgamma, dbeta = ops.batch_norm_backward(dy, x, mean, variance, gamma, beta, 1e-3, np.full(7, training))
    pairs = [(y, nhwc(ty)), (dx, nhwc(tx.grad)), (dgamma, tg.grad.numpy()), (dbeta, tb.grad.numpy())]
    errors = [relative_error(a, b) for a, b in pairs]
    print("y, dx, dgamma, dbeta:", errors)
    assert max(errors) < 1e-12


@all_twins
def test_the_loss_the_activations_and_the_dense_layer_are_those_of_pytorch(ops):
    torch = pytorch()
    functional = torch.nn.functional
    x, kernel, targets = 4 * draw(50, 33, 9), draw(51, 9, 5), np.abs(draw(52, 33, 5))
    targets /= targets.sum(1, keepdims=True)
    tx, tk = torch.tensor(x, requires_grad=True), torch.tensor(kernel, requires_grad=True)
    logits = functional.relu6(functional.relu(tx)) @ tk
    loss = functional.cross_entropy(logits, torch.tensor(targets))
    loss.backward()
    hidden = ops.relu(x)
    bounded = ops.relu6(hidden)
    found = ops.dense(bounded, kernel)
    losses, dlogits = ops.softmax_cross_entropy(found, targets)
    dx = ops.relu_dx(ops.relu6_dx(ops.dense_dx(dlogits, kernel), bounded), hidden)
    pairs = [
        (found, logits.detach().numpy()),
        (losses.mean(), loss.detach().numpy()),
        (ops.softmax(found), functional.softmax(logits, 1).detach().numpy()),
        (ops.dense_dkernel(bounded, dlogits), tk.grad.numpy()),
        (dx, tx.grad.numpy()),
    ]
    errors = [relative_error(np.asarray(a), np.asarray(b)) for a, b in pairs]
    print("logits, loss, probabilities, dkernel, dx:", errors)
    assert max(errors) < 1e-12


# ---- what only the fast ones promise


def drawn_for_a_step():
    """{name: arguments} with channels that the vector kernels take, and enough work for several threads."""
    x, dy, wide = (draw(seed, 9, 24, 24, 32).astype(np.float32) for seed in (60, 61, 62))
    kernel, each, vector = (draw(63, 1, 1, 32, 32).astype(np.float32), draw(64, 3, 3, 32).astype(np.float32), np.full(32, 0.5, np.float32))
    full, pads, one, two = draw(65, 3, 3, 3, 16).astype(np.float32), (1, 1, 1, 1), (1, 1), (2, 2)
    return {
        "conv2d": [(wide, kernel, one, (0, 0, 0, 0)), (x[..., :3].copy(), full, two, pads)],
        "conv2d_dx": [(dy, kernel, one, (0, 0, 0, 0), (24, 24))],
        "conv2d_dkernel": [(x, dy, one, (0, 0, 0, 0), one), (x[..., :3].copy(), dy[..., :16].copy(), one, pads, (3, 3))],
        "depthwise_conv2d": [(x, each, one, pads), (x, each, two, pads)],
        "depthwise_conv2d_dx": [(dy, each, one, pads, (24, 24)), (dy[:, ::2, ::2].copy(), each, two, pads, (24, 24))],
        "depthwise_conv2d_dkernel": [(x, dy, one, pads, (3, 3))],
        "moments": [(x,)],
        "batch_norm": [(x, vector, vector, vector, vector, 1e-3, 6.0)],
        "batch_norm_training": [(x, vector, vector, np.ones(32, bool), vector, vector, 1e-3, 6.0)],
        "batch_norm_backward": [(dy, x, vector, vector, vector, vector, 1e-3, np.ones(32, bool), 6.0)],
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(drawn_for_a_step()))
def test_the_number_of_threads_does_not_change_a_bit(name, monkeypatch):
    for arguments in drawn_for_a_step()[name]:
        found = []
        for threads in ("1", "2", "3"):
            monkeypatch.setenv("MINITL_THREADS", threads)
            result = getattr(kernels_fast, name)(*arguments)
            found.append([r.tobytes() for r in (result if isinstance(result, tuple) else (result,))])
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", sorted(drawn_for_a_step()))
def test_the_vector_kernels_do_the_work_unless_the_plain_ones_are_asked_for(name, monkeypatch):
    calls = []
    run = kernels_fast._run
    monkeypatch.setattr(kernels_fast, "_run", lambda *arguments: (calls.append(name), run(*arguments)))
    for arguments in drawn_for_a_step()[name]:
        before = len(calls)
        fast = getattr(kernels_fast, name)(*arguments)
        assert len(calls) > before
        monkeypatch.setenv("MINITL_ENGINE", "plain")
        after = len(calls)
        plain = getattr(kernels_fast, name)(*arguments)
        monkeypatch.delenv("MINITL_ENGINE")
        assert len(calls) == after
        worst = max(relative_error(f, p) for f, p in zip(*((r if isinstance(r, tuple) else (r,)) for r in (fast, plain)), strict=True))
        print(f"{name}: {worst:.1e}")
        assert worst < 1e-5


def test_memory_comes_back_when_its_last_reader_is_gone_and_never_before():
    kernels_fast.let_go()
    first = kernels_fast._empty(100, 200)
    view, place = first[3:], first.ctypes.data
    del first
    other = kernels_fast._empty(100, 200)
    assert other.ctypes.data != place, "a view still reads it"
    del view
    kept = kernels_fast._empty(100, 200)
    assert kept.ctypes.data == place and place % 64 == 0 and kept.flags.writeable
    kernels_fast.let_go()
    del kept, other
    assert not kernels_fast._free and not kernels_fast._returned, "what is let go is not kept"
    large = kernels_fast._empty(1000, 100)
    place = large.ctypes.data
    del large
    small = [kernels_fast._empty(n, 100) for n in (200, 300)]
    assert small[0].ctypes.data != place == small[1].ctypes.data, "not for what is much smaller"


def test_arrays_that_are_not_aligned_are_computed_all_the_same():
    x, each = draw(70, 2, 6, 6, 8).astype(np.float32), draw(71, 3, 3, 8).astype(np.float32)
    block = np.empty(x.nbytes + 1, np.uint8)
    askew = block[1:].view(np.float32).reshape(x.shape)
    askew[...] = x
    assert not askew.flags.aligned
    for ops in TWINS:
        np.testing.assert_array_equal(
            ops.depthwise_conv2d(askew, each, (1, 1), (1, 1, 1, 1)), ops.depthwise_conv2d(x, each, (1, 1), (1, 1, 1, 1))
        )


def test_two_threads_that_train_at_once_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setenv("MINITL_THREADS", "2")
    (arguments,) = drawn_for_a_step()["batch_norm_backward"]
    expected, found = kernels_fast.batch_norm_backward(*arguments)[0].tobytes(), []

    def work():
        found.extend(kernels_fast.batch_norm_backward(*arguments)[0].tobytes() for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 60


def test_a_process_that_forks_after_training_trains_on_with_its_own_threads(monkeypatch):
    monkeypatch.setenv("MINITL_THREADS", "2")
    (arguments,) = drawn_for_a_step()["moments"]
    expected = kernels_fast.moments(*arguments)[1].tobytes()
    child = os.fork() if hasattr(os, "fork") else pytest.skip("no fork here")
    if child == 0:
        os._exit(0 if kernels_fast.moments(*arguments)[1].tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
