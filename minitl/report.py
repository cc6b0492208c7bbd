"""Pictures for people: how training went, what is confused with what, and the worst mistakes, on one page.

Enters: the report, a plain dict that is also written to report.json (keys below), and a function that opens a photo for its
thumbnail. Leaves: a PNG drawn with Pillow and its built-in font; the same report gives the same bytes. Left out: interaction.

The report:
    classes: list of names. best_epoch: number of the epoch that was kept, as in history.
    history: list of {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}; accuracies 0..1; None where not measured.
    val: {"count", "float": {"accuracy", "confusion"}, "int8": the same or None}; confusion: one row per true class.
    mistakes: list of {"file", "true", "predicted", "probability"}, worst first, from worst_mistakes().
    skipped: list of {"file", "reason"}. facts: {what: value}, shown as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(true: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """(n, n) int64: how often class `row` was answered with class `column`. true, predicted: (N,) labels 0..n-1."""
    matrix = np.zeros((n, n), np.int64)
    np.add.at(matrix, (np.asarray(true, np.int64), np.asarray(predicted, np.int64)), 1)
    return matrix


def worst_mistakes(
    files: Sequence[str], true: Sequence[int] | np.ndarray, probabilities: np.ndarray, classes: Sequence[str], limit: int = 1000
) -> list[dict[str, Any]]:
    """The wrong answers, the surest first; ties by file name. probabilities: (N, classes), each row adds up to 1."""
    answers = probabilities.argmax(axis=1)
    wrong = [i for i, (t, a) in enumerate(zip(true, answers, strict=True)) if t != a]
    wrong.sort(key=lambda i: (-probabilities[i, answers[i]], files[i]))
    return [
        {
            "file": files[i],
            "true": classes[int(true[i])],
            "predicted": classes[int(answers[i])],
            "probability": round(float(probabilities[i, answers[i]]), 4),
        }
        for i in wrong[:limit]
    ]
