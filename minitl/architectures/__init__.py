"""Networks by name: a registry of functions that list nodes, one file per network.

In: a name and its arguments, all of them plain JSON values, since they travel inside a weights file and may be hostile. Out: a Graph
without parameters. To add a network, write one file with one function that returns the Blocks of its backbone, and name it in
ARCHITECTURES; every network has the arguments of Blocks.head beside its own: classes, dropout, hidden, cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import MinitlError
from ..graph import Graph
from .blocks import Blocks
from .inception_v3 import inception_v3
from .mobilenet_v1 import mobilenet_v1
from .mobilenet_v2 import mobilenet_v2
from .resnet18 import resnet18
from .vgg16 import vgg16

ARCHITECTURES: dict[str, Callable[..., Blocks]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "vgg16": vgg16,
    "inception_v3": inception_v3,
    "resnet18": resnet18,
}
HEAD = list(inspect.signature(Blocks.head).parameters.values())[1:]


def build(architecture: str, /, **arguments: Any) -> Graph:
    """The network of that name; arguments as in its file and of Blocks.head. Raises MinitlError for an unknown name or a bad argument."""
    net = _blocks(architecture, arguments)
    return Graph(net.nodes, net.input_shape)


def feature_node(architecture: str, /, **arguments: Any) -> str:
    """Name of the node whose value (N, C) is what a classifier reads."""
    return _blocks(architecture, arguments).feature


def blocks(architecture: str, /, **arguments: Any) -> dict[str, list[str]]:
    """{block: names of its nodes} from the image up; the last one, 'classifier', begins with the features if they are pooled for it."""
    return {name: [node.name for node in nodes] for name, nodes in _blocks(architecture, arguments).blocks.items()}


def complete(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the defaults filled in: what a weights file records, so that a later default cannot change a network.

    `cut` only where it is used.
    """
    bound = _signature(architecture, arguments).bind(**arguments)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name != "cut" or value is not None}


def parameters(architecture: str) -> list[str]:
    """Names of the arguments that a network takes."""
    return list(_signature(architecture, {}).parameters)


def _find(architecture: str) -> Callable[..., Blocks]:
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise MinitlError(f"network {architecture!r} is unknown; minitl has {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture]


def _signature(architecture: str, arguments: dict[str, Any]) -> inspect.Signature:
    """The arguments that the network takes, after a check that these are among them."""
    own = inspect.signature(_find(architecture)).parameters.values()
    signature = inspect.Signature([*own, *HEAD])
    if unknown := sorted(set(arguments) - set(signature.parameters)):
        raise MinitlError(f"{architecture} has no argument {unknown[0]!r}; it has {', '.join(signature.parameters)}")
    return signature


def _blocks(architecture: str, arguments: dict[str, Any]) -> Blocks:
    _signature(architecture, arguments)
    of_head = {name: value for name, value in arguments.items() if name in (part.name for part in HEAD)}
    return _find(architecture)(**{name: value for name, value in arguments.items() if name not in of_head}).head(**of_head)
