"""The report as one HTML file that needs nothing else: charts as SVG, photos as data, no script.

Enters: the report dict of report.py and where its photos are. Leaves: the text of the page, the same for the same report; it is well-formed
XML, too. It is light or dark as the reader's device is, and light on paper. Names are shown as they are, in any script, and escaped.
Left out: anything that moves or is fetched; a browser that is told so by the page itself refuses both.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import report as r
from .drawing import (
    BLUE,
    CHART,
    GREY,
    INK,
    ORANGE,
    PALE,
    RED,
    RELIABILITY,
    RULE,
    WHITE,
    Chart,
    Colour,
    Point,
    draw_bars,
    draw_chart,
    draw_interval,
    draw_reliability,
    legible,
    measure,
    nice_ticks,
    percent,
    shortened,
)

SIDE = 160
"""Pixels of a thumbnail."""
NUMBERED = 30
"""Classes up to which the confusion matrix is a table; one of more is a picture, a pixel for each cell."""
LISTED = 100
"""Rows of a list that may be long: further mistakes, skipped files."""

COLOURS: dict[str, tuple[Colour, Colour]] = {
    "ink": (INK, (230, 232, 236)),
    "grey": (GREY, (160, 165, 175)),
    "pale": (PALE, (38, 41, 48)),
    "rule": (RULE, (62, 66, 75)),
    "blue": (BLUE, (105, 160, 240)),
    "orange": (ORANGE, (240, 155, 70)),
    "red": (RED, (240, 110, 95)),
    "paper": (WHITE, (22, 24, 28)),
}
"""Name: the colour on paper, which is what a chart asks for; the colour in the dark."""
JOINT = r"\1<wbr/>"
"""After these signs a line may end."""
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters and halves of surrogates, which file names can contain and pages cannot."""
NAMES = {light: name for name, (light, _) in COLOURS.items()}


def _safe(text: Any) -> str:
    """Text for between tags and in attributes."""
    return escape(UNFIT.sub("\ufffd", str(text)))


def _name(text: Any) -> str:
    """A name of the user's: it may break where names are joined, and cannot turn the direction of the words around it."""
    return f"<bdi>{re.sub('([_/-])', JOINT, _safe(text))}</bdi>"


def _file(text: Any) -> str:
    """A file's name; its parts stay in their order whatever their script."""
    return _name(text).replace("<bdi>", '<bdi dir="ltr">', 1)


def _cut(text: str, most: int) -> str:
    """The text, or its beginning and end around three dots."""
    return text if len(text) <= most else f"{text[: most - most // 3 - 1]}…{text[-(most // 3) :]}"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


# ---- SVG -----------------------------------------------------------------------------------------------------------------------


class Svg:
    """A Sheet (drawing.py) whose marks become SVG; colours are classes, so that they can change in the dark."""

    def __init__(self) -> None:
        self.marks: list[str] = []

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None, outline: Colour | None = None, title: str = "") -> None:
        """A rectangle, right and bottom edge excluded."""
        if x1 > x0 and y1 > y0:
            inset = 0.5 if outline else 0.0  # a stroke is centred on its path
            sizes = (x0 + inset, y0 + inset, max(x1 - x0 - 2 * inset, 0.1), max(y1 - y0 - 2 * inset, 0.1))
            x, y, width, height = map(_number, sizes)
            self._mark("rect", f'x="{x}" y="{y}" width="{width}" height="{height}"', fill, outline, title)

    def line(self, points: Sequence[Point], fill: Colour, width: float = 1, dashed: bool = False) -> None:
        """A line through points; dashed: from the first to the last."""
        dashes = ' stroke-dasharray="4"' if dashed else ""
        way = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._mark("polyline", f'points="{way}" stroke-width="{width:g}"{dashes}', None, fill)

    def dot(self, x: float, y: float, radius: float, fill: Colour, outline: Colour | None = None, title: str = "") -> None:
        """A disc."""
        self._mark("circle", f'cx="{_number(x)}" cy="{_number(y)}" r="{radius:g}"', fill, outline, title)

    def text(self, x: float, y: float, text: str, size: float, fill: Colour = INK, anchor: str = "la", width: float = math.inf) -> float:
        """One line, shortened to `width`; anchor as in Pillow. Returns the width that it takes, nearly."""
        text = _fitting(text, size, width)
        down = {"a": 0.85, "m": 0.35, "s": 0.0}[anchor[1]] * size
        where = {"l": "", "m": ' text-anchor="middle"', "r": ' text-anchor="end"'}[anchor[0]]
        self.marks.append(
            f'<text x="{_number(x)}" y="{_number(y + down)}" font-size="{size:g}" class="f-{NAMES[fill]}"{where}>{_safe(text)}</text>'
        )
        return measure(legible(text), size)

    def upright(self, x: float, bottom: float, text: str, size: float, width: float) -> None:
        """A line that runs upwards from (x, bottom), centred on x."""
        at = f"{_number(x + 0.35 * size)} {_number(bottom)}"
        self.marks.append(
            f'<text transform="translate({at}) rotate(-90)" font-size="{size:g}" class="f-ink">{_safe(_fitting(text, size, width))}</text>'
        )

    def _mark(self, tag: str, where: str, fill: Colour | None, outline: Colour | None, title: str = "") -> None:
        look = f"f-{NAMES[fill]}" if fill else "f-none"
        look += f" s-{NAMES[outline]}" if outline else ""
        inner = f"><title>{_safe(title)}</title></{tag}>" if title else "/>"
        self.marks.append(f'<{tag} class="{look}" {where}{inner}')

    def finished(self, width: float, height: float, about: str, look: str = "") -> str:
        """The picture. about: what it shows, for those who do not see it."""
        view = f"0 0 {_number(width)} {_number(height)}"
        return f'<svg viewBox="{view}" role="img" aria-label="{_safe(about)}" class="{look}">{"".join(self.marks)}</svg>'


def _fitting(text: str, size: float, width: float) -> str:
    """The text, shortened where it takes more room; letters that the built-in font has not got are taken to be as wide as high."""
    known = legible(text)
    if width == math.inf or measure(known, size) + size * 0.5 * known.count("?") <= width:
        return text
    if "?" not in known:
        return shortened(known, size, width)
    kept = max(int(width / size) - 1, 1)
    return text[:kept] + "…"


def _svg_chart(chart: Chart, width: float) -> str:
    sheet = Svg()
    draw_chart(sheet, chart, 0, 0, width)
    return sheet.finished(width, CHART, _chart_words(chart), "chart")


def _chart_words(chart: Chart) -> str:
    """What the curves of a chart do, in a sentence."""
    said = []
    for curve in chart.curves:
        points = [point for run in curve.runs for point in run]
        if points:
            values = [v for _, v in points]
            said.append(
                f"{curve.name} from {points[0][1]:.3g} at {points[0][0]:g} to {points[-1][1]:.3g} at {points[-1][0]:g}, "
                f"lowest {min(values):.3g}, highest {max(values):.3g}"
            )
    return f"Chart, {chart.title} by {chart.across}: {'; '.join(said)}"


# ---- pieces of the page --------------------------------------------------------------------------------------------------------


def _section(key: str, heading: str, body: str, note: str = "") -> str:
    remark = f'<p class="note">{_safe(note)}</p>' if note else ""
    return f'<section aria-labelledby="{key}">\n<h2 id="{key}">{_safe(heading)}</h2>{remark}\n{body}\n</section>\n'


def _paragraphs(sentences: Iterable[str], look: str = "") -> str:
    kind = f' class="{look}"' if look else ""
    return "".join(f"<p{kind}>{_safe(sentence)}</p>" for sentence in sentences if sentence)


def _table(table: r.Table, caption: str) -> str:
    """A Table as it stands, its intervals drawn in a last column, the chosen row marked."""
    head = "".join(f'<th scope="col"{_figure(c, table)}>{_safe(text)}</th>' for c, text in enumerate(table.head))
    head += '<th scope="col">uncertainty</th>' if table.intervals else ""
    head += '<th scope="col"></th>' if table.chosen else ""
    lines = []
    for k, row in enumerate(table.rows):
        cells = "".join(
            f'<th scope="row" class="words">{_name(text)}</th>'
            if c == 0 and 0 in table.wide
            else f"<td{_figure(c, table)}>{_name(text)}</td>"
            for c, text in enumerate(row)
        )
        if table.intervals:
            sheet, (value, error) = Svg(), table.intervals[k]
            draw_interval(sheet, table.ends(), value, error, BLUE if k in table.chosen else INK, 0, 10, 180)
            cells += f"<td>{sheet.finished(180, 20, f'{percent(value)} give or take {100 * error:.1f}', 'interval')}</td>"
        if table.chosen:
            cells += f"<td>{'chosen' if k in table.chosen else ''}</td>"
        lines.append(f"<tr{' class=' + chr(34) + 'chosen' + chr(34) if k in table.chosen else ''}>{cells}</tr>")
    return _scrolling(f"<table><caption>{_safe(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def _figure(column: int, table: r.Table) -> str:
    """The class of the cells of a column."""
    return f' class="{"words" if column in table.wide else "figure"}"'


def _scrolling(inner: str, label: str = "table") -> str:
    """What may be wider than the screen; it can be reached and scrolled with the keyboard."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="{_safe(label)}">{inner}</div>'


def _list(pairs: Mapping[str, Any]) -> str:
    items = "".join(f"<div><dt>{_safe(what)}</dt><dd>{_name(r.words(value))}</dd></div>" for what, value in pairs.items())
    return f'<dl class="facts">{items}</dl>'


def _more(summary: str, inner: str) -> str:
    """What is folded away until it is asked for."""
    return f"<details><summary>{_safe(summary)}</summary>{inner}</details>"


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# ---- sections ------------------------------------------------------------------------------------------------------------------


def page(report: Mapping[str, Any], photos: Path | Mapping[str, Path] | None = None) -> str:
    """The page of a report.

    photos: where the thumbnails come from: the folder that the file names start from, or a table {file name: path}. A photo that
    cannot be read leaves an empty frame.
    """
    sections = [
        ("curves", "Learning curve", _curves(report)),
        ("choice", "How much to train", _choice(report)),
        ("more-photos", "Would more photos help?", _learning(report)),
        ("confusion", "Confusion matrix", _confusion(report)),
        ("mistakes", "Worst mistakes", _mistakes(report, photos)),
        ("reliability", "Reliability", _reliability(report["val"].get("calibration"))),
        ("trained", "What was trained", _layers(report)),
        ("neither", "Neither", _neither(report)),
        ("skipped", f"Skipped files: {len(report['skipped']):,}", _skipped(report["skipped"])),
        ("settings", "Settings", ("", _list(report.get("settings") or {})) if report.get("settings") else None),
    ]
    found = [(key, heading, body) for key, heading, body in sections if body]
    links = "".join(f'<li><a href="#{key}">{_safe(heading)}</a></li>' for key, heading, _ in found)
    tiles = "".join(f"<div><dt>{_safe(what)}</dt><dd>{_safe(figure)}</dd></div>" for figure, what in r.tiles(report))
    names = [_cut(name, 40) for name in report["classes"]]
    title = r.title(names, 12)
    heading = r.title([_name(name) for name in names], 12)
    notes = _paragraphs(report.get("notes") or [], "warning")
    body = "".join(_section(key, heading, inner, note) for key, heading, (note, inner) in found)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"/>\n"
        f'<meta name="color-scheme" content="light dark"/>\n<title>{_safe(title)}</title>\n'
        f"<style>{_style()}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<h1>{heading}</h1>\n<dl class="tiles">{tiles}</dl>\n{notes}\n{_list(report.get("facts") or {})}\n</header>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n{body}</main>\n</body>\n</html>\n'
    )


Section = tuple[str, str] | None
"""(remark, inner HTML), or nothing to show."""


def _curves(report: Mapping[str, Any]) -> Section:
    if not report["history"]:
        return None
    charts = "".join(_svg_chart(chart, 460) for chart in r.curve_charts(report))
    table = r.phase_table(report)
    return r.kept_epoch(report), f'<div class="charts">{charts}</div>' + (_table(table, "Phases of training") if table else "")


def _choice(report: Mapping[str, Any]) -> Section:
    table = r.auto_table(report)
    if not table:
        return None
    sentences = _paragraphs(report["auto"].get("sentences") or [])
    return "tried on this data set before training", _table(table, "Accuracy on training photos held out, by what is trained") + sentences


def _learning(report: Mapping[str, Any]) -> Section:
    chart = r.learning_chart(report)
    if not chart:
        return None
    picture = f'<div class="charts">{_svg_chart(chart, 460)}<div>{_paragraphs([r.learning_sentence(report)])}</div></div>'
    return "the classifier alone, trained on fewer photos; the bars are the uncertainty", picture


def _confusion(report: Mapping[str, Any]) -> Section:
    classes, matrix = report["classes"], np.array(report["val"]["float"]["confusion"], np.int64)
    totals = matrix.sum(axis=1)
    small = len(classes) <= NUMBERED
    shown = _confusion_table(matrix, classes) if small else _confusion_picture(matrix)
    pairs = "".join(
        f'<tr><td class="figure red">{count:,} of {totals[i]:,}</td>'
        f'<td class="words">{_name(classes[i])}</td><td class="words">{_name(classes[j])}</td></tr>'
        for count, i, j in r.taken_for_another(matrix, 12)
    )
    head = (
        '<thead><tr><th scope="col" class="figure">photos</th><th scope="col">what they show</th><th scope="col">answer</th></tr></thead>'
    )
    beside = (
        _scrolling(f"<table><caption>Taken for another most often</caption>{head}<tbody>{pairs}</tbody></table>", "most frequent mix-ups")
        if pairs
        else _paragraphs(["Every answer is right." if totals.sum() else "There were no photos."])
    )
    answers = matrix.sum(axis=0)
    rows = []
    for i in sorted(range(len(classes)), key=lambda i: (matrix[i, i] / totals[i] if totals[i] else 2.0, i)):
        found = percent(matrix[i, i] / totals[i]) if totals[i] else "-"
        right = percent(matrix[i, i] / answers[i]) if answers[i] else "-"
        rows.append(
            f'<tr><th scope="row">{_name(classes[i])}</th><td class="figure">{i}</td><td class="figure">{totals[i]:,}</td>'
            f'<td class="figure">{found}</td><td class="figure">{right}</td></tr>'
        )
    columns = (
        ("class", ""),
        ("number", "figure"),
        ("photos", "figure"),
        ("recognised (recall)", "figure"),
        ("right when answered (precision)", "figure"),
    )
    head = "".join(f'<th scope="col"{f" class={chr(34)}{c}{chr(34)}" if c else ""}>{_safe(text)}</th>' for text, c in columns)
    each = _scrolling(
        f"<table><caption>Recognised least first</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    note = "float network; a row is what the photo shows, a column the answer, the shade its share of the row"
    return (
        note,
        f'<div class="{"beside" if len(classes) <= 12 or not small else "below"}">{shown}{beside}</div>{_more("Every class", each)}',
    )


def _confusion_table(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Every count in its cell."""
    head = "".join(f'<th scope="col" title="{_safe(name)}"><span><bdi>{_safe(_cut(name, 20))}</bdi></span></th>' for name in classes)
    rows = []
    for i, name in enumerate(classes):
        cells, total = [], matrix[i].sum()
        for j, count in enumerate(matrix[i]):
            strength = r.shade(count / total if total else 0.0)
            look = f"{'hit' if i == j else 'miss'}{' deep' if strength > 0.6 else ''}"
            cells.append(f'<td class="{look}" style="--a:{strength:.2f}">{count:,}</td>' if count else "<td></td>")
        rows.append(f'<tr><th scope="row" title="{_safe(name)}"><bdi>{_safe(_cut(name, 20))}</bdi></th>{"".join(cells)}</tr>')
    caption = "<caption>Rows: what the photo shows. Columns: the answer.</caption>"
    start = f'<table class="matrix" style="--cell:{30 if len(classes) > 8 else 46}px">'
    table = f"{start}{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return _scrolling(table, "confusion matrix")


def _confusion_picture(matrix: np.ndarray) -> str:
    """A pixel for each cell, transparent where nothing was counted, and the numbers of the classes along the edges."""
    n = len(matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((n, n, 4), np.uint8)
    pixels[..., :3] = RED
    pixels[np.arange(n), np.arange(n), :3] = BLUE
    pixels[..., 3] = np.rint(255 * np.vectorize(r.shade)(share))
    pixels[matrix == 0] = 0
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    sheet, left, side = Svg(), 40, 440
    sheet.box(left, 24, left + side, 24 + side, PALE)
    sheet.marks.append(f'<image class="pixels" x="{left}" y="24" width="{side}" height="{side}" href="{_data("png", out.getvalue())}"/>')
    for value in nice_ticks(0, n, 8):
        if value < n:
            at = (value + 0.5) / n * side
            sheet.text(left - 6, 24 + at, f"{value:g}", 12, GREY, "rm")
            sheet.text(left + at, 18, f"{value:g}", 12, GREY, "ms")
    right = int(np.trace(matrix))
    about = f"Confusion matrix of {n} classes, by their numbers: {right:,} of {int(matrix.sum()):,} photos on the diagonal, which are right"
    return sheet.finished(left + side + 8, side + 32, about, "chart")


def _mistakes(report: Mapping[str, Any], photos: Path | Mapping[str, Path] | None) -> Section:
    mistakes = report["mistakes"]
    if not mistakes:
        return ("none: every validation photo got the right answer" if report["val"]["count"] else "there were no photos"), ""
    cards = []
    for mistake in mistakes[: r.SHOWN]:
        nearest = (mistake.get("nearest") or [])[: r.NEIGHBOURS]
        beside = "".join(
            "<li>"
            + _photo(near["file"], photos, f"training photo, {near['true']}")
            + f'<p class="{_agreement(near, mistake)}">{_name(near["true"])}</p><p class="small">{near["similarity"]:.2f} alike</p></li>'
            for near in nearest
        )
        files = "".join(
            f'<p class="small">{what}{_file(m["file"])}</p>' for what, m in [("", mistake), *(("beside: ", m) for m in nearest)]
        )
        true, answer = mistake["true"], mistake["predicted"]
        words = f'<p class="red">{_name(answer)} <b>{100 * mistake["probability"]:.0f} %</b></p><p>is {_name(true)}</p>{files}'
        picture = _photo(mistake["file"], photos, f"shows {true}, taken for {answer}")
        cards.append(f"<li>{picture}{f'<ul>{beside}</ul>' if beside else ''}<div>{words}</div></li>")
    rest = mistakes[r.SHOWN : r.SHOWN + LISTED]
    rows = "".join(
        f"<tr><td>{_file(m['file'])}</td><td>{_name(m['true'])}</td><td>{_name(m['predicted'])}</td>"
        f'<td class="figure">{100 * m["probability"]:.0f} %</td></tr>'
        for m in rest
    )
    head = "".join(f'<th scope="col">{text}</th>' for text in ("photo", "shows", "answer", "sure"))
    table = _scrolling(f"<table><caption>Further wrong answers</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
    left = len(mistakes) - r.SHOWN - len(rest)
    more = _more(f"{len(rest)} further wrong answers" + (f"; {left:,} more are in report.json" if left > 0 else ""), table) if rest else ""
    near = (
        "; beside each the training photos that look most alike to the network"
        if any(m.get("nearest") for m in mistakes[: r.SHOWN])
        else ""
    )
    look = "cards" if near else "cards plain"
    return f"{r.which_mistakes(mistakes)}; in red the answer and its probability{near}", f'<ol class="{look}">{"".join(cards)}</ol>{more}'


def _agreement(near: Mapping[str, Any], mistake: Mapping[str, Any]) -> str:
    """Red where a neighbour is of the class that was answered, blue where of the right one."""
    return "red" if near["true"] == mistake["predicted"] else "blue" if near["true"] == mistake["true"] else "other"


def _photo(name: str, photos: Path | Mapping[str, Path] | None, about: str) -> str:
    picture = r.thumbnail(name, SIDE, photos)
    if picture is None:
        return '<span class="missing">no photo</span>'
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80, optimize=True)
    return f'<img src="{_data("jpeg", out.getvalue())}" width="{SIDE}" height="{SIDE}" alt="{_safe(about)}"/>'


def _reliability(calibration: Mapping[str, Any] | None) -> Section:
    if not calibration:
        return None
    sheet, sentences = Svg(), r.calibration_sentences(calibration)
    draw_reliability(sheet, r.reliability_bins(calibration), 0, 0, 460)
    legend = []
    for mark, text in r.RELIABILITY_MARKS:
        sample = Svg()
        if mark in ("line", "dashes"):
            sample.line([(8, 1), (8, 15)], INK, 1.2, mark == "dashes")
        else:
            sample.box(1, 1, 15, 15, BLUE if mark == "bar" else None, {"red": RED, "orange": ORANGE}.get(mark))
        legend.append(f"<li>{sample.finished(16, 16, mark, 'sample')} {_safe(text)}</li>")
    words = f'<div>{_paragraphs(sentences)}<ul class="legend">{"".join(legend)}</ul></div>'
    rows = [
        [f"{100 * low:.0f} to {100 * high:.0f} %", f"{count:,}", *((percent(sure), percent(right)) if count else ("-", "-"))]
        for low, high, count, sure, right in r.reliability_bins(calibration)
    ]
    table = _table(r.Table(["sure", "photos", "sure on average", "right"], rows), "Reliability, as numbers")
    picture = sheet.finished(460, RELIABILITY - 8, "Reliability diagram. " + " ".join(sentences), "chart")
    return r.RELIABILITY_NOTE, f'<div class="charts">{picture}{words}</div>{_more("As numbers", table)}'


def _layers(report: Mapping[str, Any]) -> Section:
    layers = report.get("layers") or []
    bars = r.layer_bars(layers)
    if not bars:
        return None
    sheet = Svg()
    lower = draw_bars(sheet, bars, 0, 0, 1120)
    legend = []
    for text, filled in (("frozen", 0), ("trained", 14), ("trained in part, as far up as it is filled", 7)):
        sample = Svg()
        sample.box(1, 1, 15, 15, PALE, BLUE if filled else GREY)
        sample.box(1, 15 - filled, 15, 15, BLUE)
        legend.append(f"<li>{sample.finished(16, 16, text, 'sample')} {text}</li>")
    rows = [
        [b["name"], b["block"] or "", b["kind"], "x".join(map(str, b["output"])), f"{b['parameters']:,}", r.trained(b["trained"])]
        for b in layers
        if b["parameters"]
    ]
    table = _table(r.Table(["layer", "block", "kind", "output", "parameters", "trained"], rows, (0, 1, 2, 5)), "Layers with parameters")
    picture = _scrolling(sheet.finished(1120, lower + 4, f"A bar for every layer: {r.layers_sentence(layers)}", "network"), "layers")
    note = f"{r.trained_remark(report)}; a bar is a layer, its height the logarithm of these"
    return note, f'<ul class="legend">{"".join(legend)}</ul>{picture}{_more("Every layer", table)}'


def _neither(report: Mapping[str, Any]) -> Section:
    table, chart = r.neither_table(report), r.neither_chart(report)
    if not table or not chart:
        return None
    beside = f"<div>{_table(table, 'The trade-off')}{_paragraphs(r.neither_sentences(report))}</div>"
    return "what is gained and lost where unsure answers are withheld", f'<div class="charts">{_svg_chart(chart, 460)}{beside}</div>'


def _skipped(skipped: Sequence[Mapping[str, str]]) -> Section:
    if not skipped:
        return None
    items = "".join(f"<li>{_file(entry['file'])}: {_safe(entry['reason'])}</li>" for entry in skipped[:LISTED])
    count = f"{len(skipped):,} in all; the first {LISTED} are named here, all in report.json" if len(skipped) > LISTED else ""
    return count, f'<ul class="skipped">{items}</ul>'


# ---- looks ---------------------------------------------------------------------------------------------------------------------


def _style() -> str:
    """The style sheet; its colours are those of drawing.py."""
    light, dark = ("".join(f"--{name}:{_rgb(pair[k])};" for name, pair in COLOURS.items()) for k in (0, 1))
    marks = "".join(f".f-{name}{{fill:rgb(var(--{name}))}}.s-{name}{{stroke:rgb(var(--{name}))}}" for name in COLOURS)
    return (
        f":root{{color-scheme:light dark;{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"{marks}.f-none{{fill:none}}\n{STYLE}"
    )


def _rgb(colour: Colour) -> str:
    return " ".join(map(str, colour))


STYLE = """*{box-sizing:border-box}
body{margin:0;background:rgb(var(--paper));color:rgb(var(--ink));font:16px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:1120px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:clamp(1.3em,4vw,1.8em);font-weight:500;line-height:1.2;margin:.3em 0 .6em}
h2{font-size:1.35em;font-weight:500;margin:2em 0 .2em}
p{margin:.4em 0}
a{color:rgb(var(--blue))}
.note,.small,caption,dt{color:rgb(var(--grey))}
.note{margin-top:0}
.small,caption{font-size:.85em}
.red{color:rgb(var(--red))}.blue{color:rgb(var(--blue))}
.warning{border-left:4px solid rgb(var(--orange));padding-left:10px}
nav ul,.legend,.cards,.cards ul{list-style:none;padding:0;margin:0}
nav ul{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:1.2em}
nav a{display:inline-block;padding:6px 0}
dl{margin:0}dd{margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-bottom:1em}
.tiles div{background:rgb(var(--pale));padding:12px 14px;display:flex;flex-direction:column-reverse;justify-content:flex-end}
.tiles dd{font-size:1.5em;line-height:1.3;white-space:nowrap}.tiles dt{font-size:.85em}
.facts{display:flex;flex-wrap:wrap;gap:2px 24px;margin-top:.6em;font-size:.9em}
.facts div{display:flex;gap:.4em}
.facts dt::after{content:":"}
.charts,.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:16px 32px;margin:.6em 0;\
align-items:start}
.charts>*,.beside>*{min-width:0}
svg{font-family:inherit;overflow:visible;display:block;width:100%;height:auto}
svg.chart{max-width:640px}
svg.network{min-width:760px}
svg.sample{width:16px;height:16px;flex:none}
svg.interval{width:180px;height:20px}
.pixels{image-rendering:pixelated}
.legend{display:flex;flex-direction:column;gap:4px;margin:.6em 0;font-size:.9em;color:rgb(var(--grey))}
.legend li{display:flex;gap:8px;align-items:center}
.wide{overflow-x:auto;margin:.4em 0}
table{border-collapse:collapse;font-size:.9em;overflow-wrap:break-word}
caption{text-align:left;padding:4px 0}
th{font-weight:500;text-align:left}
thead th{color:rgb(var(--grey));vertical-align:bottom}
th,td{padding:3px 18px 3px 0;max-width:26em;vertical-align:top}
.words{min-width:7em}
.figure{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
thead .figure{white-space:normal}
.chosen{background:rgb(var(--pale))}.chosen>*{color:rgb(var(--blue))}
.matrix{font-variant-numeric:tabular-nums}
.matrix th,.matrix td{padding:0;border:1px solid rgb(var(--paper));max-width:none}
.matrix caption{white-space:nowrap}
.matrix tbody td{min-width:var(--cell);height:var(--cell);text-align:center;vertical-align:middle;background:rgb(var(--pale))}
.matrix tbody th{max-width:15em;padding:0 8px 0 0;text-align:right;vertical-align:middle;overflow:hidden;\
text-overflow:ellipsis;white-space:nowrap}
.matrix thead th{height:1px;color:inherit}
.matrix thead span{display:block;writing-mode:vertical-rl;transform:rotate(180deg);margin:0 auto;max-height:15em;overflow:hidden;\
text-overflow:ellipsis;white-space:nowrap;padding-top:6px}
.matrix .hit,.matrix .miss{background:linear-gradient(rgb(var(--tint)/var(--a)),rgb(var(--tint)/var(--a))),rgb(var(--pale))}
.matrix .hit{--tint:45 105 190}.matrix .miss{--tint:200 55 45}
.matrix .deep{color:#fff}
details{margin:.6em 0}summary{cursor:pointer;padding:6px 0;color:rgb(var(--blue))}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:24px 28px;margin:.8em 0}
.plain{grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
.cards>li{display:grid;grid-template-columns:47fr 53fr;gap:8px;align-content:start;break-inside:avoid;min-width:0}
.plain>li{display:block}
.cards>li>div{grid-column:1/-1;min-width:0}
.cards ul{display:grid;grid-template-columns:1fr 1fr;gap:8px;align-content:start}
.cards li li{min-width:0}
.cards p{margin:.15em 0;line-height:1.3}
.cards li li p{font-size:.8em}
.cards p:not(.small){display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden}
.cards b{white-space:nowrap}
img,.missing{display:block;width:100%;height:auto;aspect-ratio:1;background:rgb(var(--pale))}
.missing{display:grid;place-items:center;color:rgb(var(--grey));font-size:.85em}
.skipped{padding-left:1.2em;color:rgb(var(--grey))}
@media print{*{print-color-adjust:exact;-webkit-print-color-adjust:exact}nav{display:none}body{font-size:12px}
.charts>*,tr{break-inside:avoid}
.charts{grid-template-columns:1fr 1fr}
h2,.note{break-after:avoid}.note,.wide{break-inside:avoid}.wide{overflow:visible}svg.network{min-width:0}.beside{display:block}}
"""
