"""Fetching weights from a server that does everything wrong that a server can: the file, whole and checked, or a sentence and nothing."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import test_importers_tfjs
from importer_files import network, tflite

from minitl import MinitlError, cli, manifest, model, pull
from minitl.manifest import Entry

GRAPH = network(batch_norm=False)[0]
DATA = tflite(GRAPH).bytes()
SHA256 = hashlib.sha256(DATA).hexdigest()
TAG = '"version-1"'
PART = 200_000


class Handler(BaseHTTPRequestHandler):
    """/WORDS/file.tflite: what goes wrong there, with commas between. asked: (path, headers) of every request."""

    asked: ClassVar[list] = []
    data, tag, busy = DATA, TAG, False

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        self.asked.append((self.path, {}))
        self.send_error(418)

    def do_GET(self):
        words = self.path.split("/")[1].split(",")
        self.asked.append((self.path, dict(self.headers)))
        if code := 503 if self.busy else next((int(word) for word in words if word.isdigit()), None):
            self.send_response(code)
            if 300 <= code < 400:
                port = self.server.server_address[1]
                self.send_header("Location", {"file": "file:///etc/passwd", "loop": self.path, "ftp": "ftp://127.0.0.1/x",
                                              "elsewhere": f"http://localhost:{port}/good/file.tflite", "none": "",
                                              "good": "/tagged/file.tflite"}[words[-1]])  # fmt: skip
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data, start = self.data, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        ranged = asked and "ranges" in words and self.headers["If-Range"] == self.tag
        if ranged:
            start = int(asked[1])
        if "page" in words:
            data = b"  <!DOCTYPE html><title>Please log in</title>"
        if "wrong" in words:
            data = bytes(len(data))
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start + ('shifted' in words)}-{len(data) - 1}/{len(data)}")
        if "tagged" in words or "weak" in words:
            self.send_header("ETag", "W/" * ("weak" in words) + ('"other"' if ranged and "renamed" in words else self.tag))
        if "endless" not in words:
            lie = 5_000 * ("longer" in words) - 5_000 * ("shorter" in words) + (1 << 40) * ("huge" in words)
            self.send_header("Content-Length", str(len(data) - start + lie))
        self.end_headers()
        stops = PART if {"cut", "stalls", "drips"} & set(words) and not start else len(data)
        try:
            self.wfile.write(data[start:stops])
            for _ in range(20 if "drips" in words and not start else 0):
                self.wfile.write(b"x")
                time.sleep(0.1)
            while "endless" in words and "more" in words:
                self.wfile.write(bytes(1 << 16))
            if "stalls" in words and not start:
                time.sleep(3)
        except OSError:  # the client has had enough
            pass


@pytest.fixture(scope="module")
def server():
    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.daemon_threads = True
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{one.server_address[1]}"
    one.shutdown()
    one.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where pull keeps things; no proxy of the machine is used."""
    monkeypatch.setenv("MINITL_CACHE", str(tmp_path / "cache"))
    for name in [*os.environ]:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    Handler.asked.clear()
    return tmp_path / "cache" / "weights"


def entry(server, words="good", **facts):
    known = {"bytes": len(DATA), "checksum": f"sha256:{SHA256}", "licence": "CC0", "accuracy": 12.5}
    return Entry("test-net", f"{server}/{words}/file.tflite", "tflite", "mobilenet_v1", 0.25, 64, **{**known, **facts})


def fetch(one, timeout=0.5, **options):
    return pull.pull(one, local=True, timeout=timeout, **options)


def refused(one, *words, left=()):
    """The sentence; nothing but `left` stays in the cache."""
    with pytest.raises(MinitlError) as problem:
        fetch(one)
    text = str(problem.value)
    assert text.isprintable() and text.startswith("test-net") and len(text) < 700
    for word in words:
        assert word in text, text
    assert sorted(path.name for path in one.kept.parent.rglob("*")) == sorted(left)
    return text


# ---- what goes well


def test_a_file_is_fetched_checked_converted_and_kept_with_its_origin(server, folder):
    seen = []
    found = fetch(entry(server), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(DATA), len(DATA)) and len(seen) > 3
    assert [path.name for path in folder.rglob("*")] == ["test-net.npz"]
    again = model.load(folder / "test-net.npz")
    for name, array in GRAPH.arrays().items():
        assert np.array_equal(again.graph.arrays()[name], array)
    facts = again.provenance
    assert facts["source"].endswith("/good/file.tflite") and facts["licence"] == "CC0" and facts["published top-1"] == 12.5
    assert facts["sha256"] == SHA256 and facts["file"] == "file.tflite" and found.provenance == facts


def test_a_second_pull_asks_nobody(server):
    fetch(entry(server))
    count = len(Handler.asked)
    fetch(entry(server))
    assert len(Handler.asked) == count == 1


def test_what_was_kept_of_another_file_or_is_damaged_is_fetched_anew(server, folder):
    fetch(entry(server))
    fetch(entry(server, "tagged"))
    (folder / "test-net.npz").write_bytes(b"PK\3\4 damaged")
    fetch(entry(server, "tagged"))
    assert len(Handler.asked) == 3


def test_files_without_length_size_or_checksum_are_read_to_their_end(server):
    for words in ("endless", "302,good", "307,good"):
        fetch(entry(server, words, bytes=None, checksum=None))


def test_a_download_that_broke_off_goes_on_where_the_server_vouches_for_its_beginning(server, folder):
    one = entry(server, "cut,ranges,tagged")
    assert "goes on after the 200,000 bytes" in refused(one, f"ended after 200,000 of {len(DATA):,}", left=["test-net.part"])
    fetch(one)
    asked = Handler.asked[-1][1]
    assert asked["Range"] == "bytes=200000-" and asked["If-Range"] == TAG
    assert [path.name for path in folder.rglob("*")] == ["test-net.npz"]


@pytest.mark.parametrize("words", ["cut,tagged", "cut,ranges,tagged,shifted", "cut,ranges,tagged,renamed"])
def test_a_server_without_ranges_or_with_wrong_ones_is_asked_from_the_beginning(server, words):
    refused(entry(server, words), left=["test-net.part"])
    with pytest.raises(MinitlError, match="200,000 of"):  # it is cut again, but nothing was put together wrongly
        fetch(entry(server, words))
    assert "Range" in Handler.asked[1][1]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(server, monkeypatch):
    refused(entry(server, "cut,ranges,tagged"), left=["test-net.part"])
    monkeypatch.setattr(Handler, "tag", '"version-2"')
    refused(entry(server, "cut,ranges,tagged"), left=["test-net.part"])
    assert Handler.asked[1][1]["If-Range"] == TAG
    monkeypatch.setattr(Handler, "tag", TAG)


@pytest.mark.parametrize("words", ["cut", "cut,weak,ranges"])
def test_a_beginning_that_nobody_vouches_for_is_not_kept(server, words):
    assert "nothing was kept" in refused(entry(server, words))


def test_a_kept_beginning_outlives_a_server_that_is_away_or_busy(server, folder, monkeypatch):
    one = entry(server, "cut,ranges,tagged")
    refused(one, left=["test-net.part"])
    kept = (folder / "test-net.part").read_bytes()
    monkeypatch.setattr(Handler, "busy", True)
    assert "goes on after the 200,000" in refused(one, "HTTP 503", left=["test-net.part"])
    monkeypatch.setattr(urllib.request.HTTPHandler, "http_open", lambda *_: (_ for _ in ()).throw(OSError(101, "Network is unreachable")))
    refused(one, "Network is unreachable", left=["test-net.part"])
    assert (folder / "test-net.part").read_bytes() == kept


def test_a_damaged_or_foreign_beginning_is_never_built_upon(server, folder):
    one = entry(server, "cut,ranges,tagged")
    refused(one, left=["test-net.part"])
    whole = (folder / "test-net.part").read_bytes()
    for bad in (whole[:-1] + b"x", whole[:-1], b"", b"{}\n", b"[1]\n", b"\xff" * 9, whole.replace(b"cut,", b"cat,", 1)):
        (folder / "test-net.part").write_bytes(bad)
        Handler.asked.clear()
        refused(one, left=["test-net.part"])
        assert "Range" not in Handler.asked[0][1]


def test_a_kept_beginning_that_the_server_refuses_is_given_up(server, folder):
    refused(entry(server, "cut,ranges,tagged"), left=["test-net.part"])
    part = folder / "test-net.part"
    part.write_bytes(part.read_bytes().replace(b"cut,ranges,tagged", b"416,good", 1))
    refused(entry(server, "416,good"), "HTTP 416")
    assert len(Handler.asked) == 3


# ---- what goes wrong


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("404", "no such file there any more (HTTP 404)"),
        ("403", "access refused"),
        ("503", "try later"),
        ("206", "unexpected answer"),
        ("stalls", "stopped answering"),
        ("drips", "stopped answering"),
        ("longer", "it is another file"),
        ("shorter", "it is another file"),
        ("huge", "offers 1,0"),
        ("page", "another file"),
        ("page,endless", "a web page came"),
        ("endless,more", "more than"),
        ("wrong", "is not what its maker published"),
        ("302,loop", "sent on more than 5 times"),
        ("302,file", "sent on to file"),
        ("301,ftp", "sent on to ftp"),
        ("302,elsewhere", "only https: is followed"),
        ("302,none", "sent on more than 5 times"),
    ],
)
def test_a_server_that_does_wrong_gets_a_sentence_and_leaves_nothing(server, words, says):
    refused(entry(server, words), says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("longer", "ended after"),
        ("shorter", "damaged or cut off"),
        ("huge", "no weights have more than"),
        ("page", "a web page came"),
        ("wrong", "cannot read file.tflite"),
        ("page,endless", "a web page came"),
    ],
)
def test_so_does_one_whose_file_has_neither_known_size_nor_checksum(server, words, says):
    with pytest.raises(MinitlError) as problem:
        fetch(entry(server, words, bytes=None, checksum=None))
    assert says in str(problem.value)
    assert not [*entry(server).kept.parent.rglob("*")]


def test_endless_bytes_end_at_a_limit(server, monkeypatch):
    monkeypatch.setattr(pull, "LARGEST", 3 << 20)
    refused(entry(server, "endless,more", bytes=None, checksum=None), "more than 3,145,728 bytes came")


def test_another_network_than_the_list_says_is_refused(server):
    one = replace(entry(server), alpha=0.5)
    assert "found mobilenet_v1 0.25 at 64" in refused(one, "not the network that its maker describes")


def test_no_server_no_name_no_tls(server, folder):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        refused(entry(f"http://127.0.0.1:{nobody.getsockname()[1]}"), "Connection refused")
    one = entry("https://host.invalid")
    refused(one, "host.invalid", "check the connection")
    refused(entry(server.replace("http:", "https:")), "check the connection")  # it does not speak TLS


def test_plain_http_is_for_tests_alone(server):
    with pytest.raises(MinitlError, match="only https: is followed"):
        pull.pull(entry(server))
    with pytest.raises(MinitlError, match="only https: is followed"):
        pull.pull(entry(server.replace("127.0.0.1", "localhost")), local=True)
    assert not Handler.asked


def test_the_proxy_of_the_environment_is_used(server, monkeypatch):
    monkeypatch.setenv("https_proxy", server)
    refused(entry("https://host.invalid"), "418")
    assert Handler.asked[0][0] == "host.invalid:443"


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MINITL_CACHE", str(tmp_path / "file"))
    with pytest.raises(MinitlError, match="MINITL_CACHE names another place"):
        fetch(entry(server))
    assert not Handler.asked


def test_a_full_disk_leaves_nothing(server, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(entry(server), "No space left on device")
    monkeypatch.setattr("os.fsync", full)
    assert "nothing was kept" in refused(entry(server, "cut,tagged"))


def test_what_a_killed_process_left_is_swept_up(server, folder):
    for name, age in (("old", 7200), ("new", 0)):
        place = folder / f".pull-{name}"
        place.mkdir(parents=True)
        (place / "file").write_text("x")
        os.utime(place, (time.time() - age,) * 2)
    fetch(entry(server))
    assert sorted(path.name for path in folder.iterdir()) == [".pull-new", "test-net.npz"]


# ---- a model.json with its shards


def test_the_shards_of_a_tensorflow_js_model_are_fetched_from_beside_it(server, monkeypatch):
    asked = []
    source = pull._Source(entry(server), True, 1)
    monkeypatch.setattr(source, "fetch", lambda url, *_: bytearray(asked.append(url) or b"123"))
    found = pull._shards(entry(server), json.dumps({"weightsManifest": [{"paths": ["a-1of1", "b.bin"]}]}).encode(), source, print)
    assert list(found) == ["a-1of1", "b.bin"] and asked == [f"{server}/good/a-1of1", f"{server}/good/b.bin"]
    for names in (["../x"], ["/etc/passwd"], ["https://elsewhere/x"], [".hidden"], ["a/b"], ["x"] * 300, [], [1], ["a\n"]):
        with pytest.raises(MinitlError, match="names files elsewhere"):
            pull._shards(entry(server), json.dumps({"weightsManifest": [{"paths": names}]}).encode(), source, print)
    for data in (b"[" * 100_000, b"\xff", b"{}", b'{"weightsManifest": 1}'):
        with pytest.raises(MinitlError, match=r"no model\.json"):
            pull._shards(entry(server), data, source, print)


def test_a_whole_tensorflow_js_model_arrives(tmp_path):
    graph = network(input_shape=[32, 32, 3])[0]
    (tmp_path / "site").mkdir()
    test_importers_tfjs.write(tmp_path / "site", graph, shard=200_000)
    shards = len([*(tmp_path / "site").iterdir()]) - 1
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen = []
    url = f"http://127.0.0.1:{server.server_address[1]}/model.json"
    found = fetch(Entry("test-js", url, "tfjs", "mobilenet_v1", 0.25, 32), timeout=5, progress=lambda *at: seen.append(at))
    server.shutdown()
    server.server_close()
    assert shards > 3 and len(found.provenance["beside"]) == shards and seen[-1][0] > 800_000
    assert all(np.array_equal(found.graph.arrays()[name], array) for name, array in graph.arrays().items())


# ---- the command


def test_the_command_pulls_once_writes_where_it_is_told_and_train_knows_the_name(server, tmp_path, monkeypatch, capsys):
    one = entry(server)
    monkeypatch.setitem(manifest.ENTRIES, one.name, one)
    real = pull.pull
    monkeypatch.setattr(pull, "pull", lambda entry, progress: real(entry, progress, local=True))
    assert cli.main(["weights", "pull", "test-net", "--to", str(tmp_path / "net.npz")]) == 0
    said = capsys.readouterr()
    assert "use it with --weights test-net" in said.out and "licence: CC0" in said.err
    assert (tmp_path / "net.npz").read_bytes() == one.kept.read_bytes()
    assert cli.main(["weights", "pull", "test-net", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["file"] == str(one.kept) and len(Handler.asked) == 1
    assert cli.main(["weights", "test-net"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("yes")
    assert model.find("test-net").provenance["licence"] == "CC0"


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
from minitl import cli, manifest, pull
from minitl.manifest import Entry
one = Entry("test-net", sys.argv[1], "tflite", "mobilenet_v1", 0.25, 64)
manifest.ENTRIES["test-net"] = one
real = pull.pull
pull.pull = lambda entry, progress: real(entry, lambda *at: (progress(*at), print("got", file=sys.stderr, flush=True)), True, 20)
sys.exit(cli.main(["weights", "pull", "test-net"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize(("words", "left"), [("stalls,tagged", ["test-net.part"]), ("stalls", [])])
def test_ctrl_c_ends_a_download_with_what_can_be_trusted(server, folder, words, left):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, f"{server}/{words}/file.tflite"], stderr=subprocess.PIPE, env=environment
    )
    count = 0
    while count < 3:
        count += process.stderr.readline() == b"got\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    text = process.stderr.read().decode()
    assert process.wait(10) == 130 and "stopped; " in text and "Traceback" not in text
    assert ("goes on after" if left else "nothing was kept") in text
    assert [path.name for path in folder.rglob("*")] == left


def test_the_size_of_images_is_the_list_s_where_a_file_does_not_say_it(server):
    found = model.find("random:mobilenet_v2_0.35_64").note(notes=["input size 64 x 64 assumed", "other"])
    one = Entry("x", "https://x/y", "torch", "mobilenet_v2", 0.35, 96)
    fitted = pull._identify(one, found)
    assert fitted.graph.input_shape == (96, 96, 3) and (fitted.recipe.height, fitted.recipe.width) == (96, 96)
    assert fitted.provenance["notes"] == ["other", "input size 96 x 96: what its maker publishes it for"]
    with pytest.raises(MinitlError, match=r"found mobilenet_v2 0\.35 at 64, expected mobilenet_v2 0\.35 at 96"):
        pull._identify(Entry("x", "https://x/y", "tflite", "mobilenet_v2", 0.35, 96), found)
