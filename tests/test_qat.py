"""Quantisation-aware fine-tuning: it trains the very integer network, by straight-through gradients, and touches nothing that is frozen."""

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import small_models
from gradients import finite_differences, relative_error
from small_models import SMALL, SMALL_V2, chain, pixels, settle, stir

from minitl import qat, reference, training
from minitl.errors import MinitlError
from minitl.features import Features
from minitl.folding import fold
from minitl.graph import INPUT, Graph
from minitl.images import Recipe
from minitl.layers import (
    Add,
    AveragePool,
    BatchNorm,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    MaxPool,
    ReLU,
    ReLU6,
)
from minitl.quantize import Statistics, calibrate, quantise
from minitl.training import Settings

RECIPE = Recipe(8, 8, std=(127.5, 100.0, 140.0))
FEW = Settings(epochs=3, batch=8, rate=0.01)
GOOD = Settings(epochs=10, batch=16, rate=0.1)


def images(shape=(8, 8, 3), count=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def small(*nodes, end=True):
    """A graph on 8 x 8 pictures with stirred parameters and its calibration."""
    graph = settle(stir(Graph(chain(*nodes, end=end), (8, 8, 3)).initialise(0)), RECIPE.normalise(images()))
    return graph, calibrate(fold(graph), RECIPE.normalise(images())[:, None])


def striped(count, seed=0, size=8):
    """Pictures (count, size, size, 3) uint8 and labels: stripes down, across, or none, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    photos = rng.normal(rng.uniform(60, 180, (count, 1, 1, 3)), 25, (count, size, size, 3))
    wave = rng.uniform(5, 20, (count, 1, 1)) * (-1) ** np.arange(size)
    photos += np.where(labels[:, None, None] == 0, wave, np.where(labels[:, None, None] == 1, wave.transpose(0, 2, 1), 0))[..., None]
    return np.clip(photos, 0, 255).astype(np.uint8), labels


def features(photos, recipe):
    return Features(photos.reshape(len(photos), -1), [(INPUT, photos.shape[1:])], recipe)


class Streamed:
    """The same photos as a source of which qat knows nothing: what it gives may differ from epoch to epoch."""

    ahead = 0

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def feeds(self, indices, epoch=0):
        return self.rows.feeds(indices)


STRIPES = [
    ("a", Conv2D((3, 3), (1, 1), "same", 8)), ("a_bn", BatchNorm(momentum=0.9)), ("a_relu", ReLU()),
    ("b", DepthwiseConv2D((3, 3), (2, 2), "same")), ("b_bn", BatchNorm(momentum=0.9)), ("b_relu", ReLU()),
    ("c", Conv2D((1, 1), (1, 1), "same", 8, True)), ("c_bn", BatchNorm(momentum=0.9)), ("c_relu", ReLU6()),
]  # fmt: skip

BLOWN = 150


@dataclass
class Toy:
    """What fine_tune needs of a model."""

    graph: Graph
    recipe: Recipe
    calibration: dict[str, Statistics]

    def network(self):
        return quantise(fold(self.graph), self.calibration, self.recipe)

    def int8_accuracy(self, sources):
        _, _, val, labels = sources
        return float((self.network().run(self.recipe.quantise_pixels(val.rows.reshape(-1, 8, 8, 3))).argmax(1) == labels).mean())

    def float_accuracy(self, sources):
        return training.loss_and_accuracy(training.predict(self.graph, sources[2]), sources[3])[1]


@functools.cache
def learned():
    """Parameters of a network that has learned its stripes in float."""
    toy, (train, labels, val, val_labels) = striped_toy(start=None)
    training.fit(toy.graph, train, labels, val, val_labels, Settings(epochs=15, batch=16, rate=0.1))
    return toy.graph.params


def striped_toy(freeze=(), start=learned):
    """-> a Toy, (train, labels, val, labels). Ranges are BLOWN times too wide, so that few steps are left. freeze: patterns of nodes."""
    graph = Graph(chain(*STRIPES), (8, 8, 3)).initialise(0)
    (train, train_labels), (val, val_labels) = striped(200), striped(150, 1)
    if start:
        graph.params = {node: dict(params) for node, params in start().items()}
    for pattern in freeze:
        graph.freeze(pattern)
    seen = calibrate(fold(graph), RECIPE.normalise(train[:32])[:, None])
    wide = {name: Statistics(s.low * BLOWN, s.high * BLOWN, s.mean) if name.endswith("_relu") else s for name, s in seen.items()}
    toy = Toy(graph, RECIPE, wide)
    return toy, (features(train, RECIPE), train_labels, features(val, RECIPE), val_labels)


def bits(toy):
    return {name: array.tobytes() for name, array in toy.graph.arrays().items()}


# ---- the values are those of the integer network


BODY = [
    ("a", Conv2D((3, 3), (2, 2), "same", 6)), ("a_bn", BatchNorm()), ("a_relu", ReLU6()),
    ("b", DepthwiseConv2D((3, 3), (1, 1), "same")), ("b_bn", BatchNorm()), ("b_relu", ReLU()),
    ("c", Conv2D((1, 1), (1, 1), "same", 6, True)), ("drop", Dropout(0.5)), ("c_bn", BatchNorm()),
    ("sum", Add(), "a_relu", "c_bn"), ("sum_relu", ReLU()),
]  # fmt: skip
REST = [
    ("top", MaxPool((2, 2), (1, 1), "same")), ("mean", AveragePool((2, 2), (1, 1), "same"), "sum_relu"),
    ("both", Concat(), "top", "mean", "sum"), ("both_relu", ReLU()), ("both_bn", BatchNorm()), ("d", Conv2D((1, 1), (1, 1), "same", 5)),
]  # fmt: skip


@pytest.mark.parametrize("end", ["pool", "flat"])
def test_every_value_is_that_of_the_integer_network(end):
    nodes = [*BODY, *REST] if end == "pool" else [*BODY, *REST, ("flat", Flatten())]
    graph, calibration = small(*nodes, end=end == "pool")
    twin, network, _ = qat.trainable_int8(graph, calibration, RECIPE)
    photos = images(seed=5)
    expected = network.run_all(RECIPE.quantise_pixels(photos))
    found = twin.evaluate(RECIPE.normalise(photos), [node.name for node in twin.nodes])
    assert {name for name in found if name not in (qat.PIXELS, qat.LOGITS)} == {op.output for op in network.ops}
    for name, value in found.items():
        if name != qat.LOGITS:
            np.testing.assert_array_equal(value, expected[INPUT if name == qat.PIXELS else name], name)


@pytest.mark.parametrize(("name", "hidden"), [(SMALL, ()), (SMALL_V2, ()), (SMALL, (9, 7))])
def test_a_models_logits_are_those_that_it_deploys(name, hidden):
    made = small_models.model(name=name).replace_head(["cat", "dog", "cow"], seed=3, hidden=hidden).calibrate(pixels(8))
    twin, _, _ = qat.trainable_int8(made.graph, made.calibration, made.recipe)
    photos = pixels(24, 7)
    np.testing.assert_array_equal(twin.evaluate(made.recipe.normalise(photos))[qat.LOGITS], made.deploy().logits(photos))


# ---- gradients


def straight_through_loss(twin, x, targets):
    """The loss as a smooth function of the parameters, by its definition: rounding adds a fixed number, a clamp gives a fixed one.

    -> a function without arguments, which reads twin.params as they then are.
    """
    values = twin.evaluate(x, [node.name for node in twin.nodes])
    tensors = {node.name: node.layer.out for node in twin.nodes if isinstance(node.layer, qat.Int8)}

    def real_value(name):
        if name == qat.PIXELS:
            node = next(node for node in twin.nodes if name in node.inputs)
            return qat.real(values[name], node.layer.ins[0], np.float64)
        return qat.real(values[name], tensors[name], np.float64)

    start = {node: {name: array.copy() for name, array in params.items()} for node, params in twin.params.items()}

    def compute(node, xs):
        params = twin.params.get(node.name, {})
        if not params:
            return node.layer.layer.forward(reference, {}, xs, False, None)[0] if node.layer.layer else xs[0]
        before, factor = start[node.name], params["factor"]
        q, bias, scales = qat.quantise_kernel(
            before["kernel"] * factor, before["offset"] + before["shift"], node.layer.ins[0].scale, before["mean"]
        )
        kernel = q * scales + (params["kernel"] - before["kernel"]) * factor
        shift = bias * scales * node.layer.ins[0].scale + params["shift"] - before["shift"]
        return node.layer.layer.forward(reference, {"kernel": kernel, "bias": shift}, xs, False, None)[0]

    added, clamps = {}, {}

    def loss():
        now = {qat.PIXELS: real_value(qat.PIXELS)}
        for node in twin.nodes:
            if isinstance(node.layer, qat.Int8):
                y = compute(node, [now[name] for name in node.inputs])
                added.setdefault(node.name, real_value(node.name) - y)
                op, out = node.layer.op, node.layer.out
                ends = [out.scale * (getattr(op, *end) - out.zero_point) for end in (("act_min", -128), ("act_max", 127))]
                clamped = clamps.setdefault(node.name, (y <= ends[0]) | (y >= ends[1]))
                now[node.name] = np.where(clamped, real_value(node.name), y + added[node.name])
        return float(reference.softmax_cross_entropy(now[twin.nodes[-2].name], targets)[0].mean())

    loss()
    return loss


def test_gradients_are_those_of_the_straight_through_definition():
    graph, calibration = small(
        *BODY, ("top", AveragePool((3, 3), (1, 1), "same")), *REST[1:]
    )  # a MaxPool has a kink where two pixels are equal
    narrow = {
        name: Statistics(seen.low * 0.7, seen.high * 0.7, seen.mean) for name, seen in calibration.items()
    }  # so that some are clamped
    graph = graph.astype(np.float64)
    twin, _, _ = qat.trainable_int8(graph, narrow, RECIPE)
    assert twin.params["a_relu"]["kernel"].dtype == np.float64
    x, targets = RECIPE.normalise(images(count=3, seed=3)), training.one_hot(np.array([0, 2, 1]), 3, np.float64)
    logits, tape = twin.forward(x, ops=reference)
    losses, dlogits = reference.softmax_cross_entropy(logits.astype(np.float64), targets)
    grads = twin.backward(dlogits, tape, reference)
    loss = straight_through_loss(twin, x, targets)
    assert abs(loss() - losses.mean()) < 1e-6
    worst = 0.0
    for node, name, _ in twin.trainable():
        expected = finite_differences(loss, twin.params[node][name])
        worst = max(worst, relative_error(grads[node][name], expected, floor=1e-6))
    print(f"largest relative error of a gradient: {worst:.1e}")
    assert worst < 1e-5
    assert {name for name, *_ in twin.trainable()} == {"a_relu", "b_relu", "c", "d", "logits"}


# ---- what trains and what does not


BACKBONE = ("..c_relu",)


def test_the_trained_model_quantises_to_the_very_network_that_was_trained():
    toy, sources = striped_toy()
    twin, network, places = qat.trainable_int8(toy.graph, toy.calibration, RECIPE)
    training.fit(twin, *sources, FEW)
    before = toy.graph.params
    toy.graph.params = qat.adopted(before, twin, places)
    photos = striped(40, 3)[0]
    out = network.tensors[network.output]
    np.testing.assert_array_equal(
        qat.real(toy.network().run(RECIPE.quantise_pixels(photos)), out), twin.evaluate(RECIPE.normalise(photos))[qat.LOGITS]
    )
    assert not np.array_equal(before["a"]["kernel"], toy.graph.params["a"]["kernel"])


@pytest.mark.parametrize("case", ["head", "last", "norms", "kernels", "channels", "nothing"])
def test_frozen_bits_do_not_move(case):
    patterns = {"head": BACKBONE, "last": ("..b_relu",), "norms": ("*_bn",), "kernels": ("=a", "=b", "=c"), "nothing": ()}
    toy, sources = striped_toy(patterns.get(case, ("..b_relu",)))
    half = np.arange(8) % 2 == 0
    if case == "channels":
        toy.graph.freeze("c", half)
    toy.graph.params["c_bn"]["gamma"] = toy.graph.params["c_bn"]["gamma"] * (np.arange(8) != 3)
    before = toy.graph.params
    twin, _, places = qat.trainable_int8(toy.graph, toy.calibration, RECIPE)
    training.fit(twin, *sources, replace(FEW, decay=0.1))
    after = qat.adopted(before, twin, places)
    moved = set()
    for node, params in before.items():
        frozen = np.broadcast_to(toy.graph.frozen.get(node, False), toy.graph.shapes[node][-1:])
        for name, array in params.items():
            same = (after[node][name] == array).reshape(-1, array.shape[-1]).all(axis=0)
            assert same[frozen].all(), (node, name)
            if not same.all():
                moved.add(f"{node}/{name}")
    np.testing.assert_array_equal(after["c"]["kernel"][..., 3], before["c"]["kernel"][..., 3])  # BatchNorm multiplies it by 0
    head, last = {"logits/kernel", "logits/bias"}, {"c/kernel", "c_bn/beta"}
    kernels, betas = {"a/kernel", "b/kernel", "c/kernel"}, {"a_bn/beta", "b_bn/beta", "c_bn/beta"}
    expected = {"head": set(), "last": last, "channels": last, "norms": kernels, "kernels": betas, "nothing": kernels | betas}
    assert moved == head | expected[case]


def test_the_frozen_part_is_computed_once_and_that_changes_nothing():
    results = []
    for wrap in (lambda rows: rows, Streamed):
        toy, (train, labels, val, val_labels) = striped_toy(("..b_relu",))
        history = qat.fine_tune(toy, wrap(train), labels, wrap(val), val_labels, FEW)
        results.append((bits(toy), history.epochs))
    assert results[0] == results[1]
    twin, network, _ = qat.trainable_int8(toy.graph, toy.calibration, RECIPE)
    rows = qat.frozen_once(twin, network, RECIPE, train)
    assert isinstance(rows, qat.Rows) and [name for name, _ in rows.tensors] == ["b_relu"] and rows.rows.dtype == np.int8
    streamed = Streamed(train)
    assert qat.frozen_once(twin, network, RECIPE, streamed) is streamed


def test_rows_that_would_fill_the_memory_are_not_kept(monkeypatch):
    monkeypatch.setattr(qat, "LARGEST_ROWS", 0)
    toy, (train, *_) = striped_toy(("..a_relu",))  # 8 x 8 x 8 values, more than pixels
    twin, network, _ = qat.trainable_int8(toy.graph, toy.calibration, RECIPE)
    assert qat.frozen_once(twin, network, RECIPE, train) is train


# ---- fine_tune


@pytest.mark.parametrize("freeze", [BACKBONE, ("..a_relu",), ()])
def test_it_wins_back_what_rounding_lost(freeze):
    toy, sources = striped_toy(freeze)
    whole, before = toy.float_accuracy(sources), toy.int8_accuracy(sources)
    history = qat.fine_tune(toy, *sources, GOOD)
    after = toy.int8_accuracy(sources)
    print(f"float {whole:.3f}; int8 {before:.3f} -> {after:.3f} in epoch {history.best}")
    assert before < whole - 0.1 and after > before + 0.3 * (whole - before)  # measured: 60, 33 and 100 %
    assert after == history.epochs[history.best - 1].val_accuracy == qat.accuracy(toy.network(), RECIPE, *sources[2:])


def test_two_runs_give_the_same_bytes():
    runs = []
    for _ in range(2):
        toy, sources = striped_toy()
        assert qat.fine_tune(toy, *sources, GOOD).best
        runs.append(bits(toy))
    assert runs[0] == runs[1]


def test_a_model_that_gains_nothing_stays_as_it_was():
    toy, (train, labels, val, val_labels) = striped_toy()
    before = dict(toy.graph.arrays())
    wrong = (labels + 1) % 3
    assert qat.fine_tune(toy, train, wrong, val, val_labels, FEW).best == 0
    assert all(toy.graph.arrays()[name] is array for name, array in before.items())


def test_a_lower_loss_without_a_better_answer_is_not_kept():
    toy, (_, _, val, _) = striped_toy()
    answers = toy.network().run(RECIPE.quantise_pixels(val.rows.reshape(-1, 8, 8, 3))).argmax(1)  # nothing to win: all of them are right
    before = bits(toy)
    history = qat.fine_tune(toy, val, answers, val, answers, replace(FEW, rate=1e-3))
    assert min(line.val_loss for line in history.epochs) > 0 and history.best == 0 and bits(toy) == before


@pytest.mark.parametrize("rate", [100, 1000])
def test_a_training_that_explodes_leaves_the_model_as_it_was(rate):
    toy, sources = striped_toy()
    before = bits(toy)
    history = qat.fine_tune(toy, *sources, Settings(epochs=12, rate=rate, decay=10, momentum=0.999))
    assert history.best == 0 and history.diverged and bits(toy) == before


@pytest.mark.parametrize("count", [1, 3])
def test_a_handful_of_photos_is_enough_to_run(count):
    toy, (train, labels, val, val_labels) = striped_toy()
    one = np.array([0])
    history = qat.fine_tune(toy, train.take(np.arange(count)), labels[:count], val.take(one), val_labels[one], FEW)
    assert len(history.epochs) == 3 and np.isfinite([line.val_loss for line in history.epochs]).all()


def test_mistakes_are_named():
    toy, sources = striped_toy()
    toy.graph.freeze()
    with pytest.raises(MinitlError, match="every layer is frozen"):
        qat.fine_tune(toy, *sources, FEW)
    toy.calibration = {}
    with pytest.raises(MinitlError, match="there are no statistics of"):
        qat.fine_tune(toy, *sources, FEW)


def test_mixup_is_left_out():
    plain, mixed = [qat.fine_tune(*_flat(striped_toy()), replace(FEW, mixup=mixup)).epochs for mixup in (0.0, 0.5)]
    assert plain == mixed


def _flat(pair):
    return pair[0], *pair[1]


def test_a_network_without_batch_norm_trains_its_biases():
    graph, calibration = small(("a", Conv2D((3, 3), (2, 2), "same", 6, True)), ("relu", ReLU6()), ("b", Conv2D((1, 1), (1, 1), "same", 4)))
    twin, _, places = qat.trainable_int8(graph, calibration, RECIPE)
    assert places["relu"] == {"kernel": ("a", "kernel"), "shift": ("a", "bias")} and places["b"] == {"kernel": ("b", "kernel")}
    assert quantise(fold(graph), calibration, RECIPE).digest() == qat.trainable_int8(graph, calibration, RECIPE)[1].digest()
    assert ("b", "shift") not in {(node, name) for node, name, _ in twin.trainable()}
