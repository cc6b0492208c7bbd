"""Vector instructions for Numba: what the micro-kernels of this folder are built from.

Numba turns loops into vector code by itself, but keeps no sums in registers, and so reaches a fifth of what the processor can do. A
micro-kernel is therefore an `intrinsic`: a Python function that runs while Numba compiles, and writes LLVM's instructions one after the
other (https://llvm.org/docs/LangRef.html). Emit makes that readable: its methods are the few instructions needed, an address is an int64
in bytes, a vector has LANES floats, and loop() is a loop whose values stay in registers.

LANES is 16 with AVX-512, 8 with AVX2, 4 elsewhere (NEON, SSE): LLVM makes vectors of any length into what the processor has, so every
number is right on every processor, and only the speed depends on it. Left out: anything about networks.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numba
from llvmlite import ir
from numba.extending import intrinsic

from ..native import LANES

F32, I8, I16, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
VECTOR = 4 * LANES
"""Bytes of a vector of floats."""

int64 = numba.types.int64


OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile with Numba, for native.py: no wrapper for Python, no checks, no exceptions; arguments are integers."""
    return numba.njit(**OPTIONS)(function)


def emitted(arguments: int, returns: Any = None) -> Callable[[Callable[..., Any]], Any]:
    """Make body(emit, *arguments) an instruction sequence that kernels call like a function of so many int64.

    returns: the Numba type of what body gives back, None for nothing.
    """

    def decorate(body: Callable[..., Any]) -> Any:
        names = ", ".join(f"a{i}" for i in range(arguments))
        signature = (returns or numba.types.void)(*[int64] * arguments)

        def codegen(context: Any, builder: Any, _: Any, values: Sequence[Any]) -> Any:
            result = body(Emit(builder), *values)
            return context.get_dummy_value() if returns is None else result

        # Numba reads the number of arguments off the function itself, so it has to be written out.
        scope: dict[str, Any] = {"signature": signature, "codegen": codegen}
        exec(f"def {body.__name__}(typing, {names}):\n    return signature, codegen", scope)
        return intrinsic(scope[body.__name__])

    return decorate


class Emit:
    """Writes instructions at the place where a builder of llvmlite stands. Values are llvmlite's; addresses int64, in bytes."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    # ---- integers and addresses

    def const(self, value: int) -> Any:
        """An int64."""
        return ir.Constant(I64, value)

    def add(self, a: Any, b: Any) -> Any:
        """Sum of two int64; b may be a Python int."""
        return self.builder.add(a, self.const(b) if isinstance(b, int) else b)

    def mul(self, a: Any, b: Any) -> Any:
        """Product of two int64; b may be a Python int."""
        return self.builder.mul(a, self.const(b) if isinstance(b, int) else b)

    def pointer(self, address: Any, kind: Any) -> Any:
        """The address as a pointer to a value of this kind."""
        return self.builder.inttoptr(address, kind.as_pointer())

    # ---- memory

    def load_as(self, kind: Any, address: Any, align: int = 1) -> Any:
        """The value of this LLVM type that lies there."""
        value = self.builder.load(self.pointer(address, kind))
        value.align = align
        return value

    def store_as(self, value: Any, address: Any, align: int = 1) -> None:
        """Put any value there."""
        self.builder.store(value, self.pointer(address, value.type)).align = align

    def load(self, address: Any, lanes: int = LANES) -> Any:
        """A vector of floats; any multiple of 4 will do as address."""
        return self.load_as(ir.VectorType(F32, lanes), address, 4)

    def store(self, vector: Any, address: Any) -> None:
        """Put a vector of floats there."""
        self.store_as(vector, address, 4)

    # ---- vectors

    def splat(self, value: Any, lanes: int = LANES) -> Any:
        """A vector with this value in every lane."""
        kind = ir.VectorType(value.type, lanes)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def load_splat(self, address: Any, lanes: int = LANES) -> Any:
        """A vector with the float that lies there in every lane."""
        return self.splat(self.load_as(F32, address, 4), lanes)

    def zeros(self, lanes: int = LANES) -> Any:
        """A vector of zeros."""
        return ir.Constant(ir.VectorType(F32, lanes), [0.0] * lanes)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once where the processor can."""
        return self.call("llvm.fmuladd", a.type, a, b, c)

    def clamp(self, vector: Any, low: Any, high: Any) -> Any:
        """min(max(vector, low), high), lane by lane; what is not a number stays so."""
        vector = self.builder.select(self.builder.fcmp_ordered("<", vector, low), low, vector)
        return self.builder.select(self.builder.fcmp_ordered(">", vector, high), high, vector)

    def call(self, name: str, kind: Any, *values: Any) -> Any:
        """One of LLVM's own functions for this type; a name that ends in '!' is complete, else the type is added to it."""
        element = kind.element if isinstance(kind, ir.VectorType) else kind
        letter = "f32" if element == F32 else f"i{element.width}"
        full = name[:-1] if name.endswith("!") else f"{name}.{f'v{kind.count}' if isinstance(kind, ir.VectorType) else ''}{letter}"
        function_type = ir.FunctionType(kind, [value.type for value in values])
        module = self.builder.module
        function = module.globals.get(full) or ir.Function(module, function_type, full)
        return self.builder.call(function, values)

    # ---- control

    def loop(self, count: Any, carried: Sequence[Any], body: Callable[..., Sequence[Any]]) -> list[Any]:
        """Run body(index, *carried) -> new carried, count >= 1 times; carried stays in registers. -> what the last one gave."""
        builder = self.builder
        before, head = builder.block, builder.append_basic_block("loop")
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        index.add_incoming(self.const(0), before)
        values = [builder.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        after = list(body(index, *values))
        following = self.add(index, 1)
        index.add_incoming(following, builder.block)
        for phi, value in zip(values, after, strict=True):
            phi.add_incoming(value, builder.block)
        end = builder.append_basic_block("end")
        builder.cbranch(builder.icmp_signed("<", following, count), head, end)
        builder.position_at_end(end)
        return after

    def choose(self, number: Any, cases: dict[int, Callable[[], None]]) -> None:
        """Run cases[number]; no other number must ever come."""
        builder = self.builder
        nowhere, end = builder.append_basic_block("nowhere"), builder.append_basic_block("chosen")
        switch = builder.switch(number, nowhere)
        for case, body in cases.items():
            block = builder.append_basic_block(f"case{case}")
            switch.add_case(self.const(case), block)
            builder.position_at_end(block)
            body()
            builder.branch(end)
        builder.position_at_end(nowhere)
        builder.unreachable()
        builder.position_at_end(end)

    def when(self, condition: Any, body: Callable[[], None]) -> None:
        """Run body where the condition (i1) holds."""
        with self.builder.if_then(condition):
            body()


# ---- single instructions for kernels


@emitted(2, int64)
def number(emit: Emit, table: Any, index: Any) -> Any:
    """The int64 at table[index]."""
    return emit.load_as(I64, emit.add(table, emit.mul(index, 8)), 8)


@emitted(3)
def copy(emit: Emit, target: Any, source: Any, count: Any) -> Any:
    """Copy so many bytes; the two places do not overlap."""
    byte = I8.as_pointer()
    kinds = [byte, byte, I64, ir.IntType(1)]
    name = "llvm.memcpy.p0.p0.i64"
    module = emit.builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    emit.builder.call(function, [emit.pointer(target, I8), emit.pointer(source, I8), count, ir.Constant(ir.IntType(1), 0)])


@emitted(2)
def clear(emit: Emit, target: Any, count: Any) -> Any:
    """So many bytes of zeros."""
    name = "llvm.memset.p0.i64"
    kinds = [I8.as_pointer(), I8, I64, ir.IntType(1)]
    module = emit.builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    emit.builder.call(function, [emit.pointer(target, I8), ir.Constant(I8, 0), count, ir.Constant(ir.IntType(1), 0)])


@emitted(1, int64)
def arrive(emit: Emit, counter: Any) -> Any:
    """Add one to the int64 there, as one step for all threads; -> what it was."""
    return emit.builder.atomic_rmw("add", emit.pointer(counter, I64), emit.const(1), "seq_cst")


@emitted(1, int64)
def look(emit: Emit, counter: Any) -> Any:
    """The int64 there, as other threads have left it."""
    return emit.builder.load_atomic(emit.pointer(counter, I64), "acquire", 8)


PATIENCE = 5000
"""Turns, about 0.13 ms, that a thread waits awake: more than it sleeps (0.06 ms), or two threads would make each other sleep for ever."""


@emitted(1)
def rest(emit: Emit, turns: Any) -> None:
    """A moment of waiting: awake for so many turns, then asleep, which gives the processor to the thread that is waited for.

    Where another program is busy, both threads can be on one processor: waiting awake alone, 65 layers then took 0.26 s instead of 0.02.
    """
    builder, module = emit.builder, emit.builder.module
    if platform.machine().lower() in ("x86_64", "amd64"):
        name = "llvm.x86.sse2.pause"
        builder.call(module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), []), name), [])
    if sys.platform != "win32":
        sleep = module.globals.get("usleep") or ir.Function(module, ir.FunctionType(I32, [I32]), "usleep")
        with builder.if_then(builder.icmp_signed(">", turns, emit.const(PATIENCE)), likely=False):
            builder.call(sleep, [I32(1)])


@kernel
def barrier(counter, threads):  # type: ignore[no-untyped-def]
    """Wait until as many threads have come here as take part. counter: address of an int64 that starts at 0 and has no other use."""
    if threads > 1:
        target = (arrive(counter) // threads + 1) * threads
        turns = 0
        while look(counter) < target:
            turns += 1
            rest(turns)
