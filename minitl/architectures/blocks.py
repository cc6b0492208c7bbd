"""What the lists of nodes share: a list that grows node by node, with the choices that hold for a whole network, and the classifier.

In: choices (width, BatchNorm or folded, activation, padding rule, ...), checked here since they may come from a file. Out: nodes for a
Graph, in blocks. A network's file adds the nodes of its backbone; `head` ends it, or a part of it, in a classifier.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

from ..errors import MinitlError
from ..graph import INPUT, Graph, Node
from ..layers import BatchNorm, Conv2D, Dense, DepthwiseConv2D, Dropout, GlobalAveragePool, Layer, ReLU, ReLU6

PADDINGS = ("same", "keras", "torch")
ACTIVATIONS: dict[str, type[Layer]] = {"relu6": ReLU6, "relu": ReLU}
LARGEST_SIZE, LARGEST_ALPHA, MOST_CLASSES = 4096, 4.0, 100_000
MOST_HIDDEN, MOST_UNITS = 4, 4096


def check(name: str, value: Any, good: bool, expected: str) -> None:
    """MinitlError that names an argument of the network, unless it is good."""
    if not good:
        raise MinitlError(f"argument {name} of the network must be {expected}, found {reprlib.repr(value)}")


def number(value: Any, low: float, high: float) -> bool:
    """Whether a value from a file is a number in this range."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


class Blocks:
    """Nodes in order, each reading the one before it unless told otherwise.

    batch_norm: convolutions are followed by a BatchNorm where they name one; False: it is folded into them, and they have a bias.
    use_bias: convolutions have a bias although a BatchNorm follows (MLPerf Tiny's networks do). scale: BatchNorms have a gamma.
    """

    def __init__(
        self,
        *,
        input_shape: Any,
        alpha: Any,
        activation: Any,
        batch_norm: Any = True,
        use_bias: Any = False,
        scale: bool = True,
        epsilon: Any = 1e-3,
        momentum: Any = 0.99,
        padding: Any = "same",
    ) -> None:
        shape = list(input_shape) if isinstance(input_shape, (list, tuple)) else []
        whole = len(shape) == 3 and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
        check(
            "input_shape",
            input_shape,
            whole and all(32 <= n <= LARGEST_SIZE for n in shape[:2]) and 1 <= shape[2] <= 64,
            f"[height, width, channels] with 32 to {LARGEST_SIZE} pixels and 1 to 64 channels",
        )
        check("alpha", alpha, number(alpha, 0.05, LARGEST_ALPHA), f"a width multiplier between 0.05 and {LARGEST_ALPHA}")
        check("activation", activation, activation in list(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}")
        check("batch_norm", batch_norm, isinstance(batch_norm, bool), "true or false")
        check("use_bias", use_bias, isinstance(use_bias, bool), "true or false")
        check("epsilon", epsilon, number(epsilon, 1e-12, 1), "between 1e-12 and 1")
        check("momentum", momentum, number(momentum, 0, 1), "between 0 and 1")
        check("padding", padding, padding in list(PADDINGS), f"one of {', '.join(PADDINGS)}")
        self.input_shape, self.alpha, self.padding, self.batch_norm = tuple(shape), alpha, padding, batch_norm
        self.activation, self.use_bias = ACTIVATIONS[activation], use_bias
        self.norm = BatchNorm(float(epsilon), float(momentum), scale=scale)
        self.blocks: dict[str, list[Node]] = {}
        self.joined: dict[str, str] = {}
        self.feature, self.pool, self.classifier = "", "global_average_pooling2d", "predictions"

    # ---- the backbone

    def begin(self, block: str) -> None:
        """What follows belongs to this block: a unit that is unfrozen as a whole, see architectures.blocks."""
        self.blocks[block] = []

    @property
    def nodes(self) -> list[Node]:
        """All nodes so far."""
        return [node for block in self.blocks.values() for node in block]

    @property
    def last(self) -> str:
        """Name of the node added last."""
        return next((block[-1].name for block in reversed(self.blocks.values()) if block), INPUT)

    def width(self, filters: int) -> int:
        """So many filters times alpha, not rounded to 8."""
        return max(int(filters * self.alpha), 1)

    def add(self, name: str, layer: Layer, *inputs: str) -> str:
        """Append a node that reads `inputs` (default: the last node). Returns its name."""
        node = Node(name, layer, inputs or (self.last,))
        next(reversed(self.blocks.values())).append(node)
        return name

    def conv(
        self, name: str, filters: int, window: int | tuple[int, int], stride: int = 1, norm: str | None = None,
        activation: str | None = None, padding: str | None = None, source: str | None = None,
    ) -> str:  # fmt: skip
        """Convolution of `source`, BatchNorm called `norm` (unless folded, or None), activation called `activation` (unless None)."""
        window = (window, window) if isinstance(window, int) else window
        biased = self.use_bias or norm is None or not self.batch_norm
        return self._normalised(name, Conv2D(window, (stride, stride), padding or self.padding, filters, biased), norm, activation, source)

    def depthwise(self, name: str, stride: int, norm: str, activation: str) -> str:
        """Depthwise 3x3 convolution, BatchNorm, activation."""
        biased = self.use_bias or not self.batch_norm
        return self._normalised(name, DepthwiseConv2D((3, 3), (stride, stride), self.padding, biased), norm, activation, None)

    def dense(self, name: str, units: int) -> str:
        """Dense layer and activation, one layer for Keras."""
        return self._normalised(name, Dense(units), None, f"{name}_relu", None)

    def _normalised(self, name: str, layer: Layer, norm: str | None, activation: str | None, source: str | None) -> str:
        self.add(name, layer, *([source] if source else []))
        if norm and self.batch_norm:
            self.add(norm, self.norm)
        if activation:
            self.add(activation, self.activation())
            if norm is None:
                self.joined[name] = activation  # what Keras lists as one layer
        return self.last

    # ---- the end

    def head(self, classes: Any = 1000, dropout: Any = 0.0, hidden: Any = (), cut: Any = None) -> Blocks:
        """End here, or at the layer `cut`, in features, which are the global average of an image; then, where there are classes, classify.

        That is: Dropout, the hidden layers, and a Dense layer to logits. A hidden layer is Dense, ReLU and Dropout: hidden_1,
        hidden_1_relu, hidden_1_dropout. Of a layer that Keras lists with its activation, both are meant.
        """
        units: Sequence[Any] = hidden if isinstance(hidden, (list, tuple)) else [0]
        check("classes", classes, classes is None or (type(classes) is int and 1 <= classes <= MOST_CLASSES), "null or a number of classes")
        check("dropout", dropout, number(dropout, 0, 0.99), "between 0 and 0.99")
        fine = len(units) <= MOST_HIDDEN and all(type(n) is int and 1 <= n <= MOST_UNITS for n in units)
        check("hidden", hidden, fine, f"a list of at most {MOST_HIDDEN} layers with 1 to {MOST_UNITS} units each")
        check("cut", cut, cut is None or isinstance(cut, str), "null or the name of a layer")
        if cut not in (None, self.pool):
            self._cut(self.joined.get(cut, cut))
        self.feature = self.last
        flat = len(Graph(self.nodes, self.input_shape).shapes[self.feature]) == 1
        self.begin("classifier")
        if not flat:
            self.feature = self.add(self.pool, GlobalAveragePool())
        if classes is not None:
            self.add("dropout", Dropout(float(dropout)), self.feature)
            for i, count in enumerate(units, start=1):
                self.add(f"hidden_{i}", Dense(count))
                self.add(f"hidden_{i}_relu", ReLU())
                self.add(f"hidden_{i}_dropout", Dropout(float(dropout)))
            self.add(self.classifier, Dense(classes))
        return self

    def _cut(self, name: str) -> None:
        """Keep what this layer needs. Raises MinitlError, with suggestions, where there is none of that name."""
        graph = Graph(self.nodes, self.input_shape)
        graph[name]
        kept = {node.name for node in graph.ancestors({name}, {INPUT})}
        parts = {block: [node for node in nodes if node.name in kept] for block, nodes in self.blocks.items()}
        self.blocks = {block: nodes for block, nodes in parts.items() if nodes}
