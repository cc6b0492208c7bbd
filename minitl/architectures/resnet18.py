"""ResNet18 (He et al. 2015, arXiv:1512.03385, table 1): two 3x3 convolutions at a time, and what they read added to what they give.

Out: nodes named as in torchvision, with '_' for '.': conv1, bn1, layer1_0_conv1, ..., layer2_0_downsample_0, fc. Padding, and BatchNorm's
epsilon and momentum (in our convention), are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..layers import Add, MaxPool, ReLU
from .blocks import Blocks

STAGES = [(64, 1), (128, 2), (256, 2), (512, 2)]  # (filters at alpha 1, stride of the first block); two blocks each


def resnet18(
    alpha: float = 1.0,
    input_shape: Sequence[int] = (224, 224, 3),
    batch_norm: bool = True,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> Blocks:
    """alpha: width multiplier of all layers."""
    net = Blocks(
        input_shape=input_shape, alpha=alpha, activation="relu", batch_norm=batch_norm, epsilon=epsilon, momentum=momentum, padding="torch"
    )
    net.begin("stem")
    net.conv("conv1", net.width(64), 7, 2, "bn1", "relu")
    before, channels = net.add("maxpool", MaxPool((3, 3), (2, 2), "torch")), 64
    for stage, (filters, first_stride) in enumerate(STAGES, start=1):
        for i, stride in enumerate((first_stride, 1)):
            name, width = f"layer{stage}_{i}", net.width(filters)
            net.begin(name)
            net.conv(f"{name}_conv1", width, 3, stride, f"{name}_bn1", f"{name}_relu1", source=before)
            ours = net.conv(f"{name}_conv2", width, 3, 1, f"{name}_bn2")
            if stride > 1 or filters != channels:
                before = net.conv(f"{name}_downsample_0", width, 1, stride, f"{name}_downsample_1", source=before)
            net.add(f"{name}_add", Add(), before, ours)
            before, channels = net.add(f"{name}_relu", ReLU()), filters
    net.classifier = "fc"
    return net
