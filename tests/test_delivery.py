"""Folders that are written again and again: every claim of minitl/delivery.py."""

import hashlib
import os
import shutil
import subprocess

import pytest
from test_images import ordinary_user, unix

from minitl.delivery import LIST, deliver
from minitl.errors import MinitlError

FILES = {"Makefile": b"all:\n", "model/net.h": b"header", "board/deep/board.c": b"board"}


def content(folder):
    """{path: bytes} of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def without_list(folder):
    return {path: data for path, data in content(folder).items() if not path.endswith(LIST)}


def test_a_folder_is_made_and_its_list_is_that_of_sha256sum(tmp_path):
    assert deliver({tmp_path / "x.h": b"x"}, {tmp_path / "new": FILES}) == []
    assert without_list(tmp_path / "new") == FILES and (tmp_path / "x.h").read_bytes() == b"x"
    lines = [f"{hashlib.sha256(FILES[path]).hexdigest()}  {path}" for path in sorted(FILES)]
    assert (tmp_path / "new" / LIST).read_text().splitlines() == lines
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--quiet", LIST], cwd=tmp_path / "new", check=True)


def test_what_is_ours_is_replaced_and_removed_what_is_the_users_stays(tmp_path):
    deliver({}, {tmp_path: FILES | {"old/one.c": b"1", "two.c": b"2"}})
    (tmp_path / "mine.c").write_bytes(b"mine")
    (tmp_path / "model" / "mine.h").write_bytes(b"mine")
    (tmp_path / "Makefile").write_bytes(b"all: mine\n")
    (tmp_path / "two.c").write_bytes(b"two, mine now")
    notes = deliver({}, {tmp_path: FILES | {"Makefile": b"all: new\n", "model/net.h": b"new"}}, ("model/",))
    assert len(notes) == 1 and str(tmp_path / "Makefile") in notes[0] and "you changed it" in notes[0]
    assert without_list(tmp_path) == FILES | {
        "Makefile": b"all: mine\n", "model/net.h": b"new", "mine.c": b"mine", "model/mine.h": b"mine", "two.c": b"two, mine now",
    }  # fmt: skip
    assert not (tmp_path / "old").exists()
    assert len(deliver({}, {tmp_path: FILES})) == 1  # the third time, too
    (tmp_path / "Makefile").unlink()
    assert deliver({}, {tmp_path: FILES}) == [] and (tmp_path / "Makefile").read_bytes() == FILES["Makefile"]


@pytest.mark.parametrize(
    "problem", ["foreign", "fixed", "folder", "dangling link", "unreadable list", "file for a folder", "one file twice"]
)
def test_a_file_in_the_way_stops_everything(tmp_path, problem):
    folder, other = tmp_path / "folder", tmp_path / "x.h"
    other.write_bytes(b"old")
    files = dict(FILES)
    if problem == "foreign":
        folder.mkdir()
        (folder / "Makefile").write_bytes(b"mine")
    elif problem == "fixed":
        deliver({}, {folder: FILES})
        (folder / "model/net.h").write_bytes(b"by hand")
        files["model/net.h"] = b"new"
    elif problem == "folder":
        (folder / "Makefile").mkdir(parents=True)
    elif problem == "dangling link":
        folder.mkdir()
        (folder / "Makefile").symlink_to("nowhere")
    elif problem == "unreadable list":
        (folder / LIST).mkdir(parents=True)
    elif problem == "file for a folder":
        folder.mkdir()
        (folder / "model").write_bytes(b"mine")
    before = content(tmp_path)
    with pytest.raises(MinitlError) as caught:
        deliver(
            {other: b"new"} | ({folder / "main/../Makefile": b"all:"} if problem == "one file twice" else {}), {folder: files}, ("model/",)
        )
    print(caught.value)
    assert content(tmp_path) == before and folder.exists() == (problem != "one file twice")


def test_the_same_content_is_never_in_the_way(tmp_path):
    """As after a kill between two renames: new files, no list yet."""
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    assert deliver({}, {tmp_path: FILES}) == [] and (tmp_path / LIST).exists()


def test_a_list_from_elsewhere_removes_nothing_outside(tmp_path):
    (tmp_path / "precious").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    (tmp_path / "folder").mkdir()
    lines = [f"{digest}  ../precious", f"{digest}  {tmp_path}/precious", f"{digest}  a\0b", "nonsense", "\xff  x"]
    (tmp_path / "folder" / LIST).write_text("\n".join(lines), encoding="latin-1")
    assert deliver({}, {tmp_path / "folder": FILES}) == [] and (tmp_path / "precious").exists()


@pytest.mark.parametrize("at", range(1, 6))
def test_a_disk_that_fills_up_leaves_everything_as_it_was(tmp_path, monkeypatch, at):
    calls = []

    def filling_up(handle, real=os.fsync):
        calls.append(handle)
        if len(calls) == at:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", filling_up)
    with pytest.raises(MinitlError, match="No space left"):
        deliver({tmp_path / "x.h": b"x"}, {tmp_path / "new": FILES})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    cases = {"no/new": "does not exist", "file": "Not a directory", "file/new": "Not a directory", "x" * 300: "too long", "a\0b": "null"}
    for name, words in cases.items():
        with pytest.raises(MinitlError, match=words):
            deliver({}, {tmp_path / name: FILES})
    assert content(tmp_path) == {"file": b"mine"}


@unix
@ordinary_user
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(MinitlError, match="Permission denied"):
        deliver({}, {tmp_path / "new": FILES})
    tmp_path.chmod(0o755)


def test_a_file_that_is_asked_for_is_not_removed_as_an_old_one(tmp_path):
    deliver({}, {tmp_path: FILES})
    deliver({tmp_path / "model/net.h": b"mine"}, {tmp_path: {"Makefile": b"all:\n"}})
    assert without_list(tmp_path) == {"Makefile": b"all:\n", "model/net.h": b"mine"}


@pytest.mark.parametrize("case", ["another name", "another example", "weights apart"])
def test_a_changed_file_that_would_not_build_any_more_is_no_reason_to_break_the_folder(tmp_path, case):
    def files(name, apart=False):
        sources = f"model/{name}.c" + (f" model/{name}_weights.S" if apart else "")
        found = {"main.c": f'#include "model/{name}.h"\n', "Makefile": f"all: {sources}\n", f"model/{name}.h": name, f"model/{name}.c": ""}
        found |= {f"examples/{name}.ino": f"#include <{name}.h>\n"} | ({f"model/{name}_weights.S": ""} if apart else {})
        return {path: text.encode() for path, text in found.items()}

    changed, then, now = {
        "another name": ("main.c", ("cat",), ("dog",)),
        "another example": ("examples/cat.ino", ("cat",), ("dog",)),
        "weights apart": ("Makefile", ("cat",), ("cat", True)),
    }[case]
    deliver({}, {tmp_path: files(*then)}, ("model/",))
    with open(tmp_path / changed, "ab") as file:
        file.write(b"# mine\n")
    before = content(tmp_path)
    with pytest.raises(MinitlError, match="the same --name") as caught:
        deliver({}, {tmp_path: files(*now)}, ("model/",))
    print(caught.value)
    assert str(tmp_path / changed) in str(caught.value) and content(tmp_path) == before
    assert len(deliver({}, {tmp_path: files(*then)}, ("model/",))) == 1  # as before: fine
    (tmp_path / changed).rename(tmp_path / "away")
    assert deliver({}, {tmp_path: files(*now)}, ("model/",)) == []
    assert without_list(tmp_path).keys() == {*files(*now), "away"}
