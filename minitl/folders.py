"""Folders of photos: what lies in them, which class each photo has, and which photos are kept for validation.

Enters: a folder root/CLASS/... (or root/train/CLASS/..., root/val/CLASS/...). Leaves: the labelled list, what was passed over and
why; and a division into training and validation photos that depends on the photos' content alone. Left out: reading the photos
(images.py). Nothing is ever written.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import MinitlError
from .files import printable
from .images import EXTENSIONS, HEIC, digest, reads_heic

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
"""Names of folders, in any case, that divide the photos instead of naming a class."""

LEFTOVERS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"))
"""What operating systems leave in folders; passed over in silence, as is every name that starts with a dot."""

ARRANGE = "put the photos of each class into a folder of its own, as in PHOTOS/CLASS/photo.jpg"


@dataclass(frozen=True)
class Item:
    """A photo of a folder. name: its path below the folder, with slashes; label: index into the classes; part: 'train', 'val',
    or None where the folder is not divided.
    """

    path: Path
    name: str
    label: int
    part: str | None


@dataclass(frozen=True)
class Skipped:
    """A file that was not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What lies in a folder of photos. items: by part (train first), class, folder and name; notes: sentences for the user."""

    root: Path
    classes: list[str]
    items: list[Item]
    skipped: list[Skipped]
    notes: list[str]


def list_folder(root: str | os.PathLike[str], classes: Sequence[str] | None = None) -> Listing:
    """The labelled photos of root/CLASS/..., or of root/train/CLASS/... and root/val/CLASS/... (also 'validation', 'valid').

    Classes are sorted by name, capitals before small letters, as Keras and torchvision do, so that labels agree with theirs.
    Folders inside a class are walked, links followed, each folder once. A 'test' part and LEFTOVERS are passed over; files
    that are no photos by their extension are listed as skipped.

    classes: those of a model, to list photos for it: one may then be absent here, but none unknown. Without them there must be
    at least two, each with a photo. Raises MinitlError, with what to do, for a folder that cannot be used.
    """
    folder, shown = Path(root), printable(root)
    names, loose = _look_into(folder, shown)
    if not names:
        if loose:
            raise MinitlError(
                f"{shown}: {len(loose)} photos lie directly in it (such as {loose[0]}), so nothing names their class; {ARRANGE}"
            )
        raise MinitlError(f"{shown}: the folder holds no photos; {ARRANGE}")
    notes: list[str] = []
    parts = _parts(folder, shown, names, notes, classes is None)
    skipped = [Skipped(name, "lies outside the folders of the classes") for name in loose]

    photos: dict[str | None, dict[str, list[Path]]] = {}
    for part, start in parts.items():
        photos[part] = {}
        for name in _look_into(start, printable(start))[0]:
            if printable(name) != name:
                raise MinitlError(f"{shown}: the folder name {printable(name)!r} has characters that no file or label can carry; rename it")
            photos[part][name] = _walk(start / name, folder, skipped)
    if "val" in photos and "train" in photos and not any(photos["val"].values()):
        notes.append("the validation folder holds no photos: a part of the training photos is taken instead")
        photos = {None: photos["train"]}

    own = sorted(photos["train" if "train" in photos else next(iter(photos))])
    known = own if classes is None else list(classes)
    if not any(paths for by_class in photos.values() for paths in by_class.values()):
        raise MinitlError(f"{shown}: the folder holds no photos{_example(skipped)}; {ARRANGE}")
    for part, by_class in photos.items():
        strangers = sorted(set(by_class) - set(known))
        if strangers:
            where = "the model" if classes is not None else "the training photos"
            raise MinitlError(
                f"{shown}: {_list(strangers)} in {printable(parts.get(part, folder))} {'is' if len(strangers) == 1 else 'are'} unknown; "
                f"the classes of {where} are {_list(known)}; found {_list(sorted(by_class))}; rename or remove folders until they agree"
            )
    if classes is None:
        _check_classes(shown, photos["train" if "train" in photos else None], skipped)
        if "val" in photos:
            absent = [name for name in known if not photos["val"].get(name)]
            notes += [f"no validation photos of {_list(absent)}"] if absent else []
    items = [
        Item(path, path.relative_to(folder).as_posix(), known.index(name), part)
        for part in ("train", "val", None)
        for name, paths in sorted(photos.get(part, {}).items())
        for path in paths
    ]
    return Listing(folder, known, items, skipped, notes)


def with_validation(listing: Listing, folder: str | os.PathLike[str]) -> Listing:
    """The listing's photos for training, the photos of another folder (its 'val' part if it has one) for validation.

    Raises MinitlError where that folder has a class that the listing lacks, or holds the same files.
    """
    other = list_folder(folder, listing.classes)
    parts = {item.part for item in other.items}
    chosen = [item for item in other.items if item.part == ("val" if "val" in parts else item.part)]
    kept = [item for item in listing.items if item.part != "val"]
    notes = [*listing.notes, *other.notes]
    if len(kept) < len(listing.items):
        notes.append(f"the validation photos of {printable(listing.root)} are left out: those of {printable(folder)} are used")
    shared = {os.path.realpath(item.path) for item in kept} & {os.path.realpath(item.path) for item in chosen}
    if shared:
        raise MinitlError(
            f"{printable(folder)}: {len(shared)} of its photos are training photos too (such as {printable(min(shared))}); "
            "validate on photos that the training does not see, or give a fraction such as 0.2"
        )
    items = [replace(item, part="train") for item in kept] + [replace(item, part="val") for item in chosen]
    return Listing(listing.root, listing.classes, items, listing.skipped + other.skipped, notes)


def find_photos(path: str | os.PathLike[str]) -> tuple[list[Path], list[Skipped]]:
    """A file as it is, or all photos below a folder, sorted, and what was passed over; for photos without a class."""
    start, skipped = Path(path), list[Skipped]()
    if not start.is_dir():
        return [start], []
    photos = _walk(start, start, skipped)
    if not photos:
        raise MinitlError(f"{printable(path)}: the folder holds no photos{_example(skipped)}; give a photo or a folder of photos")
    return photos, skipped


def _look_into(folder: Path, shown: str) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the photos directly in a folder; MinitlError where it cannot be read."""
    try:
        entries = sorted(name for name in os.listdir(folder) if not name.startswith(".") and name.lower() not in LEFTOVERS)
    except NotADirectoryError:
        raise MinitlError(f"{shown}: this is a file; expected a folder of photos; {ARRANGE}") from None
    except (OSError, ValueError) as error:
        raise MinitlError(f"{shown}: the folder cannot be read ({getattr(error, 'strerror', None) or error}); {ARRANGE}") from None
    folders = [name for name in entries if os.path.isdir(folder / name)]
    return folders, [printable(name) for name in entries if name not in folders and Path(name).suffix.lower() in EXTENSIONS]


def _parts(folder: Path, shown: str, names: list[str], notes: list[str], for_training: bool) -> dict[str | None, Path]:
    """{'train': ..., 'val': ...} where the folders in `folder` divide it, {None: ...} where they, or those in train, are classes.

    A class may be called 'train' (the vehicle): folders divide only if 'train' holds folders and either no class lies beside
    it or 'val' does.
    """
    named: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in names:
        named.get(PARTS.get(name.lower(), ""), []).append(name)
    others = [name for name in names if name.lower() not in PARTS]
    if not named["train"]:
        if named["val"] and not others and not for_training:
            return {"val": folder / named["val"][0]}
        return {None: folder}
    start = folder / named["train"][0]
    loose = _look_into(start, printable(start))[1]
    if others and (loose or not named["val"]):
        return {None: folder}
    if loose:
        raise MinitlError(
            f"{printable(start)}: {len(loose)} photos lie directly in it (such as {loose[0]}); expected train/CLASS/photo.jpg"
        )
    for same in (named["train"], named["val"]):
        if len(same) > 1:
            raise MinitlError(f"{shown}: {_list(same)} mean the same part of the photos; keep one of them")
    if others:
        notes.append(f"{_list(others)}: passed over, since the photos are divided into {_list(named['train'] + named['val'])}")
    if named["test"]:
        notes.append(f"{_list(named['test'])}: passed over, test photos are neither trained on nor used to choose")
    if not named["val"]:
        return {None: start}
    return {"train": start, "val": folder / named["val"][0]}


def _walk(start: Path, root: Path, skipped: list[Skipped]) -> list[Path]:
    """All photos below `start`, sorted by folder, then name; every folder is read once, so that links in circles end."""
    photos, seen, stack = [], set(), [start]
    while stack:
        folder = stack.pop()
        try:
            status = os.stat(folder)
            entries = [] if (status.st_dev, status.st_ino) in seen else sorted(os.listdir(folder))
        except OSError as error:
            skipped.append(Skipped(printable(folder.relative_to(root)), f"the folder cannot be read ({error.strerror})"))
            continue
        seen.add((status.st_dev, status.st_ino))
        inner = []
        for name in entries:
            path = folder / name
            if name.startswith(".") or name.lower() in LEFTOVERS:
                continue
            suffix = path.suffix.lower()
            if os.path.isdir(path):
                inner.append(path)
            elif suffix in (".heic", ".heif") and not reads_heic():
                skipped.append(Skipped(printable(path.relative_to(root).as_posix()), HEIC))
            elif suffix in EXTENSIONS:
                photos.append(path)
            else:
                ending = f"its name ends in {printable(suffix)}" if suffix else "its name has no ending such as .jpg"
                skipped.append(Skipped(printable(path.relative_to(root).as_posix()), f"not a photo ({ending})"))
        stack += reversed(inner)
    return sorted(photos, key=lambda path: (str(path.parent), path.name))


def _check_classes(shown: str, by_class: dict[str, list[Path]], skipped: list[Skipped]) -> None:
    """MinitlError unless there are two classes, each with a photo."""
    empty = [name for name in sorted(by_class) if not by_class[name]]
    if len(by_class) == 1:
        raise MinitlError(f"{shown}: found one class only, {_list(list(by_class))}; a classifier tells two or more apart: {ARRANGE}")
    if empty:
        inside = [s for s in skipped if set(Path(s.name).parts) & set(empty)]
        raise MinitlError(f"{shown}: no photos in the folder of {_list(empty)}{_example(inside)}; add photos or move the folder away")


def _example(skipped: list[Skipped]) -> str:
    """What was passed over, for the end of a clause."""
    return f" ({len(skipped)} files were passed over, such as {skipped[0].name}: {skipped[0].reason})" if skipped else ""


def _list(names: Sequence[str]) -> str:
    """Names for a sentence, the first ten of them."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(repr(printable(name)) for name in names[:10]) + more


# ---- training and validation ---------------------------------------------------------------------------------------------------

ALIKE = 3
"""Photos whose difference hashes differ in at most so many of 64 bits are taken for copies of one another.

Measured on 1,719 downsized photos of monkeys, fruit and street scenes: of copies saved again (JPEG quality 60 and 90; 3/4 and half
the size) 98.5, 99.6, 98.5 and 95.6 % are found; equal hashes alone find 63, 79, 59 and 43 %. Among the photos
themselves, 54 validation photos of the monkeys (of 272) have such a copy among the training photos: looked at one by one, all
54 pairs are copies. At a distance of 4 the first pairs of different photos seem to come: bananas on a white ground.
"""


def difference_hash(pixels: np.ndarray) -> int:
    """64 bits that say how a picture looks, much the same for a copy of other size or quality. pixels: (H, W, 3) uint8.

    Grey, averaged down to 8 rows of 9; a bit says whether a cell is darker than its right neighbour (N. Krawetz, "Kind of
    Like That", 2013).
    """
    cells = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")


@functools.cache
def _ones() -> np.ndarray:
    """How many bits are set in each 16-bit number (NumPy has a function for it since 2.0)."""
    counted: np.ndarray = np.unpackbits(np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1, dtype=np.uint8)
    return counted


def bits_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many bits differ between difference hashes: uint64 (N,) and (N,) or one number -> (N,)."""
    different = np.atleast_1d(np.asarray(a, np.uint64) ^ np.asarray(b, np.uint64))
    counted: np.ndarray = _ones()[different[:, None].view(np.uint16)].sum(axis=1)
    return counted


def groups_alike(hashes: Sequence[int]) -> list[int]:
    """A group number per photo, the index of the group's first photo: photos that are ALIKE, directly or through others, share it.

    Two hashes that differ in 3 bits agree in at least one of their four 16-bit pieces, so only those are compared.
    Measured: 100,000 random hashes 0.1 s; 50,000 pairs 0.2 s; 100,000 that share a piece 2 s, two pieces 12 s.
    """
    values, places = np.unique(np.array(hashes, np.uint64), return_inverse=True)
    group = np.arange(len(values))
    _join_alike(values, group, group.copy(), np.arange(64, dtype=np.uint64))
    first: dict[int, int] = {}
    return [first.setdefault(number, index) for index, number in enumerate(group[places.reshape(-1)].tolist())]


CROWD = 256
"""So many hashes that share a piece are divided once more, by pieces of their other bits, instead of compared pair by pair."""


def _join_alike(values: np.ndarray, group: np.ndarray, members: np.ndarray, bits: np.ndarray) -> None:
    """Join in `group`, in place, those of `members` that are ALIKE. bits: the positions in which members may differ."""
    for piece in np.array_split(bits, ALIKE + 1):
        keys = values[members] & np.bitwise_or.reduce(np.uint64(1) << piece)
        order = np.argsort(keys, kind="stable")
        keys, sorted_members = keys[order], members[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
        sizes = np.diff(starts, append=len(keys))
        rest = np.setdiff1d(bits, piece)
        large = (sizes > CROWD) & (len(rest) > 2 * ALIKE)
        pairs = []
        at, ends = np.arange(len(keys)), np.repeat(np.where(large, starts, starts + sizes), sizes)
        apart = 1
        while (at := at[at + apart < ends[at]]).size:
            i, j = sorted_members[at], sorted_members[at + apart]
            near = bits_apart(values[i], values[j]) <= ALIKE
            pairs.append((i[near], j[near]))
            apart += 1
        if pairs:
            _join(group, *(np.concatenate(side) for side in zip(*pairs, strict=True)))
        for start, size in zip(starts[large], sizes[large], strict=True):
            crowd = sorted_members[start : start + size]
            if np.any(group[crowd] != group[crowd[0]]):
                _join_alike(values, group, crowd, rest)


def _join(group: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Give the groups of i[k] and j[k] one number, their smallest, for every k; in place."""
    while np.any(group[i] != group[j]):
        np.minimum.at(group, np.maximum(group[i], group[j]), np.minimum(group[i], group[j]))
        while np.any(group[group] != group):
            group[:] = group[group]


@dataclass(frozen=True)
class Split:
    """val: (N,) bool, True for validation. repetitive: labels of classes whose photos nearly all look alike (frames of a film?),
    so that copies had to be put on both sides. unvalidated: labels of classes without a validation photo.
    """

    val: np.ndarray
    repetitive: list[int]
    unvalidated: list[int]


def split(labels: Sequence[int], digests: Sequence[str], hashes: Sequence[int], fraction: float) -> Split:
    """Divide photos into training and validation, `fraction` of each class for validation, copies always on one side.

    Depends on the photos' bytes alone, not on names, order or a seed. Photos that are ALIKE form a group, of whatever class.
    Groups are put in the order of a hash of their smallest digest and go to validation as long as no class exceeds its share:
    a further photo therefore moves few others. A class that got less than half its share since its groups are large takes its
    smallest ones up to half of its photos; if that fails too, its groups are broken up into single digests. Every class of two
    different photos ends up on both sides.

    digests: from digest(); hashes: from difference_hash(). Raises MinitlError for a fraction outside 0..1.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise MinitlError(f"the share of photos for validation should be a number between 0 and 1, such as 0.2; found {fraction!r:.80}")
    assert len(labels) == len(digests) == len(hashes)
    total = collections.Counter(labels)
    share = {c: min(max(1, round(n * fraction)), n - 1) for c, n in total.items()}
    keys = [f"alike {group}" for group in groups_alike(hashes)]
    repetitive: list[int] = []
    while True:
        val = _divide(labels, digests, keys, share)
        got = collections.Counter(c for c, v in zip(labels, val, strict=True) if v)
        starved = [c for c in total if 2 * got[c] < share[c] and c not in repetitive]
        if not starved:
            break
        repetitive += starved  # that moves other groups, so that another class may starve now
        keys = [d if c in starved else key for key, d, c in zip(keys, digests, labels, strict=True)]
    return Split(np.array(val, bool), sorted(c for c in repetitive if got[c]), sorted(c for c in total if not got[c]))


def _divide(labels: Sequence[int], digests: Sequence[str], keys: Sequence[str], share: Mapping[int, int]) -> list[bool]:
    """True for the photos of the groups (equal keys) that go to validation; see split()."""
    members: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    # the digest is hashed again: the smallest digest of a large group is small, it would come first
    ordered = sorted(members.values(), key=lambda group: digest(min(digests[i] for i in group).encode()))
    contents = [collections.Counter(labels[i] for i in group) for group in ordered]
    got: collections.Counter[int] = collections.Counter()
    chosen: set[int] = set()

    def take(g: int, limit: Mapping[int, int]) -> None:
        if g not in chosen and all(got[c] + n <= limit[c] for c, n in contents[g].items()):
            chosen.add(g)
            got.update(contents[g])

    for g in range(len(ordered)):
        take(g, share)
    total = collections.Counter(labels)
    half = {c: max(share[c], total[c] // 2) for c in total}
    for g in sorted(range(len(ordered)), key=lambda g: len(ordered[g])):
        if any(2 * got[c] < share[c] for c in contents[g]):
            take(g, half)
    inside = {i for g in chosen for i in ordered[g]}
    return [i in inside for i in range(len(labels))]
