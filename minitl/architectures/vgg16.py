"""VGG16 (Simonyan and Zisserman 2014, arXiv:1409.1556, configuration D): 3x3 convolutions and max pools, nothing else.

Out: nodes under Keras' names (block1_conv1, ..., block5_pool; fc1, fc2, predictions). Keras lists a convolution with its ReLU as one layer;
here the ReLU is a node of its own, block1_conv1_relu.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..layers import Flatten, MaxPool
from .blocks import Blocks, check

BLOCKS = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]  # (filters at alpha 1, convolutions)
UNITS = 4096


def vgg16(alpha: float = 1.0, input_shape: Sequence[int] = (224, 224, 3), top: bool = False) -> Blocks:
    """alpha: width multiplier of all layers.

    top: flatten, fc1 and fc2 belong to the backbone, as in the published classifier, and a classifier reads fc2; they hold 120 of 138
    million parameters. Otherwise it reads the global average of block5_pool.
    """
    check("top", top, isinstance(top, bool), "true or false")
    net = Blocks(input_shape=input_shape, alpha=alpha, activation="relu")
    for block, (filters, convolutions) in enumerate(BLOCKS, start=1):
        net.begin(f"block{block}")
        for i in range(1, convolutions + 1):
            net.conv(f"block{block}_conv{i}", net.width(filters), 3, activation=f"block{block}_conv{i}_relu")
        net.add(f"block{block}_pool", MaxPool((2, 2), (2, 2), "valid"))
    if top:
        net.begin("top")
        net.add("flatten", Flatten())
        for name in ("fc1", "fc2"):
            net.dense(name, net.width(UNITS))
    return net
