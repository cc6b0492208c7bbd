"""What the lists of nodes share: a list that grows node by node, with the choices that hold for a whole network.

In: choices (BatchNorm or folded, activation, padding rule, ...), checked here since they may come from a file. Out: nodes for a Graph.
"""

from __future__ import annotations

import reprlib
from typing import Any

from ..errors import MinitlError
from ..graph import INPUT, Graph, Node
from ..layers import BatchNorm, Conv2D, Dense, DepthwiseConv2D, Dropout, GlobalAveragePool, Layer, ReLU, ReLU6

PADDINGS = ("same", "keras", "torch")
ACTIVATIONS: dict[str, type[Layer]] = {"relu6": ReLU6, "relu": ReLU}
LARGEST_SIZE, LARGEST_ALPHA, MOST_CLASSES = 4096, 4.0, 100_000
MOST_HIDDEN, MOST_UNITS = 4, 4096


class Blocks:
    """Nodes in order, each reading the one before it unless told otherwise.

    batch_norm: convolutions are followed by a BatchNorm; False: it is folded into them, and they have a bias.
    use_bias: convolutions have a bias although a BatchNorm follows (MLPerf Tiny's networks do).
    """

    def __init__(
        self,
        *,
        input_shape: Any,
        alpha: Any,
        classes: Any,
        activation: Any,
        batch_norm: Any,
        use_bias: Any,
        epsilon: Any,
        momentum: Any,
        padding: Any,
        dropout: Any,
        hidden: Any,
    ) -> None:
        def check(name: str, value: Any, good: bool, expected: str) -> None:
            if not good:
                raise MinitlError(f"argument {name} of the network must be {expected}, found {reprlib.repr(value)}")

        def number(value: Any, low: float, high: float) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

        shape = list(input_shape) if isinstance(input_shape, (list, tuple)) else []
        whole = len(shape) == 3 and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
        check(
            "input_shape",
            input_shape,
            whole and all(32 <= n <= LARGEST_SIZE for n in shape[:2]) and 1 <= shape[2] <= 64,
            f"[height, width, channels] with 32 to {LARGEST_SIZE} pixels and 1 to 64 channels",
        )
        check("alpha", alpha, number(alpha, 0.05, LARGEST_ALPHA), f"a width multiplier between 0.05 and {LARGEST_ALPHA}")
        check("classes", classes, classes is None or (type(classes) is int and 1 <= classes <= MOST_CLASSES), "null or a number of classes")
        check("activation", activation, activation in list(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}")
        check("batch_norm", batch_norm, isinstance(batch_norm, bool), "true or false")
        check("use_bias", use_bias, isinstance(use_bias, bool), "true or false")
        check("epsilon", epsilon, number(epsilon, 1e-12, 1), "between 1e-12 and 1")
        check("momentum", momentum, number(momentum, 0, 1), "between 0 and 1")
        check("padding", padding, padding in list(PADDINGS), f"one of {', '.join(PADDINGS)}")
        check("dropout", dropout, number(dropout, 0, 0.99), "between 0 and 0.99")
        units = list(hidden) if isinstance(hidden, (list, tuple)) else [0]
        check(
            "hidden",
            hidden,
            len(units) <= MOST_HIDDEN and all(type(n) is int and 1 <= n <= MOST_UNITS for n in units),
            f"a list of at most {MOST_HIDDEN} layers with 1 to {MOST_UNITS} units each",
        )
        self.input_shape, self.hidden = tuple(shape), units
        self.classes, self.batch_norm, self.padding, self.dropout = classes, batch_norm, padding, dropout
        self.activation = ACTIVATIONS[activation]
        self.use_bias = use_bias or not batch_norm
        self.epsilon, self.momentum = float(epsilon), float(momentum)
        self.nodes: list[Node] = []
        self.feature: str | None = None
        self.starts: dict[str, int] = {}

    def begin(self, block: str) -> None:
        """What follows belongs to this block: a unit that is unfrozen as a whole, see architectures.blocks."""
        self.starts[block] = len(self.nodes)

    def graph(self) -> Graph:
        """The graph of the nodes listed so far."""
        return Graph(self.nodes, self.input_shape)

    @property
    def last(self) -> str:
        """Name of the node added last."""
        return self.nodes[-1].name if self.nodes else INPUT

    def add(self, name: str, layer: Layer, *inputs: str) -> str:
        """Append a node that reads `inputs` (default: the last node). Returns its name."""
        self.nodes.append(Node(name, layer, inputs or (self.last,)))
        return name

    def conv(self, name: str, filters: int, window: int, stride: int, norm: str, activation: str | None, padding: str | None = None) -> str:
        """Convolution, BatchNorm called `norm` (unless folded), activation called `activation` (unless None)."""
        layer = Conv2D((window, window), (stride, stride), padding or self.padding, filters, self.use_bias)
        return self._normalised(name, layer, norm, activation)

    def depthwise(self, name: str, stride: int, norm: str, activation: str) -> str:
        """Depthwise 3x3 convolution, BatchNorm, activation."""
        return self._normalised(name, DepthwiseConv2D((3, 3), (stride, stride), self.padding, self.use_bias), norm, activation)

    def _normalised(self, name: str, layer: Layer, norm: str, activation: str | None) -> str:
        self.add(name, layer)
        if self.batch_norm:
            self.add(norm, BatchNorm(self.epsilon, self.momentum))
        if activation:
            self.add(activation, self.activation())
        return self.last

    def classifier(self, name: str) -> Blocks:
        """Global average pool, the features; then, unless there are no classes, Dropout, the hidden layers, and a Dense layer to logits.

        A hidden layer is Dense, ReLU and Dropout: hidden_1, hidden_1_relu, hidden_1_dropout.
        """
        self.begin("classifier")
        self.feature = self.add("global_average_pooling2d", GlobalAveragePool())
        if self.classes is not None:
            self.add("dropout", Dropout(float(self.dropout)))
            for i, units in enumerate(self.hidden, start=1):
                self.add(f"hidden_{i}", Dense(units))
                self.add(f"hidden_{i}_relu", ReLU())
                self.add(f"hidden_{i}_dropout", Dropout(float(self.dropout)))
            self.add(name, Dense(self.classes))
        return self
