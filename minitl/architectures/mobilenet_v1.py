"""MobileNetV1 (Howard et al. 2017, arXiv:1704.04861): depthwise 3x3 and pointwise 1x1 convolutions in turn.

Out: nodes under Keras' names (conv1, conv_dw_1, conv_pw_1, ...). Keras' classifier is a 1x1 convolution on a 1x1 image, conv_preds; here
it is the same numbers as a Dense layer of that name. Its zero padding layers are numbers inside of the convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

from .blocks import Blocks

# (filters of the pointwise convolution at alpha 1, stride of the depthwise one before it)
BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def mobilenet_v1(
    alpha: float = 1.0,
    input_shape: Sequence[int] = (224, 224, 3),
    activation: str = "relu6",
    batch_norm: bool = True,
    use_bias: bool = False,
    epsilon: float = 1e-3,
    momentum: float = 0.99,
    padding: str = "same",
) -> Blocks:
    """alpha: width multiplier; filters are int(alpha * filters), not rounded to 8.

    padding: 'same' (TensorFlow), 'keras' (differs at odd sizes: the stem is 'same', the rest not), 'torch'.
    """
    net = Blocks(
        input_shape=input_shape, alpha=alpha, activation=activation, batch_norm=batch_norm, use_bias=use_bias, epsilon=epsilon,
        momentum=momentum, padding=padding,
    )  # fmt: skip
    net.begin("conv1")
    net.conv("conv1", net.width(32), 3, 2, "conv1_bn", "conv1_relu", "same" if padding == "keras" else padding)
    for i, (filters, stride) in enumerate(BLOCKS, start=1):
        net.begin(f"block_{i}")
        net.depthwise(f"conv_dw_{i}", stride, f"conv_dw_{i}_bn", f"conv_dw_{i}_relu")
        net.conv(f"conv_pw_{i}", net.width(filters), 1, 1, f"conv_pw_{i}_bn", f"conv_pw_{i}_relu")
    net.classifier = "conv_preds"
    return net
