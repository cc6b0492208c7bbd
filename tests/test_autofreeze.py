"""Measured depth: least squares is the textbook's, folds keep copies together, thumbnails judge a backbone, trials are remembered."""

import numpy as np
import pytest
import small_models

from minitl import autofreeze
from minitl.autofreeze import Candidates, accuracy_of, choose, divide, judge_features, least_squares, some_of, thumbnails
from minitl.features import Features
from minitl.model import find
from minitl.pictures import Pictures


def test_least_squares_is_ridge_with_the_best_leave_one_out_error():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 5)) + 2
    y = x @ rng.standard_normal((5, 2)) + 0.5 * rng.standard_normal((30, 2))
    tested = rng.standard_normal((4, 5))

    def ridge(x, y, strength, tested):
        mean, target = x.mean(0), y.mean(0)
        w = np.linalg.solve((x - mean).T @ (x - mean) + strength * np.eye(5), (x - mean).T @ (y - target))
        return (tested - mean) @ w + target

    length = ((x - x.mean(0)) ** 2).sum() / 30
    strengths = length * 10.0 ** np.arange(-4, 3)
    errors = [sum(np.square(y[i] - ridge(np.delete(x, i, 0), np.delete(y, i, 0), s, x[i])).sum() for i in range(30)) for s in strengths]
    expected = ridge(x, y, strengths[int(np.argmin(errors))], tested)
    assert np.abs(least_squares(x, y, tested) - expected).max() < 0.05  # leaving one out also moves the mean a little


def test_least_squares_takes_more_features_than_photos_and_dead_ones():
    rng = np.random.default_rng(1)
    labels = np.arange(20) % 2
    x = rng.standard_normal((20, 50)).astype(np.float32)
    x[:, 0] += 6 * labels
    x[:, 1] = 0
    scores = least_squares(x, np.eye(2)[labels], x)
    assert (scores.argmax(axis=1) == labels).all() and np.isfinite(least_squares(0 * x, np.eye(2)[labels], x)).all()


def test_folds_keep_copies_together_and_classes_apart():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [40, 30, 9])
    looks = [int.from_bytes(rng.bytes(8), "big") for _ in labels]
    for i in range(0, 40, 2):
        looks[i + 1] = looks[i]
    digests = [f"{i:064x}" for i in rng.permutation(len(labels))]
    folds = divide(labels, digests, looks)
    assert all(folds[i] == folds[i + 1] for i in range(0, 40, 2))
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=4)
        assert counts.max() - counts.min() <= 2
    order = rng.permutation(len(labels))
    again = divide(labels[order], [digests[i] for i in order], [looks[i] for i in order])
    assert np.array_equal(again, folds[order])


def test_large_sets_are_cut_down_class_by_class():
    labels = np.repeat([0, 1], [5000, 1000])
    digests = [f"{i:064x}" for i in range(6000)]
    chosen = some_of(labels, digests, 10**7)
    counts = np.bincount(labels[chosen])
    assert 1900 < counts.sum() <= 2010 and abs(counts[0] / counts[1] - 5) < 0.1
    assert len(some_of(labels, digests, 10**12)) < 100 and len(some_of(labels[:50], digests[:50], 10**7)) == 50


def test_thumbnails_are_means():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 80, 3)).astype(np.uint8)
    assert np.allclose(thumbnails(pixels), pixels.reshape(2, 8, 5, 8, 10, 3).mean(axis=(2, 4)).reshape(2, -1) / 255, atol=1e-6)


def candidates(good, count=90):
    """Photos whose class is their colour, or not; features that know the class, or not."""
    rng = np.random.default_rng(3)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 150, (count, 40, 40, 3))
    if good == "thumbnails":
        pixels[np.arange(count), :, :, labels] += 80
    rows = rng.standard_normal((count, 102)).astype(np.float32)
    if good == "features":
        rows[np.arange(count), labels] += 6
    made = find(small_models.SMALL).note(source="x").replace_head(["a", "b", "c"]).freeze("all")
    found = Features(rows, [("dropout", (102,))], made.recipe)
    found.parts = [(made.graph.border()[0], (102,))]
    return made, Candidates(found, Pictures(pixels.astype(np.uint8), np.ones(count)), labels, np.arange(count) // 3 % 4)


def test_a_backbone_no_better_than_thumbnails_is_said_to_transfer_badly():
    _, bad = candidates("thumbnails")
    _, good = candidates("features")
    curve, said = judge_features(bad)
    assert len(said) == 1 and "transfers badly" in said[0] and "another backbone" in said[0] and curve[-1]["accuracy"] < 0.6
    curve, said = judge_features(good)
    assert (
        said == []
        and curve[-1]["accuracy"] > 0.9
        and [round(p["photos_per_class"]) for p in curve] == sorted(round(p["photos_per_class"]) for p in curve)
    )


def test_more_photos_raise_the_accuracy_of_a_curve():
    _, photos = candidates("features", 300)
    photos.features.rows[:, :3] *= 0.3
    few, _, n_few = accuracy_of(photos.features.values(), photos.labels, photos.folds, 0.25)
    many, error, n_many = accuracy_of(photos.features.values(), photos.labels, photos.folds)
    assert many > few and n_many == pytest.approx(4 * n_few, rel=0.1) and 0 < error < 0.06


def test_the_choice_is_what_answers_more_rightly_and_trials_are_not_repeated(monkeypatch):
    made, photos = candidates("features")
    calls, kept, said = [], [], []

    def trial(model, depth, photos, seed, fold):
        calls.append(depth)
        outside = photos.labels[photos.folds == fold]
        noise = np.random.default_rng([fold, "3 all".find(depth or "-") + 1]).standard_normal((len(outside), 3)).astype(np.float32)
        return noise + right[depth] * np.eye(3, dtype=np.float32)[outside]

    monkeypatch.setattr(autofreeze, "try_depth", trial)
    right = {None: 2.0, "3": 4.0, "all": 0.5}
    choice = choose(made, photos, 0, keep=kept.append, say=said.append)
    assert choice.depth == "3" and {row["what"]: row["chosen"] for row in choice.rows}["the last 3 blocks"] and len(said) == 3
    assert sum(row["chosen"] for row in choice.rows) == 1 and any("unfreezing pays" in line for line in choice.sentences)
    assert len(calls) == 12  # four folds of a small set
    calls.clear()
    again = choose(made, photos, 0, done=kept[:2])
    assert set(calls) == {"3"} and again.depth == "3"

    right["all"] = 4.0  # where all layers pay, less is not tried
    calls.clear()
    choice = choose(made, photos, 0)
    assert choice.depth == "all" and set(calls) == {None, "all"} and len(choice.rows) == 2
    right.update({"3": 0.5, "all": 0.5})
    assert choose(made, photos, 0).depth is None


def test_a_trial_leaves_the_model_alone():
    made, photos = candidates("features", 24)
    before = {name: array.tobytes() for name, array in made.graph.arrays().items()}
    for depth in (None, "3"):
        logits = autofreeze.try_depth(made, depth, photos, 0, 1)
        assert logits.shape == ((photos.folds == 1).sum(), 3) and np.isfinite(logits).all()
    assert {name: array.tobytes() for name, array in made.graph.arrays().items()} == before
    assert made.graph.frozen.keys() == find(small_models.SMALL).replace_head(["a", "b"]).freeze("all").graph.frozen.keys()
