"""What a run shows: how training went, what is confused with what, the worst mistakes, what was frozen; numbers, and a page of them.

Enters: answers and features of photos; the report, a plain dict that is also written to report.json (keys below); where photos are, for
their thumbnails. Leaves: entries of the report; a PNG drawn with Pillow. report_html.py makes a page for a browser from the same dict. The
same report gives the same bytes. Left out: interaction.

The report; all keys after `facts` may be missing:
    classes: list of names. best_epoch: number of the epoch that was kept, as in history; 0 or None: none of them.
    history: list of {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}; accuracies 0..1; None where not measured; with
        "rate", the learning rate, and "phase", an index into phases, where known.
    val: {"count", "float": {"accuracy", "confusion"}, "int8": the same or None, "calibration": from reliability(), or missing};
        confusion: one row per true class.
    mistakes: list of {"file", "true", "predicted", "probability", "nearest": from nearest_training(), or missing}, worst first.
    skipped: list of {"file", "reason"}. facts, settings: {what: value}, shown as they are. notes: sentences that the user should know.
    phases: list of {"name", "first_epoch", "last_epoch", "best_epoch", "frozen", "rate", "seconds"}; epochs count on through phases.
    layers: list of {"name", "block", "kind", "output": [H, W, C], "parameters", "trained": 0..1, share of its output channels}, in order.
    memory: {"peak_bytes": or None}. seconds: {"photos", "training", "all"}.
    auto: {"rows": list of {"what", "accuracy", "error", "photos", "seconds", "chosen"}, "sentences"}: what --freeze auto tried.
    learning: list of {"photos_per_class", "accuracy", "error"}: accuracy of the classifier alone with fewer photos.
    neither: {"measure", "threshold", "rows": list of {"kept", "accuracy", "rejected_wrong", "rejected_unknown" or None, "chosen"},
        "unknown"}: the answer "none of these". kept: share of the validation photos that still get an answer; accuracy: of those;
        rejected_wrong: share of wrong answers that are withheld, None where there are none; rejected_unknown: of photos of something else,
        which `unknown` names.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .drawing import (
    BLUE,
    CHART,
    GREY,
    INK,
    MARGIN,
    ORANGE,
    PALE,
    RED,
    RELIABILITY,
    SCALE,
    WHITE,
    WIDTH,
    Bar,
    Chart,
    Curve,
    Page,
    draw_bars,
    draw_chart,
    draw_interval,
    draw_reliability,
    duration,
    legible,
    measure,
    nice_ticks,
    percent,
    shortened,
)
from .images import PhotoError, Recipe, read_photo

SHOWN = 12
"""Mistakes with thumbnails."""
NEIGHBOURS = 2
"""Training photos beside a mistake."""
BINS = 10
"""Of a reliability diagram."""
BLOCK = 2048
"""Training photos that are compared at once: what bounds the memory of nearest_training()."""


# ---- numbers -------------------------------------------------------------------------------------------------------------------


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


def reliability(probabilities: np.ndarray, labels: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """How sure the answers are against how often they are right. probabilities: (N, classes); labels: (N,).

    -> {"bins": list of {"low", "high", "count", "confidence", "accuracy"}, "error": expected calibration error, 0..1}; confidence, the mean
    of the largest probability, and accuracy are None in an empty bin. A bin holds low < confidence <= high. (Guo et al. 2017,
    arXiv:1706.04599, section 2)
    """
    sure = np.minimum(probabilities.max(axis=1), 1.0).astype(np.float64)
    right = probabilities.argmax(axis=1) == np.asarray(labels)
    at = np.searchsorted(np.arange(1, BINS) / BINS, sure)
    bins: list[dict[str, Any]] = []
    error = 0.0
    for k in range(BINS):
        chosen, count = at == k, int((at == k).sum())
        confidence, accuracy = (float(v[chosen].mean()) if count else None for v in (sure, right))
        bins.append({"low": k / BINS, "high": (k + 1) / BINS, "count": count, "confidence": confidence, "accuracy": accuracy})
        if confidence is not None and accuracy is not None:
            error += count / len(sure) * abs(accuracy - confidence)
    return {"bins": bins, "error": error}


def nearest_training(
    train_features: np.ndarray,
    train_names: Sequence[str],
    train_labels: Sequence[int] | np.ndarray,
    classes: Sequence[str],
    query_features: np.ndarray,
    limit: int = NEIGHBOURS,
) -> list[list[dict[str, Any]]]:
    """For every query (M, F) the training photos (N, F) that look most alike to the network, best first: {"file", "true", "similarity"}.

    similarity: cosine of what is left after the mean of the training photos is taken off, 0..1, what is opposite counting 0. Equal ones
    (to six digits) come by file name. Takes BLOCK rows at a time, so that 100,000 photos need little more memory than 2,000.
    """
    order = np.array(sorted(range(len(train_names)), key=lambda i: train_names[i]), np.int64)
    if not len(order) or not len(query_features):
        return [[] for _ in query_features]
    mean = sum(train_features[i : i + BLOCK].sum(axis=0, dtype=np.float64) for i in range(0, len(order), BLOCK)) / len(order)

    def directions(rows: np.ndarray) -> np.ndarray:
        away = rows.astype(np.float64) - mean
        return away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-30)

    queries = directions(query_features)
    best, which = np.zeros((len(queries), 0)), np.zeros((len(queries), 0), np.int64)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        alike = np.round(np.clip(np.nan_to_num(queries @ directions(train_features[block]).T), 0.0, 1.0), 6)
        best, which = np.hstack([best, alike]), np.hstack([which, np.broadcast_to(block, alike.shape)])
        kept = np.argsort(-best, axis=1, kind="stable")[:, :limit]
        best, which = np.take_along_axis(best, kept, axis=1), np.take_along_axis(which, kept, axis=1)
    return [
        [
            {"file": train_names[i], "true": classes[int(train_labels[i])], "similarity": round(float(s), 4)}
            for s, i in zip(*row, strict=True)
        ]
        for row in zip(best, which, strict=True)
    ]


# ---- what both pages say -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows of text under a head. wide: the columns of words; all others are figures. chosen: numbers of the rows that count.

    intervals: (value, error) of each row, to be drawn as a last column, or none.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: Sequence[int] = (0,)
    chosen: Sequence[int] = ()
    intervals: Sequence[tuple[float, float]] = ()

    def ends(self) -> tuple[float, float]:
        """Where the axis of the intervals begins and ends."""
        ends = [v for value, error in self.intervals for v in (value - error, value + error)]
        return max(min(ends) - 0.01, 0.0), min(max(ends) + 0.01, 1.0)


def legible_names(classes: Sequence[str]) -> list[str]:
    """Class names for the page; one in another script is called by its number, counted from 0 as in report.json."""
    names = [legible(name) for name in classes]
    return [f"class {i}" if "?" in name and "?" not in classes[i] else name for i, name in enumerate(names)]


def title(classes: Sequence[str], most: int = 40) -> str:
    """The names in one line, at most so many."""
    return ", ".join(classes[:most]) + (f" and {len(classes) - most:,} more" if most < len(classes) else "")


def tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures that matter: (figure, what it is)."""
    val, seconds, peak = report["val"], report.get("seconds", {}), (report.get("memory") or {}).get("peak_bytes")
    found = [(percent(val["float"]["accuracy"]), "validation accuracy, float")]
    found.append((percent(val["int8"]["accuracy"]) if val.get("int8") else "-", "validation accuracy, int8"))
    found.append((f"{val['count']:,}", "validation photos"))
    found.append((f"{len(report['classes']):,}", "classes"))
    if "all" in seconds:
        found.append((duration(seconds["all"]), f"in all, {duration(seconds['training'])} training" if "training" in seconds else "in all"))
    if peak:
        found.append((f"{peak / 1e6:,.0f} MB" if peak < 9.995e9 else f"{peak / 1e9:.1f} GB", "of memory at most"))
    return found


def words(value: Any) -> str:
    """A fact or setting as text."""
    return f"{value:.4g}" if isinstance(value, float) else "yes" if value is True else "no" if value is False else str(value)


def phases(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The phases in which an epoch was run; none where there is but one."""
    found = [phase for phase in report.get("phases") or [] if phase["last_epoch"] >= phase["first_epoch"]]
    return found if len(found) > 1 else []


def kept_epoch(report: Mapping[str, Any]) -> str:
    """Which epoch the model is from, as a remark."""
    best, history = report.get("best_epoch"), report["history"]
    return f"epoch {best} of {history[-1]['epoch']} was kept" if best else "no epoch did better than what was there before"


def curve_charts(report: Mapping[str, Any]) -> list[Chart]:
    """Loss, accuracy and, where it is known, the learning rate over the epochs; lines are broken where a phase ends."""
    history, found = report["history"], phases(report)
    parts = [(p["first_epoch"], p["last_epoch"], p["name"]) for p in found]
    ends = {p["last_epoch"] for p in found}

    def runs(key: str, unit: float) -> list[list[tuple[float, float]]]:
        lines: list[list[tuple[float, float]]] = [[]]
        for line in history:
            value = line.get(key)
            if value is not None and math.isfinite(value):
                lines[-1].append((line["epoch"], unit * value))
            if line["epoch"] in ends:
                lines.append([])
        return [line for line in lines if line]

    charts = []
    best, rings = report.get("best_epoch") or None, {p["best_epoch"] for p in found}
    for what, name, unit, top in (("loss", "loss", 1.0, None), ("accuracy", "accuracy in %", 100.0, 100.0)):
        curves = [
            Curve("training", BLUE, runs(f"train_{what}", unit)),
            Curve("validation", ORANGE, runs(f"val_{what}", unit)),
        ]
        charts.append(Chart(name, "epoch", curves, top, marked=best, rings=rings, parts=parts))
    if any(line.get("rate") for line in history):
        charts.append(Chart("learning rate", "epoch", [Curve("learning rate", BLUE, runs("rate", 1.0))], marked=best, parts=parts))
    return charts


def phase_table(report: Mapping[str, Any]) -> Table | None:
    """A row for every phase."""
    history = {line["epoch"]: line for line in report["history"]}
    rows = []
    for phase in report.get("phases") or []:
        best = history.get(phase.get("best_epoch") or None, {}).get("val_accuracy")
        first, last = phase["first_epoch"], phase["last_epoch"]
        rows.append(
            [
                phase["name"], f"frozen: {phase['frozen']}" if phase.get("frozen") else "",
                f"{first}" if first == last else f"{first} to {last}" if last > first else "none",
                str(phase.get("best_epoch") or "none better"), "" if best is None else percent(best),
                f"{phase['rate']:.3g}" if phase.get("rate") is not None else "",
                duration(phase["seconds"]) if phase.get("seconds") is not None else "",
            ]
        )  # fmt: skip
    return Table(["phase", "", "epochs", "best", "validation accuracy", "rate", "time"], rows, (0, 1)) if rows else None


def auto_table(report: Mapping[str, Any]) -> Table | None:
    """What --freeze auto tried."""
    tried = (report.get("auto") or {}).get("rows") or []
    rows = [
        [r["what"], percent(r["accuracy"]) + (f" \u00b1 {100 * r['error']:.1f}" if r.get("error") else ""),
         f"{r['photos']:,}" if r.get("photos") is not None else "", duration(r["seconds"]) if r.get("seconds") is not None else ""]
        for r in tried
    ]  # fmt: skip
    head = ["trained", "accuracy", "photos", "time"]
    chosen = [k for k, r in enumerate(tried) if r.get("chosen")]
    return Table(head, rows, (0,), chosen, [(r["accuracy"], r.get("error") or 0.0) for r in tried]) if tried else None


def learning_chart(report: Mapping[str, Any]) -> Chart | None:
    """Accuracy over photos per class."""
    points = sorted((r["photos_per_class"], 100 * r["accuracy"], 100 * (r.get("error") or 0.0)) for r in report.get("learning") or [])
    curve = Curve("accuracy", BLUE, [[(n, accuracy) for n, accuracy, _ in points]], {n: error for n, _, error in points})
    ticks = [n for n, _, _ in points]
    return Chart("accuracy in % with fewer photos", "photos per class", [curve], 100.0, ticks, logarithmic=True) if points else None


def learning_sentence(report: Mapping[str, Any]) -> str:
    """What the last doubling of the photos brought."""
    points = sorted((r["photos_per_class"], r["accuracy"]) for r in report["learning"])
    if len(points) < 2:
        return ""
    (few, before), (many, after) = points[-2:]
    gain = 100 * (after - before)
    few, many = (f"{n:,.0f}" if n >= 10 else f"{n:g}" for n in (few, many))
    return f"From {few} to {many} photos per class the accuracy went from {percent(before)} to {percent(after)} ({gain:+.1f} points)."


def calibration_sentences(calibration: Mapping[str, Any]) -> list[str]:
    """What a reliability diagram says."""
    bins = [b for b in calibration["bins"] if b["count"]]
    total = sum(b["count"] for b in bins)
    if not total:
        return ["There were no photos."]
    sure, right = (sum(b["count"] * b[key] for b in bins) / total for key in ("confidence", "accuracy"))
    gap = sure - right
    verdict = (
        "taken together it is as sure as it should be" if abs(gap) < 0.01 else
        "it is surer than it should be" if gap > 0 else "it is less sure than it should be"
    )  # fmt: skip
    return [
        f"On average the network says {percent(sure)} and is right {percent(right)} of the time: {verdict}.",
        f"Expected calibration error: {100 * calibration['error']:.1f} points, the mean distance of the bars from the diagonal, each photo "
        "counting alike.",
    ]


def reliability_bins(calibration: Mapping[str, Any]) -> list[tuple[float, float, int, float, float]]:
    """What draw_reliability() takes."""
    return [(b["low"], b["high"], b["count"], b["confidence"] or 0.0, b["accuracy"] or 0.0) for b in calibration["bins"]]


def layer_bars(layers: Iterable[Mapping[str, Any]]) -> list[Bar]:
    """A bar for every layer that has parameters; its height is the logarithm of how many."""
    shown = [layer for layer in layers if layer["parameters"]]
    most = max((math.log1p(layer["parameters"]) for layer in shown), default=1.0)
    return [
        Bar(
            layer["block"] or layer["name"],
            math.log1p(layer["parameters"]) / most,
            min(max(layer["trained"], 0.0), 1.0),
            layer_title(layer),
        )
        for layer in shown
    ]


def layer_title(layer: Mapping[str, Any]) -> str:
    """A layer in one line."""
    size = "x".join(map(str, layer["output"]))
    return f"{layer['name']}: {layer['kind']}, {size} out, {layer['parameters']:,} parameters, {trained(layer['trained'])}"


def trained(share: float) -> str:
    """1 -> 'trained', 0 -> 'frozen', 0.25 -> '25 % trained'."""
    return "trained" if share >= 1 else "frozen" if share <= 0 else f"{100 * share:.0f} % trained"


def layers_sentence(layers: Sequence[Mapping[str, Any]]) -> str:
    """How much was trained."""
    shown = [layer for layer in layers if layer["parameters"]]
    moved = sum(round(layer["parameters"] * layer["trained"]) for layer in shown)
    total, some = sum(layer["parameters"] for layer in shown), sum(layer["trained"] > 0 for layer in shown)
    return f"{some} of {len(shown)} layers were trained, {moved:,} of {total:,} parameters"


def trained_remark(report: Mapping[str, Any]) -> str:
    """How much was trained, and which of it was for nothing."""
    idle = ", ".join(f"'{phase['name']}'" for phase in phases(report)[1:] if not phase["best_epoch"])
    return layers_sentence(report["layers"]) + (f"; nothing of {idle} was kept, since it did no better" if idle else "")


def neither_table(report: Mapping[str, Any]) -> Table | None:
    """The trade-off of the answer "none of these", at most a dozen rows."""
    found = (report.get("neither") or {}).get("rows") or []
    step = max(1, math.ceil(len(found) / 12))
    found = [row for k, row in enumerate(found) if k % step == 0 or row.get("chosen")]
    unknown = any(row.get("rejected_unknown") is not None for row in found)
    keys = ["kept", "accuracy", "rejected_wrong"] + ["rejected_unknown"] * unknown
    head = ["photos answered", "right of those", "wrong ones withheld"] + ["unknown ones withheld"] * unknown
    rows = [[percent(row[key]) if row.get(key) is not None else "" for key in keys] for row in found]
    return Table(head, rows, (), [k for k, row in enumerate(found) if row.get("chosen")]) if found else None


def neither_chart(report: Mapping[str, Any]) -> Chart | None:
    """The same as curves over the share of photos that are answered."""
    rows = sorted((report.get("neither") or {}).get("rows") or [], key=lambda row: row["kept"])
    curves = []
    for name, key, colour in (
        ("right", "accuracy", BLUE),
        ("wrong withheld", "rejected_wrong", ORANGE),
        ("unknown withheld", "rejected_unknown", RED),
    ):
        points = [(100 * row["kept"], 100 * row[key]) for row in rows if row.get(key) is not None]
        if points:
            curves.append(Curve(name, colour, [points]))
    marked = next((100 * row["kept"] for row in rows if row.get("chosen")), None)
    return Chart("in %", "% of the photos answered", curves, 100.0, marked=marked) if curves else None


def neither_sentences(report: Mapping[str, Any]) -> list[str]:
    """What was chosen."""
    neither = report["neither"]
    chosen = next((row for row in neither["rows"] if row.get("chosen")), None)
    sentences = []
    if chosen:
        threshold = neither.get("threshold")
        measure = neither.get("measure", "score")
        line = f"a {measure} below {threshold:.4g}" if isinstance(threshold, float | int) else "less likeness than the threshold"
        wrong = chosen["rejected_wrong"]  # None where every answer is right
        sentences.append(
            f"The answer is withheld with {line}: {percent(chosen['kept'])} of the validation photos are answered, "
            f"{percent(chosen['accuracy'])} of those rightly"
            + (". There are no wrong answers." if wrong is None else f", and {percent(wrong)} of the wrong answers are withheld.")
        )
    if neither.get("unknown"):
        sentences.append(f"Unknown: {neither['unknown']}.")
    return sentences


def taken_for_another(matrix: np.ndarray, most: int = 6) -> list[tuple[int, int, int]]:
    """(count, true class, answer), the most frequent first."""
    wrong = matrix - np.diag(np.diag(matrix))
    return [(-count, i, j) for count, i, j in sorted((-int(wrong[i, j]), int(i), int(j)) for i, j in np.argwhere(wrong))[:most]]


def shade(share: float) -> float:
    """How strong the colour of a cell of a confusion matrix is, 0..1; share: of its row."""
    return 0.12 + 0.88 * math.sqrt(share) if share else 0.0


def which_mistakes(mistakes: Sequence[Any]) -> str:
    """Which of the mistakes are shown, as a remark."""
    return f"the {SHOWN} surest of {len(mistakes):,} wrong answers" if len(mistakes) > SHOWN else "all wrong answers"


def thumbnail(name: str, side: int, photos: Path | Mapping[str, Path] | None) -> Image.Image | None:
    """The middle of a photo, side x side pixels; None where it cannot be read."""
    path = photos / name if isinstance(photos, Path) else (photos or {}).get(name)
    if path is None:
        return None
    try:
        return Image.fromarray(read_photo(path, Recipe(side, side, crop_fraction=1.0, interpolation="bicubic")))
    except PhotoError:
        return None


# ---- the page ------------------------------------------------------------------------------------------------------------------

COLUMN = (WIDTH - 2 * MARGIN - 40) / 2
"""Width of half a page."""


def draw(report: Mapping[str, Any], photos: Path | Mapping[str, Path] | None = None) -> Image.Image:
    """The page for a report (see the top of this file).

    photos: where the thumbnails come from: the folder that the file names start from, or a table {file name: path}. A photo that
    cannot be read leaves an empty frame.
    """
    classes = legible_names(report["classes"])
    page = Page()
    _draw_facts(page, report, classes)
    _draw_curves(page, report)
    _draw_choice(page, report)
    _draw_confusion(page, np.array(report["val"]["float"]["confusion"], np.int64), classes)
    _draw_mistakes(page, report, dict(zip(report["classes"], classes, strict=True)), photos)
    _draw_reliability(page, report["val"].get("calibration"))
    _draw_layers(page, report)
    _draw_neither(page, report)
    _draw_skipped(page, report["skipped"])
    if report.get("settings"):
        page.heading("Settings")
        _draw_flow(page, report["settings"])
    return page.finished()


def to_png(page: Image.Image) -> bytes:
    """The bytes of the PNG file (W3C, PNG 3), RGB; the same for the same page.

    Pillow tries five filters for each row, with Python locked, at twice the time: all rows have the same here, for 2 % more bytes.
    """
    height, row = page.height, 3 * page.width
    rows = np.empty((height, 1 + row), np.uint8)
    rows[:, 0] = 2  # every row is what it is above the one before
    rows[:, 1:] = np.asarray(page).reshape(height, row)
    rows[1:, 1:] -= rows[:-1, 1:].copy()
    head = struct.pack(">IIBBBBB", page.width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.data, 2)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _draw_facts(page: Page, report: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Title, the figures that matter, what the user should know, and the rest in small."""
    room = WIDTH - 2 * MARGIN
    names = next((t for k in range(min(len(classes), 40), 0, -1) if measure(t := title(classes, k), 30) <= room), title(classes, 1))
    page.text(MARGIN, page.y, names, 30, width=room)
    page.y += 54
    found = tiles(report)
    gap = 20 if len(found) <= 4 else 12
    step = (room + gap) / len(found)
    for k, (figure, what) in enumerate(found):
        x, size = MARGIN + k * step, 36 if len(found) <= 4 else 26
        page.box(x, page.y, x + step - gap, page.y + 96, PALE)
        page.text(x + 14, page.y + 14 + (36 - size) * 0.7, figure, size, BLUE if "%" in figure else INK, width=step - gap - 20)
        page.text(x + 14, page.y + 64, what, 14 if len(found) <= 4 else 12, GREY, width=step - gap - 20)
    page.y += 112
    for note in report.get("notes") or []:
        page.box(MARGIN, page.y + 2, MARGIN + 4, page.y + 18, ORANGE)
        page.paragraph(note, INK, MARGIN + 14, room - 14)
        page.y += 4
    _draw_flow(page, report.get("facts", {}))


def _draw_flow(page: Page, facts: Mapping[str, Any]) -> None:
    """Facts one after the other, in small."""
    x = float(MARGIN)
    for what, value in facts.items():
        line = shortened(legible(f"{what}: {words(value)}"), 14, WIDTH - 2 * MARGIN)
        if x > MARGIN and x + measure(line, 14) > WIDTH - MARGIN:
            x, page.y = MARGIN, page.y + 22
            page.room(100)
        x += page.text(x, page.y, line, 14, GREY) + 28
    page.y += 18 if facts else -10


def _draw_table(page: Page, table: Table, x: float, width: float) -> None:
    """Rows at `y`, 24 pixels each; words give way where there is little room."""
    columns = [[head, *(legible(row[c]) for row in table.rows)] for c, head in enumerate(table.head)]
    widths = [max(measure(text, 13) for text in column) for column in columns]
    plot = min(180.0, 0.3 * width) if table.intervals else 0.0
    spare = width - plot - 20 * (len(widths) - 1 + bool(plot)) - sum(widths)
    for c in sorted(table.wide, key=lambda c: -widths[c]):
        if spare < 0:
            cut = min(-spare, widths[c] - 60)
            widths[c], spare = widths[c] - cut, spare + cut
    for k, row in enumerate([table.head, *table.rows]):
        colour, at = GREY if k == 0 else BLUE if k - 1 in table.chosen else INK, x
        if k - 1 in table.chosen:
            page.box(x - 8, page.y - 4, x + width, page.y + 20, PALE)
        for c, text in enumerate(row):
            if c in table.wide:
                page.text(at, page.y, text, 13, colour, width=widths[c])
            else:
                page.text(at + widths[c], page.y, text, 13, colour, "ra", widths[c])
            at += widths[c] + 20
        if plot and k:
            draw_interval(page, table.ends(), *table.intervals[k - 1], colour, at, page.y + 8, x + width - 8 - at)
        page.y += 24
        page.room(100)


def _draw_curves(page: Page, report: Mapping[str, Any]) -> None:
    """Loss and accuracy over the epochs, training and validation, the kept epoch marked; the phases below."""
    if not report["history"]:
        return
    page.heading("Learning curve", kept_epoch(report))
    charts = curve_charts(report)
    width = (WIDTH - 2 * MARGIN - 40 * (len(charts) - 1)) / len(charts)
    for k, chart in enumerate(charts):
        draw_chart(page, chart, MARGIN + k * (width + 40), page.y, width)
    page.y += CHART
    if table := phase_table(report):
        page.y += 14
        _draw_table(page, table, MARGIN, WIDTH - 2 * MARGIN)


def _draw_choice(page: Page, report: Mapping[str, Any]) -> None:
    """What --freeze auto tried, and what fewer photos would have given, side by side where there are both."""
    table, chart = auto_table(report), learning_chart(report)
    if table:
        page.heading("How much to train", "tried on this data set before training; the lines are the uncertainty")
        upper, width = page.y, 640 if chart else WIDTH - 2 * MARGIN
        _draw_table(page, table, MARGIN, width)
        page.y += 8
        for sentence in report["auto"].get("sentences") or []:
            page.paragraph(sentence, INK, width=width)
    if chart:
        if not table:
            page.heading("Would more photos help?", "the classifier alone, trained on fewer photos")
            upper = page.y
        x = MARGIN + (680 if table else 0)
        draw_chart(page, chart, x, upper, WIDTH - MARGIN - x if table else COLUMN)
        lower, page.y = page.y, upper + (CHART + 10 if table else 40)
        at = x if table else MARGIN + COLUMN + 40
        page.paragraph(learning_sentence(report), GREY, at, WIDTH - MARGIN - at)
        page.y = max(lower, page.y, upper + CHART)


def _draw_confusion(page: Page, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """The matrix, named and numbered as far as there is room, and beside it the classes that are mixed up most."""
    n = len(classes)
    note = "float network; a row is what the photo shows, a column the answer, the shade its share of the row"
    page.heading("Confusion matrix", note)
    cell = min(96.0, (540 if n <= 30 else 600) / n)
    named, numbered = cell >= 9, cell >= 18
    size = min(14.0, max(8.5, cell * 0.8)) if named else 12
    names = max((measure(name, size) for name in classes), default=0) if named else 30
    across, up = min(names, 190), min(names, 130)
    left, upper = MARGIN + across + 10, page.y + up + 8
    totals = matrix.sum(axis=1)
    for i in range(n):
        for j in range(n):
            share = matrix[i, j] / totals[i] if totals[i] else 0.0
            x, y = left + j * cell, upper + i * cell
            base = BLUE if i == j else RED
            strength = shade(share)
            colour = tuple(round(p + (b - p) * strength) for p, b in zip(PALE, base, strict=True))
            gap = 1 if cell >= 6 else 0
            page.box(x, y, x + cell - gap, y + cell - gap, (colour[0], colour[1], colour[2]))
            if numbered and matrix[i, j]:
                figure = f"{matrix[i, j]}"
                font = min(15, cell * 0.42, (cell - 6) / (0.62 * len(figure)))
                page.text(x + cell / 2, y + cell / 2, figure, font, WHITE if strength > 0.6 else INK, "mm")
    step = 1 if named else nice_ticks(0, n, 10)[1]
    for i in range(0, n, round(step)):
        middle = (i + 0.5) * cell
        if named:
            page.text(left - 8, upper + middle, classes[i], size, INK, "rm", across)
            page.upright(left + middle, upper - 7, classes[i], size, up)
        else:
            page.text(left - 8, upper + middle, str(i), size, GREY, "rm")
            page.text(left + middle, upper - 6, str(i), size, GREY, "ms")
    beside = max(left + n * cell + 50, MARGIN + 420)
    bottom = _draw_pairs(page, matrix, classes, beside, page.y + 4)
    page.y = round(max(upper + n * cell, bottom))


def _draw_pairs(page: Page, matrix: np.ndarray, classes: Sequence[str], x: float, y: float) -> float:
    """What is most often taken for what, and the classes that are recognised least; returns where the list ends."""
    totals = matrix.sum(axis=1)
    names = x + max(measure(f"{total} of {total}", 14) for total in totals) + 18
    room = WIDTH - MARGIN - names
    pairs = taken_for_another(matrix)
    page.text(x, y, "Taken for another most often", 16)
    y += 30
    for count, i, j in pairs:
        page.text(x, y, f"{count} of {totals[i]}", 14, RED)
        line = f"{classes[i]}  \u203a  {classes[j]}"
        if shortened(line, 14, room) == line:
            page.text(names, y, line, 14)
        else:
            page.text(names, y, classes[i], 14, width=room)
            y += 19
            page.text(names, y, f"\u203a  {classes[j]}", 14, width=room)
        y += 24
    if not pairs:
        page.text(x, y, "nothing: every answer is right" if totals.sum() else "there were no photos", 14, GREY)
        y += 24
    shares = sorted((matrix[i, i] / totals[i], i) for i in range(len(classes)) if totals[i])
    if len(classes) > 2 and shares:
        y += 16
        page.text(x, y, "Recognised least" if shares[0][0] < 1 else "Recognised", 16)
        y += 30
        for _, i in shares[:6]:
            page.text(x, y, f"{matrix[i, i]} of {totals[i]}", 14, BLUE)
            page.text(names, y, classes[i], 14, width=room)
            y += 24
    return y


def _draw_mistakes(page: Page, report: Mapping[str, Any], names: Mapping[str, str], photos: Path | Mapping[str, Path] | None) -> None:
    """The surest wrong answers as thumbnails, with the training photos that look most alike where they are known."""
    mistakes = report["mistakes"]
    if not mistakes:
        page.heading("Worst mistakes", "none: every validation photo got the right answer" if report["val"]["count"] else "")
        page.y -= 12
        return
    shown = mistakes[:SHOWN]
    beside = any(mistake.get("nearest") for mistake in shown)
    per_row, side, small = (3, 160, 92) if beside else (6, 170, 0)
    note = "; beside each the training photos that look most alike to the network" if beside else ""
    page.heading("Worst mistakes", f"{which_mistakes(mistakes)}; in red the answer and its probability{note}")
    step = (WIDTH - 2 * MARGIN + 20) / per_row
    for k, mistake in enumerate(shown):
        x, y = round(MARGIN + k % per_row * step), round(page.y + k // per_row * (side + 84))
        _draw_photo(page, mistake["file"], x, y, side, photos)
        share = f"{100 * mistake['probability']:.0f} %"
        room = (step - 20 if beside else side) - measure(share, 14) - 8
        page.text(x, y + side + 8, names.get(mistake["predicted"], mistake["predicted"]), 14, RED, width=room)
        page.text(x + (step - 20 if beside else side), y + side + 8, share, 14, RED, "ra")
        room = step - 20 if beside else side
        page.text(x, y + side + 28, f"is {names.get(mistake['true'], mistake['true'])}", 14, width=room)
        page.text(x, y + side + 49, mistake["file"], 11.5, GREY, width=room)
        for j, near in enumerate((mistake.get("nearest") or [])[:NEIGHBOURS]):
            at = round(x + side + 8 + j * (small + 8))
            _draw_photo(page, near["file"], at, y, small, photos)
            colour = RED if near["true"] == mistake["predicted"] else BLUE if near["true"] == mistake["true"] else INK
            page.text(at, y + small + 6, names.get(near["true"], near["true"]), 12, colour, width=small)
            page.text(at, y + small + 22, f"{near['similarity']:.2f} alike", 11.5, GREY, width=small)
    page.y += math.ceil(len(shown) / per_row) * (side + 84) - 20


def _draw_photo(page: Page, name: str, x: int, y: int, side: int, photos: Path | Mapping[str, Path] | None) -> None:
    """A thumbnail, or an empty frame."""
    page.box(x, y, x + side, y + side, PALE)
    picture = thumbnail(name, side * SCALE, photos)
    if picture is None:
        page.text(x + side / 2, y + side / 2, "no photo", 13, GREY, "mm")
    else:
        page.picture(x, y, picture)


def _draw_reliability(page: Page, calibration: Mapping[str, Any] | None) -> None:
    """The reliability diagram, and what it says."""
    if not calibration:
        return
    page.heading("Reliability", RELIABILITY_NOTE)
    upper, at = page.y, MARGIN + COLUMN + 40
    draw_reliability(page, reliability_bins(calibration), MARGIN, upper, COLUMN)
    page.y += 20
    for sentence in calibration_sentences(calibration):
        page.paragraph(sentence, INK, at, COLUMN)
        page.y += 6
    for mark, text in RELIABILITY_MARKS:
        page.box(at, page.y + 2, at + 14, page.y + 16, BLUE if mark == "bar" else WHITE, {"red": RED, "orange": ORANGE}.get(mark))
        if mark in ("line", "dashes"):
            page.line([(at + 7, page.y + 1), (at + 7, page.y + 17)], INK if mark == "line" else GREY, 1.2, mark == "dashes")
        page.text(at + 24, page.y, text, 13, GREY)
        page.y += 24
    page.y = round(upper + RELIABILITY - 8)


RELIABILITY_NOTE = "across: how sure an answer is, in %; up: how many of those are right, in %"
RELIABILITY_MARKS = (
    ("bar", "how many of these answers are right"), ("red", "missing: the answers were surer than right"),
    ("orange", "to spare: the answers were right more often than they were sure"),
    ("line", "95 % interval of a bar: so few photos do not say more"), ("dashes", "the diagonal: as sure as right"),
)  # fmt: skip
"""Legend of a reliability diagram."""


def _draw_layers(page: Page, report: Mapping[str, Any]) -> None:
    """What was frozen: a bar for every layer."""
    bars = layer_bars(report.get("layers") or [])
    if not bars:
        return
    page.heading("What was trained", f"{trained_remark(report)}; a bar is a layer, its height the logarithm of these")
    x = MARGIN
    for text, fill, outline in (
        ("frozen", PALE, GREY),
        ("trained", BLUE, BLUE),
        ("trained in part, as far up as it is filled", PALE, BLUE),
    ):
        page.box(x, page.y + 2, x + 14, page.y + 16, fill, outline)
        if fill == PALE and outline == BLUE:
            page.box(x, page.y + 9, x + 14, page.y + 16, BLUE)
        x += round(page.text(x + 22, page.y, text, 13, GREY)) + 50
    page.y += 22
    page.y = round(draw_bars(page, bars, MARGIN, page.y, WIDTH - 2 * MARGIN))


def _draw_neither(page: Page, report: Mapping[str, Any]) -> None:
    """The trade-off of withholding answers."""
    table, chart = neither_table(report), neither_chart(report)
    if not table or not chart:
        return
    page.heading("Neither", "what is gained and lost where unsure answers are withheld")
    upper = page.y
    draw_chart(page, chart, MARGIN, upper, COLUMN)
    page.y += 8
    at = MARGIN + COLUMN + 40
    _draw_table(page, table, at, COLUMN)
    page.y += 10
    for sentence in neither_sentences(report):
        page.paragraph(sentence, GREY, at, COLUMN)
    page.y = max(page.y, round(upper + CHART))


def _draw_skipped(page: Page, skipped: Sequence[Mapping[str, str]]) -> None:
    """Files that were not used, the first few by name."""
    if not skipped:
        return
    page.heading(f"Skipped files: {len(skipped):,}", "all are named in report.json" if len(skipped) > 6 else "")
    for entry in skipped[:6]:
        page.text(MARGIN, page.y, f"{entry['file']}: {entry['reason']}", 14, GREY, width=WIDTH - 2 * MARGIN)
        page.y += 22
