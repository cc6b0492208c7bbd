"""Many steps of a classifier at once: the very bits of one step after the other, whatever the sizes."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import small_models

from minitl import demo_pictures, quick, training
from minitl.errors import MinitlError
from minitl.features import Features
from minitl.graph import Graph
from minitl.images import Recipe
from minitl.layers import Dense, Dropout
from minitl.processor import LINUX_X86
from minitl.training import Settings

RECIPE = Recipe(8, 8)


def head(width, classes, dropout=0.0):
    graph = Graph(small_models.chain(("drop", Dropout(dropout)), ("answers", Dense(classes)), end=False), (width,)).initialise(3)
    return graph


def source(graph, count, seed=0, index=None):
    rows = np.random.default_rng(seed).normal(0, 2, (count, *graph.input_shape)).astype(np.float32)
    return Features(rows, [(name, graph.shapes[name]) for name in graph.border()], RECIPE, index)


def trained(width, classes, settings, count=40, factors=None, index=None, frozen=()):
    """(parameters, history) of a training."""
    graph = head(width, classes)
    for name in frozen:
        graph.freeze(name)
    features = source(graph, count, index=index)
    labels = np.random.default_rng(1).integers(0, classes, len(features))
    history = training.fit(graph, features, labels, features.take(np.arange(5)), labels[:5], settings, factors=factors)
    return {name: array.tobytes() for name, array in graph.params["answers"].items()}, history


def both(monkeypatch, *arguments, **options):
    calls, run = [], quick.Head.run
    monkeypatch.setattr(quick.Head, "run", lambda self, *given: calls.append(1) or run(self, *given))
    fast = trained(*arguments, **options)
    assert calls
    monkeypatch.setenv("MINITL_ENGINE", "plain")
    count = len(calls)
    plain = trained(*arguments, **options)
    assert len(calls) == count
    return fast, plain


USUAL = Settings(epochs=3, batch=32, rate=0.05, decay=0.01, patience=3)


@pytest.mark.parametrize("width", [1, 7, 8, 35, 256])
@pytest.mark.parametrize("classes", [2, 3, 8, 10, 33])
def test_the_bits_are_those_of_one_step_after_the_other(monkeypatch, width, classes):
    fast, plain = both(monkeypatch, width, classes, USUAL)
    assert fast == plain


@pytest.mark.parametrize(
    "change",
    [{"batch": 1}, {"batch": 33}, {"batch": 1000}, {"balance": True}, {"smoothing": 0.1}, {"momentum": 0.0, "decay": 0.0}, {"warmup": 1.0},
     {"balance": True, "smoothing": 0.2, "batch": 7}],
)  # fmt: skip
def test_the_bits_are_the_same_with_any_settings(monkeypatch, change):
    fast, plain = both(monkeypatch, 35, 3, replace(USUAL, **change))
    assert fast == plain


def test_rates_by_layer_and_parts_of_a_set_count(monkeypatch):
    fast, plain = both(monkeypatch, 35, 3, USUAL, factors={"answers": 0.25}, index=np.arange(39, 0, -2))
    assert fast == plain and fast != trained(35, 3, USUAL, index=np.arange(39, 0, -2))


def test_a_loss_that_is_no_number_moves_nothing_more(monkeypatch):
    graph = head(4, 3)
    features = source(graph, 8)
    features.rows[5] = np.nan
    optimiser = training.SGD(graph, 0.9, 0.0)
    fast = quick.of(graph, optimiser, features, training.one_hot(np.zeros(8, np.int64), 3), None)
    batches = [np.array([0, 1]), np.array([4, 5]), np.array([6, 7])]
    begun, losses, _ = fast.run(batches, [0.1, 0.1, 0.1])
    assert begun == 2 and np.isfinite(losses[0]).all() and not np.isfinite(losses[1]).all() and optimiser.steps == 1
    once = graph.params["answers"]["kernel"].copy()
    fast.run(batches[1:], [0.1, 0.1])
    assert np.array_equal(graph.params["answers"]["kernel"], once) and optimiser.steps == 1


def test_snapshots_stay_as_they_were():
    graph = head(4, 3)
    features = source(graph, 8)
    fast = quick.of(graph, training.SGD(graph, 0.9, 0.1), features, training.one_hot(np.zeros(8, np.int64), 3), None)
    before = training.snapshot(graph)
    bytes_before = before["answers"]["kernel"].tobytes()
    fast.run([np.arange(8)], [0.1])
    assert before["answers"]["kernel"].tobytes() == bytes_before != graph.params["answers"]["kernel"].tobytes()


def test_what_it_cannot_do_is_left_to_the_plain_way(monkeypatch):
    targets = training.one_hot(np.zeros(8, np.int64), 3)

    def found(graph, optimiser=None, features=None):
        return quick.of(graph, optimiser or training.SGD(graph, 0.9, 0.1), features or source(graph, 8), targets, None)

    assert found(head(4, 3))
    assert not found(head(4, 3, dropout=0.5))
    graph = head(4, 3)
    assert not found(graph, training.AdamW(graph, 0.1))
    assert not found(head(4, 3).freeze("answers", np.array([True, False, False])))
    two = Graph(small_models.chain(("hidden", Dense(5)), ("answers", Dense(3)), end=False), (4,)).initialise(0)
    assert not found(two)
    assert not found(head(4, 3).astype(np.float64))
    assert found(two.freeze("hidden"), features=Features(np.zeros((8, 5), np.float32), [("hidden", (5,))], RECIPE))

    def broken(name):
        raise MinitlError("no such processor")

    monkeypatch.setattr(quick, "load", broken)
    assert not found(head(4, 3))


def test_features_that_may_not_be_written_and_lie_anywhere(monkeypatch):
    graph = head(5, 3)
    features = source(graph, 16)
    block = np.zeros(features.rows.nbytes + 4, np.uint8)
    odd = block[4:].view(np.float32).reshape(features.rows.shape)
    odd[:] = features.rows
    odd.flags.writeable = False
    targets, results = training.one_hot(np.arange(16) % 3, 3), []
    for rows in (features.rows, odd):
        one = head(5, 3)
        quick.of(one, training.SGD(one, 0.9, 0.1), replace(features, rows=rows), targets, None).run([np.arange(16)] * 3, [0.1] * 3)
        results.append(one.params["answers"]["kernel"].tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("count", [1, 7, 8, 41])
@pytest.mark.parametrize("width, classes", [(1, 2), (35, 3), (256, 10), (9, 33)])
def test_answers_have_the_bits_of_the_plain_path(monkeypatch, count, width, classes):
    graph = head(width, classes)
    graph.params["answers"]["bias"] = np.arange(classes, dtype=np.float32)
    features = source(graph, 60, index=np.random.default_rng(2).permutation(60)[:count])
    fast = quick.answers(graph, features)
    assert fast.flags.c_contiguous and fast.tobytes() == training.predict(graph, features).tobytes()
    monkeypatch.setenv("MINITL_ENGINE", "plain")
    assert quick.answers(graph, features) is None
    assert fast.tobytes() == training.predict(graph, features).tobytes()


def test_a_run_that_trains_the_classifier_alone_imports_no_numba_when_the_kernels_are_on_disk(tmp_path):
    demo_pictures.draw_photos(tmp_path / "photos", 4, size=40)
    words = ["train", tmp_path / "photos", "--weights", small_models.SMALL, "-o", tmp_path / "out", "--no-cache", "--epochs", "2"]
    code = "import sys\nfrom minitl import cli\ncli.main(sys.argv[1:])\nprint({'numba', 'llvmlite'} & set(sys.modules))"
    for _ in range(2):  # the first may compile
        ran = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
    if LINUX_X86:
        assert ran.stdout.endswith("set()\n"), ran.stdout
