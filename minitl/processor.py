"""What this processor can do, as far as kernels depend on it; on Linux and x86-64 without LLVM, whose import takes 30 ms.

In: /proc/cpuinfo, else what LLVM knows. Out: LANES, DOT, and as text all that machine code made here depends on. Left out: caches.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import sys

MACHINE = platform.machine().lower()
X86, ARM = MACHINE in ("x86_64", "amd64"), MACHINE in ("arm64", "aarch64")
LINUX_X86 = sys.platform == "linux" and MACHINE == "x86_64" and sys.maxsize > 2**32
"""Where we load machine code ourselves (linker.py) and ask the kernel instead of LLVM."""

FACTS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
CPUINFO = "/proc/cpuinfo"


@functools.cache
def host() -> tuple[str, frozenset[str]]:
    """(the processor, as text that another one does not have; its features by LLVM's names)."""
    if LINUX_X86:
        try:
            with open(CPUINFO, "rb", buffering=0) as file:
                first, end, _ = file.read(1 << 14).decode("latin-1").partition("\n\n")
        except OSError:
            first = end = ""
        found = dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", first, re.MULTILINE))
        if end and "flags" in found:  # which an emulator on another kind of processor does not show
            return repr([found.get(fact) for fact in FACTS]), frozenset(found["flags"].replace("_", "").split())
    name, features = said_by_llvm()
    return repr((name, features)), named(features)


@functools.cache
def said_by_llvm() -> tuple[str, str]:
    """(name, features as "+avx2,-avx512f,...") for LLVM's own use; empty where it does not know this processor."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    try:
        name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    except RuntimeError:
        return "", ""
    if ARM and (name.startswith("apple-m") or (name != "generic" and _says_dotprod())):
        features = f"{features},+dotprod"  # of which LLVM 20 says nothing; Numba, too, has it for every processor with it that LLVM knows
    return name, features


def _says_dotprod() -> bool:
    """Whether Linux on ARM says that there is sdot, https://docs.kernel.org/arch/arm64/elf_hwcaps.html."""
    try:
        with open(CPUINFO, encoding="latin-1") as file:
            return re.search(r"^Features\s*:.*\basimddp\b", file.read(), re.MULTILINE) is not None
    except OSError:
        return False


def named(features: str) -> frozenset[str]:
    """Those that are there, of a list of LLVM's."""
    return frozenset(feature[1:] for feature in features.split(",") if feature.startswith("+"))


def lanes(has: frozenset[str]) -> int:
    """Floats of a vector register. MINITL_LANES overrides it, for tests: the numbers are the same, only the speed differs."""
    if chosen := os.environ.get("MINITL_LANES"):
        return int(chosen)
    return 16 if "avx512f" in has else 8 if "avx2" in has else 4


def dot(has: frozenset[str]) -> tuple[int, int, str]:
    """How int8 networks multiply here.

    (products at once per 32-bit lane, what is added to an int8 to keep it in a byte, LLVM's name of the instruction; "" where the same is
    put together from ordinary ones). MINITL_DOT=2 or 4 overrides the first, for tests: the bits are the same.
    """
    width, chosen = lanes(has), os.environ.get("MINITL_DOT")
    if chosen != "2":
        if X86 and width == 16 and "avx512vnni" in has:
            return 4, 128, "llvm.x86.avx512.vpdpbusd.512"
        if X86 and width == 8 and ("avxvnni" in has or {"avx512vnni", "avx512vl"} <= has):
            return 4, 128, "llvm.x86.avx512.vpdpbusd.256"
        if ARM and width == 4 and "dotprod" in has:
            return 4, 0, "llvm.aarch64.neon.sdot.v4i32.v16i8"
        if chosen == "4":
            return 4, 0 if ARM else 128, ""
    names = {16: ("avx512bw", "llvm.x86.avx512.pmaddw.d.512"), 8: ("avx2", "llvm.x86.avx2.pmadd.wd"), 4: ("sse2", "llvm.x86.sse2.pmadd.wd")}
    return 2, 0, names[width][1] if X86 and names[width][0] in has else ""


LANES, DOT = lanes(host()[1]), dot(host()[1])
