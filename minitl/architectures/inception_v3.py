"""InceptionV3 (Szegedy et al. 2015, arXiv:1512.00567): branches of convolutions side by side, joined in mixed0 ... mixed10.

Out: nodes under the names that Keras gives in a fresh session (conv2d, batch_normalization, activation, conv2d_1, ...). BatchNorms have no
gamma there. The smallest image is 75x75. Left out: the auxiliary classifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..graph import INPUT
from ..layers import AveragePool, Concat, MaxPool
from .blocks import Blocks

Window = int | tuple[int, int]
Unit = tuple[int, Window] | tuple[int, Window, int]  # filters at alpha 1, window, stride; what strides is not padded


def inception_v3(
    alpha: float = 1.0,
    input_shape: Sequence[int] = (299, 299, 3),
    batch_norm: bool = True,
    epsilon: float = 1e-3,
    momentum: float = 0.99,
) -> Blocks:
    """alpha: width multiplier of all layers."""
    net = Blocks(
        input_shape=input_shape, alpha=alpha, activation="relu", batch_norm=batch_norm, scale=False, epsilon=epsilon, momentum=momentum
    )
    counts: Counter[str] = Counter()

    def numbered(kind: str) -> str:
        """conv2d, conv2d_1, conv2d_2, ..."""
        counts[kind] += 1
        return f"{kind}_{counts[kind] - 1}" if counts[kind] > 1 else kind

    def unit(source: str, filters: int, window: Window, stride: int = 1, padding: str | None = None) -> str:
        conv, norm, activation = (numbered(kind) for kind in ("conv2d", "batch_normalization", "activation"))
        return net.conv(conv, net.width(filters), window, stride, norm, activation, padding or ("valid" if stride > 1 else "same"), source)

    def branch(source: str, units: Sequence[Unit]) -> str:
        for one in units:
            source = unit(source, *one)
        return source

    def max_pool(source: str) -> str:
        return net.add(numbered("max_pooling2d"), MaxPool((3, 3), (2, 2), "valid"), source)

    def mean_pool(source: str) -> str:
        return net.add(numbered("average_pooling2d"), AveragePool((3, 3), (1, 1), "same"), source)

    def mixed(number: int, *branches: Sequence[Unit], pooled: int = 0) -> None:
        """Branches side by side, the last of them a pool: average and a 1x1 convolution of `pooled` filters, or maximum."""
        source = net.last
        net.begin(f"mixed{number}")
        ends = [branch(source, units) for units in branches]
        ends.append(unit(mean_pool(source), pooled, 1) if pooled else max_pool(source))
        net.add(f"mixed{number}", Concat(), *ends)

    def fork(source: str, name: str) -> str:
        """A row and a column side by side instead of a 3x3."""
        return net.add(name, Concat(), unit(source, 384, (1, 3)), unit(source, 384, (3, 1)))

    net.begin("stem")
    unit(INPUT, 32, 3, 2)
    unit(net.last, 32, 3, 1, "valid")
    unit(net.last, 64, 3)
    max_pool(net.last)
    unit(net.last, 80, 1)
    unit(net.last, 192, 3, 1, "valid")
    max_pool(net.last)
    for i, pooled in enumerate((32, 64, 64)):
        mixed(i, [(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)], pooled=pooled)
    mixed(3, [(384, 3, 2)], [(64, 1), (96, 3), (96, 3, 2)])
    for i, c in enumerate((128, 160, 160, 192), start=4):
        row, column = (c, (1, 7)), (c, (7, 1))
        mixed(i, [(192, 1)], [(c, 1), row, (192, (7, 1))], [(c, 1), column, row, column, (192, (1, 7))], pooled=192)
    mixed(8, [(192, 1), (320, 3, 2)], [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)])
    for i in (0, 1):
        source = net.last
        net.begin(f"mixed{9 + i}")
        ends = [unit(source, 320, 1), fork(unit(source, 384, 1), f"mixed9_{i}")]
        ends.append(fork(branch(source, [(448, 1), (384, 3)]), numbered("concatenate")))
        ends.append(unit(mean_pool(source), 192, 1))
        net.add(f"mixed{9 + i}", Concat(), *ends)
    net.pool = "avg_pool"
    return net
