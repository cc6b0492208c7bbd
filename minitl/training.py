"""Training: a loss, an optimiser that is handed unfrozen parameters only, epochs, and early stopping that keeps the best.

In: a Graph with its freeze mask, features (features.py) with labels for training and for validation, Settings. Out: the same Graph with
the parameters of its best epoch, and a history. The same seed gives the same numbers.

Frozen means frozen: gradient, momentum, weight decay and BatchNorm statistics never see a frozen layer, nor the frozen channels of a
partly frozen one. Left out: reading photos (features.py), augmentation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np

from . import kernels
from .errors import MinitlError
from .features import Features
from .graph import Graph
from .layers import Array, Params


@dataclass(frozen=True)
class Settings:
    """How to train.

    epochs: at most so many passes over the photos. batch: photos per step. rate: learning rate at the start; it falls to zero along
    half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983). momentum: Nesterov's. decay: weight decay (L2) of kernels.
    patience: stop after so many epochs without a lower validation loss. seed: order of the photos, first weights, dropout.
    """

    epochs: int = 100
    batch: int = 32
    rate: float = 0.05
    momentum: float = 0.9
    decay: float = 1e-4
    patience: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low = {"epochs": 1, "batch": 1, "patience": 1}.get(name, 0)
            high = {"momentum": 0.999, "rate": 1000, "decay": 10, "seed": 2**32 - 1}.get(name, 10**9)
            whole = name in ("epochs", "batch", "patience", "seed")
            if not (isinstance(value, int if whole else (int, float)) and low <= value <= high):
                raise MinitlError(f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}, found {value!r}")


@dataclass(frozen=True)
class Epoch:
    """One line of the history: mean losses in nats, accuracies in 0..1; the training figures are those seen while training."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass
class History:
    """What happened: all epochs, and which one was kept (counted from 1; 0: the state before the first)."""

    epochs: list[Epoch]
    best: int = 0


class SGD:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013) and weight decay on kernels.

    v = momentum * v + g        p = p - rate * (g + momentum * v)
    """

    def __init__(self, graph: Graph, momentum: float, decay: float) -> None:
        self.graph, self.momentum, self.decay = graph, momentum, decay
        self.velocity: dict[tuple[str, str], Array] = {}

    def step(self, grads: dict[str, Params], rate: float) -> None:
        """Move every unfrozen parameter once. New arrays replace old ones; nobody else's arrays change."""
        for node, name, mask in self.graph.trainable():
            if node not in grads:  # nothing reads it, so the loss does not depend on it
                continue
            p = self.graph.params[node][name]
            g = grads[node][name]
            if name == "kernel":
                g = g + p.dtype.type(self.decay) * p
            v = self.velocity.get((node, name), np.zeros_like(p)) * p.dtype.type(self.momentum) + g
            moved = p - p.dtype.type(rate) * (g + p.dtype.type(self.momentum) * v)
            whole = mask is True
            self.velocity[node, name] = v if whole else np.where(mask, v, 0)
            self.graph.params[node][name] = moved if whole else np.where(mask, moved, p)


def one_hot(labels: Array, classes: int, dtype: Any = np.float32) -> Array:
    """(N,) integers -> (N, classes) of 0 and 1."""
    return np.eye(classes, dtype=dtype)[labels]


def train_step(
    graph: Graph, feeds: dict[str, Array], targets: Array, optimiser: SGD, rate: float, rng: Any, ops: ModuleType = kernels
) -> Array:
    """Forward, backward, update: one step on one batch. Returns the logits (N, classes) from before the update."""
    logits, tape = graph.forward(feeds, rng, ops)
    _, dlogits = ops.softmax_cross_entropy(logits, targets)
    graph.update_statistics(tape)
    optimiser.step(graph.backward(dlogits, tape, ops), rate)
    return logits


def predict(graph: Graph, features: Features, batch: int = 64) -> Array:
    """Logits (N, classes) float32 of all rows."""
    starts = range(0, len(features), batch)
    return np.concatenate([graph.evaluate(features.feeds(slice(i, i + batch)))[graph.output] for i in starts])


def loss_and_accuracy(logits: Array, labels: Array) -> tuple[float, float]:
    """Mean cross-entropy in nats, share of correct answers."""
    losses, _ = kernels.softmax_cross_entropy(logits, one_hot(labels, logits.shape[1]))
    return float(losses.mean()), float((logits.argmax(axis=1) == labels).mean())


def check_trainable(graph: Graph) -> None:
    """MinitlError where the freeze mask leaves nothing to train."""
    if not graph.trainable():
        raise MinitlError("every layer is frozen: nothing can be trained; unfreeze at least the classifier")


def fit(
    graph: Graph,
    train: Features,
    train_labels: Array,
    val: Features,
    val_labels: Array,
    settings: Settings,
    report: Callable[[Epoch, float], None] | None = None,
    baseline: float = math.inf,
) -> History:
    """Train what is not frozen; afterwards the graph holds the parameters of the epoch with the lowest validation loss.

    baseline: a validation loss that an epoch must beat; if none does, the graph is left as it was, and `best` is 0.
    report(epoch, seconds left at most) is called after every epoch.
    Raises MinitlError where nothing can be trained, or where the loss is no longer a number.
    """
    check_trainable(graph)
    rng = np.random.default_rng(settings.seed)
    optimiser = SGD(graph, settings.momentum, settings.decay)
    targets = one_hot(train_labels, graph.shapes[graph.output][0])
    batches = math.ceil(len(train) / settings.batch)
    history, best_loss, best_params, started = History([]), baseline, _snapshot(graph), time.monotonic()
    for epoch in range(1, settings.epochs + 1):
        order = rng.permutation(len(train))
        seen = np.zeros_like(targets)
        for i, chosen in enumerate(np.array_split(order, batches)):
            done = (epoch - 1 + i / batches) / settings.epochs
            rate = settings.rate * 0.5 * (1 + math.cos(math.pi * done))
            seen[chosen] = train_step(graph, train.feeds(chosen), targets[chosen], optimiser, rate, rng)
        line = Epoch(epoch, *loss_and_accuracy(seen, train_labels), *loss_and_accuracy(predict(graph, val), val_labels))
        if not (math.isfinite(line.train_loss) and math.isfinite(line.val_loss)):
            raise MinitlError(f"the loss is no longer a number in epoch {epoch}: use a smaller learning rate than {settings.rate:g}")
        history.epochs.append(line)
        if line.val_loss < best_loss:
            best_loss, best_params, history.best = line.val_loss, _snapshot(graph), epoch
        if report:
            report(line, (time.monotonic() - started) / epoch * (settings.epochs - epoch))
        if epoch - history.best >= settings.patience:
            break
    graph.params = best_params
    return history


def _snapshot(graph: Graph) -> dict[str, Params]:
    """The parameters of now. A copy of references is enough: steps replace arrays and never change them."""
    return {node: dict(params) for node, params in graph.params.items()}
