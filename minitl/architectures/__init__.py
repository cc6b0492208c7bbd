"""Networks by name: a registry of functions that list nodes, one file per network.

In: a name and its arguments, all of them plain JSON values, since they travel inside a weights file and may be hostile. Out: a Graph
without parameters. To add a network, write one file with one function that returns its Blocks, and name it in ARCHITECTURES.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import MinitlError
from ..graph import Graph
from .blocks import Blocks
from .mobilenet_v1 import mobilenet_v1
from .mobilenet_v2 import mobilenet_v2

ARCHITECTURES: dict[str, Callable[..., Blocks]] = {"mobilenet_v1": mobilenet_v1, "mobilenet_v2": mobilenet_v2}


def build(architecture: str, /, **arguments: Any) -> Graph:
    """The network of that name; arguments as in its file. Raises MinitlError for an unknown name or a bad argument."""
    return _blocks(architecture, arguments).graph()


def feature_node(architecture: str, /, **arguments: Any) -> str:
    """Name of the node whose value (N, C) is what a classifier reads."""
    feature = _blocks(architecture, arguments).feature
    assert feature is not None
    return feature


def blocks(architecture: str, /, **arguments: Any) -> dict[str, list[str]]:
    """{block: names of its nodes} from the image up; the last one, 'classifier', begins with the features."""
    net = _blocks(architecture, arguments)
    ends = [*list(net.starts.values())[1:], len(net.nodes)]
    return {name: [node.name for node in net.nodes[start:end]] for (name, start), end in zip(net.starts.items(), ends, strict=True)}


def complete(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the defaults filled in: what a weights file records, so that a later default cannot change a network."""
    bound = _signature(architecture, arguments).bind(**arguments)
    bound.apply_defaults()
    return dict(bound.arguments)


def _find(architecture: str) -> Callable[..., Blocks]:
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise MinitlError(f"network {architecture!r} is unknown; minitl has {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture]


def _signature(architecture: str, arguments: dict[str, Any]) -> inspect.Signature:
    """The arguments that the network takes, after a check that these are among them."""
    signature = inspect.signature(_find(architecture))
    if unknown := sorted(set(arguments) - set(signature.parameters)):
        raise MinitlError(f"{architecture} has no argument {unknown[0]!r}; it has {', '.join(signature.parameters)}")
    return signature


def _blocks(architecture: str, arguments: dict[str, Any]) -> Blocks:
    _signature(architecture, arguments)
    return _find(architecture)(**arguments)
