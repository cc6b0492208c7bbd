"""From a folder of photos and a backbone to a trained model and a report: the course of a whole run.

In: a folder, a backbone (model.py), choices. Out: a Model that is trained, calibrated and measured in float and int8, and a report: the
plain dict that becomes report.json and that report.py draws. Left out: writing files and talking to the user (cli.py); `notify`
carries what is to be said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import training
from .errors import MinitlError
from .features import Extraction, Features, Progress, extract
from .files import printable
from .folders import Item, Listing, groups_alike, list_folder, split, with_validation
from .images import PhotoError, read_photos
from .kernels import softmax
from .layers import Array
from .model import CALIBRATION_PHOTOS, Deployment, Model
from .report import confusion_matrix, worst_mistakes
from .training import Epoch, History, Settings, check_trainable

HEAD = Settings(decay=3e-2)
"""For a fresh classifier on fixed features; its rate comes from HEAD_STEP, unless it is given. Four pairs were tried, (10, 1e-2),
(10, 3e-2), (5, 2e-2) and (5, 1e-1); validation accuracy in %, mean of four seeds, of this pair and of the best: monkeys with MobileNetV1
0.25 at 128 89.1 (89.4), at 224 93.2 (93.8); person with the same two 77.4 (80.3) and 78.7 (78.7), with MLPerf Tiny's detector 81.8 (82.0),
with V2 at 224 81.8 (82.7); fruit 100 with all four pairs. No pair is best everywhere, and the validation photos are few."""

HEAD_STEP = 10.0
"""Learning rate times the mean squared length of the features. The steepest slope of a softmax regression grows with that length, and
backbones differ in it by a factor of 300 (MLPerf Tiny's person detector 3, MobileNetV1 0.25 at 128 400 to 600, V2 at 224 800).
Lengths below 1 count as 1: with a larger rate the weight decay would overshoot."""

DEEP = Settings(rate=5e-4, decay=1e-4)
"""For training that changes the layers of the backbone, once the classifier has been trained: a rate so small that what they know is
not washed away."""


@dataclass
class Notify:
    """What a caller may want to hear while a run goes on; every member does nothing by default."""

    say: Callable[[str], None] = lambda line: None
    photos: Progress = lambda done, total: None
    epoch: Callable[[Epoch, float], None] = lambda line, seconds_left: None


@dataclass
class Evaluation:
    """How a model does on labelled photos. logits: (N, classes) of the photos in `items`; skipped: name and reason of the others."""

    classes: list[str]
    items: list[Item]
    labels: Array
    logits: Array
    skipped: list[dict[str, str]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0..1."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())

    def confusion(self) -> list[list[int]]:
        """Rows: the true class; columns: the answer."""
        matrix: list[list[int]] = confusion_matrix(self.labels, self.logits.argmax(axis=1), len(self.classes)).tolist()
        return matrix

    def summary(self) -> dict[str, Any]:
        """What `minitl evaluate --json` prints."""
        return {
            "accuracy": self.accuracy,
            "count": len(self.items),
            "classes": self.classes,
            "confusion": self.confusion(),
            "skipped": self.skipped,
        }


def evaluate(network: Model | Deployment, items: Sequence[Item], int8: bool = False, progress: Progress | None = None) -> Evaluation:
    """Ask the network about every photo, one at a time, as a user would. int8: a model's int8 network, exactly as a header computes.

    Raises MinitlError where no photo can be read.
    """
    chosen = network.deploy() if int8 and isinstance(network, Model) else network
    return evaluate_all([chosen], items, progress)[0]


def evaluate_all(networks: Sequence[Model | Deployment], items: Sequence[Item], progress: Progress | None = None) -> list[Evaluation]:
    """An Evaluation for each of several networks with one recipe and the same classes; the photos are read once."""
    first = networks[0]
    recipe = first.recipe if isinstance(first, Model) else first.pictures()
    kept: list[Item] = []
    skipped: list[dict[str, str]] = []
    logits: list[list[Array]] = [[] for _ in networks]
    for done, (item, (_, found)) in enumerate(zip(items, read_photos([item.path for item in items], recipe), strict=True), start=1):
        if isinstance(found, PhotoError):
            skipped.append({"file": item.name, "reason": found.reason})
        else:
            kept.append(item)
            for network, answers in zip(networks, logits, strict=True):
                answers.append(network.logits(found[None]))
        if progress:
            progress(done, len(items))
    if not kept:
        raise MinitlError(f"none of the {len(items)} photos can be read; the first: {skipped[0]['file']}: {skipped[0]['reason']}")
    labels = np.array([item.label for item in kept])
    return [Evaluation(first.classes, kept, labels, np.concatenate(answers), list(skipped)) for answers in logits]


@dataclass
class Run:
    """What a run leaves: the model, the report, and the validation photos."""

    model: Model
    report: dict[str, Any]
    val: list[Item]


def choose_photos(photos: str | Path, val: str | None) -> tuple[Listing, float]:
    """The listing of a folder, and the share to split off for validation where the folder is not divided."""
    listing = list_folder(photos)
    if val is None:
        return listing, 0.2
    try:
        fraction = float(val)
    except ValueError:
        return with_validation(listing, val), 0.0
    if not 0 < fraction < 1:
        raise MinitlError(f"--val must be a share between 0 and 1 such as 0.2, or a folder; found {val}")
    if any(item.part for item in listing.items):
        raise MinitlError(f"{printable(photos)} has its own train and val folders: leave --val out, or give the train folder alone")
    return listing, fraction


def train(
    backbone: Model,
    photos: str | Path,
    *,
    val: str | None = None,
    freeze: str = "all",
    cache: Path | None = None,
    notify: Notify | None = None,
    **settings: Any,
) -> Run:
    """Train a new classifier, and what `freeze` leaves trainable, on a folder of photos.

    photos: PHOTOS/CLASS/*, or with train and val above. val: a share as text ('0.2'), or another folder. freeze: as Model.freeze.
    The rest as in fit(). Raises MinitlError for anything wrong with the photos.
    """
    replace(HEAD, **settings)  # raises before anything is read
    listing, fraction = choose_photos(photos, val)
    model = backbone.replace_head(listing.classes, settings.get("seed", 0)).freeze(freeze)
    return fit(model, listing, fraction=fraction, cache=cache, notify=notify, **settings)


def fit(
    model: Model, listing: Listing, *, fraction: float = 0.2, cache: Path | None = None, notify: Notify | None = None, **settings: Any
) -> Run:
    """Train what is not frozen in `model`, in place, on the photos of a folder; calibrate int8; measure both networks.

    fraction: share of each class for validation, where the listing is not divided. cache: folder for features, None to keep none.
    settings: epochs, seed, ... of training.Settings, instead of HEAD or DEEP. Raises MinitlError for anything wrong with the photos.
    """
    notify, started = notify or Notify(), time.monotonic()
    notes: list[str] = []

    def note(line: str) -> None:
        """Something that the user should know; it stays in the report."""
        notes.append(line)
        notify.say(line)

    check_trainable(model.graph)
    if listing.classes != model.classes:
        raise MinitlError(f"the model answers {', '.join(model.classes)}, the photos show {', '.join(listing.classes)}: use replace_head")
    for line in listing.notes:
        note(line)
    head_only = model.feature_node in model.graph.frozen_prefix()
    chosen = replace(HEAD if head_only else DEEP, **settings)

    found = extract(model.graph, model.recipe, [item.path for item in listing.items], cache, notify.photos)
    if found.cache_problem:
        note(f"features are not kept: {found.cache_problem}")
    photos_done = time.monotonic()
    items = [listing.items[i] for i in found.kept]
    names = {item.path: item.name for item in listing.items}
    skipped = [{"file": s.name, "reason": s.reason} for s in listing.skipped]
    skipped += [{"file": names[path], "reason": reason} for path, reason in found.skipped]
    labels = np.array([item.label for item in items])
    in_val = divide(items, labels, found, fraction, listing.classes, note)
    check_photos(labels, in_val, listing.classes, skipped)
    train_at, val_at = np.flatnonzero(~in_val), np.flatnonzero(in_val)
    train_features, val_features = found.features.take(train_at), found.features.take(val_at)
    if head_only and "rate" not in settings:
        chosen = head_settings(chosen, train_features)
    baseline = math.inf
    if not head_only and "rate" not in settings:
        notify.say("training the classifier alone first, then all that is not frozen")
        baseline = head_first(model, [item.path for item in items], labels, train_at, val_at, replace(HEAD, **settings), cache, notify)
    history = training.fit(model.graph, train_features, labels[train_at], val_features, labels[val_at], chosen, notify.epoch, baseline)
    fit_done = time.monotonic()

    notify.say("calibrating int8 and measuring both networks on the validation photos")
    calibrate(model, [items[i] for i in train_at], [found.digests[i] for i in train_at])
    both = evaluate_all([model, model.deploy()], [items[i] for i in val_at], notify.photos)
    frozen = describe_freeze(model, head_only)
    model.note(training=describe(chosen, frozen, len(train_at), len(val_at), both[0].accuracy, both[1].accuracy))
    report = make_report(model, both, history, skipped, chosen, frozen, len(train_at))
    times = {"photos": photos_done - started, "training": fit_done - photos_done, "all": time.monotonic() - started}
    report["seconds"] = {name: round(seconds, 2) for name, seconds in times.items()}
    report["features_reused"] = found.reused
    report["notes"] = notes
    return Run(model, report, both[0].items)


def head_settings(settings: Settings, features: Features) -> Settings:
    """The settings with the rate that suits these features, see HEAD_STEP."""
    return replace(settings, rate=HEAD_STEP / max(features.mean_squared_length(), 1.0))


def head_first(
    model: Model,
    paths: Sequence[Path],
    labels: Array,
    train_at: Array,
    val_at: Array,
    settings: Settings,
    cache: Path | None,
    notify: Notify,
) -> float:
    """Train the classifier alone, in place; returns its validation loss. The mask is left as it was.

    A fresh classifier sends large and senseless gradients into the backbone, which a trained one does not (Kumar et al. 2022,
    arXiv:2202.10054).
    """
    mask = model.graph.frozen
    model.freeze("all")
    found = extract(model.graph, model.recipe, paths, cache, notify.photos)
    if len(found.kept) != len(paths):
        raise MinitlError(f"{found.skipped[0][0]} could be read at first and cannot any more: leave the photos alone while they are used")
    train_features, val_features = found.features.take(train_at), found.features.take(val_at)
    chosen = head_settings(settings, train_features)
    history = training.fit(model.graph, train_features, labels[train_at], val_features, labels[val_at], chosen, notify.epoch)
    model.graph.frozen = mask
    return history.epochs[history.best - 1].val_loss


def describe_freeze(model: Model, head_only: bool) -> str:
    """The freeze mask in a few words."""
    layers = [node for node in model.graph.nodes if node.name in model.graph.params]
    frozen = sum(model.graph.frozen.get(node.name) is True for node in layers)
    return "all but the classifier" if head_only else f"{frozen} of {len(layers)} layers" if frozen else "nothing"


def divide(
    items: Sequence[Item], labels: Array, found: Extraction, fraction: float, classes: Sequence[str], note: Callable[[str], None]
) -> Array:
    """(N,) bool: which photos validate, by the user's folders or by folders.split."""
    if any(item.part for item in items):
        in_val = np.array([item.part == "val" for item in items])
        alike = np.array(groups_alike(found.looks))
        copies = int(np.isin(alike[in_val], alike[~in_val]).sum())
        if copies:
            note(f"{copies} validation photos are copies, or nearly, of training photos: the accuracy looks better than it is")
        return in_val
    if not items:
        return np.zeros(0, bool)
    result = split(labels.tolist(), found.digests, found.looks, fraction)
    for label in result.repetitive:
        note(f"nearly all photos of {classes[label]!r} look alike: copies are on both sides, the accuracy looks better than it is")
    return result.val


def check_photos(labels: Array, in_val: Array, classes: Sequence[str], skipped: Sequence[dict[str, str]]) -> None:
    """MinitlError unless every class has a training photo and some photo is left for validation."""
    why = f" ({len(skipped)} files were skipped, such as {skipped[0]['file']}: {skipped[0]['reason']})" if skipped else ""
    for label, name in enumerate(classes):
        if not np.any(labels[~in_val] == label):
            raise MinitlError(f"class {name!r} has no photo to train on{why}; add photos of it, or move its folder away")
    if not in_val.any():
        raise MinitlError(f"there is no photo for validation{why}; add photos: every class needs two that differ")


def calibrate(model: Model, items: Sequence[Item], digests: Sequence[str]) -> None:
    """Calibrate int8 on training photos, chosen by their content so that the same photos give the same header."""
    chosen = [items[i].path for i in sorted(range(len(items)), key=lambda i: digests[i])[:CALIBRATION_PHOTOS]]
    model.calibrate(found for _, found in read_photos(chosen, model.recipe) if not isinstance(found, PhotoError))


def describe(settings: Settings, freeze: str, n_train: int, n_val: int, accuracy: float, accuracy_int8: float) -> dict[str, Any]:
    """What the model file remembers of its training; nothing that differs from one run to the same run."""
    return {
        "photos": {"train": n_train, "val": n_val},
        "val_accuracy": {"float": round(accuracy, 4), "int8": round(accuracy_int8, 4)},
        "freeze": freeze,
        "settings": asdict(settings),
    }


def make_report(
    model: Model,
    both: Sequence[Evaluation],
    history: History,
    skipped: list[dict[str, str]],
    settings: Settings,
    freeze: str,
    n_train: int,
) -> dict[str, Any]:
    """The dict of report.json; report.py says what each entry is. both: of the float network, of the int8 one."""
    val, integer = both
    p = softmax(val.logits)
    return {
        "classes": model.classes,
        "history": [asdict(line) for line in history.epochs],
        "best_epoch": history.best,
        "val": {
            "count": len(val.items),
            "float": {"accuracy": val.accuracy, "confusion": val.confusion()},
            "int8": {"accuracy": integer.accuracy, "confusion": integer.confusion()},
        },
        "mistakes": worst_mistakes([item.name for item in val.items], val.labels, p, model.classes),
        "skipped": skipped,
        "facts": {
            "backbone": model.architecture,
            "alpha": model.arguments["alpha"],
            "input": "x".join(map(str, model.graph.input_shape)),
            "frozen": freeze,
            "training photos": n_train,
            "validation photos": len(val.items),
            "seed": settings.seed,
        },
        "settings": asdict(settings),
    }
