"""The arena: where each tensor of an integer graph lives while the network runs, known before anything is compiled.

In: an IntegerGraph. Out: a Plan of byte offsets into one block of memory and the size of that block, which is exact: nothing else is
allocated. The image is in it, and the room that a kernel needs while it works (scratch); only the logits are the caller's. A reshape
is no copy: its tensors share one place.

An output may be written over an input that dies, as far as the order in which the C kernels read and write allows: overlap() and
scratch_bytes() below state that order as numbers, and tests/test_memory.py executes it. Where a pointwise convolution makes the memory
so large, and a 3x3 depthwise one reads it, both run together, row by row, and the tensor between them never exists (Plan.fused). Left
out: orders of the operations other than the graph's, and proof that a plan is the smallest; lower_bound() says how far it can be.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from .integer import Add, Conv2D, DepthwiseConv2D, GlobalMean, IntegerGraph, Op, Pool, Requantise, Reshape, Tensor

LOGITS, ARENA = "logits", "arena"
IMAGE, TENSOR, SCRATCH = "image", "tensor", "scratch"
"""What a buffer is for."""

ALIGNMENT = 4
"""Every buffer begins at a multiple of so many bytes."""

WORTH = 0.95
"""Operations are fused where that brings the arena below so many times what it was: it costs some instructions."""

TRIES = 20_000
"""Buffers placed while searching for a better plan, a tenth of a second. Of 60 networks of 25 random layers 34 are above the lower
bound (3.7 % more memory in all) after the simple orders, 15 (0.8 %) after so many, 14 (0.7 %) after ten times as many."""


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


# ---- what the C kernels allow --------------------------------------------------------------------------------------------------


def is_pointwise(op: Op) -> bool:
    """Whether a Conv2D only mixes channels: then a row of pixels is as good as an image."""
    return isinstance(op, Conv2D) and op.kernel.shape[:2] == tuple(op.strides) == (1, 1) and not any(op.padding)


def scratch_bytes(op: Op, ins: list[Tensor]) -> int:
    """Bytes that the kernel of an op needs besides its input and output, aligned like everything.

    Convolutions: two windows of inputs widened to 16 bits, each filled up to a multiple of 8 values, and, unless pointwise, the two
    windows as bytes before that. Depthwise: a ring of as many rows of one channel as the kernel has, widened, with their padding.
    """
    if isinstance(op, Conv2D):
        return (4 if is_pointwise(op) else 6) * (-(-math.prod(op.kernel.shape[:3]) // 8) * 8)
    if isinstance(op, DepthwiseConv2D):
        return op.kernel.shape[0] * 2 * aligned(op.padding[2] + ins[0].shape[1] + op.padding[3] + 4)
    return 0


def overlap(op: Op, ins: list[Tensor], out: Tensor) -> tuple[int, float] | None:
    """How the output may lie over an input that nobody needs afterwards: (least, most) bytes by which it begins before it.

    None: not at all. Convolutions and pools write blocks of pixels in order, each after its inputs were read: the output must never
    reach a byte that this block or a later one still reads. Depthwise works on one channel after the other, so only the very same
    place will do, and only if no row is written before it was read.
    """
    if isinstance(op, (Add, GlobalMean, Requantise)):
        return 0, math.inf
    if isinstance(op, Conv2D) and is_pointwise(op):
        pixels, channels, outputs = out.shape[0] * out.shape[1], ins[0].shape[2], out.shape[2]
        return _least((1, pixels, channels), (1, pixels, outputs), (1, 1), (1, 1), (0, 0), 2), math.inf
    if isinstance(op, (Conv2D, Pool)):
        window, together = (op.window, 1) if isinstance(op, Pool) else (op.kernel.shape[:2], 2)
        return _least(ins[0].shape, out.shape, tuple(window), op.strides, (op.padding[0], op.padding[2]), together), math.inf
    if isinstance(op, DepthwiseConv2D):
        (h, w, _), (oh, ow, _) = ins[0].shape, out.shape
        read = [min(h, r * op.strides[0] - op.padding[0] + op.kernel.shape[0]) * w for r in range(oh)]  # pixels, before row r is written
        return (0, 0) if ow <= w and oh <= h and all((r + 1) * ow <= read[r] for r in range(oh)) else None
    return None


def is_fusable(first: Op, second: Op) -> bool:
    """Whether a kernel exists for two operations at once, the second of which alone reads what the first one makes."""
    if not (isinstance(first, Conv2D) and is_pointwise(first) and isinstance(second, DepthwiseConv2D)):
        return False
    return second.inputs == (first.output,) and second.kernel.shape[:2] == (3, 3) and second.strides[1] <= 2


def fused_scratch_bytes(first: Op, second: Op, ins: list[Tensor], middle: Tensor) -> int:
    """The scratch of both kernels one after the other, and three rows of the tensor between them."""
    rows = 3 * middle.shape[1] * middle.shape[2]
    return scratch_bytes(first, ins) + scratch_bytes(second, [middle]) + aligned(rows)


def fused_overlap(second: Op, ins: list[Tensor], middle: Tensor, out: Tensor) -> tuple[int, float]:
    """As overlap(): a row of the output is written after the rows of the input that it needs, all columns, were read."""
    assert isinstance(second, DepthwiseConv2D)
    (h, w, c), (oh, ow, o) = ins[0].shape, out.shape
    ahead = 0
    for r in range(oh):
        read = r * second.strides[0] - second.padding[0] + 3
        if read < h:  # later nothing of the input is needed
            ahead = max(ahead, (r + 1) * ow * o - max(read, 0) * w * c)
    return ahead, math.inf


def _least(
    x: tuple[int, ...], y: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, int], before: tuple[int, int], together: int
) -> int:
    """The most by which the bytes written are ahead of the lowest byte still to be read, over blocks of `together` pixels of a row.

    x, y: shapes of input and output; before: (top, left) padding.
    """
    (h, w, c), (oh, ow, o) = x, y
    rows, columns = np.arange(oh) * strides[0] - before[0], np.arange(ow) * strides[1] - before[1]
    lowest = (np.maximum(rows, 0)[:, None] * w + np.maximum(columns, 0)) * c
    real = ((rows < h) & (rows + window[0] > 0))[:, None] & (columns < w) & (columns + window[1] > 0)
    still = np.minimum.accumulate(np.where(real, lowest, h * w * c).ravel()[::-1])[::-1].reshape(oh, ow)[:, ::together]
    written = (np.arange(oh)[:, None] * ow + np.minimum(np.arange(0, ow, together) + together, ow)) * o
    return int((written - still).max())


# ---- tenants -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Buffer:
    """Bytes that are needed from op number `first` to op number `last`, both included; the image from before op 0: first is -1.

    tensors: the names that it holds, one after the other in time (a tensor and its reshapes); none if it is scratch.
    """

    tensors: tuple[str, ...]
    size: int
    first: int
    last: int
    kind: str = TENSOR

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at some moment, so that they may not overlap but as overlap() says."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """where: tensor name -> (LOGITS | ARENA, byte offset). size: bytes of the arena, a multiple of 4. image: offset of the image.

    scratch: number of an op -> offset of its scratch, for ops that need one. buffers: (buffer, offset) by birth.
    fused: numbers of the ops that run inside of the next one; what they make is nowhere.
    """

    where: dict[str, tuple[str, int]]
    size: int
    buffers: tuple[tuple[Buffer, int], ...]
    scratch: dict[int, int]
    image: int
    fused: frozenset[int] = frozenset()


def roots(graph: IntegerGraph) -> dict[str, str]:
    """Tensor name -> name of the tensor whose memory it shares; itself, except through reshapes."""
    root = {graph.input: graph.input}
    for op in graph.ops:
        root[op.output] = root[op.inputs[0]] if isinstance(op, Reshape) else op.output
    return root


def reads(graph: IntegerGraph, fused: frozenset[int]) -> list[tuple[str, ...]]:
    """The names of the tensors that each op reads from memory: a fused one none, since the next op reads them for it."""
    found = [() if i in fused else op.inputs for i, op in enumerate(graph.ops)]
    for i in fused:
        found[i + 1] = graph.ops[i].inputs
    return found


def buffers(graph: IntegerGraph, fused: frozenset[int] = frozenset()) -> list[Buffer]:
    """The arena's tenants by birth: the image, every tensor that is not the logits, and the scratch of every op that needs one.

    A residual lives until its Add, one that is watched until the end, a tensor that nobody reads dies where it is born (it is still
    written).
    """
    root = roots(graph)
    born, last = {graph.input: -1}, {graph.input: -1}
    scratch = []
    for i, (op, names) in enumerate(zip(graph.ops, reads(graph, fused), strict=True)):
        for name in names:
            last[root[name]] = i
        if i in fused:
            continue
        born.setdefault(root[op.output], i)
        last[root[op.output]] = i
        ins = [graph.tensors[name] for name in names]
        if i - 1 in fused:
            size = fused_scratch_bytes(graph.ops[i - 1], op, ins, graph.tensors[op.inputs[0]])
        else:
            size = scratch_bytes(op, ins)
        if size:
            scratch.append(Buffer((), size, i, i, SCRATCH))
    if graph.watched:
        last[root[graph.watched]] = len(graph.ops) - 1
    tenants = []
    for name in born:
        if name != root[graph.output] or name == graph.input:
            names = tuple(n for n in root if root[n] == name)
            tenants.append(Buffer(names, graph.tensors[name].size, born[name], last[name], IMAGE if name == graph.input else TENSOR))
    return sorted(tenants + scratch, key=lambda tenant: tenant.first)


Overlaps = dict[tuple[int, int], tuple[int, float]]
"""(number of a dying input's buffer, number of the output's): (least, most) as from overlap(), the least a multiple of 4."""


def overlaps(graph: IntegerGraph, tenants: list[Buffer], fused: frozenset[int] = frozenset()) -> Overlaps:
    """The pairs of tenants that may overlap although they meet."""
    number = {name: k for k, tenant in enumerate(tenants) for name in tenant.tensors}
    root, found = roots(graph), {}
    for i, (op, names) in enumerate(zip(graph.ops, reads(graph, fused), strict=True)):
        y = number.get(op.output)
        if y is None or root[op.output] != op.output:
            continue
        ins, out = [graph.tensors[name] for name in names], graph.tensors[op.output]
        allowed = fused_overlap(op, ins, graph.tensors[op.inputs[0]], out) if i - 1 in fused else overlap(op, ins, out)
        for x in {number.get(name) for name in names} if allowed else ():
            if x is not None and y is not None and allowed and tenants[x].last == i:
                found[x, y] = aligned(allowed[0]), allowed[1]
    return found


def lower_bound(graph: IntegerGraph, fused: frozenset[int] = frozenset()) -> int:
    """Bytes that no plan that fuses these ops can do without."""
    return max(_needed(graph, fused))


def _needed(graph: IntegerGraph, fused: frozenset[int]) -> list[int]:
    """Before the first op and at every op: what lives and may not overlap, and the least that its overlaps span.

    The first `least` bytes of an output belong to no input that it overlaps, since all of those begin later.
    """
    tenants = buffers(graph, fused)
    pairs = overlaps(graph, tenants, fused)
    needed = [aligned(graph.tensors[graph.input].size)]
    for i in range(len(graph.ops)):
        alive = {k: aligned(tenant.size) for k, tenant in enumerate(tenants) if tenant.first <= i <= tenant.last}
        here = {x: (y, least) for (x, y), (least, _) in pairs.items() if tenants[y].first == i}
        apart = sum(size for k, size in alive.items() if k not in here and k not in {y for y, _ in here.values()})
        if here:
            (y, least) = min(here.values(), key=lambda pair: pair[1])
            apart += max(alive[y], sum(alive[x] for x in here) + min(least, alive[y]))
        needed.append(apart)
    return needed


# ---- places --------------------------------------------------------------------------------------------------------------------

Near = list[list[tuple[int, float, int]]]
"""For each tenant i: (j, above, below): it may not begin strictly between offset of j + above and offset of j + below."""


def _near(tenants: list[Buffer], pairs: Overlaps) -> Near:
    """What each tenant must keep away from."""
    near: Near = [[] for _ in tenants]
    sizes = [aligned(tenant.size) for tenant in tenants]
    for i, a in enumerate(tenants):
        for j, b in enumerate(tenants):
            if i == j or not a.meets(b):
                continue
            if (j, i) in pairs:  # i is the output
                least, most = pairs[j, i]
                near[i] += [(j, -sizes[i], round(-most))] if most < sizes[i] else []
                near[i] += [(j, -min(least, sizes[i]), sizes[j])]
            elif (i, j) in pairs:
                least, most = pairs[i, j]
                near[i] += [(j, -sizes[i], min(least, sizes[j]))]
                near[i] += [(j, most, sizes[j])] if most < sizes[j] else []
            else:
                near[i].append((j, -sizes[i], sizes[j]))
    return near


def _first_fit(order: list[int], near: Near) -> list[int]:
    """An offset for each tenant: one after the other in `order`, each at the lowest place that it is allowed."""
    offsets = [-1] * len(near)
    for i in order:
        offset = 0
        for above, below in sorted((offsets[j] + above, offsets[j] + below) for j, above, below in near[i] if offsets[j] >= 0):
            if above >= offset:
                break
            offset = max(offset, below)
        offsets[i] = offset
    return offsets


def place(tenants: list[Buffer], pairs: Overlaps, bound: int) -> list[int]:
    """An offset for each buffer; stops as soon as the plan is no larger than `bound`. The same for the same arguments.

    First fit, the largest first (as in Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020), by birth,
    by death; then the best of these orders with some buffers at the top of the plan moved forward, kept if it is no worse.
    """
    near, sizes = _near(tenants, pairs), [aligned(tenant.size) for tenant in tenants]
    numbers = range(len(tenants))

    def size_of(offsets: list[int]) -> int:
        return max(offset + size for offset, size in zip(offsets, sizes, strict=True))

    orders = [
        sorted(numbers, key=lambda i: -sizes[i]),
        list(numbers),
        list(reversed(numbers)),
        sorted(numbers, key=lambda i: -tenants[i].last),
    ]
    found = [(_first_fit(order, near), order) for order in orders]
    best, order = min(found, key=lambda entry: size_of(entry[0]))
    dice = random.Random(0)
    for _ in range(TRIES // len(tenants)):
        size = size_of(best)
        if size <= bound:
            break
        top = dice.choice([i for i in numbers if best[i] + sizes[i] == size])
        trial = order[:]
        for moved in {top, dice.choice([top, *(j for j, _, _ in near[top])])}:
            trial.remove(moved)
            trial.insert(dice.randrange(order.index(moved) + 1), moved)
        offsets = _first_fit(trial, near)
        if size_of(offsets) <= size:
            best, order = offsets, trial
    return best


def plan(graph: IntegerGraph) -> Plan:
    """The arena of a graph. The logits are written in place, so they cost no arena; the image's place is free for others later.

    Operations are fused where the most memory is needed, again and again, as long as that helps; see WORTH.
    """
    best = apart = _plan(graph, frozenset())
    pairs = {i for i, (first, second) in enumerate(zip(graph.ops, graph.ops[1:], strict=False)) if is_fusable(first, second)}
    pairs -= {i for i in pairs if _readers(graph, graph.ops[i].output) > 1}
    while True:
        needed = _needed(graph, best.fused)[1:]
        highest = {i for i, bytes_needed in enumerate(needed) if bytes_needed == max(needed)}
        more = {i for i in pairs - best.fused if i in highest or i + 1 in highest}
        trial = _plan(graph, best.fused | more) if more else best
        if trial.size >= best.size:
            return best if best.size < WORTH * apart.size else apart
        best = trial


def _readers(graph: IntegerGraph, name: str) -> int:
    """How many read a tensor: operations, and the caller."""
    return sum(op.inputs.count(name) for op in graph.ops) + (name == graph.output)


def _plan(graph: IntegerGraph, fused: frozenset[int]) -> Plan:
    """The plan that fuses these operations."""
    tenants = buffers(graph, fused)
    pairs = overlaps(graph, tenants, fused)
    placed = tuple(zip(tenants, place(tenants, pairs, lower_bound(graph, fused)), strict=True))
    for i, (a, start) in enumerate(placed):
        assert start >= 0 and start % ALIGNMENT == 0
        for j, (b, other) in enumerate(placed):
            least, most = pairs.get((i, j)) or pairs.get((j, i)) or (math.inf, 0)
            before = start - other if (i, j) in pairs else other - start  # by how much the output begins before its input
            apart = i == j or not a.meets(b) or start + a.size <= other or other + b.size <= start
            assert apart or least <= before <= most, f"{a.tensors} and {b.tensors} overlap"
    root = roots(graph)
    where = {name: (ARENA, offset) for buffer, offset in placed for name in buffer.tensors}
    nowhere = {graph.ops[i].output for i in fused}
    where |= {name: (LOGITS, 0) for name in root if name not in where and name not in nowhere}
    where[graph.output] = (LOGITS, 0)  # even where it is the image under another shape: then the last reshape is a copy
    scratch = {buffer.first: offset for buffer, offset in placed if buffer.kind == SCRATCH}
    return Plan(where, max(offset + aligned(b.size) for b, offset in placed), placed, scratch, where[graph.input][1], fused)
