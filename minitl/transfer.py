"""From a folder of photos and a backbone to a trained model and a report: the course of a whole run.

In: a folder, a backbone (model.py), choices. Out: a Model that is trained, calibrated and measured in float and int8, and a report: the
plain dict that becomes report.json and that report.py draws. Left out: writing files and talking to the user (cli.py); `notify`
carries what is to be said.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import autofreeze, heads, neither, qat, training
from .augment import Augmentation
from .autofreeze import Choice
from .checkpoints import Checkpoint
from .errors import MinitlError
from .features import Extraction, Features, Progress, cache_key, extract
from .files import printable
from .folders import Item, Listing, find_photos, groups_alike, list_folder, split, with_validation
from .graph import Graph
from .images import PhotoError, photos_ahead, read_photos, try_photo
from .layers import Array
from .model import CALIBRATION_PHOTOS, Deployment, Model
from .phases import (
    HEAD,
    NOTHING,
    Phase,
    describe_freeze,
    head_mask,
    head_settings,
    plan,
    rate_factors,
    rounded_settings,
    settings_of,
)  # fmt: skip
from .pictures import CHANGED, Pictures, Views, read_pictures
from .reference import softmax
from .report import confusion_matrix, nearest_training, reliability, worst_mistakes
from .training import Epoch, History, Settings, Source, check_trainable
from .version import __version__


@dataclass
class Notify:
    """What a caller may want to hear while a run goes on; every member does nothing by default."""

    say: Callable[[str], None] = lambda line: None
    photos: Progress = lambda done, total: None
    epoch: Callable[[Epoch, float], None] = lambda line, seconds_left: None


@dataclass
class Evaluation:
    """How a model does on labelled photos. logits: (N, classes) of the photos in `items`; skipped: name and reason of the others.

    neither: (N,) bool, which photos it says to show none of the classes; accuracy and confusion take the likeliest class all the same.
    """

    classes: list[str]
    items: list[Item]
    labels: Array
    logits: Array
    skipped: list[dict[str, str]] = field(default_factory=list)
    neither: Array | None = None

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
            "neither": int(self.neither.sum()) if self.neither is not None else 0,
        }


def evaluate(network: Model | Deployment, items: Sequence[Item], int8: bool = False, progress: Progress | None = None) -> Evaluation:
    """Ask the network about every photo. int8: a model's int8 network, exactly as a header computes.

    Raises MinitlError where no photo can be read.
    """
    chosen = network.deploy() if int8 and isinstance(network, Model) else network
    return evaluate_all([chosen], items, progress)[0]


Known = Mapping[Path, Array]
"""Pixels (H, W, 3) uint8 of photos that were read before, with the same recipe."""

AT_ONCE = 8
"""Photos that are judged together."""


def evaluate_all(
    networks: Sequence[Model | Deployment], items: Sequence[Item], progress: Progress | None = None, known: Known | None = None
) -> list[Evaluation]:
    """An Evaluation for each of several networks with one recipe and the same classes; photos are read once, those that are known not."""
    first = networks[0]
    recipe = first.recipe if isinstance(first, Model) else first.pictures()
    kept: list[Item] = []
    skipped: list[dict[str, str]] = []
    judged: list[list[tuple[Array, Array]]] = [[] for _ in networks]

    def judge(some: Sequence[Item]) -> tuple[list[Array | PhotoError], list[tuple[Array, Array]]]:
        """Each thread takes some photos all the way; an answer does not depend on the others."""
        photos = [try_photo(item.path, recipe) if (found := (known or {}).get(item.path)) is None else found for item in some]
        pixels = [photo for photo in photos if not isinstance(photo, PhotoError)]
        return photos, [network.judge(np.stack(pixels)) for network in networks] if pixels else []

    for some, (photos, found) in photos_ahead(judge, [items[i : i + AT_ONCE] for i in range(0, len(items), AT_ONCE)]):
        for item, photo in zip(some, photos, strict=True):
            if isinstance(photo, PhotoError):
                skipped.append({"file": item.name, "reason": photo.reason})
            else:
                kept.append(item)
            if progress:
                progress(len(kept) + len(skipped), len(items))
        for answers, of_network in zip(judged, found, strict=False):
            answers.append(of_network)
    if not kept:
        raise MinitlError(f"none of the {len(items)} photos can be read; the first: {skipped[0]['file']}: {skipped[0]['reason']}")
    labels = np.array([item.label for item in kept])
    both = [(np.concatenate(part) for part in zip(*answers, strict=True)) for answers in judged]
    return [Evaluation(first.classes, kept, labels, logits, list(skipped), neither) for logits, neither in both]


@dataclass
class Run:
    """What a run leaves: the model, the report, the photos of both parts, and the checkpoint, to be removed once all is written."""

    model: Model
    report: dict[str, Any]
    val: list[Item]
    train: list[Item]
    checkpoint: Checkpoint

    @functools.cached_property
    def network(self) -> Deployment | None:
        """The model's int8 network, as it goes into the header; None where it has no int8 form, which the report's notes explain."""
        return self.model.deploy() if self.report["val"]["int8"] else None


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
    fine_tune: str | None = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    cut: str | None = None,
    **options: Any,
) -> Run:
    """Train a new classifier, and as much of the backbone as is asked for, on a folder of photos.

    photos: PHOTOS/CLASS/*, or with train and val above. val: a share as text ('0.2'), or another folder.
    freeze: as Model.freeze, or 'auto'.
    fine_tune: as Model.unfreeze: the classifier first, then this, too; what `freeze` says beside 'all' stays frozen all the same.
    hidden, dropout, cut: as Model.replace_head. The rest as in fit(). Raises MinitlError for anything wrong with the photos.
    """
    known = [field.name for field in fields(Settings)]
    if unknown := sorted(options.keys() - {*known, *inspect.signature(fit).parameters}):
        raise MinitlError(f"there is no option {unknown[0]!r}; training has {', '.join(known)}")
    settings_of(HEAD, options)  # raises before anything is read
    listing, fraction = choose_photos(photos, val)
    auto = freeze == "auto"
    if auto and fine_tune is not None:
        raise MinitlError("freeze='auto' decides how much to fine-tune: leave fine_tune out")
    model = backbone.replace_head(listing.classes, options.get("seed", 0), dropout, hidden, cut)
    model.freeze("all" if auto or fine_tune is not None else freeze)
    if fine_tune is not None:
        model.unfreeze(fine_tune)
        if freeze not in ("all", "none"):
            model.freeze(freeze, more=True)
    return fit(model, listing, fraction=fraction, auto=auto, **options)


def fit(
    model: Model,
    listing: Listing,
    *,
    fraction: float = 0.2,
    cache: str | Path | None = None,
    notify: Notify | None = None,
    augment: Augmentation | None = None,
    gradual: bool = False,
    checkpoint: Path | None = None,
    resume: bool = False,
    auto: bool = False,
    imprint: bool = False,
    other: str | Path | None = None,
    neither_keep: float = 0.95,
    max_int8_drop: float | None = None,
    **options: Any,
) -> Run:
    """Train what is not frozen in `model`, in place, on the photos of a folder; calibrate int8; measure both networks.

    fraction: share of each class for validation, where the listing is not divided. cache: folder for features, None to keep none.
    augment, gradual: see phases.plan. checkpoint: file to save the state in, now and then and at Ctrl-C; resume: go on from it.
    auto: measure how much to unfreeze (autofreeze.py) below what is unfrozen already. imprint: the classifier is made from the mean
    features of each class instead of trained (heads.py). other: also learn when a photo shows none of the classes (neither.py), keeping
    the share neither_keep of the validation photos; '' or a folder of photos of other things to measure by. max_int8_drop: where int8 loses
    more points of accuracy, train what is not frozen once more with rounding (qat.py).
    options: epochs, seed, ... of training.Settings, instead of those of HEAD, DEEP or SCRATCH.
    Raises MinitlError for anything wrong with the photos.
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
    if max_int8_drop is not None and not 0 <= max_int8_drop <= 100:
        raise MinitlError(f"max_int8_drop must be points of accuracy from 0 to 100, found {max_int8_drop}")
    neither.check_share(neither_keep)
    others = find_photos(other)[0] if other else []
    phases, choice = plan(model, options, augment, gradual, imprint), None
    photos = Photos(model, Path(cache) if cache else None, notify)
    photos.read(listing, fraction, phases[0].frozen, note)
    depends = {
        "photos": hashed(photos.found.digests, photos.labels.tolist(), photos.in_val.tolist(), listing.classes),
        "weights": hashed(
            *(model.graph.params[node] for node in model.graph.match(".." + model.feature_node) if node in model.graph.params)
        ),
        "settings": hashed(sorted(options.items()), augment, gradual, auto, imprint, model.arguments, model.content().frozen, __version__),
    }
    kept = Checkpoint(checkpoint, depends, resume, note)
    if resume:
        note(f"going on from {checkpoint}" if kept.resumed else "there is no checkpoint to go on from: beginning anew")
    if auto:
        choice = photos.choose(kept, options.get("seed", 0))
        for line in choice.sentences:
            note(line)
        if choice.depth:
            model.unfreeze(choice.depth)
            phases = plan(model, options, augment, gradual, imprint)
    epochs, described = photos.train_all(phases, kept, options, note)
    fit_done = time.monotonic()
    notify.say("calibrating int8 and measuring both networks on the validation photos")
    items, train_at, val_at = photos.items, photos.train_at, photos.val_at
    known = photos.found.pixels
    calibrate(model, [items[i] for i in train_at], [photos.found.digests[i] for i in train_at], known)
    networks: list[Model | Deployment] = [model]
    try:
        networks.append(model.deploy())
    except MinitlError as problem:
        note(f"the trained network has no int8 form, so there is no header: {problem}")
    both = evaluate_all(networks, [items[i] for i in val_at], notify.photos, known)
    known.clear()  # their memory is wanted for the report
    if max_int8_drop is not None and len(both) > 1 and points_lost(both) > max_int8_drop:
        both = photos.train_rounded(both, options.get("seed", 0), kept, note)
    third = photos.learn_neither(both[0], others, printable(other), neither_keep) if other is not None and len(both) > 1 else None
    if other is not None and not third:
        note("'neither' needs the int8 network, so it was not learned")
    model.note(training=describe(described, len(train_at), len(val_at), both))
    report = make_report(model, both, epochs, described, photos.skipped, len(train_at))
    report["mistakes"] = photos.beside_training_photos(report["mistakes"], both[0])
    if third:
        report["neither"] = third
    times = {"photos": photos.seconds, "training": fit_done - started - photos.seconds, "all": time.monotonic() - started}
    report["seconds"] = {name: round(seconds, 2) for name, seconds in times.items()}
    report["memory"] = {"peak_bytes": peak_memory()}
    if choice:
        report |= {"auto": {"rows": choice.rows, "sentences": choice.sentences}, "learning": choice.learning}
    report["features_reused"] = photos.found.reused
    report["notes"] = notes
    return Run(model, report, both[0].items, [items[i] for i in train_at], kept)


NEAREST_AMONG = 2000
"""Training photos among which the report looks for those nearest to a mistake."""


class Photos:
    """The photos of a run, read as each training needs them: once as features, once more as pictures or deeper features."""

    def __init__(self, model: Model, cache: Path | None, notify: Notify) -> None:
        self.model, self.cache, self.notify = model, cache, notify
        self.seconds = 0.0
        self.skipped: list[dict[str, str]] = []
        self._deep: tuple[Any, Pictures | Features, Features] | None = None

    def _extract(self, frozen: Mapping[str, bool | Array], paths: Sequence[Path], quiet: bool = False) -> Extraction:
        """Features at the border of a mask; the model's mask stays."""
        graph, started = self.model.graph, time.monotonic()
        before, graph.frozen = graph.frozen, dict(frozen)
        try:
            return extract(graph, self.model.recipe, paths, self.cache, None if quiet else self.notify.photos)
        finally:
            graph.frozen = before
            self.seconds += time.monotonic() - started

    def _key(self, frozen: Mapping[str, bool | Array]) -> str:
        """What the features at the border of a mask depend on."""
        graph = self.model.graph
        before, graph.frozen = graph.frozen, dict(frozen)
        try:
            return cache_key(graph, self.model.recipe)
        finally:
            graph.frozen = before

    def read(self, listing: Listing, fraction: float, frozen: Mapping[str, bool | Array], note: Callable[[str], None]) -> None:
        """Read all, with the mask of the first training; divide into training and validation photos."""
        self.found = self._extract(frozen, [item.path for item in listing.items])
        self.made_by = self._key(frozen)
        if self.found.cache_problem:
            note(f"features are not kept: {self.found.cache_problem}")
        self.items = [listing.items[i] for i in self.found.kept]
        names = {item.path: item.name for item in listing.items}
        self.skipped = [{"file": s.name, "reason": s.reason} for s in listing.skipped]
        self.skipped += [{"file": names[path], "reason": reason} for path, reason in self.found.skipped]
        self.labels = np.array([item.label for item in self.items], np.int64)
        self.in_val = divide(self.items, self.labels, self.found, fraction, listing.classes, note)
        check_photos(self.labels, self.in_val, listing.classes, self.skipped)
        self.train_at, self.val_at = np.flatnonzero(~self.in_val), np.flatnonzero(self.in_val)

    def sources(self, number: int, phase: Phase) -> tuple[Source, Features]:
        """What training `number` learns from, and what it is validated on."""
        graph = self.model.graph
        border = graph.border()
        first = number == 0 and [name for name, _ in self.found.features.parts] == border  # 'auto' may have moved it since
        if first and phase.augmentation == NOTHING:
            return self.found.features.take(self.train_at), self.found.features.take(self.val_at)
        key = (border, phase.augmentation)
        if not self._deep or self._deep[0] != key:
            self._deep = None  # let go of the old before the new is made
            if phase.augmentation == NOTHING:
                every = self._again(phase.frozen, np.arange(len(self.items)))
                self._deep = (key, every.take(self.train_at), every.take(self.val_at))
            else:
                val = self.found.features.take(self.val_at) if first else self._again(phase.frozen, self.val_at)
                self._deep = (key, self._pictures(self.train_at), val)
        _, train, val = self._deep
        if isinstance(train, Pictures):
            return Views(train, self.model.recipe, phase.augmentation, graph, phase.settings.seed), val
        return train, val

    def _pictures(self, at: Array) -> Pictures:
        """Photos that were read before, for augmentation."""
        started = time.monotonic()
        paths, digests = [self.items[i].path for i in at], [self.found.digests[i] for i in at]
        pictures = read_pictures(paths, digests, self.model.recipe, self.cache, self.notify.photos)
        self.seconds += time.monotonic() - started
        return pictures

    def choose(self, kept: Checkpoint, seed: int) -> Choice:
        """How much to unfreeze, measured on the training photos; what was measured before a stop is not measured again."""
        graph = self.model.graph
        macs = sum(node.layer.macs(*graph.input_shapes(node)) for node in graph.nodes)
        digests = [self.found.digests[i] for i in self.train_at]
        some = autofreeze.some_of(self.labels[self.train_at], digests, macs)
        at = self.train_at[some]
        folds = autofreeze.divide(self.labels[at], [digests[i] for i in some], [self.found.looks[i] for i in at])
        candidates = autofreeze.Candidates(self.found.features.take(at), self._pictures(at), self.labels[at], folds)
        self.notify.say(f"measuring how much to unfreeze, on {len(at)} training photos in {autofreeze.FOLDS} parts")
        return autofreeze.choose(self.model, candidates, seed, kept.trials, kept.add_trial, self.notify.say)

    def _again(self, frozen: Mapping[str, bool | Array], at: Array) -> Features:
        """Features of photos that were read before."""
        found = self._extract(frozen, [self.items[i].path for i in at])
        if found.digests != [self.found.digests[i] for i in at]:
            which = found.skipped[0][0] if found.skipped else self.items[at[0]].path
            raise MinitlError(f"{printable(which)} {CHANGED}")
        return found.features

    def train_all(
        self, phases: Sequence[Phase], kept: Checkpoint, options: Mapping[str, Any], note: Callable[[str], None]
    ) -> tuple[list[Epoch], list[dict[str, Any]]]:
        """One training after the other; each has to beat the loss of those before it. Returns all epochs, and the phases for the report."""
        graph, baseline = self.model.graph, math.inf
        epochs: list[Epoch] = []
        described: list[dict[str, Any]] = []
        for number, phase in enumerate(phases):
            started, graph.frozen = time.monotonic(), dict(phase.frozen)
            frozen = describe_freeze(self.model)
            if len(phases) > 1 or phase.augmentation != NOTHING:
                self.notify.say(f"training {number + 1} of {len(phases)}: {phase.name}; frozen: {frozen}")
            settings, history = self.train(number, phase, kept, baseline, "rate" in options and number == len(phases) - 1)
            if history.diverged:
                note(f"{phase.name}: the loss was no longer a number after {len(history.epochs)} epochs; what was best before is kept; "
                     f"a smaller rate than {settings.rate:g} may do better")  # fmt: skip
            baseline = min([baseline, *(line.val_loss for line in history.epochs if line.epoch == history.best)])
            described.append(
                {
                    "name": phase.name,
                    "first_epoch": len(epochs) + 1,
                    "last_epoch": len(epochs) + len(history.epochs),
                    "best_epoch": len(epochs) + history.best if history.best else 0,
                    "frozen": frozen,
                    "rate": settings.rate,
                    "augmentation": str(phase.augmentation),
                    "settings": asdict(settings),
                    "seconds": round(time.monotonic() - started, 2),
                }
            )
            epochs += [replace(line, epoch=len(epochs) + i) for i, line in enumerate(history.epochs, start=1)]
        return epochs, described

    def train(self, number: int, phase: Phase, kept: Checkpoint, baseline: float, own_rate: bool) -> tuple[Settings, History]:
        """One training; returns its settings as they were used."""
        graph, settings = self.model.graph, phase.settings
        head_only = self.model.feature_node in graph.frozen_prefix()
        over = kept.finished(number, graph)
        if head_only and not own_rate:  # by the features without augmentation, if there is any: these are about as long
            settings = head_settings(settings, self.found.features.take(self.train_at))
        if over is not None:
            return settings, over
        train, val = self.sources(number, phase)
        factors = rate_factors(self.model, settings.layer_decay)
        labels = self.labels
        if phase.imprint:
            assert isinstance(train, Features)
            heads.imprint(self.model, train.values(), labels[self.train_at])
            seen = (
                training.loss_and_accuracy(training.predict(graph, x), labels[at]) for x, at in ((train, self.train_at), (val, self.val_at))
            )
            history = History([Epoch(1, *(value for pair in seen for value in pair))], best=1)
            kept.finish(number, graph, history)
            return settings, history
        state = kept.state(number, graph, settings, factors, len(self.train_at))
        with kept.patient():
            history = training.fit(
                graph, train, labels[self.train_at], val, labels[self.val_at], settings, self.notify.epoch, baseline, factors,
                state, kept.keeper(number, graph),
            )  # fmt: skip
        kept.finish(number, graph, history)
        return settings, history

    # ---- after the training

    def features_now(self, paths: Sequence[Path]) -> Extraction:
        """What the classifier reads, by the network as it is now."""
        return self._extract(head_mask(self.model, {}), paths, quiet=True)

    def features_of(self, at: Array) -> tuple[Array, Array]:
        """The same of photos that were read before: (n, F) and the numbers of those photos that can be read still."""
        if self._key(head_mask(self.model, {})) == self.made_by:
            return self.found.features.take(at).values(), at
        found = self.features_now([self.items[i].path for i in at])
        return found.features.values(), at[found.kept]

    def train_rounded(self, before: list[Evaluation], seed: int, kept: Checkpoint, note: Callable[[str], None]) -> list[Evaluation]:
        """Quantisation-aware training of what is not frozen; the model stays as it is where int8 gains nothing."""
        pixels, labels = self._again({}, np.arange(len(self.items))), self.labels
        train, val = pixels.take(self.train_at), pixels.take(self.val_at)
        settings = rounded_settings(self.model, self.found.features, seed)
        lost = points_lost(before)
        self.notify.say(f"int8 loses {lost:.1f} points: training what is not frozen once more, with rounding")
        own = kept.beside("checkpoint-int8.npz", self.model.graph, {"network before it": self.model.content().content_hash()})

        def course(twin: Graph, settings: Settings) -> qat.Course:
            return own.state(0, twin, settings, {}, len(train)), own.keeper(0, twin)

        with own.patient():
            history = qat.fine_tune(
                self.model, train, labels[self.train_at], val, labels[self.val_at], settings, self.notify.epoch, course
            )  # fmt: skip
        if not history.best:
            note(f"int8 loses {lost:.1f} points; none of {len(history.epochs)} epochs with rounding made that better")
            return before
        after = evaluate_all([self.model, self.model.deploy()], [self.items[i] for i in self.val_at], self.notify.photos)
        note(f"int8 lost {lost:.1f} points; after {history.best} epochs with rounding it loses {points_lost(after):.1f}")
        self.model.note(rounding={"epochs": history.best, "settings": asdict(settings)})
        return after

    def learn_neither(self, val: Evaluation, others: Sequence[Path], what: str, keep: float) -> dict[str, Any]:
        """Teach the model its third answer; returns the entry of the report."""
        model, network = self.model, self.model.deploy()
        train, kept = self.features_of(self.train_at)
        paths = [item.path for item in val.items]
        rows = neither.directions(train, self.labels[kept], len(model.classes))
        values: list[Array] = []
        values_int8: list[Array] = []
        for path, photo in read_photos(paths, model.recipe):
            if isinstance(photo, PhotoError):
                raise MinitlError(f"{printable(path)} {CHANGED}")
            values.append(model.features(model.recipe.normalise(photo[None])))
            values_int8.append(network.features(photo[None]))
        here = np.concatenate(values)
        chosen = neither.choose(rows, here, np.concatenate(values_int8), keep)
        model.tell_neither(chosen)
        unknown, words = neither.unknown_likeness(here, val.labels, rows), "photos of each class, as if it were unknown"
        if others:
            found = self.features_now(others)
            if not found.kept:
                raise MinitlError(f"none of the {len(others)} photos in {what} can be read; the first: {found.skipped[0][1]}")
            unknown, words = neither.likeness(found.features.values(), rows), f"{len(found.kept)} photos of {what}"
        right = val.logits.argmax(axis=1) == val.labels
        return neither.report(chosen, neither.likeness(here, rows), right, unknown, words if unknown is not None else "")

    def beside_training_photos(self, mistakes: list[dict[str, Any]], val: Evaluation, most: int = 12) -> list[dict[str, Any]]:
        """The worst mistakes with the training photos that the network finds most alike."""
        shown = mistakes[:most]
        if not shown:
            return mistakes
        where = {self.items[i].name: i for i in self.val_at}
        near, among = self.features_of(self.train_at[:: math.ceil(len(self.train_at) / NEAREST_AMONG)])
        far, kept = self.features_of(np.array([where[mistake["file"]] for mistake in shown]))
        if len(kept) != len(shown):  # one has gone: its neighbours are no loss
            return mistakes
        found = nearest_training(near, [self.items[i].name for i in among], self.labels[among], val.classes, far)
        return [mistake | {"nearest": nearest} for mistake, nearest in zip(shown, found, strict=True)] + mistakes[most:]


def points_lost(both: Sequence[Evaluation]) -> float:
    """Points of accuracy that int8 loses."""
    return 100 * (both[0].accuracy - both[1].accuracy)


def hashed(*values: Any) -> str:
    """SHA-256 of what the values look like, and of all numbers of arrays."""
    sha = hashlib.sha256()
    for value in values:
        arrays = value if isinstance(value, dict) and any(isinstance(part, np.ndarray) for part in value.values()) else {}
        sha.update(repr(sorted(arrays)).encode() if arrays else repr(value).encode())
        for name in sorted(arrays):
            sha.update(arrays[name].tobytes())
    return sha.hexdigest()


def peak_memory() -> int | None:
    """Most bytes that this process has held so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
        raise MinitlError(
            f"there is no photo for validation{why}; add photos, every class needs two that differ, or give others with --val"
        )


def calibrate(model: Model, items: Sequence[Item], digests: Sequence[str], known: Known) -> None:
    """Calibrate int8 on training photos, chosen by their content so that the same photos give the same header."""
    chosen = [items[i].path for i in sorted(range(len(items)), key=lambda i: digests[i])[:CALIBRATION_PHOTOS]]
    read = read_photos([path for path in chosen if path not in known], model.recipe)
    every = (known[path] if path in known else next(read)[1] for path in chosen)
    pixels = (found for found in every if not isinstance(found, PhotoError))
    first = next(pixels, None)
    if first is None:
        raise MinitlError(
            f"no training photo can be read any more, such as {printable(chosen[0])}: put them back; --resume goes on from there"
        )
    model.calibrate(itertools.chain([first], pixels))


def describe(phases: Sequence[Mapping[str, Any]], n_train: int, n_val: int, both: Sequence[Evaluation]) -> dict[str, Any]:
    """What the model file remembers of its training; nothing that differs from one run to the same run."""
    return {
        "photos": {"train": n_train, "val": n_val},
        "val_accuracy": {name: round(one.accuracy, 4) for name, one in zip(("float", "int8"), both, strict=False)},
        "freeze": phases[-1]["frozen"],
        "phases": [{name: phase[name] for name in ("name", "frozen", "augmentation", "settings")} for phase in phases],
    }


def make_report(
    model: Model,
    both: Sequence[Evaluation],
    epochs: Sequence[Epoch],
    phases: Sequence[Mapping[str, Any]],
    skipped: list[dict[str, str]],
    n_train: int,
) -> dict[str, Any]:
    """The dict of report.json; report.py says what each entry is. both: of the float network, of the int8 one if there is one."""
    val, integer = both[0], next(iter(both[1:]), None)
    p = softmax(val.logits)
    numbers = [i for i, phase in enumerate(phases) for _ in range(phase["first_epoch"], phase["last_epoch"] + 1)]
    last = phases[-1]
    return {
        "classes": model.classes,
        "history": [asdict(line) | {"phase": number} for line, number in zip(epochs, numbers, strict=True)],
        "phases": list(phases),
        "best_epoch": next((phase["best_epoch"] for phase in reversed(phases) if phase["best_epoch"]), 0),
        "val": {
            "count": len(val.items),
            "float": {"accuracy": val.accuracy, "confusion": val.confusion()},
            "int8": {"accuracy": integer.accuracy, "confusion": integer.confusion()} if integer else None,
            "calibration": reliability(p, val.labels),
        },
        "mistakes": worst_mistakes([item.name for item in val.items], val.labels, p, model.classes),
        "skipped": skipped,
        "facts": {
            "backbone": model.architecture,
            "alpha": model.arguments["alpha"],
            "input": "x".join(map(str, model.graph.input_shape)),
            "frozen": last["frozen"],
            "training photos": n_train,
            "validation photos": len(val.items),
            "seed": last["settings"]["seed"],
        },
        "layers": layers_drawn(model),
        "settings": last["settings"],
    }


def layers_drawn(model: Model) -> list[dict[str, Any]]:
    """The layers with parameters, and what share of each was trained: what the report draws."""
    block = {node: name for name, nodes in model.blocks().items() for node in nodes}
    graph = model.graph
    return [
        {
            "name": node.name,
            "block": block[node.name],
            "kind": type(node.layer).__name__,
            "output": list(graph.shapes[node.name]),
            "parameters": sum(array.size for array in graph.params[node.name].values()),
            "trained": round(float(np.mean(graph.in_training(node.name))), 4),
        }
        for node in graph.nodes
        if node.name in graph.params
    ]
