"""Videos: opening files, addresses and cameras with PyAV, reading frames, writing MP4s."""

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ssd_jax import addresses, errors, files
from ssd_jax.media import files as media_files

_MOST_PIXELS = 1 << 26  # of a frame: 8k has half as many
_ODDEST_ASPECT = 20  # of a pixel's sides; what states more states nonsense
_USUAL_RATE = Fraction(25)  # frames per second of videos without a frame rate
_MOST_TICKS = 65535  # a second, that mpeg4 can encode
_SQUARE = Fraction(1)  # pixels
_READ_BYTES = 1 << 18  # at a time
_LIMITS = {"max_pixels": str(_MOST_PIXELS)}  # of FFmpeg's decoders
_SLACK = 0.5  # seconds by which a whole video may end before the duration that it states
_BT709 = 1  # FFmpeg's number for BT.709 in the color fields for players
_CAMERAS = {  # by platform: what FFmpeg calls its way to cameras, and camera N there
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}"),
    "win32": ("dshow", "video={}"),
}
_ENCODERS = {  # the first that FFmpeg has; near to transparent, and quick
    # B-frames would misstate the length where frames come at uneven times.
    "libx264": {"crf": "20", "preset": "veryfast", "bf": "0"},
    "mpeg4": {"qmin": "2", "qmax": "6"},
}
_clock = time.monotonic


@contextlib.contextmanager
def opened(path: media_files.Input) -> Iterator[av.container.InputContainer]:
    """Opens a video: a path always as a file, or an address.

    Raises:
      FFmpegError: If it is no video, or not reached.
      OSError: If the file cannot be opened.
      UserError: If it is no regular file, or a server fails.
    """
    if isinstance(path, addresses.Address) and (path.live or path.ending not in media_files.VIDEOS):
        with addresses.open_stream(path) as container:
            yield container
        return
    opening: contextlib.AbstractContextManager[Any] = (
        addresses.fetched(path) if isinstance(path, addresses.Address) else files.open_regular(path)
    )
    with opening as file, open_file(file) as container:
        yield container


def open_file(file: Any) -> av.container.InputContainer:
    """Opens a video file that must not reference other files or addresses.

    Args:
      file: Opened for reading, binary.

    Raises:
      FFmpegError: If it is no video.
    """
    return av.open(
        file,
        container_options={
            "format_whitelist": ",".join(addresses.CONTAINERS),
            "protocol_whitelist": "",
        },
        options=_LIMITS,
        metadata_errors="replace",
        buffer_size=_READ_BYTES,
        io_open=_refuse,
    )


def _refuse(url: str, flags: int, options: Mapping[str, str]) -> Any:
    raise PermissionError(errno.EPERM, "it leads to another file, which is not opened")


def open_camera(camera: int | str) -> av.container.InputContainer:
    """Opens a camera.

    Args:
      camera: Its number, its device, its address, or `FORMAT:NAME` as FFmpeg has them.

    Raises:
      FFmpegError: If the camera cannot be opened.
      UserError: If FFmpeg has no such format, or a server fails.
    """
    kind, numbered = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
    if isinstance(camera, int):
        return av.open(numbered.format(camera), format=kind)
    if address := addresses.parse(camera):
        return addresses.open_stream(address)
    name = camera
    if ":" in camera and not camera.startswith("/"):  # a device's path may have colons
        kind, _, name = camera.partition(":")
    try:
        av.format.ContainerFormat(kind, "r")
    except ValueError:
        raise errors.UserError(
            f"FFmpeg has no format {kind!r}; give a number, a device, an address or FORMAT:NAME"
        ) from None
    if address := addresses.parse(name):
        return addresses.open_stream(address, form=kind)
    return av.open(name, format=kind)


def live(
    video: Iterable[tuple[Fraction, np.ndarray]], seconds: float
) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Yields the latest frames of a camera: frames that arrive during processing are skipped.

    It ends when `seconds` have passed, by the frames' times or by the clock; 0: it does not.
    """
    begun, ready = _clock(), 0.0
    for due, image in video:
        if seconds and max(float(due), _clock() - begun) >= seconds:
            return
        if due >= ready:
            given = _clock()
            yield due, image
            ready = float(due) + _clock() - given


class VideoReader:
    """Reads a video frame by frame: iterate once over its (time, frame).

    Times are seconds from the start of the video and increase. The frames are `[H, W, 3]` uint8
    RGB, rotated as the video specifies, all scaled to the size of the first one; pixels are those
    stored, square or not. Damaged frames are skipped; the
    iteration does not raise for it.

    Attributes:
      rate: Frames a second, as the video states; they may come at other times.
      size: (width, height) of the frames in pixels, once there was one.
      aspect: Width of a pixel over its height, once there was a frame.
      problem: None, or after the iteration what was wrong with the video.
    """

    def __init__(self, container: av.container.InputContainer):
        """Starts to read.

        Args:
          container: The opened video.

        Raises:
          UserError: If there are no images in it, or absurdly large ones.
        """
        self._container = container
        self._stream = _main_stream(container)
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate or _USUAL_RATE
        if not 1 / _MOST_TICKS < rate <= _MOST_TICKS:
            rate = _USUAL_RATE
        frame_time = Fraction(rate.denominator, rate.numerator)
        self.rate = 1 / frame_time.limit_denominator(_MOST_TICKS)
        self.size = (0, 0)
        self.aspect = Fraction(1)
        self.problem: str | None = None
        tick, start = self._stream.time_base, self._stream.start_time
        self._start = start * tick if tick and start is not None else None
        self._due = -1 / self.rate  # of the last frame, in seconds from the start of the video
        self._end = 0.0  # seconds from the start of the video when the next frame is due

    def __iter__(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        for frame in self._decoded():
            turns = round(frame.rotation / 90)
            if not any(self.size):
                self.size = _turned(frame.width, frame.height, turns)
                self.aspect = self._stated_aspect() ** (-1 if turns % 2 else 1)
            width, height = _turned(*self.size, turns)
            stored = frame.to_ndarray(format="rgb24", width=width, height=height)
            yield self._due, np.ascontiguousarray(np.rot90(stored, turns), np.uint8)
        if self._end < self._stated_end() - _SLACK and not self.problem:
            self._note_damage(f"it states {self._stated_end():.1f} s")

    def _decoded(self) -> Iterator[av.VideoFrame]:
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    self._note_damage("incomplete data")
                    continue
                try:
                    decoded = packet.decode()
                except av.FFmpegError as error:
                    self._note_damage(str(error.strerror))
                    continue
                for frame in decoded:
                    self._due = self._due_of(frame)
                    self._end = float(self._due + self._length_of(frame))
                    yield frame
        except av.FFmpegError as error:
            self._note_damage(str(error.strerror))

    def _stated_aspect(self) -> Fraction:
        """Stated aspect ratio of a stored pixel; 1 if missing or invalid."""
        aspect = self._stream.sample_aspect_ratio
        return aspect if aspect and 1 / _ODDEST_ASPECT < aspect < _ODDEST_ASPECT else Fraction(1)

    def _note_damage(self, reason: str) -> None:
        self.problem = self.problem or f"damaged or broken off at {self._end:.1f} s ({reason})"

    def _due_of(self, frame: av.VideoFrame) -> Fraction:
        """Time of a frame; evenly after the last one if it is missing or in the past."""
        if frame.pts is not None and frame.time_base:
            stamp = frame.pts * frame.time_base
            self._start = stamp if self._start is None else self._start
            due = stamp - self._start
            even = round(due * self.rate) / self.rate
            if even > self._due and abs(even - due) <= frame.time_base:
                return even  # the container rounded it
            if due > self._due:
                return due
        return self._due + 1 / self.rate

    def _length_of(self, frame: av.VideoFrame) -> Fraction:
        if frame.duration and frame.time_base:
            return frame.duration * frame.time_base
        return 1 / self.rate

    def _stated_end(self) -> float:
        if self._stream.duration is not None and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return (self._container.duration or 0) / av.time_base


def _turned(width: int, height: int, turns: int) -> tuple[int, int]:
    """Sides after a number of quarter turns."""
    return (height, width) if turns % 2 else (width, height)


def _main_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that a player shows: no cover, and of several the default, or largest, first.

    Raises:
      UserError: If there are none that can be decoded, or they are absurdly large.
    """
    cover = av.stream.Disposition.attached_pic
    streams = [each for each in container.streams.video if not each.disposition & cover]
    if not streams:
        raise errors.UserError("it holds no images")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise errors.UserError("its images are coded in a way that FFmpeg does not know")
    stream = max(known, key=_preference)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > _MOST_PIXELS:
        raise errors.UserError(
            f"frames of {width} x {height} pixels; at most {_MOST_PIXELS} are read"
        )
    stream.codec_context.options = _LIMITS  # where their size changes
    return stream


def _preference(stream: av.VideoStream) -> tuple[bool, int]:
    context = stream.codec_context
    is_default = bool(stream.disposition & av.stream.Disposition.default)
    return is_default, context.width * context.height


@contextlib.contextmanager
def video_writer(
    path: Path, size: tuple[int, int], *, rate: Fraction, aspect: Fraction = _SQUARE
) -> Iterator[Callable[[np.ndarray, Fraction], None]]:
    """Writes an MP4, H.264 if FFmpeg has it; it is complete once the context exits.

    Args:
      path: Path of the file.
      size: (height, width) in pixels; where one is odd, the last row or column is written twice.
      rate: Frames per second. Times that are multiples of its inverse are kept exactly, others to
        20 microseconds.
      aspect: Width of a pixel over its height, for players.

    Yields:
      `write(image, due)`, for frames of that size, `[H, W, 3]` uint8 RGB, each due at a time in
      seconds from the start, after the one before.

    Raises:
      FFmpegError: If it cannot be encoded.
      OSError: If the file cannot be written. The previous file then stays unchanged.
    """
    encoder = next(name for name in _ENCODERS if name in av.codecs_available)
    pad = ((0, size[0] % 2), (0, size[1] % 2), (0, 0))
    tick = Fraction(1, rate.numerator * max(1, _MOST_TICKS // rate.numerator))
    last = -1
    with files.replacing(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(encoder, rate=rate, options=_ENCODERS[encoder])
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size[0] + pad[0][1], size[1] + pad[1][1]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.time_base = tick
        context.sample_aspect_ratio = aspect

        def write(image: np.ndarray, due: Fraction) -> None:
            nonlocal last
            frame = av.VideoFrame.from_ndarray(np.pad(image, pad, mode="edge"), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            last = max(last + 1, round(due / tick))
            frame.pts, frame.time_base = last, tick
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode(None))


def reason(error: Exception, path: object) -> str:
    """Returns the message of FFmpeg about a video without the address that it adds."""
    if isinstance(error, av.error.ExitError):
        return "nothing came in time"
    if isinstance(error, av.error.ArgumentError):
        return "of no known format"
    return str(getattr(error, "strerror", None) or error).removeprefix(f"{path}: ")
