"""The command line: words in, files and sentences out.

Answers go to standard output, or one JSON object with --json; progress, notes and errors to standard error. Exit codes: 0 done, 1 a mistake
in what was given (one sentence says which), 2 a command that cannot be understood, 130 Ctrl-C. Files are written whole or not at all,
and nothing of the user's is changed but what -o names. Left out: any work; that is in transfer.py and model.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import jit
from .errors import MinitlError
from .files import FOREIGN, cache_folder, printable, write_atomically, write_together
from .version import __version__

if TYPE_CHECKING:  # commands import what they need, so that a short one is quick
    import numpy as np

    from . import memory, network_report, qemu
    from .emit_c import Header
    from .folders import Item
    from .model import Deployment, Model
    from .training import Epoch
    from .transfer import Notify, Run

OUTPUTS = ("model.npz", "model.h", "report.html", "report.png", "report.json")
CHECKPOINT = "checkpoint.npz"
CORES = ("cortex-m0", "cortex-m0plus", "cortex-m3", "cortex-m33", "cortex-m4", "cortex-m55", "cortex-m7")
COMMANDS = ("train", "doctor", "evaluate", "predict", "export", "report", "convert", "weights", "info", "vectors", "demo")
VECTORS = ("inputs.bin", "logits.bin", "names.txt", "neither.bin")

GUIDE = """\
the usual way:
  minitl doctor PHOTOS                                      what is wrong with the photos, and what does it cost?
  minitl train PHOTOS --weights mobilenet.tflite -o out     photos/CLASS/*.jpg -> out/model.npz, out/model.h, out/report.html
  minitl predict out/model.npz new.jpg                      what is on a photo?
  minitl report out/model.npz                               what does the int8 network cost, layer by layer?
  minitl export out/model.npz --arduino ~/Arduino/libraries/animals
  minitl vectors out/model.npz PHOTOS -o check              inputs and answers, to test your own firmware with

`minitl COMMAND --help` explains a command. Exit codes: 0 done, 1 a mistake in a file or folder, 2 usage, 130 Ctrl-C."""


# ---- talking to the user


class Console:
    """Progress on standard error: one line that changes on a terminal, a line now and then elsewhere; nothing when quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self.started = self.shown = time.monotonic()
        self.open = False
        jit.announce = self.say

    def say(self, line: str) -> None:
        """A sentence of its own, shown also when quiet is off only."""
        if line and not self.quiet:
            self.close()
            print(f"  {line}", file=sys.stderr)

    def show(self, line: str, last: bool) -> None:
        """A state that the next one replaces."""
        now = time.monotonic()
        if self.quiet or not (last or now - self.shown > (0.1 if self.terminal else 10)):
            return
        self.shown = now
        if self.terminal:
            print(f"\r\x1b[K  {line}", end="\n" if last else "", file=sys.stderr, flush=True)
            self.open = not last
        else:
            print(f"  {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End a line that still changes."""
        if self.open:
            print(file=sys.stderr)
            self.open = False

    def counter(self, what: str) -> Callable[[int, int], None]:
        """A progress function for `what`, with the time left."""
        started = time.monotonic()

        def progress(done: int, total: int) -> None:
            left = f", {duration((time.monotonic() - started) / done * (total - done))} left" if done > 1 else ""
            self.show(f"{what}: {done} of {total}{left}" if done < total else f"{what}: {total}", done == total)

        return progress


def duration(seconds: float) -> str:
    """'45 s', '3 min', '2.1 h'."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    """0.8641 -> '86.4 %'."""
    return f"{100 * share:.1f} %"


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=1))  # all ASCII: whatever the names, any terminal can print it and any program read it


# ---- the commands


def command_train(arguments: argparse.Namespace) -> int:
    """Photos -> model, header, report."""
    from . import model, transfer
    from .augment import Augmentation
    from .checkpoints import Stopped
    from .emit_c import check_name

    out = Path(arguments.output)
    name = arguments.name or "model"
    check_name(name)
    for file in (*OUTPUTS, CHECKPOINT):
        spare_input(out / file, arguments.weights)
    augment = Augmentation.parse(arguments.augment) if arguments.augment else None
    if arguments.imprint and arguments.hidden:
        raise MinitlError("--imprint makes the classifier from the features themselves: leave --hidden out, or --imprint")
    backbone = model.find(arguments.weights, arguments.seed or 0)
    if arguments.view:
        backbone = backbone.viewing(arguments.view)
    if arguments.other:
        check_others(arguments.other, backbone)
    is_new = not out.exists()
    prepare_folder(out, arguments.photos)
    console = Console(arguments.json)
    for line in without_effect(arguments):
        console.say(line)
    checkpoint = out / CHECKPOINT
    before = None if arguments.resume else state_of(checkpoint)
    if before:
        console.say(f"{printable(checkpoint)} of a run that was stopped will be overwritten; --resume would go on with it")
    try:
        run = transfer.train(
            backbone,
            arguments.photos,
            val=arguments.val,
            freeze=arguments.freeze,
            fine_tune=arguments.fine_tune,
            hidden=arguments.hidden,
            cut=arguments.cut,
            cache=cache_of(arguments),
            notify=notify_of(console),
            augment=augment,
            checkpoint=checkpoint,
            **{key: getattr(arguments, key) for key in TRAIN_OPTIONS if getattr(arguments, key) is not None},
        )
        try:
            write_run(run, out, name)
        except MinitlError as error:
            if state_of(checkpoint) == before:
                raise
            raise MinitlError(f"{error}; the same command with --resume goes on from {printable(checkpoint)}") from None
        run.checkpoint.remove()
    except Stopped:
        again = f"stopped after a whole step and saved in {printable(checkpoint)}: the same command with --resume goes on from there"
        raise Stopped(again if checkpoint.exists() else "stopped; the disk could not be written, so the training so far is lost") from None
    except KeyboardInterrupt:
        if state_of(checkpoint) in (None, before):
            remove_empty(out, is_new)
            raise
        raise Stopped(f"stopped; the same command with --resume goes on from {printable(checkpoint)}") from None
    except BaseException:
        remove_empty(out, is_new)
        raise
    if arguments.json:
        print_json(run.report)
    else:
        print(summary(run, out))
    return 0


def state_of(file: Path) -> tuple[int, int] | None:
    """What tells whether a file was written again; None where there is none."""
    try:
        return file.stat().st_mtime_ns, file.stat().st_ino
    except OSError:
        return None


def check_others(folder: str, backbone: Model) -> None:
    """MinitlError, before any work is done, where --neither names no photo that can be read."""
    from .folders import find_photos
    from .images import PhotoError, read_photo

    if not os.path.exists(folder):
        raise MinitlError(f"--neither {printable(folder)}: there is no such folder; give one of photos of other things, or none at all")
    paths, problem = find_photos(folder)[0], ""
    for path in paths:
        try:
            read_photo(path, backbone.recipe)
            return
        except PhotoError as error:
            problem = problem or str(error)
    raise MinitlError(f"--neither {printable(folder)}: none of its photos can be read, such as {problem}")


def without_effect(arguments: argparse.Namespace) -> list[str]:
    """Options that are given and change nothing, or little, as sentences."""
    shallow = arguments.fine_tune is None and arguments.freeze == "all"
    given = {"--gradual": arguments.gradual, "--layer-decay": arguments.layer_decay is not None}
    lines = [f"{name} changes nothing where the classifier alone is trained: --fine-tune trains more" for name in given if given[name]]
    if shallow and arguments.weights.startswith("random:"):
        lines.append("random weights have learnt nothing that a classifier could use: --freeze none trains them, too")
    return (lines if shallow else []) + (
        ["--neither-keep changes nothing without --neither"] if arguments.neither_keep is not None and arguments.other is None else []
    )


def remove_empty(folder: Path, ours: bool) -> None:
    """Remove a folder that we made and that nothing came into."""
    if ours:
        with contextlib.suppress(OSError):
            folder.rmdir()


TRAIN_OPTIONS = (
    "epochs", "rate", "batch", "seed", "patience", "optimiser", "momentum", "decay", "warmup", "smoothing", "mixup", "average", "balance",
    "layer_decay", "gradual", "dropout", "resume", "imprint", "other", "neither_keep", "max_int8_drop",
)  # fmt: skip
"""Arguments of transfer.train that are left to their defaults where they are not given."""


def cache_of(arguments: argparse.Namespace) -> Path | None:
    """Where features are kept; None for --no-cache."""
    return None if arguments.no_cache else Path(arguments.cache) if arguments.cache else cache_folder()


def notify_of(console: Console) -> Notify:
    """The console as transfer.train wants it."""
    from .transfer import Notify

    def epoch(line: Epoch, left: float) -> None:
        console.show(
            f"epoch {line.epoch}: loss {line.train_loss:.3f}, validation loss {line.val_loss:.3f}, "
            f"accuracy {percent(line.val_accuracy)}, at most {duration(left)} left",
            False,
        )

    counters: dict[int, Callable[[int, int], None]] = {}

    def photos(done: int, total: int) -> None:
        if done == 1:
            counters[0] = console.counter("photos")
        counters[0](done, total)

    return Notify(console.say, photos, epoch)


def check_output(path: Path, source: str | None = None, folders: Sequence[str] = ()) -> None:
    """Prove, before any work is done, that a file can be written and is not the one that is read. folders: that will be made before."""
    if str(path) == "-":
        raise MinitlError("-o -: nothing is written to standard output; give the name of a file")
    spare_input(path, source)
    if os.path.exists(path) and not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "not an ordinary file"
        raise MinitlError(f"cannot write {printable(path)}: it is {what}; give the name of a file")
    if any(Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)) for folder in folders):
        return
    if not os.path.isdir(path.parent):
        raise MinitlError(f"cannot write {printable(path)}: its folder does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise MinitlError(f"cannot write {printable(path)}: Permission denied; check the permissions of its folder")


def spare_input(path: Path, source: str | None) -> None:
    """MinitlError where an output is the file that is read, under whatever name."""
    same = False
    with contextlib.suppress(OSError, ValueError):
        same = source is not None and os.path.samefile(path, source)
    if same:
        raise MinitlError(f"the output {printable(path)} is the input itself, which would be lost: give another name with -o")


def prepare_folder(out: Path, photos: str | None = None) -> None:
    """Make the output folder and prove, before any work is done, that it can be written and does not lie among the photos."""
    if photos is not None and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(photos)):
        raise MinitlError(f"the output folder {out} lies inside {photos}, where it would be taken for a class; choose another one with -o")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinitlError(f"the output folder {out} cannot be made ({error.strerror}); choose another one with -o") from None
    probe = out / f".minitl-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise MinitlError(f"the output folder {out} cannot be written ({error.strerror}); choose another one with -o") from None


def write_run(run: Run, out: Path, name: str) -> None:
    """All files, together or not at all."""
    from concurrent.futures import ThreadPoolExecutor

    from . import report_html
    from .report import draw, to_png
    from .weights import to_bytes

    photos = {item.name: item.path for item in (*run.train, *run.val)}
    page = draw(run.report, photos)
    with ThreadPoolExecutor(1) as beside:
        png = beside.submit(to_png, page)
        html = report_html.page(run.report, photos)
        report = json.dumps(run.report, indent=1, ensure_ascii=False) + "\n"
        header = run.network.emit(name, "model.h") if run.network else ""
        texts = [text.encode("utf-8", "replace") for text in (header, html, report)]
        contents = (to_bytes(run.model.content()), *texts[:2], png.result(), texts[2])
    write_together({out / file: content for file, content in zip(OUTPUTS, contents, strict=True) if content})
    if not run.network:
        (out / "model.h").unlink(missing_ok=True)  # of a run before, which is not this network


def summary(run: Run, out: Path) -> str:
    """What train prints at its end."""
    val, peak = run.report["val"], run.report["memory"]["peak_bytes"]
    int8 = percent(val["int8"]["accuracy"]) if val["int8"] else "no"
    lines = [
        f"validation accuracy: {percent(val['float']['accuracy'])} float, {int8} int8 ({val['count']} photos)",
        *kept_epochs(run.report["phases"]),
        costs(run.network) if run.network else next(line for line in run.report["notes"] if "no int8 form" in line),
        f"{duration(run.report['seconds']['all'])}" + (f", at most {peak / 1e6:,.0f} MB of memory" if peak else ""),
    ]
    for row in run.report.get("neither", {}).get("rows", ()):
        if row["chosen"]:
            lines.append(third_answer(row, run.report["neither"]["unknown"]))
    if run.report["skipped"]:
        lines.append(f"skipped: {len(run.report['skipped'])} files, named in {out / 'report.json'}; the first: "
                     f"{run.report['skipped'][0]['file']} ({run.report['skipped'][0]['reason']})")  # fmt: skip
    return "\n".join([*lines, f"written: {', '.join(str(out / file) for file in OUTPUTS if run.network or file != 'model.h')}"])


def third_answer(row: dict[str, Any], unknown: str) -> str:
    """What 'neither' costs and gains."""
    gains = [f"{percent(row['rejected_wrong'])} of the wrong answers"] if row["rejected_wrong"] is not None else []
    gains += [f"{percent(row['rejected_unknown'])} of {unknown}"] if row["rejected_unknown"] is not None else []
    return f"neither: keeps {percent(row['kept'])} of the validation photos, rejects " + (" and ".join(gains) or "nothing that is known of")


def kept_epochs(phases: Sequence[dict[str, Any]]) -> list[str]:
    """What each training of a run left."""
    lines = []
    for i, phase in enumerate(phases):
        count = phase["last_epoch"] - phase["first_epoch"] + 1
        name = f"{phase['name']}: " if len(phases) > 1 else ""
        if phase["best_epoch"]:
            lines.append(f"{name}kept: epoch {phase['best_epoch'] - phase['first_epoch'] + 1} of {count}")
        elif i:
            lines.append(
                f"{name}none of {count} epoch{'s' if count > 1 else ''} did better on the validation photos; what was there before is kept"
            )
    return lines


def costs(network: Deployment) -> str:
    """What an int8 network takes, exactly or at most."""
    from .emit_c import STACK

    size = network.figures()
    return (
        f"int8 network: {network.graph.macs():,} MACs an image; RAM: {size.arena:,} bytes, below {STACK:,} of stack; "
        f"flash: {size.flash:,} bytes of constants, below {size.code:,} of code"
    )


def proof(network: Deployment) -> list[str]:
    """What was left out of an int8 network, in lines for a terminal."""
    return [row for line in network.summary for row in textwrap.wrap(line, 120, subsequent_indent="  ")]


def command_doctor(arguments: argparse.Namespace) -> int:
    """What is wrong with the photos?"""
    from . import doctor, model, transfer

    listing, fraction = transfer.choose_photos(arguments.photos, arguments.val)
    backbone = model.find(arguments.weights) if arguments.weights else None
    console = Console(arguments.json)
    for line in listing.notes:
        console.say(line)
    found = doctor.examine(listing, backbone, fraction=fraction, cache=cache_of(arguments), counter=console.counter)
    if arguments.json:
        print_json(found.to_dict())
    else:
        print("\n".join(found.lines(arguments.all)))
    return 0


def command_evaluate(arguments: argparse.Namespace) -> int:
    """How good is a model on labelled photos?"""
    from .folders import list_folder
    from .neither import word
    from .transfer import evaluate

    network = open_network(arguments)
    listing = list_folder(arguments.photos, network.classes)
    items = validation_items(listing.items)
    console = Console(arguments.json)
    result = evaluate(network, items, progress=console.counter("photos"))
    result.skipped[:0] = [{"file": s.name, "reason": s.reason} for s in listing.skipped]
    note = "" if any(item.part for item in listing.items) else UNDIVIDED
    if arguments.json:
        print_json(result.summary() | {"notes": [note] if note else []})
        return 0
    print(f"accuracy: {percent(result.accuracy)} of {len(result.items)} photos, {'int8' if arguments.int8 else 'float'}")
    if result.neither is not None and result.neither.any():
        print(f"  {word(result.classes)}: {int(result.neither.sum())} of them, counted above by what they are nearest to")
    for name, row, i in zip(result.classes, result.confusion(), range(len(result.classes)), strict=True):
        if sum(row):
            wrong = sorted(((n, result.classes[j]) for j, n in enumerate(row) if j != i and n), reverse=True)[:3]
            print(printable(f"  {name}: {row[i]} of {sum(row)}" + "".join(f", {n} taken for {other}" for n, other in wrong)))
    for entry in result.skipped:
        print(f"skipped {entry['file']}: {entry['reason']}", file=sys.stderr)
    console.say(note)
    return 0


def open_network(arguments: argparse.Namespace) -> Model | Deployment:
    """The network that a command is to ask: with --int8 as a header computes it."""
    from .model import load

    names = class_names(arguments)
    if arguments.int8:
        return deployable(arguments, names)
    loaded = load(arguments.model)
    loaded.needs_classifier()
    return loaded.named(names) if names else loaded


def deployable(arguments: argparse.Namespace, names: Sequence[str] | None, keep_constant: bool = False) -> Deployment:
    """The int8 network of a file, its classes under the names that were given, if any were."""
    from . import model

    network = model.deployable(arguments.model, keep_constant)
    return network.named(names) if names else network


def class_names(arguments: argparse.Namespace) -> list[str] | None:
    """--classes or --labels; None without. In a file, numbers that count the lines from 0 are no part of the names."""
    if arguments.classes is not None:
        return [name.strip() for name in arguments.classes.split(",")]
    if arguments.labels is None:
        return None
    try:
        lines = Path(arguments.labels).read_text("utf-8-sig").rstrip().split("\n")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        raise MinitlError(f"the labels {printable(arguments.labels)} cannot be read ({reason}); expected a class on each line") from None
    numbered = [re.fullmatch(rf"{i}[:\s]\s*(\S.*)", line.strip()) for i, line in enumerate(lines)]
    return [found[1] if found and all(numbered) else line.strip() for found, line in zip(numbered, lines, strict=True)]


def validation_items(items: Sequence[Item]) -> list[Item]:
    """Where a folder is divided, its validation photos; else all."""
    return [item for item in items if item.part == "val"] or list(items)


def command_predict(arguments: argparse.Namespace) -> int:
    """What is on these photos?"""
    from .folders import find_photos
    from .neither import word

    network = open_network(arguments)
    paths: list[Path] = []
    named = set()
    problems: list[tuple[str, str]] = []
    for given in arguments.images:
        found, passed = find_photos(given)
        paths += found
        named |= set() if Path(given).is_dir() else {Path(given)}
        problems += [(s.name, s.reason) for s in passed]
    answers = network.predict(paths)
    problems += [(str(a.path), a.problem) for a in answers if a.problem]
    good = [a for a in answers if not a.problem]
    if arguments.json:
        print_json(
            {
                "photos": [
                    {
                        "file": str(a.path),
                        "neither": a.neither,
                        "classes": [{"name": n, "probability": p} for n, p in a.classes[: arguments.top]],
                    }
                    for a in good
                ],
                "skipped": [{"file": file, "reason": reason} for file, reason in problems],
            }
        )
    else:
        for a in good:
            named_classes = ", ".join(f"{printable(name)} {percent(p)}" for name, p in a.classes[: arguments.top])
            print(f"{printable(a.path)}: " + (f"{word(network.classes)} (nearest: {named_classes})" if a.neither else named_classes))
        for file, reason in problems:
            print(f"skipped {printable(file)}: {reason}", file=sys.stderr)
    failed = any(a.problem and a.path in named for a in answers)
    return 1 if failed or not good else 0


def command_export(arguments: argparse.Namespace) -> int:
    """Model -> C header, folders that are ready to build."""
    from . import projects
    from .delivery import deliver
    from .emit_c import Header, check_name, identifier_from

    given = [Path(path) for path in (arguments.output, arguments.arduino, arguments.project) if path]
    if not given:
        arguments.usage_error("nothing to write: give at least one of -o, --arduino and --project")
    name = arguments.name or identifier_from(Path(os.path.abspath(given[0])).name)
    check_name(name)
    beside = check_export(arguments, name)
    names = class_names(arguments)
    console = Console()
    network = deployable(arguments, names, arguments.keep_constant)

    def header(file: str) -> Header | str:
        return network.emit_blob(name, file) if arguments.blob else network.emit(name, file)

    files: dict[Path, bytes] = {}
    if arguments.output:
        made = header(given[0].name)
        files[given[0]] = (made if isinstance(made, str) else made.text).encode()
        if isinstance(made, Header):
            files |= zip(beside, (made.blob, made.stub.encode()), strict=True)
    folders: dict[Path, dict[str, bytes]] = {}
    if arguments.arduino or arguments.project:
        made = header(f"{name}.h")
        for folder, maker in ((arguments.arduino, projects.arduino), (arguments.project, projects.plain)):
            if folder:
                folders[Path(folder)] = maker(made, name, network.classes, network.recipe)
    notes = deliver(files, folders, ("src/", "model/"))
    for line in (*network.notes, *notes):
        console.say(f"note: {line}")
    if isinstance(made, str) and len(made) > LARGE_TEXT:
        console.say(f"note: the header has {len(made) / 1e6:.0f} MB of text, slow to compile; --blob puts the weights into their own file")
    print("\n".join([costs(network), *proof(network)]))
    print(f"written: {', '.join(printable(path) for path in (*files, *folders))}")
    return 0


def check_export(arguments: argparse.Namespace, name: str) -> list[Path]:
    """Prove, before any work is done, that the outputs may be what they are called; the files that go beside the header (with --blob)."""
    from .emit_c import identifier_from

    beside, folders = [], [folder for folder in (arguments.arduino, arguments.project) if folder]
    if arguments.output:
        out = Path(arguments.output)
        beside = [out.with_name(f"{name}_weights{end}") for end in (".bin", ".S")] if arguments.blob and out.name else []
        for path in (out, *beside):
            check_output(path, arguments.model, folders)
        better = f"{identifier_from(out.stem)}.h"
        if out.suffix.lower() in NETWORKS:
            raise MinitlError(f"{printable(out)} would be called as a network is, and is a C header: give it a name such as {better}")
        if not re.fullmatch(r"[A-Za-z0-9._-]+( [A-Za-z0-9._-]+)*", out.name):
            raise MinitlError(
                f"the header's name {printable(out.name)!r} could not be included everywhere; expected ASCII letters, digits, dots, "
                f"dashes, underscores and single blanks, such as {better}"
            )
        if {os.path.realpath(path) for path in beside} & {os.path.realpath(out)}:
            raise MinitlError(f"{out} is the name of the weights beside the header: give the header another one")
    if arguments.arduino and arguments.project and Path(arguments.arduino) == Path(arguments.project):
        raise MinitlError(f"--arduino and --project are both {arguments.arduino}: give them different folders")
    for folder in folders:
        if not os.path.isdir(os.path.dirname(os.path.abspath(folder))):
            raise MinitlError(f"cannot make {printable(folder)}: the folder it is to lie in does not exist; create it first")
        if os.path.isfile(folder):
            raise MinitlError(f"{printable(folder)} is a file; expected a folder, or a name that does not exist yet")
    return beside


NETWORKS = {".npz", ".tflite", ".h5", ".keras", ".onnx", ".pt", ".pth", ".safetensors"}
"""Suffixes that no header gets, so that a slip of the hand costs no network."""

LARGE_TEXT = 4_000_000
"""Characters of a header; gcc needs about a second for so many."""


def command_report(arguments: argparse.Namespace) -> int:
    """What an int8 network costs, and where it loses accuracy."""
    from . import memory, network_report
    from .folding import fold
    from .report import to_png

    if arguments.output:
        check_output(Path(arguments.output), arguments.model)
        if Path(arguments.output).suffix.lower() != ".png":
            raise MinitlError(f"the page {printable(arguments.output)} is a picture: give it a name that ends in .png")
    if arguments.photos and not os.path.exists(arguments.photos):
        raise MinitlError(f"{printable(arguments.photos)}: there are no such photos; give a folder of photos, or leave it out")
    network = deployable(arguments, class_names(arguments), arguments.keep_constant)
    console = Console(arguments.json)
    notes = list(network.notes)
    graph, plan = network.graph, memory.plan(network.graph)
    noise, count = None, 0
    if arguments.photos and network.model is None:
        notes.append("dB cannot be measured: a quantised .tflite holds no float network to compare int8 with")
    elif arguments.photos and network.model:
        images = some_photos(arguments, network, console, notes)
        noise, count = network_report.signal_to_noise(fold(network.model.graph), network.original, images), len(images)
    profile = None if arguments.no_qemu else count_instructions(network, arguments.core, notes)
    rows = network_report.rows(graph, plan, profile.by_op if profile else (), noise)
    trained = network.provenance.get("training")
    accuracy = trained.get("val_accuracy", {}).get("int8") if isinstance(trained, dict) else None
    if arguments.output:
        page = network_report.draw_network(
            printable(Path(arguments.model).name), rows, plan, flash=network.figures().flash, accuracy=accuracy, core=arguments.core,
            facts=[costs(network), *measured(profile), *fused(network, plan)], notes=network.removal.summary() if network.removal else (),
        )  # fmt: skip
        write_atomically(arguments.output, to_png(page))
    if arguments.json:
        print_json(report_facts(arguments, network, rows, plan, profile, count, accuracy, notes))
        return 0
    print(network_report.table(rows, network.figures().flash))
    print("\n".join(["", costs(network), *measured(profile), *fused(network, plan), *proof(network)]))
    if count:
        print(f"dB: signal to noise of int8 against float on {count} photos; 6 dB are one bit")
    if arguments.output:
        print(f"written: {printable(arguments.output)}")
    for note in notes:
        console.say(f"note: {note}")
    return 0


def some_photos(arguments: argparse.Namespace, network: Deployment, console: Console, notes: list[str]) -> list[np.ndarray]:
    """Preprocessed images (1, H, W, 3) float32 of at most --count photos, at even distances in the order of their names."""
    from .images import PhotoError, read_photos

    paths, recipe = photos_of(arguments.photos, network.classes), network.pictures()
    count = min(len(paths), arguments.count)
    images, progress = [], console.counter("photos")
    for done, (_, found) in enumerate(read_photos([paths[i * len(paths) // count] for i in range(count)], recipe), start=1):
        if isinstance(found, PhotoError):
            notes.append(f"skipped {found}")
        else:
            images.append(recipe.normalise(found[None]))
        progress(done, count)
    if not images:
        raise MinitlError(f"none of the photos in {arguments.photos} that were tried can be read; the first: {notes[-count]}")
    return images


def photos_of(folder: str, classes: Sequence[str]) -> list[Path]:
    """Where a folder is divided or has the model's classes, its validation photos; else any photos."""
    from .folders import find_photos, list_folder

    try:
        return [item.path for item in validation_items(list_folder(folder, classes).items)]
    except MinitlError:  # not arranged in classes
        return find_photos(folder)[0]


def count_instructions(network: Deployment, core: str, notes: list[str]) -> qemu.Profile | None:
    """A run on a simulated core; None, and a note, where that is not possible."""
    from . import qemu
    from .emit_c import test_images

    if why := qemu.unavailable(core):
        notes.append(f"instructions were not counted: {why}; --no-qemu leaves this out")
        return None
    image = test_images(network.graph.tensors[network.graph.input].size)[0]
    try:
        return qemu.profile(network.emit("network"), "network", core, image)
    except MinitlError as error:  # too large for the board
        notes.append(f"instructions were not counted: {' '.join(str(error).split())[-300:]}")
        return None


def measured(profile: qemu.Profile | None) -> list[str]:
    """What a simulated core took, as a sentence; [] without."""
    if profile is None:
        return []
    return [
        f"{profile.core} under QEMU, gcc {' '.join(profile.flags)}: {profile.instructions:,} instructions an image; "
        f"flash {profile.flash:,} bytes, {profile.code:,} of them code; RAM {profile.ram:,} bytes, {profile.stack:,} of them stack"
    ]


def fused(network: Deployment, plan: memory.Plan) -> list[str]:
    """Which operations run inside of the next one, in words; [] if none does."""
    names = ", ".join(f"{i} {network.graph.ops[i].name}" for i in sorted(plan.fused))
    return [f"inside of the next operation, row by row, so that what they compute is never stored: {names}"] if names else []


def report_facts(
    arguments: argparse.Namespace,
    network: Deployment,
    rows: list[network_report.Row],
    plan: memory.Plan,
    profile: qemu.Profile | None,
    photos: int,
    accuracy: float | None,
    notes: list[str],
) -> dict[str, Any]:
    """All of `minitl report` as a dict."""
    from dataclasses import asdict

    from . import memory, network_report
    from .emit_c import STACK

    size = network.figures()
    before = network_report.rows(network.original, memory.plan(network.original))
    return {
        "model": str(arguments.model),
        "classes": network.classes,
        "input": list(network.graph.tensors[network.graph.input].shape),
        "rows": rows,
        "fused": sorted(plan.fused),
        "macs": network.graph.macs(),
        "ram": {"arena": size.arena, "stack_below": STACK},
        "flash": {"constants": size.flash, "by_purpose": size.constants, "code_below": size.code},
        "constant_channels": {
            "removed": network.removal is not None,
            "summary": network.removal.summary() if network.removal else [],
            "macs_before": network.original.macs(),
            "kernel_bytes_before": sum(row["kernel_bytes"] for row in before),
        },
        "measured": asdict(profile) | {"flash": profile.flash, "ram": profile.ram} if profile else None,
        "snr_photos": photos,
        "val_accuracy_int8": accuracy,
        "sha256": network.graph.digest(),
        "notes": notes,
    }


def command_convert(arguments: argparse.Namespace) -> int:
    """Foreign weights -> our .npz; or any -> .safetensors."""
    from .model import read

    out = Path(arguments.output)
    check_output(out, arguments.foreign)
    if out.suffix.lower() in NETWORKS - {".npz", ".safetensors"}:
        raise MinitlError(f"{printable(out)}: convert writes .npz and .safetensors; give a name that ends so")
    loaded, found = read(arguments.foreign)
    loaded.note(**{key: value for key in ("source", "licence") if (value := getattr(arguments, key))})
    proved = attach_golden(loaded, arguments) if arguments.golden else ""
    digest = loaded.save_safetensors(out) if out.suffix.lower() == ".safetensors" else loaded.save(out)
    count = sum(array.size for array in loaded.graph.arrays().values())
    notes = loaded.provenance.get("notes", [])
    if arguments.json:
        facts = {"written": str(out), "architecture": loaded.architecture, "arguments": loaded.arguments, "parameters": count}
        mapping = {"mapping": [list(pair) for pair in found.mapping], "unused": found.unused} if found else {}
        print_json({**facts, "sha256": digest, "notes": notes, "golden": proved or None, **mapping})
        return 0
    if found:
        from .importers.names import map_lines

        for line in map_lines(found):
            print(printable(line))
    print(f"written: {printable(out)}: {loaded.architecture}, {count:,} parameters, content hash {digest[:16]}")
    for note in notes:
        print(f"  note: {note}")
    if proved:
        print(f"  golden answer: {proved}")
    return 0


def attach_golden(loaded: Model, arguments: argparse.Namespace) -> str:
    """--golden FILE, kept with the weights if they answer as it says; in words. MinitlError, with the likeliest cause, if they do not."""
    from .golden import MOST_BYTES
    from .weights import unpack

    name = printable(arguments.golden)
    try:
        if not os.path.isfile(arguments.golden) or os.path.getsize(arguments.golden) > 2 * MOST_BYTES:
            raise MinitlError(f"--golden {name} is no file, or has more than {2 * MOST_BYTES:,} bytes; expected {GOLDEN_FILE}")
        arrays = unpack(Path(arguments.golden).read_bytes(), name)
    except OSError as error:
        raise MinitlError(f"--golden {name} cannot be read ({error.strerror}); expected {GOLDEN_FILE}") from None
    if set(arrays) != {"input", "output"}:
        raise MinitlError(f"--golden {name} holds {', '.join(sorted(arrays))[:100] or 'nothing'}; expected {GOLDEN_FILE}")
    found = loaded.with_golden(arrays["input"], arrays["output"], tolerance=arguments.tolerance).check()
    assert found is not None
    if not found.good:
        raise MinitlError(f"{printable(arguments.foreign)} {found.sentence()}; nothing was written")
    return found.sentence()


GOLDEN_FILE = "an .npz of input (N, H, W, 3) and output (N, ...), as np.savez writes it"


def command_weights(arguments: argparse.Namespace) -> int:
    """Pretrained networks that their makers publish: the list, or one of them."""
    from dataclasses import asdict

    from .manifest import ENTRIES

    if arguments.what == "pull":
        return pull_weights(arguments)
    if arguments.name or arguments.to:
        arguments.usage_error("only `minitl weights pull NAME` takes a name or --to; the list takes one word to look for")
    word = (arguments.what or "").lower()
    found = [e for e in ENTRIES.values() if word in f"{e.name} {e.format} {e.licence or ''}".lower()]
    if not found:
        raise MinitlError(f"no weights have {arguments.what!r} in their name, format or licence; `minitl weights` lists all {len(ENTRIES)}")
    here = {e.name: e.kept.exists() for e in found}
    if arguments.json:
        print_json({"weights": [asdict(e) | {"kept": str(e.kept) if here[e.name] else None} for e in found]})
        return 0
    print(f"{'name':<45} {'format':<12} {'size':>8} {'top-1':>6}  {'checksum':<10} {'licence':<16} here")
    for e in found:
        size, accuracy = f"{e.bytes / 1e6:.1f} MB" if e.bytes else "", f"{e.accuracy:.1f}" if e.accuracy else ""
        check = "" if not e.checksum else "SHA-256" if len(e.checksum) > 40 else "8 digits" if "sha" in e.checksum else "MD5"
        facts = f"{e.name:<45} {e.format:<12} {size:>8} {accuracy:>6}  {check:<10} {e.licence or 'not stated':<16}"
        print(f"{facts} {'yes' if here[e.name] else ''}".rstrip())
    return 0


def pull_weights(arguments: argparse.Namespace) -> int:
    """One of them, into the cache, and where --to says."""
    from . import pull
    from .manifest import ENTRIES

    if not arguments.name:
        arguments.usage_error("pull what? `minitl weights` lists the names")
    entry = ENTRIES.get(arguments.name)
    if entry is None:
        close = [name for name in ENTRIES if arguments.name.lower() in name.lower()][:3]
        hint = f"did you mean {', '.join(close)}?" if close else "`minitl weights` lists the names"
        raise MinitlError(f"no weights are called {arguments.name!r}; {hint}")
    if arguments.to:
        check_output(Path(arguments.to))
    console = Console(arguments.json)
    found = pull.kept(entry)
    if not found:
        console.say(f"from {entry.url}; licence: {entry.licence or 'not stated by its maker'}")

        def progress(done: int, total: int | None) -> None:
            console.show(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB", done == total)

        try:
            found = pull.pull(entry, progress)
        finally:
            console.close()
    if arguments.to:
        found.save(arguments.to)
    facts = {"name": entry.name, "file": str(arguments.to or entry.kept), "sha256": found.content().content_hash()}
    if arguments.json:
        print_json(facts)
        return 0
    print(f"{entry.name}: {printable(facts['file'])}, content hash {facts['sha256'][:16]}")
    for note in found.provenance.get("notes", []):
        print(f"  note: {printable(note)}")
    print(f"use it with --weights {entry.name}")
    return 0


def command_info(arguments: argparse.Namespace) -> int:
    """What is in a weights file?"""
    from .model import load

    loaded = load(arguments.file)
    facts = describe(loaded)
    found = loaded.check() if arguments.check else None
    if arguments.check:
        facts["check"] = found.to_dict() if found else None
    if arguments.json:
        print_json(facts)
        return 0 if found is None or found.good else 1
    if arguments.check:
        print(f"{printable(arguments.file)}: {found.sentence() if found else NO_GOLDEN}")
        return 0 if found is None or found.good else 1
    print(f"{'layer':<32} {'type':<18} {'output':<14} {'parameters':>10} {'MACs':>12}  frozen")
    for row in facts["layers"]:
        shape = "x".join(map(str, row["output"]))
        print(f"{row['name']:<32} {row['type']:<18} {shape:<14} {row['parameters']:>10,} {row['macs']:>12,}  {row['frozen']}")
    print(f"\n{facts['architecture']}: {facts['parameters']:,} parameters, {facts['macs']:,} MACs an image")
    for key in ("arguments", "recipe", "classes", "calibrated", "sha256", "provenance"):
        print_facts(key, facts[key])
    return 0


NO_GOLDEN = (
    "it keeps no answer of the framework that it comes from, so there is nothing to compare with; `minitl convert --golden` adds one"
)


def print_facts(key: str, value: Any, indent: str = "") -> None:
    """A value as indented lines."""
    if isinstance(value, dict) and value:
        print(f"{indent}{key}:")
        for inner, item in value.items():
            print_facts(printable(inner), item, indent + "  ")
    elif isinstance(value, list) and value and isinstance(value[0], str):
        print(printable(f"{indent}{key}: {len(value)}: {', '.join(value[:20])}{', ...' if len(value) > 20 else ''}"))
    else:
        print(printable(f"{indent}{key}: {value}"))


def describe(loaded: Model) -> dict[str, Any]:
    """All of `minitl info` as a dict."""
    import numpy as np

    def frozen(name: str) -> str:
        mask = loaded.graph.frozen.get(name, False)
        return f"{int(mask.sum())} of {mask.size} channels" if isinstance(mask, np.ndarray) else "yes" if mask else ""

    layers = [
        {
            "name": node.name,
            "type": type(node.layer).__name__,
            "inputs": list(node.inputs),
            "output": list(loaded.graph.shapes[node.name]),
            "parameters": sum(array.size for array in loaded.graph.params.get(node.name, {}).values()),
            "macs": node.layer.macs(*loaded.graph.input_shapes(node)),
            "frozen": frozen(node.name),
        }
        for node in loaded.graph.nodes
    ]
    return {
        "architecture": loaded.architecture,
        "arguments": loaded.arguments,
        "layers": layers,
        "parameters": sum(row["parameters"] for row in layers),
        "macs": sum(row["macs"] for row in layers),
        "recipe": loaded.recipe.to_dict(),
        "classes": loaded.classes,
        "calibrated": bool(loaded.calibration),
        "sha256": loaded.content().content_hash(),
        "provenance": loaded.provenance,
    }


def command_vectors(arguments: argparse.Namespace) -> int:
    """Test vectors for a user's own firmware."""
    import numpy as np

    from .images import PhotoError, read_photos

    out = Path(arguments.output)
    for file in VECTORS:
        spare_input(out / file, arguments.model)
    network = deployable(arguments, class_names(arguments))
    recipe = network.pictures()
    paths = photos_of(arguments.photos, network.classes)
    prepare_folder(out, arguments.photos)
    console = Console()
    progress = console.counter("photos")
    names, inputs, logits, third = [], [], [], []
    for done, (path, found) in enumerate(read_photos(paths, recipe), start=1):
        if isinstance(found, PhotoError):
            console.say(f"skipped {found}")
        else:
            names.append(str(path))
            inputs.append(recipe.quantise_pixels(found[None]))
            logits.append(network.original.run(inputs[-1]))
            if network.neither:
                third.append(network.judge(found[None])[1].astype(np.uint8))
        progress(done, len(paths))
    if not names:
        raise MinitlError(f"none of the photos in {arguments.photos} can be read")
    listing = "".join(f"{printable(name)}\n" for name in names)
    contents = [np.concatenate(inputs).tobytes(), np.concatenate(logits).tobytes(), listing.encode()]
    if third:
        contents.append(np.concatenate(third).tobytes())
    write_together({out / file: content for file, content in zip(VECTORS, contents, strict=False)})
    shape, classes = "x".join(map(str, inputs[0].shape[1:])), len(network.classes)
    print(f"written: {out}: {len(names)} photos; inputs.bin: int8 {shape} each; logits.bin: int8 {classes} each; names.txt"
          + ("; neither.bin: a byte each" if third else ""))  # fmt: skip
    return 0


def command_demo(arguments: argparse.Namespace) -> int:
    """The whole path on pictures that are drawn here."""
    from . import demo

    out = Path(arguments.output)
    prepare_folder(out)
    print(f"drawing {3 * demo.COUNT} pictures of apples, bananas and cucumbers into {out / 'photos'}, and training a classifier on them,")
    print("on top of the built-in backbone (the very first run compiles the kernels, too)", flush=True)
    run = demo.draw_and_train(out, arguments.seed, notify_of(Console()))
    write_run(run, out, "model")
    print(summary(run, out))
    print(demo.check_header(out, run.model, run.val))
    print(f"now look at {out / 'report.html'}; then, with photos of your own, in folders PHOTOS/CLASS:")
    print("  minitl train PHOTOS -o out")
    return 0


# ---- words -> commands


class Grammar(argparse.ArgumentParser):
    """argparse's, with a hint where an option took the folder for its own."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        taken = self.prog.endswith(" train") and message.endswith(": PHOTOS")
        super().error(message + ("; put it before --neither, which takes the word after it for its own folder" if taken else ""))


def parser(only: str = "") -> argparse.ArgumentParser:
    """The grammar of the command line, and the help that teaches it. only: a command, to leave out all others, which takes 5 ms less."""
    main_parser = Grammar(
        prog="minitl",
        description="Transfer learning from a folder of photos to an int8 model in one C header.",
        epilog=GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument("--version", action="version", version=f"minitl {__version__}")
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int], help: str, details: str) -> argparse.ArgumentParser | None:
        if only in COMMANDS and only != name:
            return None
        one = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.set_defaults(function=function, usage_error=one.error)
        return one

    def naming(one: argparse.ArgumentParser) -> None:
        names = one.add_mutually_exclusive_group()
        names.add_argument("--classes", metavar="A,B,...", help="names of the classes in the network's order, for a .tflite without them")
        names.add_argument("--labels", metavar="FILE", help="the same from a file, a name on each line")

    if train := command("train", command_train, "train a classifier on a folder of photos", TRAIN_DETAILS):
        train.add_argument("photos", metavar="PHOTOS", help="PHOTOS/CLASS/*.jpg, or PHOTOS/train/CLASS/* and PHOTOS/val/CLASS/*")
        train.add_argument("-o", "--output", metavar="OUT", required=True, help=f"folder for {', '.join(OUTPUTS)}")
        train.add_argument(
            "--weights",
            metavar="NAME|FILE",
            default="minitl_mobilenet_v1_0.25_96",
            help="the pretrained network: .npz, what convert reads, or random:mobilenet_v1_0.25_96 (default: %(default)s, built in)",
        )
        train.add_argument(
            "--view",
            choices=("centre", "square", "whole"),
            help="part of each photo: 0.875 of the largest box in its middle, that box, all of it squashed (default: what the weights say)",
        )
        depth = train.add_argument_group("how deep")
        depth.add_argument(
            "--fine-tune", metavar="N|LAYER|all", help="after the classifier, the last N blocks, or all from LAYER on (default: nothing)"
        )
        depth.add_argument("--freeze", metavar="LAYER|all|none|auto", default="all", help=FREEZE_HELP)
        depth.add_argument(
            "--gradual", action="store_true", default=None, help="unfreeze block by block from the top, the epochs divided among them"
        )
        depth.add_argument(
            "--layer-decay", type=float, metavar="F", help="learning rate of a block, as a share of that of the block above (1)"
        )
        head = train.add_argument_group("the classifier")
        head.add_argument("--hidden", type=units, metavar="N[,N]", default=(), help="hidden layers of N units before it (default: none)")
        head.add_argument(
            "--cut", metavar="LAYER", help="end the backbone at this layer and classify what it gives, pooled (default: its end)"
        )
        head.add_argument("--dropout", type=float, metavar="P", help="share of the features left out in every step (0)")
        head.add_argument(
            "--imprint", action="store_true", default=None, help="its weights are the mean features of each class: for a handful of photos"
        )
        head.add_argument("--neither", dest="other", metavar="FOLDER", nargs="?", const="", help=NEITHER_HELP)
        head.add_argument("--neither-keep", type=float, metavar="SHARE", help="of the validation photos that are not to be neither (0.95)")
        course = train.add_argument_group("the course of the training; where there are several, of the last")
        course.add_argument(
            "--epochs", type=int, metavar="N", help="at most N passes over the photos (classifier 100, more 20, random weights 60)"
        )
        course.add_argument("--rate", "--lr", type=float, metavar="R", help=RATE_HELP)
        course.add_argument("--batch", type=int, metavar="N", help="photos per step (32)")
        course.add_argument("--seed", type=int, metavar="N", help="same seed, same files (0)")
        course.add_argument("--patience", type=int, metavar="N", help="stop after N epochs without a lower validation loss (20)")
        course.add_argument("--optimiser", "--optimizer", choices=("sgd", "adamw"), help="sgd: with Nesterov's momentum (default)")
        course.add_argument("--momentum", type=float, metavar="M", help="of sgd (0.9)")
        course.add_argument("--decay", type=float, metavar="D", help="weight decay (classifier 0.03, more 0.0001)")
        course.add_argument(
            "--warmup", type=float, metavar="E", help="epochs in which the rate rises to R, before it falls along half a cosine"
        )
        course.add_argument("--smoothing", type=float, metavar="S", help="label smoothing (0)")
        course.add_argument("--mixup", type=float, metavar="A", help="mix photos two by two, by a Beta(A, A) share (0: not)")
        course.add_argument("--average", type=float, metavar="K", help="keep a moving average of the weights, such as 0.99 (0: none)")
        course.add_argument("--balance", action="store_true", default=None, help="photos of rare classes count more")
        course.add_argument("--augment", metavar="LIST", help=AUGMENT_HELP)
        course.add_argument("--max-int8-drop", type=float, metavar="POINTS", help=INT8_HELP)
        course.add_argument("--resume", action="store_true", default=None, help=f"go on with OUT/{CHECKPOINT} of a run that was stopped")
        train.add_argument(
            "--val", metavar="FRACTION|FOLDER", help="photos to validate on: a share of each class (default 0.2), or a folder"
        )
        train.add_argument("--name", help="first part of all C names (default: model)")
        train.add_argument("--cache", metavar="FOLDER", help="where features are kept between runs (default: the platform's cache folder)")
        train.add_argument("--no-cache", action="store_true", help="keep no features on disk")
        train.add_argument("--json", action="store_true", help="print the report as JSON")

    if one := command("doctor", command_doctor, "say what is wrong with a folder of photos, and what it costs", DOCTOR_DETAILS):
        one.add_argument("photos", metavar="PHOTOS", help="arranged as for train; nothing in it is changed")
        one.add_argument("--weights", metavar="NAME|FILE", help="a pretrained network: finds wrong labels, turned and foreign photos")
        one.add_argument("--val", metavar="FRACTION|FOLDER", help="as for train")
        one.add_argument("--all", action="store_true", help="name every file, not three of each kind")
        one.add_argument("--json", action="store_true", help="all findings with all names, as data")
        one.add_argument("--cache", metavar="FOLDER", help="where features are kept between runs (default: the platform's cache folder)")
        one.add_argument("--no-cache", action="store_true", help="keep no features on disk")

    if one := command("evaluate", command_evaluate, "measure a model on labelled photos", EVALUATE_DETAILS):
        one.add_argument("model", metavar="MODEL", help="a trained .npz; with --int8 also a quantised .tflite")
        one.add_argument("photos", metavar="PHOTOS", help="arranged as for train; where there is a val folder, only that is used")
        one.add_argument("--int8", action="store_true", help="measure the int8 network, exactly as the C header computes")
        one.add_argument("--json", action="store_true", help="accuracy, count, classes, confusion (rows: truth), skipped, neither")
        naming(one)

    if one := command("predict", command_predict, "say what is on photos", PREDICT_DETAILS):
        one.add_argument("model", metavar="MODEL", help="a trained .npz; with --int8 also a quantised .tflite")
        one.add_argument("images", metavar="IMAGE|FOLDER", nargs="+")
        one.add_argument("--int8", action="store_true", help="ask the int8 network")
        one.add_argument("--top", type=positive, metavar="K", default=3, help="how many answers (default 3)")
        one.add_argument("--json", action="store_true")
        naming(one)

    if one := command(
        "export", command_export, "write a model as C: a header, an Arduino library, a project with a Makefile", EXPORT_DETAILS
    ):
        one.add_argument("model", metavar="MODEL", help="a trained .npz, or a .tflite that is int8 or uint8 throughout")
        one.add_argument("-o", "--output", metavar="model.h", help="the header")
        one.add_argument("--arduino", metavar="FOLDER", help="an Arduino library with an example, for the IDE's folder `libraries`")
        one.add_argument("--project", metavar="FOLDER", help="a C project: `make` for this computer, `make arm` for Cortex-M")
        one.add_argument("--name", help="first part of all C names (default: from -o, else from --arduino, else from --project)")
        one.add_argument("--blob", action="store_true", help="weights as NAME_weights.bin and NAME_weights.S beside the header")
        one.add_argument("--keep-constant", action="store_true", help=KEEP_HELP)
        naming(one)

    if one := command("report", command_report, "show what the int8 network costs, layer by layer", REPORT_DETAILS):
        one.add_argument("model", metavar="MODEL", help="as for export")
        one.add_argument("photos", metavar="PHOTOS", nargs="?", help="any photos: adds how far int8 is from float after every layer")
        one.add_argument("-o", "--output", metavar="report.png", help="the same as a page, with a drawing of the memory")
        one.add_argument("--core", choices=CORES, default="cortex-m4", help="where instructions are counted (default cortex-m4)")
        one.add_argument("--no-qemu", action="store_true", help="do not count instructions")
        one.add_argument("--count", type=positive, metavar="N", default=32, help="at most so many photos (default 32)")
        one.add_argument("--keep-constant", action="store_true", help=KEEP_HELP)
        one.add_argument("--json", action="store_true", help="all of it as data")
        naming(one)

    if one := command("convert", command_convert, "turn foreign weights into a complete .npz, or any into safetensors", CONVERT_DETAILS):
        one.add_argument("foreign", metavar="FOREIGN", help=f"{FOREIGN}, float or quantised; or an .npz")
        one.add_argument("-o", "--output", metavar="weights.npz", required=True, help="or a name that ends in .safetensors")
        one.add_argument("--source", metavar="TEXT", help="where the weights come from; travels on into models and headers")
        one.add_argument("--licence", metavar="TEXT", help="their licence; travels on into models and headers")
        one.add_argument("--golden", metavar="FILE", help=GOLDEN_HELP)
        one.add_argument(
            "--tolerance", type=share, metavar="T", default=1e-3, help="of --golden, as a share of the largest number of output (0.001)"
        )
        one.add_argument("--json", action="store_true", help="one JSON object, with the whole map")

    if one := command("weights", command_weights, "list pretrained networks that their makers publish, or fetch one", WEIGHTS_DETAILS):
        one.usage = "minitl weights [WORD] [--json]\n       minitl weights pull NAME [--to FILE] [--json]"
        one.add_argument("what", metavar="WORD", nargs="?", help="list those with this in their name, format or licence; or: pull")
        one.add_argument("name", metavar="NAME", nargs="?", help="what to fetch")
        one.add_argument("--to", metavar="FILE", help="write the .npz there, too")
        one.add_argument("--json", action="store_true")

    if one := command("info", command_info, "show layers, shapes, work, preprocessing and origin of a weights file", INFO_DETAILS):
        one.add_argument("file", metavar="FILE")
        one.add_argument("--check", action="store_true", help="compute the answer that the file keeps of its maker's framework anew")
        one.add_argument("--json", action="store_true")

    if one := command("vectors", command_vectors, "write inputs and exact answers, to test your own firmware with", VECTORS_DETAILS):
        one.add_argument("model", metavar="MODEL", help="as for export")
        one.add_argument("photos", metavar="PHOTOS")
        one.add_argument("-o", "--output", metavar="DIR", required=True)
        naming(one)

    if one := command("demo", command_demo, "show the whole path on drawn pictures, to a checked C header", DEMO_DETAILS):
        one.add_argument(
            "-o", "--output", metavar="OUT", default="minitl-demo", help="folder for pictures and results (default: minitl-demo)"
        )
        one.add_argument("--seed", type=int, metavar="N", default=0)
    return main_parser


FREEZE_HELP = (
    "what stays as it is: all but the classifier (default), nothing, everything up to LAYER, patterns with commas between such as '*_bn'; "
    "auto: measure what is best for these photos. Beside --fine-tune: patterns that stay frozen all the same"
)
RATE_HELP = (
    "highest learning rate (default: by the features for the classifier; 0.01 for more, 0.0005 where BatchNorm is folded; from random 0.05)"
)
AUGMENT_HELP = (
    "none, default, or a list of mirror, crop, colour, rotate, cutout, as in mirror,crop=0.5,rotate=10 "
    "(default for the classifier alone: none; for more: mirror,crop,colour)"
)
NEITHER_HELP = (
    "also learn when to answer that a photo shows none of the classes; FOLDER: photos of other things, to measure how well that works "
)
INT8_HELP = "where int8 loses more than so many points, train what is not frozen once more with rounding"
PREDICT_DETAILS = "Exit code 1 if a photo that was named, or all of them, cannot be read."
KEEP_HELP = "keep channels that no image can change (they are proved and removed otherwise; every answer stays the same)"
EXPORT_DETAILS = """\
No photos are needed: a model remembers its calibration. Any .tflite made of the supported layers will do, and is computed bit for bit.
Everything is written, or nothing. A folder may be exported into again: what you have changed in it stays as it is, and is named.

  minitl export out/model.npz -o animals.h
  minitl export vww_96_int8.tflite --classes no_person,person --arduino ~/Arduino/libraries/person --project person
"""
REPORT_DETAILS = """\
RAM and flash are exact; instructions are counted with arm-none-eabi-gcc and qemu-system-arm where these are installed. The columns:
flash: bytes of kernels, biases, factors and shapes; RAM: bytes of the arena that the layer may not lose; instructions: those of one run,
divided as in a second run with a hook after every layer; dB: signal to noise, int8 against float (for models that minitl trained).
"""
INFO_DETAILS = """\
Reads foreign files, too. A frozen layer was left as it was in the last training. --check says whether the network computes what its maker's
framework did, and where not, which of the usual mistakes would explain it; exit code 1 where not.
"""
TRAIN_DETAILS = """\
The backbone stays as it is; its features are computed once per photo and kept in a cache, a new softmax classifier is trained on
them, and the validation photos decide when to stop. With --fine-tune more is trained after that, with a small rate and with photos that
look different every time; it is kept only if it does better. Photos that cannot be read are named, skipped and counted.
Ctrl-C ends the step and saves; a kill loses at most half a minute; --resume goes on, to the same files as if nothing had happened.

  little data:   minitl train photos -o out                    the classifier alone
  more:          minitl train photos -o out --fine-tune 3      and the last three blocks (names: minitl info)
  much:          minitl train photos -o out --fine-tune all    everything
  not sure:      minitl train photos -o out --freeze auto      measures which of these is best
  another:       minitl train photos --weights mobilenet_v1_0.25_128_quant.tflite -o out
  from nothing:  minitl train photos --weights random:mobilenet_v1_0.25_96 --freeze none -o out
"""
DOCTOR_DETAILS = """\
Exit code 0 whatever is found. Findings come the gravest first, each with what it costs and what to do; those that need a network are
suspicions, to be looked at one by one.

  minitl doctor photos --weights mobilenet_v1_0.25_128_quant.tflite --all
"""
UNDIVIDED = "all photos were counted; those that the model was trained on, if they are among them, make it look better than it is"
EVALUATE_DETAILS = "The folders are matched to the model's classes by name."
CONVERT_DETAILS = """\
The format is found by content. Preprocessing, padding rule, BatchNorm epsilon and class names come from the file where it has them,
from its maker's documentation where not; what was assumed is printed, and stays in the file. Printed first: which tensor of the file
became which array, layer by layer, which are not used, and which the file lacks.
"""
GOLDEN_HELP = (
    "an .npz of two arrays, input (photos in uint8, or what the network takes in float32) and output (what its own framework answered): "
    "the weights are written only if they answer the same, and keep it for `minitl info --check`"
)
WEIGHTS_DETAILS = """\
Fetched over HTTPS, through the proxy that HTTPS_PROXY names, if any; compared with what its maker states of size and checksum; converted
as `minitl convert` does, and kept in the platform's cache folder (MINITL_CACHE): a second time needs no network. A download that broke
off goes on where it can be trusted, and begins anew where not. Size, accuracy (ImageNet, top-1 in %), checksum: as the makers state them;
8 digits: the first of the SHA-256.

  minitl weights mobilenet_v2_0.35
  minitl weights pull coral-mobilenet_v1_0.25_128-quant
  minitl train photos --weights coral-mobilenet_v1_0.25_128-quant -o out
"""
VECTORS_DETAILS = """\
inputs.bin  int8, N x height x width x 3: photos prepared and quantised as NAME_run() wants them
logits.bin  int8, N x classes: what NAME_run() must answer, bit for bit
names.txt   N lines: which photo it was
neither.bin uint8, N: what NAME_is_neither() must say; only of models that were trained with --neither
"""
DEMO_DETAILS = "Needs no network, no photos and no weights; a C compiler (cc, gcc or clang) is used if there is one."


def share(text: str) -> float:
    """A number above 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def units(text: str) -> tuple[int, ...]:
    """'128' or '128,64'."""
    try:
        return tuple(positive(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected units of a layer, as in 128, or of several, as in 128,64; found {text!r}") from None


def positive(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def drop_output() -> None:
    """Send what could not be written to standard output nowhere, so that Python does not try again at its end and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parser(*words[:1]).parse_args(words)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about broken notes inside of whole pictures
    Console(getattr(arguments, "json", False))  # hears from jit.py; commands that show progress put their own in its place
    try:
        code: int = arguments.function(arguments)
        sys.stdout.flush()
        return code
    except MinitlError as error:
        print(f"\nminitl {arguments.command}: {error}" if sys.stderr.isatty() else f"minitl {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:  # also checkpoints.Stopped, which says what was saved
        print(f"\n{stopped}" if str(stopped) else "\nstopped; files were left as they were", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `minitl info | head`
        drop_output()
        return 0
    except OSError as error:  # such as a full disk behind standard output
        drop_output()
        where = f"{printable(error.filename)}: " if error.filename else ""
        print(f"minitl {arguments.command}: {where}{error.strerror or error}; check the disk and the permissions", file=sys.stderr)
        return 1
    except MemoryError:
        print(f"minitl {arguments.command}: out of memory; use fewer photos, a smaller network or --freeze all", file=sys.stderr)
        return 1
