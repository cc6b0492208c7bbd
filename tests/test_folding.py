"""The frozen part as fast inference: the values at the border, whatever the cut, and nothing that trains folded away."""

import numpy as np
import pytest
import small_models
from conftest import WEIGHTS, needs_shared
from gradients import relative_error
from small_models import chain

from minitl.architectures import build
from minitl.engine import Values
from minitl.folding import fold_to
from minitl.graph import INPUT, Graph
from minitl.layers import Add, BatchNorm, Conv2D, Dense, Dropout, GlobalAveragePool, ReLU, ReLU6
from minitl.model import load


def mobilenet(architecture, size=32, **arguments):
    alpha = {"mobilenet_v1": 0.25, "mobilenet_v2": 0.35}[architecture]
    graph = build(architecture, alpha=alpha, input_shape=[size, size, 3], classes=3, **arguments).initialise(0)
    return small_models.settle(small_models.stir(graph), photos(4, size))


def photos(count, size=32):
    return np.random.default_rng(0).standard_normal((count, size, size, 3)).astype(np.float32)


CUTS = [
    ("mobilenet_v1", ["..conv_pw_11"]),
    ("mobilenet_v1", ["..=conv_pw_11"]),  # its BatchNorm trains: nothing to fold it into
    ("mobilenet_v1", ["..=conv_pw_11_bn"]),  # the border is a value that vanishes
    ("mobilenet_v1", ["..conv1"]),
    ("mobilenet_v1", ["..global_average_pooling2d", "dropout"]),
    ("mobilenet_v2", ["..block_4_add"]),
    ("mobilenet_v2", ["..block_4_expand"]),  # two values, one of them vanishes
    ("mobilenet_v2", ["..=block_4_project"]),
    ("mobilenet_v2", ["..block_5_depthwise"]),
    ("mobilenet_v2", ["..global_average_pooling2d"]),
]


def values(graph, x):
    """What training would start from."""
    return Values(graph, graph.border()).run(x)


@pytest.mark.parametrize(("architecture", "patterns"), CUTS)
def test_the_folded_frozen_part_has_the_values_of_the_border(architecture, patterns):
    graph, x = mobilenet(architecture, dropout=0.5), photos(5)
    for pattern in patterns:
        graph.freeze(pattern)
    before = {name: array.copy() for name, array in graph.arrays().items()}
    part, names = fold_to(graph, graph.border())
    assert list(names) == graph.border() and not any(isinstance(node.layer, (BatchNorm, Dropout)) for node in part.nodes)
    assert {node.name for node in part.nodes} <= set(graph.frozen_prefix())
    exact = graph.astype(np.float64)
    expected, unfolded = exact.evaluate(x.astype(np.float64), graph.border()), graph.evaluate(x, graph.border())
    for name in expected:
        rounding = relative_error(unfolded[name], expected[name])  # random weights carry it far
        error = relative_error(values(exact, x.astype(np.float64))[name], expected[name])
        difference = relative_error(values(graph, x)[name], unfolded[name])
        print(f"{patterns} {name}: {error:.1e} in float64, {difference:.1e} in float32, where rounding alone makes {rounding:.1e}")
        assert error < 1e-10 and difference < max(1e-5, 4 * rounding)
    assert {value.dtype for value in values(graph, x).values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(array, before[name]) for name, array in graph.arrays().items())


@needs_shared
@pytest.mark.parametrize(
    ("weights", "pattern"),
    [
        ("mobilenet_2_5_224_tf_no_top.h5", "..conv_pw_11"),
        ("mobilenet_v1_0.25_128_quant.tflite", "..conv_pw_4"),
        ("mobilenet_v1_0.25_128_quant.tflite", "..global_average_pooling2d"),
        ("mobilenet_v2_035_96_embedder_with_metadata.tflite", "..block_13"),
        ("vww_96.h5", "..conv_pw_10"),
    ],
)
def test_with_real_weights_folding_changes_a_hundred_thousandth(weights, pattern):
    model = load(WEIGHTS / weights)
    model = model if model.classes else model.replace_head(["a", "b"])
    graph, x = model.graph.freeze(pattern), model.recipe.normalise(small_models.pixels(4, size=model.recipe.height))
    found, expected = values(graph, x), graph.evaluate(x, graph.border())
    errors = {name: relative_error(found[name], expected[name]) for name in graph.border()}
    print(weights, {name: f"{error:.1e}" for name, error in errors.items()})
    assert errors and max(errors.values()) < 1e-5


def test_one_at_a_time_a_value_does_not_depend_on_the_neighbours():
    graph, x = mobilenet("mobilenet_v1").freeze("..conv_pw_11"), photos(5)
    (together,), alone = values(graph, x).values(), [next(iter(values(graph, x[i : i + 1]).values())) for i in range(5)]
    assert together.tobytes() == np.concatenate(alone).tobytes()


HARD = {
    # what is frozen, the nodes, the border
    "a convolution that a trained layer reads beside its frozen BatchNorm": (
        ["a", "bn"],
        [("a", Conv2D((3, 3), filters=3)), ("bn", BatchNorm()), ("b", Conv2D((1, 1), filters=3), "a"), ("s", Add(), "bn", "b")],
        ["a", "bn"],
    ),
    "a BatchNorm that a trained layer reads beside another frozen one": (
        ["a", "bn", "bn2"],
        [("a", Conv2D((3, 3), filters=3)), ("bn", BatchNorm()), ("bn2", BatchNorm()), ("b", Conv2D((1, 1), filters=3), "bn"),
         ("s", Add(), "bn2", "b")],
        ["bn", "bn2"],
    ),
    "a frozen Dropout at the border beside what it reads": (
        ["a", "d"],
        [("a", Conv2D((3, 3), filters=3)), ("d", Dropout(0.5)), ("b", Conv2D((1, 1), filters=3), "a"), ("s", Add(), "d", "b")],
        ["a", "d"],
    ),
    "a frozen Dropout on the photo": (["d"], [("d", Dropout(0.5)), ("b", Conv2D((1, 1), filters=3))], ["d"]),
    "the photo itself beside a frozen layer": (
        ["a", "r"],
        [("a", Conv2D((1, 1), filters=3)), ("r", ReLU()), ("b", Conv2D((1, 1), filters=3), INPUT), ("s", Add(), "r", "b")],
        [INPUT, "r"],
    ),
    "a frozen layer above the border": (["b"], [("a", Conv2D((1, 1), filters=3)), ("b", Conv2D((1, 1), filters=3))], [INPUT]),
    "a frozen branch that nobody needs": (
        ["a", "x"],
        [("a", Conv2D((1, 1), filters=3)), ("x", ReLU6(), "a"), ("b", Conv2D((1, 1), filters=3), "a")],
        ["a"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HARD)
def test_no_value_of_the_border_is_folded_away(case):
    frozen, nodes, border = HARD[case]
    graph = small_models.stir(Graph(chain(*nodes), (6, 5, 3)).initialise(0).astype(np.float64))
    for name in frozen:
        graph.freeze("=" + name)
    x = np.random.default_rng(1).standard_normal((4, 6, 5, 3))
    found, expected = values(graph, x), graph.evaluate(x, border)
    assert list(found) == graph.border() == border
    assert max(relative_error(found[name], expected[name]) for name in border) < 1e-13
    assert found.get(INPUT, x) is x


def test_without_anything_to_train_there_is_no_border_and_no_value():
    graph = Graph(chain(("p", GlobalAveragePool()), ("l", Dense(3)), end=False), (6, 5, 3)).initialise(0).freeze("*")
    assert graph.border() == []
