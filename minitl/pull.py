"""Fetching pretrained weights: an entry of the manifest -> our .npz in the platform's cache folder.

In: manifest.Entry. Out: the model, with Entry.kept on disk, whole and checked; or one sentence why not. What was fetched once is there
without any network.

The bytes are taken over HTTPS only, through the proxies that the environment names, with few redirections and only to HTTPS; nothing of
what a server says is believed: not how much it sends, not that it sends the file. Size and checksum are compared where the maker states
them; then the file is read as any foreign file is, and must be the network that the manifest says.

A download that breaks off leaves nothing, or NAME.part, from which the next one goes on. It is kept only where its beginning can be
trusted: where the server gave a strong ETag, so that it can tell by itself (If-Range) whether its file is still the same; and it carries
its own SHA-256, so that a damaged one is never built upon. All other ends, such as a wrong checksum, leave nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from .errors import MinitlError
from .files import printable, write_atomically
from .manifest import Entry
from .model import Model, load
from .version import __version__

TIMEOUT = 30.0
"""Seconds that a server may take for an answer; and for SLOWEST bytes, once it sends."""
SLOWEST, PIECE, LEAST_KEPT = 1000, 1 << 16, 1 << 16
LARGEST = 1 << 28
"""Bytes; the largest known file has a third of that."""
MOST_REDIRECTIONS, MOST_SHARDS = 5, 200
SIZELESS = ("torch", "safetensors")
"""Formats of files that do not say for which size of images the network was trained."""

Progress = Callable[[int, "int | None"], None]
"""Called with bytes that are there, and bytes in all where that is known."""


def pull(entry: Entry, progress: Progress = lambda done, total: None, local: bool = False, timeout: float = TIMEOUT) -> Model:
    """Fetch, check, convert, keep; or take what was kept. Raises MinitlError; KeyboardInterrupt says what was kept.

    local: for tests: plain HTTP is allowed, to 127.0.0.1 alone.
    """
    if known := kept(entry):
        return known
    folder = entry.kept.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".pull-*"):  # of a process that was killed
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as place:  # also proves, before the work, that it can be written
            source = _Source(entry, local, timeout)
            data = source.fetch(entry.url, entry.bytes, progress, folder / f"{entry.name}.part")
            _compare(entry, data)
            files = {_file_name(entry.url): data} | (_shards(entry, data, source, progress) if entry.format == "tfjs" else {})
            for name, content in files.items():
                Path(place, name).write_bytes(content)
            found = _identify(entry, load(Path(place, _file_name(entry.url))))
            found.save(entry.kept)
    except OSError as error:
        where = printable(error.filename or folder)
        raise MinitlError(
            f"{entry.name} cannot be kept: {where}: {error.strerror or error}; MINITL_CACHE names another place for the cache"
        ) from None
    return found


def kept(entry: Entry) -> Model | None:
    """What was made of an entry before; None where it is not there, damaged, or of another file than the manifest now names."""
    try:
        found = load(entry.kept)
    except MinitlError:
        return None
    kind, _, digits = (entry.checksum or "").partition(":")
    same = found.provenance.get("source") == entry.url
    return found if same and (kind != "sha256" or str(found.provenance.get("sha256")).startswith(digits)) else None


# ---- bytes


class _Source:
    """Where the files of an entry come from."""

    def __init__(self, entry: Entry, local: bool, timeout: float) -> None:
        self.entry, self.local, self.timeout = entry, local, timeout
        self.opener = urllib.request.OpenerDirector()  # by hand: urllib's own would also open file: and ftp:
        for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
            self.opener.add_handler(handler())

    def error(self, url: str, what: str, advice: str = "") -> MinitlError:
        """The error to raise, which names file and server."""
        text = printable(f"{self.entry.name} cannot be fetched from {urlsplit(url).hostname}: {what}")
        return MinitlError(f"{text:.400}; {advice or f'the file is {url}'}")

    def open(self, url: str, headers: dict[str, str]) -> HTTPResponse:
        """The answer to a GET, after all redirections."""
        for _ in range(MOST_REDIRECTIONS + 1):
            parts = urlsplit(url)
            if not (parts.scheme == "https" or (self.local and parts.scheme == "http" and parts.hostname == "127.0.0.1")):
                raise self.error(self.entry.url, f"it is sent on to {parts.scheme or 'nowhere'}: {url:.80}, and only https: is followed")
            answer: HTTPResponse = self.opener.open(urllib.request.Request(url, headers=headers), timeout=self.timeout)
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            answer.close()
            url = urljoin(url, answer.headers.get("Location", ""))
        raise self.error(self.entry.url, f"it is sent on more than {MOST_REDIRECTIONS} times")

    def fetch(self, url: str, size: int | None, progress: Progress, part: Path | None) -> bytearray:
        """All bytes of a file. size: how many it must have, if known. part: what may be kept of it, and gone on with."""
        data, tag = _read_part(part, url) if part else (bytearray(), "")
        try:
            answer = self.open(url, self.headers(data, tag))
            if answer.status == 429 or answer.status >= 500:
                raise ConnectionError(f"the server is busy or out of order (HTTP {answer.status}), try later")
            if data and not self.goes_on(answer, len(data), tag):
                data.clear()
                if answer.status != 200:  # once more from the beginning
                    answer.close()
                    answer = self.open(url, self.headers(data, ""))
            with answer:
                self.check_status(url, answer.status, bool(data))
                tag = tag if data else answer.headers.get("ETag", "")
                length = answer.headers.get("Content-Length", "")
                total = len(data) + int(length) if re.fullmatch(r"\d{1,15}", length) and not answer.chunked else None
                if size is not None and total not in (None, size):
                    raise self.error(url, f"the server offers {total:,} bytes, expected {size:,}: it is another file", "nothing was kept")
                if (total or 0) > LARGEST:
                    raise self.error(url, f"the server offers {total:,} bytes, and no weights have more than {LARGEST:,}")
                self.receive(url, answer, data, total, size, progress)
            if total is not None and len(data) < total:
                raise ConnectionError(f"the connection ended after {len(data):,} of {total:,} bytes")
        except (OSError, HTTPException, ValueError, KeyboardInterrupt) as problem:
            if isinstance(problem, MinitlError):
                if part:
                    part.unlink(missing_ok=True)
                raise
            again = _keep(part, url, tag, data) if part else "nothing was kept"
            if isinstance(problem, KeyboardInterrupt):
                raise KeyboardInterrupt(f"stopped; {again}") from None
            raise self.error(url, _reason(problem), f"check the connection (and proxy, if there is one); {again}") from None
        if part:
            part.unlink(missing_ok=True)
        if size is not None and len(data) != size:
            raise self.error(url, f"it has {len(data):,} bytes, expected {size:,}", "nothing was kept")
        return data

    @staticmethod
    def headers(data: bytearray, mark: str) -> dict[str, str]:
        """What is asked for: the file, or what follows after data, if it is still the file with that ETag."""
        more = {"Range": f"bytes={len(data)}-", "If-Range": mark} if data else {}
        return {"User-Agent": f"minitl/{__version__}", "Accept-Encoding": "identity", **more}

    @staticmethod
    def goes_on(answer: HTTPResponse, start: int, mark: str) -> bool:
        """Whether it is what follows after so many bytes of the file with that ETag."""
        place, tag = answer.headers.get("Content-Range", ""), answer.headers.get("ETag", mark)
        return answer.status == 206 and tag == mark and re.match(rf"bytes {start}-\d+/", place) is not None

    def check_status(self, url: str, status: int, going_on: bool) -> None:
        """Raise unless the answer is the file."""
        if status == 200 or (status == 206 and going_on):
            return
        before = f"; it was once at {self.entry.mirror}" if self.entry.mirror else ""
        words = {404: "no such file there any more", 410: "no such file there any more", 401: "access refused", 403: "access refused"}
        what = words.get(status, "an unexpected answer")
        raise self.error(url, f"{what} (HTTP {status})", f"the file is {url}{before}")

    def receive(
        self, url: str, answer: HTTPResponse, data: bytearray, total: int | None, size: int | None, progress: Progress
    ) -> None:  # fmt: skip
        """Add to data what comes, as far as it may."""
        most = min(n for n in (total, size, LARGEST) if n is not None)
        page = "text/html" in answer.headers.get("Content-Type", "")
        mark, since = len(data), time.monotonic()
        while len(data) < most or total is None:
            piece = answer.read1(min(PIECE, most + 1 - len(data)) if total is None else min(PIECE, most - len(data)))
            if not piece:
                break
            data += piece
            if page or data[:64].lstrip().startswith(b"<"):
                raise self.error(url, "a web page came instead of the file (does this network want a login?)", "nothing was kept")
            if len(data) > most:
                raise self.error(url, f"more than {most:,} bytes came: it is another file", "nothing was kept")
            progress(len(data), total or size)
            if (now := time.monotonic()) - since > self.timeout:
                if len(data) - mark < SLOWEST:
                    raise TimeoutError
                mark, since = len(data), now


def _reason(problem: BaseException) -> str:
    """An error of the network, in words."""
    inner = getattr(problem, "reason", problem)
    if isinstance(inner, TimeoutError):
        return "the server has stopped answering"
    if isinstance(inner, HTTPException):
        return f"the connection broke off ({type(inner).__name__})"
    return str(getattr(inner, "strerror", None) or inner or type(inner).__name__)


# ---- what is kept of a download that broke off


def _keep(part: Path, url: str, tag: str, data: bytearray) -> str:
    """Write a .part, if its beginning can be trusted; says so."""
    part.unlink(missing_ok=True)
    if not re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', tag) or len(data) < LEAST_KEPT:  # a strong ETag: RFC 9110, 8.8.3
        return "nothing was kept"
    head = {"url": url, "etag": tag, "sha256": hashlib.sha256(data).hexdigest()}
    try:
        write_atomically(part, json.dumps(head).encode() + b"\n" + data)
    except MinitlError:
        return "nothing was kept"
    return f"the same command goes on after the {len(data):,} bytes that came"


def _read_part(part: Path, url: str) -> tuple[bytearray, str]:
    """(bytes, their ETag) of what was kept of this very file; otherwise none, and what is no good is removed."""
    try:
        if part.stat().st_size > LARGEST + 10_000:
            raise ValueError
        head, _, data = part.read_bytes().partition(b"\n")
        facts = json.loads(head)
        if facts["url"] == url and facts["sha256"] == hashlib.sha256(data).hexdigest():
            return bytearray(data), str(facts["etag"])
        raise ValueError
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        with suppress(OSError):
            part.unlink()
    return bytearray(), ""


# ---- from bytes to weights


def _compare(entry: Entry, data: bytearray) -> None:
    """Raise unless the checksum is the one that the manifest has, if it has one."""
    if entry.checksum is None:
        return
    kind, _, digits = entry.checksum.partition(":")
    found = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
    if not found.startswith(digits):
        raise MinitlError(
            f"{entry.name}: what {urlsplit(entry.url).hostname} sent is not what its maker published: its {kind} begins with {found[:12]}, "
            f"expected {digits[:12]}; nothing was kept"
        )


def _file_name(url: str) -> str:
    """The last part of an address; readers take what a file cannot say from it."""
    return re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path.rpartition("/")[2])) or "weights"


def _shards(entry: Entry, data: bytearray, source: _Source, progress: Progress) -> dict[str, bytearray]:
    """The files that a model.json of TensorFlow.js names, which lie beside it. No name may lead elsewhere."""
    try:
        names = [name for group in json.loads(data)["weightsManifest"] for name in group["paths"]]
        if not 0 < len(names) <= MOST_SHARDS or not all(re.fullmatch(r"[A-Za-z0-9_-][\w.-]{0,100}", name, re.ASCII) for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise source.error(entry.url, "it is no model.json of TensorFlow.js, or names files elsewhere", "nothing was kept") from None
    found: dict[str, bytearray] = {}
    for name in names:
        done = len(data) + sum(map(len, found.values()))
        found[name] = source.fetch(urljoin(entry.url, name), None, partial(_further, progress, done), None)
        if done + len(found[name]) > LARGEST:
            raise source.error(entry.url, f"its parts have more than {LARGEST:,} bytes", "nothing was kept")
    return found


def _further(progress: Progress, done: int, here: int, total: int | None) -> None:
    """Progress of one of several files, of which so many bytes were there before it."""
    progress(done + here, None)


def _identify(entry: Entry, found: Model) -> Model:
    """The network with its origin, after a check that it is the one that the manifest has under this name."""
    content = found.content()
    shape = [entry.side, entry.side, 3]
    if entry.format in SIZELESS:
        notes = [note for note in found.provenance.get("notes", []) if not note.startswith("input size")]
        notes.append(f"input size {entry.side} x {entry.side}: what its maker publishes it for")
        content.arguments, content.provenance = content.arguments | {"input_shape": shape}, found.provenance | {"notes": notes}
        found = Model(replace(content, recipe=replace(content.recipe, height=entry.side, width=entry.side)))
    arguments = found.arguments
    said = found.architecture, arguments.get("alpha"), list(arguments["input_shape"])
    if said != (entry.architecture, entry.alpha, shape):
        raise MinitlError(
            f"{entry.name} is not the network that its maker describes: found {said[0]} {said[1]} at {said[2][0]}, "
            f"expected {entry.architecture} {entry.alpha} at {entry.side}; nothing was kept"
        )
    facts = {"source": entry.url, "licence": entry.licence, "published top-1": entry.accuracy}
    return found.note(**{key: value for key, value in facts.items() if value is not None})
