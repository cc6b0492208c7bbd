"""Kernels of fast/ as they are kept and loaded: the same bits by our linker and by LLVM, and whatever is wrong with the files."""

import errno
import hashlib
import importlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_images import unix
from test_jit import DAMAGES

from minitl import jit, linker, native, processor
from minitl.errors import MinitlError

pytestmark = pytest.mark.skipif(native.plain(), reason="MINITL_ENGINE=plain")
by_us = pytest.mark.skipif(not processor.LINUX_X86, reason="elsewhere LLVM loads machine code")


@pytest.fixture(scope="module")
def compiled():
    """What is kept of fast/head.py, the quickest to compile."""
    return native._compile("head")


@pytest.fixture(scope="module")
def object_file():
    """(the object file of fast/head.py as LLVM wrote it, {name: symbol})."""
    seen = {}

    def refuse(data, symbols, borrowed):
        seen.update(data=bytes(data), symbols=dict(symbols))
        raise linker.Unlinkable("to see what native does then")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linker, "link", refuse)
        seen["kept"] = native._compile("head")
    return seen


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache; compiling is replaced by `compiled`, and counted."""
    monkeypatch.setenv("MINITL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def times(monkeypatch, compiled):
    """How often it was compiled."""
    times = []
    monkeypatch.setattr(native, "_compile", lambda name: times.append(name) or compiled)
    return times


def load():
    """As a new process does."""
    native._loaded.cache_clear()
    try:
        return native.load("head")
    finally:
        native._loaded.cache_clear()


def answers(library):
    """The bytes that two steps of a small classifier give."""
    random = np.random.default_rng(0)
    lanes, photos, width, classes = native.LANES, 7, 13, 3
    table = {
        "count": 2, "features": random.standard_normal((photos, width)).astype(np.float32), "width": width,
        "targets": np.eye(classes, dtype=np.float32)[random.integers(0, classes, photos)], "classes": classes,
        "weights": np.ones(photos, np.float32), "columns": lanes, "kernel": np.zeros((width, lanes), np.float32),
        "bias": np.zeros((1, lanes), np.float32), "velocity": np.zeros((width, lanes), np.float32),
        "bias_velocity": np.zeros((1, lanes), np.float32), "rates": np.array([0.1, 0.1, 0.9, 1e-4], np.float32),
        "rows": np.arange(photos), "at": np.arange(photos), "ends": np.array([4, photos]), "losses": np.zeros(photos, np.float32),
        "result": np.zeros(2, np.int64), "photos": np.zeros(photos, np.int64), "dy": np.zeros((photos, lanes), np.float32),
        "gradient": np.zeros((width, lanes), np.float32), "slope": np.zeros(lanes, np.float32),
    }  # fmt: skip
    library.steps(np.array([v if isinstance(v, int) else v.ctypes.data for v in table.values()]).ctypes.data)
    assert table["result"][0] == 2 and (table["losses"] > 0).all()
    return b"".join(table[name].tobytes() for name in ("kernel", "bias", "losses", "result"))


# ---- loading


@by_us
def test_a_block_that_we_load_and_an_object_file_that_llvm_loads_give_the_same_bits(compiled, object_file):
    ours, llvms = native._functions(compiled), native._functions(object_file["kept"])
    assert b'"places"' in compiled.partition(b"\n")[0] and b'"symbols"' in object_file["kept"].partition(b"\n")[0]
    assert answers(ours) == answers(llvms)


@by_us
@pytest.mark.slow
@pytest.mark.parametrize("name", ["inference", "integers", "training"])
def test_all_kernels_become_blocks(name):
    facts = json.loads(native._compile(name).partition(b"\n")[0])
    assert "places" in facts and set(facts["places"]) == set(importlib.import_module(f"minitl.fast.{name}").EXPORTS)


@by_us
def test_no_page_is_writable_and_executable(compiled, monkeypatch):
    placed = []
    monkeypatch.setattr(linker, "place", lambda block, place=linker.place: placed.append(place(block)) or placed[0])
    native._functions(compiled)
    maps = [re.match(r"(\w+)-(\w+) (....)", line).groups() for line in Path("/proc/self/maps").read_text().splitlines()]
    (rights,) = [rights for start, end, rights in maps if int(start, 16) <= placed[0] < int(end, 16)]
    assert rights == "r-xp"


@by_us
def test_memory_that_may_not_become_executable_is_an_error_in_words(compiled, monkeypatch):
    real = linker._c()

    class Denying:
        def __getattr__(self, name):
            return getattr(real, name) if name != "mprotect" else lambda *_: -1

    monkeypatch.setattr(linker, "_c", Denying)
    monkeypatch.setattr(native, "_compile", lambda name: compiled)
    monkeypatch.setattr(native, "_place", lambda name, again=False: None)
    with pytest.raises(MinitlError, match=r"does not allow memory with machine code.*MINITL_ENGINE=plain"):
        load()


@by_us
@pytest.mark.parametrize(
    ("functions", "slots"),
    [({"f": 16}, []), ({"f": -1}, []), ({}, [(9, "memset")]), ({}, [(-1, "memset")]), ({}, [(0, 16)]), ({}, [(0, "no_function_of_c")])],
)
def test_places_outside_of_a_block_are_refused(functions, slots):
    with pytest.raises((ValueError, OSError)):
        linker.place(linker.Block(b"\xc3" * 16, functions, slots))


# ---- linking


def linked(data, object_file, **changes):
    return linker.link(data, **({"symbols": object_file["symbols"], "borrowed": native.BORROWED} | changes))


@by_us
def test_what_is_not_in_the_object_file_is_refused(object_file):
    with pytest.raises(linker.Unlinkable, match="nowhere"):
        linked(object_file["data"], object_file, symbols={"steps": "nowhere"})
    with pytest.raises(linker.Unlinkable, match="expf"):
        linked(object_file["data"], object_file, borrowed=("memset",))


@by_us
def test_a_variable_that_can_be_written_to_is_refused():
    import llvmlite.binding as llvm

    processor.said_by_llvm()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic", codemodel="small")
    source = "@seen = internal global i64 1\ndefine void @f(i64 %a) {\n %b = load i64, ptr @seen\n %c = add i64 %a, %b\n"
    source += " store i64 %c, ptr @seen\n ret void\n}"
    data = bytes(machine.emit_object(llvm.parse_assembly(source)))
    with pytest.raises(linker.Unlinkable, match="flags 3"):
        linker.link(data, {"f": "f"}, ())
    linker.link(bytes(machine.emit_object(llvm.parse_assembly("define i64 @f() {\n ret i64 7\n}"))), {"f": "f"}, ())


@by_us
def test_a_damaged_object_file_is_linked_or_refused_and_nothing_else(object_file):
    """Nobody but LLVM writes what is linked; still, nothing is read or written outside of it."""
    data, random = object_file["data"], np.random.default_rng(0)
    refused = 0
    for at in [*range(64), *random.integers(0, len(data), 300)]:
        changed = bytearray(data)
        changed[at] ^= int(random.integers(1, 256))
        try:
            linked(bytes(changed), object_file)
        except linker.Unlinkable:
            refused += 1
    for length in [0, 1, 16, 63, 64, *random.integers(0, len(data), 30)]:
        with pytest.raises(linker.Unlinkable):
            linked(data[:length], object_file)
    print(f"{refused} of 364 with a changed byte were refused")


@by_us
def test_other_machines_and_formats_are_refused(object_file):
    data = object_file["data"]
    for at, value in ((4, 1), (5, 2), (16, 3), (18, 183)):
        with pytest.raises(linker.Unlinkable, match="no relocatable ELF"):
            linked(data[:at] + struct.pack("<B", value) + data[at + 1 :], object_file)


# ---- keeping


def test_code_is_kept_and_found_again(folder, times):
    first, again = answers(load()), answers(load())
    assert first == again and times == ["head"]
    (path,) = folder.iterdir()
    assert path.name.startswith("head-") and path.suffix == ".bin"


def test_several_threads_compile_once(folder, times):
    native._loaded.cache_clear()
    found = []
    some = [threading.Thread(target=lambda: found.append(native.load("head"))) for _ in range(4)]
    for thread in some:
        thread.start()
    for thread in some:
        thread.join()
    native._loaded.cache_clear()
    assert len(times) == 1
    assert len(set(map(id, found))) == 1


def test_a_disk_that_can_only_be_read_from_is_good_enough(folder, times, monkeypatch):
    load()

    def refused(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(native, "write_atomically", refused)
    load()
    assert len(times) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_anew_and_replaced(folder, times, damage):
    load()
    (path,) = folder.iterdir()
    good = path.read_bytes()
    DAMAGES[damage](path, good)
    assert answers(load()) and len(times) == 2
    assert path.read_bytes() == good and answers(load()) and len(times) == 2


def test_a_folder_where_code_should_be_is_harmless(folder, times):
    load()
    (path,) = folder.iterdir()
    path.unlink()
    path.mkdir()
    assert answers(load()) and len(times) == 2 and path.is_dir()


@unix
def test_a_folder_that_others_may_write_to_is_not_used(folder, times):
    load()
    (path,) = folder.iterdir()
    path.write_bytes(hashlib.sha256(b"harm").digest() + b"harm")
    folder.chmod(0o777)
    assert answers(load()) and len(times) == 2
    assert path.read_bytes().endswith(b"harm"), "nor is anything written to it"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_compiled_anew(folder, times):
    load()
    (path,) = folder.iterdir()
    path.chmod(0)
    assert answers(load()) and len(times) == 2


def test_each_kernel_of_another_processor_version_or_source_has_its_own_file(folder, monkeypatch):
    seen = {native._place("head"), native._place("inference")}
    for where, name, value in (
        (native, "host", lambda: ("another", frozenset())), (native, "LANES", 99), (native, "DOT", 99), (native, "__version__", "9"),
        (native, "_version", lambda package: "9"), (jit, "source_hash", lambda path: "9"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            seen.add(native._place("head"))
    assert len(seen) == 8 and native._place("head") in seen


def test_another_process_looks_in_the_same_place(folder):
    command = [sys.executable, "-c", "from minitl import native; print(native._place('head'))"]
    for seed in ("1", "2"):
        out = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, timeout=100)
        assert out.stdout.strip() == str(native._place("head")), out.stderr


def test_sources_that_change_while_they_are_compiled_are_not_kept(folder, times, monkeypatch):
    find = jit.source_hash
    monkeypatch.setattr(jit, "source_hash", lambda path: find(path))
    jit.source_hash.__wrapped__ = lambda path: "changed"
    assert answers(load()) and times == ["head"] and not list(folder.iterdir())


def test_what_nobody_has_loaded_for_a_month_makes_room(folder, times):
    folder.mkdir(parents=True)
    now = time.time()
    for name, days in (("head-old.bin", 31), ("inference-older.bin", 90), ("head-used.bin", 29), ("seven-old.numba", 90)):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (now - 86_400 * days,) * 2)
    load()
    (path,) = set(folder.iterdir()) - {folder / "head-used.bin", folder / "seven-old.numba"}
    os.utime(path, (now - 86_400 * 40,) * 2)
    load()
    assert path.stat().st_mtime > now - 60 and times == ["head"], "loading is using"


def test_compiling_is_announced_in_one_line_and_loading_is_not(folder, times, monkeypatch):
    said = []
    monkeypatch.setattr(jit, "announce", said.append)
    load(), load()
    assert said == ["compiling the head kernels for this processor, once ..."]


def test_two_processes_at_once_on_an_empty_folder_are_harmless_and_a_third_compiles_nothing(folder):
    code = "import sys; from minitl import native; native.load('head'); print('numba' in sys.modules)"

    def start():
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    both = [start(), start()]
    assert [process.communicate(timeout=300) for process in both] == [("True\n", "")] * 2
    assert start().communicate(timeout=300) == ("False\n", "") and len(list(folder.iterdir())) == 1


# ---- the processor


@by_us
def test_the_system_and_llvm_say_the_same_of_this_processor():
    has = processor.named(processor.said_by_llvm()[1])
    assert (processor.lanes(has), processor.dot(has)) == (processor.LANES, processor.DOT)


@by_us
@pytest.mark.parametrize(
    "said", [None, "", "processor\t: 0\nflags\t\t: avx2 avx512f", "processor\t: 0\nFeatures\t: asimd\n\nprocessor\t: 1\n"]
)
def test_where_the_system_does_not_say_llvm_is_asked(said, tmp_path, monkeypatch):
    if said is not None:
        (tmp_path / "cpuinfo").write_text(said)
    monkeypatch.setattr(processor, "CPUINFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setattr(processor, "said_by_llvm", lambda: ("anything", "+avx2,-avx512f"))
    assert processor.host.__wrapped__() == ("('anything', '+avx2,-avx512f')", {"avx2"})


@by_us
def test_only_the_first_processor_counts_and_its_speed_at_the_moment_does_not(tmp_path, monkeypatch):
    def host(mhz, second):
        text = f"vendor_id\t: X\nmodel name\t: Y (R)\ncpu MHz\t\t: {mhz}\nflags\t\t: fpu avx2 avx512_vnni\n\n"
        (tmp_path / "cpuinfo").write_text(text + f"vendor_id\t: {second}\nflags\t\t: avx512f\n\n")
        monkeypatch.setattr(processor, "CPUINFO", str(tmp_path / "cpuinfo"))
        return processor.host.__wrapped__()

    assert host(1000, "X") == host(2000, "Z") and host(1, "X")[1] == {"fpu", "avx2", "avx512vnni"}


def test_a_processor_that_llvm_sees_otherwise_is_not_compiled_for(monkeypatch):
    monkeypatch.setattr(native, "LANES", 99)
    with pytest.raises(OSError, match="disagree about this processor"):
        native._compile("head")
