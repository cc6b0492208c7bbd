"""Pictures for people: how training went, what is confused with what, and the worst mistakes, on one page.

Enters: the report, a plain dict that is also written to report.json (keys below), and a function that opens a photo for its
thumbnail. Leaves: a PNG drawn with Pillow and its built-in font; the same report gives the same bytes. Left out: interaction.

The report:
    classes: list of names. best_epoch: number of the epoch that was kept, as in history.
    history: list of {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}; accuracies 0..1; None where not measured.
    val: {"count", "float": {"accuracy", "confusion"}, "int8": the same or None}; confusion: one row per true class.
    mistakes: list of {"file", "true", "predicted", "probability"}, worst first, from worst_mistakes().
    skipped: list of {"file", "reason"}. facts: {what: value}, shown as they are.
"""

from __future__ import annotations

import functools
import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .images import PhotoError, Recipe, read_photo


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


# ---- the page ------------------------------------------------------------------------------------------------------------------

WIDTH, MARGIN = 1200, 40
"""Of the page, in pixels."""
SCALE = 2
"""Everything is drawn so many times as large and then averaged, which is what makes lines smooth."""
INK, GREY, PALE, RULE = (35, 38, 45), (110, 115, 125), (242, 243, 246), (222, 225, 230)
BLUE, ORANGE, RED = (45, 105, 190), (225, 125, 35), (200, 55, 45)
WHITE = (255, 255, 255)
LEGIBLE = frozenset(map(chr, range(32, 127))) | frozenset(
    "\u00a9\u00ab\u00b0\u00b1\u00b4\u00b7\u00bb\u2018\u2019\u201c\u201d\u2026\u2039\u203a\u2044\u2122"
)
"""What Pillow's built-in font (Aileron) has glyphs for."""
LETTERS = {"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "\u0131": "i"}

Colour = tuple[int, int, int]


def legible(text: str) -> str:
    """The text in letters that the built-in font has: accents are dropped, what has no Latin base becomes a question mark."""
    plain = unicodedata.normalize("NFKD", "".join(LETTERS.get(c, c) for c in text))
    return "".join(c if c in LEGIBLE else "?" for c in plain if not unicodedata.combining(c))


def legible_names(classes: Sequence[str]) -> list[str]:
    """Class names for the page; one in another script is called by its number, counted from 0 as in report.json."""
    names = [legible(name) for name in classes]
    return [f"class {i}" if "?" in name and "?" not in classes[i] else name for i, name in enumerate(names)]


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


class Page:
    """A white sheet, WIDTH wide, drawn on in page pixels; grows downwards as sections are added at `y`."""

    def __init__(self, height: int):
        self.image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), WHITE)
        self.pen = ImageDraw.Draw(self.image)
        self.y = MARGIN

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None, outline: Colour | None = None) -> None:
        """A filled rectangle, right and bottom edge excluded."""
        if x1 > x0 and y1 > y0:
            left, upper, right, lower = (round(v * SCALE) for v in (x0, y0, x1, y1))
            self.pen.rectangle((left, upper, max(right - 1, left), max(lower - 1, upper)), fill, outline, SCALE)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float = 1) -> None:
        """A line through points."""
        self.pen.line([(x * SCALE, y * SCALE) for x, y in points], fill, max(1, round(width * SCALE)), joint="curve")

    def dot(self, x: float, y: float, radius: float, fill: Colour, outline: Colour | None = None) -> None:
        """A disc."""
        self.pen.ellipse([round(v * SCALE) for v in (x - radius, y - radius, x + radius, y + radius)], fill, outline, SCALE)

    def text(self, x: float, y: float, text: str, size: float, fill: Colour = INK, anchor: str = "la", width: float = math.inf) -> float:
        """One line, shortened to `width`; anchor as in Pillow. Returns the width that it took."""
        text, font = shortened(legible(text), size, width), _font(size * SCALE)
        self.pen.text((x * SCALE, y * SCALE), text, fill, font, anchor)
        return font.getlength(text) / SCALE

    def upright(self, x: float, bottom: float, text: str, size: float, width: float) -> None:
        """A line that runs upwards from (x, bottom), centred on x."""
        text, font = shortened(legible(text), size, width), _font(size * SCALE)
        layer = Image.new("L", (math.ceil(font.getlength(text)) + 2, round(size * SCALE * 1.4)))
        ImageDraw.Draw(layer).text((1, layer.height / 2), text, 255, font, "lm")
        layer = layer.transpose(Image.Transpose.ROTATE_90)
        self.image.paste(INK, (round(x * SCALE - layer.width / 2), round(bottom * SCALE - layer.height)), layer)

    def heading(self, text: str, note: str = "") -> None:
        """The title of a section, with a remark in grey."""
        self.y += 34
        taken = self.text(MARGIN, self.y, text, 22)
        self.text(MARGIN + taken + 14, self.y + 6, note, 14, GREY, width=WIDTH - 2 * MARGIN - taken - 14)
        self.y += 40

    def finished(self) -> Image.Image:
        """The sheet down to where it is used, at page size."""
        assert (self.y + MARGIN) * SCALE <= self.image.height, "the sheet is too short"
        return self.image.crop((0, 0, WIDTH * SCALE, round(self.y + MARGIN) * SCALE)).reduce(SCALE)


def shortened(text: str, size: float, width: float) -> str:
    """The text if it fits into `width` page pixels, else its beginning and end around three dots."""
    font = _font(size * SCALE)
    if width == math.inf or font.getlength(text) <= width * SCALE:
        return text
    text = text if len(text) < 400 else text[:200] + text[-200:]
    for kept in range(len(text) - 1, 0, -1):
        tail = kept // 3
        cut = text[: kept - tail].rstrip() + "…" + (text[-tail:].lstrip() if tail else "")
        if font.getlength(cut) <= width * SCALE:
            return cut
    return ""


def draw(report: Mapping[str, Any], photos: Path | Mapping[str, Path] | None = None) -> Image.Image:
    """The page for a report (see the top of this file).

    photos: where the thumbnails come from: the folder that the mistakes' file names start from, or a table {file name: path}. A
    photo that cannot be read leaves an empty frame.
    """
    classes = legible_names(report["classes"])
    page = Page(2600 + 22 * len(report.get("facts", {})))
    _draw_facts(page, report, classes)
    _draw_curves(page, report)
    _draw_confusion(page, np.array(report["val"]["float"]["confusion"], np.int64), classes)
    _draw_mistakes(page, report, dict(zip(report["classes"], classes, strict=True)), photos)
    _draw_skipped(page, report["skipped"])
    return page.finished()


def to_png(page: Image.Image) -> bytes:
    """The bytes of the PNG file; the same for the same page."""
    out = io.BytesIO()
    page.save(out, "PNG", optimize=True)
    return out.getvalue()


def percent(share: float) -> str:
    """0.8642 -> '86.4 %'."""
    return f"{100 * share:.1f} %"


def _draw_facts(page: Page, report: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Title, the four figures that matter, and the rest in small."""
    val, facts = report["val"], dict(report.get("facts", {}))
    title, room = ", ".join(classes[:40]), WIDTH - 2 * MARGIN  # more than 40 never fit
    for kept in range(min(len(classes), 40), 0, -1):
        title = ", ".join(classes[:kept]) + (f" and {len(classes) - kept} more" if kept < len(classes) else "")
        if _font(30 * SCALE).getlength(title) <= room * SCALE:
            break
    page.text(MARGIN, page.y, title, 30, width=room)
    page.y += 54
    tiles = [(percent(val["float"]["accuracy"]), "validation accuracy, float")]
    tiles.append((percent(val["int8"]["accuracy"]) if val.get("int8") else "-", "validation accuracy, int8"))
    tiles.append((f"{val['count']:,}", "validation photos"))
    tiles.append((f"{len(classes):,}", "classes"))
    step = (WIDTH - 2 * MARGIN + 20) / len(tiles)
    for k, (figure, what) in enumerate(tiles):
        x = MARGIN + k * step
        page.box(x, page.y, x + step - 20, page.y + 96, PALE)
        page.text(x + 18, page.y + 14, figure, 36, BLUE if "%" in figure else INK)
        page.text(x + 18, page.y + 64, what, 14, GREY)
    page.y += 112
    x = float(MARGIN)
    for what, value in facts.items():
        words = shortened(legible(f"{what}: {value}"), 14, WIDTH - 2 * MARGIN)
        width = _font(14 * SCALE).getlength(words) / SCALE
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, page.y = MARGIN, page.y + 22
        x += page.text(x, page.y, words, 14, GREY) + 28
    page.y += 18 if facts else -10


def _draw_curves(page: Page, report: Mapping[str, Any]) -> None:
    """Loss and accuracy over the epochs, training and validation, the kept epoch marked."""
    history = report["history"]
    if not history:
        return
    best = report.get("best_epoch")
    page.heading("Learning curve", f"epoch {best} of {history[-1]['epoch']} was kept" if best else "")
    width = (WIDTH - 2 * MARGIN - 40) / 2
    for k, (what, unit) in enumerate((("loss", 1.0), ("accuracy", 100.0))):
        curves = [
            (name, colour, [(line["epoch"], line.get(f"{part}_{what}")) for line in history])
            for name, part, colour in (("training", "train", BLUE), ("validation", "val", ORANGE))
        ]
        shown = [(n, c, [(e, unit * v) for e, v in points if v is not None and math.isfinite(v)]) for n, c, points in curves]
        title = "loss" if what == "loss" else "accuracy in %"
        _draw_chart(page, MARGIN + k * (width + 40), width, title, shown, best, 100.0 if what == "accuracy" else None)
    page.y += 310


Curve = tuple[str, Colour, list[tuple[int, float]]]


def _draw_chart(page: Page, x: float, width: float, title: str, curves: Sequence[Curve], best: int | None, top: float | None) -> None:
    """One chart, 310 high, at page.y; the vertical axis ends at `top`, or where the values do."""
    left, right, upper, lower = x + 48, x + width - 8, page.y + 34, page.y + 270
    epochs = [e for _, _, points in curves for e, _ in points] or [1]
    values = [v for _, _, points in curves for _, v in points] or [0.0]
    first, last = min(epochs), max(epochs)
    low, high = (min(values), top) if top is not None else (0.0, max(values))
    ticks = nice_ticks(low, high if high > low else low + 1, 6)
    low, high = min(ticks[0], low), max(ticks[-1], high) if top is None else max(top, high)

    def at(epoch: float, value: float) -> tuple[float, float]:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return left + 10 + share * (right - left - 20), lower - (value - low) / (high - low) * (lower - upper)

    page.text(left, page.y + 4, title, 16)
    at_legend = right
    for name, colour, _ in reversed(curves):
        at_legend -= _font(14 * SCALE).getlength(name) / SCALE
        page.text(at_legend, page.y + 6, name, 14, GREY)
        page.line([(at_legend - 30, page.y + 15), (at_legend - 8, page.y + 15)], colour, 2.5)
        at_legend -= 48
    for tick in ticks:
        if low <= tick <= high:
            y = at(first, tick)[1]
            page.line([(left, y), (right, y)], RULE)
            page.text(left - 8, y, f"{tick:g}", 13, GREY, "rm")
    for epoch in dict.fromkeys(round(t) for t in nice_ticks(first, last, 8)):
        if first <= epoch <= last:
            page.text(at(epoch, low)[0], lower + 8, str(epoch), 13, GREY, "ma")
    page.line([(left, lower), (right, lower)], GREY)
    page.text(right, lower + 26, "epoch", 13, GREY, "ra")
    if best is not None and first <= best <= last:
        place = at(best, low)[0]
        for y in range(round(upper), round(lower), 8):
            page.line([(place, y), (place, min(y + 4, lower))], GREY)
    for _, colour, points in curves:
        places = [at(e, v) for e, v in points]
        if len(places) > 1:
            page.line(places, colour, 2.2)
        for (epoch, _), (px, py) in zip(points, places, strict=True):
            if len(points) <= 30 or epoch == best:
                page.dot(px, py, 4.5 if epoch == best else 2.6, WHITE if epoch == best else colour, colour)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers, 1, 2 or 5 times a power of ten apart, that cover low..high."""
    rough = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9) - first
    return [round((first + k) * step, 12) for k in range(count + 1)]


def _draw_confusion(page: Page, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """The matrix, named and numbered as far as there is room, and beside it the classes that are mixed up most."""
    n = len(classes)
    note = "float network; a row is what the photo shows, a column the answer, the shade its share of the row"
    page.heading("Confusion matrix", note)
    cell = min(96.0, (540 if n <= 30 else 600) / n)
    named, numbered = cell >= 9, cell >= 18
    size = min(14.0, max(8.5, cell * 0.8)) if named else 12
    names = max((_font(size * SCALE).getlength(name) / SCALE for name in classes), default=0) if named else 30
    across, up = min(names, 190), min(names, 130)
    left, upper = MARGIN + across + 10, page.y + up + 8
    totals = matrix.sum(axis=1)
    for i in range(n):
        for j in range(n):
            share = matrix[i, j] / totals[i] if totals[i] else 0.0
            x, y = left + j * cell, upper + i * cell
            base = BLUE if i == j else RED
            strength = 0.0 if not share else 0.12 + 0.88 * math.sqrt(share)
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
    names = x + max(_font(14 * SCALE).getlength(f"{total} of {total}") / SCALE for total in totals) + 18
    room = WIDTH - MARGIN - names
    wrong = matrix - np.diag(np.diag(matrix))
    pairs = sorted(((-int(wrong[i, j]), int(i), int(j)) for i, j in np.argwhere(wrong)))[:6]
    page.text(x, y, "Taken for another most often", 16)
    y += 30
    for count, i, j in pairs:
        page.text(x, y, f"{-count} of {totals[i]}", 14, RED)
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
    """The surest wrong answers as thumbnails, six in a row."""
    mistakes, per_row, side = report["mistakes"], 6, 170
    if not mistakes:
        page.heading("Worst mistakes", "none: every validation photo got the right answer" if report["val"]["count"] else "")
        page.y -= 12
        return
    shown = mistakes[: 2 * per_row]
    which = f"the {len(shown)} surest of {len(mistakes)} wrong answers" if len(mistakes) > len(shown) else "all wrong answers"
    page.heading("Worst mistakes", f"{which}; in red the answer and its probability")
    step = (WIDTH - 2 * MARGIN + 20) / per_row
    for k, mistake in enumerate(shown):
        x, y = round(MARGIN + k % per_row * step), round(page.y + k // per_row * (side + 84))
        page.box(x, y, x + side, y + side, PALE)
        thumbnail = _thumbnail(mistake["file"], side * SCALE, photos)
        if thumbnail is None:
            page.text(x + side / 2, y + side / 2, "no photo", 13, GREY, "mm")
        else:
            page.image.paste(thumbnail, (x * SCALE, y * SCALE))
        share = f"{100 * mistake['probability']:.0f} %"
        room = side - _font(14 * SCALE).getlength(share) / SCALE - 8
        page.text(x, y + side + 8, names.get(mistake["predicted"], mistake["predicted"]), 14, RED, width=room)
        page.text(x + side, y + side + 8, share, 14, RED, "ra")
        page.text(x, y + side + 28, f"is {names.get(mistake['true'], mistake['true'])}", 14, width=side)
        page.text(x, y + side + 49, mistake["file"], 11.5, GREY, width=side)
    page.y += math.ceil(len(shown) / per_row) * (side + 84) - 20


def _thumbnail(name: str, side: int, photos: Path | Mapping[str, Path] | None) -> Image.Image | None:
    """The middle of a photo, side x side pixels; None where it cannot be read."""
    path = photos / name if isinstance(photos, Path) else (photos or {}).get(name)
    if path is None:
        return None
    try:
        return Image.fromarray(read_photo(path, Recipe(side, side, crop_fraction=1.0, interpolation="bicubic")))
    except PhotoError:
        return None


def _draw_skipped(page: Page, skipped: Sequence[Mapping[str, str]]) -> None:
    """Files that were not used, the first few by name."""
    if not skipped:
        return
    page.heading(f"Skipped files: {len(skipped)}", "all are named in report.json" if len(skipped) > 6 else "")
    for entry in skipped[:6]:
        page.text(MARGIN, page.y, f"{entry['file']}: {entry['reason']}", 14, GREY, width=WIDTH - 2 * MARGIN)
        page.y += 22
