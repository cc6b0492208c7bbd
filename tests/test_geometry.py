"""Padding rules against their definitions, tried out by brute force, and against the facts of the frameworks they come from."""

import itertools

import pytest

from minitl.geometry import output_hw, output_size, pad_axis, resolve


def positions(size: int, window: int, stride: int, before: int, after: int) -> int:
    """How many places a window has, by moving it until it sticks out."""
    count, at = 0, -before
    while at + window <= size + after:
        count, at = count + 1, at + stride
    return count


SIZES = list(itertools.product(range(1, 34), range(1, 8), range(1, 5)))


def test_output_size_counts_the_places_of_the_window():
    for (size, window, stride), (before, after) in itertools.product(SIZES, [(0, 0), (0, 1), (1, 1), (2, 0), (3, 3)]):
        assert max(output_size(size, window, stride, before, after), 0) == positions(size, window, stride, before, after)


def test_same_is_the_least_padding_that_gives_every_stride_a_window_with_the_odd_pixel_behind():
    for size, window, stride in SIZES:
        wanted = len(range(0, size, stride))  # one window per started stride
        total = next(t for t in itertools.count() if positions(size, window, stride, 0, t) >= wanted)
        before, after = pad_axis("same", size, window, stride)
        assert (before + after, after - before in (0, 1)) == (total, True), (size, window, stride)
        assert output_size(size, window, stride, before, after) == wanted


@pytest.mark.parametrize(
    ("rule", "size", "window", "stride", "expected"),
    [
        ("same", 224, 3, 2, (0, 1)),
        ("same", 97, 3, 2, (1, 1)),
        ("same", 14, 3, 1, (1, 1)),
        ("same", 14, 1, 1, (0, 0)),
        ("same", 14, 1, 2, (0, 0)),
        ("same", 1, 3, 2, (1, 1)),
        ("same", 7, 7, 1, (3, 3)),
        ("keras", 224, 3, 2, (0, 1)),
        ("keras", 25, 3, 2, (0, 1)),  # where it differs from 'same'
        ("keras", 25, 3, 1, (1, 1)),
        ("keras", 25, 1, 1, (0, 0)),
        ("keras", 25, 1, 2, (0, 0)),
        ("torch", 224, 3, 2, (1, 1)),
        ("torch", 25, 3, 2, (1, 1)),
        ("torch", 25, 5, 1, (2, 2)),
        ("torch", 25, 1, 1, (0, 0)),
        ("valid", 25, 3, 2, (0, 0)),
    ],
)
def test_rules_give_the_numbers_of_their_frameworks(rule, size, window, stride, expected):
    assert pad_axis(rule, size, window, stride) == expected


def test_same_equals_correct_pad_of_keras_mobilenet_v2_at_every_size():
    for size in range(3, 300):
        assert pad_axis("same", size, 3, 2) == (1 - (size % 2 == 0), 1)


def test_the_three_families_agree_on_shapes_so_only_numbers_can_tell_them_apart():
    for size in range(2, 300, 2):
        assert len({output_size(size, 3, 2, *pad_axis(rule, size, 3, 2)) for rule in ("same", "keras", "torch")}) == 1


def test_height_and_width_are_padded_each_by_its_own_size():
    assert resolve("same", 96, 97, (3, 3), (2, 2)) == (0, 1, 1, 1)
    assert resolve("same", 9, 9, (5, 1), (1, 2)) == (2, 2, 0, 0)
    assert output_hw(96, 97, (3, 3), (2, 2), (0, 1, 1, 1)) == (48, 49)
    assert output_hw(9, 8, (5, 3), (1, 2), (0, 0, 0, 1)) == (5, 4)


def test_four_numbers_stay_what_they_are():
    assert resolve((0, 3, 1, 2), 10, 10, (3, 3), (2, 2)) == (0, 3, 1, 2)


def test_a_window_that_does_not_fit_is_refused_with_sizes():
    with pytest.raises(ValueError, match=r"3x3 window does not fit into a 2x9 image"):
        output_hw(2, 9, (3, 3), (1, 1), (0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"3x3 window does not fit into a 9x2 image"):
        output_hw(9, 2, (3, 3), (1, 1), (0, 0, 0, 0))


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'full' is unknown.*same, valid, keras, torch"):
        pad_axis("full", 10, 3, 1)
