"""An emitted header on simulated Cortex-M boards: its answers, its instructions, its flash and its stack.

In: the text of a header (or any C sources) and the name of a core below. Out: logits, a Profile, or the bytes that a program wrote.
Everything happens in a temporary folder that is removed again. Needs arm-none-eabi-gcc and qemu-system-arm, and no C library: start-up
code, linker script and semihosting (files and messages of the host, through `bkpt 0xab`) are the texts in this file, which
projects.py puts into its folders, too.

    from minitl import qemu
    if not qemu.unavailable("cortex-m4"):
        answers = qemu.logits(header, "model", "cortex-m4", images)          # int8 (N, H, W, C) -> int8 (N, classes)
        print(qemu.profile(header, "model", "cortex-m4", images[0]))         # instructions, flash, stack, arena

What is counted are instructions (qemu -icount: each takes one nanosecond of SysTick's clock), not cycles: a simulator knows no cycles.
Left out: real boards, caches, C++.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import MinitlError

GCC, SIZE, QEMU = "arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm"
MEGA = 1 << 20


@dataclass(frozen=True)
class Core:
    """A processor and a board of qemu's that has it.

    flags: the compiler's. machine: qemu's. flash, ram: (address, bytes). trap: whether unaligned access is to be made a fault.
    """

    flags: tuple[str, ...]
    machine: str
    flash: tuple[int, int]
    ram: tuple[int, int]
    stack: int = 16384
    trap: bool = False


def _soft(cpu: str) -> tuple[str, ...]:
    return f"-mcpu={cpu}", "-mthumb", "-mfloat-abi=soft"


_MPS2 = (0, 4 * MEGA), (0x20000000, 4 * MEGA)
CORES = {
    "cortex-m0": Core(_soft("cortex-m0"), "microbit", (0, 256 * 1024), (0x20000000, 16 * 1024), stack=2048),
    # No board of qemu's has a Cortex-M0+ and room for a photo; its instructions are a subset of the Cortex-M3's, alignment apart.
    "cortex-m0plus": Core(_soft("cortex-m0plus"), "mps2-an385", *_MPS2, trap=True),
    "cortex-m3": Core(_soft("cortex-m3"), "mps2-an385", *_MPS2),
    "cortex-m4": Core(_soft("cortex-m4"), "mps2-an386", *_MPS2),
    "cortex-m7": Core(_soft("cortex-m7"), "mps2-an500", *_MPS2),
    "cortex-m33": Core(_soft("cortex-m33"), "mps2-an505", (0x10000000, 4 * MEGA), (0x38000000, 4 * MEGA)),
    "cortex-m55": Core(("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"), "mps3-an547", (0, 512 * 1024), (0x20000000, 512 * 1024)),
}
"""Core name -> what is needed to compile for it and to run it. cortex-m0 (16 KB of RAM) is for small networks."""

BOARD_H = """\
/* What a program on a simulated (or debugged) board may ask of the host. */
#ifndef BOARD_H_
#define BOARD_H_
#include <stdint.h>

uint32_t board_read(void *to, uint32_t bytes);          /* from the host's file "input": how many bytes came */
void board_write(const void *from, uint32_t bytes);     /* appends to the host's file "output" */
void board_say(const char *text);                       /* a message for the person at the host */
uint32_t board_ticks(void);                             /* SysTick's ticks since the start */
uint32_t board_stack_of(void (*work)(void));            /* bytes of stack that work() used */
#endif
"""

BOARD_C = """\
/* Start-up code for Cortex-M, without a C library: vectors, memory, the host's files through semihosting. */
#include "board.h"

int main(void);
extern uint32_t board_data_from[], board_data[], board_data_end[], board_bss_end[], board_stack_limit[], board_stack_top[];
void board_reset(void);

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYSTICK_CONTROL REGISTER(0xE000E010u)
#define SYSTICK_RELOAD REGISTER(0xE000E014u)
#define SYSTICK_VALUE REGISTER(0xE000E018u)

/* ---- semihosting ---- */

static uint32_t host(uint32_t operation, const void *arguments)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static uint32_t open_file(const char *name, uint32_t length, uint32_t mode)
{
    const uint32_t arguments[3] = {(uint32_t)name, mode, length};
    return host(0x01, arguments);
}

uint32_t board_read(void *to, uint32_t bytes)
{
    static uint32_t file = 0;
    uint32_t arguments[3] = {0, (uint32_t)to, bytes};
    if (file == 0) {
        file = open_file("input", 5, 1);
    }
    arguments[0] = file;
    return file + 1 == 0 ? 0 : bytes - host(0x06, arguments);
}

void board_write(const void *from, uint32_t bytes)
{
    static uint32_t file = 0;
    uint32_t arguments[3] = {0, (uint32_t)from, bytes};
    if (file == 0) {
        file = open_file("output", 6, 5);
    }
    arguments[0] = file;
    host(0x05, arguments);
}

void board_say(const char *text)
{
    host(0x04, text);
}

static void leave(uint32_t status)
{
    const uint32_t arguments[2] = {0x20026, status};
    for (;;) {
        host(0x20, arguments);
    }
}

/* ---- time and stack ---- */

static volatile uint32_t wraps;

static void systick(void)
{
    wraps++;
}

uint32_t board_ticks(void)
{
    uint32_t before, value;
    do {
        before = wraps;
        value = SYSTICK_VALUE;
    } while (before != wraps || value > 0xFFFFFAu); /* right after it wraps, its interrupt may still be on its way */
    return (before << 24) + (0xFFFFFFu - value);
}

uint32_t board_stack_of(void (*work)(void))
{
    volatile uint32_t *p, *top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (p = board_stack_limit; p < top; p++) {
        *p = 0x5AFE57ACu;
    }
    work();
    for (p = board_stack_limit; p < top && *p == 0x5AFE57ACu; p++) {
    }
    return (uint32_t)(top - p) * 4;
}

/* ---- what compilers call on their own ---- */

void *memcpy(void *to, const void *from, unsigned n)
{
    uint8_t *t = to;
    const uint8_t *f = from;
    if ((((uint32_t)t | (uint32_t)f) & 3) == 0) {
        for (; n >= 16; n -= 16, t += 16, f += 16) {
            const uint32_t *s = (const uint32_t *)f;
            const uint32_t a = s[0], b = s[1], c = s[2], d = s[3];
            uint32_t *w = (uint32_t *)t;
            w[0] = a, w[1] = b, w[2] = c, w[3] = d;
        }
    }
    for (; n > 0; n--) {
        *t++ = *f++;
    }
    return to;
}

void *memmove(void *to, const void *from, unsigned n)
{
    if ((uint32_t)to <= (uint32_t)from || (uint32_t)to >= (uint32_t)from + n) {
        return memcpy(to, from, n);
    }
    while (n-- > 0) {
        ((uint8_t *)to)[n] = ((const uint8_t *)from)[n];
    }
    return to;
}

void *memset(void *to, int value, unsigned n)
{
    uint8_t *t = to;
    const uint32_t word = (uint8_t)value * 0x01010101u;
    for (; n > 0 && ((uint32_t)t & 3) != 0; n--) {
        *t++ = (uint8_t)value;
    }
    for (; n >= 16; n -= 16, t += 16) {
        uint32_t *w = (uint32_t *)t;
        w[0] = word, w[1] = word, w[2] = word, w[3] = word;
    }
    for (; n > 0; n--) {
        *t++ = (uint8_t)value;
    }
    return to;
}

int memcmp(const void *one, const void *two, unsigned n)
{
    const uint8_t *a = one, *b = two;
    for (; n > 0; n--, a++, b++) {
        if (*a != *b) {
            return *a - *b;
        }
    }
    return 0;
}

/* ---- start ---- */

static void fault(void)
{
    board_say("the processor stopped at a fault\\n");
    leave(99);
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    board_stack_top, (const void *)board_reset, (const void *)fault, (const void *)fault, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, 0, 0, 0, (const void *)fault, (const void *)fault, 0, (const void *)fault,
    (const void *)systick,
};

void board_reset(void)
{
    uint32_t *p;
    const uint32_t *from = board_data_from;
    for (p = board_data; p < board_data_end; p++) {
        *p = *from++;
    }
    for (; p < board_bss_end; p++) {
        *p = 0;
    }
#ifdef BOARD_TRAP_UNALIGNED
    REGISTER(0xE000ED14u) |= 8u;
#endif
#if __ARM_ARCH > 6 && (defined(__ARM_FP) || defined(__ARM_FEATURE_MVE))
    REGISTER(0xE000ED88u) |= 0xF00000u; /* floating point and vectors on */
    __asm__ volatile("dsb\\n\\tisb");
#endif
    SYSTICK_RELOAD = 0xFFFFFFu;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 7;
    while (SYSTICK_VALUE == 0) {
    }
    leave((uint32_t)main());
}
"""

BOARD_FLAGS = ("-Os", "-fno-tree-loop-distribute-patterns")
"""How BOARD_C is compiled, after FREESTANDING: its memcpy must not become a call of itself."""


def board_defines(core: str) -> tuple[str, ...]:
    """What BOARD_C is to know about a core's board."""
    return ("-DBOARD_TRAP_UNALIGNED",) if CORES[core].trap else ()


FREESTANDING = ("-std=c99", "-ffreestanding", "-ffunction-sections", "-fdata-sections")
LINK = ("-nostdlib", "-Wl,--gc-sections", "-Wl,--build-id=none")


def linker_script(core: str) -> str:
    """The memory of a core's board as text for the linker."""
    board = CORES[core]
    return f"""\
/* {core} on qemu's {board.machine} */
MEMORY
{{
    FLASH (rx) : ORIGIN = {board.flash[0]:#x}, LENGTH = {board.flash[1]:#x}
    RAM (rwx) : ORIGIN = {board.ram[0]:#x}, LENGTH = {board.ram[1]:#x}
}}
ENTRY(board_reset)
SECTIONS
{{
    .vectors : {{ KEEP(*(.vectors)) }} > FLASH
    .text : {{ *(.text*) }} > FLASH
    .rodata : {{ *(.rodata*) . = ALIGN(4); }} > FLASH
    .ARM.extab : {{ *(.ARM.extab*) }} > FLASH
    .ARM.exidx : {{ *(.ARM.exidx*) }} > FLASH
    .data : {{ . = ALIGN(4); board_data = .; *(.data*) . = ALIGN(4); board_data_end = .; }} > RAM AT > FLASH
    board_data_from = LOADADDR(.data);
    .bss (NOLOAD) : {{ . = ALIGN(4); *(.bss*) *(COMMON) . = ALIGN(4); board_bss_end = .; }} > RAM
    .stack (NOLOAD) : {{ . = ALIGN(8); board_stack_limit = .; . += {board.stack}; board_stack_top = .; }} > RAM
}}
"""


# ---- tools ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def _answer(*command: str) -> str:
    """What a tool prints about itself; "" where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60)
    return done.stdout if done.returncode == 0 else ""


def unavailable(core: str) -> str | None:
    """Why programs for `core` cannot be built and run here, as a sentence; None where they can. MinitlError if there is no such core."""
    board = _board(core)
    for tool, package in ((GCC, "gcc-arm-none-eabi"), (SIZE, "binutils-arm-none-eabi"), (QEMU, "qemu-system-arm")):
        if shutil.which(tool) is None:
            return f"{core}: {tool} is not on the PATH (Debian and Ubuntu: apt install {package})"
    if not _answer(GCC, *board.flags, "-print-libgcc-file-name"):
        return f"{core}: {GCC} here does not know {board.flags[0]}; it needs version 10 or later"
    if board.machine not in _answer(QEMU, "-machine", "help").split():
        return f"{core}: {QEMU} here has no machine {board.machine}; it needs version 6 or later"
    return None


def _board(core: str) -> Core:
    if core not in CORES:
        raise MinitlError(f"core {core!r}: expected one of {', '.join(CORES)}")
    return CORES[core]


def _needs(core: str) -> Core:
    if why := unavailable(core):
        raise MinitlError(why)
    return CORES[core]


def _tool(folder: Path, *command: str) -> str:
    """Runs a compiler or its relatives in `folder`; what it printed, or MinitlError with the beginning of its complaint."""
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        what = next((word for word in command if word.endswith(".c")), "the program")
        raise MinitlError(f"{command[0]} {what} failed: {done.stderr.strip()[:2000] or 'without a word'}")
    return done.stdout


def _compile(folder: Path, source: str, core: str, flags: Sequence[str]) -> str:
    """source: a file's name in `folder`. Returns the name of the object file."""
    target = source.removesuffix(".c") + ".o"
    _tool(folder, GCC, *CORES[core].flags, *FREESTANDING, *flags, "-c", source, "-o", target)
    return target


def _support(folder: Path, core: str) -> str:
    """Writes and compiles the start-up code, writes the linker script; returns the name of the object file."""
    (folder / "board.h").write_text(BOARD_H)
    (folder / "board.c").write_text(BOARD_C)
    (folder / "board.ld").write_text(linker_script(core))
    return _compile(folder, "board.c", core, (*BOARD_FLAGS, *board_defines(core)))


def _link(folder: Path, objects: Sequence[str], core: str, target: str = "program.elf") -> Path:
    _tool(folder, GCC, *CORES[core].flags, *LINK, "-T", "board.ld", *objects, "-lgcc", "-o", target)
    return folder / target


def build(folder: Path, sources: Mapping[str, str], core: str, flags: Sequence[str] = ("-O3",)) -> Path:
    """Writes {file name: text} into `folder`, compiles those that end in .c with `flags`, links them with the start-up code.

    main returns the exit status; board.h (BOARD_H) is what it may call. Returns the path of the ELF file.
    MinitlError: a tool is missing, the compiler complains, or the program is too large for the board.
    """
    _needs(core)
    support = _support(folder, core)
    for name, text in sources.items():
        (folder / name).write_text(text)
    return _link(folder, [support, *(_compile(folder, name, core, flags) for name in sources if name.endswith(".c"))], core)


def command(core: str, elf: str) -> list[str]:
    """The line that runs a program with qemu; files are read and written in the current folder, messages come on standard output."""
    line = [QEMU, "-machine", CORES[core].machine, "-kernel", elf, "-display", "none", "-monitor", "none", "-serial", "none"]
    return [*line, "-chardev", "stdio,id=host", "-semihosting-config", "enable=on,target=native,chardev=host"]


def run(elf: Path, core: str, data: bytes = b"", timeout: float = 300, count: bool = False) -> bytes:
    """Runs a program of build's with `data` as its input; what it wrote with board_write.

    count: one instruction is one nanosecond of SysTick's clock (slower). timeout: seconds. MinitlError: a tool is missing, or the
    program takes longer, stops at a fault, or leaves with a status other than 0 (its messages are in the sentence).
    """
    _needs(core)
    with tempfile.TemporaryDirectory(prefix="minitl-") as name:
        folder = Path(name)
        (folder / "input").write_bytes(data)
        line = [*command(core, str(elf.resolve())), *(["-icount", "shift=0"] if count else [])]
        try:
            done = subprocess.run(line, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise MinitlError(f"{core} under {QEMU}: not done after {timeout:g} seconds; give it longer or fewer images") from None
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()[:2000]
            raise MinitlError(f"{core} under {QEMU}: the program left with status {done.returncode}: {said or 'without a word'}")
        output = folder / "output"
        return output.read_bytes() if output.exists() else b""


# ---- networks ------------------------------------------------------------------------------------------------------------------

ANSWERS = """\
#include "board.h"
#define NAME_IMPLEMENTATION
#include "HEADER"
static int8_t logits[NAME_CLASSES];

int main(void)
{
    while (board_read(MODEL_image(), NAME_INPUT_BYTES) == NAME_INPUT_BYTES) {
        if (MODEL_run(MODEL_image(), logits) != 0) {
            return 1;
        }
        board_write(logits, NAME_CLASSES);
    }
    return 0;
}
"""

MEASURE = """\
#include "board.h"
#include "HEADER"
static int8_t logits[NAME_CLASSES];
static int status;
uint32_t marks[2 * LAYERS + 2];
int marked;

static void work(void)
{
    status |= MODEL_run(MODEL_image(), logits);
}

static uint32_t loop(uint32_t turns) /* 2 instructions a turn */
{
    const uint32_t start = board_ticks();
    __asm__ volatile(".syntax unified\\n1: subs %0, %0, #1\\n\\tbne 1b" : "+l"(turns) : : "cc");
    return board_ticks() - start;
}

int main(void)
{
    uint32_t figures[4];
    if (board_read(MODEL_image(), NAME_INPUT_BYTES) != NAME_INPUT_BYTES) {
        return 1;
    }
    figures[0] = loop(TURNS);
    figures[1] = NAME_ARENA_BYTES;
    marks[0] = board_ticks();
    marked = 1;
    work();
    figures[2] = board_ticks() - marks[0];
    figures[3] = HOOKED ? 0 : board_stack_of(work); /* last: a run may destroy the image */
    board_write(figures, sizeof figures);
    board_write(marks, 4 * (uint32_t)(HOOKED ? marked : 1));
    return status;
}
"""

NETWORK = """\
#include "board.h"
#if HOOKED
extern uint32_t marks[];
extern int marked;
#define NAME_LAYER(i, values, bytes) (marks[marked] = board_ticks(), marks[marked + 1] = (i), marked += 2);
#endif
#define NAME_IMPLEMENTATION
#include "HEADER"
"""

NOTHING = """\
#include <stdint.h>
int8_t nowhere[4];
int8_t *MODEL_image(void)
{
    return nowhere;
}
int MODEL_run(const int8_t *image, int8_t *logits)
{
    return *image + *logits;
}
"""

HEADER = "emitted.h"
"""The header's name in the folder: no prefix can be the name of another file of ours."""

TURNS = 10_000_000
"""Of the loop that finds how many instructions a tick of SysTick is."""


def _for(template: str, name: str, **more: object) -> str:
    """A C template for the header of one network."""
    words = {"NAME": name.upper(), "MODEL": name, "HEADER": HEADER, "TURNS": TURNS} | more
    return re.sub("|".join(words), lambda found: str(words[found[0]]), template)


def logits(header: str, name: str, core: str, images: np.ndarray, flags: Sequence[str] = ("-O3",)) -> np.ndarray:
    """What the header computes on a core: int8 (N, classes).

    header: its text; name: its prefix. images: int8 (N, ...), each of the header's INPUT_BYTES. flags: for the compiler.
    MinitlError: see build and run.
    """
    images = np.ascontiguousarray(images)
    assert images.dtype == np.int8
    with tempfile.TemporaryDirectory(prefix="minitl-") as folder:
        elf = build(Path(folder), {HEADER: header, "main.c": _for(ANSWERS, name)}, core, flags)
        found = np.frombuffer(run(elf, core, images.tobytes()), np.int8)
    if len(images) == 0 or found.size == 0 or found.size % len(images):
        raise MinitlError(f"{core}: {found.size} logits came back for {images.shape}; expected images of {name.upper()}_INPUT_BYTES each")
    return found.reshape(len(images), -1)


@dataclass(frozen=True)
class Profile:
    """What one run of a network costs on a core.

    instructions: of one call of NAME_run. by_op: (index in graph.ops, instructions), in order, measured in a run with hooks and scaled
    to that of one without, so that they add up to `instructions`; () where the header has no hooks.
    code, constants: bytes of flash that the network adds to a program that does nothing (code with what it calls of libgcc, constants
    with start values of variables). arena: static bytes. stack: deepest use, found by painting. resolution: instructions per tick.
    """

    core: str
    flags: tuple[str, ...]
    instructions: int
    by_op: tuple[tuple[int, int], ...]
    code: int
    constants: int
    arena: int
    stack: int
    resolution: float

    @property
    def flash(self) -> int:
        """Bytes of code and constants."""
        return self.code + self.constants

    @property
    def ram(self) -> int:
        """Bytes of arena and stack."""
        return self.arena + self.stack


def _sections(folder: Path, elf: Path) -> tuple[int, int]:
    """Bytes of (code, constants) in an ELF file."""
    rows = [line.split() for line in _tool(folder, SIZE, "-A", elf.name).splitlines()]
    found = {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[1].isdigit()}
    return found.get(".text", 0), found.get(".rodata", 0) + found.get(".data", 0)


def profile(header: str, name: str, core: str, image: np.ndarray, flags: Sequence[str] = ("-O3",)) -> Profile:
    """Counts one run of the header's network on `image` (int8, INPUT_BYTES values); see Profile. MinitlError: see build and run."""
    _needs(core)
    layers = header.count(f"{name.upper()}_AFTER(") + 1  # one hook after every operation
    with tempfile.TemporaryDirectory(prefix="minitl-") as place:
        folder = Path(place)
        (folder / HEADER).write_text(header)
        (folder / "nothing.c").write_text(_for(NOTHING, name))
        support, nothing = _support(folder, core), _compile(folder, "nothing.c", core, ("-Os",))
        ticks: dict[int, np.ndarray] = {}
        for hooked in (0, 1):
            (folder / f"main{hooked}.c").write_text(_for(MEASURE, name, LAYERS=layers, HOOKED=hooked))
            (folder / f"network{hooked}.c").write_text(_for(NETWORK, name, HOOKED=hooked))
            main = _compile(folder, f"main{hooked}.c", core, ("-Os",))
            network = _compile(folder, f"network{hooked}.c", core, flags)
            elf = _link(folder, [support, main, network], core)
            ticks[hooked] = np.frombuffer(run(elf, core, np.ascontiguousarray(image, np.int8).tobytes(), count=True), "<u4")
            if not hooked:
                full = _sections(folder, elf)
                empty = _sections(folder, _link(folder, [support, main, nothing], core, "empty.elf"))
    loop, arena, work, stack, *_ = map(int, ticks[0])
    ratio = 2 * TURNS / loop
    instructions = round(work * ratio)
    marks = ticks[1][4:].astype(np.int64)  # the start, then (time, op) after every op
    until = marks[1::2] - marks[0]
    counts = np.diff(np.rint(until / max(until[-1:], default=1) * instructions).astype(int), prepend=0)
    by_op = tuple(zip(marks[2::2].tolist(), counts.tolist(), strict=True))
    sizes = full[0] - empty[0], full[1] - empty[1]
    return Profile(core, tuple(flags), instructions, by_op, *sizes, arena, stack, ratio)
