"""Augmentation: another view of a training photo in every epoch, so that a network learns what stays the same in all of them.

Enters: a photo as uint8 pixels, the whole of it squashed to a fixed size, and a key (seed, epoch, index). Leaves: uint8 pixels of the
network's size. All chance comes from the key, so a view depends neither on the order of the photos nor on batches or threads.

A view is a plan of 23 numbers, made in plain Python, and one pass over its pixels, without Python's lock: mirroring, crop and rotation
are one affine map, sampled once; all changes of colour are one 3 x 4 matrix, rounded once. On one core a view takes 0.3 ms at 96 x 96 and
1.1 ms at 224 x 224. Left out: mixing photos (training.py), and reading them (images.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from .errors import MinitlError
from .images import Recipe
from .jit import njit
from .layers import Array

USUAL = {"mirror": "0.5", "crop": "0.35", "colour": "0.5", "rotate": "15", "cutout": "0.25"}
"""What a kind of augmentation means where it is named without a value, as Augmentation.parse reads it."""

DEFAULT = "mirror,crop,colour"
"""What 'default' means: true of most photos. Rotation and cutout have to be asked for."""

MARGIN = 1.25
"""A source is so many times larger than the network's input: a crop of 64 % of the area then has the input's resolution. Much more
would cost memory, and detail would be skipped, since a view is sampled at single points."""

GREY = 128
"""What cutout paints: near the middle of the pixels, which most recipes make 0."""

RATIO = 4 / 3
"""Crops are between 3/4 and 4/3 times as wide, for their height, as the network's input (Szegedy et al. 2015, arXiv:1409.4842)."""

BRIGHTNESS, CONTRAST, SATURATION, BALANCE, HUE = 0.4, 0.4, 0.4, 0.1, math.radians(10)
"""Largest changes at colour=1: of the factors from 1, of red and blue from green; the angle on the wheel of colours."""

_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Red, green, blue -> brightness and two axes of colour (NTSC 1953): saturation stretches these two, hue turns them."""
_RGB = np.linalg.inv(_YIQ)


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a photo; everything is off by default.

    mirror: probability that left and right change places.
    crop: (low, high), limits of a crop's share of the area, 1 being the largest box of its shape that fits; None: the centre, always.
    rotate: degrees, to both sides.
    colour: strength, 0..1, of changes of brightness, contrast, saturation, white balance and (slightly) hue.
    cutout: side of a grey square, as a share of the shorter side, anywhere, in part outside (DeVries and Taylor 2017, arXiv:1708.04552).
    Raises MinitlError for values that mean nothing.
    """

    mirror: float = 0.0
    crop: tuple[float, float] | None = None
    rotate: float = 0.0
    colour: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("mirror", 1), ("rotate", 180), ("colour", 1), ("cutout", 1)):
            object.__setattr__(self, name, _number(name, getattr(self, name), 0, most))
        if self.crop is not None:
            if not isinstance(self.crop, (tuple, list)) or len(self.crop) != 2:
                raise MinitlError(f"augmentation: crop must be two shares of the area such as (0.35, 1), found {self.crop!r:.80}")
            low, high = (_number("crop", value, 0.01, 1) for value in self.crop)
            if low > high:
                raise MinitlError(f"augmentation: crop must be two shares of the area, the smaller one first, found {self.crop!r:.80}")
            object.__setattr__(self, "crop", (low, high))

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """'none', 'default', or a list such as 'mirror,crop=0.5,rotate=10'; crop=0.5 means 0.5..1, crop=0.5-0.8 both limits."""
        words = [word.strip().lower().replace("color", "colour", 1) for word in text.split(",")]
        known = f"augmentation is none, default (which is {DEFAULT}), or a list of {', '.join(USUAL)}, as in mirror,crop=0.5,rotate=10"
        if words == ["none"]:
            return cls()
        named = [tuple(part.strip() for part in word.partition("=")) for word in words if word != "default"]
        for name, equals, value in named:
            if name not in USUAL or (equals and not value):
                raise MinitlError(f"{name + equals + value or text!r:.80}: {known}")
            if [other for other, _, _ in named].count(name) > 1:
                raise MinitlError(f"{text!r:.80} says twice what {name} is: {known}")
        values = {name: USUAL[name] for name in DEFAULT.split(",") if "default" in words}
        values |= {name: value or USUAL[name] for name, _, value in named}
        try:
            crop = None
            if "crop" in values:
                low, _, high = values.pop("crop").partition("-")
                crop = (float(low), float(high or 1))
            numbers = {name: float(value) for name, value in values.items()}
        except ValueError:
            raise MinitlError(f"{text!r:.80} holds something that is no number: {known}") from None
        return cls(crop=crop, **numbers)

    def __str__(self) -> str:
        """As parse() reads it."""
        values = {name: value for name, value in asdict(self).items() if value}
        if self.crop:
            values["crop"] = "-".join(f"{share:g}" for share in self.crop)
        return ",".join(f"{name}={value if name == 'crop' else format(value, 'g')}" for name, value in values.items()) or "none"


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not low <= value <= high:
        raise MinitlError(f"augmentation: {name} must be a number from {low:g} to {high:g}, found {value!r:.80}")
    return float(value)


def source_recipe(recipe: Recipe) -> Recipe:
    """How a photo is read for augmented(): the whole of it, squashed to MARGIN times the network's input."""
    return replace(recipe, height=math.ceil(MARGIN * recipe.height), width=math.ceil(MARGIN * recipe.width), resize="squash")


def augmented(
    picture: Array, aspect: float, size: tuple[int, int], key: tuple[int, int, int], augmentation: Augmentation, central: float = 1.0
) -> Array:
    """One view of a photo: uint8 (*size, 3). For the arguments see augmented_batch; key is (seed, epoch, index)."""
    _check(picture[None], [aspect], size, key)
    out = np.empty((1, *size, 3), np.uint8)
    plans = np.array([_plan(picture, aspect, size, key, augmentation, central)])
    _render(np.ascontiguousarray(picture)[None], np.zeros(1, np.int64), plans, out)
    return out[0]


def augmented_batch(
    pictures: Array,
    aspects: Sequence[float] | Array,
    size: tuple[int, int],
    seed: int,
    epoch: int,
    indices: Sequence[int] | Array,
    augmentation: Augmentation,
    central: float = 1.0,
    out: Array | None = None,
) -> Array:
    """Views of the photos `indices` of `pictures`, in that order: uint8 (n, H, W, 3).

    pictures: uint8 (N, S, T, 3), whole photos squashed to a fixed size, about MARGIN times the network's, size = (H, W).
    aspects: N, width / height of each photo before it was squashed, so that crops have the proportions of the network's input; W / H
        where the network wants whole photos squashed (Recipe.resize).
    central: side of the centred box that is taken where crop is off, as a share of the largest: Recipe.crop_fraction, or 1.
    out: an array for the result, if there is one already. Raises MinitlError for arrays of other types and shapes.
    """
    chosen = np.asarray(indices, np.int64)
    _check(pictures, aspects, size, (seed, epoch, *chosen[:1].tolist()))
    if out is None:
        out = np.empty((len(chosen), *size, 3), np.uint8)
    assert out.shape == (len(chosen), *size, 3) and out.dtype == np.uint8
    plans = [_plan(pictures[i], float(aspects[i]), size, (seed, epoch, i), augmentation, central) for i in chosen.tolist()]
    _render(pictures, chosen, np.array(plans).reshape(-1, 23), out)
    return out


def _check(pictures: Array, aspects: Sequence[float] | Array, size: tuple[int, int], key: tuple[int, ...]) -> None:
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not pictures.size:
        raise MinitlError(f"augmentation takes uint8 photos (N, height, width, 3), found {pictures.dtype} {pictures.shape}")
    if len(aspects) != len(pictures) or not (np.isfinite(aspects).all() and np.min(aspects) > 0):
        raise MinitlError(f"augmentation takes width / height of each of the {len(pictures)} photos, found {aspects!r:.80}")
    if min(size) < 1:
        raise MinitlError(f"augmentation makes photos of (height, width) pixels, found {size!r:.80}")
    if min(key) < 0:
        raise MinitlError(f"augmentation takes seed, epoch and index from 0 up, found {key!r:.80}")


def _plan(
    picture: Array, aspect: float, size: tuple[int, int], key: tuple[int, int, int], augmentation: Augmentation, central: float
) -> list[float]:
    """The 23 numbers of a view: x and y of the source by an affine map (3 + 3), mirrored?, a square to paint (4), colours (12).

    Lengths are in heights of the photo, which is `aspect` wide and 1 high. As many numbers are drawn whatever is switched on, so that
    more rotation, say, leaves the crops as they were.
    """
    (height, width), (rows, columns) = size, picture.shape[:2]
    u = np.random.default_rng(key).random(13).tolist()  # 0..1
    ratio, share = width / height, central**2
    if augmentation.crop:
        ratio *= RATIO ** (2 * u[0] - 1)
        share = augmentation.crop[0] + (augmentation.crop[1] - augmentation.crop[0]) * u[1]
    wide = min(aspect, ratio) * math.sqrt(share)
    high = wide / ratio
    right, down = (u[2], u[3]) if augmentation.crop else (0.5, 0.5)
    x, y = wide / 2 + (aspect - wide) * right, high / 2 + (1 - high) * down  # the middle of the box
    angle = math.radians(augmentation.rotate) * (2 * u[4] - 1)
    sin, cos = math.sin(angle), math.cos(angle)
    # pixel (i, j) of the view has its middle at (i + 1/2, j + 1/2); so have those of the source
    unit_x, unit_y = columns / aspect, rows
    ax, bx = cos * wide / width * unit_x, -sin * high / height * unit_x
    ay, by = sin * wide / width * unit_y, cos * high / height * unit_y
    cx = x * unit_x - ax * (width - 1) / 2 - bx * (height - 1) / 2 - 0.5
    cy = y * unit_y - ay * (width - 1) / 2 - by * (height - 1) / 2 - 0.5
    side = augmentation.cutout * min(height, width)
    left, top = round(u[6] * width - side / 2), round(u[7] * height - side / 2)
    colours = _colours(picture, u[8:], augmentation.colour).reshape(-1).tolist()
    return [ax, bx, cx, ay, by, cy, u[5] < augmentation.mirror, left, top, left + round(side), top + round(side), *colours]


def _colours(picture: Array, u: Sequence[float], strength: float) -> Array:
    """(3, 4): what a pixel (red, green, blue, 1) is multiplied by. u: five numbers in 0..1."""
    if not strength:
        return np.eye(3, 4)
    brightness, contrast, saturation, balance, hue = (strength * (2 * v - 1) for v in u)
    brightness, contrast, saturation = 1 + BRIGHTNESS * brightness, 1 + CONTRAST * contrast, 1 + SATURATION * saturation
    sin, cos = saturation * math.sin(HUE * hue), saturation * math.cos(HUE * hue)
    turned = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    matrix = brightness * np.array([[1 + BALANCE * balance], [1], [1 - BALANCE * balance]]) * turned
    grey = picture[::8, ::8].mean(axis=(0, 1)) @ _YIQ[0]  # what contrast leaves as it is: the mean, from every 64th pixel
    return np.concatenate([contrast * matrix, (1 - contrast) * grey * matrix.sum(axis=1, keepdims=True)], axis=1)


@njit
def _render(pictures: Array, indices: Array, plans: Array, out: Array) -> None:
    """Fill `out` by the plans: bilinear between the four nearest pixels; what lies outside the photo is its reflection."""
    _, rows, columns, _ = pictures.shape
    count, height, width, _ = out.shape
    for n in range(count):
        source, plan = pictures[indices[n]], plans[n]
        mirrored, left, top, right, bottom = plan[6] != 0, plan[7], plan[8], plan[9], plan[10]
        rr, rg, rb, r1, gr, gg, gb, g1, br, bg, bb, b1 = plan[11:]
        for j in range(height):
            for i in range(width):
                to = width - 1 - i if mirrored else i
                if left <= i < right and top <= j < bottom:
                    out[n, j, to, 0] = out[n, j, to, 1] = out[n, j, to, 2] = GREY
                    continue
                x = plan[0] * i + plan[1] * j + plan[2]
                y = plan[3] * i + plan[4] * j + plan[5]
                x0, y0 = int(np.floor(x)), int(np.floor(y))
                fx, fy = x - x0, y - y0
                x1, y1 = x0 + 1, y0 + 1
                if x0 < 0 or x1 >= columns:
                    x0, x1 = _reflected(x0, columns), _reflected(x1, columns)
                if y0 < 0 or y1 >= rows:
                    y0, y1 = _reflected(y0, rows), _reflected(y1, rows)
                a, b, c, d = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
                r = a * source[y0, x0, 0] + b * source[y0, x1, 0] + c * source[y1, x0, 0] + d * source[y1, x1, 0]
                g = a * source[y0, x0, 1] + b * source[y0, x1, 1] + c * source[y1, x0, 1] + d * source[y1, x1, 1]
                v = a * source[y0, x0, 2] + b * source[y0, x1, 2] + c * source[y1, x0, 2] + d * source[y1, x1, 2]
                out[n, j, to, 0] = min(max(rr * r + rg * g + rb * v + r1 + 0.5, 0.0), 255.0)
                out[n, j, to, 1] = min(max(gr * r + gg * g + gb * v + g1 + 0.5, 0.0), 255.0)
                out[n, j, to, 2] = min(max(br * r + bg * g + bb * v + b1 + 0.5, 0.0), 255.0)


@njit
def _reflected(i: int, size: int) -> int:
    """The index that is seen at index i of an endless row of reflections: ... 1 0 | 0 1 2 ... size - 1 | size - 1 size - 2 ..."""
    i %= 2 * size
    return 2 * size - 1 - i if i >= size else i
