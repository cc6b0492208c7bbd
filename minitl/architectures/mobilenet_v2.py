"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381): expand 1x1, depthwise 3x3, project 1x1 without activation, residual.

Out: nodes under Keras' names (Conv1, expanded_conv_depthwise, block_1_expand, ..., Conv_1, predictions).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..layers import Add
from .blocks import Blocks

# (expansion, filters at alpha 1, repeats, stride of the first repeat): table 2 of the paper
BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and never more than 10 % below `channels` (the paper's reference code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def mobilenet_v2(
    alpha: float = 1.0,
    input_shape: Sequence[int] = (224, 224, 3),
    activation: str = "relu6",
    batch_norm: bool = True,
    use_bias: bool = False,
    epsilon: float = 1e-3,
    momentum: float = 0.999,
    padding: str = "same",
) -> Blocks:
    """alpha: width multiplier, filters rounded to 8; the last convolution has at least 1280.

    padding: 'same' (TensorFlow), 'keras' (the same here: Keras' correct_pad equals it at every size), or 'torch'.
    """
    net = Blocks(
        input_shape=input_shape, alpha=alpha, activation=activation, batch_norm=batch_norm, use_bias=use_bias, epsilon=epsilon,
        momentum=momentum, padding="same" if padding == "keras" else padding,
    )  # fmt: skip
    channels = divisible_by_8(32 * alpha)
    net.begin("Conv1")
    net.conv("Conv1", channels, 3, 2, "bn_Conv1", "Conv1_relu")
    block = 0
    for expansion, filters, repeats, first_stride in BLOCKS:
        filters = divisible_by_8(int(filters * alpha))
        for repeat in range(repeats):
            name = f"block_{block}" if block else "expanded_conv"
            stride = first_stride if repeat == 0 else 1
            before = net.last
            net.begin(name)
            if expansion > 1:
                net.conv(f"{name}_expand", channels * expansion, 1, 1, f"{name}_expand_BN", f"{name}_expand_relu")
            net.depthwise(f"{name}_depthwise", stride, f"{name}_depthwise_BN", f"{name}_depthwise_relu")
            net.conv(f"{name}_project", filters, 1, 1, f"{name}_project_BN")
            if stride == 1 and filters == channels:
                net.add(f"{name}_add", Add(), before, net.last)
            channels, block = filters, block + 1
    net.begin("Conv_1")
    net.conv("Conv_1", divisible_by_8(1280 * alpha) if alpha > 1 else 1280, 1, 1, "Conv_1_bn", "out_relu")
    return net
