"""A sheet to draw on, and charts: what the pages of report.py, report_html.py and network_report.py are drawn with.

In: numbers, names. Out: marks on a Sheet, which is either a Page, drawn with Pillow and its built-in font, or report_html.Svg; both take
the same calls, so that a chart is written once. The same calls give the same bytes. Left out: photos, and what the numbers mean.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont

WIDTH, MARGIN = 1200, 40
"""Of the page, in pixels."""
SCALE = 2
"""Everything is drawn so many times as large and then averaged, which is what makes lines smooth."""
ROOM = 1500
"""Pixels that a sheet has below a heading, at least; no section is higher."""
INK, GREY, PALE, RULE = (35, 38, 45), (102, 107, 117), (242, 243, 246), (222, 225, 230)
BLUE, ORANGE, RED = (45, 105, 190), (225, 125, 35), (200, 55, 45)
WHITE = (255, 255, 255)
LEGIBLE = frozenset(map(chr, range(32, 127))) | frozenset(
    "\u00a9\u00ab\u00b0\u00b1\u00b4\u00b7\u00bb\u2018\u2019\u201c\u201d\u2026\u2039\u203a\u2044\u2122"
)
"""What Pillow's built-in font (Aileron) has glyphs for."""
LETTERS = {"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "\u0131": "i"}

Colour = tuple[int, int, int]
Point = tuple[float, float]


# ---- text ----------------------------------------------------------------------------------------------------------------------


def legible(text: str) -> str:
    """The text in letters that the built-in font has: accents are dropped, what has no Latin base becomes a question mark."""
    plain = unicodedata.normalize("NFKD", "".join(LETTERS.get(c, c) for c in text))
    return "".join(c if c in LEGIBLE else "?" for c in plain if not unicodedata.combining(c))


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def measure(text: str, size: float) -> float:
    """Width in page pixels of legible text."""
    return _font(size * SCALE).getlength(text) / SCALE


def shortened(text: str, size: float, width: float) -> str:
    """The text if it fits into `width` page pixels, else its beginning and end around three dots."""
    if width == math.inf or measure(text, size) <= width:
        return text
    text = text if len(text) < 400 else text[:200] + text[-200:]
    for kept in range(len(text) - 1, 0, -1):
        tail = kept // 3
        cut = text[: kept - tail].rstrip() + "…" + (text[-tail:].lstrip() if tail else "")
        if measure(cut, size) <= width:
            return cut
    return ""


def percent(share: float) -> str:
    """0.8642 -> '86.4 %'."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """4.2 -> '4.2 s', 75 -> '1 min 15 s', 4000 -> '1 h 7 min'."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if seconds < 3599.5 else f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60} min"


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers, 1, 2 or 5 times a power of ten apart, that cover low..high."""
    rough = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9) - first
    return [round((first + k) * step, 12) for k in range(count + 1)]


# ---- sheets --------------------------------------------------------------------------------------------------------------------


class Sheet(Protocol):
    """What a chart is drawn on; x to the right, y downwards. title: what a pointer held there may show."""

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None, outline: Colour | None = None, title: str = "") -> None:
        """A rectangle, right and bottom edge excluded."""

    def line(self, points: Sequence[Point], fill: Colour, width: float = 1, dashed: bool = False) -> None:
        """A line through points; dashed: from the first to the last."""

    def dot(self, x: float, y: float, radius: float, fill: Colour, outline: Colour | None = None, title: str = "") -> None:
        """A disc."""

    def text(self, x: float, y: float, text: str, size: float, fill: Colour = INK, anchor: str = "la", width: float = math.inf) -> float:
        """One line, shortened to `width`; anchor as in Pillow. Returns the width that it took."""

    def upright(self, x: float, bottom: float, text: str, size: float, width: float) -> None:
        """A line that runs upwards from (x, bottom), centred on x."""


class Page:
    """A white sheet, WIDTH wide, drawn on in page pixels; grows downwards as sections are added at `y`.

    What lies above a heading is finished, and is reduced to page size where the room is needed: a large page takes little memory.
    """

    def __init__(self, height: int = ROOM + 300):
        self.image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), WHITE)
        self.pen = ImageDraw.Draw(self.image)
        self.y = MARGIN
        self.above = 0
        self.done: list[Image.Image] = []

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None, outline: Colour | None = None, title: str = "") -> None:
        """A filled rectangle, right and bottom edge excluded."""
        if x1 > x0 and y1 > y0:
            left, upper, right, lower = (round(v * SCALE) for v in (x0, y0 - self.above, x1, y1 - self.above))
            self.pen.rectangle((left, upper, max(right - 1, left), max(lower - 1, upper)), fill, outline, SCALE)

    def line(self, points: Sequence[Point], fill: Colour, width: float = 1, dashed: bool = False) -> None:
        """A line through points; dashed: from the first to the last."""
        if not dashed:
            self.pen.line([(x * SCALE, (y - self.above) * SCALE) for x, y in points], fill, max(1, round(width * SCALE)), joint="curve")
            return
        (x0, y0), (x1, y1) = points[0], points[-1]
        length = math.hypot(x1 - x0, y1 - y0)
        for start in range(0, int(length), 8):
            a, b = start / length, min(start + 4, length) / length
            self.line([(x0 + a * (x1 - x0), y0 + a * (y1 - y0)), (x0 + b * (x1 - x0), y0 + b * (y1 - y0))], fill, width)

    def dot(self, x: float, y: float, radius: float, fill: Colour, outline: Colour | None = None, title: str = "") -> None:
        """A disc."""
        y -= self.above
        self.pen.ellipse([round(v * SCALE) for v in (x - radius, y - radius, x + radius, y + radius)], fill, outline, SCALE)

    def text(self, x: float, y: float, text: str, size: float, fill: Colour = INK, anchor: str = "la", width: float = math.inf) -> float:
        """One line, shortened to `width`; anchor as in Pillow. Returns the width that it took."""
        text, font = shortened(legible(text), size, width), _font(size * SCALE)
        self.pen.text((x * SCALE, (y - self.above) * SCALE), text, fill, font, anchor)
        return font.getlength(text) / SCALE

    def upright(self, x: float, bottom: float, text: str, size: float, width: float) -> None:
        """A line that runs upwards from (x, bottom), centred on x."""
        text, font = shortened(legible(text), size, width), _font(size * SCALE)
        layer = Image.new("L", (math.ceil(font.getlength(text)) + 2, round(size * SCALE * 1.4)))
        ImageDraw.Draw(layer).text((1, layer.height / 2), text, 255, font, "lm")
        layer = layer.transpose(Image.Transpose.ROTATE_90)
        self.image.paste(INK, (round(x * SCALE - layer.width / 2), round((bottom - self.above) * SCALE - layer.height)), layer)

    def picture(self, x: int, y: int, picture: Image.Image) -> None:
        """A picture, SCALE times as large as on the page."""
        self.image.paste(picture, (x * SCALE, (y - self.above) * SCALE))

    def heading(self, text: str, note: str = "") -> None:
        """The title of a section, with a remark in grey."""
        self.y += 34
        if (self.y - self.above + ROOM) * SCALE > self.image.height:
            self._finish(int(self.y) - self.above)
        self.room(ROOM)
        taken = self.text(MARGIN, self.y, text, 22)
        self.text(MARGIN + taken + 14, self.y + 6, note, 14, GREY, width=WIDTH - 2 * MARGIN - taken - 14)
        self.y += 40

    def paragraph(self, text: str, fill: Colour = INK, x: float = MARGIN, width: float = WIDTH - 2 * MARGIN) -> None:
        """Text at `y` on as many lines as it needs."""
        line = ""
        for word in re.split(r"\s+(?!%)", legible(text).strip()):
            longer = f"{line} {word}" if line else word
            if line and measure(longer, 14) > width:
                self.text(x, self.y, line, 14, fill, width=width)
                self.y, longer = self.y + 22, word
                self.room(100)
            line = longer
        self.text(x, self.y, line, 14, fill, width=width)
        self.y += 22

    def room(self, pixels: float) -> None:
        """Make the sheet longer where there are fewer pixels below `y`."""
        if (self.y - self.above + pixels) * SCALE > self.image.height:
            height = max(round(self.y - self.above + pixels) * SCALE, self.image.height * 3 // 2)
            longer = Image.new("RGB", (WIDTH * SCALE, height), WHITE)
            longer.paste(self.image)
            self.image, self.pen = longer, ImageDraw.Draw(longer)

    def _finish(self, rows: int) -> None:
        """The first rows are as they will be; those below move up."""
        size = WIDTH * SCALE, self.image.height
        self.done.append(self.image.reduce(SCALE, (0, 0, size[0], rows * SCALE)))
        for y in range(rows * SCALE, size[1], 100):
            self.image.paste(self.image.crop((0, y, size[0], min(y + 100, size[1]))), (0, y - rows * SCALE))
        self.image.paste(WHITE, (0, size[1] - rows * SCALE, *size))
        self.above += rows

    def finished(self) -> Image.Image:
        """The sheet down to where it is used, at page size."""
        assert (self.y - self.above + MARGIN) * SCALE <= self.image.height, "the sheet is too short"
        height = round(self.y + MARGIN)
        last = self.image.reduce(SCALE, (0, 0, WIDTH * SCALE, (height - self.above) * SCALE))
        if not self.done:
            return last
        page = Image.new("RGB", (WIDTH, height))
        y = 0
        for part in (*self.done, last):
            page.paste(part, (0, y))
            y += part.height
        return page


# ---- charts --------------------------------------------------------------------------------------------------------------------

CHART = 310
"""Height of a chart with its axis."""
MOST_POINTS = 400
"""Of a run of a curve; of more, the lowest and the highest of each stretch are drawn."""


@dataclass(frozen=True)
class Curve:
    """Lines of one colour. runs: the line is broken between them. errors: {x: half the length of the bar through the point}."""

    name: str
    colour: Colour
    runs: Sequence[Sequence[Point]]
    errors: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """Curves over one axis.

    top: where the vertical axis ends; None: where the values do, and it begins at 0. ticks: of the horizontal axis, else round numbers.
    marked: x of a dashed line, whose points are large. rings: x of points to be ringed. parts: (first x, last x, name) of stretches.
    """

    title: str
    across: str
    curves: Sequence[Curve]
    top: float | None = None
    ticks: Sequence[float] = ()
    marked: float | None = None
    rings: Collection[float] = ()
    parts: Sequence[tuple[float, float, str]] = ()
    logarithmic: bool = False


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many of the points that the line through them looks the same: the lowest and highest of each stretch, and both ends."""
    if len(points) <= most:
        return list(points)
    stretches = (most - 2) // 2
    kept = {0, len(points) - 1}
    for k in range(stretches):
        stretch = range(k * len(points) // stretches, (k + 1) * len(points) // stretches)
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def draw_chart(sheet: Sheet, chart: Chart, x: float, y: float, width: float) -> None:
    """The chart, CHART high, its upper left corner at (x, y)."""
    left, right, upper, lower = x + 48, x + width - 8, y + (50 if chart.parts else 34), y + 270
    points = [point for curve in chart.curves for run in curve.runs for point in run]
    xs = [*(p[0] for p in points), *(v for first, last, _ in chart.parts for v in (first, last))] or [1.0]
    ends = [v for c in chart.curves for run in c.runs for a, b in run for v in (b - c.errors.get(a, 0.0), b + c.errors.get(a, 0.0))] or [
        0.0
    ]
    first, last = min(xs), max(xs)
    low, high = (max(min(ends), 0.0), chart.top) if chart.top is not None else (0.0, max(ends))
    if chart.top is not None and low >= high:  # all at the very top
        low = 0.95 * high
    ticks = nice_ticks(low, high if high > low else low + 1, 6)
    low, high = min(ticks[0], low), max(ticks[-1], high) if chart.top is None else max(chart.top, high)

    def at(value: float, up: float) -> Point:
        here, start, end = (math.log(v) for v in (value, first, last)) if chart.logarithmic else (value, first, last)
        share = (here - start) / (end - start) if end > start else 0.5
        return left + 10 + share * (right - left - 20), lower - (min(max(up, low), high) - low) / (high - low) * (lower - upper)

    _legend(sheet, chart, left, right, y)
    for tick in ticks:
        if low <= tick <= high:
            level = at(first, tick)[1]
            sheet.line([(left, level), (right, level)], RULE)
            sheet.text(left - 8, level, f"{tick:g}", 13, GREY, "rm")
    taken = -math.inf
    for value in chart.ticks or dict.fromkeys(round(t) for t in nice_ticks(first, last, 8)):
        half = measure(f"{value:g}", 13) / 2
        if first <= value <= last and at(value, low)[0] - half > taken + 6:
            taken = at(value, low)[0] + half
            sheet.text(at(value, low)[0], lower + 8, f"{value:g}", 13, GREY, "ma")
    sheet.line([(left, lower), (right, lower)], GREY)
    sheet.text(right, lower + 26, chart.across, 13, GREY, "ra")
    for k, (start, end, name) in enumerate(chart.parts):
        a = at(max(start - 0.5, first), low)[0] if k else left
        b = at(min(end + 0.5, last), low)[0] if k + 1 < len(chart.parts) else right
        if k:
            sheet.line([(a, upper - 18), (a, lower)], GREY)
        if b - a > 40:
            sheet.text(a + 4, upper - 19, name, 12, GREY, "la", b - a - 8)
    if chart.marked is not None and first <= chart.marked <= last:
        place = at(chart.marked, low)[0]
        sheet.line([(place, upper), (place, lower)], GREY, dashed=True)
    for curve in chart.curves:
        few = sum(map(len, curve.runs)) <= 30
        for run in curve.runs:
            places = [at(a, b) for a, b in thinned(run)]
            if len(places) > 1:
                sheet.line(places, curve.colour, 2.2)
            for a, b in run:
                here, error = at(a, b), curve.errors.get(a)
                title = f"{curve.name}: {chart.across} {a:g}, {b:.3g}"
                if error:
                    sheet.line([at(a, b - error), at(a, b + error)], curve.colour, 1.2)
                if a == chart.marked or a in chart.rings:
                    sheet.dot(*here, 4.5 if a == chart.marked else 3.5, WHITE, curve.colour, title)
                elif few or len(run) == 1:
                    sheet.dot(*here, 2.6, curve.colour, curve.colour, title)


def _legend(sheet: Sheet, chart: Chart, left: float, right: float, y: float) -> None:
    """The title and, from the right, what each colour is."""
    sheet.text(left, y + 4, chart.title, 16)
    if len(chart.curves) > 1:
        for curve in reversed(chart.curves):
            right -= measure(curve.name, 14)
            sheet.text(right, y + 6, curve.name, 14, GREY)
            sheet.line([(right - 26, y + 15), (right - 8, y + 15)], curve.colour, 2.5)
            right -= 44


def draw_interval(sheet: Sheet, ends: Point, value: float, error: float, colour: Colour, x: float, y: float, width: float) -> None:
    """A value with its uncertainty on a line that reaches from one end to the other; y is its middle."""
    low, high = ends

    def at(v: float) -> float:
        return x + 6 + (min(max(v, low), high) - low) / (high - low) * (width - 12) if high > low else x + width / 2

    sheet.line([(x, y), (x + width, y)], RULE)
    if error:
        sheet.line([(at(value - error), y), (at(value + error), y)], colour, 2)
    sheet.dot(at(value), y, 4, colour, colour)


@dataclass(frozen=True)
class Bar:
    """A bar of a row of bars. height: 0..1. filled: share of it, from below, that is in the strong colour. group: its neighbours' name."""

    group: str
    height: float
    filled: float
    title: str


def draw_bars(sheet: Sheet, bars: Sequence[Bar], x: float, y: float, width: float) -> float:
    """Bars side by side, each group named below; a bar that is not filled is pale, with an outline. Returns where the names end."""
    end = y + 188
    lower, step = y + 160, min(width / max(len(bars), 1), 40.0)
    start = 0
    for k, bar in enumerate(bars):
        left, right, top = x + k * step + min(1.5, step / 8), x + (k + 1) * step - min(1.5, step / 8), lower - 8 - 148 * bar.height
        if bar.filled < 1:
            sheet.box(left, top, right, lower, PALE, BLUE if bar.filled else GREY, bar.title)
        if bar.filled:
            sheet.box(left, lower - bar.filled * (lower - top), right, lower, BLUE, BLUE, bar.title)
        if k + 1 == len(bars) or bars[k + 1].group != bar.group:
            a, b = x + start * step + 1, x + (k + 1) * step - 1
            sheet.line([(a, lower + 5), (b, lower + 5)], GREY, 1.5)
            if measure(legible(bar.group), 12) <= b - a:
                sheet.text((a + b) / 2, lower + 10, bar.group, 12, INK, "ma")
            elif b - a >= 11:
                bottom = lower + 12 + measure(shortened(legible(bar.group), 12, 90), 12)
                sheet.upright((a + b) / 2, bottom, bar.group, 12, 90)
                end = max(end, bottom)
            start = k + 1
    return end


RELIABILITY = 340
"""Height of a reliability diagram."""


def draw_reliability(sheet: Sheet, bins: Sequence[tuple[float, float, int, float, float]], x: float, y: float, width: float) -> None:
    """How often answers are right, by how sure they are; the diagonal is where both agree.

    bins: (low, high, count, mean confidence, accuracy), shares 0..1; those with a count of 0 are left out. The thin line is the 95 %
    interval of the accuracy that so few photos allow (Wilson 1927).
    """
    left, right, upper, lower = x + 48, x + width - 8, y + 12, y + 250

    def at(a: float, b: float) -> Point:
        return left + a * (right - left), lower - b * (lower - upper)

    for tick in range(0, 101, 20):
        sheet.line([at(0, tick / 100), at(1, tick / 100)], RULE)
        sheet.text(left - 8, at(0, tick / 100)[1], str(tick), 13, GREY, "rm")
        sheet.text(at(tick / 100, 0)[0], lower + 6, str(tick), 13, GREY, "ma")
    most = max((count for _, _, count, _, _ in bins), default=0)
    for low, high, count, confidence, accuracy in bins:
        if not count:
            continue
        title = f"{count} photos, on average {percent(confidence)} sure: {percent(accuracy)} right"
        (x0, y0), (x1, y1) = at(low, accuracy), at(high, 0)
        sheet.box(x0 + 1, y0, x1 - 1, y1, BLUE, None, title)
        gap = at(0, max(confidence, accuracy))[1], at(0, min(confidence, accuracy))[1]
        sheet.box(x0 + 1, gap[0], x1 - 1, gap[1], None, RED if confidence > accuracy else ORANGE, title)
        middle = (x0 + x1) / 2
        down, up = wilson(accuracy, count)
        sheet.line([(middle, at(0, down)[1]), (middle, at(0, up)[1])], INK, 1.2)
        sheet.box(x0 + 1, lower + 60 - 32 * count / most, x1 - 1, lower + 60, GREY, None, title)
        sheet.text(middle, lower + 64, f"{count:,}", 11, GREY, "ma")
    sheet.line([at(0, 0), at(1, 1)], INK, dashed=True)
    sheet.line([(left, lower), (right, lower)], GREY)
    sheet.text(left - 8, lower + 54, "photos", 12, GREY, "rm")


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share that was counted on so many (Wilson 1927)."""
    middle, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max((middle - half) / (1 + z * z / count), 0.0), min((middle + half) / (1 + z * z / count), 1.0)
