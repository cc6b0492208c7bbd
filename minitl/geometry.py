"""Sizes and padding: the only place that knows how many pixels a window needs around an image.

In: image size, window size, stride and the name of a padding rule. Out: four explicit numbers (top, bottom, left, right).
Everything inside the project works on explicit numbers; the names of the rules stop here.

The rules differ by one pixel, no shape shows it, and a network run with the wrong one loses tens of points of accuracy:

| rule | where | even size, 3x3 stride 2 | odd size, 3x3 stride 2 |
| --- | --- | --- | --- |
| 'same' | TensorFlow, TFLite | (0, 1) | (1, 1) |
| 'keras' | Keras' MobileNetV1: ZeroPadding2D((0, 1), (0, 1)) before every stride-2 depthwise, whatever the size | (0, 1) | (0, 1) |
| 'torch' | PyTorch: kernel // 2 on both sides | (1, 1) | (1, 1) |
| 'valid' | no padding | (0, 0) | (0, 0) |
"""

from __future__ import annotations

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]
"""(top, bottom, left, right), in pixels."""

RULES = ("same", "valid", "keras", "torch")


def output_size(size: int, window: int, stride: int, before: int, after: int) -> int:
    """Number of window positions along one axis; 0 or less means that the window does not fit."""
    return (size + before + after - window) // stride + 1


def pad_axis(rule: str, size: int, window: int, stride: int) -> Pair:
    """(before, after) along one axis of `size` pixels for a named rule of RULES.

    'same': TensorFlow's rule, ceil(size / stride) outputs, the odd pixel goes after
    (https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2).
    """
    if rule == "valid":
        return 0, 0
    if rule == "torch":
        return window // 2, window // 2
    if rule == "keras" and stride == 2:
        return 0, max(window - 2, 0)
    if rule in ("same", "keras"):
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + window - size, 0)
        return total // 2, total - total // 2
    raise ValueError(f"padding rule {rule!r} is unknown; use one of {', '.join(RULES)} or four numbers")


def resolve(rule: str | Padding, height: int, width: int, window: Pair, strides: Pair) -> Padding:
    """The four paddings of a (height, width) image for a window (kh, kw) moved by strides (sh, sw)."""
    if not isinstance(rule, str):
        return rule
    return (*pad_axis(rule, height, window[0], strides[0]), *pad_axis(rule, width, window[1], strides[1]))


def output_hw(height: int, width: int, window: Pair, strides: Pair, padding: Padding) -> Pair:
    """(height, width) of the output of a window moved over a padded image.

    Raises ValueError where not even one window fits.
    """
    top, bottom, left, right = padding
    out = (output_size(height, window[0], strides[0], top, bottom), output_size(width, window[1], strides[1], left, right))
    if min(out) < 1:
        raise ValueError(
            f"a {window[0]}x{window[1]} window does not fit into a {height}x{width} image padded by {padding}: use a larger input"
        )
    return out
