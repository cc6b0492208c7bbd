"""A third answer, "neither", for photos that show none of the classes.

In: features of photos (what the classifier reads), with labels. Out: a Neither (directions and thresholds, which travel with the model),
what it costs and gains (report), and its arithmetic, for floats, and for integers exactly as a C header does it (Rule).

    likeness = max over the classes c of (f . w_c)^2 / |f|^2        and 0 where no f . w_c is above 0

f: features of the photo; w_c: direction of class c, the mean of its photos' features at length 1 (as Qi et al. 2018, arXiv:1712.07136,
use it to classify), in whole numbers up to 127. So it is the square of a cosine, and a photo below the threshold is neither. The
threshold is the one that keeps a chosen share of the validation photos.

Why not a score of the logits, such as the energy log sum exp (Liu et al. 2020, arXiv:2010.03759)? Measured with MobileNetV1 0.25 at 128,
95 % of the validation photos kept; AUROC, and share of unknown photos rejected:

    known, unknown                energy          largest probability   Mahalanobis      cosine
    monkeys, one of the ten kinds 80.0 %, 21 %    79.4 %, 22 %          75.5 %, 27 %     73.7 %, 20 %
    monkeys, fruit                78.5 %, 41 %    74.7 %, 31 %          100 %, 100 %     100 %, 100 %
    monkeys, people and rooms     91.2 %, 48 %    87.5 %, 35 %          98.7 %, 94 %     99.9 %, 100 %
    monkeys, ImageNet             82.9 %, 30 %    81.6 %, 25 %          98.9 %, 95 %     99.2 %, 96 %
    fruit, ImageNet               84.6 %, 5 %     98.1 %, 88 %          99.5 %, 91 %     99.7 %, 97 %

The largest logit does as the energy. With V2 1.0 at 224 the cosine is the best for a monkey left out, too (93.5 %, energy 92.8 %). The
Mahalanobis distance (Lee et al. 2018, arXiv:1807.03888) needs C * C numbers, the cosine as many bytes as the classifier (2,560, 1.1 % of
the header). The int8 network decides as the float one for 578 of 579 photos. What the cosine does not find is wrong answers: of those on
monkeys it rejects 10 %. And it dislikes bad pictures of known things: strong blur rejects 24 % of the monkeys (energy 18 %), strong JPEG
41 % (24 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import MinitlError
from .layers import Array

MEASURE = "cosine"
LARGEST = 127
SHARES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8)
"""Kept shares of the validation photos that a trade-off lists."""


@dataclass(frozen=True, eq=False)
class Neither:
    """directions: (classes, C) int8. threshold, threshold_int8: likeness below which a photo is neither, for the float network and for
    the int8 one. kept: share of the validation photos that it was chosen to keep."""

    directions: Array
    threshold: int
    threshold_int8: int
    kept: float

    def facts(self) -> dict[str, Any]:
        """All but the directions, as plain JSON values."""
        return {"measure": MEASURE, "threshold": self.threshold, "threshold_int8": self.threshold_int8, "kept": self.kept}

    def rule(self, kept: Array | None = None, constants: Array | None = None) -> Rule:
        """What the int8 network computes. kept: its channels of the features; constants: values (C - kept,) of the others."""
        if kept is None or constants is None:
            return Rule(self.directions, self.threshold_int8, np.zeros(len(self.directions), np.int64), 0)
        values, gone = constants.astype(np.int64), np.delete(self.directions, kept, axis=1).astype(np.int64)
        return Rule(self.directions[:, kept], self.threshold_int8, gone @ values, int(values @ values))


@dataclass(frozen=True, eq=False)
class Rule:
    """The same for the channels that a network has left: start (classes,) int64 and length are what the others would add."""

    directions: Array
    threshold: int
    start: Array
    length: int

    def is_neither(self, features: Array) -> Array:
        """Features (N, C) without their zero point, float or int -> (N,) bool."""
        best, length = _parts(features, self.directions, self.start, self.length)
        return (best == 0) | (best * best < self.threshold * length)


def read(facts: Any, directions: Array | None, shape: tuple[int, int]) -> Neither:
    """The inverse of facts(), for a file that may be hostile; shape: (classes, C) of the network. Raises ValueError."""
    most = LARGEST**2 * shape[1]

    def whole(name: str) -> int:
        value = facts[name]
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name} must be a whole number from 0 to {most}")
        return value

    if not isinstance(facts, dict) or set(facts) != {"measure", "threshold", "threshold_int8", "kept"} or facts["measure"] != MEASURE:
        raise ValueError(f"expected measure {MEASURE!r}, threshold, threshold_int8 and kept")
    if type(facts["kept"]) not in (int, float) or not 0 <= facts["kept"] <= 1:
        raise ValueError("kept must be a share between 0 and 1")
    if directions is None or directions.shape != shape or not np.isin(directions, np.arange(-LARGEST, LARGEST + 1)).all():
        raise ValueError(f"its directions must be whole numbers of shape {shape}")
    return Neither(directions.astype(np.int8), whole("threshold"), whole("threshold_int8"), float(facts["kept"]))


def word(classes: Sequence[str]) -> str:
    """What the third answer is called: 'neither', or other words where a class has that name."""
    taken = {name.casefold() for name in classes}
    return next((name for name in ("neither", "none of these") if name not in taken), "no known class")


# ---- the measure


def class_means(features: Array, labels: Array, classes: int) -> Array:
    """Features (N, C) and labels (N,) -> (classes, C) float64: means of the features at length 1, at length 1 again.

    Raises MinitlError where a class has no photo, or all features of its photos are 0.
    """
    f = features.astype(np.float64)
    f = f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-30)
    sums = np.zeros((classes, f.shape[1]))
    np.add.at(sums, labels, f)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if (empty := np.flatnonzero(lengths == 0)).size:
        raise MinitlError(f"class number {empty[0]} has no photo with features other than 0: give at least one photo of every class")
    means: Array = sums / lengths
    return means


def directions(features: Array, labels: Array, classes: int) -> Array:
    """class_means in whole numbers, int8 (classes, C), the largest of all being 127."""
    means = class_means(features, labels, classes)
    return np.rint(means * (LARGEST / np.abs(means).max())).astype(np.int8)


def _parts(features: Array, rows: Array, start: Array | int = 0, length: int = 0) -> tuple[Array, Array]:
    """(N,) the largest f . w_c, at least 0, and |f|^2; exact in int64 for integers."""
    f = features.astype(np.int64 if np.issubdtype(features.dtype, np.integer) else np.float64)
    return np.maximum((f @ rows.astype(f.dtype).T + start).max(axis=1), 0), (f * f).sum(axis=1) + length


def likeness(features: Array, rows: Array) -> Array:
    """Features (N, C), directions (classes, C) -> (N,) float64, see the head of this file."""
    best, length = _parts(features, rows)
    return best.astype(np.float64) ** 2 / np.maximum(length, 1e-30)


def unknown_likeness(features: Array, labels: Array, rows: Array) -> Array | None:
    """(N,): how much each photo is like the classes that it does not show, as if the model had never heard of its own one.

    What stands in for photos of unknown things where there are none. None for fewer than three classes.
    """
    if len(rows) < 3:
        return None
    result = np.zeros(len(features))
    for label in range(len(rows)):
        own = labels == label
        result[own] = likeness(features[own], np.delete(rows, label, axis=0))
    return result


# ---- choosing


def choose(rows: Array, val: Array, val_int8: Array, keep: float = 0.95) -> Neither:
    """The thresholds that keep this share of the validation photos. val, val_int8: their features (N, C) in either network.

    rows: from directions(), of the training photos. Raises MinitlError for a share that is none.
    """
    check_share(keep)
    return Neither(rows, threshold(likeness(val, rows), keep), threshold(likeness(val_int8, rows), keep), keep)


def check_share(keep: float) -> None:
    """MinitlError for a share of validation photos that is none."""
    if not 0.5 <= keep <= 1:
        raise MinitlError(f"the share of validation photos to keep must lie between 0.5 and 1, found {keep:g}")


def threshold(values: Array, keep: float) -> int:
    """The largest whole number below which at most a share 1 - keep of the values lies."""
    return math.floor(np.sort(values)[min(math.floor(len(values) * (1 - keep) + 1e-9), len(values) - 1)])


def report(chosen: Neither, values: Array, right: Array, unknown: Array | None = None, what: str = "") -> dict[str, Any]:
    """The entry 'neither' of report.json: what other thresholds would cost and gain.

    values: (N,) likeness of the validation photos by the float network; right: (N,) bool, whether its answer was. unknown: likeness of
    photos of unknown things; what: what these are, in words.
    """
    rows = []
    for share in sorted({*SHARES, chosen.kept}, reverse=True):
        limit = chosen.threshold if share == chosen.kept else threshold(values, share)
        kept = values >= limit
        rows.append(
            {
                "kept": float(kept.mean()),
                "accuracy": float(right[kept].mean()) if kept.any() else None,
                "rejected_wrong": float((~kept[~right]).mean()) if not right.all() else None,
                "rejected_unknown": None if unknown is None else float((unknown < limit).mean()),
                "chosen": share == chosen.kept,
            }
        )
    longest = math.sqrt(np.square(chosen.directions.astype(np.int64)).sum(axis=1).max())
    return {"measure": MEASURE, "threshold": math.sqrt(chosen.threshold) / longest, "rows": rows, "unknown": what}
