"""How much to unfreeze, measured instead of guessed: --freeze auto.

In: a Model with a fresh classifier, the training photos as features and as pictures. Out: a Choice: how deep to train, the table that led
to it, what it means in sentences, and a learning curve. Nothing here ever sees a validation photo. Three questions:

    do the features tell these classes apart?        a linear classifier on them against one on thumbnails of 8x8 pixels: a backbone that
                                                     is hardly better than those transfers badly
    would more photos help?                          the same classifier on a quarter, a half and all of the photos
    does unfreezing pay?                             short trainings, measured on photos held out of them: what answers no fewer of
                                                     these rightly is chosen, and the table says what may be chance

Choosing what looks as good or better, be it by chance, is right here: a trial has fewer epochs than the final training, which starts
from the trained classifier and is kept only if it does better on the validation photos. So a wrong guess costs time, and no accuracy.
Where the classifier alone is all but perfect, or too few photos can be held out to say anything, nothing more is tried.

The linear classifier of the first two is regularised least squares: exact, and a matter of milliseconds. Left out: the final training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import training
from .augment import Augmentation
from .features import Features
from .folders import groups_alike
from .layers import Array
from .model import Model
from .phases import DEEP, HEAD, NOTHING, deep_settings, head_mask, head_settings
from .pictures import Pictures, Views
from .training import one_hot

DEPTHS = ("all", "3")
"""What is tried: the whole network; and the last blocks, where that did not beat the classifier alone. (Monkeys: 93.0 % and 91.5, person:
83.3 and 78.1, with MobileNetV1 0.25 at 128: where all layers pay, the last blocks alone pay less.)"""

EPOCHS, MOST_EPOCHS, STEPS = 6, 12, 100
"""Passes of a trial over its photos: as many as make so many steps, between these. With half as many, all layers of the person photos
ended 8 points below where they end when they are given time."""

ENOUGH = 150
"""Held-out photos: with so many, one fold is enough; with fewer, up to FOLDS take turns."""
FOLDS = 4
TOO_FEW = 20

ALL_BUT_PERFECT = 0.98
"""Share of right answers of the classifier alone from which on nothing is left to gain."""

MOST = 2000
"""Photos that take part; more would cost time and change little."""

WORK = 2e13
"""Multiply-accumulates of one trial, about five minutes of one core: of a network that needs more, fewer photos take part."""


@dataclass
class Choice:
    """depth: for Model.unfreeze, None: the classifier alone. rows, learning: as in report.json. sentences: what they mean."""

    depth: str | None
    rows: list[dict[str, Any]]
    sentences: list[str]
    learning: list[dict[str, Any]] = field(default_factory=list)


# ---- a linear classifier in closed form


def least_squares(x: Array, y: Array, tested: Array) -> Array:
    """Scores (M, classes) of the rows `tested` by ridge regression on rows x (N, F) with targets y (N, classes).

    The strength of the regularisation is the one with the least leave-one-out error on x, which has a closed form (Hastie, Tibshirani and
    Friedman 2009, section 7.10), among seven powers of ten around the mean squared length of a row.
    """
    mean, target = x.mean(axis=0), y.mean(axis=0)
    centred, wanted = (x - mean).astype(np.float64), (y - target).astype(np.float64)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    projected, best, scores = u.T @ wanted, math.inf, np.zeros((len(tested), y.shape[1]))
    length = max(float((s**2).sum() / len(x)), 1e-12)
    for strength in length * 10.0 ** np.arange(-4, 3):
        shrink = s**2 / (s**2 + strength)
        leverage = 1 / len(x) + (u**2 @ shrink)
        residual = (wanted - u @ (shrink[:, None] * projected)) / np.maximum(1 - leverage, 1e-6)[:, None]
        error = float(np.square(residual).sum())
        if error < best:
            weights = vt.T @ ((s / (s**2 + strength))[:, None] * projected)
            best, scores = error, (tested - mean) @ weights + target
    return scores


def accuracy_of(x: Array, labels: Array, folds: Array, share: float = 1.0) -> tuple[float, float, float]:
    """(accuracy, its standard error, photos per class) of a linear classifier on held-out folds; share: of the other folds' photos."""
    classes = int(labels.max()) + 1
    right = []
    used = 0
    for fold in np.unique(folds):
        rest = np.flatnonzero(folds != fold)
        chosen = np.concatenate(
            [of[: max(round(share * len(of)), 1)] for of in (rest[labels[rest] == c] for c in range(classes)) if len(of)]
        )
        used = len(chosen)
        right.append(least_squares(x[chosen], one_hot(labels[chosen], classes), x[folds == fold]).argmax(axis=1) == labels[folds == fold])
    every = np.concatenate(right)
    return float(every.mean()), accuracy_error(every), used / classes


def accuracy_error(right: Array) -> float:
    """Standard error of a share, as if one more answer had been right and one more wrong: it is not 0 where all are right."""
    share = (right.sum() + 1) / (len(right) + 2)
    return math.sqrt(share * (1 - share) / (len(right) + 2))


def divide(labels: Array, digests: Sequence[str], looks: Sequence[int]) -> Array:
    """(N,) fold 0..FOLDS-1 of every photo: by content, every class in all folds alike, copies in one; the last are empty for few photos."""
    folds = np.zeros(len(labels), np.int64)
    groups = np.array(groups_alike(looks))
    counts: dict[int, list[int]] = {}
    members_of: dict[int, list[int]] = {}
    for i in sorted(range(len(labels)), key=lambda i: digests[i]):
        members_of.setdefault(int(groups[i]), []).append(i)
    for members in members_of.values():
        of_class = counts.setdefault(int(labels[members[0]]), [0] * FOLDS)
        fold = int(np.argmin(of_class))
        of_class[fold] += len(members)
        folds[members] = fold
    return folds


# ---- trials


@dataclass
class Candidates:
    """The photos that take part: features for the classifier, the same photos as pictures, label and fold of each."""

    features: Features
    pictures: Pictures
    labels: Array
    folds: Array


def some_of(labels: Array, digests: Sequence[str], macs: int) -> Array:
    """Indices of the photos that take part: all, or as many of each class as the work allows, chosen by content."""
    most = min(MOST, max(int(WORK / (3 * EPOCHS * max(macs, 1))), 20 * (int(labels.max()) + 1)))
    if len(labels) <= most:
        return np.arange(len(labels))
    order = sorted(range(len(labels)), key=lambda i: digests[i])
    place = {i: rank for c in np.unique(labels) for rank, i in enumerate(j for j in order if labels[j] == c)}
    share = {c: most * np.count_nonzero(labels == c) / len(labels) for c in np.unique(labels)}
    return np.array([i for i in range(len(labels)) if place[i] < max(share[labels[i]], 2)])


def epochs_of(photos: int, batch: int) -> int:
    """Passes of a trial over so many photos."""
    return min(max(math.ceil(STEPS * batch / photos), EPOCHS), MOST_EPOCHS)


def try_depth(model: Model, depth: str | None, photos: Candidates, seed: int, fold: int) -> Array:
    """Logits (M, classes) of the photos of a fold, by a network trained on the others."""
    trial = Model(model.content())
    graph, inside = trial.graph, np.flatnonzero(photos.folds != fold)
    outside = np.flatnonzero(photos.folds == fold)
    graph.frozen = head_mask(trial, {})
    x, held_out = photos.features.take(inside), photos.features.take(outside)
    labels = (photos.labels[inside], photos.labels[outside])
    training.fit(graph, x, labels[0], held_out, labels[1], head_settings(replace(HEAD, seed=seed), x))
    if depth is None:
        return training.predict(graph, held_out)
    trial.unfreeze(depth)
    epochs = epochs_of(len(inside), DEEP.batch)
    settings = replace(deep_settings(trial), epochs=epochs, patience=epochs, warmup=0.5, seed=seed)
    views = Views(photos.pictures, trial.recipe, Augmentation.parse("default"), graph, seed, inside)
    still = Views(photos.pictures, trial.recipe, NOTHING, graph, seed, outside)
    training.fit(graph, views, labels[0], still, labels[1], settings)
    return training.predict(graph, still)


Trial = dict[str, Any]
"""What is remembered of a trial: depth, accuracy, its standard error, photos, seconds."""


def choose(
    model: Model, photos: Candidates, seed: int, done: Sequence[Trial] = (), keep: Callable[[Trial], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Choice:  # fmt: skip
    """Measure, and decide. done, keep: trials of a run that was stopped, and what is called after each. say: hears the table grow."""
    labels, folds = photos.labels, photos.folds
    wanted = np.unique(folds)[: max(1, math.ceil(ENOUGH * FOLDS / len(labels)))]  # few photos may leave some without any
    if len(np.unique(folds)) < 2 or np.isin(folds, wanted).sum() < TOO_FEW:
        return Choice(None, [], ["too few different photos to measure whether unfreezing pays: the classifier alone"])
    per_class = len(labels) / len(np.unique(labels))
    learning, sentences = judge_features(photos)
    trials: dict[str | None, Trial] = {trial["depth"]: trial for trial in done}
    for depth in (None, *DEPTHS):
        if deeper(trials) is not None or (depth and trials[None]["accuracy"] >= ALL_BUT_PERFECT):
            break
        if depth not in trials:
            started = time.monotonic()
            logits = np.concatenate([try_depth(model, depth, photos, seed, fold) for fold in wanted])
            true = np.concatenate([labels[folds == fold] for fold in wanted])
            every = logits.argmax(axis=1) == true
            trials[depth] = {
                "depth": depth, "accuracy": float(every.mean()), "error": accuracy_error(every), "photos": len(every),
                "seconds": round(time.monotonic() - started, 1),
            }  # fmt: skip
            if keep:
                keep(trials[depth])
        trial = trials[depth]
        say(
            f"{describe(depth)}: {figure(trial['accuracy'], trial['error'])} of {trial['photos']} photos held out, {trial['seconds']:.0f} s"
        )
    head = trials[None]
    depth = deeper(trials)
    gain, alone = trials[depth]["accuracy"] - head["accuracy"], figure(head["accuracy"], head["error"])
    if len(trials) == 1:
        sentences.append(f"the classifier alone answers {alone} of photos held out rightly: little is left to gain by more")
    elif depth is None:
        sentences.append(f"nothing does as well on photos held out as the classifier alone, {alone}: more stays frozen")
    else:
        now = figure(trials[depth]["accuracy"], trials[depth]["error"])
        pays = gain > math.hypot(head["error"], trials[depth]["error"])
        verdict = "unfreezing pays" if pays else "unfreezing may pay; it is kept only if it does better on the validation photos"
        sentences.append(f"{describe(depth)}: {now} of photos held out, {alone} with the classifier alone: {verdict}")
    if len(learning) > 1:
        more = learning[-1]["accuracy"] - learning[-2]["accuracy"]
        error = math.hypot(learning[-1]["error"], learning[-2]["error"]) / 2  # the same photos are asked: far less than independent
        if more > error and more > max(gain, 0.0):
            sentences.append(
                f"the last doubling of the photos gained {100 * more:.1f} points for a linear classifier: twice as many photos, "
                f"{2 * per_class:.0f} a class, would help more than unfreezing does"
            )
    rows = [
        {"what": describe(trial["depth"]), "chosen": trial["depth"] == depth}
        | {name: trial[name] for name in ("accuracy", "error", "photos", "seconds")}
        for trial in trials.values()
    ]
    return Choice(depth, rows, sentences, learning)


def deeper(trials: dict[str | None, Trial]) -> str | None:
    """The depth whose trial answered no fewer photos rightly than the classifier alone, None if there is none."""
    return next((depth for depth in trials if depth is not None and trials[depth]["accuracy"] >= trials[None]["accuracy"]), None)


def judge_features(photos: Candidates) -> tuple[list[dict[str, Any]], list[str]]:
    """The learning curve of the features, and a sentence where they are hardly better than thumbnails."""
    x, labels, folds = photos.features.values(), photos.labels, photos.folds
    shares = [share for share in (0.25, 0.5, 1.0) if share * len(labels) >= 3 * len(np.unique(labels))] or [1.0]
    points = [accuracy_of(x, labels, folds, share) for share in shares]
    curve = [{"photos_per_class": round(per_class, 1), "accuracy": a, "error": error} for a, error, per_class in points]
    accuracy, error, _ = points[-1]
    small, small_error, _ = accuracy_of(thumbnails(photos.pictures.pixels), labels, folds)
    if accuracy - small < 0.2 * (1 - small):  # of the errors that thumbnails make, features have to spare a fifth
        said = (
            f"this backbone transfers badly: a linear classifier reaches {figure(accuracy, error)} on its features and "
            f"{figure(small, small_error)} on thumbnails of 8x8 pixels; try another backbone"
        )
        return curve, [said]
    return curve, []


def thumbnails(pixels: Array) -> Array:
    """(N, S, T, 3) uint8 -> (N, 192) float32: every photo as 8x8 pixels, 0..1."""
    n, s, t, _ = pixels.shape
    rows, columns = np.arange(8) * s // 8, np.arange(8) * t // 8
    sums = np.empty((n, 8, 8, 3), np.float32)
    for i in range(n):
        sums[i] = np.add.reduceat(np.add.reduceat(pixels[i].astype(np.float32), rows, axis=0), columns, axis=1)
    return sums.reshape(n, -1) / np.float32(255 * s * t / 64)


def describe(depth: str | None) -> str:
    """A depth in words."""
    return "the classifier alone" if depth is None else "all layers" if depth == "all" else f"the last {depth} blocks"


def figure(share: float, error: float) -> str:
    """'86.1 ± 2.0 %'."""
    return f"{100 * share:.1f} ± {100 * error:.1f} %"
