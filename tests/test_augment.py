"""Views of training photos: what they are compared with Pillow, what they depend on, and what no photo may make of them."""

import dataclasses

import numpy as np
import pytest
from conftest import DATA, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minitl import MinitlError
from minitl.augment import DEFAULT, GREY, USUAL, Augmentation, augmented, augmented_batch, source_recipe
from minitl.images import Recipe, read_photo

ALL = Augmentation.parse("default,rotate=20,cutout")


def photo(rows=60, columns=60, seed=0):
    """A soft picture (rows, columns, 3) uint8: random colours in a grid of 5 x 5, blown up."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC))


def view(picture, text, size=(48, 48), aspect=1.0, key=(0, 0, 0), central=1.0):
    return augmented(picture, aspect, size, key, text if isinstance(text, Augmentation) else Augmentation.parse(text), central)


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


# ---- the same as Pillow


@pytest.mark.parametrize(("size", "aspect"), [((48, 48), 1.0), ((60, 60), 1.5), ((70, 40), 0.8), ((30, 90), 3.0), ((48, 48), 10.0)])
@pytest.mark.parametrize("central", [1.0, 0.875])
def test_with_nothing_switched_on_a_view_is_the_centre_that_a_recipe_takes(size, aspect, central):
    height, width = size
    picture = photo()
    wide = min(aspect, width / height) * central  # in heights of the photo
    high = wide * height / width
    box = (30 - 30 * wide / aspect, 30 - 30 * high, 30 + 30 * wide / aspect, 30 + 30 * high)
    theirs = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, box=box))
    worst = difference(view(picture, "none", size, aspect, central=central), theirs)
    print(f"largest difference to Pillow {worst.max()}, mean {worst.mean():.3f}")
    enlarged = (box[2] - box[0]) <= width and (box[3] - box[1]) <= height  # Pillow averages where it shrinks
    assert worst.max() <= (1 if enlarged else 6) and worst.mean() < 0.6


@needs_shared
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_a_real_photo_unaugmented_is_nearly_what_the_recipe_gives(resize):
    recipe = Recipe(128, 128, resize=resize)
    for path in sorted((DATA / "monkeys").rglob("*.jpg"))[::150]:
        with Image.open(path) as picture:
            aspect = picture.width / picture.height if resize == "crop" else 1.0
        central = recipe.crop_fraction if resize == "crop" else 1.0
        mean = difference(
            view(read_photo(path, source_recipe(recipe)), "none", (128, 128), aspect, central=central), read_photo(path, recipe)
        )
        print(f"{path.name}: mean difference {mean.mean():.2f} of 255")
        assert mean.mean() < 6
        centre = mean[32:96, 32:96].mean()
        shifted = difference(read_photo(path, recipe)[33:97, 32:96], read_photo(path, recipe)[32:96, 32:96]).mean()
        assert centre < shifted  # half a pixel off would show


def test_without_a_change_of_size_every_pixel_is_kept():
    picture = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    assert np.array_equal(view(picture, "none", (40, 30), 0.75), picture)
    assert np.array_equal(view(picture, "mirror=1", (40, 30), 0.75), picture[:, ::-1])


def test_rotation_agrees_with_pillow_where_the_photo_is():
    picture, turn = photo(64, 64), Augmentation(rotate=90)
    for index in range(5):
        angle = np.radians(90 * (2 * np.random.default_rng((0, 0, index)).random(5)[4] - 1))
        sin, cos = np.sin(angle), np.cos(angle)
        affine = (cos, -sin, 32 - 32 * cos + 32 * sin, sin, cos, 32 - 32 * sin - 32 * cos)
        theirs = np.array(Image.fromarray(picture).transform((64, 64), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))
        circle = np.hypot(*np.mgrid[-31.5:32, -31.5:32]) < 31
        ours = view(picture, turn, (64, 64), key=(0, 0, index))
        assert difference(ours, theirs)[circle].max() <= 1, np.degrees(angle)


def test_what_lies_outside_is_the_photo_reflected():
    white = np.full((8, 8, 3), 200, np.uint8)
    for index in range(20):
        assert (view(white, "rotate=180,crop", aspect=10.0, key=(0, 0, index)) == 200).all()
    edge = photo(20, 20)
    turned = view(edge, Augmentation(rotate=180), (20, 20), key=(0, 0, 3))
    assert turned.min() >= edge.min() and turned.max() <= edge.max()


# ---- what a view depends on


def test_the_same_key_gives_the_same_bytes_whatever_the_order_and_the_batch():
    pictures = np.stack([photo(seed=i) for i in range(6)])
    aspects = [0.5, 1, 1, 1.5, 2, 3]
    whole = augmented_batch(pictures, aspects, (32, 32), 7, 3, range(6), ALL, 0.875)
    order = np.array([4, 0, 5, 2, 2])
    out = np.zeros((5, 32, 32, 3), np.uint8)
    assert augmented_batch(pictures, aspects, (32, 32), 7, 3, order, ALL, 0.875, out) is out
    assert np.array_equal(out, whole[order])
    for i in range(6):
        assert np.array_equal(augmented(pictures[i], aspects[i], (32, 32), (7, 3, i), ALL, 0.875), whole[i])
    assert augmented_batch(pictures, aspects, (32, 32), 7, 3, [], ALL).shape == (0, 32, 32, 3)


def test_seed_epoch_and_index_each_give_another_view():
    views = [view(photo(), ALL, key=key).tobytes() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert len(set(views)) == 4


def test_a_view_is_the_same_in_every_version():
    """A training that is resumed, or repeated next year, must see the same photos."""
    ramp = np.arange(40 * 40 * 3, dtype=np.uint32).reshape(40, 40, 3).astype(np.uint8)
    seen = view(ramp, ALL, key=(1, 2, 3))[5::12, 5::12, 1]
    expected = np.array([[62, 74, 172, 111], [120, 128, 117, 90], [65, 102, 62, 68], [134, 108, 163, 104]])
    assert difference(seen, expected).max() <= 1, seen.tolist()


def test_switching_on_one_more_kind_leaves_the_others_as_they_were():
    picture = photo()
    plain, cut = view(picture, "crop,mirror", key=(0, 0, 1)), view(picture, "crop,mirror,cutout=0.3", key=(0, 0, 1))
    same = (plain == cut).all(axis=2)
    assert 0.5 < same.mean() < 1 and (cut[~same] == GREY).all()


def test_read_only_and_memory_mapped_photos_are_welcome(tmp_path):
    np.save(tmp_path / "photos.npy", np.stack([photo(), photo(seed=1)]))
    mapped = np.load(tmp_path / "photos.npy", mmap_mode="r")
    assert np.array_equal(augmented_batch(mapped, [1, 1], (32, 32), 0, 0, [1], ALL)[0], view(photo(seed=1), ALL, (32, 32), key=(0, 0, 1)))
    transposed = photo()[:, :, ::-1].transpose(1, 0, 2)
    assert np.array_equal(view(transposed, ALL), view(np.ascontiguousarray(transposed), ALL))


# ---- what each kind does


def test_mirrored_twice_is_the_first_view():
    for index in range(10):
        key = (0, 0, index)
        once = view(photo(), dataclasses.replace(ALL, mirror=1), key=key)
        assert np.array_equal(once[:, ::-1], view(photo(), dataclasses.replace(ALL, mirror=0), key=key))


def test_half_of_the_photos_are_mirrored():
    ramp = np.broadcast_to(np.linspace(0, 255, 40).astype(np.uint8)[None, :, None], (40, 40, 3)).copy()
    views = augmented_batch(ramp[None].repeat(400, 0), [1] * 400, (8, 8), 0, 0, range(400), Augmentation(mirror=0.5))
    mirrored = (views[:, 0, 0, 0] > views[:, 0, -1, 0]).mean()
    print(f"{100 * mirrored:.1f} % mirrored")
    assert 0.42 < mirrored < 0.58


@pytest.mark.parametrize("aspect", [0.1, 0.75, 1.0, 1.78, 10.0])
def test_crops_have_the_asked_share_and_shape_and_reach_every_edge(aspect):
    """Read off a picture whose red is the column and whose green is the row."""
    ramp = np.linspace(0, 255, 200)
    picture = np.stack([np.broadcast_to(ramp, (200, 200)), np.broadcast_to(ramp[:, None], (200, 200)), np.zeros((200, 200))], 2)
    views = augmented_batch(
        picture.astype(np.uint8)[None].repeat(500, 0), [aspect] * 500, (20, 20), 0, 0, range(500), Augmentation(crop=(0.3, 1))
    )
    x, y = views[:, 10, :, 0].astype(float) / 255, views[:, :, 10, 1].astype(float) / 255
    wide, high = (x[:, -1] - x[:, 0]) * 20 / 19 * aspect, (y[:, -1] - y[:, 0]) * 20 / 19  # in heights of the photo
    ratio = wide / high
    largest = np.minimum(aspect, ratio) ** 2 / ratio
    assert 0.7 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.43
    share = wide * high / largest
    assert 0.25 < share.min() < 0.4 and 0.9 < share.max() < 1.1
    assert x.min() < 0.05 and x.max() > 0.95 and y.min() < 0.05 and y.max() > 0.95
    assert abs(x.mean() - 0.5) < 0.05 and abs(y.mean() - 0.5) < 0.05


def test_colour_moves_the_mean_a_little_and_keeps_greys_nearly_grey():
    grey = np.broadcast_to(np.linspace(20, 200, 40).astype(np.uint8)[:, None, None], (40, 40, 3)).copy()
    for strength in (0.2, 1.0):
        views = augmented_batch(grey[None].repeat(200, 0), [1] * 200, (20, 20), 0, 0, range(200), Augmentation(colour=strength)).astype(
            float
        )
        means = views.mean(axis=(1, 2))
        tint = np.ptp(means, axis=1) / means.mean(axis=1)
        print(f"colour={strength}: mean brightness {means.min():.0f}..{means.max():.0f} of 110, tint at most {tint.max():.3f}")
        assert abs(means.mean() - 110) < 6 and tint.max() < 0.25 * strength
        assert means.min() > 110 * (1 - 0.6 * strength) and means.max() < 110 * (1 + 0.6 * strength)


def test_colour_leaves_shapes_where_they_are():
    picture = photo()
    changed = view(picture, "colour=1", (60, 60), key=(0, 0, 5))
    assert np.corrcoef(picture.mean(axis=2).ravel(), changed.mean(axis=2).ravel())[0, 1] > 0.95
    assert not np.array_equal(picture, changed)


def test_cutout_paints_a_square_of_the_asked_side():
    black = np.zeros((40, 40, 3), np.uint8)
    areas = [(view(black, "cutout=0.5", (40, 60), 1.5, (0, 0, i)) == GREY).all(axis=2).sum() for i in range(50)]
    assert max(areas) == 400 and min(areas) >= 100  # half of the shorter side; at worst one quarter of it lies inside


# ---- whatever the photo, and whatever is asked


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    aspect=st.floats(0.05, 20),
    low=st.floats(0.01, 1),
    rotate=st.floats(0, 180),
    rest=st.tuples(*[st.floats(0, 1)] * 3),
    key=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
)
def test_any_photo_gives_a_view_of_its_own_pixels(rows, columns, size, aspect, low, rotate, rest, key):
    picture = np.random.default_rng(0).integers(60, 200, (rows, columns, 3), dtype=np.uint8)
    mirror, colour, cutout = rest
    full = Augmentation(mirror, (low, 1.0), rotate, colour, cutout)
    seen = view(picture, full, size, aspect, key)
    assert seen.shape == (*size, 3) and seen.dtype == np.uint8
    assert np.array_equal(seen, view(picture, full, size, aspect, key))
    plain = view(picture, dataclasses.replace(full, colour=0, cutout=0), size, aspect, key)
    assert plain.min() >= picture.min() and plain.max() <= picture.max()  # nothing from outside: no black borders


# ---- how it is asked for


def test_text_says_what_is_done():
    usual = Augmentation(mirror=0.5, crop=(0.35, 1), colour=0.5)
    assert Augmentation.parse("none") == Augmentation() and Augmentation.parse(" Default ") == usual == Augmentation.parse(DEFAULT)
    assert Augmentation.parse("mirror, crop=0.5,rotate=10") == Augmentation(0.5, (0.5, 1), 10)
    assert Augmentation.parse("crop=0.4-0.8,color=0.2,cutout") == Augmentation(crop=(0.4, 0.8), colour=0.2, cutout=0.25)
    assert Augmentation.parse("default,rotate=5") == dataclasses.replace(usual, rotate=5)
    assert Augmentation.parse("default,crop=0.5") == dataclasses.replace(usual, crop=(0.5, 1))
    for text in ("none", "default", "rotate=7.5", ",".join(USUAL), "crop=0.4-0.8"):
        assert Augmentation.parse(str(Augmentation.parse(text))) == Augmentation.parse(text)


@pytest.mark.parametrize(
    "text", ["", "flip", "none,mirror", "mirror=", "mirror=x", "mirror,mirror", "crop=0.5-0.7-0.9", "crop=", "crop=-1", "mirror;crop", "=3"]
)
def test_text_that_means_nothing_is_answered_with_what_is_known(text):
    with pytest.raises(MinitlError, match="augmentation"):
        Augmentation.parse(text)


@pytest.mark.parametrize(
    "values",
    [{"mirror": 2}, {"mirror": True}, {"mirror": "0.5"}, {"crop": 0.5}, {"crop": (0.9, 0.1)}, {"crop": (0, 1)}, {"rotate": 181},
     {"colour": -0.1}, {"cutout": float("nan")}, {"crop": (0.1, 0.2, 0.3)}],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(values):
    with pytest.raises(MinitlError, match=f"augmentation: {next(iter(values))}"):
        Augmentation(**values)


def test_settings_survive_json():
    import json

    assert Augmentation(**json.loads(json.dumps(dataclasses.asdict(ALL)))) == ALL


def test_arrays_that_are_no_photos_are_refused():
    with pytest.raises(MinitlError, match="uint8 photos"):
        view(photo().astype(np.float32), "none")
    with pytest.raises(MinitlError, match="uint8 photos"):
        view(photo()[:, :, :1], "none")
    for aspect in (0, -1, float("nan"), float("inf")):
        with pytest.raises(MinitlError, match="width / height"):
            view(photo(), "none", aspect=aspect)
    with pytest.raises(MinitlError, match="from 0 up"):
        view(photo(), "none", key=(-1, 0, 0))
    with pytest.raises(MinitlError, match="height, width"):
        view(photo(), "none", size=(0, 5))
    with pytest.raises(MinitlError, match="each of the 1 photos"):
        augmented_batch(photo()[None], [1, 1], (8, 8), 0, 0, [0], ALL)
