"""Kernels that are compiled when they are called, and code that is kept: whatever is wrong with the folder, answers are right."""

import hashlib
import os
import pickle
import subprocess
import sys
import threading

import pytest
from test_images import unix

from minitl import jit
from minitl.jit import Kernel, njit, source_hash


@njit
def doubled(x):
    return 2 * x


@njit
def seven_more(x):
    return doubled(x) + 7


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINITL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def fresh(function=seven_more):
    """A kernel as a new process has it."""
    return Kernel(getattr(function, "py_func", None) or function.function)


def loaded(kernel):
    """Whether the code of a called kernel came from the disk."""
    return bool(kernel.made._cache_hits)


def kept(folder):
    return sorted(path for path in folder.iterdir() if path.name.startswith("seven_more"))


def test_a_kernel_is_compiled_by_its_first_call_and_then_stands_in_for_itself():
    assert isinstance(njit(len), Kernel)
    names = {"__name__": "somewhere"}
    exec("def inner(x):\n    return x * x\ndef outer(x):\n    return inner(x) + 1", names)
    names["inner"], names["outer"] = njit(names["inner"]), njit(names["outer"])
    outer = names["outer"]
    assert outer.made is None and outer(3) == 10
    assert names["outer"] is outer.made and names["outer"](4) == 17, "later calls take no detour"


def test_threads_that_call_first_at_the_same_time_compile_one_kernel():
    kernel, made = fresh(doubled), []
    threads = [threading.Thread(target=lambda: made.append(kernel.compiled())) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(made) == 8 and len(set(map(id, made))) == 1


def test_code_is_kept_for_each_type_and_found_again(folder):
    assert fresh()(3) == 13 and fresh()(0.5) == 8.0
    assert len(kept(folder)) == 2
    again = fresh()
    assert again(3) == 13 and loaded(again)


def replace(path, content):
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path, code: replace(path, b""),
    "one byte": lambda path, code: replace(path, code[:1]),
    "cut short": lambda path, code: replace(path, code[: len(code) // 2]),
    "a bit flipped": lambda path, code: replace(path, code[:5000] + bytes([code[5000] ^ 1]) + code[5001:]),
    "noise": lambda path, code: replace(path, os.urandom(5000)),
    "other content, well signed": lambda path, code: replace(path, hashlib.sha256(pickle.dumps([1])).digest() + pickle.dumps([1])),
    "no pickle, well signed": lambda path, code: replace(path, hashlib.sha256(b"what").digest() + b"what"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_code_is_compiled_anew_and_replaced(folder, damage):
    fresh()(3)
    (path,) = kept(folder)
    code = path.read_bytes()
    DAMAGES[damage](path, code)
    broken, mended = fresh(), fresh()
    assert broken(3) == 13 and not loaded(broken)
    assert mended(3) == 13 and loaded(mended)


def test_a_folder_where_code_should_be_is_harmless(folder):
    fresh()(3)
    (path,) = kept(folder)
    path.unlink()
    path.mkdir()
    kernel = fresh()
    assert kernel(3) == 13 and not loaded(kernel) and path.is_dir()


def test_a_file_where_the_folder_should_be_is_harmless(folder):
    folder.parent.write_text("not a folder")
    assert fresh()(3) == 13 and folder.parent.read_text() == "not a folder"


def test_a_disk_that_is_full_is_harmless(folder, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert fresh()(3) == 13 and not list(folder.iterdir())


def test_a_home_that_does_not_exist_is_harmless(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(jit, "cache_folder", homeless)
    assert jit.kernels_folder() is None and fresh()(3) == 13


@unix
def test_a_folder_that_others_may_write_to_is_not_used(folder):
    """What lies in it is executed; a harmless file that leaves a trace when it is unpickled stands for a harmful one."""
    fresh()(3)
    (path,) = kept(folder)
    trace = folder.parent / "executed"
    code = pickle.dumps(Harm(str(trace)))
    path.write_bytes(hashlib.sha256(code).digest() + code)
    folder.chmod(0o777)
    kernel = fresh()
    assert kernel(3) == 13 and not loaded(kernel) and not trace.exists()
    assert len(kept(folder)) == 1, "nor is anything written to it"
    folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
        assert fresh()(3) == 13 and not trace.exists()
        os.chown(folder, 0, -1)
    assert fresh()(3) == 13 and trace.exists(), "the file does harm where it is trusted"


class Harm:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (self.trace, "w")


@unix
def test_the_folder_is_made_for_its_owner_alone(folder):
    fresh()(3)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_only_what_takes_long_is_announced_and_only_once(monkeypatch):
    said = []
    monkeypatch.setattr(jit, "announce", said.append)
    monkeypatch.setattr(jit.Kept, "announced", False)
    monkeypatch.setattr(jit.Kept, "spent", 0.0)
    monkeypatch.setattr(jit, "PATIENCE", 1000)
    fresh()(3)
    assert said == [] and jit.Kept.spent > 0
    monkeypatch.setattr(jit, "PATIENCE", 0)
    fresh()(3)
    assert said == [], "what is kept needs no time"
    fresh()(3.5)
    fresh(doubled)(2j)
    assert said == ["compiling for this processor, once ..."]


# ---- what the code depends on


def old(path, text):
    """A source from before this process."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def test_a_change_of_any_module_that_is_imported_from_makes_other_code(tmp_path):
    def now():
        source_hash.cache_clear()
        return source_hash(kernel)

    kernel = old(tmp_path / "k" / "kernel.py", "import numpy\nfrom . import (\n    first,\n    third as t,\n)\nfrom .inner.deep import y\n")
    old(tmp_path / "k" / "first.py", "from .second import x\n")
    old(tmp_path / "k" / "third.py", "")
    old(tmp_path / "k" / "second.py", "x = 1\n")
    old(tmp_path / "k" / "inner" / "deep.py", "from ..up import y\n")
    old(tmp_path / "k" / "up.py", "from .kernel import z\n")
    old(tmp_path / "k" / "other.py", "")
    seen = {now()}
    for name in ("kernel", "first", "second", "third", "inner/deep", "up"):
        path = tmp_path / "k" / f"{name}.py"
        old(path, path.read_text() + "# changed\n")
        seen.add(now())
    assert len(seen) == 7
    old(tmp_path / "k" / "other.py", "changed = 1")
    assert now() in seen


def test_a_source_that_changed_since_the_process_began_is_not_relied_on(tmp_path):
    (tmp_path / "new.py").write_text("")
    os.utime(tmp_path / "new.py", (4_000_000_000, 4_000_000_000))
    with pytest.raises(OSError):
        source_hash(tmp_path / "new.py")


PROGRAM = """
import sys
from minitl.jit import njit
@njit
def steps(n):
    total = 0
    for i in range(n):
        total += i * i
    return total
print(steps(10), len(steps._cache_hits))
"""


def test_two_processes_at_once_on_an_empty_folder_are_harmless_and_a_third_compiles_nothing(tmp_path):
    program = old(tmp_path / "program.py", PROGRAM)

    def start():
        return subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    both = [start(), start()]
    answers = [process.communicate(timeout=120) for process in both]
    assert all(said.startswith("285 ") and not errors for said, errors in answers)
    assert start().communicate(timeout=120) == ("285 1\n", "")


def test_without_compiling_kernels_are_plain_python(tmp_path):
    program = old(tmp_path / "program.py", PROGRAM.replace(", len(steps._cache_hits)", ""))
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    said = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, timeout=120)
    assert said.stdout == "285\n" and said.stderr == ""
