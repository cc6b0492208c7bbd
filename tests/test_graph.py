"""The graph: names, the freeze mask, and two loops that visit what they must, once, and keep what they must, no more."""

import tracemalloc
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from gradients import finite_differences, relative_error

from minitl import kernels, kernels_fast, reference
from minitl.architectures import build
from minitl.errors import MinitlError
from minitl.graph import INPUT, Graph, Node
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

all_twins = pytest.mark.parametrize("ops", [reference, kernels, kernels_fast], ids=["reference", "kernels", "kernels_fast"])


def chain(*layers, end=True):
    """Nodes from (name, layer, *inputs); without inputs a node reads the one before it. end: pool and a dense layer to 3 logits."""
    nodes = []
    if end:
        layers = (*layers, ("pool", GlobalAveragePool()), ("logits", Dense(3)))
    for name, layer, *inputs in layers:
        nodes.append(Node(name, layer, tuple(inputs) or (nodes[-1].name if nodes else INPUT,)))
    return nodes


def conv(filters, size=1, stride=1):
    return Conv2D((size, size), (stride, stride), "same", filters, True)


NETWORKS = {
    "residual": chain(
        ("a", conv(3, 3)),
        ("a_relu", ReLU()),
        ("b", DepthwiseConv2D((3, 3))),
        ("c", conv(3)),
        ("sum", Add(), "a_relu", "c"),
    ),
    "nested residuals": chain(
        ("a", conv(2)),
        ("b", conv(2)),
        ("s1", Add(), "a", "b"),
        ("c", conv(2)),
        ("s2", Add(), "c", "s1"),
        ("s3", Add(), "s2", "a"),
    ),
    "branches": chain(
        ("a", conv(3, 3)),
        ("b1", conv(2), "a"),
        ("b2", MaxPool((3, 3), (1, 1)), "a"),
        ("b3", AveragePool((2, 2), (1, 1)), "a"),
        ("b3_conv", conv(1)),
        ("joined", Concat(), "b1", "b2", "b3_conv"),
        ("c", conv(2, 3, 2)),
    ),
    "one value, three readers": chain(
        ("a", conv(2, 3)),
        ("b", conv(2), "a"),
        ("c", DepthwiseConv2D((3, 3)), "a"),
        ("bc", Add(), "b", "c"),
        ("sum", Add(), "bc", "a"),
    ),
    "twice itself": chain(("a", conv(2, 3)), ("aa", Add(), "a", "a"), ("aaaa", Concat(), "aa", "aa"), ("b", conv(2))),
    "dropout": chain(("a", conv(4, 3)), ("dropout", Dropout(0.4)), ("b", conv(3))),
    "normalised": chain(("a", conv(3, 3)), ("bn", BatchNorm()), ("relu", ReLU()), ("b", DepthwiseConv2D()), ("b_bn", BatchNorm(1e-5))),
    "bounded": chain(("a", conv(4, 3)), ("a_bn", BatchNorm()), ("a_relu", ReLU6()), ("b", conv(4)), ("b_relu", ReLU6())),
    "shapes": chain(("a", conv(2, 3, 2)), ("flat", Flatten()), ("back", Reshape((2, 2, 3))), ("f", Flatten()), ("l", Dense(3)), end=False),
}


def drawn(nodes, shape=(5, 4, 2), dtype=np.float64):
    """A graph with parameters of every size; BatchNorms scale by 4, so that ReLU6 meets both of its bounds."""
    graph = Graph(nodes, shape).initialise(0).astype(dtype)
    rng = np.random.default_rng(1)
    for params in graph.params.values():
        for name, array in params.items():
            if name != "kernel":
                array[...] = rng.uniform(0.5, 2.0, array.shape) * {"gamma": 4, "beta": 3}.get(name, 1)
    return graph


def images(shape=(5, 4, 2), batch=3, dtype=np.float64, seed=2):
    return np.random.default_rng(seed).standard_normal((batch, *shape)).astype(dtype)


def loss_and_gradients(graph, feeds, ops=kernels_fast, seed=5):
    targets = np.random.default_rng(3).dirichlet(np.ones(graph.shapes[graph.output][0]), 3)
    logits, tape = graph.forward(feeds, np.random.default_rng(seed), ops)
    losses, dlogits = ops.softmax_cross_entropy(logits, targets.astype(logits.dtype))
    return float(losses.mean()), graph.backward(dlogits, tape, ops)


MASKS = {
    "all train": lambda graph: None,
    "lowest frozen": lambda graph: graph.freeze("a"),
    "normalisation frozen": lambda graph: [graph.freeze("=" + n.name) for n in graph.nodes if isinstance(n.layer, BatchNorm)],
    "some channels": lambda graph: [graph.freeze("=" + n.name, np.arange(graph.shapes[n.name][-1]) % 2 == 0) for n in graph.nodes],
}


def has_statistics(network):
    return any(isinstance(node.layer, BatchNorm) for node in NETWORKS[network])


@all_twins
@pytest.mark.parametrize(
    ("network", "mask"), [(n, m) for n in NETWORKS for m in MASKS if has_statistics(n) or m in ("all train", "lowest frozen")]
)
def test_gradients_of_small_networks_agree_with_finite_differences(ops, network, mask):
    graph, x = drawn(NETWORKS[network]), images()
    MASKS[mask](graph)
    _, grads = loss_and_gradients(graph, x, ops)
    needing = graph.needs_gradient()
    assert set(grads) == {node for node, _, _ in graph.trainable()} <= needing
    floor = 1e-3 * max(np.abs(g).max() for of_node in grads.values() for g in of_node.values())  # before a BatchNorm, biases do nothing
    errors = {
        f"{node}/{name}": relative_error(
            gradient, finite_differences(lambda: loss_and_gradients(graph, x, ops)[0], graph.params[node][name]), floor
        )
        for node, of_node in grads.items()
        for name, gradient in of_node.items()
    }
    print(f"{network}, {mask}: largest {max(errors.values()):.1e} of {len(errors)}")
    assert max(errors.values()) < 1e-6


def test_the_bounded_network_meets_both_bounds():
    graph = drawn(NETWORKS["bounded"])
    y = graph.evaluate(images(), ["a_relu"])["a_relu"]
    assert (y == 0).any() and (y == 6).any() and ((y > 0) & (y < 6)).any()


# ---- backward visits the nodes that need a gradient, each once


def mobilenet(architecture, **arguments):
    alpha = {"mobilenet_v1": 0.25, "mobilenet_v2": 0.35}[architecture]
    return build(architecture, **{"alpha": alpha, "input_shape": [32, 32, 3], "classes": 3, **arguments}).initialise(0)


def needing_by_search(graph):
    """From every node with an unfrozen parameter along all readers: what a change of the parameter can reach."""
    readers = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.name)
    todo = [n.name for n in graph.nodes if n.layer.param_shapes(*graph.input_shapes(n)) and np.any(graph.in_training(n.name))]
    reached = set()
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += readers.get(name, [])
    return reached


FREEZES = {
    "mobilenet_v1": {
        "nothing": [],
        "features": ["..global_average_pooling2d"],
        "up to conv_pw_11": ["..conv_pw_11"],
        "depthwise": ["conv_dw_*"],
        "classifier only": ["conv_preds"],
        "normalisations": ["*_bn"],
        "everything": ["*"],
    },
    "mobilenet_v2": {
        "nothing": [],
        "features": ["..global_average_pooling2d"],
        "inside a residual": ["..block_4_expand"],
        "all but the stem": ["expanded_conv", "block_*", "Conv_1", "predictions"],
        "all but one block": ["Conv*", "bn_*", "expanded_conv", "block_[!8]*", "predictions"],
        "normalisations": ["*_BN", "bn_Conv1", "Conv_1_bn"],
    },
}
FROZEN = [(architecture, label) for architecture, of_it in FREEZES.items() for label in of_it]
frozen_networks = pytest.mark.parametrize(("architecture", "label"), FROZEN)


def frozen_network(architecture, label):
    graph = mobilenet(architecture)
    graph.nodes = [replace(node, layer=copy(node.layer)) for node in graph.nodes]  # so that each can be told apart
    for pattern in FREEZES[architecture][label]:
        graph.freeze(pattern)
    return graph


@frozen_networks
def test_backward_visits_exactly_the_nodes_that_need_a_gradient_each_once(monkeypatch, architecture, label):
    graph, visits, with_dx = frozen_network(architecture, label), [], []
    steps = graph.steps()
    name_of = {id(node.layer): node.name for node in steps}
    assert len(name_of) == len(steps)
    for layer in {type(node.layer) for node in steps}:

        def counted(self, ops, params, dy, cache, need_dx, original=layer.backward):
            visits.append(name_of[id(self)])
            with_dx.extend([name_of[id(self)]] if need_dx else [])
            return original(self, ops, params, dy, cache, need_dx)

        monkeypatch.setattr(layer, "backward", counted)
    expected = needing_by_search(graph)
    assert expected == graph.needs_gradient()
    joined = {node.name for node in graph.nodes} - {node.name for node in steps}
    assert all(isinstance(graph[name].layer, ReLU6) and graph.in_training(graph[name].inputs[0]) is True for name in joined)
    assert bool(joined) == any(isinstance(graph[node].layer, BatchNorm) for node, _, _ in graph.trainable())
    expected -= joined
    y, tape = graph.forward(images((32, 32, 3), 2, np.float32))
    assert set(tape) == expected, "nodes below keep no cache"
    grads = graph.backward(np.ones_like(y), tape)
    print(f"{architecture}, frozen {label}: {len(visits)} visits of {len(steps)} steps")
    assert visits == [node.name for node in reversed(steps) if node.name in expected]
    assert set(with_dx) == {node.name for node in steps if expected & set(node.inputs)}
    assert grads.keys() == {node for node, _, _ in graph.trainable()}, "no gradient is computed for nobody"
    assert not tape, "caches are let go on the way"


def kept_bytes(tape):
    arrays = {}
    for cache in tape.values():
        for part in cache if isinstance(cache, tuple) else (cache,):
            if isinstance(part, np.ndarray):
                arrays[id(part)] = part
    return sum(array.nbytes for array in arrays.values())


def test_what_is_frozen_costs_no_memory():
    x, tapes, peaks = images((64, 64, 3), 4, np.float32), [], []
    for pattern in ("", "..conv_pw_6", "..global_average_pooling2d"):
        graph = mobilenet("mobilenet_v1", input_shape=[64, 64, 3])
        if pattern:
            graph.freeze(pattern)
        graph.forward(x)  # compile first
        kernels_fast.let_go()  # memory that is used again would not be counted
        tracemalloc.start()
        tapes.append(kept_bytes(graph.forward(x)[1]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print("tape", tapes, "peak of forward", peaks)
    assert tapes[1] < tapes[0] / 4 and tapes[2] < tapes[0] / 500
    assert peaks[1] < peaks[0] * 0.6 and peaks[2] <= peaks[1]


def test_frozen_layers_above_trained_ones_keep_only_what_their_activations_need():
    """The stem trains alone: gradients pass through all above it, but no input of a frozen convolution or BatchNorm is kept."""
    x, tapes = images((64, 64, 3), 4, np.float32), []
    for frozen in ((), ("conv_*",)):
        graph = mobilenet("mobilenet_v1", input_shape=[64, 64, 3])
        for pattern in frozen:
            graph.freeze(pattern)
        tapes.append(kept_bytes(graph.forward(x)[1]))
    activations = sum(x.nbytes // 12288 * int(np.prod(graph.shapes[node.name])) for node in graph.nodes if isinstance(node.layer, ReLU6))
    stem = x.nbytes + 4 * 4 * int(np.prod(graph.shapes["conv1"]))
    print("tape", tapes, "activations", activations, "stem", stem)
    assert tapes[1] < 1.02 * (activations + stem) and tapes[1] < 0.65 * tapes[0]


def test_evaluation_drops_every_value_after_its_last_reader():
    graph, x = mobilenet("mobilenet_v2", input_shape=[64, 64, 3]), images((64, 64, 3), 4, np.float32)
    graph.evaluate(x)
    tracemalloc.start()
    graph.evaluate(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    everything = sum(4 * 4 * int(np.prod(shape)) for shape in graph.shapes.values())
    print("peak", peak, "all values", everything)
    assert peak < everything / 4


# ---- the border


BORDERS = [
    ("mobilenet_v1", ["..conv_pw_11"], ["conv_pw_11_relu"]),
    ("mobilenet_v1", ["..=conv_pw_11"], ["conv_pw_11"]),
    ("mobilenet_v1", ["..global_average_pooling2d", "dropout"], ["dropout"]),
    ("mobilenet_v1", [], [INPUT]),
    ("mobilenet_v1", ["conv_pw"], [INPUT]),
    ("mobilenet_v2", ["..block_4_add"], ["block_4_add"]),
    ("mobilenet_v2", ["..block_4_expand"], ["block_3_project_BN", "block_4_expand_relu"]),
    ("mobilenet_v2", ["..block_4_project"], ["block_4_add"]),  # an Add has nothing to train
    ("mobilenet_v2", ["..=block_4_project"], ["block_3_project_BN", "block_4_project"]),
    ("mobilenet_v2", ["..block_5_depthwise"], ["block_4_add", "block_5_depthwise_relu"]),
]


@pytest.mark.parametrize(("architecture", "patterns", "expected"), BORDERS)
def test_the_border_is_what_the_trainable_part_reads(architecture, patterns, expected):
    graph = mobilenet(architecture)
    for pattern in patterns:
        graph.freeze(pattern)
    assert graph.border() == expected
    prefix = graph.frozen_prefix()
    assert prefix == [node.name for node in graph.nodes if node.name not in needing_by_search(graph)]
    fresh = Graph(graph.nodes, graph.input_shape)  # needs no parameters to know
    fresh.frozen = graph.frozen
    assert (fresh.border(), fresh.frozen_prefix()) == (expected, prefix)


@pytest.mark.parametrize(("architecture", "patterns", "expected"), BORDERS)
def test_gradients_from_values_kept_at_the_border_are_those_from_the_image_bit_for_bit(architecture, patterns, expected):
    graph, x = mobilenet(architecture, dropout=0.5), images((32, 32, 3), dtype=np.float32)
    for pattern in patterns:
        graph.freeze(pattern)
    kept = graph.evaluate(x, graph.border())
    assert list(kept) == graph.border()
    loss, grads = loss_and_gradients(graph, x)
    loss_from_kept, grads_from_kept = loss_and_gradients(graph, kept)
    assert loss == loss_from_kept and grads.keys() == grads_from_kept.keys()
    for node, of_node in grads.items():
        for name, gradient in of_node.items():
            assert gradient.tobytes() == grads_from_kept[node][name].tobytes(), f"{node}/{name}"
    wanted = [graph.output, graph.nodes[-2].name]
    whole, rest = graph.evaluate(x, wanted), graph.evaluate(kept, wanted)
    assert all(whole[name].tobytes() == rest[name].tobytes() for name in wanted)


@pytest.mark.parametrize("architecture", list(FREEZES))
def test_evaluation_from_any_middle_is_evaluation_from_the_image_bit_for_bit(architecture):
    graph, x = mobilenet(architecture), images((32, 32, 3), dtype=np.float32)
    values = graph.evaluate(x, graph.shapes)  # all, the image too
    assert list(values) == list(graph.shapes) and values[INPUT] is x
    for cut in range(0, len(graph.nodes), 7):
        below = {INPUT, *(node.name for node in graph.nodes[:cut])}
        read = {name for node in graph.nodes[cut:] for name in node.inputs}
        found = graph.evaluate({name: values[name] for name in below & read})[graph.output]
        assert found.tobytes() == values[graph.output].tobytes()


def test_evaluation_changes_neither_the_image_nor_what_was_fed():
    graph, x = mobilenet("mobilenet_v2"), images((32, 32, 3), dtype=np.float32)
    x.flags.writeable = False
    feeds = graph.evaluate(x, ["block_4_add"])
    before = {name: value.copy() for name, value in feeds.items()}
    graph.evaluate(feeds)
    assert list(feeds) == ["block_4_add"] and np.array_equal(feeds["block_4_add"], before["block_4_add"])


def test_an_unfrozen_dropout_ends_the_frozen_prefix_and_a_frozen_one_does_nothing():
    nodes = chain(("a", conv(2)), ("dropout", Dropout(0.5)), ("b", conv(2)))
    graph, x = drawn(nodes), images()
    graph.freeze("a").freeze("b").freeze("pool")
    assert graph.frozen_prefix() == ["a"] and graph.border() == ["a"]
    assert graph.needs_gradient() == {"logits"}
    assert not np.array_equal(*(graph.forward(x, np.random.default_rng(seed))[0] for seed in (0, 1)))
    assert np.array_equal(*(graph.forward(x, np.random.default_rng(0))[0] for _ in range(2)))
    graph.freeze("dropout")
    assert graph.frozen_prefix() == ["a", "dropout", "b", "pool"] and graph.border() == ["pool"]
    assert np.array_equal(graph.forward(x)[0], graph.evaluate(x)["logits"])
    graph = drawn(chain(("a", conv(2)), ("dropout", Dropout(0.0)), ("b", conv(2)))).freeze("..a")
    assert graph.border() == ["dropout"]  # a rate of zero changes nothing


def test_feeding_a_value_that_training_changes_is_a_mistake_of_ours():
    graph, x = drawn(NETWORKS["residual"]), images()
    with pytest.raises(AssertionError, match="training changes"):
        graph.forward(graph.evaluate(x, ["sum"]))


# ---- frozen BatchNorm


@all_twins
def test_a_frozen_network_runs_in_training_as_it_evaluates_bit_for_bit(ops):
    graph, x = mobilenet("mobilenet_v2", dropout=0.5).freeze("*").unfreeze("predictions"), images((32, 32, 3), 2, np.float32)
    assert np.array_equal(graph.forward(x, None, ops)[0], graph.evaluate(x, ops=ops)["predictions"])
    graph.unfreeze("Conv_1")
    assert not np.array_equal(graph.forward(x, None, ops)[0], graph.evaluate(x, ops=ops)["predictions"])


def bits(graph):
    return {name: array.tobytes() for name, array in graph.arrays().items()}


@pytest.mark.parametrize("pattern", ["..conv_pw_9", "conv_dw_*", "*_bn", "..=conv_pw_9", "conv_dw_5"])
def test_statistics_of_frozen_layers_do_not_move_by_a_bit_and_those_of_others_do(pattern):
    graph = mobilenet("mobilenet_v1").freeze(pattern)
    frozen, before = set(graph.match(pattern)), bits(graph)
    for step in range(2):
        _, tape = graph.forward(10 * images((32, 32, 3), 4, np.float32, step) + 3)
        graph.update_statistics(tape)
    for name, after in bits(graph).items():
        node, parameter = name.split("/")
        moves = node not in frozen and parameter in ("moving_mean", "moving_variance")
        assert (after != before[name]) == moves, name


def test_statistics_of_frozen_channels_do_not_move_by_a_bit():
    graph = mobilenet("mobilenet_v1")
    mask = np.arange(64) % 3 == 0
    graph.freeze("conv_pw_4", mask)
    before = {name: array.copy() for name, array in graph.params["conv_pw_4_bn"].items()}
    _, tape = graph.forward(images((32, 32, 3), 4, np.float32))
    graph.update_statistics(tape)
    for name in ("moving_mean", "moving_variance"):
        after = graph.params["conv_pw_4_bn"][name]
        assert after[mask].tobytes() == before[name][mask].tobytes()
        assert (after[~mask] != before[name][~mask]).all()


def test_updates_make_new_arrays_so_that_a_snapshot_of_references_keeps_its_numbers():
    graph = mobilenet("mobilenet_v1")
    old = graph.params["conv1_bn"]["moving_mean"]
    _, tape = graph.forward(images((32, 32, 3), 2, np.float32))
    graph.update_statistics(tape)
    assert not old.any() and graph.params["conv1_bn"]["moving_mean"] is not old


# ---- names


V1, V2 = mobilenet("mobilenet_v1"), mobilenet("mobilenet_v2")


@pytest.mark.parametrize(
    ("graph", "pattern", "expected"),
    [
        (V1, "conv_pw_1", ["conv_pw_1", "conv_pw_1_bn", "conv_pw_1_relu"]),  # and not conv_pw_13
        (V1, "=conv_pw_1", ["conv_pw_1"]),
        (V1, "conv_pw_1_bn", ["conv_pw_1_bn"]),
        (V1, "conv_pw_1?", [f"conv_pw_{i}{part}" for i in range(10, 14) for part in ("",)]),
        (V1, "conv_pw_1[23]_bn", ["conv_pw_12_bn", "conv_pw_13_bn"]),
        (V1, "conv[!_]*", ["conv1", "conv1_bn", "conv1_relu"]),
        (V1, "..conv_dw_1", ["conv1", "conv1_bn", "conv1_relu", "conv_dw_1", "conv_dw_1_bn", "conv_dw_1_relu"]),
        (V1, "..=conv_dw_1", ["conv1", "conv1_bn", "conv1_relu", "conv_dw_1"]),
        (V1, "..conv1", ["conv1", "conv1_bn", "conv1_relu"]),
        (V2, "block_1", [n.name for n in V2.nodes if n.name.startswith("block_1_")]),
        (V2, "Conv1", ["Conv1", "Conv1_relu"]),
        (V2, "..Conv1", ["Conv1", "bn_Conv1", "Conv1_relu"]),
        (V2, "..predictions", [n.name for n in V2.nodes]),
        (V2, "*", [n.name for n in V2.nodes]),
    ],
)
def test_patterns_mean_what_they_say(graph, pattern, expected):
    assert graph.match(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("pw_13", "there is no layer 'pw_13'; did you mean conv_pw_13, conv_pw_13_bn, conv_pw_13_relu"),
        ("conv_pw_14", "there is no layer 'conv_pw_14'; did you mean conv_pw_"),
        ("conv_pw13", "did you mean .*conv_pw_13"),
        ("CONV_PW_1_BN", "did you mean conv_pw_1_bn"),
        ("..conv_dw_0", "there is no layer 'conv_dw_0'; did you mean conv_dw_"),
        ("=conv_pw", "there is no layer 'conv_pw'; did you mean conv_pw_1"),
        ("block_*", r"there is no layer 'block_\*'"),
        ("zzzz", "there is no layer 'zzzz'; see `minitl info`"),
        ("", "there is no layer ''"),
        ("..", "there is no layer ''"),
    ],
)
def test_an_unknown_name_is_refused_with_suggestions(pattern, words):
    for call in (V1.match, mobilenet("mobilenet_v1").freeze, mobilenet("mobilenet_v1").unfreeze):
        with pytest.raises(MinitlError, match=words):
            call(pattern)


def test_an_unknown_name_cannot_be_evaluated():
    x = images((32, 32, 3), 1, np.float32)
    with pytest.raises(MinitlError, match="no layer 'conv_pw_14'; did you mean"):
        V1.evaluate(x, ["conv1", "conv_pw_14"])


# ---- the mask


def test_freezing_and_unfreezing_select_what_may_train():
    graph = mobilenet("mobilenet_v1").freeze("..conv_pw_12").unfreeze("=conv_dw_12_bn")
    assert [(node, name) for node, name, mask in graph.trainable() if node.startswith("conv_")][:4] == [
        ("conv_dw_12_bn", "gamma"), ("conv_dw_12_bn", "beta"), ("conv_dw_13", "kernel"), ("conv_dw_13_bn", "gamma"),
    ]  # fmt: skip
    assert all(mask is True for _, _, mask in graph.trainable())
    assert graph.freeze("*").trainable() == [] == sorted(graph.needs_gradient())
    assert len(graph.unfreeze("*").trainable()) == len(graph.arrays()) - 2 * 27


def test_a_mask_over_channels_freezes_exactly_those():
    graph, mask = mobilenet("mobilenet_v1").freeze("*"), np.arange(64) < 5
    graph.freeze("conv_pw_4", mask)
    trainable = graph.trainable()
    assert [(node, name) for node, name, _ in trainable] == [("conv_pw_4", "kernel"), ("conv_pw_4_bn", "gamma"), ("conv_pw_4_bn", "beta")]
    assert all(np.array_equal(of_param, ~mask) for _, _, of_param in trainable)
    mask[:] = True  # ours is a copy
    assert np.array_equal(graph.in_training("conv_pw_4"), np.arange(64) >= 5)
    graph.freeze("conv_pw_4", np.ones(64, bool))
    assert graph.frozen["conv_pw_4"] is True and graph.trainable() == []
    graph.freeze("conv_pw_4", np.zeros(64, bool))
    assert all(of_param.all() for _, _, of_param in graph.trainable())


@pytest.mark.parametrize("mask", [np.ones(63, bool), np.ones(64), np.ones(64, int), np.ones((64, 1), bool), np.bool_(True)])
def test_a_mask_of_another_kind_is_refused_with_what_is_needed(mask):
    with pytest.raises(MinitlError, match="mask for 'conv_pw_4' must be 64 booleans"):
        mobilenet("mobilenet_v1").freeze("conv_pw_4", mask)


# ---- parameters


def test_the_same_seed_gives_the_same_numbers_and_another_head_changes_no_other_layer():
    first, again, other = (build("mobilenet_v1", alpha=0.25, classes=3).initialise(seed) for seed in (7, 7, 8))
    assert bits(first) == bits(again)
    assert all((bits(first)[name] != bits(other)[name]) == name.endswith("kernel") for name in bits(first))
    wider = build("mobilenet_v1", alpha=0.25, classes=5).initialise(7)
    assert {name for name in bits(first) if bits(first)[name] != bits(wider)[name]} == {"conv_preds/kernel", "conv_preds/bias"}


def test_arrays_load_into_an_equal_graph_and_come_out_in_the_order_of_the_nodes():
    arrays = V2.arrays()
    again = Graph(V2.nodes, V2.input_shape).load(dict(reversed(arrays.items())))
    assert list(again.arrays()) == list(arrays) and bits(again) == bits(V2)
    assert list(arrays)[:6] == [
        "Conv1/kernel",
        *(f"bn_Conv1/{p}" for p in ("gamma", "beta", "moving_mean", "moving_variance")),
        list(arrays)[5],
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: arrays.pop("Conv_1/kernel"), "1 arrays are missing, the first is 'Conv_1/kernel'"),
        (lambda arrays: arrays.update({"Conv_2/kernel": np.zeros(3)}), "1 arrays have no layer, the first is 'Conv_2/kernel'"),
        (lambda arrays: arrays.update({"predictions/bias": np.zeros(4)}), r"predictions/bias has shape \(4,\), the layer needs \(3,\)"),
    ],
)
def test_arrays_of_another_network_are_refused(change, words):
    arrays = V2.arrays()
    change(arrays)
    with pytest.raises(MinitlError, match=words):
        Graph(V2.nodes, V2.input_shape).load(arrays)


def test_a_copy_in_another_type_shares_nothing():
    graph = mobilenet("mobilenet_v1").freeze("conv_pw_4", np.arange(64) < 5).freeze("conv_dw_4")
    before, copy = bits(graph), graph.astype(np.float32)
    assert bits(copy) == before and copy.trainable()[0] == graph.trainable()[0]
    for array in copy.arrays().values():
        array += 1
    copy.frozen["conv_pw_4"][:] = False
    copy.unfreeze("conv_dw_4")
    assert bits(graph) == before and graph.frozen["conv_dw_4"] is True and graph.frozen["conv_pw_4"].sum() == 5
    assert {array.dtype for array in graph.astype(np.float64).arrays().values()} == {np.dtype(np.float64)}


# ---- graphs that are none


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([Node("a", ReLU(), (INPUT,)), Node("a", ReLU(), ("a",))], "two nodes are called 'a'"),
        ([Node(INPUT, ReLU(), (INPUT,))], "two nodes are called 'input'"),
        ([Node("a", ReLU(), ("b",)), Node("b", ReLU(), (INPUT,))], "'a' reads 'b', which does not come before it"),
        ([Node("a", ReLU(), (INPUT, INPUT))], r"'a' \(ReLU\): reads 1 nodes, found 2"),
        ([Node("a", ReLU(), ())], r"'a' \(ReLU\): reads 1 nodes, found 0"),
        ([Node("a", Add(), (INPUT,))], r"'a' \(Add\): reads 2 nodes, found 1"),
        ([Node("a", Concat(), ())], r"'a' \(Concat\): needs inputs"),
        ([Node("d", Dense(3), (INPUT,))], r"'d' \(Dense\): needs a flat input"),
        ([Node("a", conv(3), (INPUT,)), Node("s", Add(), (INPUT, "a"))], r"'s' \(Add\): needs two inputs of one shape"),
        ([Node("a", Conv2D((9, 9), padding="valid"), (INPUT,))], r"'a' \(Conv2D\): a 9x9 window does not fit"),
    ],
)
def test_a_list_of_nodes_that_makes_no_network_is_refused_naming_the_node(nodes, words):
    with pytest.raises(MinitlError, match=words):
        Graph(nodes, (5, 4, 2))


@all_twins
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_a_batchnorm_and_its_relu_in_one_step_train_as_in_two(ops, activation, monkeypatch):
    graph = mobilenet("mobilenet_v2", activation=activation).astype(np.float64)
    x = images((32, 32, 3), 4, np.float64)
    values = []
    for steps in (Graph.steps, lambda graph: graph.nodes):
        monkeypatch.setattr(Graph, "steps", steps)
        y, tape = graph.forward(x, None, ops)
        values.append((y, graph.backward(y, tape, ops)))
    (y, grads), (y2, grads2) = values
    worst = max(relative_error(grads[node][name], grads2[node][name]) for node in grads2 for name in grads2[node])
    print(f"output {relative_error(y, y2):.1e}, gradients {worst:.1e}")
    assert grads.keys() == grads2.keys() and relative_error(y, y2) < 1e-12 and worst < 1e-9


def test_only_a_relu_that_alone_reads_a_batchnorm_in_training_is_one_step_with_it():
    nodes = [
        Node("a", BatchNorm(), (INPUT,)), Node("a_relu", ReLU(), ("a",)),
        Node("b", BatchNorm(), ("a_relu",)), Node("b_relu", ReLU(), ("b",)), Node("two", Add(), ("b", "b_relu")),
        Node("c", BatchNorm(), ("two",)), Node("c_relu", ReLU6(), ("c",)),
        Node("d", BatchNorm(), ("c_relu",)), Node("d_relu", ReLU6(), ("d",)),
    ]  # fmt: skip
    graph = Graph(nodes, (4, 4, 8)).initialise(0).freeze("=c")
    names = {node.name: (node.inputs, getattr(node.layer, "high", None)) for node in graph.steps()}
    assert "a_relu" not in names and names["a"] == ((INPUT,), np.inf) and names["b"] == (("a",), None)
    assert names["c"] == (("two",), None) and names["d_relu"][0] == ("d",), "frozen, and the output"
    graph.unfreeze("=c")
    assert "c_relu" not in {node.name for node in graph.steps()}, "the mask is asked anew"
    x = images((4, 4, 8), 2, np.float32)
    y, tape = graph.forward(x)
    assert graph.backward(y, tape).keys() == {"a", "b", "c", "d"}
