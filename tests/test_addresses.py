"""Videos at addresses: what is one, what is shown of it, and what it can lead to."""

import functools
import http.server
import io
import ssl
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
import test_media

from ssd_jax import addresses, errors
from ssd_jax.media import annotate as annotate_lib
from ssd_jax.media import files as media_files
from ssd_jax.media import outputs
from ssd_jax.media import video as video_lib

SECRET = "s3cret"


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on 127.0.0.1, without ranges, and keeps what it was asked."""

    def __init__(self, folder):
        self.asked = asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                asked.append((self.path, self.headers["Authorization"]))
                if self.path.startswith("/to/"):
                    self.send_response(302)
                    self.send_header("Location", self.path[4:])
                    self.end_headers()
                else:
                    super().do_GET()

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.at = f"127.0.0.1:{self.server_port}"

    def handle_error(self, *args):
        pass  # who reads may go before the end


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def video(server, tmp_path):
    """A served video whose index is at its end; it is larger than a buffer."""
    path = tmp_path / "served/video.mp4"
    pixels = np.random.default_rng(0)
    with video_lib.video_writer(path, (96, 128), rate=Fraction(10)) as write:
        for number in range(20):
            write(pixels.integers(0, 256, (96, 128, 3), dtype=np.uint8), Fraction(number, 10))
    assert path.stat().st_size > 1 << 17
    return path


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host/a/video.mp4", "http://host/a/video.mp4"),
        ("RTSP://user:s3cret@host:554/1", "RTSP://...@host:554/1"),
        ("rtsp://user:s3@cret@host/1", "rtsp://...@host/1"),
        ("rtsp://user:s3/cret@host/1", "rtsp://..."),
        ("rtsp://user:s3?cret@host/1", "rtsp://..."),
        ("rtsp://user:s#3@cret@host/1", "rtsp://..."),
        ("https://host/video.mp4?token=s3cret#s3cret", "https://host/video.mp4?..."),
        ("https://host/video.mp4?token=a@s3cret", "https://..."),
        ("rtsp://host/user=admin&password=s3cret/1", "rtsp://host/.../1"),
        ("http://user:s3\ncret@host/1", "http://...@host/1"),
    ],
)
def test_no_secret_of_an_address_is_shown(address, shown):
    parsed = addresses.parse(address)
    assert str(parsed) == shown
    assert addresses.without_secrets(f"mpjpeg:{address}") == f"mpjpeg:{shown}"
    assert "s3" not in f"{parsed!r} {parsed} {parsed.name}"


@pytest.mark.parametrize(
    "path", ["12:30:05.mp4", "http:/host/a.mp4", "concat:a.mp4", "./http://a.mp4", "C:/a.mp4", ""]
)
def test_what_has_no_scheme_and_slashes_is_a_path(path):
    assert addresses.parse(path) is None


@pytest.mark.parametrize("scheme", ["file", "ftp", "concat", "data"])
def test_other_schemes_are_one_line(scheme):
    with pytest.raises(errors.UserError, match=rf"^{scheme}://...@host/a.mp4: .*by its path"):
        addresses.parse(f"{scheme}://u:s3cret@host/a.mp4")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("http://u:p@host/a/video.mp4?x=1", "video.mp4"),
        ("rtsp://u:p@camera:554", "camera_554"),
        ("http://host/..%2Fup%2fdown.mp4", "__up_down.mp4"),
        ("http://user:s3/cret@host/a.mp4", "video"),
        ("http://host/", "host"),
    ],
)
def test_copies_are_named_after_the_path(address, name):
    assert addresses.parse(address).name == name


def test_a_image_at_an_address_is_one_line():
    with pytest.raises(errors.UserError, match=r"^https://host/bus.jpg\?...: .*download it"):
        media_files.find(["https://host/bus.jpg?size=2"])


def test_a_video_of_a_server_is_annotated_as_its_file_is(server, video, tmp_path):
    url = f"http://user:{SECRET}@{server.at}/video.mp4?token={SECRET}"
    paths = media_files.find([url, url.replace("token", "other")]).paths
    [here] = test_media.annotate([video], tmp_path / "here")
    there, again = test_media.annotate(paths, tmp_path / "out")
    assert (there.problem, there.found) == (None, here.found)
    assert [str(one.path) for one in (there, again)] == [
        f"http://...@{server.at}/video.mp4?...",
        f"http://...@{server.at}/video.mp4?... (2)",
    ]
    assert [one.place.name for one in (there, again)] == ["video.mp4", "video-2.mp4"]
    assert server.asked[0] == (f"/video.mp4?token={SECRET}", "Basic dXNlcjpzM2NyZXQ=")
    outputs.write_json(tmp_path / "d.json", [there, again])
    assert SECRET not in (tmp_path / "d.json").read_text() + repr(there)


def test_a_password_is_not_sent_on_to_another_server(server, video, tmp_path):
    address = f"http://user:{SECRET}@{server.at}/to/http://{server.at}/video.mp4"
    [outcome] = test_media.annotate(media_files.find([address]).paths, tmp_path / "out")
    assert outcome.problem is None
    assert [bool(code) for _, code in server.asked] == [True, False]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none.mp4", "the server answers 404 Not Found"),
        ("to/file:///etc/hostname?x.mp4", "the server answers 302 Found"),
        ("text.mp4", "Invalid data found when processing input"),
    ],
)
def test_a_server_that_gives_no_video_is_one_line(server, tmp_path, path, reason):
    (tmp_path / "served/text.mp4").write_text("no video")
    address = f"http://user:{SECRET}@{server.at}/{path}"
    [outcome] = test_media.annotate(media_files.find([address]).paths, tmp_path / "out")
    assert outcome.found is None
    assert outcome.problem.endswith((f"not a readable video ({reason})", "of no known format)"))
    assert SECRET not in outcome.problem


def test_no_server_is_one_line_without_the_password(tmp_path):
    for address in (f"http://u:{SECRET}@127.0.0.1:1/a.mp4", f"http://u:{SECRET}/x@127.0.0.1/a.mp4"):
        [outcome] = test_media.annotate(media_files.find([address]).paths, tmp_path / "out")
        assert "not a readable video (" in outcome.problem
        assert SECRET not in outcome.problem


def test_a_playlist_of_a_server_leads_to_its_parts_and_to_no_file(server, tmp_path):
    part = test_media.video_file(tmp_path / "served/part.ts", frames=5)
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.2,\n{}\n#EXT-X-ENDLIST\n"
    (tmp_path / "served/good.m3u8").write_text(text.format("part.ts"))
    (tmp_path / "served/evil.m3u8").write_text(text.format(part.as_uri()))
    names = [f"http://{server.at}/{name}.m3u8" for name in ("good", "evil")]
    good, evil = test_media.annotate(media_files.find(names).paths, tmp_path / "out")
    assert len(good.found["frames"]) == 5
    assert evil.found is None


@pytest.mark.parametrize("kind", ["", "mov:"])
def test_a_camera_at_an_address_keeps_its_password(server, video, tmp_path, kind):
    camera = f"{kind}http://user:{SECRET}@{server.at}/video.mp4"
    outcome = annotate_lib.annotate_camera(
        test_media.FakeDetector(), camera, tmp_path / "c.mp4", score_threshold=0.5
    )
    assert SECRET not in repr(outcome)
    assert outcome.path == f"camera {kind}http://...@{server.at}/video.mp4"
    missing = annotate_lib.annotate_camera(
        test_media.FakeDetector(), camera.replace("video", "none"), tmp_path / "c.mp4",
        score_threshold=0.5,
    )  # fmt: skip
    assert "404" in missing.problem
    assert SECRET not in repr(missing)


class Answer(io.BytesIO):
    """What a server sends, by and by."""

    headers: dict[str, str] = {}  # noqa: RUF012

    def read1(self, count=-1):
        return self.read(min(count, 7))


def test_what_is_fetched_can_be_read_in_any_order():
    data = bytes(range(200))
    for headers in ({}, {"Content-Length": "200"}):
        answer = Answer(data)
        answer.headers = headers
        file = addresses.Fetched(answer, io.BytesIO())
        assert file.read(10) == data[:10]
        assert file.seek(-5, 2) == 195
        assert file.read(100) == data[195:]
        assert (file.seek(20), file.seek(3, 1), file.tell()) == (20, 23, 23)
        assert file.read(4) == data[23:27]


def test_only_what_is_read_is_fetched():
    answer = Answer(bytes(200))
    answer.headers = {"Content-Length": "200"}
    addresses.Fetched(answer, io.BytesIO()).read(10)
    assert answer.tell() == 14


def test_a_server_that_sends_for_ever_or_very_slowly_ends(monkeypatch):
    monkeypatch.setattr(addresses, "_MOST_BYTES", 100)
    with pytest.raises(errors.UserError, match="download it yourself"):
        addresses.Fetched(Answer(bytes(200)), io.BytesIO()).seek(0, 2)
    monkeypatch.undo()
    seconds = iter(range(0, 10_000, 20))
    monkeypatch.setattr(addresses, "_clock", lambda: next(seconds))
    with pytest.raises(errors.UserError, match="less than 1000 bytes a second"):
        addresses.Fetched(Answer(bytes(200)), io.BytesIO()).read(200)


def test_a_certificate_that_is_not_trusted_is_one_line():
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_message = "self-signed certificate"
    assert addresses._reason(error) == "its certificate is not trusted: self-signed certificate"


def test_ffmpeg_has_the_containers_that_are_read():
    assert set(addresses.CONTAINERS) <= {
        name for form in av.formats_available for name in form.split(",")
    }
