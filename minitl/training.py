"""Training: a loss, steps that move unfrozen parameters only, epochs, and early stopping that keeps the best.

In: a Graph with its freeze mask, a source of batches with labels for training and one for validation, Settings. Out: the same Graph with
the parameters of its best epoch, and a history. The same seed gives the same numbers, also when a run is stopped after any step and
continued from its State.

Frozen means frozen: gradient, momentum, weight decay and BatchNorm statistics never see a frozen layer, nor the frozen channels of a
partly frozen one. Left out: reading and changing photos (features.py, augment.py), how parameters move (optimisers.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from . import kernels_fast, quick, reference
from .engine import Values
from .errors import MinitlError
from .graph import Graph
from .images import photos_ahead
from .layers import Array, Conv2D, Params
from .optimisers import SGD, AdamW, Average, Optimiser, schedule

OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Settings:
    """How to train.

    epochs: at most so many passes over the photos. batch: photos per step. rate: highest learning rate, reached after `warmup` epochs;
    from there it falls to zero along half a cosine. optimiser: 'sgd' (momentum: Nesterov's) or 'adamw'. decay: weight decay of kernels.
    patience: stop after so many epochs without a lower validation loss. seed: order of the photos, first weights, dropout, mixup.
    smoothing: share of the target that all classes get alike (Szegedy et al. 2016, arXiv:1512.00567). mixup: parameter of the Beta
    distribution that photos and targets are mixed by, two and two (Zhang et al. 2018, arXiv:1710.09412). average: what a moving average of
    the weights keeps in a step; the average is what is validated and kept. balance: photos of rare classes count more, so that all
    classes count alike. layer_decay: factor of the rate from one block to the one below it.
    """

    epochs: int = 100
    batch: int = 32
    rate: float = 0.05
    momentum: float = 0.9
    decay: float = 1e-4
    patience: int = 20
    seed: int = 0
    optimiser: str = "sgd"
    warmup: float = 0.0
    smoothing: float = 0.0
    mixup: float = 0.0
    average: float = 0.0
    balance: bool = False
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        lows = {"epochs": 1, "batch": 1, "patience": 1, "layer_decay": 0.01}
        highs = {"momentum": 0.999, "rate": 1000, "decay": 10, "seed": 2**32 - 1, "warmup": self.epochs, "smoothing": 0.9, "mixup": 10,
                 "average": 0.99999, "layer_decay": 1}  # fmt: skip
        for name, value in asdict(self).items():
            if name == "optimiser":
                if value not in OPTIMISERS:
                    raise MinitlError(f"optimiser must be one of {', '.join(OPTIMISERS)}, found {value!r}")
                continue
            low, high = lows.get(name, 0), highs.get(name, 10**9)
            whole = name in ("epochs", "batch", "patience", "seed")
            if not (isinstance(value, int if whole else (int, float)) and low <= value <= high):
                raise MinitlError(f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}, found {value!r}")


class Source(Protocol):
    """Photos as a network's values; features.Features is one."""

    @property
    def ahead(self) -> int:
        """How many batches to prepare in the background: 0 unless the source is slow."""

    def __len__(self) -> int:
        """How many photos."""

    def feeds(self, indices: Any, epoch: int = 0) -> dict[str, Array]:
        """{node: (n, *shape) float32} of the chosen photos: what Graph.forward starts from. epoch: what augmentation depends on."""


Teacher = Callable[[Array, int], Array]
"""(numbers of photos, epoch) -> (n, classes) float32: the shares of the classes to learn instead of labels (Hinton et al. 2015,
arXiv:1503.02531)."""


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
    """What happened: all epochs, and which one was kept (counted from 1; 0: the state before the first). diverged: where it ended early
    since the loss was no longer a number."""

    epochs: list[Epoch]
    best: int = 0
    diverged: bool = False


@dataclass
class State:
    """Where a training stands after a step: with what fit() was given, all that is needed to go on to the very same end.

    step: steps done in `epoch`; order: of the photos in it; loss, correct: sums over its photos so far; random: state of the generator.
    """

    optimiser: Optimiser
    random: np.random.Generator
    best_loss: float
    best_params: dict[str, Params]
    average: Average | None = None
    epoch: int = 1
    step: int = 0
    order: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    loss: float = 0.0
    correct: int = 0
    history: History = field(default_factory=lambda: History([]))


def one_hot(labels: Array, classes: int, dtype: Any = np.float32) -> Array:
    """(N,) integers -> (N, classes) of 0 and 1."""
    return np.eye(classes, dtype=dtype)[labels]


def class_weights(labels: Array, classes: int) -> Array:
    """(classes,) float32: what a photo of each class counts so that all classes count alike; 1 on average over the photos."""
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (np.maximum(counts, 1) * max(np.count_nonzero(counts), 1))).astype(np.float32)


def train_step(
    graph: Graph,
    feeds: dict[str, Array],
    targets: Array,
    optimiser: Optimiser,
    rate: float,
    rng: Any,
    ops: ModuleType = kernels_fast,
    weights: Array | None = None,
) -> tuple[Array, Array]:
    """Forward, backward, update: one step on one batch. weights: (N,) what each photo counts, 1 where None.

    Returns logits (N, classes) and losses (N,), both from before the update. Nothing moves where a loss is not a number.
    """
    logits, tape = graph.forward(feeds, rng, ops)
    losses, dlogits = ops.softmax_cross_entropy(logits, targets)
    if not np.isfinite(losses).all():
        return logits, losses
    if weights is not None:
        dlogits = dlogits * weights[:, None]
    graph.update_statistics(tape)
    optimiser.step(graph.backward(dlogits, tape, ops), rate)
    return logits, losses


def mixed(feeds: dict[str, Array], targets: Array, strength: float, rng: Any) -> tuple[dict[str, Array], Array]:
    """Every photo and its target, mixed with another of the batch (mixup)."""
    share = rng.beta(strength, strength)
    other = rng.permutation(len(targets))

    def mix(x: Array) -> Array:
        return x * x.dtype.type(share) + x[other] * x.dtype.type(1 - share)

    return {name: mix(x) for name, x in feeds.items()}, mix(targets)


def predict(graph: Graph, source: Source, batch: int = 64) -> Array:
    """Logits (N, classes) float32 of all photos; by fast kernels for the classifier alone; by the engine where convolutions
    are left to do, and one value to start them from."""
    if (answers := quick.answers(graph, source)) is not None:
        return answers
    start, *others = source.feeds(slice(0, 1))
    engine = None
    if not others and any(isinstance(node.layer, Conv2D) for node in graph.ancestors({graph.output}, {start})):
        engine = Values(graph, start=start)
    found = []
    for i in range(0, len(source), batch):
        feeds = source.feeds(slice(i, i + batch))
        found.append((engine.run(feeds[start]) if engine else graph.evaluate(feeds))[graph.output])
    return np.concatenate(found)


def loss_and_accuracy(logits: Array, labels: Array) -> tuple[float, float]:
    """Mean cross-entropy in nats, share of correct answers."""
    losses, _ = reference.softmax_cross_entropy(logits, one_hot(labels, logits.shape[1]))
    return float(losses.mean()), float((logits.argmax(axis=1) == labels).mean())


def check_trainable(graph: Graph) -> None:
    """MinitlError where the freeze mask leaves nothing to train."""
    if not graph.trainable():
        raise MinitlError("every layer is frozen: nothing can be trained; unfreeze at least the classifier")


def begin(graph: Graph, settings: Settings, baseline: float, factors: Mapping[str, float] | None) -> State:
    """The state before the first step."""
    if settings.optimiser == "adamw":
        optimiser: Optimiser = AdamW(graph, settings.decay, factors)
    else:
        optimiser = SGD(graph, settings.momentum, settings.decay, factors)
    average = Average(graph, settings.average) if settings.average else None
    return State(optimiser, np.random.default_rng(settings.seed), baseline, snapshot(graph), average)


def fit(
    graph: Graph,
    train: Source,
    train_labels: Array,
    val: Source,
    val_labels: Array,
    settings: Settings,
    report: Callable[[Epoch, float], None] | None = None,
    baseline: float = math.inf,
    factors: Mapping[str, float] | None = None,
    state: State | None = None,
    keep: Callable[[State], None] | None = None,
    teacher: Teacher | None = None,
) -> History:
    """Train what is not frozen; afterwards the graph holds the parameters of the epoch with the lowest validation loss.

    baseline: a validation loss that an epoch must beat; if none does, the graph is left as it was, and `best` is 0.
    report(epoch, seconds left at most) is called after every epoch. factors: {node: share of the rate}, 1 where absent.
    state: of a run that was stopped, with the graph's parameters of then. keep(state) is called after every step, to save it now and then.
    teacher: what to learn in the place of the training labels.
    Where the loss is no longer a number, the best epoch so far is kept; MinitlError where there is none, or where nothing can be trained.
    """
    check_trainable(graph)
    batches = math.ceil(len(train) / settings.batch)
    at = state or begin(graph, settings, baseline, factors)
    walk = _walk(graph, train, train_labels, settings, at.optimiser, batches, teacher)
    rng, history, started, first = at.random, at.history, time.monotonic(), at.epoch - 1 + at.step / batches
    while at.epoch <= settings.epochs and not _finished(at, settings):
        if at.step == 0:
            at.order, at.loss, at.correct = rng.permutation(len(train)), 0.0, 0
        epoch = at.epoch
        for steps, loss, correct in walk(at, np.array_split(at.order, batches)[at.step :]):
            at.step += steps
            at.loss += loss
            at.correct += correct
            if not math.isfinite(at.loss):
                break
            if at.step < batches and keep:
                keep(at)
        trained = graph.params
        if at.average:
            graph.params = trained | {node: dict(params) for node, params in at.average.params.items()}
        line = Epoch(epoch, at.loss / len(train), at.correct / len(train), *loss_and_accuracy(predict(graph, val), val_labels))
        if not (math.isfinite(line.train_loss) and math.isfinite(line.val_loss)):
            history.diverged = True
            break
        history.epochs.append(line)
        if line.val_loss < at.best_loss:
            at.best_loss, at.best_params, history.best = line.val_loss, snapshot(graph), epoch
        graph.params = trained
        at.epoch, at.step = epoch + 1, 0
        if report:
            report(line, (time.monotonic() - started) / (epoch - first) * (settings.epochs - epoch))
        if keep:
            keep(at)
    kernels_fast.let_go()
    graph.params = at.best_params
    if history.diverged and not history.best and baseline == math.inf:
        raise MinitlError(f"the loss is no longer a number in epoch {at.epoch}: use a smaller learning rate than {settings.rate:g}")
    return history


Walk = Callable[[State, list[Array]], Iterator[tuple[int, float, int]]]
"""Makes a step for each of some batches (numbers of photos); gives (steps, sum of their losses, right answers), now and then."""


def _walk(
    graph: Graph, train: Source, labels: Array, settings: Settings, optimiser: Optimiser, batches: int, teacher: Teacher | None
) -> Walk:
    """What one epoch does; `batches`: how many steps it has."""
    classes = graph.shapes[graph.output][0]
    targets = one_hot(labels, classes)
    counts = class_weights(labels, classes) if settings.balance else None

    def rate(epoch: int, step: int) -> float:
        done, one = (epoch - 1 + step / batches) / settings.epochs, 1 / (batches * settings.epochs)
        return settings.rate * schedule(done, settings.warmup / settings.epochs, one)

    def weighed(wanted: Array) -> tuple[Array, Array | None]:
        """Targets as the loss takes them, and what each photo counts."""
        weights = None
        if counts is not None:  # a mixed photo counts for each of its two classes by itself
            wanted = wanted * counts
            weights = wanted.sum(axis=1)
            wanted = wanted / weights[:, None]
        if settings.smoothing:
            wanted = wanted * np.float32(1 - settings.smoothing) + np.float32(settings.smoothing / classes)
        return wanted, weights

    def walk(at: State, todo: list[Array]) -> Iterator[tuple[int, float, int]]:
        for chosen, feeds in _batches(train, todo, at.epoch):
            wanted = teacher(chosen, at.epoch) if teacher else targets[chosen]
            if settings.mixup:
                feeds, wanted = mixed(feeds, wanted, settings.mixup, at.random)
            wanted, weights = weighed(wanted)
            logits, losses = train_step(graph, feeds, wanted, optimiser, rate(at.epoch, at.step), at.random, weights=weights)
            if at.average:
                at.average.step()
            yield 1, float(losses.sum()), int((logits.argmax(axis=1) == wanted.argmax(axis=1)).sum())

    head = None if settings.mixup or settings.average or teacher else quick.of(graph, optimiser, train, *weighed(targets))

    def walk_quickly(at: State, todo: list[Array]) -> Iterator[tuple[int, float, int]]:
        assert head
        some = head.at_once(settings.batch)
        for i in range(0, len(todo), some):
            batches_now = todo[i : i + some]
            steps, losses, correct = head.run(batches_now, [rate(at.epoch, at.step + j) for j in range(len(batches_now))])
            yield steps, sum(float(part.sum()) for part in losses), correct

    return walk_quickly if head else walk


def _batches(source: Source, todo: Iterable[Array], epoch: int) -> Iterator[tuple[Array, dict[str, Array]]]:
    """(indices, feeds) of every batch."""
    if source.ahead:
        return photos_ahead(lambda chosen: source.feeds(chosen, epoch), todo, 1, source.ahead)
    return ((chosen, source.feeds(chosen, epoch)) for chosen in todo)


def _finished(at: State, settings: Settings) -> bool:
    return at.step == 0 and at.epoch - 1 - at.history.best >= settings.patience


def snapshot(graph: Graph) -> dict[str, Params]:
    """The parameters of now. A copy of references is enough: steps replace arrays and never change them."""
    return {node: dict(params) for node, params in graph.params.items()}
