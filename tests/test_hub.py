import base64
import contextlib
import errno
import functools
import hashlib
import http.server
import io
import os
import re
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ssd_jax
from ssd_jax import download, errors
from ssd_jax.weights import hub

DATA = np.random.default_rng(0).bytes(300_000)
NAME, FILE = "ssd-test", "ssd-test.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA as one file; `answers` are for the next requests, then "whole" for all."""

    answers: list[str] = []  # noqa: RUF012 (reset for each test)
    ranges: list[str | None] = []  # noqa: RUF012
    logins: list[str | None] = []  # noqa: RUF012

    def do_GET(self):
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        self.logins.append(self.headers.get("Authorization"))
        answer = self.answers.pop(0) if self.answers else "whole"
        if answer == "404" or not self.path.endswith(FILE):
            return self.send_error(404)
        if answer == "late 404":
            time.sleep(0.5)
            return self.send_error(404)
        if answer == "redirect":
            return self.redirect(f"/elsewhere/{FILE}")
        if hasattr(self, f"answer_{answer}"):
            return getattr(self, f"answer_{answer}")()
        if answer == "circle":
            self.answers.insert(0, "circle")
            return self.redirect(self.path)
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if begin >= len(DATA):
            return self.send_error(416)
        if answer == "no ranges":
            begin = 0
        data = b"x" * len(DATA) if answer == "wrong" else DATA
        self.send_response(206 if begin else 200)
        length = "many" if answer == "odd length" else str(len(data) - begin)
        self.send_header("Content-Length", length)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        # Half of what is left, and the connection ends.
        end = begin + (len(data) - begin) // 2 if answer == "dies" else len(data)
        self.wfile.write(data[begin:end])
        return None

    def answer_endless(self):
        """More than the file may have, of a length that is not told."""
        self.begin()
        for _ in range(40):
            self.wfile.write(bytes(2**16))

    def answer_claims_much(self):
        self.begin({"Content-Length": str(2**40)})

    def answer_trickle(self):
        """A byte now and then, for as long as somebody takes it."""
        self.begin({"Content-Length": str(len(DATA))})
        self.trickle(b"x")

    def answer_trickling_headers(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.trickle(b"X-Nothing: 1\r\n")

    def answer_continue_for_ever(self):
        self.trickle(b"HTTP/1.1 100 Continue\r\n\r\n")

    def answer_endless_redirect(self):
        """A redirect whose text has no end."""
        self.send_response(302)
        self.send_header("Location", f"/elsewhere/{FILE}")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(bytes(2**16))

    def answer_to_a_file(self):
        self.redirect("file:///etc/hostname")

    def answer_to_ftp(self):
        self.redirect(f"ftp://127.0.0.1:9/{FILE}")

    def answer_an_error_page(self):
        """What a proxy may say with status 200, whatever was asked for."""
        self.begin({"Content-Length": "13"})
        self.wfile.write(b"<html></html>")

    def answer_elsewhere(self):
        self.redirect(f"http://localhost:{self.server.server_port}/{FILE}")

    def begin(self, headers=None):
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def trickle(self, data):
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(data)
                time.sleep(0.01)

    def redirect(self, place):
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def server(monkeypatch):
    Handler.answers, Handler.ranges, Handler.logins = [], [], []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    published = hub.Published(
        f"http://127.0.0.1:{server.server_port}/", FILE, hashlib.sha256(DATA).hexdigest()[:8], 1
    )
    monkeypatch.setitem(hub.NAMES, NAME, published)
    monkeypatch.setattr(download, "_PAUSE_S", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def refusal(cache_dir, **options):
    with pytest.raises(errors.UserError) as caught:
        hub.locate(NAME, cache_dir=cache_dir, **options)
    return str(caught.value)


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_downloaded_at_first_use_only(tmp_path):
    paths = [hub.locate(NAME, cache_dir=tmp_path) for _ in range(2)]
    assert paths == [tmp_path / "weights" / FILE] * 2
    assert paths[0].read_bytes() == DATA
    assert Handler.ranges == [None]
    assert files(tmp_path) == [FILE]


def test_a_connection_that_dies_half_way_is_taken_up_there(tmp_path):
    Handler.answers = ["dies", "dies"]
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA
    assert Handler.ranges == [None, "bytes=150000-", "bytes=225000-"]


def test_a_later_call_resumes_too(tmp_path):
    part = tmp_path / "weights" / f"{FILE}.part"
    part.parent.mkdir()
    part.write_bytes(DATA[:1000])
    Handler.answers = ["404"]
    assert "404" in refusal(tmp_path)
    assert part.read_bytes() == DATA[:1000]
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA
    assert Handler.ranges == ["bytes=1000-"] * 2
    assert files(tmp_path) == [FILE]


@pytest.mark.parametrize("beginning", [DATA, DATA + b"x", b"another version" * 100])
def test_a_part_that_is_whole_or_of_another_file_does_no_harm(tmp_path, beginning):
    part = tmp_path / "weights" / f"{FILE}.part"
    part.parent.mkdir()
    part.write_bytes(beginning)
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA
    assert files(tmp_path) == [FILE]


def test_a_server_without_ranges_restarts_the_download(tmp_path):
    Handler.answers = ["dies", "no ranges"]
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA


def test_redirects_are_followed(tmp_path):
    Handler.answers = ["redirect"]
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA


def test_a_redirect_keeps_the_place_to_resume_from(tmp_path):
    Handler.answers = ["redirect", "dies", "redirect"]
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA
    assert Handler.ranges == [None, None, "bytes=150000-", "bytes=150000-"]


def test_a_length_that_is_no_number_is_not_needed(tmp_path):
    Handler.answers = ["odd length"]
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA


def test_a_terminal_shows_how_much_is_there(tmp_path, monkeypatch):
    screen = io.StringIO()
    terminal = functools.partial(
        download.console.Console, file=screen, force_terminal=True, width=100
    )
    monkeypatch.setattr(download.console, "Console", terminal)
    Handler.answers = ["dies"]
    hub.locate(NAME, cache_dir=tmp_path)
    assert FILE in screen.getvalue()
    assert "300.0/300.0 kB" in screen.getvalue()


def test_a_server_that_always_dies_is_given_up(tmp_path):
    Handler.answers = ["dies"] * 40
    assert "ends too early" in refusal(tmp_path)
    assert len(Handler.ranges) < 30  # half of what is left comes each time, at last nothing


@pytest.mark.parametrize(
    ("answers", "reason"),
    [(["404"], "404"), (["circle"], "infinite loop"), (["wrong"], "SHA-256 starts with")],
)
def test_what_cannot_be_had_leaves_nothing(tmp_path, answers, reason):
    Handler.answers = list(answers)
    message = refusal(tmp_path)
    assert reason in message
    assert FILE in message
    assert "config.data.mirror (SSD_JAX_MIRROR)" in message
    assert "\n" not in message
    assert files(tmp_path) == []


@pytest.mark.parametrize("answer", ["endless", "claims_much"])
def test_a_server_that_sends_more_than_the_file_may_have_is_left(tmp_path, answer):
    Handler.answers = [answer]
    message = refusal(tmp_path)
    assert "larger than the 1,048,576 bytes that it may have" in message
    assert files(tmp_path) == []
    assert len(Handler.ranges) == 1


@pytest.mark.parametrize("answer", ["trickle", "trickling_headers", "continue_for_ever"])
def test_a_server_that_takes_for_ever_is_left(tmp_path, monkeypatch, answer):
    monkeypatch.setattr(download, "_WINDOW_S", 0.15)
    monkeypatch.setattr(download, "_SLOWEST", 2**16)
    Handler.answers = [answer] * 9
    message = refusal(tmp_path)
    assert "less than 65,536 bytes a second for 0.15 s" in message
    assert len(Handler.ranges) == 4


def test_after_a_server_that_takes_for_ever_another_try_may_do(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_WINDOW_S", 0.15)
    monkeypatch.setattr(download, "_SLOWEST", 2**16)
    Handler.answers = ["trickling_headers"]
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA


def test_the_text_of_a_redirect_is_not_read(tmp_path):
    Handler.answers = ["endless_redirect"]
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("answer", ["to_a_file", "to_ftp"])
def test_a_redirect_leads_to_no_file_and_no_ftp(tmp_path, answer):
    Handler.answers = [answer] * 4
    assert re.search("not allowed|unknown url type: ftp", refusal(tmp_path))
    assert files(tmp_path) == []


@pytest.mark.parametrize("address", ["file:///tmp", "ftp://host", "data://x"])
def test_an_address_is_of_http(tmp_path, address):
    message = refusal(tmp_path, mirror=address)
    assert "a URL starts with http:// or https://" in message


def test_an_error_page_does_not_cost_what_is_there(tmp_path):
    part = tmp_path / "weights" / f"{FILE}.part"
    part.parent.mkdir()
    part.write_bytes(DATA[:200_000])
    Handler.answers = ["an_error_page"] * 4
    assert "it answers with 13 bytes, 200,000 are here already" in refusal(tmp_path)
    assert part.read_bytes() == DATA[:200_000]
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA


def test_a_password_is_used_and_not_printed(server, tmp_path):
    host = f"127.0.0.1:{server.server_port}"
    mirror = f"http://some%20one:s3cret@{host}/"
    assert hub.locate(NAME, cache_dir=tmp_path, mirror=mirror).read_bytes() == DATA
    assert Handler.logins == ["Basic " + base64.b64encode(b"some one:s3cret").decode()]
    Handler.answers = ["404"]
    message = refusal(tmp_path / "other", mirror=mirror)
    assert f"http://{host}/{FILE}" in message
    assert "s3cret" not in message


def test_a_password_is_not_told_to_another_server(server, tmp_path):
    mirror = f"http://me:s3cret@127.0.0.1:{server.server_port}/"
    Handler.answers = ["elsewhere"]
    assert hub.locate(NAME, cache_dir=tmp_path, mirror=mirror).read_bytes() == DATA
    assert [login is not None for login in Handler.logins] == [True, False]


def test_addresses_are_shown_without_their_passwords():
    assert download.public("see https://me:pw@host/a@b, or rtsp://x@cam") == (
        "see https://host/a@b, or rtsp://cam"
    )


def test_without_a_network_the_way_out_is_said(tmp_path):
    message = refusal(tmp_path, mirror="http://127.0.0.1:9/")
    assert f"http://127.0.0.1:9/{FILE} (" in message
    assert "refused" in message
    assert f"give its path instead of {NAME}" in message


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "weights").write_text("a file where the folder should be")
    message = refusal(tmp_path)
    assert str(tmp_path / "weights" / FILE) in message
    assert "SSD_JAX_CACHE" in message
    assert Handler.ranges == []


@pytest.fixture
def read_only(monkeypatch):
    """Makes all files refuse to be written, with an error's number."""

    def deny(number):
        def open_to_read(self, mode="r", *args, **options):
            if not set(mode) <= set("rbt"):
                raise OSError(number, os.strerror(number), str(self))
            return opened(self, mode, *args, **options)

        opened = Path.open
        monkeypatch.setattr(Path, "open", open_to_read)

    return deny


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_cache_that_is_read_only_is_named(tmp_path, read_only, number):
    read_only(number)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'weights' / FILE} cannot be written ({os.strerror(number)})" in message
    assert "SSD_JAX_CACHE" in message
    assert Handler.ranges == []


def test_a_cache_that_is_read_only_gives_what_it_has(tmp_path, read_only):
    path = hub.locate(NAME, cache_dir=tmp_path)
    read_only(errno.EROFS)
    assert hub.locate(NAME, cache_dir=tmp_path) == path


def test_a_full_disk_is_no_matter_of_the_network(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        message = refusal(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message.startswith(f"{tmp_path / 'weights'} takes no more ({os.strerror(errno.EFBIG)})")
    assert "SSD_JAX_CACHE" in message
    assert "MIRROR" not in message
    assert "\n" not in message
    assert hub.locate(NAME, cache_dir=tmp_path).read_bytes() == DATA
    assert Handler.ranges == [None, "bytes=100000-"]


def test_a_mirror_that_is_no_address_is_named(tmp_path):
    message = refusal(tmp_path, mirror="http://[x")
    assert f"cannot be downloaded from http://[x/{FILE} (Invalid IPv6 URL)" in message
    assert files(tmp_path) == []


def test_a_mirror_is_an_address_or_a_folder(server, tmp_path, monkeypatch):
    monkeypatch.setitem(hub.NAMES, NAME, hub.NAMES[NAME]._replace(base="http://127.0.0.1:9/"))
    address = f"http://127.0.0.1:{server.server_port}/mirror"
    found = hub.locate(NAME, cache_dir=tmp_path / "cache", mirror=address)
    assert found.read_bytes() == DATA
    folder = {"mirror": str(tmp_path)}
    assert f"no {FILE}" in refusal(tmp_path, **folder)
    (tmp_path / FILE).write_bytes(DATA)
    assert hub.locate(NAME, cache_dir=tmp_path, **folder) == tmp_path / FILE
    (tmp_path / FILE).write_bytes(b"other")
    assert "SHA-256" in refusal(tmp_path, **folder)


def test_two_at_once_download_once(tmp_path):
    def locate():
        paths.append(hub.locate(NAME, cache_dir=tmp_path))

    paths = []
    threads = [threading.Thread(target=locate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == DATA for path in paths] == [True] * 4
    assert Handler.ranges == [None]


def test_who_waits_for_one_that_fails_downloads_itself(tmp_path):
    def locate():
        try:
            outcomes.append(hub.locate(NAME, cache_dir=tmp_path).read_bytes())
        except Exception as error:
            outcomes.append(error)

    outcomes = []
    Handler.answers = ["late 404"]
    threads = [threading.Thread(target=locate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(outcomes[0], errors.UserError)
    assert outcomes[1] == DATA
    assert files(tmp_path) == [FILE]


@pytest.mark.parametrize("name", ["ssd300-coc", "nowhere/w.pth"])
def test_a_name_that_is_none_is_told_the_names(name):
    with pytest.raises(errors.UserError, match=rf"{name}: file not found.*ssd300-coco"):
        ssd_jax.load_detector(name)


def test_the_published_hashes_are_those_in_the_names():
    for entry in [entry for name, entry in hub.NAMES.items() if name != NAME]:
        assert re.search(r"-([0-9a-f]{8})\.pth$", entry.filename)[1] == entry.sha256
