"""Downloads files: resumes broken connections, verifies the files, then moves them into place.

A server is trusted with nothing: what it sends has a limit in size and in time, and it leads to no
other kind of address than its own.
"""

import base64
import contextlib
import fcntl
import hashlib
import http.client
import io
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich import progress

from ssd_jax import console, errors

LARGEST = 2**35
"""Default maximum size of a file in bytes; the largest archive of COCO has 2e10."""

_TIMEOUT_S = 30  # without a byte
_WINDOW_S, _SLOWEST = 60, 1024  # minimum bytes per second, averaged over a window of seconds
_LEAST = 2**16  # bytes without which an attempt brings nothing
_ATTEMPTS = 4  # in a row that bring nothing
_LONGEST_REASON = 200  # characters of a server's words in a message
_PAUSE_S = 0.5  # after a first failure, twice that after a second
_CHUNK = 2**20  # bytes
_UNFINISHED = ".part"
_RANGE_REFUSED = 416  # HTTP: the requested range starts after the end


class _Wanted(NamedTuple):
    """A file to download.

    Attributes:
      url: Address, without a password.
      headers: Headers for this server only, not for redirects to others.
      name: Name of the file.
      at_most: Bytes that it may have.
      otherwise: Advice if it cannot be downloaded.
    """

    url: str
    headers: dict[str, str]
    name: str
    at_most: int
    otherwise: str

    def failed(self, reason: object) -> errors.UserError:
        words = " ".join(public(str(reason)).split())[:_LONGEST_REASON]
        return errors.UserError(
            f"{self.name} cannot be downloaded from {self.url} ({words}); {self.otherwise}"
        )

    def too_large(self) -> errors.UserError:
        return self.failed(f"it is larger than the {self.at_most:,} bytes that it may have")


def public(text: str) -> str:
    """Removes users and passwords from the URLs in a text."""
    return re.sub(r"://[^/?#\s]*@", "://", text)


def fetch(url: str, path: Path, *, sha256: str, otherwise: str, at_most: int = LARGEST) -> Path:
    """Downloads a file unless it exists.

    Partial downloads are kept beside `path` as `.part` and resumed by the next attempt, in this
    call or another. `path` itself appears complete and verified, or not at all.

    Args:
      url: Address of the file, by http or https; may name a user and a password.
      path: Path of the file.
      sha256: The beginning of its SHA-256, in hexadecimal digits; the more, the better.
      otherwise: Advice for the message if it cannot be downloaded.
      at_most: Bytes that the file may have.

    Returns:
      `path`.

    Raises:
      UserError: If it can't be downloaded or written, or is not what it has to be.
    """
    part = path.with_name(path.name + _UNFINISHED)
    wanted = _wanted(url, path.name, at_most, otherwise)
    try:
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _opened(part)
    except OSError as error:
        kind = errors.MachineError if errors.is_of_machine(error) else errors.UserError
        raise kind(
            f"{path} cannot be written ({error.strerror}), so {wanted.url} is not downloaded; give "
            f"another folder by the variable SSD_JAX_CACHE, or {otherwise}"
        ) from None
    with file:
        try:
            if not path.is_file():
                _complete(file, wanted, sha256)
                part.replace(path)
        finally:
            if not file.seek(0, io.SEEK_END):
                part.unlink(missing_ok=True)
    return path


def verified(path: Path, *, sha256: str) -> bool:
    """Whether the SHA-256 of a file starts with `sha256`."""
    with path.open("rb", buffering=0) as file:
        return _digest(file).startswith(sha256)


def _wanted(url: str, name: str, at_most: int, otherwise: str) -> _Wanted:
    """Takes an address apart.

    Raises:
      UserError: If it is not that of a server.
    """
    scheme, _, rest = url.partition("://")
    login, at, _ = re.split("[/?#]", rest)[0].rpartition("@")
    wanted = _Wanted(public(url), {}, name, at_most, otherwise)
    if scheme.lower() not in ("http", "https"):
        raise wanted.failed("a URL starts with http:// or https://")
    if at:
        login += "" if ":" in login else ":"
        words = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode("ascii")
        wanted.headers["Authorization"] = f"Basic {words}"
    return wanted


def _opened(part: Path) -> io.FileIO:
    """The unfinished file, for this process alone: those that want the same one wait here."""
    while True:
        file = part.open("a+b", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        file.close()  # whom this one waited for has finished it, or removed it


def _complete(file: io.FileIO, wanted: _Wanted, sha256: str) -> None:
    """Completes a partial download, which may be empty."""
    if _digest(file).startswith(sha256):
        return
    resumed = file.seek(0, io.SEEK_END) > 0
    _fill(file, wanted)
    if resumed and not _digest(file).startswith(sha256):  # it started another version of the file
        file.truncate(0)
        _fill(file, wanted)
    if not (digest := _digest(file)).startswith(sha256):
        file.truncate(0)
        raise errors.UserError(
            f"the file from {wanted.url} is not the expected one: its SHA-256 starts with "
            f"{digest[: len(sha256)]}, not with {sha256}; {wanted.otherwise}"
        )


def _fill(file: io.FileIO, wanted: _Wanted) -> None:
    """Appends the missing part, with as many connections as needed."""
    failures = 0
    with _bar() as bar:
        task = bar.add_task(wanted.name, total=None)
        while True:
            before = file.seek(0, io.SEEK_END)
            try:
                with _Pace() as pace:
                    if _append(file, wanted, pace, bar, task):
                        return
                reason: object = "the connection ends too early"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != _RANGE_REFUSED or not before:
                    raise wanted.failed(error) from None
                file.truncate(0)
                reason = error
            except errors.UserError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", None) or error
            if pace.too_slow:
                reason = f"less than {_SLOWEST:,} bytes a second for {_WINDOW_S} s"
            failures = 0 if file.seek(0, io.SEEK_END) >= before + _LEAST else failures + 1
            if failures == _ATTEMPTS or isinstance(reason, ConnectionRefusedError | ValueError):
                raise wanted.failed(reason)
            time.sleep(_PAUSE_S * failures)


def _append(
    file: io.FileIO, wanted: _Wanted, pace: "_Pace", bar: progress.Progress, task: progress.TaskID
) -> bool:
    """One connection; whether the file is whole after it."""
    request = urllib.request.Request(wanted.url)
    for name, value in wanted.headers.items():
        request.add_unredirected_header(name, value)
    if begin := file.seek(0, io.SEEK_END):
        request.add_header("Range", f"bytes={begin}-")
    with pace.opener().open(request, timeout=_TIMEOUT_S) as response:
        told = response.headers.get("Content-Length") or ""
        length = int(told) if re.fullmatch("[0-9]{1,18}", told) else None
        if begin and not _continues(response, begin):
            if length is not None and length < begin:  # e.g. an error page
                raise OSError(f"it answers with {length:,} bytes, {begin:,} are here already")
            file.truncate(0)
            begin = 0
        total = None if length is None else begin + length
        bar.update(task, completed=begin, total=total)
        if total is not None and total > wanted.at_most:
            raise wanted.too_large()
        for chunk in _chunks(response):
            _write(file, chunk)
            if file.tell() > wanted.at_most:
                file.truncate(0)
                raise wanted.too_large()
            pace.came(len(chunk))
            bar.advance(task, len(chunk))
    return not pace.too_slow and (total is None or file.tell() == total)


class _Pace:
    """Ends connections that are too slow within its `with` block.

    This covers everything that is waited for, including headers and gaps within an answer: a thread
    checks every `_WINDOW_S`.

    Attributes:
      too_slow: Whether it ended them.
    """

    def __init__(self) -> None:
        self.too_slow = False
        self._came = 0
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()

    def __enter__(self) -> "_Pace":
        threading.Thread(target=self._watch, name="download", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for made in self._sockets:
            made.close()

    def came(self, count: int) -> None:
        """So many bytes of the file have come."""
        self._came += count

    def opener(self) -> urllib.request.OpenerDirector:
        """Opens http and https URLs only, on connections that can be ended."""
        pace = self

        class Plain(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> Any:
                return self.do_open(pace._watched(http.client.HTTPConnection), request)

        class Secure(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> Any:
                return self.do_open(pace._watched(http.client.HTTPSConnection), request)

        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            Plain(),
            Secure(),
            urllib.request.HTTPDefaultErrorHandler(),
            _Redirects(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        return opener

    def _watched(self, kind: Any) -> Any:
        """Returns a connection class that records its sockets as soon as they are open."""

        def connect(*arguments: Any, **options: Any) -> socket.socket:
            made = socket.create_connection(*arguments, **options)
            self._sockets.append(made.dup())  # TLS takes the other one for its own
            return made

        def connection(*arguments: Any, **options: Any) -> http.client.HTTPConnection:
            made = kind(*arguments, **options)
            made._create_connection = connect
            return made

        return connection

    def _watch(self) -> None:
        while not self._over.wait(_WINDOW_S):
            came, self._came = self._came, 0
            if came < _SLOWEST * _WINDOW_S:
                self.too_slow = True
                for made in self._sockets:
                    with contextlib.suppress(OSError):  # it may be over by itself
                        made.shutdown(socket.SHUT_RDWR)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https without reading their body, which may be endless."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _write(file: io.FileIO, chunk: bytes) -> None:
    """Appends bytes; a disk that is full is another matter than a network that fails."""
    try:
        while chunk:
            chunk = chunk[file.write(chunk) :]
    except OSError as error:
        raise errors.MachineError(
            f"{Path(file.name).parent} takes no more ({error.strerror}); make room there, or give "
            "another folder by the variable SSD_JAX_CACHE"
        ) from None


def _continues(response: http.client.HTTPResponse, begin: int) -> bool:
    """Whether a response is the requested range; servers may send the whole file instead."""
    content = response.headers.get("Content-Range") or ""
    return response.status == 206 and content.startswith(f"bytes {begin}-")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1(_CHUNK):
        yield chunk


def _digest(file: io.FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _bar() -> progress.Progress:
    """Shows a progress bar on a terminal only."""
    screen = console.Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
        progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    return progress.Progress(
        *columns, console=screen, disable=not screen.is_terminal, transient=True
    )
