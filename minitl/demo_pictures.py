"""Photo-like pictures of apples, bananas and cucumbers, drawn: something to train on where there are no photos.

Enters: a folder, a number per class, a seed. Leaves: JPEG files in folder/CLASS/, the same for the same arguments (and version of
Pillow). Left out: realism. Colour alone does not tell the classes apart (apples and bananas are drawn green too, old cucumbers
yellow), and place, size, turn, light, background and clutter vary, so that a network has to learn shapes.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .errors import MinitlError
from .files import printable

Colour = tuple[int, int, int]
Point = tuple[float, float]

APPLES: list[Colour] = [(190, 30, 35), (160, 20, 40), (205, 60, 45), (180, 40, 50), (120, 170, 50), (150, 185, 70), (225, 170, 60)]
BANANAS: list[Colour] = [(235, 205, 60), (225, 190, 45), (240, 215, 100), (230, 195, 70), (210, 175, 60), (160, 180, 60), (115, 160, 55)]
CUCUMBERS: list[Colour] = [(45, 95, 40), (60, 120, 50), (35, 75, 40), (70, 110, 55), (100, 145, 65), (130, 160, 70), (190, 180, 70)]
GROUNDS: list[Colour] = [
    (150, 105, 65), (95, 65, 45), (225, 220, 210), (190, 195, 200), (70, 75, 80), (120, 140, 160), (180, 150, 120), (85, 120, 75)
]  # fmt: skip


def draw_photos(folder: str | os.PathLike[str], count_per_class: int, seed: int = 0, size: int = 96) -> list[Path]:
    """Draw count_per_class pictures of size x size pixels of each class into folder/CLASS/; returns their paths.

    Picture number i of a class depends on the seed and i alone. Raises MinitlError where the folder cannot be written.
    """
    paths = []
    for name in DRAWN:
        for i in range(count_per_class):
            path = Path(folder) / name / f"{name}_{i:04d}.jpg"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_photo(name, random.Random(f"{seed} {name} {i}"), size).save(path, quality=90)
            except OSError as error:
                raise MinitlError(f"cannot write {printable(path)}: {error.strerror or error}; give a folder that can be written") from None
            paths.append(path)
    return paths


def draw_photo(name: str, rng: random.Random, size: int) -> Image.Image:
    """One RGB picture of `name`, a key of DRAWN: a ground, things lying about, one to three fruits, light and grain."""
    s = 2 * size  # drawn twice as large, for smooth edges
    picture = _ground(rng, s)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        _clutter(rng, picture)
    light = rng.uniform(0, 2 * math.pi)
    colours, draw = DRAWN[name]
    colour = _vary(rng, rng.choice(colours), 18)
    count = rng.choice((1, 1, 1, 1, 1, 2, 2, 3))
    for k in range(count):
        length = s * rng.uniform(0.7, 0.95) * (1, 0.8, 0.7)[count - 1]
        spread = 0.1 if count == 1 else 0.22
        middle = (s * (0.5 + rng.uniform(-spread, spread)), s * (0.5 + rng.uniform(-spread, spread)))
        mask, paint = draw(rng, s, length, middle, _vary(rng, colour, 10) if k else colour)
        _lay(picture, mask, paint, light, length)
    if rng.random() < 0.3:  # something lies in front of an edge
        _clutter(rng, picture, at_edge=True)
    return _photograph(rng, picture.resize((size, size), Image.Resampling.BOX))


# ---- the fruits: each returns (mask, coloured picture), both s x s ----------------------------------------------------------------


def _apple(rng: random.Random, s: int, length: float, middle: Point, colour: Colour) -> tuple[Image.Image, Image.Image]:
    """Two overlapping rounds, a hollow with a stalk, streaks or a second colour on one cheek, sometimes a leaf."""
    radius, turn = length * rng.uniform(0.34, 0.42), rng.gauss(0, 0.5)
    across, along = (math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))
    mask = Image.new("L", (s, s))
    pen = ImageDraw.Draw(mask)
    for side, size in ((-0.24, 0.8), (0.24, 0.8), (0, 0.84)):
        for down in (-0.1, 0.14):
            _dot(pen, _at(middle, across, side * radius, along, down * radius), size * radius * (1 - abs(side) * down), 255)
    paint = Image.new("RGB", (s, s), colour)
    cheek = Image.new("L", (s, s))
    where = _at(middle, across, rng.uniform(-0.7, 0.7) * radius, along, rng.uniform(-0.6, 0.6) * radius)
    _dot(ImageDraw.Draw(cheek), where, radius * rng.uniform(0.4, 0.8), rng.randrange(60, 200))
    paint.paste(_vary(rng, rng.choice(APPLES[:6]), 20), None, cheek.filter(ImageFilter.GaussianBlur(radius * 0.25)))
    pen = ImageDraw.Draw(paint)
    hollow = _at(middle, across, rng.uniform(-0.15, 0.15) * radius, along, -0.62 * radius)
    dark = _scaled(colour, 0.5)
    pen.ellipse(_around(hollow, radius * 0.26, radius * 0.15), fill=dark)
    tip = _at(hollow, across, rng.uniform(-0.3, 0.3) * radius, along, -rng.uniform(0.35, 0.6) * radius)
    for layer, fill in ((pen, (80, 55, 35)), (ImageDraw.Draw(mask), 255)):
        layer.line([hollow, tip], fill=fill, width=max(2, int(radius * 0.09)))
    if rng.random() < 0.35:
        leaf = [tip, _at(tip, across, 0.5 * radius, along, -0.3 * radius), _at(tip, across, 0.8 * radius, along, 0.05 * radius)]
        pen.polygon(leaf, fill=(70, 120, 45))
        ImageDraw.Draw(mask).polygon(leaf, fill=255)
    return mask, paint


def _banana(rng: random.Random, s: int, length: float, middle: Point, colour: Colour) -> tuple[Image.Image, Image.Image]:
    """A bow that thins towards dark ends, an edge along it, brown spots when ripe."""
    bend, thick = rng.uniform(1.1, 2.0), length * rng.uniform(0.085, 0.12)
    line = _bow(middle, length, bend, rng.uniform(0, 2 * math.pi))
    widths = [thick * min(1.0, 0.22 + 1.5 * math.sin(math.pi * t) ** 0.8) for t in _steps(len(line))]
    mask = _swept(s, line, widths)
    paint = Image.new("RGB", (s, s), colour)
    pen = ImageDraw.Draw(paint)
    pen.line(_shifted(line, widths, rng.uniform(-0.4, 0.1)), fill=_scaled(colour, 0.78), width=max(1, int(thick * 0.2)))
    for _ in range(rng.randrange(14) if rng.random() < 0.5 else 0):
        spot = rng.choice(line)
        pen.ellipse(_around(_jittered(rng, spot, thick * 0.7), thick * 0.12, thick * 0.07), fill=_scaled(colour, 0.45))
    for end, reach in ((line[0], 0.75), (line[-1], 0.45)):
        _dot(pen, end, thick * reach, (75, 60, 35))
    return mask, paint


def _cucumber(rng: random.Random, s: int, length: float, middle: Point, colour: Colour) -> tuple[Image.Image, Image.Image]:
    """A nearly straight bar with round ends, light stripes along it and warts, one end pale."""
    line = _bow(middle, length * rng.uniform(0.85, 1.1), rng.uniform(0.0, 0.4), rng.uniform(0, 2 * math.pi))
    thick = length * rng.uniform(0.1, 0.15)
    widths = [thick * min(1.0, 0.72 + 0.9 * math.sin(math.pi * t)) for t in _steps(len(line))]
    mask = _swept(s, line, widths)
    paint = Image.new("RGB", (s, s), colour)
    pen = ImageDraw.Draw(paint)
    for offset in (-0.7, -0.25, 0.2, 0.65):
        stripe = _shifted(line, widths, offset + rng.uniform(-0.1, 0.1))
        pen.line(stripe, fill=_scaled(colour, rng.uniform(1.1, 1.35)), width=max(1, int(thick * 0.14)))
    for _ in range(rng.randrange(10, 50)):
        _dot(pen, _jittered(rng, rng.choice(line), thick * 0.9), thick * 0.06, _scaled(colour, rng.choice((0.65, 1.5))))
    _dot(pen, line[0], thick * 0.5, _scaled(colour, 1.4))
    return mask, paint


Draw = Callable[[random.Random, int, float, Point, Colour], tuple[Image.Image, Image.Image]]
DRAWN: dict[str, tuple[list[Colour], Draw]] = {"apple": (APPLES, _apple), "banana": (BANANAS, _banana), "cucumber": (CUCUMBERS, _cucumber)}
"""class -> (its colours, the function that draws it)."""


# ---- ground, clutter, light --------------------------------------------------------------------------------------------------------


def _ground(rng: random.Random, s: int) -> Image.Image:
    """A table, cloth or wall: one colour lit from a side, with planks, checks or nothing on it."""
    colour = _vary(rng, rng.choice(GROUNDS), 25)
    picture = Image.new("RGB", (s, s), colour)
    pen = ImageDraw.Draw(picture)
    pattern, pitch = rng.choice(("plain", "planks", "checks", "wall")), rng.uniform(0.12, 0.35) * s
    if pattern == "planks":
        for k in range(int(s / pitch) + 2):
            pen.rectangle((0, k * pitch, s, (k + 1) * pitch - 3), fill=_vary(rng, colour, 12))
        picture = picture.rotate(rng.uniform(-90, 90), Image.Resampling.BILINEAR, fillcolor=colour)
    elif pattern == "checks":
        other = _vary(rng, rng.choice(GROUNDS), 20)
        for k in range(int(s / pitch) + 1):
            for m in range(k % 2, int(s / pitch) + 1, 2):
                pen.rectangle((k * pitch, m * pitch, (k + 1) * pitch, (m + 1) * pitch), fill=other)
        picture = picture.rotate(rng.uniform(-45, 45), Image.Resampling.BILINEAR, fillcolor=colour)
    elif pattern == "wall":
        pen.rectangle((0, 0, s, s * rng.uniform(0.15, 0.5)), fill=_vary(rng, rng.choice(GROUNDS), 25))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 4)))


def _clutter(rng: random.Random, picture: Image.Image, at_edge: bool = False) -> None:
    """A plate, box, cloth, knife or leaf, drawn into the picture."""
    s = picture.width
    x, y = rng.uniform(0, s), rng.uniform(0, s)
    if at_edge:
        x = rng.choice((rng.uniform(-0.06, 0.06), rng.uniform(0.94, 1.06))) * s
    colour = _vary(rng, rng.choice(GROUNDS), 40)
    size = s * rng.uniform(0.08, 0.3)
    layer = Image.new("L", picture.size)
    pen = ImageDraw.Draw(layer)
    kind = rng.choice(("plate", "box", "knife", "leaf"))
    if kind == "plate":
        pen.ellipse(_around((x, y), size * 1.6, size * 1.2), fill=255)
        if not at_edge:
            colour = _vary(rng, (225, 225, 220), 25)
    elif kind == "box":
        pen.polygon(_corners(rng, (x, y), size, 4), fill=255)
    elif kind == "knife":
        turn = rng.uniform(0, math.pi)
        dx, dy = 2 * size * math.cos(turn), 2 * size * math.sin(turn)
        ends = [(x - dx, y - dy), (x + dx, y + dy)]
        pen.line(ends, fill=255, width=max(2, int(size * 0.16)))
    else:
        pen.polygon(_corners(rng, (x, y), size * 0.8, 3), fill=255)
    picture.paste(colour, None, layer.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3))))


def _lay(picture: Image.Image, mask: Image.Image, paint: Image.Image, light: float, length: float) -> None:
    """Put a fruit into the picture: its shadow beside it, its surface lit as if it bulged, with a soft highlight."""
    dx, dy = math.cos(light), math.sin(light)
    away = int(length * 0.05)
    shadow = Image.new("L", mask.size)
    shadow.paste(mask.point(lambda v: v * 0.55), (int(-dx * away), int(-dy * away)))
    picture.paste((25, 20, 20), None, shadow.filter(ImageFilter.GaussianBlur(length * 0.04)))
    height = np.asarray(mask.filter(ImageFilter.GaussianBlur(length * 0.055)), np.float32) / 255
    slope_y, slope_x = np.gradient(height)
    facing = -(slope_x * dx + slope_y * dy) * length * 0.14 + (height - 0.6)
    lit = np.asarray(paint, np.float32) * (0.92 + 0.38 * np.clip(facing, -1, 1))[:, :, None]
    lit += 110 * np.clip(facing - 0.5, 0, 1)[:, :, None] ** 2
    soft = mask.filter(ImageFilter.GaussianBlur(0.8))
    picture.paste(Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)), None, soft)


def _photograph(rng: random.Random, picture: Image.Image) -> Image.Image:
    """Exposure, a tint of the light, a fall-off to one side, a little blur and grain."""
    s = picture.width
    grain = np.random.default_rng(rng.getrandbits(64))
    turn = rng.uniform(0, 2 * math.pi)
    x = np.linspace(-1, 1, s, dtype=np.float32)
    fall = 1 + rng.uniform(0, 0.3) * (x[None, :] * math.cos(turn) + x[:, None] * math.sin(turn))
    tint = np.array([rng.uniform(0.9, 1.1), 1.0, rng.uniform(0.85, 1.15)], np.float32) * rng.uniform(0.65, 1.15)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.choice((0, 0, 0.4, 0.8))))
    pixels = np.asarray(picture, np.float32) * fall[:, :, None] * tint + grain.normal(0, rng.uniform(1, 7), (s, s, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# ---- small things -------------------------------------------------------------------------------------------------------------------


def _steps(n: int) -> list[float]:
    return [i / (n - 1) for i in range(n)]


def _at(start: Point, u: Point, a: float, v: Point, b: float) -> Point:
    """start + a u + b v."""
    return start[0] + a * u[0] + b * v[0], start[1] + a * u[1] + b * v[1]


def _around(middle: Point, rx: float, ry: float) -> tuple[float, float, float, float]:
    return middle[0] - rx, middle[1] - ry, middle[0] + rx, middle[1] + ry


def _dot(pen: ImageDraw.ImageDraw, middle: Point, radius: float, fill: int | Colour) -> None:
    pen.ellipse(_around(middle, radius, radius), fill=fill)


def _bow(middle: Point, length: float, bend: float, turn: float, n: int = 40) -> list[Point]:
    """n points of an arc of the given length that bends by `bend` radians, its middle at `middle`."""
    bend = max(bend, 1e-3)
    radius = length / bend
    angles = [(t - 0.5) * bend for t in _steps(n)]
    sag = radius * (1 - math.cos(bend / 2)) / 2
    flat = [(radius * math.sin(a), radius * (1 - math.cos(a)) - sag) for a in angles]
    return [(middle[0] + x * math.cos(turn) - y * math.sin(turn), middle[1] + x * math.sin(turn) + y * math.cos(turn)) for x, y in flat]


def _swept(s: int, line: list[Point], widths: list[float]) -> Image.Image:
    """The mask that discs of the given radii leave along a line."""
    mask = Image.new("L", (s, s))
    pen = ImageDraw.Draw(mask)
    for point, width in zip(line, widths, strict=True):
        _dot(pen, point, width, 255)
    return mask


def _shifted(line: list[Point], widths: list[float], part: float) -> list[Point]:
    """The line moved sideways by a part of its width."""
    moved = []
    for i, (x, y) in enumerate(line):
        (x0, y0), (x1, y1) = line[max(i - 1, 0)], line[min(i + 1, len(line) - 1)]
        norm = math.hypot(x1 - x0, y1 - y0) or 1.0
        moved.append((x - (y1 - y0) / norm * widths[i] * part, y + (x1 - x0) / norm * widths[i] * part))
    return moved


def _corners(rng: random.Random, middle: Point, radius: float, n: int) -> list[Point]:
    turn = rng.uniform(0, 2 * math.pi)
    reach = [radius * rng.uniform(0.6, 1.3) for _ in range(n)]
    angles = [turn + 2 * math.pi * k / n for k in range(n)]
    return [(middle[0] + r * math.cos(a), middle[1] + r * math.sin(a)) for r, a in zip(reach, angles, strict=True)]


def _jittered(rng: random.Random, point: Point, reach: float) -> Point:
    return point[0] + rng.uniform(-reach, reach), point[1] + rng.uniform(-reach, reach)


def _scaled(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(c * factor)) for c in colour)
    return red, green, blue


def _vary(rng: random.Random, colour: Colour, by: int) -> Colour:
    red, green, blue = (min(255, max(0, c + rng.randint(-by, by))) for c in colour)
    return red, green, blue
