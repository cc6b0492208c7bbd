"""The manners of scikit-learn: a classifier of photos with fit, predict and score, for pipelines and cross-validation.

    classifier = minitl.PhotoClassifier("mobilenet_v1_0.25_128_quant.tflite")
    cross_val_score(classifier, paths, names)

In: paths of photos, or their pixels, with a label for each. Out: labels, probabilities, and a Model to save or emit. What scikit-learn asks
of an estimator is answered here by hand, so that minitl does not need it. Left out: weights of samples, several labels for a photo,
sparse matrices.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from . import training
from .augment import Augmentation, source_recipe
from .engine import Values
from .errors import MinitlError
from .features import Extraction, Features, extract, features_of, large_array
from .files import printable
from .folders import difference_hash, split
from .graph import INPUT
from .images import Recipe, digest, photos_ahead, read_photo
from .layers import Array
from .model import BUNDLED, CALIBRATION_PHOTOS, Model, find
from .phases import NOTHING, describe_freeze, head_settings, plan, rate_factors, settings_of
from .pictures import Pictures, Views, read_pictures
from .reference import softmax
from .training import History, Settings, Source

EXPECTED = "expected paths of photos, or pixels (N, height, width, 3) as uint8 or as float in 0..1 or 0..255, or such photos as flat rows"


class NotFittedError(MinitlError, AttributeError):
    """Something was asked of a classifier that has not been trained."""


class Photos:
    """X, understood: a sequence of photos that are read one by one.

    unit: whether pixels are floats in 0..1, None where they are paths or whole numbers. columns: of flat rows, None otherwise.
    Raises MinitlError for anything else.
    """

    def __init__(self, X: Any, recipe: Recipe) -> None:
        self.recipe = recipe
        self.unit: bool | None = None
        self.columns: int | None = None
        self.items: Any = self._items(X)
        if not self.are_paths:
            self._check_pixels()

    def _items(self, X: Any) -> Any:
        if isinstance(X, (str, os.PathLike)):
            raise MinitlError(
                f"X is one path, {printable(X)}: give a list of paths, as in [item.path for item in minitl.list_folder(X).items]"
            )
        try:
            table = np.asarray(X)
        except ValueError:  # photos of several sizes
            table = np.empty(len(X), object)
            table[:] = [np.asarray(photo) for photo in X]
        if table.ndim and not len(table):
            raise MinitlError(f"X holds no photos: {EXPECTED}")
        if table.dtype.kind in "OU":
            things = table[:, 0] if table.ndim == 2 and table.shape[1] == 1 else table  # a column of a table
            if things.ndim == 1 and all(isinstance(thing, (str, os.PathLike)) for thing in things):
                return [Path(thing) for thing in things]
            if things.ndim == 1 and all(isinstance(thing, np.ndarray) for thing in things):
                return list(things)
        elif table.dtype.kind in "buif":
            if table.ndim == 2:
                shape = self._shape(table.shape[1])
                self.columns = table.shape[1]
                return table.reshape(len(table), *shape)
            if table.ndim == 4 or (table.ndim == 3 and table.shape[2] not in (3, 4)):
                return table
        found = f"{type(X).__name__} of shape {table.shape} and type {table.dtype}"
        raise MinitlError(f"X: {EXPECTED}; found {found}" + ("; give one photo as X[None]" if table.ndim == 3 else ""))

    def _shape(self, columns: int) -> tuple[int, ...]:
        """(height, width, channels) of a flat row: the network's, or else a square."""
        for channels in (3, 1):
            side = math.isqrt(columns // channels)
            for height, width in ((self.recipe.height, self.recipe.width), (side, side)):
                if columns and height * width * channels == columns:
                    return height, width, channels
        raise MinitlError(
            f"X has rows of {columns} numbers, which make no photo: expected height * width * 3, of the network's "
            f"{self.recipe.height} x {self.recipe.width} or of a square"
        )

    def _check_pixels(self) -> None:
        for i, photo in enumerate(self.items):
            if (
                photo.ndim not in (2, 3)
                or (photo.ndim == 3 and photo.shape[2] not in (1, 3))
                or photo.dtype.kind not in "buif"
                or not photo.size
            ):
                raise MinitlError(f"X: {EXPECTED}, red first; photo {i} has shape {photo.shape} and type {photo.dtype}")
        brightest = 0.0
        for photo in self.items:
            if photo.dtype != np.uint8:
                low, high = photo.min(), photo.max()
                if not 0 <= low <= high <= 255:  # false for NaN, too
                    raise MinitlError(f"X: {EXPECTED}; found pixels from {low} to {high}; leave scaling them to minitl")
                brightest = max(brightest, float(high) if photo.dtype.kind in "bf" else 0.0)
        self.unit = brightest <= 1 if brightest > 0 else None

    @property
    def are_paths(self) -> bool:
        """Whether photos are files."""
        return isinstance(self.items[0], Path)

    def __len__(self) -> int:
        return len(self.items)

    def name(self, i: int) -> str:
        """What an error calls a photo."""
        return printable(self.items[i]) if self.are_paths else f"photo {i}"

    def read(self, i: int) -> Array:
        """(H, W, 3) uint8 as the recipe says. Pixels of the network's size stay as they are. PhotoError where that fails."""
        photo = self.items[i]
        if isinstance(photo, Path):
            return read_photo(photo, self.recipe)
        if photo.dtype != np.uint8:
            photo = np.floor(photo * (255.0 if self.unit and photo.dtype.kind in "bf" else 1.0) + 0.5).astype(np.uint8)
        photo = np.broadcast_to(photo.reshape(*photo.shape[:2], -1), (*photo.shape[:2], 3))
        if photo.shape[:2] == (self.recipe.height, self.recipe.width):
            return np.ascontiguousarray(photo)
        header = f"P6 {photo.shape[1]} {photo.shape[0]} 255\n".encode()  # as the file that it would be, so all rules for files hold
        return read_photo(header + photo.tobytes(), self.recipe, self.name(i))

    def prepared(self, indices: Sequence[int] | None = None) -> Iterator[Array]:
        """read() of all or some photos, some ahead in the background. MinitlError for the first that cannot be read."""
        for _, photo in photos_ahead(self.read, range(len(self)) if indices is None else indices):
            yield photo

    def pictures(self, indices: Sequence[int], digests: Sequence[str], folder: Path | None) -> Pictures:
        """Some of the photos, whole, to be augmented."""
        if self.are_paths:
            return read_pictures([self.items[i] for i in indices], [digests[i] for i in indices], self.recipe, folder)
        whole = copy.copy(self)
        whole.recipe = source_recipe(self.recipe)
        pixels = large_array((len(indices), whole.recipe.height, whole.recipe.width, 3), np.uint8, folder)
        for at, photo in enumerate(whole.prepared(indices)):
            pixels[at] = photo
        squashed = self.recipe.resize == "squash"
        sizes = [(self.recipe.height, self.recipe.width) if squashed else self.items[i].shape[:2] for i in indices]
        return Pictures(pixels, np.array([width / height for height, width in sizes]))

    def features(self, model: Model, cache: Path | None) -> Extraction:
        """What model's frozen part makes of the photos; of files, rows are kept in the cache. MinitlError where one cannot be read."""
        if self.are_paths:
            found = extract(model.graph, model.recipe, self.items, cache)
            if found.skipped:
                path, reason = found.skipped[0]
                raise MinitlError(
                    f"{len(found.skipped)} of {len(self)} photos cannot be read, such as {printable(path)}: {reason}; leave them out"
                )
            return found
        parts = [(name, model.graph.shapes[name]) for name in model.graph.border()]
        pixels = [name for name, _ in parts] == [INPUT]
        rows = large_array((len(self), sum(math.prod(shape) for _, shape in parts)), np.uint8 if pixels else np.float32, cache)
        digests, looks = [], []
        frozen = None if pixels else Values(model.graph, model.graph.border(), threads=1)

        def row_of(photo: Array) -> Array:
            return features_of(frozen, model.recipe, photo) if frozen else photo.reshape(-1)

        for i, (photo, row) in enumerate(photos_ahead(row_of, self.prepared())):
            rows[i] = row
            digests.append(digest(photo.tobytes()))
            looks.append(difference_hash(photo))
        return Extraction(Features(rows, parts, model.recipe), list(range(len(self))), digests, looks, [], 0)


class PhotoClassifier:
    """A pretrained network with a classifier of one's own, as a scikit-learn estimator.

    backbone: a file of weights, 'random:NETWORK_ALPHA_SIZE', or a Model. freeze: as Model.freeze; 'all' trains the classifier alone.
    fine_tune: as Model.unfreeze: a number of blocks, a layer, or 'all', to be trained once the classifier has been. augment: as
    Augmentation.parse, 'none' for nothing; None: 'default' where more than the classifier is trained. epochs, batch, rate, decay, and
    a dict `settings` of more: as training.Settings, for the last training; None: what suits it. hidden: units of layers before the
    classifier. dropout: rate before each of them.
    val: share of the photos on which training is stopped in time, copies of one photo on one side; where that leaves none, the
    training photos. seed: the same seed gives the same numbers. cache: folder for features of files, so that trying other settings
    does not compute them again.

    X: paths (also a column of a table), or pixels (N, height, width, 3), uint8 or float in 0..1 or 0..255, prepared as the network wants
    photos; of the network's own size they are taken as they are; grey without channels, photos of several sizes in a list, and flat
    rows are understood, too. y: numbers or strings, one for each photo.

    After fit: classes_, sorted; history_, of the last phase; model_. Raises MinitlError, which is a ValueError.
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        backbone: str | Path | Model = BUNDLED,
        freeze: str = "all",
        fine_tune: int | str | None = None,
        augment: str | Augmentation | None = None,
        epochs: int | None = None,
        batch: int | None = None,
        rate: float | None = None,
        decay: float | None = None,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        val: float = 0.2,
        seed: int = 0,
        cache: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.backbone = backbone
        self.freeze = freeze
        self.fine_tune = fine_tune
        self.augment = augment
        self.epochs = epochs
        self.batch = batch
        self.rate = rate
        self.decay = decay
        self.hidden = hidden
        self.dropout = dropout
        self.val = val
        self.seed = seed
        self.cache = cache
        self.settings = settings

    # ---- parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What the constructor was given, by name."""
        return {name: getattr(self, name) for name in sorted(inspect.signature(type(self).__init__).parameters) if name != "self"}

    def set_params(self, **params: Any) -> PhotoClassifier:
        """Change what the constructor was given. Returns self."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise MinitlError(f"{name!r} is no parameter of {type(self).__name__}; those are {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        usual = inspect.signature(type(self).__init__).parameters
        given = [f"{name}={value!r}" for name, value in self.get_params().items() if repr(value) != repr(usual[name].default)]
        return f"{type(self).__name__}({', '.join(given)})"

    def _options(self) -> dict[str, Any]:
        """What was given of training.Settings, checked."""
        named = {"epochs": self.epochs, "batch": self.batch, "rate": self.rate, "decay": self.decay, "seed": self.seed}
        known = [field.name for field in fields(Settings) if field.name not in named]
        if not isinstance(self.settings or {}, Mapping) or set(self.settings or {}) - set(known):
            raise MinitlError(f"settings: expected a dict of {', '.join(known)}; found {self.settings!r:.200}")
        if not isinstance(self.seed, (int, np.integer)):
            raise MinitlError(f"seed must be a whole number, found {self.seed!r:.80}")
        given = named | dict(self.settings or {})
        options = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items() if value is not None}
        settings_of(Settings(), options)  # raises before anything is read
        return options

    def _hidden(self) -> list[int]:
        try:
            return [int(units) for units in np.atleast_1d(np.array(() if self.hidden is None else self.hidden))]
        except (TypeError, ValueError):
            raise MinitlError(f"hidden must be a list of units such as (64,), found {self.hidden!r:.80}") from None

    def _augmentation(self) -> Augmentation | None:
        if not isinstance(self.augment, (str, Augmentation, type(None))):
            raise MinitlError(f"augment must be an Augmentation or text such as 'mirror,crop', found {self.augment!r:.80}")
        return Augmentation.parse(self.augment) if isinstance(self.augment, str) else self.augment

    def _frozen(self, model: Model) -> Model:
        """The model with the mask that was asked for."""
        if not isinstance(self.freeze, str):
            raise MinitlError(f"freeze must be 'all', 'none' or the name of a layer, found {self.freeze!r:.80}")
        model.freeze(self.freeze)
        return model if self.fine_tune is None else model.unfreeze(str(self.fine_tune))

    def _cache(self) -> Path | None:
        if not isinstance(self.cache, (str, os.PathLike, type(None))):
            raise MinitlError(f"cache must be a folder or None, found {self.cache!r:.80}")
        return None if self.cache is None else Path(self.cache)

    # ---- scikit-learn's questions

    def __sklearn_tags__(self) -> Any:
        """What kind of estimator this is; asked by scikit-learn from 1.6 on, whose classes the answer is made of."""
        theirs = sys.modules["sklearn.utils"]
        return theirs.Tags(
            estimator_type="classifier",
            target_tags=theirs.TargetTags(required=True),
            classifier_tags=theirs.ClassifierTags(),
            input_tags=theirs.InputTags(one_d_array=True, three_d_array=True, string=True, positive_only=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    # ---- training

    def fit(self, X: Any, y: Any) -> PhotoClassifier:
        """Train on photos and their labels. The same photos, labels and seed give the same model. Returns self."""
        options, augment, cache = self._options(), self._augmentation(), self._cache()
        backbone = self.backbone if isinstance(self.backbone, Model) else find(str(self.backbone), options["seed"])
        photos = Photos(X, backbone.recipe)
        classes, labels = _labels(y, len(photos))
        names = [printable(str(name)) or f"class {i}" for i, name in enumerate(classes)]
        model = self._frozen(backbone.replace_head(names, seed=options["seed"], dropout=self.dropout, hidden=self._hidden()))
        training.check_trainable(model.graph)
        phases, mask = plan(model, options, augment), model.graph.frozen

        model.graph.frozen = dict(phases[0].frozen)
        found = photos.features(model, cache)
        in_val = split(labels.tolist(), found.digests, found.looks, self.val).val
        train_at = np.flatnonzero(~in_val)
        val_at = np.flatnonzero(in_val) if in_val.any() else train_at
        baseline, history, described = math.inf, History([]), []
        for number, phase in enumerate(phases):
            model.graph.frozen = dict(phase.frozen)
            features = photos.features(model, cache).features if number else found.features
            source: Source = features.take(train_at)
            settings = phase.settings
            if model.feature_node in model.graph.frozen_prefix() and not ("rate" in options and phase is phases[-1]):
                settings = head_settings(settings, features.take(train_at))
            if phase.augmentation != NOTHING:
                pictures = photos.pictures(train_at.tolist(), found.digests, cache)
                source = Views(pictures, model.recipe, phase.augmentation, model.graph, options["seed"])
            history = training.fit(
                model.graph, source, labels[train_at], features.take(val_at), labels[val_at], settings, baseline=baseline,
                factors=rate_factors(model, settings.layer_decay),
            )  # fmt: skip
            baseline = min([baseline, *(line.val_loss for line in history.epochs if line.epoch == history.best)])
            described.append(asdict(settings) | {"name": phase.name, "augmentation": str(phase.augmentation)})
        model.graph.frozen = mask

        calibrating = sorted(train_at.tolist(), key=lambda i: found.digests[i])[:CALIBRATION_PHOTOS]
        if photos.are_paths:
            self._calibrating: Any = [photos.items[i] for i in calibrating]
        else:
            self._calibrating = np.stack(list(photos.prepared(calibrating)))
        counts = {"train": len(train_at), "val": int(in_val.sum())}
        facts = {"photos": counts, "freeze": describe_freeze(model), "phases": described}
        self._model, self._unit = model.note(training=facts), photos.unit
        self.classes_, self.history_ = classes, history
        self.__dict__.pop("n_features_in_", None)
        if photos.columns is not None:
            self.n_features_in_ = photos.columns
        return self

    @property
    def model_(self) -> Model:
        """The trained network, to save, emit, deploy. It is calibrated for int8 when it is first asked for, which takes a while."""
        self._needs_fit()
        if not self._model.calibration:
            self._model.calibrate(Photos(self._calibrating, self._model.recipe).prepared())
            self._calibrating = None
        return self._model

    def _needs_fit(self) -> None:
        if not self.__sklearn_is_fitted__():
            theirs = sys.modules.get("sklearn.exceptions")  # where scikit-learn is in use, it wants to see an error of its own
            kind = type("NotFittedError", (NotFittedError, theirs.NotFittedError), {}) if theirs else NotFittedError
            raise kind(f"this {type(self).__name__} is not trained yet: call fit(X, y) first")

    # ---- answers

    def _logits(self, X: Any) -> Array:
        """(N, classes) float64."""
        self._needs_fit()
        photos = Photos(X, self._model.recipe)
        expected = getattr(self, "n_features_in_", None)
        if photos.columns is not None and expected is not None and photos.columns != expected:
            raise MinitlError(f"X has {photos.columns} features, but {type(self).__name__} is expecting {expected} features as input")
        if photos.unit is not None and photos.unit != bool(self._unit):
            ranges = ("0..255", "0..1")
            raise MinitlError(
                f"X holds pixels in {ranges[photos.unit]}, but those of fit() were in {ranges[bool(self._unit)]}: scale them alike"
            )
        features = photos.features(self._model, self._cache()).features
        return training.predict(self._model.graph, features).astype(np.float64)

    def decision_function(self, X: Any) -> Array:
        """(N, classes) logits; for two classes (N,), above 0 for classes_[1]."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> Array:
        """(N, classes) probabilities, in the order of classes_."""
        return softmax(self._logits(X))

    def predict(self, X: Any) -> Array:
        """(N,) labels, of the type of those that fit() was given."""
        answers = self._logits(X).argmax(axis=1)
        return self.classes_[answers]

    def score(self, X: Any, y: Any) -> float:
        """Share of correct answers, 0..1."""
        right = np.asarray(y).reshape(-1)
        answers = self.predict(X)
        if len(right) != len(answers):
            raise MinitlError(f"X holds {len(answers)} photos, y {len(right)} labels: give one label for each photo")
        return float((answers == right).mean())


def _labels(y: Any, count: int) -> tuple[Array, Array]:
    """(classes, sorted; (N,) index into them)."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if y is None or labels.ndim != 1:
        raise MinitlError(f"y: expected one label for each photo, (N,), found {'None' if y is None else f'shape {labels.shape}'}")
    if len(labels) != count:
        raise MinitlError(f"X holds {count} photos, y {len(labels)} labels: give one label for each photo")
    if labels.dtype.kind == "f" and not (labels == np.floor(labels)).all():  # true of NaN, too
        raise MinitlError(f"y: expected labels of classes, numbers or strings; found numbers that are not whole, such as {labels.max()}")
    try:
        classes, indices = np.unique(labels, return_inverse=True)
    except TypeError:
        kinds = ", ".join(sorted({type(label).__name__ for label in labels.tolist()}))
        raise MinitlError(f"y: expected labels of one type, numbers or strings; found {kinds}") from None
    if len(classes) < 2:
        raise MinitlError(f"y holds one class only, {classes.tolist()}; a classifier tells two or more apart")
    return classes, indices.reshape(-1)
