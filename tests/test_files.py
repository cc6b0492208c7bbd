"""Writing files whole or not at all: every claim of minitl/files.py."""

import os
import stat

import pytest
from test_images import ordinary_user, unix

from minitl.errors import MinitlError
from minitl.files import write_atomically, write_together


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "model.h"
    write_atomically(path, b"old")
    write_atomically(str(path), b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["model.h"]
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.h"
    write_atomically(path, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    def interrupted(*names):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(MinitlError, match="No space left"):
            write_atomically(path, b"new")
    with monkeypatch.context() as m:
        m.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.h"]


def test_impossible_targets_are_named(tmp_path):
    for target, words in (
        (tmp_path, "a folder"),
        (tmp_path / "no/such/file", "does not exist"),
        (tmp_path / ("x" * 300), "cannot write"),
        (tmp_path / "zero\0byte", "cannot write"),
    ):
        with pytest.raises(MinitlError, match=words):
            write_atomically(target, b"x")
    assert os.listdir(tmp_path) == []


@unix
def test_a_link_stays_a_link_and_a_device_is_not_replaced(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MinitlError, match="not an ordinary file"):
        write_atomically(tmp_path / "pipe", b"x")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


@unix
@ordinary_user
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(MinitlError, match="Permission denied"):
        write_atomically(tmp_path / "model.h", b"x")
    tmp_path.chmod(0o755)


def test_several_files_are_written_together_or_not_at_all(tmp_path):
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    with pytest.raises(MinitlError, match="does not exist"):
        write_together({tmp_path / "a": b"new", tmp_path / "missing" / "c": b"3"})
    assert (tmp_path / "a").read_bytes() == b"1" and sorted(os.listdir(tmp_path)) == ["a", "b"]
    write_together({})


def test_what_a_killed_process_left_is_swept_an_hour_later(tmp_path):
    old, fresh, other = (tmp_path / f".{name}.0123456789abcdef.tmp" for name in ("a.bin", "a.bin2", "b.bin"))
    fresh = tmp_path / ".a.bin.fedcba9876543210.tmp"
    for path in (old, fresh, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    write_atomically(tmp_path / "a.bin", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.bin", fresh.name, other.name])
