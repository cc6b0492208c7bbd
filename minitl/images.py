"""Photos in, pixels out: the only reader of pictures and of folders of photos.

Enters: paths, bytes, and a Recipe that says how a photo becomes a network's input. Leaves: uint8 pixels (H, W, 3), red first;
the labelled list of a folder; its division into training and validation photos. Left out: colour profiles (pixels are taken as
sRGB) and augmentation. Nothing here ever writes: the user's files are opened for reading only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from minitl.errors import MinitlError

RESIZES = ("crop", "squash")
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest")


def _number(what: str, value: object, low: float, high: float) -> float:
    """`value` as a float if it is a finite number in low..high; MinitlError naming `what` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise MinitlError(f"recipe: {what} should be a number, found {value!r:.80}")
    if not low <= value <= high:  # false for NaN too
        raise MinitlError(f"recipe: {what} should lie in {low:g}..{high:g}, found {value!r:.80}")
    return float(value)


@dataclass(frozen=True)
class Recipe:
    """How a photo becomes the network's input; belongs to the weights and travels inside the model file.

    height, width: the network's input, in pixels.
    mean, std: red, green, blue, in pixel units 0..255; the network sees (pixel - mean) / std.
    resize: 'crop' takes the largest centred box with the network's aspect ratio, times crop_fraction; 'squash' takes the whole
        picture and ignores its aspect ratio (and crop_fraction).
    interpolation: one of INTERPOLATIONS, as Pillow computes them (antialiased when shrinking, except 'nearest').

    Every value is checked, since recipes come from files: MinitlError for anything that no photo could be prepared with.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    resize: str = "crop"
    crop_fraction: float = 0.875
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise MinitlError(f"recipe: {name} should be a whole number of pixels, found {value!r:.80}")
            _number(name, value, 1, 4096)
            object.__setattr__(self, name, int(value))
        for name, low in (("mean", -1e6), ("std", 1e-6)):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or len(values) != 3:
                raise MinitlError(f"recipe: {name} should be three numbers (red, green, blue), found {values!r:.80}")
            object.__setattr__(self, name, tuple(_number(name, v, low, 1e6) for v in values))
        for name, choices in (("resize", RESIZES), ("interpolation", INTERPOLATIONS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise MinitlError(f"recipe: {name} should be one of {', '.join(choices)}, found {value!r:.80}")
        object.__setattr__(self, "crop_fraction", _number("crop_fraction", self.crop_fraction, 0.01, 1))

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: object) -> Recipe:
        """The recipe that to_dict() gave; MinitlError for a missing, unknown or impossible entry.

        No entry has a default here: a lost mean or crop raises no error later, it costs tens of points of accuracy.
        """
        if not isinstance(values, Mapping):
            raise MinitlError(f"recipe: expected a table of {len(fields(cls))} entries, found {type(values).__name__}")
        known = {f.name for f in fields(cls)}
        missing, unknown = known - set(values), set(values) - known
        if missing or unknown:
            raise MinitlError(
                f"recipe: expected exactly the entries {', '.join(sorted(known))}; "
                f"missing: {', '.join(sorted(missing)) or 'none'}; unknown: {', '.join(sorted(map(repr, unknown)))[:200] or 'none'}"
            )
        return cls(**values)

    # ---- pixels to float and to int8 -----------------------------------------------------------------------------------------

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 -> (N, H, W, 3) float32, (pixel - mean) / std."""
        mean, std = (np.array(v, np.float32) for v in (self.mean, self.std))
        return (pixels.astype(np.float32) - mean) / std

    def _input_range(self) -> tuple[float, float]:
        """(scale, real zero point) of the int8 input: all values that a pixel can take, widened so that 0 is among them."""
        lows = [(0 - m) / s for m, s in zip(self.mean, self.std, strict=True)]
        highs = [(255 - m) / s for m, s in zip(self.mean, self.std, strict=True)]
        low, high = min(0.0, *lows), max(0.0, *highs)
        scale = (high - low) / 255
        return scale, -128 - low / scale

    @property
    def input_quantisation(self) -> tuple[float, int]:
        """(scale, zero_point) of the int8 input tensor: real = scale * (q - zero_point)."""
        scale, zero = self._input_range()
        return scale, min(max(math.floor(zero + 0.5), -128), 127)

    @property
    def pixel_multipliers(self) -> tuple[int, int, int]:
        """M of q = (p * M + B) >> 16 per channel, in 0..65536."""
        scale, _ = self._input_range()
        red, green, blue = (round(65536 / (s * scale)) for s in self.std)
        return red, green, blue

    @property
    def pixel_offsets(self) -> tuple[int, int, int]:
        """B of q = (p * M + B) >> 16 per channel; the half that makes the shift round is included; p * M + B fits 32 bits."""
        scale, zero = self._input_range()
        red, green, blue = (math.floor(65536 * (zero - m / (s * scale)) + 0.5) + 32768 for m, s in zip(self.mean, self.std, strict=True))
        return red, green, blue

    def quantise_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 -> (N, H, W, 3) int8, in integer arithmetic that a microcontroller repeats exactly.

        q = clamp((p * M + B) >> 16, -128, 127), M and B per channel. With one mean and one std for all channels (and 0 between
        black and white) this is p - 128. It differs from rounding the quotient itself by at most one step.
        """
        multiplied = pixels.astype(np.int32) * np.array(self.pixel_multipliers, np.int32)
        return np.clip((multiplied + np.array(self.pixel_offsets, np.int32)) >> 16, -128, 127).astype(np.int8)
