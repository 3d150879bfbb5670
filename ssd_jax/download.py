"""Files from the network: resumed where a connection broke, verified, then moved to their place."""

import contextlib
import fcntl
import hashlib
import http.client
import io
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich import progress

from ssd_jax import console, errors

_TIMEOUT_S = 30
_ATTEMPTS = 4  # in a row that bring nothing
_PAUSE_S = 0.5  # after a first failure, twice that after a second
_CHUNK = 2**20  # bytes
_UNFINISHED = ".part"
_RANGE_REFUSED = 416  # HTTP: what is asked for begins behind the end


def fetch(url: str, path: Path, *, sha256: str, otherwise: str) -> Path:
    """Downloads a file, unless it is there already.

    What a broken connection leaves stays beside `path` as `.part`, and the next attempt, in this
    call or another, goes on from there. `path` itself appears whole and verified, or not at all.

    Args:
      url: Address of the file.
      path: Where it belongs.
      sha256: The beginning of its SHA-256, in hexadecimal digits; the more, the better.
      otherwise: What the user can do where it can't be had, for the message.

    Returns:
      `path`.

    Raises:
      UserError: If it can't be downloaded or written, or is not what it has to be.
    """
    part = path.with_name(path.name + _UNFINISHED)
    try:
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _opened(part)
    except OSError as error:
        raise errors.UserError(
            f"{path} cannot be written ({error.strerror}), so {url} is not downloaded; give "
            f"another folder by the variable SSD_JAX_CACHE, or {otherwise}"
        ) from None
    with file:
        try:
            if not path.is_file():
                _complete(file, part, url, sha256, otherwise)
                part.replace(path)
        finally:
            if not file.seek(0, io.SEEK_END):
                part.unlink(missing_ok=True)
    return path


def verified(path: Path, *, sha256: str) -> bool:
    """Whether the SHA-256 of a file begins like this."""
    with path.open("rb", buffering=0) as file:
        return _digest(file).startswith(sha256)


def _opened(part: Path) -> io.FileIO:
    """The unfinished file, for this process alone: those that want the same one wait here."""
    while True:
        file = part.open("a+b", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        file.close()  # whom this one waited for has finished it, or removed it


def _complete(file: io.FileIO, part: Path, url: str, sha256: str, otherwise: str) -> None:
    """Makes a part, which may be empty, the whole file."""
    if _digest(file).startswith(sha256):
        return
    name, resumed = part.name.removesuffix(_UNFINISHED), file.seek(0, io.SEEK_END) > 0
    _fill(file, url, name, otherwise)
    if resumed and not _digest(file).startswith(sha256):  # it began another version of the file
        file.truncate(0)
        _fill(file, url, name, otherwise)
    if not (digest := _digest(file)).startswith(sha256):
        file.truncate(0)
        raise errors.UserError(
            f"what came from {url} is not the file that is meant: its SHA-256 begins with "
            f"{digest[: len(sha256)]}, not with {sha256}; {otherwise}"
        )


def _fill(file: io.FileIO, url: str, name: str, otherwise: str) -> None:
    """Appends what is missing, in as many connections as it takes."""
    failures = 0
    with _bar() as bar:
        task = bar.add_task(name, total=None)
        while True:
            before = file.seek(0, io.SEEK_END)
            try:
                if _append(file, url, bar, task):
                    return
                reason: object = "the connection ends too early"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != _RANGE_REFUSED or not before:
                    raise _failed(url, name, error, otherwise) from None
                file.truncate(0)
                reason = error
            except errors.UserError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", None) or error
            failures = 0 if file.seek(0, io.SEEK_END) > before else failures + 1
            if failures == _ATTEMPTS or isinstance(reason, ConnectionRefusedError | ValueError):
                raise _failed(url, name, reason, otherwise)
            time.sleep(_PAUSE_S * failures)


def _append(file: io.FileIO, url: str, bar: progress.Progress, task: progress.TaskID) -> bool:
    """One connection; whether the file is whole after it."""
    request = urllib.request.Request(url)
    if begin := file.seek(0, io.SEEK_END):
        request.add_header("Range", f"bytes={begin}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        if begin and not _continues(response, begin):
            file.truncate(0)
            begin = 0
        length = response.headers.get("Content-Length")
        total = begin + int(length) if length and length.isdecimal() else None
        bar.update(task, completed=begin, total=total)
        for chunk in _chunks(response):
            _write(file, chunk)
            bar.advance(task, len(chunk))
    return total is None or file.tell() == total


def _write(file: io.FileIO, chunk: bytes) -> None:
    """Appends bytes; a disk that is full is another matter than a network that fails."""
    try:
        while chunk:
            chunk = chunk[file.write(chunk) :]
    except OSError as error:
        raise errors.UserError(
            f"{Path(file.name).parent} takes no more ({error.strerror}); make room there, or give "
            "another folder by the variable SSD_JAX_CACHE"
        ) from None


def _continues(response: http.client.HTTPResponse, begin: int) -> bool:
    """Whether an answer is the rest that was asked for; servers may send the whole instead."""
    content = response.headers.get("Content-Range") or ""
    return response.status == 206 and content.startswith(f"bytes {begin}-")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1(_CHUNK):
        yield chunk


def _digest(file: io.FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _failed(url: str, name: str, reason: object, otherwise: str) -> errors.UserError:
    words = " ".join(str(reason).split())
    return errors.UserError(f"{name} cannot be downloaded from {url} ({words}); {otherwise}")


def _bar() -> progress.Progress:
    """A progress bar on a terminal, nothing elsewhere."""
    screen = console.Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
        progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    return progress.Progress(
        *columns, console=screen, disable=not screen.is_terminal, transient=True
    )
