"""From float to int8, and folding before it: the rules of LiteRT's specification, and no layer forgotten."""

import math

import numpy as np
import pytest
import small_models
from small_models import chain

from minitl import integer, layers, quantize
from minitl.errors import MinitlError
from minitl.folding import count_readers, fold
from minitl.graph import INPUT, Graph, Node
from minitl.images import Recipe
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
from minitl.model import find
from minitl.quantize import LARGEST_BIAS, Statistics, calibrate, quantise, quantise_kernel, value_scale

RECIPE = Recipe(8, 8)


def conv(filters, size=1, stride=1):
    return Conv2D((size, size), (stride, stride), "same", filters, True)


def drawn(*nodes, end=True, seed=0, shape=(8, 8, 3)):
    return small_models.stir(Graph(chain(*nodes, end=end), shape).initialise(seed))


def photos(count=16, seed=0, size=8):
    """(count, 1, size, size, 3) float32 as RECIPE makes them, and the pixels (count, size, size, 3) uint8: noise, darker and brighter."""
    rng = np.random.default_rng(seed)
    light = rng.uniform(0, 255, (count, 1, 1, 3))
    pixels = np.clip(light + rng.normal(0, 60, (count, size, size, 3)), 0, 255).astype(np.uint8)
    return Recipe(size, size).normalise(pixels)[:, None], pixels


def quantised(graph, count=16):
    folded = fold(graph)
    return folded, quantise(folded, calibrate(folded, photos(count)[0]), RECIPE)


def real(network, value, pixels):
    """The real numbers of one tensor of an integer network for uint8 photos."""
    tensor = network.tensors[value]
    return (network.run_all(RECIPE.quantise_pixels(pixels))[value].astype(np.float64) - tensor.zero_point) * tensor.scale


def snr(signal, found):
    """How many decibels the error lies below the signal."""
    return 10 * math.log10(np.mean(np.square(signal)) / max(np.mean(np.square(found - signal)), 1e-30))


# ---- scales and zero points (https://ai.google.dev/edge/litert/models/quantization_spec)


def test_a_range_is_covered_and_zero_is_exact():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        low, high = np.sort(rng.normal(rng.normal(0, 3), 1, 2) * 10 ** rng.uniform(-9, 9))
        scale, zero = value_scale(low, high)
        assert scale == np.float32(scale) and isinstance(zero, int) and -128 <= zero <= 127
        bottom, top = scale * (-128 - zero), scale * (127 - zero)
        assert bottom <= 0 <= top  # 0 is one of the values: q = zero
        assert bottom <= min(low, 0) + 0.501 * scale and top >= max(high, 0) - 0.501 * scale
        assert scale <= 1.0001 * (max(high, 0) - min(low, 0)) / 255


def test_worked_examples_of_scales():
    assert value_scale(0, 255) == (1.0, -128)
    assert value_scale(-128, 127) == (1.0, 0)
    assert value_scale(-255, 0) == (1.0, 127)
    assert value_scale(10, 255) == (1.0, -128)  # widened to hold 0
    assert value_scale(-255, -10) == (1.0, 127)
    assert value_scale(0, 6) == (float(np.float32(6 / 255)), -128)
    assert value_scale(0, 255, finest=3.0) == (3.0, -128)
    assert value_scale(0, 0)[1] == -128 and value_scale(0, 0)[0] > 0
    for bad in (np.inf, np.nan, -np.inf):
        with pytest.raises(MinitlError, match="calibration range"):
            value_scale(min(bad, 0), bad)


def test_kernels_are_symmetric_per_channel_and_reach_127():
    rng = np.random.default_rng(0)
    for shape in ((3, 3, 4, 6), (3, 3, 6), (10, 6)):
        kernel = (rng.standard_normal(shape) * 10.0 ** np.arange(-3, 3)).astype(np.float32)
        bias = rng.standard_normal(6).astype(np.float32)
        inputs = shape[-1] if len(shape) == 3 else shape[-2]
        q, b, scales = quantise_kernel(kernel, bias, 0.02, np.zeros(inputs, np.float32))
        assert q.dtype == np.int8 and b.dtype == np.int32 and q.min() >= -127
        assert np.all(np.abs(q.astype(int)).reshape(-1, 6).max(axis=0) == 127)
        assert np.all(np.abs(q * scales - kernel) <= 0.5001 * scales)
        assert np.all(np.abs(b * 0.02 * scales - bias) <= 0.5001 * 0.02 * scales)  # int32, zero point 0, scale_in * scale_kernel
        assert np.array_equal(scales, scales.astype(np.float32))


def test_the_input_has_the_recipes_scale_and_all_multipliers_are_those_of_the_scales():
    graph = drawn(("a", conv(5, 3)), ("a_relu", ReLU6()), ("b", DepthwiseConv2D((3, 3), (1, 1), "same", True)), ("c", conv(4)))
    folded, network = quantised(graph)
    assert network.tensors[INPUT].quantisation == RECIPE.input_quantisation
    for op in network.ops:
        if isinstance(op, integer.Weighted):
            ins, out = network.ends(op)
            kernel = folded.params[op.name]["kernel"]
            scales = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0) / np.float32(127)
            expected = ins[0].scale * scales.astype(np.float64) / out.scale
            found = op.multiplier.astype(np.float64) / 2**31 * 2.0**op.shift
            assert np.allclose(found, expected, rtol=1e-6)


# ---- which op a layer becomes


def kinds(network):
    return [(op.kind, op.output) for op in network.ops]


def test_an_activation_after_a_sum_becomes_its_clamp():
    nodes = [
        ("a", conv(4, 3)), ("a_relu", ReLU()), ("b", DepthwiseConv2D((3, 3), (1, 1), "same", True)), ("b_relu", ReLU6()),
        ("s", Add(), "a_relu", "b_relu"), ("s_relu", ReLU()), ("f", Flatten()), ("d", Dense(5)), ("d_relu", ReLU6()), ("l", Dense(3)),
    ]  # fmt: skip
    folded, network = quantised(drawn(*nodes, end=False))
    assert kinds(network) == [
        ("conv2d", "a_relu"), ("depthwise_conv2d", "b_relu"), ("add", "s_relu"), ("reshape", "f"), ("dense", "d_relu"), ("dense", "l"),
    ]  # fmt: skip
    x, pixels = photos()
    exact = folded.evaluate(x[:, 0], ["a_relu", "b_relu", "s_relu", "d_relu"])
    for name, value in exact.items():
        tensor = network.tensors[name]
        assert tensor.zero_point == -128 and tensor.scale * 255 <= value.max() * 1.001 + 1e-9
        assert real(network, name, pixels).min() == 0


def test_an_activation_that_others_read_past_stands_alone():
    nodes = [("a", conv(4, 3)), ("r", ReLU6(), "a"), ("s", Add(), "a", "r")]
    folded, network = quantised(drawn(*nodes))
    assert kinds(network)[:3] == [("conv2d", "a"), ("requantise", "r"), ("add", "s")]
    x, pixels = photos()
    assert network.tensors["a"].zero_point > -128 and network.tensors["r"].zero_point == -128
    exact = folded.evaluate(x[:, 0], ["a", "r", "s"])
    for name, value in exact.items():
        error = np.abs(real(network, name, pixels) - value).max()
        print(f"{name}: largest error {error / network.tensors[name].scale:.2f} steps")
        assert error < 3 * network.tensors[name].scale


@pytest.mark.parametrize("before", [[], [("p", MaxPool((2, 2), (2, 2)))], [("c", conv(4)), ("r", ReLU())]])
def test_an_activation_after_anything_else_stands_alone(before):
    _, network = quantised(drawn(*before, ("act", ReLU6())))
    assert ("requantise", "act") in kinds(network)
    assert network.tensors["act"].zero_point == -128


def test_pools_and_reshapes_keep_the_scale_of_what_they_move():
    nodes = [("a", conv(4, 3)), ("m", MaxPool((3, 3), (2, 2))), ("v", AveragePool((2, 2), (2, 2))), ("f", Flatten()),
             ("r", Reshape((2, 2, 4))), ("g", Flatten()), ("l", Dense(3))]  # fmt: skip
    _, network = quantised(drawn(*nodes, end=False))
    assert [kind for kind, _ in kinds(network)] == ["conv2d", "max_pool", "average_pool", "reshape", "reshape", "reshape", "dense"]
    assert len({network.tensors[name].quantisation for name in "amvfrg"}) == 1
    _, network = quantised(drawn(("a", conv(4, 3))))
    assert network.tensors["pool"].quantisation != network.tensors["a"].quantisation  # a mean over everything has a range of its own


def test_the_parts_of_a_concat_come_to_one_scale():
    nodes = [("a", conv(2)), ("b", conv(3), INPUT), ("j", Concat(), "a", "b", INPUT, "a")]
    graph = drawn(*nodes)
    graph.params["b"]["kernel"] = graph.params["b"]["kernel"] * 20
    folded, network = quantised(graph)
    (joined,) = [op for op in network.ops if op.kind == "concat"]
    scales = {network.tensors[name].quantisation for name in joined.inputs}
    assert scales == {network.tensors["j"].quantisation} and len(joined.inputs) == 4
    x, pixels = photos()
    value = folded.evaluate(x[:, 0], ["j"])["j"]
    error = np.abs(real(network, "j", pixels) - value).max()
    print(f"largest error {error / network.tensors['j'].scale:.2f} steps")
    assert error < 2.5 * network.tensors["j"].scale


def test_rescaled_parts_cannot_take_the_name_of_a_node():
    """InceptionV3 has a concat 'mixed9' that reads a node 'mixed9_0'."""
    nodes = [("mixed9_0", conv(2)), ("mixed9_1", conv(3), INPUT), ("mixed9", Concat(), "mixed9_1", "mixed9_0"), ("c", conv(2)),
             ("z", Concat(), "c", "mixed9_0")]  # fmt: skip
    graph = drawn(*nodes)
    graph.params["mixed9_1"]["kernel"] = graph.params["mixed9_1"]["kernel"] * 5
    folded, network = quantised(graph)
    x, pixels = photos()
    for name in ("mixed9_0", "mixed9", "z", "logits"):
        value = folded.evaluate(x[:, 0], [name])[name]
        assert snr(value, real(network, name, pixels)) > 25, name


def every_layer():
    """All classes of layers.py that a graph can hold."""
    found, todo = set(), [layers.Layer]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind is not layers.Layer and not kind.__name__.startswith("_") and kind.__module__ == layers.__name__:
            found.add(kind)
    return found


EXAMPLES = {
    Conv2D: conv(4, 3), DepthwiseConv2D: DepthwiseConv2D((3, 3)), Dense: None, BatchNorm: BatchNorm(), Dropout: Dropout(0.5), ReLU: ReLU(),
    ReLU6: ReLU6(), GlobalAveragePool: None, AveragePool: AveragePool((2, 2)), MaxPool: MaxPool((2, 2)), Reshape: Reshape((8, 8, 3)),
    Flatten: None, Add: Add(), Concat: Concat(),
}  # fmt: skip


def test_every_layer_has_an_example_here():
    assert {kind.__name__ for kind in EXAMPLES} == {kind.__name__ for kind in every_layer()}, "a new layer: give it an example"


@pytest.mark.parametrize("kind", sorted(every_layer(), key=lambda k: k.__name__), ids=lambda k: k.__name__)
def test_every_layer_has_an_integer_form_or_is_folded_away(kind):
    """A layer that someone adds to layers.py and forgets here, in folding.py or in quantize.py, fails this test by its name."""
    example = EXAMPLES.get(kind)
    if kind is Flatten:
        nodes = chain(("f", Flatten()), ("logits", Dense(3)), end=False)
    elif example is None:
        nodes = chain()  # the end of every chain
    else:
        inputs = ("a", INPUT) if kind.arity != 1 else ()
        nodes = chain(("a", conv(3)), ("x", example, *inputs), ("b", conv(3)))
    graph = small_models.stir(Graph(nodes, (8, 8, 3)).initialise(0))
    assert any(isinstance(node.layer, kind) for node in graph.nodes)
    folded, network = quantised(graph)
    x, pixels = photos()
    exact = graph.evaluate(x[:, 0])["logits"]
    found = snr(exact, real(network, "logits", pixels))
    print(f"{kind.__name__}: {found:.1f} dB")
    assert found > 30 and folded.output == "logits"


def test_a_layer_without_integer_form_is_refused_by_name():
    class Softplus(ReLU):
        pass

    class Other(layers.Layer):
        def forward(self, ops, params, xs, training, rng):
            return xs[0], None

    assert quantised(drawn(("x", Softplus())))  # a kind of ReLU is one
    with pytest.raises(MinitlError, match=r"'odd' \(Other\) has no integer form"):
        quantised(drawn(("odd", Other()), ("b", conv(2))))


# ---- hard networks


def test_a_dead_channel_changes_nothing_for_the_others():
    """All-zero kernels, with and without bias, and kernels so small that their scale is no float32."""
    graph = drawn(("a", conv(6, 3)), ("a_relu", ReLU6()), ("b", conv(4)))
    graph.params["a"]["kernel"] *= np.float32(1e-3)  # whoever gave a dead channel a scale of 1 would drown these
    graph.params["a"]["bias"] *= np.float32(1e-3)
    alive = quantised(graph)[1]
    for kernel, bias in ((0, 0), (0, 2e-4), (1e-44, 0), (1e-41, 1e-4), (0, -5)):
        graph.params["a"]["kernel"][..., 0], graph.params["a"]["bias"][0] = kernel, bias
        with np.errstate(all="raise", under="ignore"):
            folded, network = quantised(graph)
        x, pixels = photos(seed=3)
        exact = folded.evaluate(x[:, 0], ["a_relu"])["a_relu"]
        found = real(network, "a_relu", pixels)
        assert network.tensors["a_relu"].scale <= 1.5 * alive.tensors["a_relu"].scale
        assert np.abs(found[..., 0] - exact[..., 0]).max() <= network.tensors["a_relu"].scale
        assert snr(exact[..., 1:], found[..., 1:]) > 30


def test_a_network_of_zeros_is_still_a_network():
    graph = drawn(("a", conv(4, 3)), ("a_relu", ReLU6()), ("b", DepthwiseConv2D((3, 3), (1, 1), "same", True)), ("s", Add(), "a_relu", "b"))
    for params in graph.params.values():
        for array in params.values():
            array[...] = 0
    with np.errstate(all="raise", under="ignore"):
        _, network = quantised(graph)
    assert np.all(real(network, "logits", photos()[1]) == 0)


def test_a_huge_bias_does_not_overflow_and_is_kept():
    graph = drawn(("a", conv(3)), ("b", conv(3)))
    graph.params["a"]["kernel"][...] = np.float32(1e-6)
    graph.params["a"]["bias"][...] = [1e6, -1e6, 1]
    with np.errstate(all="raise", under="ignore"):
        folded, network = quantised(graph)
    assert np.abs(network.ops[0].bias.astype(np.int64)).max() <= 2 * LARGEST_BIAS
    exact = folded.evaluate(photos()[0][:, 0], ["a"])["a"]
    assert np.abs(real(network, "a", photos()[1]) - exact).max() <= network.tensors["a"].scale


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1e9, 1e25])
def test_networks_of_any_size_are_quantised_alike(size):
    graph = drawn(("a", conv(4, 3)), ("a_relu", ReLU()), ("b", conv(4)))
    for name in ("a", "b"):
        graph.params[name]["bias"][...] = 0
    graph.params["logits"]["bias"][...] = 0
    graph.params["a"]["kernel"] = graph.params["a"]["kernel"] * np.float32(size)
    try:
        folded, network = quantised(graph)
    except MinitlError as error:  # more than 32 bits can hold: said, not computed wrongly
        print(size, error)
        assert size == 1e25
        return
    exact = folded.evaluate(photos()[0][:, 0])["logits"].astype(np.float64)
    found = snr(exact / size, real(network, "logits", photos()[1]) / size)
    print(f"{size}: {found:.1f} dB")
    assert found > 25


def test_values_that_overflow_while_calibrating_are_named():
    graph = drawn(("a", conv(2)))
    graph.params["a"]["bias"][0] = np.inf
    with pytest.raises(MinitlError, match="'a' is not finite"):
        quantised(graph)


# ---- calibration


def test_calibration_sees_the_smallest_the_largest_and_the_mean_of_every_value():
    graph = fold(drawn(("a", conv(4, 3)), ("a_relu", ReLU6()), ("p", MaxPool((2, 2), (2, 2))), ("b", conv(2))))
    x, _ = photos(7)
    seen = calibrate(graph, x)
    assert list(seen) == [INPUT, "a_relu", "p", "b", "pool", "logits"]
    values = {INPUT: x[:, 0], **graph.evaluate(x[:, 0], list(seen)[1:])}
    for name, statistics in seen.items():
        assert abs(statistics.low - values[name].min()) < 1e-5 and abs(statistics.high - values[name].max()) < 1e-5
        channels = values[name].reshape(-1, values[name].shape[-1]).mean(axis=0)
        assert np.abs(statistics.mean - channels).max() < 1e-5 and statistics.mean.dtype == np.float32


def test_calibration_without_photos_and_quantising_without_statistics_are_refused():
    graph = fold(drawn(("a", conv(4, 3)), ("a_relu", ReLU6())))
    with pytest.raises(MinitlError, match="at least one photo"):
        calibrate(graph, [])
    seen = calibrate(graph, photos(2)[0])
    with pytest.raises(MinitlError, match="no statistics of 'a_relu': calibrate the model"):
        quantise(graph, {k: v for k, v in seen.items() if k != "a_relu"}, RECIPE)


def test_correcting_the_bias_takes_the_mean_error_out():
    """A kernel of which most weights round down shifts its outputs; the known means of the inputs take the shift back."""
    graph = fold(drawn(("a", conv(8, 3)), ("a_relu", ReLU()), ("b", conv(8, 3)), ("b_relu", ReLU()), ("c", conv(8)), seed=4))
    kernel = graph.params["b"]["kernel"]
    kernel[...] = np.abs(kernel).max() * np.float32(0.45 / 127)
    kernel[1, 1, 0, :] = np.abs(kernel).max() / np.float32(0.45 / 127)
    x, pixels = photos(32)
    seen = calibrate(graph, x)
    blind = {name: Statistics(s.low, s.high, np.zeros_like(s.mean)) for name, s in seen.items()}
    exact = graph.evaluate(x[:, 0], ["b_relu"])["b_relu"]
    errors = {}
    for what, statistics in (("corrected", seen), ("not corrected", blind)):
        network = quantise(graph, statistics, RECIPE)
        errors[what] = float(np.abs((real(network, "b_relu", pixels) - exact).mean(axis=(0, 1, 2))).mean())
    print(f"mean error in steps: { {what: round(error / network.tensors['b_relu'].scale, 3) for what, error in errors.items()} }")
    assert errors["corrected"] < 0.3 * errors["not corrected"]


def test_bias_correction_of_a_worked_example():
    """127 is scale 1; 0.4 rounds to 0, an error of -0.4 for each input of mean 2: the bias grows by 0.8."""
    kernel = np.float32([[127, 0.4]]).T
    q, bias, scales = quantise_kernel(kernel, np.float32([10]), 1.0, np.float32([0, 2]))
    assert q.T.tolist() == [[127, 0]] and scales.tolist() == [1.0] and bias.tolist() == [11]  # 10.8
    depthwise = np.float32([127, 127, 0.4, 0.4]).reshape(2, 1, 2)
    q, bias, _ = quantise_kernel(depthwise, np.float32([0, 0]), 1.0, np.float32([5, 10]))
    assert q.reshape(-1).tolist() == [127, 127, 0, 0] and bias.tolist() == [2, 4]


@pytest.mark.parametrize("name", [small_models.SMALL, small_models.SMALL_V2])
def test_every_step_of_a_whole_network_computes_what_the_float_layer_does(name):
    """Each step alone, on the numbers that reach it: errors of the steps before, which a random network amplifies, do not count."""
    model = small_models.model(name=name)
    folded = fold(model.graph)
    model.calibrate(small_models.pixels(24, seed=8))
    network, pixels = model.quantise(), small_models.pixels(24, seed=8)
    values = network.run_all(model.recipe.quantise_pixels(pixels))
    reals = {
        n: ((v.astype(np.float64) - network.tensors[n].zero_point) * network.tensors[n].scale).astype(np.float32) for n, v in values.items()
    }
    worst = {}
    for node, value in quantize.steps(folded):
        exact = folded.evaluate({n: reals[n] for n in node.inputs}, [value])[value]
        tensor = network.tensors[value]
        exact = np.clip(exact, tensor.scale * (-128 - tensor.zero_point), tensor.scale * (127 - tensor.zero_point))
        worst[value] = snr(exact, reals[value])
    name_of_worst = min(worst, key=worst.__getitem__)
    print(f"{name}: worst step {name_of_worst} {worst[name_of_worst]:.1f} dB, median {np.median(list(worst.values())):.1f} dB")
    assert worst[name_of_worst] > 25 and np.median(list(worst.values())) > 38


# ---- folding


def folded_difference(graph, shape, dtype=np.float32):
    x = np.random.default_rng(3).standard_normal((3, *shape)).astype(dtype)
    a, b = graph.evaluate(x)[graph.output], fold(graph).evaluate(x)[fold(graph).output]
    return np.abs(a - b).max() / np.abs(a).max()


@pytest.mark.parametrize(
    "name", [small_models.SMALL, "random:mobilenet_v1_0.25_48", small_models.SMALL_V2, "random:mobilenet_v2_0.35_32x64"]
)
def test_a_folded_network_computes_the_same(name):
    model = find(name).replace_head(["a", "b"], dropout=0.5)
    small_models.settle(small_models.stir(model.graph), model.recipe.normalise(np.stack([
        np.random.default_rng(i).integers(0, 256, model.graph.input_shape, dtype=np.uint8) for i in range(4)])))  # fmt: skip
    difference = folded_difference(model.graph, model.graph.input_shape)
    exact = folded_difference(model.graph.astype(np.float64), model.graph.input_shape, np.float64)
    print(f"{name}: {difference:.1e} of the largest logit in float32, {exact:.1e} in float64")
    assert difference < 1e-4 and exact < 1e-12  # rounding differs, and grows from layer to layer
    assert not any(isinstance(node.layer, (BatchNorm, Dropout)) for node in fold(model.graph).nodes)


CASES = {
    "BatchNorm on the photo": [("bn", BatchNorm()), ("a", conv(4))],
    "BatchNorm after a pool": [("a", conv(4)), ("p", MaxPool((2, 2), (2, 2))), ("bn", BatchNorm())],
    "two BatchNorms": [("a", conv(4)), ("bn", BatchNorm()), ("bn2", BatchNorm(1e-5))],
    "a convolution with two readers": [("a", conv(3)), ("bn", BatchNorm()), ("s", Add(), "a", "bn")],
    "a BatchNorm with two readers": [("a", conv(3)), ("bn", BatchNorm()), ("bn2", BatchNorm()), ("s", Add(), "bn", "bn2")],
    "Dropout between": [("a", conv(3)), ("d", Dropout(0.5)), ("bn", BatchNorm())],
    "Dropout between, and another reader": [("a", conv(3)), ("d", Dropout(0.5)), ("bn", BatchNorm()), ("s", Add(), "a", "bn")],
    "Dropout with two readers": [("a", conv(3)), ("d", Dropout(0.5)), ("bn", BatchNorm()), ("s", Add(), "d", "bn")],
    "two Dropouts": [("d", Dropout(0.5)), ("d2", Dropout(0.5)), ("a", conv(3)), ("d3", Dropout(0.1)), ("d4", Dropout(0.1))],
    "depthwise": [("a", DepthwiseConv2D((3, 3))), ("bn", BatchNorm()), ("b", DepthwiseConv2D((3, 3), use_bias=True)), ("bn2", BatchNorm())],
    "BatchNorm after a sum": [("a", conv(3)), ("s", Add(), "a", INPUT), ("bn", BatchNorm())],
    "an activation between": [("a", conv(3)), ("r", ReLU()), ("bn", BatchNorm())],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_folding_changes_no_value(case):
    graph = drawn(*CASES[case]).astype(np.float64)
    before = {name: array.copy() for name, array in graph.arrays().items()}
    difference = folded_difference(graph, (8, 8, 3), np.float64)
    print(f"{case}: {difference:.1e}")
    assert difference < 1e-12
    assert all(np.array_equal(array, before[name]) for name, array in graph.arrays().items())  # the trained graph is left alone
    assert not any(isinstance(node.layer, (BatchNorm, Dropout)) for node in fold(graph).nodes)


def test_folding_at_the_end_of_a_network():
    graph = drawn(("p", GlobalAveragePool()), ("l", Dense(3)), ("bn", BatchNorm()), ("d", Dropout(0.5)), end=False)
    assert fold(graph).output == "l" and folded_difference(graph.astype(np.float64), (8, 8, 3), np.float64) < 1e-12


def test_readers_are_counted_with_the_user_as_reader_of_the_output():
    graph = drawn(("a", conv(3)), ("s", Add(), "a", "a"), ("t", Add(), "s", INPUT), end=False)
    assert count_readers(graph) == {INPUT: 2, "a": 2, "s": 1, "t": 1}
    assert quantize.steps(graph)[0][1] == "a"


@pytest.mark.parametrize("before", ["pool", "conv"])
def test_relu6_never_exceeds_six_in_integers(before):
    """Also where the scale is wider than the range: after a pool, and beside a channel with huge weights."""
    rng = np.random.default_rng(0)
    first = MaxPool((2, 2), (2, 2)) if before == "pool" else Conv2D((1, 1), (1, 1), "valid", filters=3)
    graph = Graph([Node("a", first, ("input",)), Node("b", ReLU6(), ("a",))], (8, 8, 3)).initialise(0)
    if before == "conv":
        graph.params["a"]["kernel"][..., 0] *= 5000
    recipe = Recipe(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    x = recipe.normalise(pixels)
    network = quantise(graph, calibrate(graph, [image[None] for image in x]), recipe)
    out = network.tensors[network.output]
    real = (network.run(recipe.quantise_pixels(pixels)).astype(np.float64) - out.zero_point) * out.scale
    print(f"{before}: largest {real.max():.4f}, step {out.scale:.4f}")
    assert real.max() <= 6 + out.scale / 2 and out.scale < 0.03
