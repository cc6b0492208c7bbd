"""Pretraining: a backbone from random weights, by minitl alone, on any pictures that are sorted into classes.

    python weights/pretrain.py PHOTOS... --out FOLDER

In: folders of photos, or .tar archives of them, as [train|val/]CLASS/photo. Out, in FOLDER: backbone.npz (a model of ours, classifier
included, of the best epoch so far, in half precision), curve.csv and curve.png, and checkpoint.npz while it runs: the same command goes on
from there, to the same bytes at the end.

Pixels are kept in memory, small; every epoch sees another view of every photo. Small inputs come first, since they cost less: the network
is the same at every size. With --teacher the answers of a larger network, which knows the same classes, are learned beside the labels. It
is asked once about each of a few views of every photo, and these are what the network then sees (Faghri et al. 2023, arXiv:2303.08983).
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

import minitl
from minitl import heads, training
from minitl.augment import MARGIN, Augmentation, augmented_batch
from minitl.checkpoints import Checkpoint, Stopped
from minitl.drawing import CHART, WIDTH, Page, draw_chart, duration
from minitl.drawing import MARGIN as EDGE
from minitl.engine import Values
from minitl.errors import MinitlError
from minitl.features import large_array
from minitl.files import printable, write_atomically
from minitl.folders import PARTS, list_folder
from minitl.graph import INPUT
from minitl.images import EXTENSIONS, PhotoError, Recipe, digest, dimensions, photos_ahead, read_bytes, read_photo
from minitl.layers import Array
from minitl.model import Model, find
from minitl.reference import softmax
from minitl.report import curve_charts, to_png
from minitl.training import Epoch, Settings
from minitl.transfer import hashed
from minitl.weights import to_bytes

VAL_SHARE = 0.05
"""Of the photos, by their content, where they are not divided into train and val."""

SETTINGS = Settings(epochs=100, batch=128, rate=0.3, decay=4e-5, warmup=2.0, average=0.9995, patience=10**6)
"""SGD with Nesterov momentum; the rate falls along half a cosine. No smoothing: it makes features that transfer less (Kornblith
et al. 2021, arXiv:2010.16402)."""

IMPRINTED = 40
"""Photos of each class for the first classifier on weights that are pretrained."""

AUGMENT = "mirror,crop=0.4,colour=0.3"


class Photos:
    """All pictures, small, in memory: pixels (N, S, S, 3) uint8, whole photos squashed; aspects (N,); labels (N,); in_val (N,) bool."""

    def __init__(self, sources: Sequence[Path], size: int) -> None:
        found = sorted(_photos(sources), key=lambda photo: photo[0])
        self.classes = sorted({name.split("/")[1] for name, _ in found})
        if len(self.classes) < 2:
            raise MinitlError(f"{', '.join(map(printable, sources))}: photos of {len(self.classes)} classes, at least two are needed")
        self.side = max(16, min(math.ceil(MARGIN * size), _usual_side([data for _, data in found[:: max(1, len(found) // 50)]])))
        recipe = Recipe(self.side, self.side, resize="squash")

        def read(photo: tuple[str, bytes]) -> tuple[Array, float] | PhotoError:
            try:
                width, height, _ = dimensions(photo[1], photo[0])
                return read_photo(photo[1], recipe, photo[0]), width / height
            except PhotoError as error:
                return error

        self.skipped: list[PhotoError] = []
        self.pixels = large_array((len(found), self.side, self.side, 3), np.uint8, None)
        aspects, kept = [], []
        for (name, data), photo in photos_ahead(read, found):
            if isinstance(photo, PhotoError):
                self.skipped.append(photo)
                continue
            self.pixels[len(kept)] = photo[0]
            aspects.append(photo[1])
            kept.append((name, digest(data)))
        self.pixels = self.pixels[: len(kept)]
        self.aspects = np.array(aspects)
        self.labels = np.array([self.classes.index(name.split("/")[1]) for name, _ in kept])
        self.in_val = np.array([name.startswith("val/") for name, _ in kept])
        self.digests = [own for _, own in kept]
        if self.in_val.any() == self.in_val.all():
            self.in_val = np.array([int(own[:8], 16) < VAL_SHARE * 2**32 for own in self.digests])
        for part, name in ((self.in_val, "validation"), (~self.in_val, "training")):
            if not part.any():
                raise MinitlError(f"{', '.join(map(printable, sources))}: no photos for {name}")


def _photos(sources: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """('train/CLASS/...' or 'val/CLASS/...', the bytes of the file) of all photos, in no order that matters."""
    for source in sources:
        if source.is_dir():
            for item in list_folder(source).items:
                yield _named(item.name, source), read_bytes(item.path)
            continue
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    if member.isfile() and Path(member.name).suffix.lower() in EXTENSIONS and not Path(member.name).name.startswith("."):
                        file = archive.extractfile(member)
                        assert file
                        yield _named(member.name, source), file.read()
        except (OSError, tarfile.TarError) as error:
            raise MinitlError(
                f"{printable(source)} is no folder and no .tar archive that can be read: {str(error).splitlines()[0]}"
            ) from None


def _named(name: str, source: Path) -> str:
    """'train/CLASS/rest'; what lies in no part is for training."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    part = PARTS.get(parts[0].lower()) if len(parts) > 2 else None
    if len(parts) < 2:
        raise MinitlError(f"{printable(source)}: {name!r} lies in no folder that names its class")
    return "/".join([part or "train", *parts[1 if part else 0 :]])


def _usual_side(some: Sequence[bytes]) -> int:
    """The shorter side of a photo, as most of these have it."""
    return int(np.median([min(dimensions(data)[:2]) for data in some]))


class Views:
    """A training.Source: views of the training photos, larger from epoch to epoch. views: how many there are of each photo; 0: no end."""

    ahead = 2

    def __init__(
        self, photos: Photos, sizes: Sequence[int], epochs: int, views: int, augmentation: Augmentation, recipe: Recipe, seed: int
    ):
        self.photos, self.sizes, self.epochs, self.views = photos, list(sizes), epochs, views
        self.augmentation, self.recipe, self.seed = augmentation, recipe, seed
        self.index = np.flatnonzero(~photos.in_val)

    def __len__(self) -> int:
        return len(self.index)

    def view(self, epoch: int) -> int:
        """Which of the views of each photo an epoch (from 1) shows."""
        return epoch % self.views if self.views else epoch

    def pixels(self, indices: Array, view: int, size: tuple[int, int]) -> Array:
        """(n, *size, 3) uint8."""
        photos = self.photos
        return augmented_batch(photos.pixels, photos.aspects, size, self.seed, view, self.index[indices], self.augmentation)

    def feeds(self, indices: Array, epoch: int = 0) -> dict[str, Array]:
        """See training.Source."""
        side = self.sizes[min((epoch - 1) * len(self.sizes) // self.epochs, len(self.sizes) - 1)]
        size = (side, round(side * self.recipe.width / self.recipe.height))
        return {INPUT: self.recipe.normalise(self.pixels(indices, self.view(epoch), size))}


class Plain:
    """A training.Source: some of the photos as the network will see photos."""

    ahead = 0

    def __init__(self, photos: Photos, recipe: Recipe, index: Array) -> None:
        self.photos, self.recipe, self.index = photos, recipe, index

    def __len__(self) -> int:
        return len(self.index)

    def feeds(self, indices: Array | slice = slice(None), epoch: int = 0) -> dict[str, Array]:
        """See training.Source."""
        size, photos = (self.recipe.height, self.recipe.width), self.photos
        central = self.recipe.crop_fraction
        pixels = augmented_batch(photos.pixels, photos.aspects, size, 0, 0, self.index[indices], Augmentation(), central)
        return {INPUT: self.recipe.normalise(pixels)}


class Teacher:
    """A training.Teacher: the answers of a network of the same classes about each of the views, beside the labels.

    share: how much of the target is the teacher's answer. folder: where its answers are kept (half precision), a file for each view.
    """

    def __init__(self, model: Model, views: Views, share: float, folder: Path, key: str) -> None:
        if model.classes != views.photos.classes:
            raise MinitlError("the teacher knows other classes than these photos have: train one on them with --weights")
        self.model, self.views, self.share, self.folder, self.key = model, views, share, folder, key
        self.labels = training.one_hot(views.photos.labels[views.index], len(model.classes))
        self.engine = Values(model.graph)
        self.known: dict[int, Array] = {}

    def __call__(self, indices: Array, epoch: int) -> Array:
        """The targets of some photos."""
        view = self.views.view(epoch)
        if view not in self.known:
            self.known[view] = self._answers(view)
        return np.float32(self.share) * self.known[view][indices].astype(np.float32) + np.float32(1 - self.share) * self.labels[indices]

    def _answers(self, view: int) -> Array:
        """(N, classes) float16: of all photos, from the file if there is one."""
        path = self.folder / f"teacher-{self.key[:16]}-{view}.npy"
        shape = self.labels.shape
        if path.exists():
            known = np.load(path, mmap_mode="r", allow_pickle=False)
            if known.shape == shape and known.dtype == np.float16:
                return known
        started, recipe = time.monotonic(), self.model.recipe
        found = np.empty(shape, np.float16)
        parts = [np.arange(i, min(i + 64, len(found))) for i in range(0, len(found), 64)]

        def images(part: Array) -> Array:
            return recipe.normalise(self.views.pixels(part, view, (recipe.height, recipe.width)))

        for part, seen in photos_ahead(images, parts, 1, 2):
            found[part] = softmax(self.engine.run(seen)[self.model.graph.output])
        file = io.BytesIO()
        np.save(file, found)
        write_atomically(path, file.getvalue())
        right = float((found.argmax(axis=1) == self.labels.argmax(axis=1)).mean())
        print(f"the teacher knows {100 * right:.1f} % of view {view}, {duration(time.monotonic() - started)}", flush=True)
        return np.load(path, mmap_mode="r", allow_pickle=False)


def rebuilt(model: Model, classes: Sequence[str], size: int | None, seed: int) -> Model:
    """The network with a classifier for these classes, for photos of another size where one is given."""
    if size:
        content = model.content()
        arguments = content.arguments | {"input_shape": [size, size, 3]}
        model = Model(replace(content, arguments=arguments, recipe=replace(content.recipe, height=size, width=size), calibration={}))
    return model.replace_head(classes, seed)


def imprinted(model: Model, photos: Photos) -> None:
    """A first classifier on pretrained weights, so that the first steps send no nonsense into them."""
    chosen = [np.flatnonzero((photos.labels == label) & ~photos.in_val)[:IMPRINTED] for label in range(len(photos.classes))]
    some = Plain(photos, model.recipe, np.concatenate(chosen))
    features = [model.features(some.feeds(slice(i, i + 64))[INPUT]) for i in range(0, len(some), 64)]
    heads.imprint(model, np.concatenate(features), photos.labels[some.index])


def write_curve(folder: Path, epochs: Sequence[Epoch], best: int) -> None:
    """curve.csv and curve.png: losses in nats, accuracies in 0..1."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"])
    for line in epochs:
        table.writerow([line.epoch, *(f"{v:.5f}" for v in (line.train_loss, line.train_accuracy, line.val_loss, line.val_accuracy))])
    write_atomically(folder / "curve.csv", file.getvalue().encode())
    page = Page()
    charts = curve_charts({"history": [asdict(line) for line in epochs], "best_epoch": best})
    for k, chart in enumerate(charts):
        draw_chart(page, chart, EDGE + k * WIDTH / 2, page.y, WIDTH / 2 - 2 * EDGE)
    page.y += CHART
    write_atomically(folder / "curve.png", to_png(page.finished()))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, help="folders or .tar archives: [train|val/]CLASS/photo")
    parser.add_argument("--licence", help="of the weights; travels with them")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--weights", default="random:mobilenet_v1_0.25_96", help="the network, or a file to start from")
    parser.add_argument("--size", type=int, help="pixels a side, where they are to differ from the network's")
    parser.add_argument("--sizes", default="", help="pixels a side, multiples of 32, in equal parts of the epochs, as in 64,96")
    parser.add_argument("--augment", default=AUGMENT, help="as in minitl train")
    parser.add_argument("--teacher", help="a model file of the same classes, whose answers are learned, too")
    parser.add_argument("--share", type=float, default=0.7, help="of the target that is the teacher's answer")
    parser.add_argument("--views", type=int, default=0, help="how many views of each photo there are; 0: another one in every epoch")
    for name in ("epochs", "batch", "rate", "decay", "warmup", "smoothing", "average", "seed"):
        value = getattr(SETTINGS, name)
        parser.add_argument("--" + name, type=type(value), default=value)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = arguments(argv)
    try:
        return run(options)
    except MinitlError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 1
    except Stopped:
        print("stopped and saved: the same command goes on from there", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """The course of it."""
    os.makedirs(options.out, exist_ok=True)
    names = ("epochs", "batch", "rate", "decay", "warmup", "smoothing", "average", "seed")
    settings = replace(SETTINGS, patience=options.epochs, **{name: getattr(options, name) for name in names})
    started = time.monotonic()
    model = find(options.weights, settings.seed)
    size = options.size or model.recipe.height
    photos = Photos(options.photos, size)
    for problem in photos.skipped[:10]:
        print(f"left out: {problem}")
    model = rebuilt(model, photos.classes, options.size, settings.seed).unfreeze()
    try:
        sizes = [int(part) for part in options.sizes.split(",")] if options.sizes else [size]
    except ValueError:
        raise MinitlError(f"--sizes takes pixels a side, as in 64,96, found {options.sizes!r:.40}") from None
    if options.teacher and not options.views:
        raise MinitlError("--teacher answers for a fixed number of views: add, for example, --views 8")
    augmentation = Augmentation.parse(options.augment)
    train = Views(photos, sizes, settings.epochs, options.views, augmentation, model.recipe, settings.seed)
    val = Plain(photos, model.recipe, np.flatnonzero(photos.in_val))
    labels, val_labels = photos.labels[train.index], photos.labels[val.index]
    print(f"{len(train):,} training photos, {len(val):,} validation photos, {len(photos.classes)} classes, kept at {photos.side} x "
          f"{photos.side} pixels ({duration(time.monotonic() - started)})", flush=True)  # fmt: skip

    if model.pretrained:
        imprinted(model, photos)
    depends = {
        "version": minitl.__version__,
        "photos": hashed(sorted(photos.digests)),
        "start": model.content().content_hash(),
        "settings": hashed(settings, sizes, str(augmentation), options.views, options.share if options.teacher else 0),
    }
    teacher = None
    if options.teacher:
        key = hashed(Path(options.teacher).read_bytes(), depends["photos"], str(augmentation), settings.seed)
        teacher = Teacher(minitl.load(options.teacher), train, options.share, options.out, key)
        depends["teacher"] = key
    kept = Checkpoint(options.out / "checkpoint.npz", depends, resume=True, say=print)
    if kept.resumed:
        print("going on from", kept.path)
    graph = model.graph
    if kept.finished(0, graph):
        print("this run is over; its results are in", options.out)
        return 0
    state = kept.state(0, graph, settings, None, len(train))
    save, epochs = kept.keeper(0, graph), state.history.epochs if state else []
    assert save

    def keep(at: training.State) -> None:
        nonlocal epochs
        if at.step == 0:
            epochs = at.history.epochs
            write_curve(options.out, epochs, at.history.best)
            if at.history.best == len(epochs):
                write_model(at.best_params, at.history)
        save(at)

    def write_model(params: dict, history: training.History) -> None:
        best = history.epochs[history.best - 1]
        now, graph.params = graph.params, params
        content = model.content()
        origin = describe(options, photos, best) | ({"backbone": content.provenance["backbone"]} if model.pretrained else {})
        halves = {name: array.astype(np.float16) for name, array in content.arrays.items()}
        write_atomically(options.out / "backbone.npz", to_bytes(replace(content, arrays=halves, provenance=origin)))
        graph.params = now

    def report(line: Epoch, left: float) -> None:
        print(f"epoch {line.epoch:3d}  loss {line.train_loss:.3f} / {line.val_loss:.3f}  right {100 * line.train_accuracy:.1f} / "
              f"{100 * line.val_accuracy:.1f} %  {duration(left)} left", flush=True)  # fmt: skip

    with kept.patient():
        history = training.fit(graph, train, labels, val, val_labels, settings, report, state=state, keep=keep, teacher=teacher)
    write_model(graph.params, history)
    kept.finish(0, graph, history)
    best = history.epochs[history.best - 1]
    print(f"validation accuracy {100 * best.val_accuracy:.2f} % (epoch {history.best}); {options.out / 'backbone.npz'}")
    return 0


def describe(options: argparse.Namespace, photos: Photos, best: Epoch) -> dict[str, str]:
    """What the file says about itself."""
    val = np.count_nonzero(photos.in_val)
    teacher = f", taught by {Path(options.teacher).name} ({options.views} views of each photo)" if options.teacher else ""
    return {
        "source": f"weights/pretrain.py of minitl {minitl.__version__}, from {Path(options.weights).name}{teacher}",
        "trained": f"{len(photos.in_val) - val:,} photos of {len(photos.classes)} classes, {options.epochs} epochs; kept: {best.epoch}, "
        f"with the lowest validation loss and an accuracy of {100 * best.val_accuracy:.1f} % on {val:,} photos",
        **({"licence": options.licence} if options.licence else {}),
    }


if __name__ == "__main__":
    sys.exit(main())
