"""The arena: where each tensor of an integer graph lives while the network runs, known before anything is compiled.

In: an IntegerGraph. Out: a Plan of byte offsets into one block of memory and the size of that block, which is exact: nothing else is
allocated. The image and the logits are the caller's and not in it. A reshape is no copy: its tensors share one place.

Left out, for now: outputs written over their own inputs and the image inside the arena. Both are a matter of the lifetimes in
buffers(); place() would stay as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from .integer import IntegerGraph, Reshape

IMAGE, LOGITS, ARENA = "image", "logits", "arena"


@dataclass(frozen=True)
class Buffer:
    """Bytes that are needed from op number `first` to op number `last`, both included.

    tensors: the names that it holds, one after the other in time (a tensor and its reshapes).
    """

    tensors: tuple[str, ...]
    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at some moment, so that they may not overlap."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """where: tensor name -> (IMAGE | LOGITS | ARENA, byte offset). size: bytes of the arena. buffers: (buffer, offset) by birth."""

    where: dict[str, tuple[str, int]]
    size: int
    buffers: tuple[tuple[Buffer, int], ...]


def roots(graph: IntegerGraph) -> dict[str, str]:
    """Tensor name -> name of the tensor whose memory it shares; itself, except through reshapes."""
    root = {graph.input: graph.input}
    for op in graph.ops:
        root[op.output] = root[op.inputs[0]] if isinstance(op, Reshape) else op.output
    return root


def buffers(graph: IntegerGraph) -> list[Buffer]:
    """The arena's tenants: every tensor that is neither the image nor the logits, in order of birth.

    A residual lives until its Add, a tensor that nobody reads dies where it is born (it is still written).
    """
    root = roots(graph)
    born: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, op in enumerate(graph.ops):
        born.setdefault(root[op.output], i)
        for name in (*op.inputs, op.output):
            last[root[name]] = i
    outside = {root[graph.input], root[graph.output]}
    inside = [name for name in born if name not in outside]
    return [Buffer(tuple(n for n in root if root[n] == name), graph.tensors[name].size, born[name], last[name]) for name in inside]


def place(tenants: list[Buffer]) -> list[int]:
    """An offset for each buffer: the largest first, each at the lowest place that is free during its life.

    Greedy by size, as in Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference (2020): it meets the lower
    bound (the most bytes alive at one op) on chains and on MobileNetV2's residuals.
    """
    offsets: dict[int, int] = {}
    for i in sorted(range(len(tenants)), key=lambda i: (-tenants[i].size, i)):
        taken = sorted((offsets[j], offsets[j] + tenants[j].size) for j in offsets if tenants[j].meets(tenants[i]))
        offset = 0
        for start, end in taken:
            if offset + tenants[i].size <= start:
                break
            offset = max(offset, end)
        offsets[i] = offset
    return [offsets[i] for i in range(len(tenants))]


def lower_bound(tenants: list[Buffer]) -> int:
    """The most bytes alive at one moment: no plan without overlaps can be smaller."""
    moments = {buffer.first for buffer in tenants}
    return max((sum(b.size for b in tenants if b.first <= moment <= b.last) for moment in moments), default=0)


def plan(graph: IntegerGraph) -> Plan:
    """The arena of a graph. The image is read in place and the logits are written in place, so neither costs arena."""
    tenants = buffers(graph)
    placed = tuple(zip(tenants, place(tenants), strict=True))
    for i, (a, start) in enumerate(placed):
        for b, other in placed[:i]:
            assert not a.meets(b) or start + a.size <= other or other + b.size <= start, f"{a.tensors} and {b.tensors} overlap"
    root = roots(graph)
    where = {name: (ARENA, offset) for buffer, offset in placed for name in buffer.tensors}
    where |= {name: (LOGITS, 0) for name in root if root[name] == root[graph.output]}
    where |= {name: (IMAGE, 0) for name in root if root[name] == root[graph.input]}
    where[graph.output] = (LOGITS, 0)  # even where it is the image under another shape: then the last reshape is a copy
    return Plan(where, max((offset + b.size for b, offset in placed), default=0), placed)
