"""What is wrong with a folder of photos, what each fault costs, and what to do about it.

In: a Listing (folders.py) and, if there is one, a backbone (model.py). Out: a Diagnosis: plain data, made of findings that name files,
and the sentences that say them. Nothing is written but the cache of features. Left out: repairing anything; the photos are the user's.

Without a backbone: what the files and their looks tell. With one, its frozen features tell more: every photo is judged by classifiers that
have not seen it or a copy of it. These are suspicions, to be looked at one by one. Measured with MobileNetV1 0.25 at 128 on 1,369 photos
of monkeys into which all faults were put at once (tests/test_doctor.py): of 20 wrong labels 19 are found, with 18 others, some of them
wrong indeed; of 20 photos turned on a side or upside down 6, with 2 others; of 20 photos of fruit 15, with 10 others.
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .engine import Values
from .errors import MinitlError
from .features import Cache, Progress, Row, cache_key, extract, features_of
from .files import printable
from .folders import ALIKE, Item, Listing, bits_apart, difference_hash, groups_alike
from .images import PhotoError, Recipe, digest, dimensions, photos_ahead, read_bytes, read_photo
from .layers import Array
from .model import Model
from .reference import softmax

USUAL = Recipe(128, 128)
"""How photos are looked at where no network says it."""

ENLARGED = 1.5
"""A photo whose pixels are blown up more than so many times is too small."""
NARROW = 2.5
"""A photo so many times longer than the network's input (sides against sides) loses most of itself in the crop: 16:9 to a square is 1.8."""
BLANK = 4.0
"""Standard deviation of all values of a photo, 0..255, below which it shows one colour. The flattest of 2,599 real photos has 14."""
FEW, FEW_VAL = 20, 5
"""Classes with fewer different photos for training, or for validation, are named."""
UNEQUAL = 3.0
"""Classes are unequal where one has so many times the photos of another."""

FOLDS = 5
SHRINK = 0.5
"""Weight of a round covariance, against the measured one. Of 0.03 to 0.6, 0.3 to 0.6 put most wrong labels first, and the accuracy of the
classifier (monkeys 89.3 %, fruit 98.9, person 80.7 to 81.7) is that of a trained softmax (89.0, 99.3, 80.2), in a tenth of the time."""
TIMES = 20.0
"""A label is doubted where another class is so many times as likely."""
FAR = 4.0
"""A photo fits no class where its distance to the nearest is so many deviations above the median."""
SURE = 0.75
"""A photo is called turned where the probability is higher."""
ENOUGH = 50
"""With fewer photos, classifiers are not asked."""
PROBE = 400
"""So many photos, turned by quarters, teach what is upright. Of 20 turned monkeys, drawn three times, 11, 9 and 8 are found; with all
1,369 photos to learn from 11, 10 and 9."""

KINDS = {
    "unreadable": "files that cannot be read",
    "passed_over": "files that are no photos",
    "conflict": "one photo in two classes",
    "leak": "copies across training and validation",
    "labels": "wrong labels",
    "turned": "turned photos",
    "outliers": "photos that fit no class",
    "blank": "photos of one colour",
    "tiny": "tiny photos",
    "narrow": "very long photos",
    "exif": "photos that lie turned in their files",
    "duplicates": "the same file twice in a class",
    "near": "nearly the same photo in a class",
    "few": "classes with few photos",
    "unequal": "classes of very unequal size",
    "names": "classes of nearly the same name",
}
"""All kinds of findings in the order of a diagnosis, and what is looked for."""
WITH_WEIGHTS = ("labels", "turned", "outliers")
"""Kinds that only the features of a network can tell."""


@dataclass(frozen=True)
class Finding:
    """A fault. kind: one of KINDS; count: photos (or classes) that have it; says, costs, do: sentences; rows: {"files": names,
    "why": text}, the worst first; figures: what was measured.
    """

    kind: str
    count: int
    says: str
    costs: str
    do: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Diagnosis:
    """photos: how many there are; readable: how many of them can be read; classes: readable photos of each; findings: see Finding;
    clear: kinds that were looked for and not found; unseen: kinds that were not looked for, and why; notes: sentences about the folder;
    accuracy: of a quick classifier on the backbone's features, cross-validated, 0..1, or None.
    """

    photos: int
    readable: int
    classes: dict[str, int]
    findings: list[Finding]
    clear: list[str]
    unseen: dict[str, str]
    notes: list[str]
    accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `minitl doctor --json` prints."""
        return asdict(self)

    def lines(self, everything: bool = False) -> list[str]:
        """The diagnosis as text; at most three rows of a finding unless `everything` is asked for."""
        head = f"{_count(self.photos, 'photo')} of {_count(len(self.classes), 'class')}, {_count(len(self.findings), 'finding')}"
        lines = [head + (f"; a quick classifier: {_percent(self.accuracy)}" if self.accuracy is not None else "")]
        for number, finding in enumerate(self.findings, start=1):
            lines += ["", f"{number}. {finding.says}"]
            shown = finding.rows if everything else finding.rows[:3]
            lines += [f"   {_row(row, everything)}" for row in shown]
            if len(shown) < len(finding.rows):
                lines.append(f"   ... and {len(finding.rows) - len(shown)} more; --all names all")
            lines += [f"   costs: {finding.costs}", f"   do: {finding.do}"]
        if self.clear:
            lines += ["", "not found: " + ", ".join(KINDS[kind] for kind in self.clear)]
        for reason in sorted(set(self.unseen.values())):
            kinds = ", ".join(KINDS[kind] for kind in self.unseen if self.unseen[kind] == reason)
            lines.append(f"not looked for: {kinds} ({reason})")
        return lines


def _row(row: dict[str, Any], everything: bool) -> str:
    """One row as text."""
    files = row["files"] if everything else row["files"][:3]
    more = f" and {len(row['files']) - len(files)} more" if len(files) < len(row["files"]) else ""
    return (" = " if row["why"].startswith("the same file") else " ~ ").join(files) + more + (f": {row['why']}" if row["why"] else "")


def _count(number: int, what: str, verb: str = "") -> str:
    """'1 photo', '2,000 photos', '3 classes'; with 'lie': '1 photo lies', '2 photos lie'."""
    one = {"are": "is", "have": "has", "may": "may", "cannot": "cannot"}.get(verb, f"{verb}s")
    several = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{several}" + (f" {one if number == 1 else verb}" if verb else "")


def _percent(share: float) -> str:
    """0.8641 -> '86.4 %'."""
    return f"{100 * share:.1f} %"


# ---- the examination


@dataclass(frozen=True)
class Seen:
    """A photo that can be read. name: what findings call it; width, height, orientation: as it is stored; look: difference hash;
    spread: standard deviation of all its values.
    """

    item: Item
    name: str
    digest: str
    width: int
    height: int
    orientation: int
    look: int
    spread: float

    @property
    def side(self) -> str:
        """'val' or 'train'; photos that are not divided count as training photos."""
        return self.item.part or "train"

    @property
    def blank(self) -> bool:
        """Whether it shows one colour."""
        return self.spread < BLANK


def examine(
    listing: Listing,
    backbone: Model | None = None,
    *,
    fraction: float = 0.2,
    cache: Path | None = None,
    counter: Callable[[str], Progress] = lambda what: lambda done, total: None,
) -> Diagnosis:
    """Look at all photos of a listing; with a backbone also at what it sees in them.

    fraction: the share that would be taken for validation, where the listing is not divided. cache: folder for features, None to keep none.
    counter: gives a progress function for a task of that name. Raises MinitlError for a cache among the photos.
    """
    inside = {os.path.realpath(folder) for folder in (listing.root, *(item.path.parent for item in listing.items))}
    if cache is not None and any(Path(os.path.realpath(cache)).is_relative_to(folder) for folder in inside):
        raise MinitlError(f"the cache {printable(cache)} lies among the photos, where nothing is written; choose another with --cache")
    names, recipe = listing.classes, backbone.recipe if backbone else USUAL
    photos, unreadable = look_at(listing, recipe, counter("photos"))
    expert, unseen = None, {kind: "that takes --weights" for kind in WITH_WEIGHTS}
    if backbone:
        unseen = {kind: f"fewer than {ENOUGH} photos" for kind in WITH_WEIGHTS}
        if len(photos) >= ENOUGH:
            expert, unseen = Expert(names, photos, backbone, cache, counter), {}
            photos = expert.photos
            if recipe.height != recipe.width:
                unseen = {"turned": "the network's input is not square"}
    groups = group(photos)
    found = [check_unreadable(listing, unreadable), check_passed_over(listing)]
    found += [check_conflict(photos, groups, names), check_leak(photos, groups, expert)]
    if expert:
        found += [check_labels(expert), None if "turned" in unseen else check_turned(expert), check_outliers(expert)]
    found += [check_blank(photos), check_tiny(photos, recipe, expert), check_narrow(photos, recipe, expert), check_exif(photos)]
    found += [check_duplicates(photos), check_near(photos, groups, fraction, expert), check_few(photos, groups, names, expert)]
    found += [check_unequal(photos, names, expert), check_names(names, expert)]
    findings = [finding for finding in found if finding]
    seen = {finding.kind for finding in findings} | set(unseen)
    per_class = collections.Counter(photo.item.label for photo in photos)
    return Diagnosis(
        len(listing.items),
        len(photos),
        {name: per_class[label] for label, name in enumerate(names)},
        findings,
        [kind for kind in KINDS if kind not in seen],
        unseen,
        listing.notes,
        expert.accuracy if expert else None,
    )


def look_at(listing: Listing, recipe: Recipe, progress: Progress) -> tuple[list[Seen], list[dict[str, Any]]]:
    """All photos that can be read, and a row for each of the others."""

    def read(item: Item) -> Seen | PhotoError:
        name = printable(item.name if item.path.is_relative_to(listing.root) else item.path)
        try:
            data = read_bytes(item.path)
            pixels = read_photo(data, recipe, name)
            width, height, orientation = dimensions(data, name)
        except PhotoError as error:
            return PhotoError(name, error.reason)
        return Seen(item, name, digest(data), width, height, orientation, difference_hash(pixels), float(pixels.std()))

    photos, unreadable = [], []
    for done, (_, seen) in enumerate(photos_ahead(read, listing.items), start=1):
        if isinstance(seen, PhotoError):
            unreadable.append({"files": [seen.name], "why": seen.reason})
        else:
            photos.append(seen)
        progress(done, len(listing.items))
    return photos, unreadable


def group(photos: Sequence[Seen]) -> Array:
    """(N,) group numbers: photos that are alike share one. Those of one colour look all the same, and only equal files are joined."""
    first: dict[str, int] = {}
    groups = np.array([first.setdefault(photo.digest, index) for index, photo in enumerate(photos)], np.int64)
    coloured = [index for index, photo in enumerate(photos) if not photo.blank]
    alike = groups_alike([photos[index].look for index in coloured])
    groups[coloured] = np.array(coloured, np.int64)[alike]
    return groups


def members(keys: Sequence[Any] | Array) -> list[list[int]]:
    """The indices that share a key, for every key that more than one has."""
    together: dict[Any, list[int]] = {}
    for index, key in enumerate(keys.tolist() if isinstance(keys, np.ndarray) else keys):
        together.setdefault(key, []).append(index)
    return [indices for indices in together.values() if len(indices) > 1]


def nearest(photos: Sequence[Seen], of: Sequence[int], among: Sequence[int]) -> list[tuple[int, int]]:
    """For each of `of` the one of `among` that looks most like it, and how many bits lie between; equal bytes are -1 bits apart."""
    same = {photos[index].digest: index for index in reversed(among)}
    looks = np.array([photos[index].look for index in among[:10_000]], np.uint64)  # a film: its first frames will do
    result = []
    for index in of:
        if photos[index].digest in same:
            result.append((same[photos[index].digest], -1))
        else:
            apart = bits_apart(looks, np.array(photos[index].look, np.uint64))
            result.append((among[int(apart.argmin())], int(apart.min())))
    return result


def _apart(bits: int) -> str:
    """How alike two photos are, in words."""
    return "the same file" if bits < 0 else "the same look" if bits == 0 else f"nearly the same look ({bits} of 64 bits differ)"


# ---- what the network sees


@dataclass
class Gaussians:
    """A classifier in closed form: every class a normal distribution, all with one covariance (R. A. Fisher 1936), drawn towards a round
    one by SHRINK (J. Friedman 1989). means: (K, F), NaN for a class without rows; precision: (F, F), the inverse of the covariance.
    """

    means: Array
    precision: Array

    @classmethod
    def fit(cls, rows: Array, labels: Array, classes: int) -> Gaussians:
        """rows: (N, F), labels: (N,) 0..classes-1."""
        width = rows.shape[1]
        means = np.full((classes, width), np.nan)
        covariance = np.zeros((width, width))
        for label in np.unique(labels):
            own = rows[labels == label].astype(np.float64)
            means[label] = own.mean(axis=0)
            covariance += (own - means[label]).T @ (own - means[label]) / len(rows)
        round_one = max(np.trace(covariance) / width, 1e-12) * np.eye(width)
        return cls(means, np.linalg.inv((1 - SHRINK) * covariance + SHRINK * round_one))

    def distances(self, rows: Array) -> Array:
        """(N, F) -> squared Mahalanobis distances (N, K) to the classes; infinite to one without rows."""
        known = np.flatnonzero(~np.isnan(self.means[:, 0]))
        result = np.full((len(rows), len(self.means)), np.inf)
        for start in range(0, len(rows), 4096):
            part = rows[start : start + 4096].astype(np.float64)
            for label in known:
                away = part - self.means[label]
                result[start : start + 4096, label] = ((away @ self.precision) * away).sum(axis=1)
        return result


def cross_validated(rows: Array, labels: Array, fold: Array, classes: int) -> Array:
    """Squared distances (N, K) of every row by a classifier that has seen the other folds only."""
    result = np.full((len(rows), classes), np.inf)
    for number in np.unique(fold):
        out = fold == number
        if not out.all():
            result[out] = Gaussians.fit(rows[~out], labels[~out], classes).distances(rows[out])
    return result


def probabilities(distances: Array, heat: float) -> Array:
    """softmax(-distances / 2 * heat), (N, K); even where all distances are infinite."""
    finite = np.isfinite(distances).any(axis=1)
    result = np.full(distances.shape, 1 / distances.shape[1])
    result[finite] = softmax(np.maximum(-0.5 * heat * distances[finite], -1e30))
    return result


def calibrated(distances: Array, labels: Array) -> float:
    """The heat for which the labels are most probable (temperature scaling, Guo et al. 2017, arXiv:1706.04599): distributions that are
    drawn from few photos are too sure of themselves.
    """
    at = np.arange(len(labels))
    losses = [(float(-np.log(probabilities(distances, heat)[at, labels] + 1e-12).mean()), heat) for heat in np.geomspace(0.01, 2, 60)]
    return float(min(losses)[1])


def folds_of(photos: Sequence[Seen], groups: Array) -> Array:
    """(N,) 0..FOLDS-1, equal within a group; every class is spread evenly. It depends on the photos' content alone."""
    together: dict[int, list[int]] = {}
    for index, number in enumerate(groups.tolist()):
        together.setdefault(number, []).append(index)
    fold, dealt = np.zeros(len(photos), np.int64), collections.Counter[int]()
    for indices in sorted(together.values(), key=lambda own: min(photos[i].digest for i in own)):
        label = photos[indices[0]].item.label
        fold[indices] = dealt[label] % FOLDS
        dealt[label] += 1
    return fold


class Expert:
    """What cross-validated classifiers on the frozen features say. photos: those that it knows; labels: (N,); p: probabilities (N, K);
    far: (N,) how much farther a photo is from the nearest class than is usual, in deviations;
    judged: (N,) bool, whether it can say something about a photo: not of one colour, and of a class with enough others.
    """

    def __init__(
        self, classes: Sequence[str], photos: Sequence[Seen], backbone: Model, cache: Path | None, counter: Callable[[str], Progress]
    ) -> None:
        self.model, self.cache, self.counter, self.classes = backbone.replace_head(classes).freeze("all"), cache, counter, classes
        found = extract(self.model.graph, self.model.recipe, [photo.item.path for photo in photos], cache, counter("features"))
        if not found.kept:
            raise MinitlError(
                f"{found.skipped[0][0]} could be read at first and cannot any more: leave the photos alone while they are used"
            )
        self.photos = [photos[index] for index in found.kept]
        self.rows = found.features.rows
        if not np.isfinite(self.rows).all():
            raise MinitlError("the network answers with numbers that are not finite (NaN or infinity): its weights are damaged")
        self.labels = np.array([photo.item.label for photo in self.photos])
        self.fold = folds_of(self.photos, group(self.photos))
        self.distances = cross_validated(self.rows, self.labels, self.fold, len(classes))
        self.heat = calibrated(self.distances, self.labels)
        self.p = probabilities(self.distances, self.heat)
        self.right = self.p.argmax(axis=1) == self.labels
        distance = self.distances.min(axis=1)
        finite = np.isfinite(distance)
        self.far = np.zeros(len(distance))
        if finite.any():
            away = distance[finite] - np.median(distance[finite])
            self.far[finite] = away / max(1.4826 * np.median(np.abs(away)), 1e-12)  # of a normal distribution, standard deviations
        self.accuracy = float(self.right.mean())
        in_fold = np.zeros((FOLDS, len(classes)), np.int64)
        np.add.at(in_fold, (self.fold, self.labels), 1)
        others = in_fold.sum(axis=0)[self.labels] - in_fold[self.fold, self.labels]
        self.judged = (others >= 5) & ~np.array([photo.blank for photo in self.photos])

    def compared(self, those: Sequence[int] | Array) -> tuple[str, dict[str, float]]:
        """The accuracy on some photos against that on the others, as the end of a sentence and as figures; nothing for fewer than ten."""
        chosen = np.isin(np.arange(len(self.photos)), those)
        if chosen.sum() < 10 or chosen.all():
            return "", {}
        own, other = float(self.right[chosen].mean()), float(self.right[~chosen].mean())
        return f"; measured: {_percent(own)} of them are answered rightly, {_percent(other)} of the others", {
            "accuracy": own,
            "others": other,
        }

    def turned(self, which: Sequence[int]) -> Array:
        """Features (n, 4, F) of some photos as they are and turned by one, two, three quarters (anticlockwise). Kept in the cache, too."""
        graph, recipe = self.model.graph, self.model.recipe
        store = Cache(self.cache, cache_key(graph, recipe), self.rows.shape[1])
        result = np.repeat(self.rows[list(which)][:, None], 4, axis=1)
        missing = []
        for at, i in enumerate(which):
            for quarter in (1, 2, 3):
                row = store.get(self._turned_key(i, quarter))
                if row is None:
                    missing.append(at)
                    break
                result[at, quarter] = row.values
        progress = self.counter("turned copies")
        frozen = Values(graph, graph.border(), threads=1) if missing else None

        def views(at: int) -> list[Array]:
            try:
                pixels = read_photo(self.photos[which[at]].item.path, recipe)
            except PhotoError:  # one that has just gone keeps four equal views, which are sure of nothing
                return []
            assert frozen
            return [features_of(frozen, recipe, np.ascontiguousarray(np.rot90(pixels, quarter))) for quarter in (1, 2, 3)]

        for done, (at, found) in enumerate(photos_ahead(views, missing), start=1):
            for quarter, values in enumerate(found, start=1):
                result[at, quarter] = values
                store.add(self._turned_key(which[at], quarter), Row(values, 0))
            progress(done, len(missing))
        store.flush()
        return result

    def _turned_key(self, i: int, quarter: int) -> str:
        """What the cache knows a turned copy by."""
        return digest(f"{self.photos[i].digest} turned {quarter}".encode())


def check_labels(expert: Expert) -> Finding | None:
    """Photos whose label is far less likely than another class (after Northcutt et al. 2021, arXiv:1911.00068), if they fit any."""
    at, names = np.arange(len(expert.photos)), expert.classes
    own, rest = expert.p[at, expert.labels], expert.p.copy()
    rest[at, expert.labels] = 0
    times = rest.max(axis=1) / np.maximum(own, 1e-6)
    doubted = [int(i) for i in np.argsort(-times, kind="stable") if times[i] >= TIMES and expert.judged[i] and expert.far[i] < FAR]
    if not doubted:
        return None
    keep = ~np.isin(at, doubted)
    costs, figures = f"{_percent(len(doubted) / len(at))} of all photos teach, or ask for, what may be wrong", {}
    if len(np.unique(expert.labels[keep])) == len(names):
        without = np.full(expert.distances.shape, np.inf)
        for number in np.unique(expert.fold):
            out = expert.fold == number
            if (keep & ~out).any():
                without[out] = Gaussians.fit(expert.rows[keep & ~out], expert.labels[keep & ~out], len(names)).distances(expert.rows[out])
        figures = {"before": float(expert.right[keep].mean()), "after": float((without.argmin(axis=1) == expert.labels)[keep].mean())}
        costs += f"; measured on all others: {_percent(figures['before'])} with them in the training, {_percent(figures['after'])} without"
    rows = [
        {
            "files": [expert.photos[i].name],
            "why": f"{names[rest[i].argmax()]} ({_percent(rest[i].max())}) rather than {names[expert.labels[i]]} ({_percent(own[i])})?",
        }
        for i in doubted
    ]
    says = f"{_count(len(doubted), 'photo', 'may')} have the wrong label: classifiers that have not seen them take them for another class"
    return Finding(
        "labels", len(doubted), says, costs, "look at each; move what is wrong into its class, leave hard but right ones", rows, figures
    )


def check_turned(expert: Expert) -> Finding | None:
    """Photos that lie on a side or stand on their head, by a classifier that has learnt from turned copies what is upright.

    It sees a photo in all four positions, and the four answers must agree: the mean of their logarithms is what counts.
    """
    n = len(expert.photos)
    learnt = sorted(range(n), key=lambda i: expert.photos[i].digest)[:PROBE]
    views = expert.turned(learnt)
    width, quarters, fold = views.shape[2], np.tile(np.arange(4), len(learnt)), expert.fold[learnt]
    heads = {}
    for number in np.unique(expert.fold).tolist():
        use = np.repeat(fold != number, 4)
        if not use.any():
            return None
        heads[number] = Gaussians.fit(views.reshape(-1, width)[use], quarters[use], 4)

    def asked(which: Sequence[int], rows: Array) -> Array:
        """(n, v, F) -> squared distances (n, v, 4), by the heads that have not seen these photos."""
        result = np.zeros((*rows.shape[:2], 4))
        for number, head in heads.items():
            own = expert.fold[list(which)] == number
            result[own] = head.distances(rows[own].reshape(-1, width)).reshape(-1, rows.shape[1], 4)
        return result

    known = asked(learnt, views)
    heat = calibrated(known.reshape(-1, 4), quarters)
    accuracy = float((known.reshape(-1, 4).argmin(axis=1) == quarters).mean())
    first = probabilities(asked(range(n), expert.rows[:, None])[:, 0], heat)
    suspects = [i for i in range(n) if first[i, 0] < 0.25 and expert.judged[i]]
    if not suspects:
        return None
    log = np.log(probabilities(asked(suspects, expert.turned(suspects)).reshape(-1, 4), heat) + 1e-9).reshape(-1, 4, 4)
    # stored turned by r quarters, a copy turned by k more is turned by r + k
    mean = np.stack([sum(log[:, k, (r + k) % 4] for k in range(4)) / 4 for r in range(4)], axis=1)
    p = softmax(mean)
    best = p.argmax(axis=1)
    turned = [int(at) for at in np.argsort(-p.max(axis=1), kind="stable") if best[at] and p[at, best[at]] >= SURE]
    if not turned:
        return None
    ways = ("", "a quarter to the left", "upside down", "a quarter to the right")
    rows = [
        {"files": [expert.photos[suspects[at]].name], "why": f"turned {ways[best[at]]}, {_percent(p[at, best[at]])} sure"} for at in turned
    ]
    text, figures = expert.compared([suspects[at] for at in turned])
    return Finding(
        "turned",
        len(turned),
        f"{_count(len(turned), 'photo', 'seem')} to lie on a side or upside down, and nothing in the file says so",
        f"the network has learnt upright things, and the camera will show upright ones (it knows the turn of {_percent(accuracy)} "
        f"of all copies){text}",
        "look at each and turn it; leave them if things lie in any direction before your camera",
        rows,
        {"probe": accuracy, **figures},
    )


def check_outliers(expert: Expert) -> Finding | None:
    """Photos far from all classes (Mahalanobis distance, Lee et al. 2018, arXiv:1807.03888)."""
    far = expert.far
    strange = [int(i) for i in np.argsort(-far, kind="stable") if far[i] >= FAR and not expert.photos[i].blank]
    if not strange:
        return None
    text, figures = expert.compared(strange)
    rows = [{"files": [expert.photos[i].name], "why": f"{far[i]:.1f} deviations farther from every class than usual"} for i in strange]
    return Finding(
        "outliers",
        len(strange),
        f"{_count(len(strange), 'photo', 'look')} like no class: drawings, screens, writing, other things?",
        f"they teach what the camera will never see{text}",
        "look at each; remove what does not belong, add more photos where a rare sight is real",
        rows,
        figures,
    )


# ---- what the files tell


def check_unreadable(listing: Listing, rows: list[dict[str, Any]]) -> Finding | None:
    """Files that look like photos by name and cannot be used."""
    rows = rows + [{"files": [s.name], "why": s.reason} for s in listing.skipped if not _no_photo(s.reason)]
    if not rows:
        return None
    share = len(rows) / (len(listing.items) + sum(not _no_photo(s.reason) for s in listing.skipped))
    says = f"{_count(len(rows), 'file', 'cannot')} be read"
    costs = f"minitl leaves them out: {_percent(share)} of your photos; other tools stop there, or train on half a picture"
    return Finding("unreadable", len(rows), says, costs, "copy them again from the camera or convert them, else delete them", rows)


def _no_photo(reason: str) -> bool:
    """Whether folders.py passed a file over for what it is or where it lies."""
    return reason.startswith(("not a photo", "lies outside"))


def check_passed_over(listing: Listing) -> Finding | None:
    """Files that are no photos, or lie outside the classes."""
    rows = [{"files": [s.name], "why": s.reason} for s in listing.skipped if _no_photo(s.reason)]
    if not rows:
        return None
    do = "nothing, if they are no photos; else give them an ending such as .jpg, and move them into the folder of a class"
    return Finding(
        "passed_over", len(rows), f"{_count(len(rows), 'file', 'are')} passed over", "nothing but what they might have shown", do, rows
    )


def check_conflict(photos: Sequence[Seen], groups: Array, classes: Sequence[str]) -> Finding | None:
    """The same photo, or nearly, in two classes."""
    rows: list[tuple[int, dict[str, Any]]] = []
    concerned: set[int] = set()
    for together in members(groups):
        labels = sorted({photos[i].item.label for i in together})
        for label in labels[1:]:
            of, among = [i for i in together if photos[i].item.label == label], [i for i in together if photos[i].item.label < label]
            for i, (other, bits) in zip(of, nearest(photos, of, among), strict=True):
                if bits <= ALIKE:
                    concerned |= {i, other}
                    both = f"{classes[label]} and {classes[photos[other].item.label]}"
                    rows.append((bits, {"files": [photos[i].name, photos[other].name], "why": f"{_apart(bits)}; {both}"}))
    if not rows:
        return None
    lost = 0
    for together in members([photo.digest for photo in photos]):
        lost += len(together) - max(collections.Counter(photos[i].item.label for i in together).values())
    certain = (
        f"for {lost} of them the file is the same, so that no classifier can have more than {_percent(1 - lost / len(photos))} right; "
    )
    return Finding(
        "conflict",
        len(concerned),
        f"{_count(len(concerned), 'photo', 'lie')}, the same or nearly, in two classes",
        f"{certain if lost else ''}up to {_percent(len(rows) / len(photos))} of all photos have a wrong label, or two",
        "keep each in one class; frames of one scene in which something comes and goes are right as they are",
        [row for _, row in sorted(rows, key=lambda pair: pair[0])],
        {"the same file": lost},
    )


def check_leak(photos: Sequence[Seen], groups: Array, expert: Expert | None) -> Finding | None:
    """Validation photos of which a copy is trained on."""
    rows: list[tuple[int, int, dict[str, Any]]] = []
    for together in members(groups):
        of, among = ([i for i in together if photos[i].side == side] for side in ("val", "train"))
        if of and among:
            for i, (other, bits) in zip(of, nearest(photos, of, among), strict=True):
                rows.append((bits, i, {"files": [photos[i].name, photos[other].name], "why": _apart(bits)}))
    if not rows:
        return None
    rows.sort(key=lambda row: row[0])
    exact, val = sum(bits < 0 for bits, _, _ in rows), np.array([photo.side == "val" for photo in photos])
    copies = np.isin(np.arange(len(photos)), [i for _, i, _ in rows])
    costs = f"{_percent(len(rows) / val.sum())} of the validation photos were seen in training, so the accuracy looks better than it is"
    figures: dict[str, Any] = {"the same file": exact}
    if expert and (val & ~copies).any():
        answers = Gaussians.fit(expert.rows[~val], expert.labels[~val], len(expert.classes)).distances(expert.rows).argmin(axis=1)
        right = answers == expert.labels
        figures |= {"with": float(right[val].mean()), "without": float(right[val & ~copies].mean())}
        points = 100 * (figures["with"] - figures["without"])
        costs += f"; measured: {_percent(figures['with'])} with them, {_percent(figures['without'])} without, {points:+.1f} points"
    same = f", {exact} of them the same file" if exact else ""
    says = f"{_count(len(rows), 'validation photo', 'are')} copies, or nearly, of training photos{same}"
    do = "take them out of one side; or put all photos together without train and val: minitl then keeps copies on one side"
    return Finding("leak", len(rows), says, costs, do, [row for _, _, row in rows], figures)


def check_blank(photos: Sequence[Seen]) -> Finding | None:
    """Photos of one colour."""
    flat = sorted((photo for photo in photos if photo.blank), key=lambda photo: photo.spread)
    if not flat:
        return None
    rows = [{"files": [photo.name], "why": f"values deviate by {photo.spread:.1f} of 255"} for photo in flat]
    costs = "a class learns to be chosen where there is nothing to see: lens caps, night, failed downloads"
    do = "delete them, or collect them in a class of their own for `nothing`"
    return Finding("blank", len(flat), f"{_count(len(flat), 'photo', 'show')} one colour only", costs, do, rows)


def _fit(photo: Seen, recipe: Recipe) -> tuple[float, float]:
    """(pixels of the photo for one of the network's, along the tighter side; how many times longer it is than the input)."""
    width, height = (photo.height, photo.width) if photo.orientation >= 5 else (photo.width, photo.height)
    across, down = width / recipe.width, height / recipe.height
    return min(across, down) * (recipe.crop_fraction if recipe.resize == "crop" else 1), max(across / down, down / across)


def check_tiny(photos: Sequence[Seen], recipe: Recipe, expert: Expert | None) -> Finding | None:
    """Photos with far fewer pixels than the network's input."""
    small = sorted((_fit(photo, recipe)[0], i) for i, photo in enumerate(photos) if _fit(photo, recipe)[0] * ENLARGED < 1)
    if not small:
        return None
    target = f"{recipe.width} x {recipe.height}" + ("" if expert else ", a usual input")
    rows = [
        {"files": [photos[i].name], "why": f"{photos[i].width} x {photos[i].height} pixels, enlarged {1 / unit:.1f} times to {target}"}
        for unit, i in small
    ]
    text, figures = expert.compared([i for _, i in small]) if expert else ("", {})
    return Finding(
        "tiny",
        len(small),
        f"{_count(len(small), 'photo', 'are')} tiny",
        f"the network sees a blur, and learns it where one class has more of them than another{text}",
        "find the originals (these may be thumbnails), else leave them out",
        rows,
        figures,
    )


def check_narrow(photos: Sequence[Seen], recipe: Recipe, expert: Expert | None) -> Finding | None:
    """Photos of which the crop leaves little, or that squashing deforms."""
    long = sorted(((-_fit(photo, recipe)[1], i) for i, photo in enumerate(photos) if _fit(photo, recipe)[1] >= NARROW))
    if not long:
        return None
    kept = recipe.crop_fraction**2
    effect = [
        f"{_percent(kept / -ratio)} of it is seen" if recipe.resize == "crop" else f"squashed {-ratio:.1f} times" for ratio, _ in long
    ]
    rows = [
        {"files": [photos[i].name], "why": f"{photos[i].width} x {photos[i].height}, {what}"}
        for (_, i), what in zip(long, effect, strict=True)
    ]
    text, figures = expert.compared([i for _, i in long]) if expert else ("", {})
    what = "the thing may lie in the part that is cut off" if recipe.resize == "crop" else "things are deformed as no camera shows them"
    says = f"{_count(len(long), 'photo', 'are')} very long or very high"
    return Finding("narrow", len(long), says, what + text, "cut out by hand what the class is about", rows, figures)


def check_exif(photos: Sequence[Seen]) -> Finding | None:
    """Photos that are upright only where a note in the file is obeyed."""
    notes = [photo for photo in photos if photo.orientation != 1]
    if not notes:
        return None
    share = len(notes) / len(photos)
    how = {2: "mirrored", 3: "upside down", 4: "upside down, mirrored", 5: "on its side, mirrored", 7: "on its side, mirrored"}
    rows = [{"files": [photo.name], "why": f"stored {how.get(photo.orientation, 'on its side')}"} for photo in notes]
    return Finding(
        "exif",
        len(notes),
        f"{_count(len(notes), 'photo', 'lie')} turned in their files, with a note (EXIF orientation) that says so",
        f"nothing in minitl, which turns them; a tool or a device that ignores the note sees {_percent(share)} of the photos turned "
        "(where all are, the accuracy of a MobileNetV1 on 1,000 photos fell from 45.1 to 19.9 %)",
        "nothing for minitl; for other tools save them upright",
        rows,
        {"share": share},
    )


def check_duplicates(photos: Sequence[Seen]) -> Finding | None:
    """The same file several times in a class, on one side."""
    rows = [
        {"files": [photos[i].name for i in together], "why": "the same file"}
        for together in members([(photo.digest, photo.item.label, photo.side) for photo in photos])
    ]
    if not rows:
        return None
    extra = sum(len(row["files"]) - 1 for row in rows)
    says = f"{_count(extra, 'photo', 'are')} there more than once in {'its' if extra == 1 else 'their'} class"
    costs = f"{len(photos):,} photos are really {len(photos) - extra:,}; what is there twice counts twice, in training and in the accuracy"
    rows.sort(key=lambda row: -len(row["files"]))
    return Finding("duplicates", extra, says, costs, "keep one of each", rows)


def check_near(photos: Sequence[Seen], groups: Array, fraction: float, expert: Expert | None) -> Finding | None:
    """Photos that look nearly the same and are different files, in one class and on one side."""
    seen: set[tuple[str, int, str]] = set()
    different = []
    for i, photo in enumerate(photos):
        key = (photo.digest, photo.item.label, photo.side)
        if key not in seen:
            seen.add(key)
            different.append(i)
    keys = [(int(groups[i]), photos[i].item.label, photos[i].side) for i in different]
    together = sorted(([different[k] for k in own] for own in members(keys)), key=lambda own: -len(own))
    if not together:
        return None
    extra = sum(len(own) - 1 for own in together)
    costs, figures = f"they teach little more than {_count(len(together), 'photo')} would", dict[str, Any]()
    if all(photo.item.part is None for photo in photos):
        sizes = np.bincount(groups, minlength=len(photos))[groups]
        figures["leak"] = float((1 - fraction ** (sizes - 1)).mean())
        costs += f"; drawn at random, {_percent(figures['leak'])} of validation photos would have a copy in training (minitl prevents it)"
        if expert:
            alone = folds_of(photos, np.arange(len(photos)))
            drawn = cross_validated(expert.rows, expert.labels, alone, len(expert.classes)).argmin(axis=1) == expert.labels
            figures |= {"random": float(drawn.mean()), "together": expert.accuracy}
            costs += f"; measured: the accuracy would look like {_percent(figures['random'])} instead of {_percent(expert.accuracy)}"
    rows = [{"files": [photos[i].name for i in own], "why": "nearly the same look"} for own in together]
    says = f"{_count(extra, 'photo', 'look')} nearly like another one of their class"
    return Finding("near", extra, says, costs, "keep the best of each, and take new photos at other places and times", rows, figures)


def check_few(photos: Sequence[Seen], groups: Array, classes: Sequence[str], expert: Expert | None) -> Finding | None:
    """Classes with few photos that differ."""
    different: dict[str, list[set[int]]] = {side: [set() for _ in classes] for side in ("train", "val")}
    for photo, number in zip(photos, groups.tolist(), strict=True):
        different[photo.side][photo.item.label].add(number)
    divided = any(different["val"])
    rows: list[tuple[int, dict[str, Any]]] = []
    for label, name in enumerate(classes):
        train, val = len(different["train"][label]), len(different["val"][label])
        why = [f"{_count(train, 'different photo')} to train on"] if train < FEW else []
        if divided and val < FEW_VAL:
            why.append(
                f"{val} to validate on" + (f", each {100 / val:.0f} points of its accuracy" if val else ": nobody will know how it does")
            )
        if why:
            rows.append((train, {"files": [printable(name)], "why": ", ".join(why)}))
    if not rows:
        return None
    rows.sort(key=lambda row: row[0])
    small = {row["files"][0] for _, row in rows}
    own = [i for i, photo in enumerate(photos) if printable(classes[photo.item.label]) in small]
    text, figures = expert.compared(own) if expert else ("", {})
    return Finding(
        "few",
        len(rows),
        f"{_count(len(rows), 'class', 'have')} few photos that differ (fewer than {FEW} to train on"
        + (f", or {FEW_VAL} to validate on)" if divided else ")"),
        f"the network learns these few pictures rather than the class, and its accuracy there is a matter of chance{text}",
        f"take more, at other places and times; {FEW} is little, 100 are good",
        [row for _, row in rows],
        figures,
    )


def check_unequal(photos: Sequence[Seen], classes: Sequence[str], expert: Expert | None) -> Finding | None:
    """One class has many times the photos of another."""
    counts = np.bincount([photo.item.label for photo in photos if photo.side == "train"], minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    most, least = int(order[0]), int(order[-1])
    if not photos or counts[most] < UNEQUAL * counts[least]:
        return None
    share = float(counts[most] / counts.sum())
    costs, figures = (
        f"who always answers {classes[most]!r} is right on {_percent(share)} of the photos: look at each class's accuracy",
        {"constant": share},
    )
    if expert:
        for key, label in (("most", most), ("least", least)):
            if (expert.labels == label).any():
                figures[key] = float(expert.right[expert.labels == label].mean())
        if len(figures) == 3:
            costs += f"; measured: {classes[most]!r} {_percent(figures['most'])}, {classes[least]!r} {_percent(figures['least'])}"
    rows = [{"files": [printable(classes[label])], "why": _count(int(counts[label]), "photo")} for label in order]
    says = f"the classes are unequal: {counts[most]:,} photos of {classes[most]!r}, {counts[least]:,} of {classes[least]!r}"
    return Finding("unequal", int((counts * UNEQUAL <= counts[most]).sum()), says, costs, "take more of the small classes", rows, figures)


def check_names(classes: Sequence[str], expert: Expert | None) -> Finding | None:
    """Class folders whose names differ in capitals, signs, a plural or a slip of the pen."""
    plain = [re.sub(r"[\W_]+", "", name.casefold()) for name in classes]
    where: dict[str, list[int]] = {}
    for label, name in enumerate(plain):
        forms = {name} | {name[: -len(end)] for end in ("s", "es") if name.endswith(end) and len(name) > len(end) + 2}
        if name.isalpha() and len(name) >= 6:
            forms |= {name[:k] + name[k + 1 :] for k in range(len(name))}
        for form in forms:
            where.setdefault(form, []).append(label)
    pairs = sorted({(a, b) for same in where.values() for a in same[:50] for b in same[:50] if a < b and max(len(plain[a]), 1)})
    if not pairs:
        return None
    rows = []
    for a, b in pairs:
        why = ""
        if expert:
            taken = expert.p.argmax(axis=1)
            both = int(((expert.labels == a) & (taken == b) | (expert.labels == b) & (taken == a)).sum())
            why = f"{both} of {int(np.isin(expert.labels, (a, b)).sum())} photos are taken for the other"
        rows.append({"files": [printable(classes[a]), printable(classes[b])], "why": why})
    says = f"{_count(len(pairs), 'pair')} of classes with nearly the same name"
    costs = "if they mean the same, the network is asked to tell equal things apart, and half of these photos count as wrong"
    return Finding("names", len(pairs), says, costs, "put them into one folder if they are one class; else give them clearer names", rows)
