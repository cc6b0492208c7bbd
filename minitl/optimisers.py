"""How parameters move: SGD and AdamW, the learning rate over time, the rate by depth, the average of the weights.

In: gradients of a Graph, and its freeze mask, which every optimiser obeys: what is frozen, a whole layer or some channels of it, is
never touched, neither by gradient nor by momentum, weight decay or average. Out: new arrays in graph.params; old arrays are never
changed, so that a copy of references is a snapshot. Left out: losses and epochs (training.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from .graph import Graph
from .layers import Array, Params

Slots = dict[str, dict[tuple[str, str], Array]]
"""{name of a slot: {(node, parameter): array}}: what an optimiser remembers, such as 'velocity'."""


class Optimiser:
    """What both share: the loop over what may be touched. factors: {node: its share of the rate}, 1 where absent."""

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, graph: Graph, decay: float, factors: Mapping[str, float] | None = None) -> None:
        self.graph, self.decay, self.factors = graph, decay, dict(factors or {})
        self.slots: Slots = {name: {} for name in self.names}
        self.steps = 0

    def step(self, grads: dict[str, Params], rate: float) -> None:
        """Move every unfrozen parameter once. New arrays replace old ones; nobody else's arrays change."""
        self.steps += 1
        for node, name, mask in self.graph.trainable():
            if node not in grads:  # nothing reads it, so the loss does not depend on it
                continue
            p, g = self.graph.params[node][name], grads[node][name]
            decay = self.decay if name == "kernel" else 0.0
            known = [self.slots[slot].get((node, name)) for slot in self.names]
            old = [np.zeros_like(p) if value is None else value for value in known]
            moved, new = self.move(p, g, old, rate * self.factors.get(node, 1.0), decay)
            whole = mask is True
            for slot, value in zip(self.names, new, strict=True):
                self.slots[slot][node, name] = value if whole else np.where(mask, value, 0)
            self.graph.params[node][name] = moved if whole else np.where(mask, moved, p)

    def move(self, p: Array, g: Array, old: Sequence[Array], rate: float, decay: float) -> tuple[Array, tuple[Array, ...]]:
        """-> the new parameter, and what to remember of it."""
        raise AssertionError(f"{type(self).__name__} does not move")


class SGD(Optimiser):
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013) and weight decay on kernels.

    v = momentum * v + g        p = p - rate * (g + momentum * v)
    """

    names = ("velocity",)

    def __init__(self, graph: Graph, momentum: float, decay: float, factors: Mapping[str, float] | None = None) -> None:
        super().__init__(graph, decay, factors)
        self.momentum = momentum

    def move(self, p: Array, g: Array, old: Sequence[Array], rate: float, decay: float) -> tuple[Array, tuple[Array, ...]]:
        """See the head of the class."""
        if decay:
            g = g + p.dtype.type(decay) * p
        v = old[0] * p.dtype.type(self.momentum) + g
        return p - p.dtype.type(rate) * (g + p.dtype.type(self.momentum) * v), (v,)


class AdamW(Optimiser):
    """Adam (Kingma and Ba 2015) with the decay of kernels apart from the gradient (Loshchilov and Hutter 2019, arXiv:1711.05101).

    m = b1 * m + (1 - b1) * g      v = b2 * v + (1 - b2) * g^2      p = p - rate * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + e) + decay * p)
    """

    names = ("mean", "square")
    b1, b2, epsilon = 0.9, 0.999, 1e-8

    def move(self, p: Array, g: Array, old: Sequence[Array], rate: float, decay: float) -> tuple[Array, tuple[Array, ...]]:
        """See the head of the class."""
        real = p.dtype.type
        m = real(self.b1) * old[0] + real(1 - self.b1) * g
        v = real(self.b2) * old[1] + real(1 - self.b2) * g * g
        direction = m * real(1 / (1 - self.b1**self.steps)) / (np.sqrt(v * real(1 / (1 - self.b2**self.steps))) + real(self.epsilon))
        return p - real(rate) * (direction + real(decay) * p), (m, v)


def schedule(done: float, warmup: float, step: float = 0.0) -> float:
    """The share of the rate after `done` (0..1) of all steps: a line up to 1 for the first `warmup` (0..1), then half a cosine to 0.

    step: one step's share of all, so that the very first does not stand still.

    Loshchilov and Hutter 2017, arXiv:1608.03983; the line: Goyal et al. 2017, arXiv:1706.02677.
    """
    if done < warmup:
        return min((done + step) / warmup, 1.0)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


class Average:
    """Exponential moving average of all that trains, statistics of BatchNorm included (Polyak and Juditsky 1992).

    keep: share of the old average that a step keeps, less in the first steps: min(keep, (1 + t) / (10 + t)).
    """

    def __init__(self, graph: Graph, keep: float) -> None:
        self.graph, self.keep, self.steps = graph, keep, 0
        nodes = dict.fromkeys(node for node, _, _ in graph.trainable())
        self.params: dict[str, Params] = {node: dict(graph.params[node]) for node in nodes}

    def step(self) -> None:
        """Take in the parameters of now."""
        self.steps += 1
        keep = min(self.keep, (1 + self.steps) / (10 + self.steps))
        for node, params in self.params.items():
            for name, new in self.graph.params[node].items():
                if new is not params[name]:
                    blend = params[name] * new.dtype.type(keep) + new * new.dtype.type(1 - keep)
                    params[name] = np.where(new == params[name], new, blend)  # what is frozen stays, to the last bit
