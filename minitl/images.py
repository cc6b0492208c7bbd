"""Photos in, pixels out: the only reader of pictures.

Enters: paths or bytes, and a Recipe that says how a photo becomes a network's input. Leaves: uint8 pixels (H, W, 3), red first,
or one sentence that says why there are none. Left out: colour profiles (pixels are taken as sRGB) and augmentation. The user's
files are opened for reading only.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import io
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from .errors import MinitlError
from .files import printable
from .threads import threads

if TYPE_CHECKING:
    from concurrent.futures import Future

Thing = TypeVar("Thing")
Result = TypeVar("Result")

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
        width = pixels.shape[2]
        x = pixels.astype(np.float32, order="C").reshape(-1, 3 * width)  # rows of pixels: NumPy is slow where the last axis is short
        x -= _tiled(self.mean, width)
        x /= _tiled(self.std, width)
        return x.reshape(pixels.shape)

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
        red, green, blue = tables = self._quantised
        if np.array_equal(red, green) and np.array_equal(red, blue):
            return np.take(red, pixels)
        return np.stack([np.take(table, pixels[..., channel]) for channel, table in enumerate(tables)], axis=-1)

    @functools.cached_property
    def _quantised(self) -> np.ndarray:
        """(3, 256) int8: what quantise_pixels makes of every number that a pixel can be."""
        every = np.arange(256, dtype=np.int32) * np.array(self.pixel_multipliers, np.int32)[:, None]
        return np.clip((every + np.array(self.pixel_offsets, np.int32)[:, None]) >> 16, -128, 127).astype(np.int8)


@functools.lru_cache(64)
def _tiled(values: tuple[float, ...], width: int) -> np.ndarray:
    """(width * len(values),) float32: the values over and over."""
    found = np.tile(np.array(values, np.float32), width)
    found.flags.writeable = False
    return found


# ---- one photo -----------------------------------------------------------------------------------------------------------------

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000", "HEIF")
"""Pillow's names of the formats that are tried, by content. Others stay shut: Pillow's EPS reader, say, starts Ghostscript."""

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .bmp .webp .avif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .heic .heif".split()
)
"""Files of a folder that count as photos, in any case."""

MAX_BYTES = 512 * 2**20
MAX_PIXELS = 89_478_485
"""Most pixels that are really decoded (a large JPEG is decoded reduced, see _draft): Pillow's own threshold, 256 MiB of RGB."""
MAX_SIDE = 65_535
"""Longest side: that of JPEG. It bounds the memory of resizing a picture of 1 x 80,000,000 pixels."""
MIN_SIDE = 8
"""Shortest side: less is a tracking pixel or a spacer from a web page, and would be trained on as one flat colour."""

HEIC = "this is a HEIC picture, which Pillow cannot read; convert it to JPEG"

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright (Exif 2.32, tag 0x0112); 1 and anything unknown: nothing."""


class PhotoError(MinitlError):
    """A file that cannot be used as a photo; one sentence that names the file and the reason."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


def digest(data: bytes) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits: what a photo is known by, wherever it lies."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All bytes of an ordinary file; PhotoError for anything else. A named pipe or a device is refused without waiting on it."""
    name = printable(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PhotoError(name, "this is not an ordinary file but a pipe or a device; give a photo")
            data = file.read(min(status.st_size, MAX_BYTES) + 1)  # a larger number would be allocated at once
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, PhotoError):
            raise
        if os.path.isdir(name):
            raise PhotoError(name, "this is a folder; give a photo") from None
        raise PhotoError(name, f"the file cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if not data:
        raise PhotoError(name, "the file is empty")
    if len(data) > MAX_BYTES:
        raise PhotoError(name, f"the file is larger than {MAX_BYTES >> 20} MiB; no photo is, make a smaller copy")
    return data


def read_photo(source: str | os.PathLike[str] | bytes, recipe: Recipe, name: str = "photo") -> np.ndarray:
    """A photo, upright and prepared as the recipe says: uint8 (recipe.height, recipe.width, 3), red first.

    source: a path, or the file's bytes (then `name` is what an error calls it). EXIF orientation is applied, transparency is
    laid on white, 16-bit and float grey is scaled to 8 bits, an animation gives its first picture. Raises PhotoError for
    everything that is not a whole picture of at least MIN_SIDE pixels a side; nothing else escapes, whatever the bytes.
    """
    if not isinstance(source, bytes):
        name, source = printable(source), read_bytes(source)
    try:
        picture, box, orientation = _decode(source, recipe)
    except PhotoError as error:
        raise PhotoError(name, error.reason) from None
    except Exception as error:  # a decoder fed with hostile bytes raises nearly anything: what it says is the reason
        raise PhotoError(name, _reason(error, source)) from error
    target = (recipe.height, recipe.width) if orientation >= 5 else (recipe.width, recipe.height)
    small = picture.resize(target, Image.Resampling[recipe.interpolation.upper()], box=box)
    if orientation in _TRANSPOSES:  # after the resize: the box is centred, so turning first gives the same, more slowly
        small = small.transpose(_TRANSPOSES[orientation])
    return np.array(small)


def aspect(data: bytes) -> float:
    """Width / height of a photo once it is upright, from the bytes of one that read_photo() took."""
    with _open(data) as picture:
        width, height = picture.size
        turned = _orientation(picture) >= 5 and picture.format != "TIFF"  # Pillow turns a TIFF itself
        return height / width if turned else width / height


def dimensions(data: bytes, name: str = "photo") -> tuple[int, int, int]:
    """(width, height, EXIF orientation 1..8) of a photo's bytes as it is stored; only its head is read. PhotoError where it has none."""
    try:
        with _open(data) as picture:
            return picture.width, picture.height, _orientation(picture)
    except Exception as error:
        raise PhotoError(name, _reason(error, data)) from error


def _decode(data: bytes, recipe: Recipe) -> tuple[Image.Image, tuple[float, float, float, float], int]:
    """(RGB picture as stored, the box of it that the recipe takes, EXIF orientation)."""
    with _open(data) as picture:
        width, height = picture.size
        if min(width, height) < MIN_SIDE:
            raise PhotoError("", f"the picture has {width} x {height} pixels, too few to show anything (at least {MIN_SIDE} a side)")
        if max(width, height) > MAX_SIDE:
            raise PhotoError("", f"the picture has {width} x {height} pixels, the longest side allowed is {MAX_SIDE}")
        shrink = _draft(picture, recipe)
        if picture.width * picture.height > MAX_PIXELS:
            raise PhotoError("", f"the picture would unpack to {width} x {height} pixels (at most {MAX_PIXELS:,}); make a smaller copy")
        picture.load()
        if shrink == 1:
            width, height = picture.size  # Pillow turns a TIFF upright itself
        orientation = _orientation(picture)
        left, upper, right, lower = _box(width, height, recipe, orientation)
        return _rgb(picture), (left / shrink, upper / shrink, right / shrink, lower / shrink), orientation


def _box(width: int, height: int, recipe: Recipe, orientation: int) -> tuple[float, float, float, float]:
    """(left, upper, right, lower): the part of a stored width x height picture that the recipe takes, in fractions of pixels.

    A box within one pixel of the network's size is cut out in whole pixels, not scaled: half a pixel more on the left would only blur.
    On photos with a short side of 256, a MobileNetV2 at 224 had 84.2 % instead of 85.8 %.
    """
    if recipe.resize == "squash":
        return 0, 0, width, height
    wide, high = (recipe.height, recipe.width) if orientation >= 5 else (recipe.width, recipe.height)
    unit = min(width / wide, height / high) * recipe.crop_fraction
    if abs(unit - 1) * max(wide, high) < 1 and wide <= width and high <= height:
        across, down = (width - wide) // 2, (height - high) // 2
        return across, down, across + wide, down + high
    left, upper = (width - wide * unit) / 2, (height - high * unit) / 2
    return max(left, 0), max(upper, 0), min(width - left, width), min(height - upper, height)


def _draft(picture: Image.Image, recipe: Recipe) -> int:
    """Let a JPEG decoder leave out the detail that would be thrown away; returns by how much it shrinks: 1, 2, 4 or 8.

    A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, from the low frequencies of each 8 x 8 block. The largest factor is
    taken that leaves the recipe's box at least twice as large as the network's input in both directions, so that the final
    resize still averages. Measured on 24 megapixels to 224: 0.20 s -> 0.08 s, pixels differ by 0.2 of 255 on average, 2 at most.
    """
    if not isinstance(picture, JpegImagePlugin.JpegImageFile) or recipe.interpolation == "nearest":
        return 1
    width, height = picture.size
    orientation = _orientation(picture)
    left, upper, right, lower = _box(width, height, recipe, orientation)
    wide, high = (recipe.height, recipe.width) if orientation >= 5 else (recipe.width, recipe.height)
    room = min((right - left) / wide, (lower - upper) / high) / 2
    factor = max((f for f in (1, 2, 4, 8) if f <= room), default=1)
    if factor > 1:
        picture.draft(picture.mode, (width // factor, height // factor))
        # the decoder rounds the size up, its pixels still cover `factor` pixels each: boxes are divided by the factor alone
        assert picture.size == (-(-width // factor), -(-height // factor)), (picture.size, width, height, factor)
    return factor


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 where there is none or it cannot be read (a broken note on a whole picture)."""
    try:
        value = picture.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode of Pillow -> RGB, transparency on white."""
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture
    if mode == "F" or mode.startswith("I"):  # Pillow's own conversion clips: a 16-bit ramp would leave 2 grey levels
        return Image.fromarray(_eight_bits(np.asarray(picture), mode, picture.format)).convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms  # rarely needed

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(picture, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert converted is not None
        return converted
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(grey: np.ndarray, mode: str, image_format: str | None) -> np.ndarray:
    """Deep grey (H, W) -> uint8. 16-bit types by their range; for 32-bit integers and floats, which have no fixed white, the
    narrowest usual range that holds all values (1 for floats, 255, 65535), else their own minimum..maximum.
    """
    grey = np.nan_to_num(grey.astype(np.float64), nan=0, posinf=0, neginf=0)
    if mode.startswith("I;16") or (mode == "I" and image_format in ("PNG", "PPM")):
        low, high = 0.0, 65535.0
    else:
        low, high = float(grey.min()), float(grey.max())
        usual = [white for white in ((1, 255, 65535) if mode == "F" else (255, 65535)) if high <= white]
        if low >= 0 and usual:
            low, high = 0.0, usual[0]
    return np.clip((grey - low) * (255 / max(high - low, 1e-30)) + 0.5, 0, 255).astype(np.uint8)


def _open(data: bytes) -> Image.Image:
    """Image.open; for a JPEG without the readers of four other formats, which it would load first: 5 ms. What is unusual goes to it."""
    if data.startswith(JPEG):
        with contextlib.suppress(Exception):
            picture = JpegImagePlugin.jpeg_factory(io.BytesIO(data))
            if picture.width * picture.height <= MAX_PIXELS and Image.MAX_IMAGE_PIXELS == MAX_PIXELS:
                return picture
    return Image.open(io.BytesIO(data), formats=_formats(data))


def _formats(data: bytes) -> tuple[str, ...]:
    """What a photo can be, by its first bytes: for the usual ones Pillow then need not load what reads all the others, 20 ms."""
    return next((formats for start, formats in USUAL.items() if data.startswith(start)), None) or _all_formats()


JPEG = b"\xff\xd8\xff"
USUAL = {JPEG: ("JPEG",), b"\x89PNG\r\n\x1a\n": ("PNG",)}


@functools.cache
def _all_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has (AVIF since 11.3, HEIF where pillow-heif is registered)."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def reads_heic() -> bool:
    """Whether this Pillow reads HEIC: only with a plug-in such as pillow-heif."""
    return "HEIF" in _all_formats()


def _reason(error: Exception, data: bytes) -> str:
    """One clause for what a decoder complained about."""
    said = " ".join(str(error).split())[:200]
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"the picture would unpack to too many pixels, a decompression bomb; make a smaller copy ({said})"
    if isinstance(error, UnidentifiedImageError):
        if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
            return HEIC
        return f"this is not a picture that can be read (its first bytes are {data[:12]!r}); expected JPEG, PNG, WebP or the like"
    if "truncated" in said or isinstance(error, EOFError):
        return f"the file is cut short ({said})"
    return f"the picture is damaged ({type(error).__name__}: {said})"


SOON = 0.02
"""Seconds that a photo that is ready may wait for those after it."""


def photos_ahead(
    function: Callable[[Thing], Result], things: Iterable[Thing], workers: int | None = None, ahead: int | None = None
) -> Iterator[tuple[Thing, Result]]:
    """(thing, function(thing)) in order, up to `ahead` (default 4 * workers) things ahead, by `workers` (default threads()) threads.

    Pillow lets go of Python's lock while it decodes, so threads do run side by side, and memory stays bounded by the few results
    that wait. An error of `function` is raised where its result would come. Leaving early, Ctrl-C included, starts nothing more
    and waits only for what is being computed. A list of one thing needs no threads, whose import takes longer than a small photo.
    """
    if isinstance(things, list) and len(things) == 1:
        yield things[0], function(things[0])
        return
    from concurrent.futures import ThreadPoolExecutor

    waiting: collections.deque[tuple[Thing, Future[Result]]] = collections.deque()
    workers = workers or threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="photos")
    try:
        for thing in things:
            waiting.append((thing, pool.submit(function, thing)))
            if len(waiting) >= (ahead or 4 * workers):
                if not waiting[0][1].done():  # wait for some at once: being woken for every photo takes the workers a tenth of their time
                    with contextlib.suppress(TimeoutError):
                        waiting[len(waiting) // 2][1].exception(SOON)
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_photos(paths: Iterable[Path], recipe: Recipe, workers: int | None = None) -> Iterator[tuple[Path, np.ndarray | PhotoError]]:
    """(path, uint8 pixels (H, W, 3) or the PhotoError) for every path, in order, decoded in background threads."""
    return photos_ahead(functools.partial(try_photo, recipe=recipe), paths, workers)


def try_photo(path: Path, recipe: Recipe) -> np.ndarray | PhotoError:
    """What read_photo() gives or raises."""
    try:
        return read_photo(path, recipe)
    except PhotoError as error:
        return error
