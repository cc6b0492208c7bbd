"""Training: frozen means frozen, bit for bit; the optimiser is the one of the formula; the best epoch is kept; a seed decides all."""

import copy

import numpy as np
import pytest
import small_models
from small_models import chain

from minitl import training
from minitl.errors import MinitlError
from minitl.features import Features
from minitl.graph import INPUT, Graph
from minitl.layers import Add, BatchNorm, Conv2D, DepthwiseConv2D, Dropout, ReLU6
from minitl.model import find
from minitl.optimisers import SGD, AdamW, schedule
from minitl.training import Settings, class_weights, fit, loss_and_accuracy, mixed, one_hot, train_step


def small_graph(dtype=np.float32, dropout=0.3):
    """A stem, a residual block, every kind of parameter."""
    nodes = chain(
        ("stem", Conv2D((3, 3), (1, 1), "same", 4, True)),
        ("stem_bn", BatchNorm(momentum=0.8)),
        ("relu", ReLU6()),
        ("dw", DepthwiseConv2D((3, 3), (1, 1), "same", True)),
        ("dw_bn", BatchNorm(momentum=0.8)),
        ("sum", Add(), "relu", "dw_bn"),
        ("dropout", Dropout(dropout)),
    )
    return small_models.stir(Graph(nodes, (6, 6, 3)).initialise(0).astype(dtype))


def images(count=24, seed=0):
    """Pixels as Features, and labels that depend on the colour: something that can be learned."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    pixels = rng.integers(0, 150, (count, 6, 6, 3))
    pixels[np.arange(count), :, :, labels] += 60
    recipe = find(small_models.SMALL).recipe
    return Features(pixels.astype(np.uint8).reshape(count, -1), [(INPUT, (6, 6, 3))], recipe), labels


def bits(graph):
    return {name: array.tobytes() for name, array in graph.arrays().items()}


def run(graph, epochs=4, **changes):
    settings = Settings(**{"epochs": epochs, "batch": 7, "rate": 0.05, "momentum": 0.9, "decay": 0.01} | changes)
    return fit(graph, *images(), *images(12, 1), settings)


# ---- frozen


@pytest.mark.parametrize("pattern", ["stem", "=stem", "=stem_bn", "stem*", "..relu", "..sum", "dw", "=dw_bn", "logits"])
def test_frozen_layers_do_not_move(pattern):
    graph = small_graph().freeze(pattern)
    before = bits(graph)
    frozen = {name for name in before if name.split("/")[0] in graph.match(pattern)}
    run(graph)
    after = bits(graph)
    moved = {name for name in before if before[name] != after[name]}
    idle = {"stem/bias", "dw/bias"}  # before a trained BatchNorm, which takes the mean away: only rounding moves them
    assert not moved & frozen and moved | idle | frozen == before.keys()  # all others moved, statistics included


def test_the_backbone_of_a_network_does_not_move_with_freeze_all():
    model = find(small_models.SMALL).replace_head(["a", "b", "c"]).freeze("all")
    before = bits(model.graph)
    rng = np.random.default_rng(0)
    node, shape = "dropout", (102,)
    train = Features(rng.random((20, 102), dtype=np.float32), [(node, shape)], model.recipe)
    fit(model.graph, train, np.arange(20) % 3, train, np.arange(20) % 3, Settings(epochs=3))
    after = bits(model.graph)
    assert {name for name in before if before[name] != after[name]} == {"conv_preds/kernel", "conv_preds/bias"}


def test_frozen_channels_do_not_move_and_the_others_do():
    graph = small_graph()
    masks = {"stem": [True, False, True, False], "stem_bn": [False, True, True, False], "dw": [True, True, False, True],
             "dw_bn": [True, False, False, False], "logits": [False, True, False]}  # fmt: skip
    for name, mask in masks.items():
        graph.freeze("=" + name, np.array(mask))
    before = copy.deepcopy(graph.arrays())
    run(graph)
    for name, array in graph.arrays().items():
        mask = np.array(masks[name.split("/")[0]])
        same = (array == before[name]).reshape(-1, len(mask))
        assert same[:, mask].all() and not same[:, ~mask].any(axis=0).all(), name
        assert array[..., mask].tobytes() == before[name][..., mask].tobytes()


def test_momentum_and_weight_decay_never_see_what_is_frozen():
    graph = small_graph().freeze("=stem").freeze("=dw", np.array([True, False, True, False]))
    optimiser = SGD(graph, 0.9, 0.5)
    features, labels = images()
    for _ in range(3):
        train_step(graph, features.feeds(), one_hot(labels, 3), optimiser, 0.01, np.random.default_rng(0))
    assert {node for node, _ in optimiser.slots["velocity"]} == {"stem_bn", "dw", "dw_bn", "logits"}
    velocity = optimiser.slots["velocity"]["dw", "kernel"]
    assert np.all(velocity[..., [0, 2]] == 0) and np.all(velocity[..., [1, 3]] != 0) and velocity.dtype == np.float32


def test_a_layer_frozen_after_a_while_stops_at_once():
    graph = small_graph()
    optimiser, (features, labels) = SGD(graph, 0.9, 0.1), images()
    step = lambda: train_step(graph, features.feeds(), one_hot(labels, 3), optimiser, 0.05, np.random.default_rng(0))  # noqa: E731
    step()
    graph.freeze("stem")
    before = bits(graph)
    step()
    after = bits(graph)
    assert all(after[name] == before[name] for name in before if name.startswith("stem"))
    assert all(after[name] != before[name] for name in ("dw/kernel", "dw_bn/gamma", "dw_bn/moving_mean", "logits/kernel"))


def test_training_all_layers_frozen_is_refused():
    with pytest.raises(MinitlError, match="every layer is frozen"):
        run(small_graph().freeze("*"))


def test_steps_replace_arrays_and_leave_those_of_others_alone():
    graph = small_graph()
    arrays = graph.arrays()
    copies = copy.deepcopy(arrays)
    for array in arrays.values():
        array.setflags(write=False)
    run(graph)
    assert all(np.array_equal(arrays[name], copies[name]) for name in arrays)


# ---- the formula


def by_hand(p, grads, momentum, decay, rates):
    """Nesterov's momentum as Sutskever et al. write it, in the form without lookahead, term by term."""
    v = np.zeros_like(p)
    for g, rate in zip(grads, rates, strict=True):
        g = g + decay * p
        v = momentum * v + g
        p = p - rate * (g + momentum * v)
    return p


def test_sgd_is_the_formula():
    rng = np.random.default_rng(0)
    graph = Graph(chain(), (2, 2, 5)).initialise(0).astype(np.float64)
    start = copy.deepcopy(graph.params["logits"])
    grads = [{"kernel": rng.standard_normal((5, 3)), "bias": rng.standard_normal(3)} for _ in range(6)]
    rates = [0.1, 0.2, 0.05, 0.1, 0.3, 0.01]
    optimiser = SGD(graph, 0.9, 0.03)
    for g, rate in zip(grads, rates, strict=True):
        optimiser.step({"logits": g}, rate)
    for name, decay in (("kernel", 0.03), ("bias", 0.0)):
        expected = by_hand(start[name], [g[name] for g in grads], 0.9, decay, rates)
        error = np.abs(graph.params["logits"][name] - expected).max()
        print(f"{name}: {error:.1e}")
        assert error < 1e-14


def test_sgd_is_pytorchs_over_twenty_steps():
    torch = pytest.importorskip("torch")
    graph = small_graph(np.float64, dropout=0.0)
    features, labels = images()
    theirs = {(node, name): torch.nn.Parameter(torch.from_numpy(graph.params[node][name].copy())) for node, name, _ in graph.trainable()}
    optimiser = torch.optim.SGD(
        [
            {"params": [p for (_, name), p in theirs.items() if name == "kernel"], "weight_decay": 0.02},
            {"params": [p for (_, name), p in theirs.items() if name != "kernel"], "weight_decay": 0.0},
        ],
        lr=0.05,
        momentum=0.9,
        nesterov=True,
    )
    statistics = {node.name: [graph.params[node.name][f"moving_{k}"].copy() for k in ("mean", "variance")]
                  for node in graph.nodes if isinstance(node.layer, BatchNorm)}  # fmt: skip
    p = lambda node, name: theirs[node, name]  # noqa: E731

    def conv(x, node, groups=1):
        kernel = p(node, "kernel").permute(3, 2, 0, 1) if groups == 1 else p(node, "kernel").permute(2, 0, 1)[:, None]
        return torch.nn.functional.conv2d(x, kernel, p(node, "bias"), padding=1, groups=groups)

    def norm(x, node):
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        for kept, new in zip(statistics[node], (mean, variance), strict=True):
            kept *= 0.8
            kept += 0.2 * new.detach().numpy()
        return torch.nn.functional.batch_norm(x, None, None, p(node, "gamma"), p(node, "beta"), True, 0.0, 1e-3)

    ours, rng = SGD(graph, 0.9, 0.02), np.random.default_rng(1)
    for _ in range(20):
        chosen = rng.choice(len(labels), 8, replace=False)
        x = {INPUT: features.feeds(chosen)[INPUT].astype(np.float64)}
        train_step(graph, x, one_hot(labels[chosen], 3, np.float64), ours, 0.05, None)
        optimiser.zero_grad()
        y = torch.nn.functional.relu6(norm(conv(torch.from_numpy(x[INPUT]).permute(0, 3, 1, 2), "stem"), "stem_bn"))
        y = y + norm(conv(y, "dw", 4), "dw_bn")
        logits = y.mean((2, 3)) @ p("logits", "kernel") + p("logits", "bias")
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[chosen])).backward()
        optimiser.step()
    errors = {key: np.abs(value.detach().numpy() - graph.params[key[0]][key[1]]).max() for key, value in theirs.items()}
    for node, kept in statistics.items():
        for name, value in zip(("mean", "variance"), kept, strict=True):
            errors[node, name] = np.abs(value - graph.params[node][f"moving_{name}"]).max()
    print(f"largest difference after 20 steps: {max(errors.values()):.1e}")
    assert max(errors.values()) < 1e-10


def test_the_rate_falls_along_half_a_cosine(monkeypatch):
    rates = []
    step = training.train_step

    def spy(graph, feeds, targets, optimiser, rate, rng, **more):
        rates.append(rate)
        return step(graph, feeds, targets, optimiser, rate, rng, **more)

    monkeypatch.setattr(training, "train_step", spy)
    run(small_graph(), epochs=5, patience=5)  # 24 photos in batches of at most 7: 4 steps an epoch
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(20) / 20)) / 2
    assert np.allclose(rates, expected, rtol=1e-12, atol=0)


# ---- the course of a training


def test_it_learns():
    graph = small_graph(dropout=0.0)
    history = run(graph, epochs=30)
    lines = history.epochs
    print(f"validation loss {lines[0].val_loss:.3f} -> {min(line.val_loss for line in lines):.3f}, accuracy {lines[-1].val_accuracy}")
    assert min(line.val_loss for line in lines) < 0.5 * lines[0].val_loss and max(line.val_accuracy for line in lines) >= 0.9
    assert lines[-1].train_loss < 0.5 * lines[0].train_loss


def test_the_history_says_what_the_network_does():
    graph = small_graph(dropout=0.0)
    history = run(graph, epochs=6)
    best = history.epochs[history.best - 1]
    features, labels = images(12, 1)
    logits = graph.evaluate(features.feeds())["logits"].astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert abs(-np.log(p[np.arange(12), labels]).mean() - best.val_loss) < 1e-5
    assert best.val_accuracy == (p.argmax(axis=1) == labels).mean()
    assert best.val_loss == min(line.val_loss for line in history.epochs)
    assert [line.epoch for line in history.epochs] == list(range(1, 7))


def course(monkeypatch, losses, **changes):
    """A run whose validation losses are given; returns (history, parameters after each epoch, the graph)."""
    graph, after = small_graph(), []
    told = iter(losses)
    real = loss_and_accuracy

    def fake(logits, labels):
        if len(labels) == 12:  # the validation part
            after.append(bits(graph))
            return next(told), 0.5
        return real(logits, labels)

    monkeypatch.setattr(training, "loss_and_accuracy", fake)
    return run(graph, epochs=len(losses), **changes), after, graph


def test_the_parameters_of_the_best_epoch_are_kept(monkeypatch):
    history, after, graph = course(monkeypatch, [3, 2, 1, 1, 2, 1.5], patience=9)
    assert history.best == 3 and len(history.epochs) == 6 and len(set(map(str, after))) == 6
    assert bits(graph) == after[2]


def test_it_stops_when_nothing_gets_better(monkeypatch):
    history, after, graph = course(monkeypatch, [3, 2, 2.5, 2, 2, 1, 1, 1], patience=3)
    assert len(history.epochs) == 5 and history.best == 2 and bits(graph) == after[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_no_number_is_an_error(monkeypatch, bad):
    with pytest.raises(MinitlError, match=r"no longer a number in epoch 1.*smaller learning rate than 0\.05"):
        course(monkeypatch, [bad, 1, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_no_number_any_more_ends_the_training_and_keeps_the_best(monkeypatch, bad):
    history, after, graph = course(monkeypatch, [2, 1, bad, 1])
    assert history.diverged and history.best == 2 and len(history.epochs) == 2 and bits(graph) == after[1]


@pytest.mark.filterwarnings("ignore")
def test_a_rate_that_blows_the_network_up_is_an_error_in_words():
    graph = small_graph()
    graph.params["logits"]["kernel"] = graph.params["logits"]["kernel"] * np.float32(1e30)
    with pytest.raises(MinitlError, match="no longer a number"):
        run(graph, rate=1000.0, epochs=20)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    results = []
    for seed in (0, 0, 1):
        graph = small_graph()
        history = run(graph, seed=seed)
        results.append((bits(graph), history))
    assert results[0] == results[1]
    assert results[0][0] != results[2][0]


def test_report_is_called_after_every_epoch_with_the_time_left():
    seen = []
    graph = small_graph()
    fit(graph, *images(), *images(12, 1), Settings(epochs=3), lambda line, left: seen.append((line.epoch, left)))
    assert [epoch for epoch, _ in seen] == [1, 2, 3] and seen[-1][1] == 0 and all(left >= 0 for _, left in seen)


def test_every_photo_is_seen_once_an_epoch(monkeypatch):
    rows = []
    take = Features.feeds

    def spy(self, indices=slice(None), epoch=0):
        if isinstance(indices, np.ndarray):
            rows.append(indices)
        return take(self, indices, epoch)

    monkeypatch.setattr(Features, "feeds", spy)
    run(small_graph(), epochs=2, batch=5)
    assert len(rows) == 10 and all(4 <= len(chosen) <= 5 for chosen in rows)  # no batch of one: BatchNorm would see no spread
    for epoch in (rows[:5], rows[5:]):
        assert sorted(np.concatenate(epoch)) == list(range(24))
    assert not np.array_equal(np.concatenate(rows[:5]), np.concatenate(rows[5:]))


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"epochs": 2.5}, {"batch": -1}, {"rate": float("nan")}, {"rate": 1e9}, {"momentum": 1}, {"decay": -1}, {"seed": -1},
     {"seed": 2**32}, {"patience": 0}, {"seed": "1"}, {"epochs": None}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(MinitlError, match=f"^{name} must be"):
        Settings(**wrong)


def test_loss_and_accuracy_of_a_worked_example():
    loss, accuracy = loss_and_accuracy(np.float32([[0, 0], [np.log(3), 0]]), np.array([0, 1]))
    assert abs(loss - (np.log(2) + np.log(4)) / 2) < 1e-6 and accuracy == 0.5
    assert one_hot(np.array([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]  # ties go to the first class


# ---- stopping and going on


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimiser": "adamw", "rate": 0.01}, {"average": 0.9, "mixup": 0.3, "warmup": 1.5}, {"smoothing": 0.1, "balance": True}],
    ids=lambda changes: ",".join(changes) or "plain",
)
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 9, 15])
def test_a_training_that_is_continued_after_any_step_ends_with_the_same_bits(changes, stop):
    settings = Settings(**{"epochs": 4, "batch": 7, "rate": 0.05, "decay": 0.01} | changes)
    whole = small_graph()
    expected = fit(whole, *images(), *images(12, 1), settings)

    class Stop(Exception):
        pass

    steps, kept = [], []

    def keep(state):
        steps.append(state)
        if len(steps) == stop:
            kept.append(copy.deepcopy((state, graph.params)))
            raise Stop

    graph = small_graph()
    with pytest.raises(Stop):
        fit(graph, *images(), *images(12, 1), settings, keep=keep)
    state, params = kept[0]
    again = small_graph()
    again.params = params
    state.optimiser.graph = again
    if state.average:
        state.average.graph = again
    history = fit(again, *images(), *images(12, 1), settings, state=state)
    assert history == expected and bits(again) == bits(whole)


def test_the_optimisers_obey_the_mask_and_the_factors():
    for settings in ({"optimiser": "adamw"}, {"average": 0.5}, {"mixup": 0.2, "balance": True}):
        graph = small_graph().freeze("stem").freeze("=dw", np.array([True, False, True, False]))
        before = copy.deepcopy(graph.arrays())
        run(graph, **settings)
        for name, array in graph.arrays().items():
            same = array == before[name]
            assert same.all() == name.startswith("stem"), name
            if name == "dw/kernel":
                assert same[..., [0, 2]].all() and not same[..., [1, 3]].any()
    graph = small_graph()
    before = copy.deepcopy(graph.arrays())
    fit(graph, *images(), *images(12, 1), Settings(epochs=1, rate=0.01), factors={"stem": 0.0})
    after = graph.arrays()
    assert np.array_equal(after["stem/kernel"], before["stem/kernel"]) and not np.array_equal(after["dw/kernel"], before["dw/kernel"])


def test_adamw_is_the_one_of_torch():
    torch = pytest.importorskip("torch")
    graph = small_graph(np.float64)
    for name in list(graph.params):
        if name != "logits":
            graph.freeze("=" + name)
    p0 = {name: array.copy() for name, array in graph.params["logits"].items()}
    twin = {name: torch.tensor(array, requires_grad=True) for name, array in p0.items()}
    theirs = torch.optim.AdamW(
        [{"params": [twin["kernel"]], "weight_decay": 0.1}, {"params": [twin["bias"]], "weight_decay": 0.0}], lr=0.01
    )
    ours, rng = AdamW(graph, 0.1), np.random.default_rng(0)
    for _ in range(20):
        grads = {name: rng.standard_normal(array.shape) for name, array in p0.items()}
        ours.step({"logits": grads}, 0.01)
        for name, p in twin.items():
            p.grad = torch.tensor(grads[name])
        theirs.step()
    error = max(np.abs(graph.params["logits"][name] - p.detach().numpy()).max() for name, p in twin.items())
    print(f"largest difference after 20 steps: {error:.1e}")
    assert error < 1e-12


def test_the_rate_rises_along_a_line_first():
    rates = [schedule(done / 20, 5 / 20) for done in range(21)]
    assert np.allclose(rates[:6], np.arange(6) / 5) and rates[20] < 1e-12 and np.all(np.diff(rates[5:]) < 0)


def test_class_weights_make_classes_count_alike():
    labels = np.array([0] * 6 + [1] * 3 + [3])
    weights = class_weights(labels, 4)
    assert np.allclose(np.bincount(labels, weights[labels], 4)[[0, 1, 3]], 10 / 3) and abs(weights[labels].mean() - 1) < 1e-6


def test_mixing_keeps_sums_and_pairs():
    rng = np.random.default_rng(0)
    targets = one_hot(np.arange(6) % 3, 3)
    feeds, mixed_targets = mixed({"x": targets.copy()}, targets, 0.4, rng)
    assert np.array_equal(feeds["x"], mixed_targets) and np.allclose(mixed_targets.sum(axis=1), 1)


def test_mixing_leaves_the_balance_of_the_classes_as_it_is(monkeypatch):
    """What all targets of an epoch weigh, class by class: as much as without mixing, since every photo is mixed in as often as out."""
    weighed = np.zeros(3)

    def step(graph, feeds, targets, optimiser, rate, rng, weights=None):
        weighed[:] += (targets * weights[:, None]).sum(axis=0)
        assert np.allclose(targets.sum(axis=1), 1)
        return np.zeros_like(targets), np.zeros(len(targets), np.float32)

    monkeypatch.setattr(training, "train_step", step)
    source, _ = images(24)
    labels = np.array([0] * 18 + [1] * 4 + [2] * 2)
    graph = small_graph()
    fit(graph, source, labels, source, labels, Settings(epochs=1, batch=7, mixup=0.4, balance=True))
    print("of 8 each:", weighed)
    assert np.allclose(weighed, 8, rtol=1e-6)
