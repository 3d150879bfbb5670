"""Detection in files: the pictures and videos that a command line means, and annotated copies."""

import contextlib
import functools
import glob
import itertools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from PIL import Image
from rich import progress

from ssd_jax import adapters, console, errors, files
from ssd_jax import detector as detector_lib
from ssd_jax.detection import Detections

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm",
    ".wmv",
)  # fmt: skip
_KEPT = (".jpeg", ".jpg", ".png")  # kinds of picture that are written as what they were
_BATCH_PIXELS = 1 << 26  # of the pictures held at a time: 200 MB, however large they are
_USUAL_RATE = Fraction(25)  # frames a second, for a video that does not say
_MOST_TICKS = 65535  # a second, that mpeg4 can encode
_SLACK = 0.5  # seconds by which a whole video may end before the duration that it states
_BT709 = 1  # FFmpeg's number for BT.709, in the fields that tell a player the colors
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

Item = TypeVar("Item")


class Outcome(NamedTuple):
    """What became of one input.

    Attributes:
      path: The input.
      place: Its annotated copy.
      found: Of a picture `{"boxes", "scores", "labels"}`, of a video `{"fps", "size", "times",
        "frames"}` with the seconds from its start at which each frame is due; None where nothing
        could be read.
      problem: None, or a line that names the input and what is wrong with it.
    """

    path: Path
    place: Path
    found: dict[str, Any] | None
    problem: str | None = None


def find(names: Sequence[str]) -> list[Path]:
    """The files that a command line names, each once, in its order.

    Args:
      names: Files, folders (all pictures directly in it, sorted) and globs (`**` for any depth).

    Raises:
      UserError: If a name matches nothing, or there is none.
    """
    if not names:
        raise errors.UserError("name at least one picture, folder, 'glob*' or video")
    return list(dict.fromkeys(path for name in names for path in _named(name)))


def is_video(path: Path) -> bool:
    """Whether a file is a video, by the ending of its name."""
    return path.suffix.lower() in VIDEOS


def places(paths: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Where the annotated copy of each file goes.

    A copy has the name of its file, except that two copies never share a name, none replaces one of
    `paths`, videos become MP4, and pictures that are not JPEG become PNG.
    """
    taken = {_identity(path) for path in paths}
    chosen = {}
    for path in paths:
        ending = ".mp4" if is_video(path) else path.suffix
        if ending.lower() not in (*_KEPT, ".mp4"):
            ending = ".png"
        chosen[path] = _free(output / f"{path.stem}{ending}", taken)
        taken.add(_identity(chosen[path]))
    return chosen


def camera_place(targets: Mapping[Path, Path], output: Path) -> Path:
    """Where the annotated video of a camera goes: no file of `targets`, from `places`, has it."""
    return _free(output / "camera.mp4", {*map(_identity, (*targets, *targets.values()))})


def annotate(
    detector: detector_lib.Detector,
    targets: Mapping[Path, Path],
    *,
    score_threshold: float,
    classes: Sequence[str] = (),
    crops: Path | None = None,
    on_frame: Callable[[Path, int], None] = lambda path, frames: None,
) -> Iterator[Outcome]:
    """Detects in files and writes their annotated copies, one batch in memory at a time.

    Args:
      detector: What detects.
      targets: Where the copy of each file goes, from `places`; folders have to exist.
      score_threshold: Only detections that score more, in [0, 1].
      classes: Only detections of these; empty: of all.
      crops: Folder for a picture of each object, in a folder of its class; None: none is written.
      on_frame: Called with a video and the number of its frames done, after each batch.

    Yields:
      An outcome for each file, as soon as its copy is written. A file that fails is one of them and
      stops nothing.

    Raises:
      UserError: If the detector has no class of such a name.
    """
    run = _Run(detector, score_threshold, _labels(detector, classes), crops)
    for video, group in itertools.groupby(targets, key=is_video):
        if not video:
            yield from _annotate_pictures(run, group, targets)
            continue
        for path in group:
            source = functools.partial(av.open, str(path))
            yield _annotate_video(run, path, targets[path], source, on_frame)


def annotate_camera(
    detector: detector_lib.Detector,
    camera: int | str,
    place: Path,
    *,
    score_threshold: float,
    classes: Sequence[str] = (),
    crops: Path | None = None,
    seconds: float = 0.0,
    on_frame: Callable[[Path, int], None] = lambda path, frames: None,
) -> Outcome:
    """Detects in what a camera sees, frame by frame, until it is interrupted by Ctrl-C.

    What it sees while the detector is busy is left out.

    Args:
      detector: What detects.
      camera: Its number, from 0, its device, or `FORMAT:NAME` as FFmpeg has them.
      place: Of the annotated video.
      score_threshold: As of `annotate`.
      classes: Likewise.
      crops: Likewise.
      seconds: Ends by itself after so long; 0: it does not.
      on_frame: Likewise.

    Raises:
      UserError: If the detector has no class of such a name.
    """
    run = _Run(detector, score_threshold, _labels(detector, classes), crops)
    kind, numbered = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
    name = numbered.format(camera) if isinstance(camera, int) else camera
    if isinstance(camera, str) and ":" in camera:
        kind, _, name = camera.partition(":")
    run.detect([np.zeros((1, 1, 3), np.uint8)])  # compiles, while no camera waits
    source = functools.partial(_open_camera, kind, name)
    return _annotate_video(run, Path(f"camera {camera}"), place, source, on_frame, seconds=seconds)


def in_words(found: Mapping[str, Any]) -> str:
    """Counts of an outcome's `found`: `"2 dog, 1 person"`, of a video over all its frames."""
    labels = found_labels(found)
    if "frames" in found:
        return f"{len(found['frames'])} frames, {_counted(labels)}"
    return _counted(labels)


def found_labels(found: Mapping[str, Any]) -> list[str]:
    """Names in an outcome's `found`, one for each box, of a video over all its frames."""
    if "frames" in found:
        return [label for frame in found["frames"] for label in frame["labels"]]
    return list(found["labels"])


def free_folder(path: Path) -> Path:
    """The folder, or the first of `PATH-2`, `PATH-3`, ..., that is not there or holds nothing."""
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    places = itertools.chain([path], names)
    return next(
        place
        for place in places
        if not place.exists() or (place.is_dir() and not any(place.iterdir()))
    )


def make_folder(path: Path, *, overwrite: bool = False) -> None:
    """Makes a folder, and those above it, where there is none yet.

    Args:
      path: Of the folder.
      overwrite: Whether there may be files in it already.

    Raises:
      UserError: If that is not possible, or there are files.
    """
    if path.is_dir() and not overwrite and any(path.iterdir()):
        raise errors.UserError(
            f"--output {path}: there are files in it; give another folder, or --overwrite"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(f"--output {path}: no folder there: {error.strerror}") from None


def write_json(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Writes what was found as one JSON object: a line for each input, by its path.

    Raises:
      UserError: If the file cannot be written.
    """
    lines = [
        f"{json.dumps(str(outcome.path))}: {json.dumps(outcome.found)}"
        for outcome in outcomes
        if outcome.found is not None
    ]
    _write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def check_coco(ids: adapters.CocoIds, paths: Iterable[Path], class_names: Iterable[str]) -> None:
    """Whether what is found in files can be told as COCO's results.

    Args:
      ids: Of the annotations that the results are for.
      paths: The files; none may be a video.
      class_names: Of the detector.

    Raises:
      UserError: If a file or class has no id, or two files have the same.
    """
    first: dict[str, Path] = {}
    for path in paths:
        if is_video(path) or path.name not in ids.images:
            raise errors.UserError(
                f"{path}: no image of {ids.file}, so COCO's results cannot name it"
            )
        if first.setdefault(path.name, path) != path:
            raise errors.UserError(
                f"{path} and {first[path.name]}: both are the image {path.name} of {ids.file}; "
                f"leave one out"
            )
    unknown = [name for name in class_names if name not in ids.categories]
    if unknown:
        raise errors.UserError(f"{ids.file}: no category of the detector's class {unknown[0]!r}")


def write_coco(path: Path, outcomes: Iterable[Outcome], ids: adapters.CocoIds) -> None:
    """Writes what was found in pictures as COCO's results.

    Args:
      path: Of the JSON: a list of `image_id`, `category_id`, `bbox` (x, y, width, height in
        pixels) and `score`.
      outcomes: Of pictures, after `check_coco`.
      ids: As there.

    Raises:
      UserError: If the file cannot be written.
    """
    rows = [
        {
            "image_id": ids.images[outcome.path.name],
            "category_id": ids.categories[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for outcome in outcomes
        if outcome.found is not None
        for (x0, y0, x1, y1), score, label in zip(
            *(outcome.found[name] for name in ("boxes", "scores", "labels")), strict=True
        )
    ]
    _write(path, "[" + ",\n".join(map(json.dumps, rows)) + "]\n")


def _write(path: Path, text: str) -> None:
    try:
        files.write(path, text)
    except OSError as error:
        raise errors.UserError(f"{path}: not written: {error.strerror}") from None


class Progress:
    """A progress bar on a terminal; elsewhere a line for each input."""

    def __init__(self, total: int):
        self._bar = progress.Progress(
            progress.TextColumn("[bold]{task.completed:.0f}/{task.total:.0f}"),
            progress.BarColumn(),
            progress.TextColumn("{task.description}", markup=False),
            console=console.stdout,
            disable=not console.stdout.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=total)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def frame(self, path: Path, frames: int) -> None:
        """Shows how many frames of a video are done."""
        self._bar.update(self._task, description=console.printable(f"{path}: frame {frames}"))

    def done(self, outcome: Outcome) -> None:
        """Shows what was found in an input; one with nothing to show only counts."""
        text = f"{outcome.path}: not read"
        if outcome.found is not None:
            text = f"{outcome.path}: {in_words(outcome.found)} -> {outcome.place}"
        self._bar.update(self._task, advance=1, description=console.printable(text))
        if not console.stdout.is_terminal and outcome.found is not None:
            console.stdout.print(console.plain(text))


def _named(name: str) -> list[Path]:
    path = Path(name)
    try:
        if path.is_dir():
            return _pictures_of(path)
        if path.exists():
            return [path]
        matches = [Path(match) for match in glob.glob(name, recursive=True)]
    except OSError as error:
        raise errors.UserError(f"{name}: {error.strerror}") from None
    if not matches:
        raise errors.UserError(f"{name}: there is no such file or folder, and nothing matches it")
    kept = [p for p in matches if p.is_file() and p.suffix.lower() in (*PICTURES, *VIDEOS)]
    if not kept:
        raise errors.UserError(f"{name}: none of the matches is a picture or a video")
    return sorted(kept)


def _pictures_of(folder: Path) -> list[Path]:
    """Pictures directly in a folder, sorted, without hidden files."""
    pictures = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURES and path.is_file() and not path.name.startswith(".")
    ]
    if not pictures:
        raise errors.UserError(
            f"{folder}: this folder holds no pictures ({' '.join(PICTURES)}); name videos singly"
        )
    return sorted(pictures)


def _free(place: Path, taken: Collection[str]) -> Path:
    """The place, or the first of `STEM-2`, `STEM-3`, ..., whose identity is not taken."""
    others = (place.with_name(f"{place.stem}-{k}{place.suffix}") for k in itertools.count(2))
    return next(p for p in itertools.chain([place], others) if _identity(p) not in taken)


def _identity(path: Path) -> str:
    """Equal for paths that may be the same file, also where the file system ignores case."""
    return str(path.resolve()).casefold()


class _Run(NamedTuple):
    """A detector, and what is kept of what it finds."""

    detector: detector_lib.Detector
    score_threshold: float
    labels: np.ndarray | None  # that are kept; None: all
    crops: Path | None

    def detect(self, images: list[np.ndarray]) -> list[Detections]:
        found = self.detector(images, score_threshold=self.score_threshold)
        if self.labels is None:
            return found
        kept = [np.isin(one.labels, self.labels) for one in found]
        return [
            Detections(*(values[rows] for values in one))
            for one, rows in zip(found, kept, strict=True)
        ]

    def save_crops(self, image: np.ndarray, found: Detections, name: str) -> str | None:
        """Writes a picture of each object, if wanted; where that fails, a line on why.

        Args:
          image: That the objects are in.
          found: In it.
          name: That no other picture or frame has.
        """
        if self.crops is None:
            return None
        last = np.array(image.shape[1::-1]) - 1  # a crop has a pixel at least
        for number, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True), start=1):
            left, top = np.minimum(np.floor(box[:2]).astype(int), last)
            right, bottom = np.maximum(np.ceil(box[2:]).astype(int), (left + 1, top + 1))
            folder = _folder_name(self.detector.class_names[label - 1])
            place = self.crops / folder / f"{name}-{number}.jpg"
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[top:bottom, left:right]).save(place, quality=95)
            except OSError as error:
                return _not_written(place, error)
        return None


def _folder_name(class_name: str) -> str:
    """A class's name as that of a folder, which is never one above."""
    return re.sub(r"^\.+|[^\w.-]+", "_", class_name) or "_"


def _not_written(place: Path, error: OSError | av.FFmpegError) -> str:
    return f"{place} was not written: {error.strerror or error}"


def _labels(detector: detector_lib.Detector, classes: Sequence[str]) -> np.ndarray | None:
    if unknown := [name for name in classes if name not in detector.class_names]:
        raise errors.UserError(
            f"--classes {unknown[0]}: the detector has no such class; it has "
            f"{', '.join(detector.class_names)}"
        )
    return np.array([1 + detector.class_names.index(name) for name in classes]) if classes else None


def _annotate_pictures(
    run: _Run, paths: Iterable[Path], targets: Mapping[Path, Path]
) -> Iterator[Outcome]:
    unreadable: list[Outcome] = []
    most_megapixels = run.detector.config.data.max_megapixels

    def readable() -> Iterator[tuple[Path, np.ndarray]]:
        for path in paths:
            try:
                image = detector_lib.read_picture(path, max_megapixels=most_megapixels)
            except errors.UserError as error:
                unreadable.append(Outcome(path, targets[path], None, str(error)))
            else:
                yield path, image

    detector = run.detector
    for batch in _batches(readable(), most=detector.config.eval.batch_size):
        detections = run.detect([image for _, image in batch])
        for (path, image), found in zip(batch, detections, strict=True):
            drawn = np.asarray(detector.draw(image, found))
            problem = _save(drawn, targets[path], of=path)
            problem = run.save_crops(image, found, targets[path].name) or problem
            yield Outcome(path, targets[path], _as_json(found, detector.class_names), problem)
    yield from unreadable


def _save(image: np.ndarray, place: Path, *, of: Path) -> str | None:
    """Writes a picture; where that fails, a line on why."""
    try:
        Image.fromarray(image).save(place, quality=95)
    except OSError as error:
        return f"{of}: {_not_written(place, error)}"
    return None


def _annotate_video(
    run: _Run,
    path: Path,
    place: Path,
    open_source: Callable[[], Any],
    on_frame: Callable[[Path, int], None],
    *,
    seconds: float | None = None,
) -> Outcome:
    """Of a file, or, where `seconds` are given, of a camera, which is shown without delay."""
    detector, live = run.detector, seconds is not None
    frames: list[tuple[float, dict[str, Any]]] = []
    crops = None
    try:
        with open_source() as source:
            video = VideoReader(source)
            taken = iter(video) if seconds is None else _live(video, seconds)
            most = 1 if live else detector.config.eval.batch_size
            with _Copy(place, video.rate) as copy:
                try:
                    for batch in _batches(taken, most=most):
                        detections = run.detect([image for _, image in batch])
                        for (due, image), found in zip(batch, detections, strict=True):
                            copy.write(np.asarray(detector.draw(image, found)), due)
                            frames.append(
                                (round(float(due), 6), _as_json(found, detector.class_names))
                            )
                            name = f"{place.name}-{len(frames):06d}"
                            crops = run.save_crops(image, found, name) or crops
                        on_frame(path, len(frames))
                        if live and copy.problem:
                            break
                except KeyboardInterrupt:
                    if not live:
                        raise
    except (av.FFmpegError, OSError, errors.UserError) as error:
        reason = getattr(error, "strerror", None) or error
        kind = "a camera that can be opened" if live else "a readable video"
        return Outcome(path, place, None, f"{path}: not {kind} ({reason})")
    if not frames:
        return Outcome(path, place, None, f"{path}: no frame of this video can be read")
    result = {"fps": float(video.rate), "size": list(video.size)}
    result["times"], result["frames"] = map(list, zip(*frames, strict=True))
    unread = video.problem and f"{video.problem}; {len(frames)} frames are kept"
    problems = "; ".join(filter(None, (unread, copy.problem, crops)))
    return Outcome(path, place, result, f"{path}: {problems}" if problems else None)


def _open_camera(kind: str, name: str) -> av.container.InputContainer:
    try:
        av.format.ContainerFormat(kind, "r")
    except ValueError:
        raise errors.UserError(
            f"FFmpeg has no format {kind!r}; give a number, a device or FORMAT:NAME"
        ) from None
    return av.open(name, format=kind)


def _live(
    video: Iterable[tuple[Fraction, np.ndarray]], seconds: float
) -> Iterator[tuple[Fraction, np.ndarray]]:
    """What a camera sees: what came while the frame before was worked on is left out.

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


class _Copy:
    """The annotated copy of a video, up to where it cannot be written.

    Attributes:
      problem: None, or a line on why it was not written.
    """

    def __init__(self, place: Path, rate: Fraction):
        self.problem: str | None = None
        self._place, self._rate = place, rate
        self._stack = contextlib.ExitStack()
        self._write: Callable[[np.ndarray, Fraction], None] | None = None

    def __enter__(self) -> "_Copy":
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._stack.__exit__(*error)
        except (av.FFmpegError, OSError) as failure:
            self.problem = self.problem or _not_written(self._place, failure)

    def write(self, image: np.ndarray, due: Fraction) -> None:
        """As of `video_writer`; all frames have the first one's size."""
        if self.problem:
            return
        try:
            if self._write is None:
                writer = video_writer(self._place, image.shape[:2], rate=self._rate)
                self._write = self._stack.enter_context(writer)
            self._write(image, due)
        except (av.FFmpegError, OSError) as failure:
            self.problem = _not_written(self._place, failure)
            # PyAV crashes where it is made to write on.
            self.__exit__(type(failure), failure, failure.__traceback__)


class VideoReader:
    """Reads a video frame by frame: iterate once over its (time, frame).

    Times are seconds from the start of the video and increase. The frames are `[H, W, 3]` uint8
    RGB, the way up that the video says, all of one size. What is damaged is left out; the iteration
    does not raise for it.

    Attributes:
      rate: Frames a second, as the video states; they may come at other times.
      size: (width, height) of the frames in pixels, once there was one.
      problem: None, or after the iteration what was wrong with the video.
    """

    def __init__(self, container: av.container.InputContainer):
        """Starts to read.

        Args:
          container: Of the video, opened.

        Raises:
          UserError: If there are no pictures in it.
        """
        if not container.streams.video:
            raise errors.UserError("it holds no pictures")
        self._container = container
        self._stream = container.streams.video[0]
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate or _USUAL_RATE
        frame_time = Fraction(rate.denominator, rate.numerator)
        self.rate = 1 / frame_time.limit_denominator(_MOST_TICKS)
        self.size = (0, 0)
        self.problem: str | None = None
        tick, start = self._stream.time_base, self._stream.start_time
        self._start = start * tick if tick and start is not None else None
        self._due = -1 / self.rate  # of the last frame, in seconds from the start of the video
        self._end = 0.0  # likewise, when the next is due

    def __iter__(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        coded = self._stream.codec_context
        for frame in self._decoded():
            stored = frame.to_ndarray(format="rgb24", width=coded.width, height=coded.height)
            image = np.ascontiguousarray(np.rot90(stored, round(frame.rotation / 90)), np.uint8)
            self.size = (image.shape[1], image.shape[0])
            yield self._due, image
        if self._end < self._stated_end() - _SLACK and not self.problem:
            self._damaged(f"it states {self._stated_end():.1f} s")

    def _decoded(self) -> Iterator[av.VideoFrame]:
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    self._damaged("incomplete data")
                    continue
                try:
                    decoded = packet.decode()
                except av.FFmpegError as error:
                    self._damaged(str(error.strerror))
                    continue
                for frame in decoded:
                    self._due = self._due_of(frame)
                    self._end = float(self._due + self._length_of(frame))
                    yield frame
        except av.FFmpegError as error:
            self._damaged(str(error.strerror))

    def _damaged(self, reason: str) -> None:
        self.problem = self.problem or f"damaged or broken off at {self._end:.1f} s ({reason})"

    def _due_of(self, frame: av.VideoFrame) -> Fraction:
        """A frame's own time; an even one after the last, where it has none or one that is past."""
        if frame.pts is not None and frame.time_base:
            stamp = frame.pts * frame.time_base
            self._start = stamp if self._start is None else self._start
            due = stamp - self._start
            even = round(due * self.rate) / self.rate
            if even > self._due and abs(even - due) <= frame.time_base:
                return even  # which the container had rounded
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


@contextlib.contextmanager
def video_writer(
    path: Path, size: tuple[int, int], *, rate: Fraction
) -> Iterator[Callable[[np.ndarray, Fraction], None]]:
    """Writes an MP4, H.264 where FFmpeg has it; it is whole once the context is left.

    Args:
      path: Of the file.
      size: (height, width) in pixels; where one is odd, the last row or column is written twice.
      rate: Frames a second. Times that are multiples of its inverse are kept exactly, others to
        20 microseconds.

    Yields:
      `write(image, due)`, for frames of that size, `[H, W, 3]` uint8 RGB, each due so many seconds
      from the start, after the one before.

    Raises:
      FFmpegError: If the file cannot be written or encoded.
    """
    encoder = next(name for name in _ENCODERS if name in av.codecs_available)
    pad = ((0, size[0] % 2), (0, size[1] % 2), (0, 0))
    tick = Fraction(1, rate.numerator * max(1, _MOST_TICKS // rate.numerator))
    last = -1
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(encoder, rate=rate, options=_ENCODERS[encoder])
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size[0] + pad[0][1], size[1] + pad[1][1]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.time_base = tick

        def write(image: np.ndarray, due: Fraction) -> None:
            nonlocal last
            frame = av.VideoFrame.from_ndarray(np.pad(image, pad, mode="edge"), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            last = max(last + 1, round(due / tick))
            frame.pts, frame.time_base = last, tick
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode(None))


def _batches(
    images: Iterable[tuple[Item, np.ndarray]], *, most: int
) -> Iterator[list[tuple[Item, np.ndarray]]]:
    """Groups (anything, image): at most so many, and fewer of large ones."""
    batch: list[tuple[Item, np.ndarray]] = []
    for item in images:
        batch.append(item)
        if len(batch) == most or sum(image.size // 3 for _, image in batch) >= _BATCH_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch


def _as_json(found: Detections, class_names: Sequence[str]) -> dict[str, Any]:
    """Detections in pixels as what JSON holds; digits beyond float32's are left out."""
    return {
        "boxes": np.asarray(found.boxes, np.float64).round(3).tolist(),
        "scores": np.asarray(found.scores, np.float64).round(5).tolist(),
        "labels": [class_names[label - 1] for label in np.asarray(found.labels).tolist()],
    }


def _counted(labels: Iterable[str]) -> str:
    counts = Counter(labels).most_common()
    return ", ".join(f"{count} {label}" for label, count in counts) or "nothing"
