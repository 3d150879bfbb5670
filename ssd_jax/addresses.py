"""Videos at an address, such as `https://host/video.mp4` or `rtsp://user:password@camera/1`.

An address is an argument with `://`; a file path is never treated as one. Passwords are removed
from everything that is printed. Content from an address can open other addresses, as playlists do,
but no file of this machine.
"""

import base64
import contextlib
import dataclasses
import http
import http.client
import re
import ssl
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import av

from ssd_jax import errors

SCHEMES = ("http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
CONTAINERS = (
    "asf", "avi", "flv", "matroska", "mov", "mpeg", "mpegts", "mpegvideo",
)  # fmt: skip
"""FFmpeg's names of what video files are; none of them leads to another file."""

_STREAMS = (
    *CONTAINERS, "aac", "ac3", "eac3", "h264", "hevc", "hls", "live_flv", "m4v", "mjpeg", "mp3",
    "mpjpeg", "rtp", "rtsp", "webvtt",
)  # fmt: skip
_PROTOCOLS = (*SCHEMES, "crypto", "httpproxy", "rtmpt", "rtmpts", "srtp", "tls")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_QUIET_S = 30  # after which a server that sends nothing is given up
_OPEN_S = 120  # in which an address has to give its first images
_SLOWEST = 1000  # bytes a second, once a minute has passed
_MOST_BYTES = 16 << 30  # of a video that is fetched
_CHUNK = 1 << 20
_clock = time.monotonic


@dataclasses.dataclass(frozen=True)
class Address:
    """The address of a video that is not a file; its text form has no secrets.

    Attributes:
      url: The whole of it, perhaps with a password: for the connection alone.
      shown: Without user, password, query and other parts that may be secrets.
    """

    url: str = dataclasses.field(repr=False)
    shown: str

    def __str__(self) -> str:
        return self.shown

    @property
    def scheme(self) -> str:
        """How it is reached, in lower case."""
        return self.url.partition(":")[0].lower()

    @property
    def live(self) -> bool:
        """Whether it is a live stream, which does not wait for its reader."""
        return self.scheme not in ("http", "https")

    @property
    def name(self) -> str:
        """A name for a file, from the last part of its path, else from its host."""
        shown = self.shown.partition("://")[2].partition("?")[0].rpartition("...@")[2]
        parts = [part for part in shown.split("/") if part not in ("", "...")] or ["video"]
        return re.sub(r"^\.+|[^\w.-]+", "_", urllib.parse.unquote(parts[-1])) or "video"

    @property
    def ending(self) -> str:
        """The file ending of its path in lower case, such as `.mp4`, or empty."""
        path = re.split("[?#]", self.url.partition("://")[2])[0].partition("/")[2]
        return PurePosixPath(path).suffix.lower()


def parse(text: str) -> Address | None:
    """Parses an address; None if the text is not one.

    Raises:
      UserError: If it is one of a kind that is not read.
    """
    if not (match := _ADDRESS.match(text)):
        return None
    if match[1].lower() not in SCHEMES:
        raise errors.UserError(
            f"{without_secrets(text)}: video addresses start with {', '.join(SCHEMES)}; give a "
            "file by its path"
        )
    return Address(text, without_secrets(text))


def without_secrets(text: str) -> str:
    """A text with an address in it, without its user, password, query and the like."""
    before, slashes, rest = text.partition("://")
    if not slashes:
        return text
    host, path, query = re.match(r"([^/?#]*)([^?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in path + query:  # perhaps of a password with a / or ? in it
        return f"{before}://..."
    host = re.sub(".*@", "...@", host, flags=re.DOTALL)
    path = "/".join("..." if "=" in part else part for part in path.split("/"))
    return f"{before}://{host}{path}{'?...' if query else ''}"


def open_stream(address: Address, *, form: str | None = None) -> av.container.InputContainer:
    """Opens an address for FFmpeg.

    Args:
      address: The address.
      form: FFmpeg's name of the format; None: it finds out, among those of videos.

    Raises:
      FFmpegError: If it cannot be opened.
    """
    quiet = f"{_QUIET_S * 1_000_000}"
    options = {"protocol_whitelist": ",".join(_PROTOCOLS), "rw_timeout": quiet}
    if form is None:
        options["format_whitelist"] = ",".join(_STREAMS)
    if address.scheme in ("rtsp", "rtsps"):
        options["timeout"] = quiet
    return av.open(
        address.url,
        format=form,
        container_options=options,
        metadata_errors="replace",
        timeout=(_OPEN_S, _QUIET_S),
    )


@contextlib.contextmanager
def fetched(address: Address) -> Iterator["Fetched"]:
    """The file at an address of HTTP, to be read like one of this machine.

    Raises:
      UserError: If the server cannot be reached or denies the request.
    """
    with _answer(address) as response, tempfile.TemporaryFile() as file:
        yield Fetched(response, file)


class Fetched:
    """A file on a server; the parts read so far are kept in a temporary file.

    FFmpeg can go back in it, whether or not the server can.
    """

    def __init__(self, response: Any, file: Any):
        """Starts to read.

        Args:
          response: The server's answer.
          file: Temporary file for the downloaded bytes.
        """
        length = response.headers.get("Content-Length") or ""
        self._size = int(length) if length.isdecimal() and len(length) < 20 else None
        self._response, self._file = response, file
        self._here, self._got, self._waited = 0, 0, 0.0
        self._ended = False

    def read(self, count: int) -> bytes:
        """So many bytes, or fewer at the end.

        Raises:
          UserError: If the server sends too much or too slowly.
        """
        self._get(self._here + count)
        self._file.seek(self._here)
        data: bytes = self._file.read(count)
        self._here += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Goes to an offset from the start (0), from here (1) or from the end (2)."""
        if whence == 2 and self._size is None:
            self._get(_MOST_BYTES + 1)
            self._size = self._got
        self._here = max(0, offset + (0, self._here, self._size or 0)[whence])
        return self._here

    def tell(self) -> int:
        """Returns the position of the next byte."""
        return self._here

    def _get(self, end: int) -> None:
        """Fetches up to an offset."""
        self._file.seek(0, 2)
        while self._got < end and not self._ended:
            begun = _clock()
            with _in_words():
                data = self._response.read1(_CHUNK)
            self._waited += _clock() - begun
            self._ended = not data
            self._got += self._file.write(data)
            if self._got > _MOST_BYTES:
                raise errors.UserError(f"more than {_MOST_BYTES >> 30} GiB; download it yourself")
            if self._waited > 60 and self._got < _SLOWEST * self._waited:
                raise errors.UserError(f"the server sends less than {_SLOWEST} bytes a second")


def _answer(address: Address) -> Any:
    with _in_words():
        return _opener().open(_request(address), timeout=_QUIET_S)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Describes an error of a server without its address, which may contain a password."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        known = {status.value: f" {status.phrase}" for status in http.HTTPStatus}
        raise errors.UserError(
            f"the server answers {error.code}{known.get(error.code, '')}"
        ) from None
    except urllib.error.URLError as error:
        raise errors.UserError(_reason(error.reason)) from None
    except OSError as error:
        raise errors.UserError(_reason(error)) from None
    except (http.client.HTTPException, ValueError) as error:
        raise errors.UserError(f"no server answers there ({type(error).__name__})") from None


def _request(address: Address) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(address.url)
    user, at, host = parts.netloc.rpartition("@")
    quoted = (urllib.parse.quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in parts[2:4])
    request = urllib.request.Request(
        urllib.parse.urlunsplit((parts.scheme, host, *quoted, "")),
        headers={"User-Agent": "ssd_jax"},
    )
    if at:
        code = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {code}")  # for this host alone
    return request


def _opener() -> urllib.request.OpenerDirector:
    """Of HTTP alone: a server cannot send its reader on to a file or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _reason(reason: object) -> str:
    """Describes why a connection failed."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message}"
    if isinstance(reason, TimeoutError):
        return f"nothing came for {_QUIET_S} s"
    return str(getattr(reason, "strerror", None) or type(reason).__name__)
