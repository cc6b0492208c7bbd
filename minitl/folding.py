"""A trained graph -> an equal one that is faster to run: no BatchNorm, no Dropout.

While a network is only used, a BatchNorm is a fixed scale and shift per channel, and disappears into the convolution before it
(Jacob et al. 2017, arXiv:1712.05877, section 3.2):

    kernel' = kernel * s        bias' = (bias - mean) * s + beta        s = gamma / sqrt(variance + epsilon)

In: a Graph with parameters. Out: another Graph, nothing shared is changed. Nodes keep their names; those that vanish are replaced by
what they read. fold() does it to a whole network, fold_to() to what some values need. Left out: activations, which stay
nodes of their own until quantize.py turns them into a clamp.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .graph import INPUT, Graph, Node
from .layers import BatchNorm, Conv2D, Dense, DepthwiseConv2D, Dropout, Params

Foldable = Conv2D | DepthwiseConv2D | Dense


def fold(graph: Graph) -> Graph:
    """The same function of the image, in fewer nodes. A BatchNorm without a convolution to fold into becomes a 1x1 depthwise one."""
    folded, names = _folded(graph, [graph.output])
    assert folded.output == names[graph.output], "the output of a graph is its last node"
    return folded


class Folded(NamedTuple):
    """The nodes that some values need, folded. names: {value: the node of `graph` that has it}."""

    graph: Graph
    names: dict[str, str]


def fold_to(graph: Graph, wanted: Iterable[str], start: str = INPUT) -> Folded:
    """What computes the values of these nodes, folded; equal up to rounding. From images, or from values of the node `start`.

    At graph.border() it is the frozen part.
    """
    wanted = list(wanted)
    nodes = graph.ancestors(set(wanted), {start})
    moved = [replace(node, inputs=tuple(INPUT if name == start else name for name in node.inputs)) for node in nodes]
    part = Graph(moved, graph.shapes[start])
    part.params = graph.params
    return Folded(*_folded(part, [INPUT if name == start else name for name in wanted]))


def _folded(graph: Graph, wanted: Iterable[str]) -> tuple[Graph, dict[str, str]]:
    """Fold, but keep the values of the wanted nodes: -> the folded graph, {wanted: the node of it that has this value}."""
    graph, without = _without_dropout(graph)
    names = {name: without.get(name, name) for name in wanted}
    readers = count_readers(graph, names.values())
    nodes: dict[str, Node] = {}
    params: dict[str, Params] = {}
    alias: dict[str, str] = {}  # vanished node -> the node that now has its value
    for node in graph.nodes:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        of_node = graph.params.get(node.name, {})
        if isinstance(node.layer, BatchNorm):
            scale = node.layer.gamma(of_node) / np.sqrt(of_node["moving_variance"] + of_node["beta"].dtype.type(node.layer.epsilon))
            producer = nodes.get(inputs[0])
            if producer is not None and isinstance(producer.layer, Foldable) and readers[node.inputs[0]] == 1:
                before = params[producer.name]
                bias = (before.get("bias", 0) - of_node["moving_mean"]) * scale + of_node["beta"]
                nodes[producer.name] = replace(producer, layer=replace(producer.layer, use_bias=True))
                params[producer.name] = {"kernel": before["kernel"] * scale, "bias": bias}
                alias[node.name] = producer.name
            elif len(graph.shapes[node.inputs[0]]) == 1:  # of a vector, behind something else than a Dense: it stays what it is
                nodes[node.name] = replace(node, inputs=inputs)
                params[node.name] = of_node
            else:
                nodes[node.name] = Node(node.name, DepthwiseConv2D((1, 1), (1, 1), "valid", use_bias=True), inputs)
                params[node.name] = {"kernel": scale[None, None], "bias": of_node["beta"] - of_node["moving_mean"] * scale}
        else:
            nodes[node.name] = replace(node, inputs=inputs)
            if of_node:
                params[node.name] = of_node
    folded = Graph(nodes.values(), graph.input_shape)
    folded.params = params
    return folded, {name: alias.get(at, at) for name, at in names.items()}


def _without_dropout(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Whoever read a Dropout reads what it read; done first, so that readers are counted right. -> the graph, {Dropout: what it read}."""
    alias: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        if isinstance(node.layer, Dropout):
            alias[node.name] = inputs[0]
        else:
            nodes.append(replace(node, inputs=inputs))
    copy = Graph(nodes, graph.input_shape)
    copy.params = graph.params
    return copy, alias


def count_readers(graph: Graph, wanted: Iterable[str] | None = None) -> dict[str, int]:
    """How many inputs read each value; the wanted ones (default: the output) have one reader more each, the user."""
    readers = dict.fromkeys(graph.shapes, 0)
    for node in graph.nodes:
        for name in node.inputs:
            readers[name] += 1
    for name in [graph.output] if wanted is None else wanted:
        readers[name] += 1
    return readers
