"""Every layer: its gradients against finite differences in float64 on both twins, its shapes against what it returns, its refusals."""

import numpy as np
import pytest
from gradients import finite_differences, relative_error

from minitl import kernels, layers, reference
from minitl.layers import (
    Add,
    AveragePool,
    BatchNorm,
    Concat,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    ReLU,
    ReLU6,
    Reshape,
)

both = pytest.mark.parametrize("ops", [reference, kernels], ids=["reference", "kernels"])
MASK = np.array([True, False, True])

# layer, shapes of its inputs without the batch, training
CASES = [
    (Conv2D((3, 3), (2, 2), "same", 4, True), [(5, 4, 3)], True),
    (Conv2D((3, 3), (2, 2), "keras", 2), [(5, 5, 3)], True),
    (Conv2D((1, 1), (1, 1), "same", 4, True), [(3, 4, 3)], True),
    (Conv2D((1, 1), (2, 2), "same", 4), [(4, 5, 1)], True),
    (Conv2D((3, 2), (1, 2), "torch", 1), [(4, 3, 2)], True),
    (Conv2D((3, 3), (2, 2), "same", 3, True), [(1, 1, 2)], True),
    (DepthwiseConv2D((3, 3), (1, 1), "same", True), [(4, 5, 3)], True),
    (DepthwiseConv2D((3, 3), (2, 2), "same"), [(5, 4, 3)], True),
    (DepthwiseConv2D((3, 3), (2, 2), "torch", True), [(6, 5, 1)], True),
    (DepthwiseConv2D((2, 2), (3, 3), "valid"), [(5, 6, 2)], True),
    (Dense(4), [(5,)], True),
    (Dense(1, False), [(3,)], True),
    (BatchNorm(), [(3, 2, 3)], True),
    (BatchNorm(), [(3, 2, 3)], False),
    (BatchNorm(), [(3, 2, 3)], MASK),
    (BatchNorm(1e-5), [(3,)], True),
    (BatchNorm(high=6.0), [(3, 2, 3)], True),
    (BatchNorm(high=np.inf), [(3, 2, 3)], MASK),
    (ReLU(), [(4, 3, 2)], True),
    (ReLU6(), [(4, 3, 2)], True),
    (GlobalAveragePool(), [(4, 3, 2)], True),
    (GlobalAveragePool(), [(1, 1, 3)], True),
    (AveragePool((2, 2), (2, 2), "valid"), [(4, 5, 2)], True),
    (AveragePool((3, 3), (1, 1), "same"), [(4, 3, 2)], True),
    (AveragePool((3, 3), (2, 2), "torch"), [(5, 4, 1)], True),
    (MaxPool((2, 2), (2, 2), "valid"), [(5, 4, 2)], True),
    (MaxPool((3, 3), (2, 2), "same"), [(6, 5, 2)], True),
    (MaxPool((3, 3), (2, 2), "torch"), [(5, 5, 1)], True),
    (Add(), [(3, 2, 4), (3, 2, 4)], True),
    (Concat(), [(3, 2, 4), (3, 2, 1), (3, 2, 2)], True),
    (Concat(), [(4,), (2,)], True),
    (Dropout(0.4), [(3, 4, 2)], True),
    (Dropout(0.4), [(3, 4, 2)], False),
    (Reshape((6, 4)), [(3, 4, 2)], True),
    (Flatten(), [(3, 4, 2)], True),
]
IDS = [f"{type(layer).__name__}-{i}" for i, (layer, _, _) in enumerate(CASES)]
cases = pytest.mark.parametrize(("layer", "shapes", "training"), CASES, ids=IDS)


def distinct_inputs(shapes, batch=3):
    """Distinct values on both sides of 0 and 6."""
    rng = np.random.default_rng(0)
    sizes = [batch * int(np.prod(shape)) for shape in shapes]
    return [
        (rng.permutation(np.linspace(-4.0, 10.0, size)) + 0.0123).reshape(batch, *shape) for size, shape in zip(sizes, shapes, strict=True)
    ]


def parameters(layer, shapes):
    rng = np.random.default_rng(1)
    return {
        name: (rng.uniform(0.5, 2.0, shape) if name in ("moving_variance", "gamma") else rng.standard_normal(shape))
        for name, shape in layer.param_shapes(*shapes).items()
    }


@both
@cases
def test_gradients_of_every_layer_agree_with_finite_differences(ops, layer, shapes, training):
    xs, params = distinct_inputs(shapes), parameters(layer, shapes)
    assert all(min(np.abs(x).min(), np.abs(x - 6).min(), np.diff(np.unique(x)).min()) > 1e-3 for x in xs)

    def forward():
        return layer.forward(ops, params, xs, training, np.random.default_rng(7))

    y, cache = forward()
    dy = np.random.default_rng(2).standard_normal(y.shape)
    dxs, grads = layer.backward(ops, params, dy, cache, True)
    assert len(dxs) == len(xs) and set(grads) == (set(layer.trainable) & set(params) if np.any(training) else set())

    def loss():
        return float((forward()[0] * dy).sum())

    errors = {f"x{i}": relative_error(dx, finite_differences(loss, x)) for i, (x, dx) in enumerate(zip(xs, dxs, strict=True))}
    errors |= {name: relative_error(grads[name], finite_differences(loss, params[name])) for name in grads}
    print({name: f"{error:.1e}" for name, error in errors.items()}, f"largest {max(errors.values()):.1e}")
    assert max(errors.values()) < 1e-6


@both
@cases
def test_without_need_dx_the_parameters_get_the_same_gradients_and_the_inputs_none(ops, layer, shapes, training):
    xs, params = distinct_inputs(shapes), parameters(layer, shapes)
    y, cache = layer.forward(ops, params, xs, training, np.random.default_rng(7))
    _, with_dx = layer.backward(ops, params, y, cache, True)
    dxs, without = layer.backward(ops, params, y, cache, False)
    assert dxs == [] and without.keys() == with_dx.keys()
    assert all(np.array_equal(without[name], with_dx[name]) for name in with_dx)


ALONE = [(layer, shapes) for layer, shapes, training in CASES if layer.trainable and training is True and not getattr(layer, "high", None)]


@both
@pytest.mark.parametrize(("layer", "shapes"), ALONE, ids=[type(layer).__name__ for layer, _ in ALONE])
def test_a_frozen_layer_keeps_no_input_gets_no_gradient_and_passes_the_one_of_its_input_on(ops, layer, shapes):
    xs, params = distinct_inputs(shapes), parameters(layer, shapes)
    y, frozen = layer.forward(ops, params, xs, False, None)
    assert not any(isinstance(part, np.ndarray) and part.size >= xs[0].size for part in frozen), "the input is not needed"
    dxs, grads = layer.backward(ops, params, y, frozen, True)
    assert grads == {} and layer.backward(ops, params, y, frozen, False) == ([], {})

    def loss():
        return float((layer.forward(ops, params, xs, False, None)[0] * y).sum())

    error = relative_error(dxs[0], finite_differences(loss, xs[0]))
    print(f"{error:.1e}")
    assert error < 1e-6
    half = np.arange(y.shape[-1]) % 2 == 0  # partly frozen: the trained channels need x, and get the gradient of a trained layer
    if half.any() and not half.all() and not isinstance(layer, BatchNorm):
        found = layer.backward(ops, params, y, layer.forward(ops, params, xs, half, None)[1], False)[1]
        whole = layer.backward(ops, params, y, layer.forward(ops, params, xs, True, None)[1], False)[1]
        assert found.keys() == whole.keys() and all(np.array_equal(found[name], whole[name]) for name in whole)


@both
@cases
def test_shapes_are_what_the_layer_says_and_nothing_that_came_in_changes(ops, layer, shapes, training):
    for batch in (1, 33):
        xs, params = distinct_inputs(shapes, batch), parameters(layer, shapes)
        for array in [*xs, *params.values()]:
            array.flags.writeable = False
        y, cache = layer.forward(ops, params, xs, training, np.random.default_rng(7))
        assert y.shape == (batch, *layer.output_shape(*shapes))
        dxs, grads = layer.backward(ops, params, np.ones_like(y), cache, True)
        assert [dx.shape for dx in dxs] == [x.shape for x in xs]
        assert all(grads[name].shape == params[name].shape for name in grads)


def test_every_layer_is_among_the_cases():
    public = {f for f in vars(layers).values() if isinstance(f, type) and issubclass(f, layers.Layer) and f.__module__ == layers.__name__}
    assert {c for c in public if c.__name__[0] != "_"} - {type(layer) for layer, _, _ in CASES} == {layers.Layer}


def test_float32_stays_float32_through_every_layer():
    for layer, shapes, training in CASES:
        xs = [x.astype(np.float32) for x in distinct_inputs(shapes)]
        params = {name: array.astype(np.float32) for name, array in parameters(layer, shapes).items()}
        y, cache = layer.forward(reference, params, xs, training, np.random.default_rng(7))
        dxs, grads = layer.backward(reference, params, y, cache, True)
        statistics = layer.updated_statistics(params, cache) if isinstance(layer, BatchNorm) else {}
        assert {a.dtype for a in (y, *dxs, *grads.values(), *statistics.values())} == {np.dtype(np.float32)}, layer


# ---- initial numbers, sizes, work


def test_kernels_start_with_the_variance_of_he_and_the_rest_with_nothing():
    rng = np.random.default_rng(0)
    for layer, shape, fan_in in [
        (Conv2D((3, 3), filters=64, use_bias=True), (8, 8, 32), 288),
        (DepthwiseConv2D((3, 3), use_bias=True), (8, 8, 2048), 9),
        (Dense(100), (300,), 300),
    ]:
        params = layer.initialise(rng, shape)
        print(type(layer).__name__, "variance times fan-in:", params["kernel"].var() * fan_in)
        assert abs(params["kernel"].var() * fan_in - 2) < 0.05 and abs(params["kernel"].mean()) < 0.01
        assert params["kernel"].dtype == np.float32 and not params["bias"].any()
    params = BatchNorm().initialise(rng, (4, 4, 3))
    assert {name: set(a.tolist()) for name, a in params.items()} == {
        "gamma": {1}, "beta": {0}, "moving_mean": {0}, "moving_variance": {1},
    }  # fmt: skip


def test_work_is_counted_as_products():
    assert Conv2D((3, 3), (2, 2), "same", 32).macs((224, 224, 3)) == 112 * 112 * 32 * 27
    assert DepthwiseConv2D((3, 3), (2, 2), "same").macs((14, 15, 512)) == 7 * 8 * 512 * 9
    assert Dense(1000).macs((1024,)) == 1024000
    assert BatchNorm().macs((7, 7, 5)) == ReLU().macs((7, 7, 5)) == 0


# ---- layers that behave differently while training


@both
def test_a_frozen_normalisation_ignores_the_batch_while_training(ops):
    layer, shape = BatchNorm(), (4, 4, 3)
    params = parameters(layer, [shape])
    x = 100 * np.random.default_rng(3).standard_normal((5, *shape))
    y, cache = layer.forward(ops, params, [x], False, None)
    alone = np.concatenate([layer.forward(ops, params, [x[i : i + 1]], False, None)[0] for i in range(5)])
    np.testing.assert_array_equal(y, alone)
    expected = params["gamma"] * (x - params["moving_mean"]) / np.sqrt(params["moving_variance"] + 1e-3) + params["beta"]
    assert relative_error(y, expected) < 1e-13
    for name, after in layer.updated_statistics(params, cache).items():
        assert after.tobytes() == params[name].tobytes()


@both
def test_statistics_move_by_keras_rule_and_only_in_channels_that_train(ops):
    layer, shape = BatchNorm(momentum=0.9), (4, 4, 3)
    params = {name: array.astype(np.float32) for name, array in parameters(layer, [shape]).items()}
    x = np.random.default_rng(3).standard_normal((5, *shape)).astype(np.float32) * 3 + 2
    _, cache = layer.forward(ops, params, [x], MASK, None)
    after = layer.updated_statistics(params, cache)
    for name, batch in {"moving_mean": x.mean((0, 1, 2)), "moving_variance": x.var((0, 1, 2))}.items():
        assert relative_error(after[name][MASK], (0.9 * params[name] + 0.1 * batch)[MASK]) < 1e-6
        assert after[name][~MASK].tobytes() == params[name][~MASK].tobytes()


@both
def test_a_trained_channel_comes_out_with_the_mean_beta_and_the_deviation_gamma(ops):
    layer, shape = BatchNorm(epsilon=1e-12), (9, 9, 3)
    params = parameters(layer, [shape])
    x = np.random.default_rng(3).standard_normal((8, *shape)) * 5 - 3
    y, _ = layer.forward(ops, params, [x], MASK, None)
    assert relative_error(y.mean((0, 1, 2))[MASK], params["beta"][MASK]) < 1e-10
    assert relative_error(y.std((0, 1, 2))[MASK], params["gamma"][MASK]) < 1e-10
    assert np.abs(y.mean((0, 1, 2)) - params["beta"])[~MASK].min() > 0.1


def test_dropout_zeroes_its_share_keeps_the_mean_and_repeats_with_its_seed():
    x = np.ones((100, 1000), np.float32)
    y, _ = Dropout(0.3).forward(kernels, {}, [x], True, np.random.default_rng(0))
    again, _ = Dropout(0.3).forward(kernels, {}, [x], True, np.random.default_rng(0))
    other, _ = Dropout(0.3).forward(kernels, {}, [x], True, np.random.default_rng(1))
    print("zeroed", (y == 0).mean(), "mean", y.mean())
    assert abs((y == 0).mean() - 0.3) < 0.01 and abs(y.mean() - 1) < 0.01
    assert np.allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    assert np.array_equal(y, again) and not np.array_equal(y, other)


@pytest.mark.parametrize(("rate", "training"), [(0.3, False), (0.0, True), (0.3, np.zeros(4, bool))])
def test_dropout_does_nothing_when_frozen_and_needs_no_generator(rate, training):
    x = np.ones((3, 4))
    y, cache = Dropout(rate).forward(kernels, {}, [x], training, None)
    assert y is x and cache is None


# ---- refusals


@pytest.mark.parametrize(
    ("layer", "shapes", "words"),
    [
        (Dense(3), [(4, 4, 3)], "needs a flat input"),
        (Conv2D((3, 3)), [(4,)], "needs an image"),
        (Conv2D((5, 5), padding="valid"), [(4, 9, 3)], "does not fit"),
        (Conv2D((3, 3), padding="full"), [(4, 9, 3)], "unknown"),
        (GlobalAveragePool(), [(4,)], "needs an image"),
        (MaxPool((2, 2), (2, 2), (2, 0, 0, 0)), [(4, 4, 1)], "as large as its window"),
        (AveragePool((2, 3), (2, 2), (1, 1, 0, 3)), [(4, 4, 1)], "as large as its window"),
        (Add(), [(4, 4, 1), (4, 4, 2)], r"\(4, 4, 1\) and \(4, 4, 2\)"),
        (Concat(), [(4, 4, 1), (4, 5, 1)], "one height and width"),
        (Concat(), [(2, 2, 4), (4,)], "one height and width"),
        (Reshape((5,)), [(2, 2, 1)], "numbers of values differ"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_reason(layer, shapes, words):
    with pytest.raises(ValueError, match=words):
        layer.output_shape(*shapes)
