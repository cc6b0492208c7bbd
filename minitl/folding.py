"""A trained graph -> an equal one that is faster to run: no BatchNorm, no Dropout.

While a network is only used, a BatchNorm is a fixed scale and shift per channel, and disappears into the convolution before it
(Jacob et al. 2017, arXiv:1712.05877, section 3.2):

    kernel' = kernel * s        bias' = (bias - mean) * s + beta        s = gamma / sqrt(variance + epsilon)

In: a Graph with parameters. Out: another Graph, nothing shared is changed. Nodes keep their names; those that vanish are replaced by
what they read. Left out: activations, which stay nodes of their own until quantize.py turns them into a clamp.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .graph import Graph, Node
from .layers import BatchNorm, Conv2D, Dense, DepthwiseConv2D, Dropout, Params

Foldable = Conv2D | DepthwiseConv2D | Dense


def fold(graph: Graph) -> Graph:
    """The same function of the image, in fewer nodes. A BatchNorm without a convolution to fold into becomes a 1x1 depthwise one."""
    graph = _without_dropout(graph)
    readers = count_readers(graph)
    nodes: dict[str, Node] = {}
    params: dict[str, Params] = {}
    alias: dict[str, str] = {}  # vanished node -> the node that now has its value
    for node in graph.nodes:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        of_node = graph.params.get(node.name, {})
        if isinstance(node.layer, BatchNorm):
            scale = of_node["gamma"] / np.sqrt(of_node["moving_variance"] + of_node["gamma"].dtype.type(node.layer.epsilon))
            producer = nodes.get(inputs[0])
            if producer is not None and isinstance(producer.layer, Foldable) and readers[node.inputs[0]] == 1:
                before = params[producer.name]
                bias = (before.get("bias", 0) - of_node["moving_mean"]) * scale + of_node["beta"]
                nodes[producer.name] = replace(producer, layer=replace(producer.layer, use_bias=True))
                params[producer.name] = {"kernel": before["kernel"] * scale, "bias": bias}
                alias[node.name] = producer.name
            else:
                nodes[node.name] = Node(node.name, DepthwiseConv2D((1, 1), (1, 1), "valid", use_bias=True), inputs)
                params[node.name] = {"kernel": scale[None, None], "bias": of_node["beta"] - of_node["moving_mean"] * scale}
        else:
            nodes[node.name] = replace(node, inputs=inputs)
            if of_node:
                params[node.name] = of_node
    output = alias.get(graph.output, graph.output)
    assert list(nodes)[-1] == output, "the output of a graph is its last node"
    folded = Graph(nodes.values(), graph.input_shape)
    folded.params = params
    return folded


def _without_dropout(graph: Graph) -> Graph:
    """The same graph where whoever read a Dropout reads what the Dropout read; done first, so that readers are counted right."""
    alias: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        if isinstance(node.layer, Dropout):
            alias[node.name] = inputs[0]
        else:
            nodes.append(replace(node, inputs=inputs))
    assert nodes[-1].name == alias.get(graph.output, graph.output), "the output of a graph is its last node"
    copy = Graph(nodes, graph.input_shape)
    copy.params = graph.params
    return copy


def count_readers(graph: Graph) -> dict[str, int]:
    """How many inputs read each value; the output of the graph has one reader more, the user."""
    readers = dict.fromkeys(graph.shapes, 0)
    for node in graph.nodes:
        for name in node.inputs:
            readers[name] += 1
    readers[graph.output] += 1
    return readers
