"""Reading photos: every claim of minitl/images.py."""

import hashlib
import io
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, WEIGHTS, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from minitl import images
from minitl.errors import MinitlError
from minitl.files import printable
from minitl.images import PhotoError, Recipe, digest, photos_ahead, read_bytes, read_photo, read_photos

WHOLE = Recipe(16, 24, resize="squash")
unix = pytest.mark.skipif(os.name != "posix", reason="needs pipes, links and permissions as POSIX has them")
ordinary_user = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind the superuser")


def scene(width=96, height=64, seed=0):
    """A smooth colour picture without any symmetry, RGB."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture, image_format="PNG", **options):
    out = io.BytesIO()
    picture.save(out, image_format, **options)
    return out.getvalue()


def pixels(picture, recipe=WHOLE, image_format="PNG", **options):
    return read_photo(encoded(picture, image_format, **options), recipe)


def difference(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# ---- the recipe ----------------------------------------------------------------------------------------------------------------

RECIPES = [
    Recipe(96, 96),
    Recipe(96, 96, (0, 0, 0), (255, 255, 255)),
    Recipe(128, 128, (128, 128, 128), (128, 128, 128)),
    Recipe(224, 224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    Recipe(224, 224, (103.939, 116.779, 123.68), (1, 1, 1)),
    Recipe(8, 8, (-100, 0, 300), (1, 2, 3)),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_integer_pixels_agree_with_rounding_the_real_ones(recipe):
    p = np.arange(256, dtype=np.uint8)[None, :, None, None].repeat(3, axis=3)
    scale, zero = recipe.input_quantisation
    real = (p.astype(np.float64) - recipe.mean) / recipe.std
    error = np.abs(scale * (recipe.quantise_pixels(p).astype(int) - zero) - real).max() / scale
    print(f"largest error {error:.4f} steps")
    assert error <= 1.01  # half a step of rounding, half of the zero point's
    assert recipe.quantise_pixels(p).dtype == np.int8
    assert scale * (-128 - zero) <= 1e-9 + max(0, real.max()) and scale * (127 - zero) >= min(0, real.min()) - 1e-9
    assert np.abs(recipe.normalise(p) - real).max() <= 1e-5 * max(1, np.abs(real).max())


@pytest.mark.parametrize("recipe", RECIPES[:3])
def test_with_one_mean_and_std_the_integer_input_is_the_pixel_less_128(recipe):
    p = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    assert np.array_equal(recipe.quantise_pixels(p), p.astype(int) - 128)


@given(
    mean=st.tuples(*[st.floats(-500, 500)] * 3),
    std=st.tuples(*[st.floats(0.001, 1000)] * 3),
)
def test_integer_pixels_fit_32_bits_for_any_recipe(mean, std):
    recipe = Recipe(8, 8, mean, std)
    for multiplier, offset in zip(recipe.pixel_multipliers, recipe.pixel_offsets, strict=True):
        assert 0 <= multiplier <= 65536 and abs(offset) + 255 * multiplier < 2**31
    assert -128 <= recipe.input_quantisation[1] <= 127


def test_a_recipe_survives_its_dictionary():
    for recipe in RECIPES:
        assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0}, {"height": 5000}, {"width": 2.5}, {"width": True}, {"width": "96"}, {"width": 10**400}, {"mean": 127.5},
        {"mean": [0, 0]},
        {"mean": [0, 0, float("nan")]}, {"std": [0, 1, 1]}, {"std": [1, 1, float("inf")]}, {"std": [-1, 1, 1]}, {"mean": [10**400, 0, 0]},
        {"resize": "stretch"}, {"resize": None}, {"resize": ["crop"]}, {"crop_fraction": 0}, {"crop_fraction": 1.5},
        {"crop_fraction": None},
        {"interpolation": "area"}, {"colour": "bgr"}, {3: 4},
    ],
)  # fmt: skip
def test_an_impossible_recipe_is_refused(change):
    with pytest.raises(MinitlError, match="recipe"):
        Recipe.from_dict({**Recipe(96, 96).to_dict(), **change})


def test_a_recipe_with_an_entry_missing_is_refused():
    values = Recipe(96, 96).to_dict()
    del values["mean"]
    for broken in (values, [], None, "recipe"):
        with pytest.raises(MinitlError, match="recipe"):
            Recipe.from_dict(broken)


# ---- geometry of a photo -------------------------------------------------------------------------------------------------------


def test_crop_takes_the_centred_box_with_the_networks_shape():
    picture = scene(100, 60)
    got = pixels(picture, Recipe(32, 32, crop_fraction=0.5))
    expected = picture.resize((32, 32), Image.Resampling.BILINEAR, box=(35, 15, 65, 45))
    assert np.array_equal(got, np.asarray(expected))
    tall = pixels(picture, Recipe(40, 20, crop_fraction=1))
    assert np.array_equal(tall, np.asarray(picture.resize((20, 40), Image.Resampling.BILINEAR, box=(35, 0, 65, 60))))


@pytest.mark.parametrize("interpolation", images.INTERPOLATIONS)
def test_squash_takes_the_whole_picture(interpolation):
    picture = scene(100, 60)
    got = pixels(picture, Recipe(32, 48, resize="squash", interpolation=interpolation))
    assert np.array_equal(got, np.asarray(picture.resize((48, 32), Image.Resampling[interpolation.upper()])))


def orient(picture, orientation):
    """The picture as a camera would store it, turned so that `orientation` makes it upright again (independent of Pillow's table)."""
    a = np.asarray(picture)
    stored = {
        1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1], 5: a.swapaxes(0, 1), 6: a.swapaxes(0, 1)[::-1],
        7: a[::-1, ::-1].swapaxes(0, 1), 8: a.swapaxes(0, 1)[:, ::-1],
    }[orientation]  # fmt: skip
    return Image.fromarray(np.ascontiguousarray(stored))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("recipe", [WHOLE, Recipe(20, 12, crop_fraction=0.6), Recipe(8, 8)])
def test_exif_orientation_is_applied(image_format, orientation, recipe):
    picture = scene(300, 200)  # large enough for draft() on a JPEG
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(image_format, {})
    got = read_photo(encoded(orient(picture, orientation), image_format, exif=exif, **options), recipe)
    error = difference(got, pixels(picture, recipe))
    print(f"orientation {orientation} {image_format}: largest difference {error} of 255")
    assert got.shape == (recipe.height, recipe.width, 3)
    assert error <= (4 if image_format == "JPEG" else 1)  # passes in the other order round differently


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_nonsense_orientation_is_ignored(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(pixels(scene(), exif=exif), pixels(scene()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_cost_the_photo():
    data = encoded(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff rubbish")
    assert read_photo(data, WHOLE).shape == (16, 24, 3)


def test_a_thread_of_a_picture_does_not_blow_up():
    for size in ((10000, 8), (8, 65535)):
        for recipe in (WHOLE, Recipe(224, 224), Recipe(32, 32, crop_fraction=0.01)):
            assert pixels(Image.new("RGB", size, (10, 200, 30)), recipe)[0, 0].tolist() == [10, 200, 30]


def test_draft_of_a_large_jpeg_changes_pixels_by_little():
    rng = np.random.default_rng(0)
    grain = rng.integers(-20, 21, (1500, 2250, 3), dtype=np.int16)
    data = encoded(Image.fromarray(np.clip(np.asarray(scene(2250, 1500)) + grain, 0, 255).astype(np.uint8)), "JPEG", quality=92)
    for recipe in (Recipe(96, 96), Recipe(40, 30, resize="squash", interpolation="bicubic"), Recipe(224, 224)):
        with Image.open(io.BytesIO(data)) as picture:
            factor = images._draft(picture, recipe)
            left, upper, right, lower = images._box(2250, 1500, recipe, 1)
            assert factor > 1 and (right - left) / factor >= 2 * recipe.width and (lower - upper) / factor >= 2 * recipe.height
        full = encoded(Image.open(io.BytesIO(data)), "PNG", compress_level=0)
        a, b = read_photo(data, recipe), read_photo(full, recipe)
        mean = np.abs(a.astype(int) - b).mean()
        print(f"{recipe.height}x{recipe.width}: 1/{factor}, mean difference {mean:.3f}, largest {difference(a, b)}")
        assert difference(a, b) <= 6


# ---- modes of pictures ---------------------------------------------------------------------------------------------------------


def test_transparency_is_laid_on_white_and_not_stripped():
    rgba = Image.new("RGBA", (24, 16), (255, 0, 0, 0))  # red hidden under full transparency
    rgba.paste((0, 0, 200, 255), (0, 0, 12, 16))
    palette = Image.new("P", (24, 16), 1)
    palette.putpalette([0, 0, 200, 255, 0, 0])
    palette.paste(0, (0, 0, 12, 16))
    grey = Image.new("LA", (24, 16), (0, 0))
    for picture, options, left in (
        (rgba, {}, (0, 0, 200)),
        (palette, {"transparency": 1}, (0, 0, 200)),
        (palette, {"transparency": bytes([255, 0])}, (0, 0, 200)),
        (grey, {}, (255, 255, 255)),
        (Image.new("L", (24, 16), 7), {"transparency": 7}, (255, 255, 255)),
        (Image.new("RGB", (24, 16), (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
        (Image.new("1", (24, 16), 0), {"transparency": 0}, (255, 255, 255)),
    ):
        got = pixels(picture, **options)
        assert got[8, 2].tolist() == list(left) and got[8, 22].tolist() == [255, 255, 255], (picture.mode, options)
    gif = pixels(palette, image_format="GIF", transparency=1)
    assert gif[8, 2].tolist() == [0, 0, 200] and gif[8, 22].tolist() == [255, 255, 255]
    half = pixels(Image.new("RGBA", (24, 16), (0, 0, 0, 128)), image_format="WEBP", lossless=True)
    assert abs(int(half[0, 0, 0]) - 127) <= 1


RAMP = np.linspace(0, 65535, 256 * 32).astype(np.uint16).reshape(32, 256)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_a_16_bit_grey_ramp_keeps_its_256_levels(image_format):
    picture = Image.fromarray(RAMP) if image_format != "PPM" else Image.fromarray(RAMP.astype(np.int32))
    recipe = Recipe(32, 256, resize="squash", interpolation="nearest")
    got = pixels(picture, recipe, image_format)
    assert len(np.unique(got)) == 256
    assert np.abs(got[..., 0] - RAMP / 257).max() <= 0.5001


def test_a_dark_16_bit_picture_stays_dark():
    dark = np.full((16, 24), 200, np.uint16)
    for image_format in ("PNG", "TIFF"):
        assert pixels(Image.fromarray(dark), image_format=image_format).max() == 1
    assert pixels(Image.fromarray(dark.astype(np.int32)), image_format="PPM").max() == 1


def test_big_endian_16_bit_tiff():
    raw = RAMP.astype(">u2").tobytes()
    header = b"MM\0*" + (8 + len(raw)).to_bytes(4, "big") + raw
    entries = [
        (256, 3, 256),
        (257, 3, 32),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 32),
        (279, 4, len(raw)),
    ]
    directory = len(entries).to_bytes(2, "big")
    for tag, kind, value in entries:
        directory += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big")
        directory += value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big")
    got = read_photo(header + directory + bytes(4), Recipe(32, 256, resize="squash", interpolation="nearest"))
    assert np.abs(got[..., 0] - RAMP / 257).max() <= 0.5001


@pytest.mark.parametrize(
    ("values", "black", "white"),
    [
        (np.array([0.0, 1.0], np.float32), 0, 255),
        (np.array([0.0, 255.0], np.float32), 0, 255),
        (np.array([0.0, 127.5], np.float32), 0, 128),
        (np.array([0.0, 65535.0], np.float32), 0, 255),
        (np.array([-3.0, 1e6], np.float32), 0, 255),
        (np.array([0, 255], np.int32), 0, 255),
        (np.array([0, 65535], np.int32), 0, 255),
        (np.array([-70000, 70000], np.int32), 0, 255),
        (np.array([np.nan, 1.0], np.float32), 0, 255),
    ],
)
def test_float_and_32_bit_grey(values, black, white):
    picture = Image.fromarray(np.repeat(np.repeat(values[None], 16, 0), 12, 1))
    got = pixels(picture, Recipe(16, 24, resize="squash", interpolation="nearest"), "TIFF")
    assert (got[0, 0, 0], got[0, -1, 0]) == (black, white)


def test_other_modes_agree_with_their_rgb_picture():
    picture = scene()
    rgb = pixels(picture)
    grey = pixels(picture.convert("L"))
    assert difference(grey, np.repeat(grey[..., :1], 3, 2)) == 0
    assert set(np.unique(pixels(picture.convert("1"), Recipe(64, 96, resize="squash")))) == {0, 255}
    palette = picture.quantize(64)
    for image_format in ("PNG", "BMP", "GIF", "TIFF"):
        assert np.array_equal(pixels(palette, image_format=image_format), pixels(palette.convert("RGB")))
    for name, got, allowed in (
        ("CMYK TIFF", pixels(picture.convert("CMYK"), image_format="TIFF"), 1),
        ("CMYK JPEG", pixels(picture.convert("CMYK"), image_format="JPEG", quality=95), 12),
        ("YCbCr TIFF", pixels(picture.convert("YCbCr"), image_format="TIFF"), 4),
        ("JPEG", pixels(picture, image_format="JPEG", quality=95), 12),
        ("WEBP", pixels(picture, image_format="WEBP", lossless=True), 0),
        ("PPM", pixels(picture, image_format="PPM"), 0),
    ):
        print(name, difference(got, rgb))
        assert difference(got, rgb) <= allowed, name


def test_lab_tiff_is_converted():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(scene(), to_lab)
    errors = np.abs(pixels(lab, image_format="TIFF").astype(int) - pixels(scene()))
    print(f"difference {errors.mean():.2f} on average, largest {errors.max()} of 255")
    assert errors.mean() < 2 and errors.max() <= 20  # 8-bit LAB is coarse


def test_an_animation_gives_its_first_picture():
    frames = [Image.new("RGB", (24, 16), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    for image_format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        got = pixels(frames[0], image_format=image_format, save_all=True, append_images=frames[1:], **options)
        assert got[3, 3].tolist() == [200, 0, 0], image_format


# ---- files that are no photos --------------------------------------------------------------------------------------------------


def refused(source, *words, recipe=WHOLE):
    """The sentence with which a source is refused; it names the file, and holds the words."""
    with pytest.raises(PhotoError) as caught:
        read_photo(source, recipe, "holiday.jpg")
    sentence = str(caught.value)
    print(sentence)
    name = "holiday.jpg" if isinstance(source, bytes) else printable(source)
    assert sentence == f"{name}: {caught.value.reason}" and "\n" not in sentence
    assert all(word in sentence for word in words), sentence
    return sentence


def test_a_text_file_named_jpg_is_refused(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("Dear diary,\n")
    refused(path, "not a picture", "Dear diary")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_half_a_picture_is_found_by_decoding(image_format):
    grain = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(grain), image_format)
    refused(data[: len(data) // 2])
    refused(data[:5])


def test_half_a_jpeg_passes_pillows_own_check_and_is_still_refused():
    data = encoded(scene(600, 400), "JPEG", quality=95)
    half = data[: len(data) // 2]
    Image.open(io.BytesIO(half)).verify()  # no complaint
    refused(half, "cut short")


def test_a_decompression_bomb_is_refused_by_name_and_at_once():
    start, limit = time.perf_counter(), Image.MAX_IMAGE_PIXELS
    bomb = b"P5 100000 100000 255\n" + bytes(1000)  # PGM: 10 gigapixels
    assert "bomb" in refused(bomb) or "65535" in refused(bomb)
    refused(b"P5 60000 60000 255\n" + bytes(1000), "bomb")
    with pytest.warns(Image.DecompressionBombWarning):
        refused(b"P5 9500 9500 255\n" + bytes(1000), "9500 x 9500")
    refused(b"P5 8 90000 255\n" + bytes(8 * 90000), "90000")
    assert time.perf_counter() - start < 1 and limit == Image.MAX_IMAGE_PIXELS


def test_a_20_megapixel_jpeg_is_a_photo():
    data = encoded(scene(5472, 3648), "JPEG", quality=90)
    start = time.perf_counter()
    got = read_photo(data, Recipe(224, 224))
    print(f"{time.perf_counter() - start:.3f} s")
    assert got.shape == (224, 224, 3) and time.perf_counter() - start < 2


def test_a_picture_of_one_pixel_is_refused_and_8_by_8_is_not():
    refused(encoded(Image.new("RGB", (1, 1))), "1 x 1", "too few")
    refused(encoded(Image.new("RGB", (7, 3000))), "7 x 3000")
    assert pixels(Image.new("RGB", (8, 8))).shape == (16, 24, 3)


def test_heic_is_refused_with_what_to_do():
    refused(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC", "convert it to JPEG")


def test_no_reader_that_starts_other_programs_is_used():
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "not a picture")


@unix
def test_what_is_no_ordinary_file_is_refused_without_waiting(tmp_path):
    start = time.perf_counter()
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    refused(pipe, "pipe")
    refused(tmp_path, "folder")
    refused(tmp_path / "missing.jpg", "cannot be opened")
    refused(Path("/dev/zero"), "device")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    refused(tmp_path / "loop.jpg", "cannot be opened")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "empty")
    refused(tmp_path / "zero\0byte.jpg", "cannot be opened")
    refused(tmp_path / ("long" * 500 + ".jpg"), "cannot be opened")
    assert time.perf_counter() - start < 2


@unix
@ordinary_user
def test_a_photo_without_permission_is_refused(tmp_path):
    path = tmp_path / "secret.jpg"
    path.write_bytes(encoded(scene(), "JPEG"))
    path.chmod(0)
    refused(path, "Permission denied")


def test_a_name_with_a_line_break_is_one_line_in_the_sentence(tmp_path):
    refused(tmp_path / "two\nlines\udcff.jpg", "two?lines?")


SOURCES = [
    encoded(scene(40, 30), "JPEG"), encoded(scene(40, 30), "JPEG", progressive=True), encoded(scene(40, 30), "PNG"),
    encoded(scene(40, 30).quantize(16), "GIF"), encoded(scene(40, 30), "BMP"), encoded(scene(40, 30), "TIFF", compression="tiff_lzw"),
    encoded(scene(40, 30), "WEBP"), encoded(scene(40, 30), "PPM"), encoded(Image.fromarray(RAMP), "PNG"),
    encoded(Image.fromarray(RAMP), "TIFF"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=400)
@given(st.integers(0, len(SOURCES) - 1), st.data())
def test_only_photo_errors_escape_from_damaged_pictures(which, data):
    damaged = bytearray(SOURCES[which])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(damaged), 700) - 1) | st.integers(0, len(damaged) - 1))
        action = data.draw(st.sampled_from(["flip", "cut", "insert", "delete", "ones"]))
        if action == "flip":
            damaged[at] ^= data.draw(st.integers(1, 255))
        elif action == "cut":
            del damaged[max(at, 1) :]
        elif action == "insert":
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        elif action == "delete":
            del damaged[at : at + data.draw(st.integers(1, 30))]
        else:
            damaged[at : at + 4] = b"\xff" * len(damaged[at : at + 4])
        damaged = damaged or bytearray(b"x")
    try:
        got = read_photo(bytes(damaged), Recipe(16, 16))
    except PhotoError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert got.shape == (16, 16, 3) and got.dtype == np.uint8


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_only_photo_errors_escape_from_any_bytes(data):
    with pytest.raises(PhotoError):
        read_photo(data, WHOLE)


@needs_shared
def test_pillow_and_this_reader_agree_on_real_photos():
    for path in sorted((DATA / "imagenet-sample").glob("*.jpg"))[:20]:
        got = read_photo(path, Recipe(160, 160))  # no photo is large enough for draft()
        with Image.open(path) as picture:
            width, height = picture.size
            side = min(width, height) * 0.875
            box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
            expected = picture.convert("RGB").resize((160, 160), Image.Resampling.BILINEAR, box=box)
        assert np.array_equal(got, np.asarray(expected)), path.name
    assert read_photo(WEIGHTS / "grace_hopper.bmp", Recipe(96, 96)).shape == (96, 96, 3)


@needs_shared
def test_a_box_of_the_networks_own_size_is_cut_out_without_blur():
    cut = 0
    for path in sorted((DATA / "imagenet-sample").glob("*.jpg"))[:40]:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if min(pixels.shape[:2]) == 256:  # times 0.875 is 224
            top, left = (pixels.shape[0] - 224) // 2, (pixels.shape[1] - 224) // 2
            assert np.array_equal(read_photo(path, Recipe(224, 224)), pixels[top : top + 224, left : left + 224]), path.name
            cut += 1
    assert cut >= 10


# ---- decoding ahead ------------------------------------------------------------------------------------------------------------


def test_photos_come_in_order_and_bad_ones_as_errors(tmp_path):
    paths = []
    for i in range(30):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(encoded(Image.new("RGB", (16, 16), (i, 0, 0))) if i % 7 else b"no picture")
    for i, (path, got) in enumerate(read_photos(iter(paths), WHOLE)):
        assert path == paths[i]
        assert isinstance(got, PhotoError) if i % 7 == 0 else got[0, 0, 0] == i
    assert i == 29 and list(read_photos([], WHOLE)) == []


def test_few_photos_are_ahead_and_leaving_early_stops():
    started = []

    def slow(i):
        started.append(i)
        time.sleep(0.005)
        return i

    stream = photos_ahead(slow, iter(range(10**9)), workers=2)
    assert [next(stream)[1] for _ in range(5)] == list(range(5))
    assert len(started) <= 5 + 8
    stream.close()
    count = len(started)
    time.sleep(0.05)
    assert len(started) == count and not [t for t in threading.enumerate() if t.name.startswith("photos")]


def test_an_error_of_the_function_comes_out_in_its_place():
    stream = photos_ahead(lambda i: 6 // (2 - i), range(5))
    assert [next(stream)[1], next(stream)[1]] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_read_bytes_gives_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"123")
    assert read_bytes(tmp_path / "x") == b"123" and digest(b"123") == hashlib.sha256(b"123").hexdigest()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
