"""What an int8 network costs and where it loses accuracy, operation by operation: rows of numbers, a table, a page.

In: an integer graph and its memory plan; what was measured, if anything was: instructions per operation, from qemu.Profile.by_op, and
signal_to_noise() against the float network on photos. Out: rows that JSON can hold, text for a terminal, one page drawn with Pillow.

Left out: where headers cost code and stack (only a compiler knows), energy, cycles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from . import emit_c, memory
from .drawing import BLUE, GREY, INK, MARGIN, ORANGE, PALE, RED, RULE, WIDTH, Colour, Page, nice_ticks, percent, shortened
from .graph import INPUT, Graph
from .integer import IntegerGraph, Op, Weighted
from .memory import IMAGE, SCRATCH, Plan

Row = dict[str, Any]
"""Keys: op (its number), name, kind, shape (of the output), macs, kernel_bytes (the weights), other_bytes (all else that the header has
for it: biases, multipliers, shifts, shapes, rows filled up), alive_bytes (of the arena, while it runs), instructions, share (of all
instructions, 0..1), snr_db; the last three None where nobody measured."""

CEILING = 99.0
"""dB of a layer in which no difference was seen; minus as much where there was nothing but differences."""


# ---- numbers -------------------------------------------------------------------------------------------------------------------


def rows(
    graph: IntegerGraph, plan: Plan, instructions: Iterable[tuple[int, int]] = (), noise: Mapping[str, float] | None = None
) -> list[Row]:
    """A row for every operation, in order.

    instructions: (number of the op, instructions) as in qemu.Profile.by_op. noise: tensor name -> dB, from signal_to_noise(); of a graph
    whose constant channels were removed it may be that of the graph before, since names stay.
    """
    counted = dict(instructions)
    total = sum(counted.values())
    table = []
    for i, (op, constants) in enumerate(zip(graph.ops, emit_c.constant_bytes(graph), strict=True)):
        ins, out = graph.ends(op)
        kernel = int(op.kernel.size) if isinstance(op, Weighted) else 0
        table.append(
            {
                "op": i, "name": op.name, "kind": kind(op), "shape": list(out.shape), "macs": op.macs(ins, out),
                "kernel_bytes": kernel, "other_bytes": constants - kernel, "alive_bytes": alive_bytes(plan, i),
                "instructions": counted.get(i), "share": counted[i] / total if total and i in counted else None,
                "snr_db": None if noise is None or op.output not in noise else round(noise[op.output], 1),
            }
        )  # fmt: skip
    return table


def kind(op: Op) -> str:
    """What people call an operation, in one word."""
    return "pointwise" if memory.is_pointwise(op) else {"depthwise_conv2d": "depthwise"}.get(op.kind, op.kind.replace("_", " "))


def alive_bytes(plan: Plan, i: int) -> int:
    """Bytes of the arena that operation number i may not lose: inputs, output, scratch and what waits; each byte counts once."""
    end = total = 0
    for first, last in sorted((offset, offset + b.size) for b, offset in plan.buffers if b.first <= i <= b.last):
        total += max(last - max(first, end), 0)
        end = max(end, last)
    return total


def signal_to_noise(folded: Graph, integer: IntegerGraph, images: Iterable[np.ndarray]) -> dict[str, float]:
    """dB for every tensor that both networks have: 10 log10(sum f^2 / sum (f - i)^2), f the float value, i what the int8 one stands for.

    folded, integer: the graph that quantize.quantise was given, and its answer. images: (1, H, W, C) float32, preprocessed, one at a time
    so that memory stays small. 6 dB are one bit; the noise of a layer includes what came in from the layers before it.
    """
    names = [name for name in integer.tensors if name in folded.shapes]
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    first = integer.tensors[integer.input]
    for image in images:
        image = np.asarray(image, np.float32)
        exact = {INPUT: image, **folded.evaluate(image, [name for name in names if name != INPUT])}
        answers = integer.run_all(np.clip(np.rint(image / first.scale) + first.zero_point, -128, 127).astype(np.int8))
        for name in names:
            tensor, real = integer.tensors[name], exact[name].astype(np.float64)
            signal[name] += float((real**2).sum())
            noise[name] += float(
                ((real - tensor.scale * (answers[name].reshape(real.shape).astype(np.float64) - tensor.zero_point)) ** 2).sum()
            )
    return {name: _decibel(signal[name], noise[name]) for name in names}


def _decibel(signal: float, noise: float) -> float:
    if not signal or not noise:
        return CEILING if not noise else -CEILING
    return min(max(10 * math.log10(signal / noise), -CEILING), CEILING)


# ---- text ----------------------------------------------------------------------------------------------------------------------

COLUMNS = 120
"""Of a terminal."""


def table(rows: Sequence[Row], flash: int | None = None) -> str:
    """The rows as text, at most 120 columns wide; columns that nobody measured are left out, long names lose their middle.

    flash: bytes of all constants, from emit_c.figures; what no operation has of them gets a line, so that the column adds up.
    """
    weights = [row["kernel_bytes"] + row["other_bytes"] for row in rows]
    rest = [] if flash is None else [flash - sum(weights)]
    blank = [""] * len(rest)
    columns: list[tuple[str, str, list[str]]] = [
        ("op", ">", [str(row["op"]) for row in rows] + blank + [""]),
        ("name", "<", [row["name"] for row in rows] + ["class names, padding"] * len(rest) + ["all"]),
        ("kind", "<", [row["kind"] for row in rows] + blank + [""]),
        ("output", "<", ["x".join(map(str, row["shape"])) for row in rows] + blank + [""]),
    ]
    macs, alive = [row["macs"] for row in rows], [row["alive_bytes"] for row in rows]
    zeros = [0] * len(rest)
    for title, values in (
        ("MACs", [*macs, *zeros, sum(macs)]),
        ("flash", [*weights, *rest, sum(weights) + sum(rest)]),
        ("RAM", [*alive, *zeros, max(alive, default=0)]),
    ):
        columns.append((title, ">", [f"{value:,}" if value else "" for value in values]))
    if any(row["instructions"] is not None for row in rows):
        counts = [row["instructions"] for row in rows]
        columns.append(("instructions", ">", [_or_blank(n, ",") for n in counts] + blank + [f"{sum(n or 0 for n in counts):,}"]))
        columns.append(("share", ">", [_or_blank(row["share"], ".1%") for row in rows] + blank + [""]))
    if any(row["snr_db"] is not None for row in rows):
        columns.append(("dB", ">", [_or_blank(row["snr_db"], ".1f") for row in rows] + blank + [""]))
    widths = [max(map(len, [title, *texts])) for title, _, texts in columns]
    widths[1] = max(8, min(widths[1], COLUMNS - sum(widths) + widths[1] - 2 * (len(widths) - 1)))
    columns[1] = ("name", "<", [_cut(text, widths[1]) for text in columns[1][2]])
    lines = [[title for title, _, _ in columns], *zip(*(texts for _, _, texts in columns), strict=True)]
    aligns = [align for _, align, _ in columns]
    return "\n".join(
        "  ".join(f"{text:{align}{width}}" for text, align, width in zip(line, aligns, widths, strict=True)).rstrip() for line in lines
    )


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cut(text: str, width: int) -> str:
    """The text in printable ASCII, its middle replaced by two dots where it is too long."""
    text = "".join(c if " " <= c <= "~" else "?" for c in text)
    tail = (width - 2) * 2 // 3
    return text if len(text) <= width else text[: width - 2 - tail] + ".." + text[-tail:]


# ---- the page ------------------------------------------------------------------------------------------------------------------

STEP = 19
"""Pixels from one row of the list to the next."""


def draw_network(
    title: str,
    rows: Sequence[Row],
    plan: Plan,
    *,
    flash: int | None = None,
    accuracy: float | None = None,
    core: str = "",
    facts: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Image.Image:
    """The page of a network.

    flash: bytes of constants, from emit_c.figures or a compiler; without it, those of the operations are added up.
    accuracy: 0..1, of the int8 network on validation photos. core: what the instructions were counted on. facts: short texts below the
    figures. notes: sentences about constant channels, as from Removal.summary().
    """
    page = Page(1400 + STEP * len(rows) + 40 * (len(facts) + sum(1 + len(note) // 60 for note in notes)))
    page.text(MARGIN, page.y, title, 30, width=WIDTH - 2 * MARGIN)
    page.y += 54
    _draw_tiles(page, rows, plan, flash, accuracy, core)
    for fact in facts:
        _paragraph(page, fact, GREY)
    _draw_memory(page, plan, rows)
    _draw_list(page, rows, core)
    if notes:
        page.heading("Constant channels", "channels whose value no image can change, found by interval arithmetic")
        for note in notes:
            _paragraph(page, note, INK)
    return page.finished()


def _draw_tiles(page: Page, rows: Sequence[Row], plan: Plan, flash: int | None, accuracy: float | None, core: str) -> None:
    """The four or five figures that matter."""
    constants = sum(row["kernel_bytes"] + row["other_bytes"] for row in rows) if flash is None else flash
    tiles = [(_short(sum(row["macs"] for row in rows)), "multiplications per image")]
    tiles += [(f"{plan.size:,}", "bytes of RAM, with image"), (f"{constants:,}", "bytes of flash, without code")]
    if total := sum(row["instructions"] or 0 for row in rows):
        tiles.append((_short(total), f"instructions, {core}" if core else "instructions"))
    if accuracy is not None:
        tiles.append((percent(accuracy), "validation accuracy, int8"))
    elif rows and rows[-1]["snr_db"] is not None:
        tiles.append((f"{rows[-1]['snr_db']:.1f} dB", "int8 against float, logits"))
    step = (WIDTH - 2 * MARGIN + 20) / len(tiles)
    for k, (figure, what) in enumerate(tiles):
        x = MARGIN + k * step
        page.box(x, page.y, x + step - 20, page.y + 96, PALE)
        page.text(x + 18, page.y + 14, figure, 36, BLUE if "%" in figure or "dB" in figure else INK, width=step - 50)
        page.text(x + 18, page.y + 64, what, 14, GREY, width=step - 50)
    page.y += 112


def _short(count: float) -> str:
    """7489664 -> '7.49 M', three digits; up to 9,999 as it is."""
    if count < 10_000:
        return f"{count:,.0f}"
    unit, power = next((unit, power) for unit, power in (("k", 1e3), ("M", 1e6), ("G", 1e9)) if count < 999.5 * power or unit == "G")
    return f"{count / power:.{2 if count < 9.995 * power else 1 if count < 99.95 * power else 0}f} {unit}"


def _paragraph(page: Page, text: str, fill: Colour) -> None:
    """Text on as many lines as it needs."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if shortened(longer, 14, WIDTH - 2 * MARGIN) != longer and line:
            page.text(MARGIN, page.y, line, 14, fill)
            page.y, longer = page.y + 22, word
        line = longer
    page.text(MARGIN, page.y, line, 14, fill, width=WIDTH - 2 * MARGIN)
    page.y += 22


TENANTS: dict[str, tuple[Colour, Colour]] = {
    memory.TENSOR: ((219, 231, 246), BLUE),
    IMAGE: ((252, 232, 208), ORANGE),
    SCRATCH: ((205, 208, 214), GREY),
}
"""Fill and outline of a buffer by its kind."""


def _draw_memory(page: Page, plan: Plan, rows: Sequence[Row]) -> None:
    """The arena: operations from left to right, addresses upwards. Where an output is written over its input, the first ends and the
    second begins in the middle of the operation, at a red line."""
    most, ops = max(rows, key=lambda row: row["alive_bytes"]), len(rows)
    note = f"across: operations in order; up: addresses, in bytes; most is needed by operation {most['op']}, {most['name']}"
    page.heading("Memory", note)
    x = WIDTH - MARGIN
    for words, kind_of in (("scratch of one operation", SCRATCH), ("values", memory.TENSOR), ("the image", IMAGE)):
        x -= 190 if kind_of == SCRATCH else 80 if kind_of == memory.TENSOR else 100
        page.box(x, page.y + 2, x + 12, page.y + 14, *TENANTS[kind_of])
        page.text(x + 18, page.y, words, 13, GREY)
    x -= 230
    page.line([(x + 6, page.y + 1), (x + 6, page.y + 15)], RED, 2.5)
    page.text(x + 18, page.y, "written over the input it reads", 13, GREY)
    left, right, upper, lower = MARGIN + 84, WIDTH - MARGIN, page.y + 42, page.y + 402
    width = (right - left) / (ops + 1)

    def at(moment: float, offset: float) -> tuple[float, float]:
        return left + (moment + 1) * width, lower - offset / plan.size * (lower - upper)

    for tick in nice_ticks(0, plan.size, 5):
        y = at(0, tick)[1]
        if tick < 0.96 * plan.size:
            page.line([(left, y), (right, y)], RULE)
            page.text(left - 8, y, f"{tick:,.0f}", 13, GREY, "rm")
    shared = _shared(plan)
    begins = {y: 0.5 for _, y in shared}
    ends = {x: 0.5 for x, _ in shared}
    for k, (buffer, offset) in enumerate(plan.buffers):
        x0, y1 = at(buffer.first + begins.get(k, 0), offset)
        x1, y0 = at(buffer.last + 1 - ends.get(k, 0), offset + buffer.size)
        page.box(x0, y0, x1, max(y1, y0 + 1), *TENANTS[buffer.kind])
        if buffer.kind != SCRATCH:
            name, number = ("image", "") if buffer.kind == IMAGE else (rows[buffer.first]["name"], str(buffer.first))
            _label(page, name, number, x0, y0, x1, y1)
    for i, j in shared:
        (a, start), (b, other) = plan.buffers[i], plan.buffers[j]
        page.line([at(b.first + 0.5, min(start + a.size, other + b.size)), at(b.first + 0.5, max(start, other))], RED, 2.5)
    page.line([(left, upper), (right, upper)], INK, 1.5)
    page.text(left - 8, upper, f"{plan.size:,}", 13, INK, "rm")
    page.line([(left, lower), (right, lower)], GREY)
    every = max(1, math.ceil(18 / width))
    for i in range(0, ops, every):
        page.text(at(i + 0.5, 0)[0], lower + 6, str(i), 11, GREY, "ma")
    page.y = round(lower + 22)


def _shared(plan: Plan) -> list[tuple[int, int]]:
    """(number of the input's buffer, number of the output's) wherever an output is written over its input."""
    found = []
    for i, (a, start) in enumerate(plan.buffers):
        for j, (b, other) in enumerate(plan.buffers):
            if a.last == b.first and i != j and a.first < b.first and start < other + b.size and other < start + a.size:
                found.append((i, j))
    return found


def _label(page: Page, name: str, number: str, x0: float, y0: float, x1: float, y1: float) -> None:
    """The name in its box, along the longer side, or the number where at least that fits."""
    high, wide = y1 - y0, x1 - x0
    if wide >= 60 and high >= 15:
        page.text((x0 + x1) / 2, (y0 + y1) / 2, name, 12, INK, "mm", wide - 8)
    elif wide >= 13 and high >= 70:
        page.upright((x0 + x1) / 2, y1 - 5, name, 11, high - 10)
    elif wide >= 16 and high >= 13:
        page.text((x0 + x1) / 2, (y0 + y1) / 2, number, 11, GREY, "mm", wide - 2)


def _draw_list(page: Page, rows: Sequence[Row], core: str) -> None:
    """Every operation with bars for what it costs."""
    measures: list[tuple[str, list[float | None], Colour]] = [
        ("multiplications", [row["macs"] for row in rows], BLUE),
        ("bytes of flash", [row["kernel_bytes"] + row["other_bytes"] for row in rows], BLUE),
    ]
    note = "every bar against the longest of its column"
    if any(row["share"] is not None for row in rows):
        measures.append(("share of instructions", [None if row["share"] is None else 100 * row["share"] for row in rows], ORANGE))
        note += f"; instructions counted on {core}" if core else ""
    if any(row["snr_db"] is not None for row in rows):
        measures.append(("int8 against float, dB", [row["snr_db"] for row in rows], BLUE))
        note += "; 6 dB are one bit, red is the worst"
    page.heading("Operations", note)
    names, shapes = MARGIN + 32, MARGIN + 330
    left = shapes + 110
    step = (WIDTH - MARGIN - left + 24) / len(measures)
    for m, (what, _, _) in enumerate(measures):
        page.text(left + m * step, page.y, what, 14, GREY, width=step - 8)
    page.y += 24
    for k, row in enumerate(rows):
        y = page.y + k * STEP
        if k % 2 == 0:
            page.box(MARGIN, y, WIDTH - MARGIN, y + STEP, (249, 249, 251))
        middle = y + STEP / 2
        page.text(MARGIN + 22, middle, str(row["op"]), 12, GREY, "rm")
        taken = page.text(names, middle, row["name"], 13, INK, "lm", 200)
        page.text(names + taken + 8, middle, row["kind"], 12, GREY, "lm", shapes - names - taken - 16)
        page.text(shapes, middle, "x".join(map(str, row["shape"])), 12, GREY, "lm", 100)
        for m, (what, values, colour) in enumerate(measures):
            known = [value for value in values if value is not None]
            value, longest = values[k], max([*known, 1e-9])
            if value is None or (value == 0 and not what.startswith("share")):
                continue
            x, room = left + m * step, step - 24 - 58
            end = x + max(value, 0) / longest * room
            worst = what.endswith("dB") and value == min(known)
            page.box(x, y + 4, max(end, x + 1), y + STEP - 4, RED if worst else colour)
            text = f"{value:.1f} %" if what.startswith("share") else f"{value:.1f}" if what.endswith("dB") else _short(value)
            page.text(max(end, x + 1) + 6, middle, text, 12, RED if worst else INK, "lm")
    page.y += len(rows) * STEP
