"""Detection in files: the pictures and videos that a command line means, and annotated copies."""

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import os
import re
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from PIL import Image
from rich import progress

from ssd_jax import adapters, addresses, console, errors, files, globs
from ssd_jax import detector as detector_lib
from ssd_jax.data import images as image_files
from ssd_jax.detection import Detections

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm",
    ".wmv",
)  # fmt: skip
_KEPT = (".jpeg", ".jpg", ".png")  # kinds of picture that are written as what they were
_BATCH_PIXELS = 1 << 26  # of the pictures held at a time: 200 MB, however large they are
_MOST_BYTES = 1 << 30  # of a picture's file
_MOST_VIDEO_PIXELS = 1 << 26  # of a frame: 8k has half as many
_MOST_STEM = 200  # bytes of a copy's name, to which numbers and endings are added
_LONGEST_FOLDER = 100  # bytes of a class's folder
_ODDEST_ASPECT = 20  # of a pixel's sides; what states more states nonsense
_EVERY_FILE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
)  # errors that the next file would meet too
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\.|$)", re.IGNORECASE)  # by Windows
_USUAL_RATE = Fraction(25)  # frames a second, for a video that does not say
_MOST_TICKS = 65535  # a second, that mpeg4 can encode
_SQUARE = Fraction(1)  # pixels
_READ_BYTES = 1 << 18  # at a time
_LIMITS = {"max_pixels": str(_MOST_VIDEO_PIXELS)}  # of FFmpeg's decoders
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
Input = Path | addresses.Address


class Inputs(NamedTuple):
    """What a command line names.

    Attributes:
      paths: Files, and videos at addresses.
      problems: A line for each folder that could not be searched for them.
    """

    paths: list[Input]
    problems: list[str]


class Outcome(NamedTuple):
    """What became of one input.

    Attributes:
      path: The input; of a camera, what it is called.
      place: Its annotated copy.
      found: Of a picture `{"boxes", "scores", "labels"}`, of a video `{"fps", "size", "times",
        "frames"}` with the seconds from its start at which each frame is due; None where nothing
        could be read.
      problem: None, or a line that names the input and what is wrong with it.
    """

    path: Input | str
    place: Path
    found: dict[str, Any] | None
    problem: str | None = None


def find(names: Sequence[str]) -> Inputs:
    """The files and addresses that a command line names, each once, in its order.

    Args:
      names: Files, folders (all pictures directly in it, sorted), globs (`**` for any depth) and
        addresses of videos, such as `https://host/video.mp4`.

    Raises:
      UserError: If a name matches nothing, or there is none.
    """
    if not names:
        raise errors.UserError("name at least one picture, folder, 'glob*' or video")
    named = [_named(name) for name in names]
    paths = dict.fromkeys(path for one in named for path in one.paths)
    problems = dict.fromkeys(line for one in named for line in one.problems)
    return Inputs(_told_apart(paths), list(problems))


def is_video(path: Input) -> bool:
    """Whether an input is a video: an address, or a file with the ending of one."""
    return isinstance(path, addresses.Address) or path.suffix.lower() in VIDEOS


def places(paths: Sequence[Input], output: Path) -> dict[Input, Path]:
    """Where the annotated copy of each input goes.

    A copy has the name of its file, except that two copies never share a name, none replaces one of
    `paths`, videos become MP4, pictures that are not JPEG become PNG, and very long names are cut.
    """
    free = _FreePlaces(paths)
    chosen = {}
    for path in paths:
        name = Path(path.name)
        ending = ".mp4" if is_video(path) else name.suffix
        if ending.lower() not in (*_KEPT, ".mp4"):
            ending = ".png"
        chosen[path] = free.take(output / f"{_shortened(name.stem, _MOST_STEM)}{ending}")
    return chosen


def camera_place(targets: Mapping[Input, Path], output: Path) -> Path:
    """Where the annotated video of a camera goes: no file of `targets`, from `places`, has it."""
    return _FreePlaces((*targets, *targets.values())).take(output / "camera.mp4")


def check_classes(detector: detector_lib.Detector, classes: Sequence[str]) -> None:
    """Whether a detector has these classes.

    Raises:
      UserError: If it has no class of such a name.
    """
    _labels(detector, classes)


def annotate(
    detector: detector_lib.Detector,
    targets: Mapping[Input, Path],
    *,
    score_threshold: float,
    classes: Sequence[str] = (),
    crops: Path | None = None,
    on_frame: Callable[[object, int], None] = lambda path, frames: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Detects in inputs and writes their annotated copies, one batch in memory at a time.

    Args:
      detector: What detects.
      targets: Where the copy of each input goes, from `places`; folders have to exist.
      score_threshold: Only detections that score more, in [0, 1].
      classes: Only detections of these; empty: of all.
      crops: Folder for a picture of each object, in a folder of its class; None: none is written.
      on_frame: Called with a video and the number of its frames done, after each batch.
      stopped: Whether to end after what is begun: the pictures that are read, the batch of a video.

    Yields:
      An outcome for each input, as soon as its copy is written. A file that fails is one of them
      and stops nothing.

    Raises:
      UserError: If the detector has no class of such a name.
      MachineError: After the outcome of what met it, trouble that the next input would meet too: a
        full disk, no memory, too many open files.
    """
    run = _Run(detector, score_threshold, classes, crops, stopped)
    for outcome in _outcomes(run, targets, on_frame):
        yield outcome if run.trouble is None else outcome._replace(problem=None)
    if run.trouble:
        raise run.trouble


def _outcomes(
    run: "_Run", targets: Mapping[Input, Path], on_frame: Callable[[object, int], None]
) -> Iterator[Outcome]:
    for video, group in itertools.groupby(targets, key=is_video):
        if not video:
            yield from _annotate_pictures(run, group, targets)  # type: ignore[arg-type]
            continue
        for path in group:
            if not run.ends():
                live = isinstance(path, addresses.Address) and path.live
                source = functools.partial(_opened, path)
                yield _annotate_video(
                    run, path, targets[path], source, on_frame, seconds=0.0 if live else None
                )


def annotate_camera(
    detector: detector_lib.Detector,
    camera: int | str,
    place: Path,
    *,
    score_threshold: float,
    classes: Sequence[str] = (),
    crops: Path | None = None,
    seconds: float = 0.0,
    on_frame: Callable[[object, int], None] = lambda path, frames: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Detects in what a camera sees, frame by frame, until it is stopped.

    What it sees while the detector is busy is left out.

    Args:
      detector: What detects.
      camera: Its number, from 0, its device, its address such as `rtsp://host/1`, or `FORMAT:NAME`
        as FFmpeg has them.
      place: Of the annotated video.
      score_threshold: As of `annotate`.
      classes: Likewise.
      crops: Likewise.
      seconds: Ends by itself after so long; 0: it does not.
      on_frame: Likewise.
      stopped: Whether to end after this frame.

    Returns:
      The outcome; None: it was stopped before the first frame.

    Raises:
      UserError: If the detector has no class of such a name.
    """
    run = _Run(detector, score_threshold, classes, crops, stopped)
    run.detect([np.zeros((1, 1, 3), np.uint8)])  # compiles, while no camera waits
    if stopped():
        return None
    name = f"camera {addresses.without_secrets(str(camera))}"
    source = functools.partial(_open_camera, camera)
    return _annotate_video(run, name, place, source, on_frame, seconds=seconds)


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


@contextlib.contextmanager
def output_folder(given: str | None, *, default: Path, overwrite: bool) -> Iterator[Path]:
    """The folder of a command's results, for this command alone until it ends.

    Args:
      given: Its path; None: a folder of its own, which is `default` or the first of `DEFAULT-2`,
        `DEFAULT-3`, ... that is not there yet.
      default: See there; with `overwrite` it is taken as it is.
      overwrite: Whether there may be files in it already.

    Yields:
      The folder, made with those above it. If nothing is in it in the end, it is removed, unless it
      was there before.

    Raises:
      UserError: If it cannot be made, holds files, or another command has it.
    """
    with contextlib.ExitStack() as stack:
        if given is None and not overwrite:
            folder, new = new_folder(default), True
        else:
            folder = Path(given or default)
            new = not folder.exists()
            make_folder(folder, overwrite=overwrite)
        stack.enter_context(_alone_in(folder))
        if new:  # not before: it may be another command's
            stack.callback(remove_empty, folder)
        if given is not None:
            make_folder(folder, overwrite=overwrite)  # by now there may be another's files
        yield folder


def make_folder(path: Path, *, overwrite: bool = False) -> None:
    """Makes a folder, and those above it, where there is none yet.

    Args:
      path: Of the folder.
      overwrite: Whether there may be files in it already.

    Raises:
      UserError: If that is not possible, or there are files.
    """
    try:
        if path.is_dir() and not overwrite and any(path.iterdir()):
            raise errors.UserError(
                f"--output {path}: there are files in it; give another folder, or --overwrite"
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(path, error) from None


def new_folder(path: Path) -> Path:
    """Makes the folder, or the first of `PATH-2`, `PATH-3`, ..., that is not there yet.

    To make it is to choose it, so that of two commands each has one of its own.

    Raises:
      UserError: If it cannot be made.
    """
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    for place in itertools.chain([path], names):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir()
        except FileExistsError as error:
            if not os.path.lexists(place):  # one of those above it is a file
                raise _no_folder(place, error) from None
        except OSError as error:
            raise _no_folder(place, error) from None
        else:
            return place
    raise AssertionError("numbers do not end")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps other commands out of a folder, where the file system has locks."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_folder(folder, error) from None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise errors.UserError(
            f"--output {folder}: another command is writing there; give another folder"
        ) from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(opened)


def remove_empty(folder: Path) -> None:
    """Removes a folder in which there is nothing."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _no_folder(path: Path, error: OSError) -> errors.UserError:
    return errors.UserError(f"--output {path}: no folder there: {error.strerror}")


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


def check_coco(ids: adapters.CocoIds, paths: Iterable[Input], class_names: Iterable[str]) -> None:
    """Whether what is found in files can be told as COCO's results.

    Args:
      ids: Of the annotations that the results are for.
      paths: The files; none may be a video.
      class_names: Of the detector.

    Raises:
      UserError: If a file or class has no id, or two files have the same.
    """
    first: dict[str, Input] = {}
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
            "image_id": ids.images[Path(str(outcome.path)).name],
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

    def frame(self, path: object, frames: int) -> None:
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


def _named(name: str) -> Inputs:
    if not name:
        raise errors.UserError("one of the names is empty; name a picture, folder or video")
    if address := addresses.parse(name):
        return Inputs([_of_video(address)], [])
    path = Path(name)
    try:
        if path.is_dir():
            return Inputs(list(_pictures_of(path)), [])
        if path.exists():
            return Inputs([path], [])
        found = globs.expand(name)
    except OSError as error:
        raise errors.UserError(f"{name}: {error.strerror}") from None
    kept = [p for p in found.paths if p.suffix.lower() in (*PICTURES, *VIDEOS)]
    if kept:
        return Inputs(list(kept), found.problems)
    if found.problems:
        raise errors.UserError(found.problems[0])
    if found.paths:
        raise errors.UserError(f"{name}: none of the matches is a picture or a video")
    raise errors.UserError(f"{name}: there is no such file or folder, and nothing matches it")


def _of_video(address: addresses.Address) -> addresses.Address:
    if address.ending in PICTURES:
        raise errors.UserError(
            f"{address}: pictures are read from files only; download it, and name the file"
        )
    return address


def _pictures_of(folder: Path) -> list[Path]:
    """Pictures directly in a folder, sorted, without hidden files; also those that are no files."""
    pictures = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURES and not path.name.startswith(".") and not _is_dir(path)
    ]
    if not pictures:
        raise errors.UserError(
            f"{folder}: this folder holds no pictures ({' '.join(PICTURES)}); name videos singly"
        )
    return sorted(pictures)


def _is_dir(path: Path) -> bool:
    return os.path.isdir(path)  # Path.is_dir raises where a link may not be followed


def _told_apart(paths: Iterable[Input]) -> list[Input]:
    """Gives addresses that look alike without their secrets a number."""
    taken: dict[str, int] = {}
    told: list[Input] = []
    for path in paths:
        if isinstance(path, addresses.Address):
            taken[path.shown] = number = taken.get(path.shown, 0) + 1
            if number > 1:
                path = addresses.Address(path.url, f"{path.shown} ({number})")
        told.append(path)
    return told


class _FreePlaces:
    """Gives places for files that neither others nor `taken` have."""

    def __init__(self, taken: Iterable[object]):
        self._real = functools.cache(lambda folder: _folded(os.path.realpath(folder)))
        files_taken = [path for path in taken if isinstance(path, Path)]
        led_to = [Path(os.path.realpath(path)) for path in files_taken if os.path.islink(path)]
        self._taken = {self._identity(path) for path in (*files_taken, *led_to)}
        self._next: dict[str, int] = {}

    def take(self, place: Path) -> Path:
        """The place, or the first of `STEM-2`, `STEM-3`, ..., that is free."""
        first = identity = self._identity(place)
        chosen, number = place, self._next.get(first, 2)  # those before are taken
        while identity in self._taken:
            chosen = place.with_name(f"{place.stem}-{number}{place.suffix}")
            identity, number = self._identity(chosen), number + 1
        self._next[first] = number
        self._taken.add(identity)
        return chosen

    def _identity(self, path: Path) -> str:
        """Equal for paths that may be one, also where case or accents' form do not count.

        A link is not followed: what is written there replaces it.
        """
        folder, name = os.path.split(path)
        return os.path.join(self._real(folder), _folded(name))


def _folded(name: str) -> str:
    """Equal for names that some file system takes for one."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _shortened(name: str, most: int) -> str:
    """A name of so many bytes at most."""
    data = os.fsencode(name)
    return name if len(data) <= most else data[:most].decode(errors="ignore")


class _Run:
    """A detector, what is kept of what it finds, and when it ends.

    Attributes:
      detector: What detects.
      ends: Whether no further input is to be begun.
      trouble: None, or what went wrong with the machine, so that the next input would fail too.
    """

    def __init__(
        self,
        detector: detector_lib.Detector,
        score_threshold: float,
        classes: Sequence[str],
        crops: Path | None,
        stopped: Callable[[], bool],
    ):
        """Args are those of `annotate`."""
        self.detector, self.stopped = detector, stopped
        self.trouble: errors.MachineError | None = None
        self._score_threshold, self._labels = score_threshold, _labels(detector, classes)
        self._crops, self._folders = crops, _folder_names(detector.class_names)
        self._made: set[Path] = set()

    def ends(self) -> bool:
        """Whether no further input is to be begun."""
        return self.stopped() or self.trouble is not None

    def note(self, error: BaseException, name: object) -> None:
        """Looks whether what failed with a file would fail with the next one too."""
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _EVERY_FILE:
            self.trouble = self.trouble or errors.of_machine(error, name)

    def read(self, path: Path) -> np.ndarray:
        """The pixels of a picture, `[H, W, 3]` uint8.

        Raises:
          UserError: If they cannot be read.
        """
        try:
            data = files.read(path, at_most=_MOST_BYTES)
            most = self.detector.config.data.max_megapixels
            return image_files.decode(data, name=str(path), max_megapixels=most)
        except OSError as error:
            self.note(error, path)
            raise errors.UserError(f"{path}: {error.strerror}") from None
        except MemoryError as error:
            self.note(error, path)
            raise errors.of_machine(error, path) from None
        except errors.MachineError as error:  # of decoding, which opens nothing
            self.trouble = self.trouble or error
            raise

    def not_written(self, place: Path, error: OSError | av.FFmpegError) -> str:
        """A line on what was not written."""
        self.note(error, place)
        return f"{place} was not written: {error.strerror or error}"

    def detect(self, images: list[np.ndarray]) -> list[Detections]:
        found = self.detector(images, score_threshold=self._score_threshold)
        if self._labels is None:
            return found
        kept = [np.isin(one.labels, self._labels) for one in found]
        return [
            Detections(*(values[rows] for values in one))
            for one, rows in zip(found, kept, strict=True)
        ]

    def save_crops(self, image: np.ndarray, found: Detections, name: str) -> str | None:
        """Writes a picture of each object, if wanted; where some fail, a line on the first.

        Args:
          image: That the objects are in.
          found: In it.
          name: That no other picture or frame has.
        """
        if self._crops is None:
            return None
        last = np.array(image.shape[1::-1]) - 1  # a crop has a pixel at least
        problems = []
        for number, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True), start=1):
            left, top = np.minimum(np.floor(box[:2]).astype(int), last)
            right, bottom = np.maximum(np.ceil(box[2:]).astype(int), (left + 1, top + 1))
            place = self._crops / self._folders[label - 1] / f"{name}-{number}.jpg"
            try:
                self._make(place.parent)
                _save(image[top:bottom, left:right], place)
            except OSError as error:
                problems.append(self.not_written(place, error))
        more = f" (and {len(problems) - 1} more crops)" if problems[1:] else ""
        return f"{problems[0]}{more}" if problems else None

    def _make(self, folder: Path) -> None:
        """Makes a folder of crops; a link there is replaced."""
        for part in (folder.parent, folder):
            if part not in self._made:
                files.make_folder(part)
                self._made.add(part)


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder's name for each class: one that every system takes, and that no other class has."""
    taken: set[str] = set()
    names = []
    for class_name in class_names:
        base = re.sub(r"^\.+|[^\w.-]+|\.+$", "_", class_name) or "_"
        base = _shortened(f"_{base}" if _RESERVED.match(base) else base, _LONGEST_FOLDER)
        others = (f"{base}-{number}" for number in itertools.count(2))
        name = next(n for n in itertools.chain([base], others) if _folded(n) not in taken)
        taken.add(_folded(name))
        names.append(name)
    return names


def _labels(detector: detector_lib.Detector, classes: Sequence[str]) -> np.ndarray | None:
    if unknown := [name for name in classes if name not in detector.class_names]:
        raise errors.UserError(
            f"--classes {unknown[0]}: the detector has no such class; it has "
            f"{', '.join(detector.class_names)}"
        )
    return np.array([1 + detector.class_names.index(name) for name in classes]) if classes else None


def _annotate_pictures(
    run: _Run, paths: Iterable[Path], targets: Mapping[Input, Path]
) -> Iterator[Outcome]:
    unreadable: list[Outcome] = []

    def readable() -> Iterator[tuple[Path, np.ndarray]]:
        for path in paths:
            if run.ends():
                return
            try:
                image = run.read(path)
            except errors.UserError as error:
                unreadable.append(Outcome(path, targets[path], None, str(error)))
            else:
                yield path, image

    detector = run.detector
    for batch in _batches(readable(), most=detector.config.eval.batch_size):
        detections = run.detect([image for _, image in batch])
        for (path, image), found in zip(batch, detections, strict=True):
            problem = None
            try:
                _save(np.asarray(detector.draw(image, found)), targets[path])
            except OSError as error:
                problem = f"{path}: {run.not_written(targets[path], error)}"
            crops = run.save_crops(image, found, targets[path].name)
            problem = "; ".join(filter(None, (problem, crops))) or None
            yield Outcome(path, targets[path], _as_json(found, detector.class_names), problem)
    yield from unreadable


def _save(image: np.ndarray, place: Path) -> None:
    """Writes a picture; a link at its place is replaced."""
    if os.path.islink(place):
        place.unlink()
    Image.fromarray(image).save(place, quality=95)


def _annotate_video(
    run: _Run,
    path: Input | str,
    place: Path,
    open_source: Callable[[], contextlib.AbstractContextManager[Any]],
    on_frame: Callable[[object, int], None],
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
            taken = _Until(run.stopped, video if seconds is None else _live(video, seconds))
            most = 1 if live else detector.config.eval.batch_size
            with _Copy(run, place, video) as copy:
                for batch in _batches(taken, most=most):
                    detections = run.detect([image for _, image in batch])
                    for (due, image), found in zip(batch, detections, strict=True):
                        copy.write(np.asarray(detector.draw(image, found)), due)
                        frames.append((round(float(due), 6), _as_json(found, detector.class_names)))
                        name = f"{place.name}-{len(frames):06d}"
                        crops = run.save_crops(image, found, name) or crops
                    on_frame(path, len(frames))
                    if live and copy.problem:
                        break
                cut = not live and taken.is_cut()
    except (av.FFmpegError, OSError, errors.UserError) as error:
        run.note(error, path)
        kind = "a camera that can be opened" if live else "a readable video"
        return Outcome(path, place, None, f"{path}: not {kind} ({_reason(error, path)})")
    if not frames:
        return Outcome(path, place, None, f"{path}: no frame of this video can be read")
    result = {"fps": float(video.rate), "size": list(video.size)}
    result["times"], result["frames"] = map(list, zip(*frames, strict=True))
    unread = video.problem
    if cut:
        unread = f"stopped at {frames[-1][0]:.1f} s"
    unread = unread and f"{unread}; {len(frames)} frames are kept"
    problems = "; ".join(filter(None, (unread, copy.problem, crops)))
    return Outcome(path, place, result, f"{path}: {problems}" if problems else None)


def _reason(error: Exception, path: object) -> str:
    """What FFmpeg says of a video, without the address that it adds."""
    if isinstance(error, av.error.ExitError):
        return "nothing came in time"
    if isinstance(error, av.error.ArgumentError):
        return "of no known format"
    return str(getattr(error, "strerror", None) or error).removeprefix(f"{path}: ")


class _Until:
    """What an iterable gives, at least one item, until it is stopped."""

    def __init__(self, stopped: Callable[[], bool], items: Iterable[Any]):
        self._stopped, self._items = stopped, iter(items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item
            if self._stopped():
                return

    def is_cut(self) -> bool:
        """Whether there is more, which is then lost; an item may have to be waited for."""
        return self._stopped() and next(self._items, None) is not None


@contextlib.contextmanager
def _opened(path: Input) -> Iterator[av.container.InputContainer]:
    """Opens a video: a file as a file, whatever its name and content, and what an address gives.

    Raises:
      FFmpegError: If it is no video, or not reached.
      OSError: If the file cannot be opened.
      UserError: If it is no regular file, or a server fails.
    """
    if isinstance(path, addresses.Address) and (path.live or path.ending not in VIDEOS):
        with addresses.open_stream(path) as container:
            yield container
        return
    opening: contextlib.AbstractContextManager[Any] = (
        addresses.fetched(path) if isinstance(path, addresses.Address) else files.open_regular(path)
    )
    with opening as file, open_file(file) as container:
        yield container


def open_file(file: Any) -> av.container.InputContainer:
    """Opens a video that leads to no other file and to no address.

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


def _open_camera(camera: int | str) -> av.container.InputContainer:
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

    def __init__(self, run: _Run, place: Path, video: "VideoReader"):
        self.problem: str | None = None
        self._run, self._place, self._video = run, place, video
        self._stack = contextlib.ExitStack()
        self._write: Callable[[np.ndarray, Fraction], None] | None = None

    def __enter__(self) -> "_Copy":
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._stack.__exit__(*error)
        except (av.FFmpegError, OSError) as failure:
            self.problem = self.problem or self._run.not_written(self._place, failure)

    def write(self, image: np.ndarray, due: Fraction) -> None:
        """As of `video_writer`; all frames have the first one's size."""
        if self.problem:
            return
        try:
            if self._write is None:
                rate, aspect = self._video.rate, self._video.aspect
                writer = video_writer(self._place, image.shape[:2], rate=rate, aspect=aspect)
                self._write = self._stack.enter_context(writer)
            self._write(image, due)
        except (av.FFmpegError, OSError) as failure:
            self.problem = self._run.not_written(self._place, failure)
            # PyAV crashes where it is made to write on.
            self.__exit__(type(failure), failure, failure.__traceback__)


class VideoReader:
    """Reads a video frame by frame: iterate once over its (time, frame).

    Times are seconds from the start of the video and increase. The frames are `[H, W, 3]` uint8
    RGB, the way up that the video says, all of the first one's size, to which others are scaled;
    their pixels are those that are stored, square or not. What is damaged is left out; the
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
          container: Of the video, opened.

        Raises:
          UserError: If there are no pictures in it, or absurdly large ones.
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
        self._end = 0.0  # likewise, when the next is due

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

    def _stated_aspect(self) -> Fraction:
        """Of a stored pixel; 1 where nothing, or nonsense, is stated."""
        aspect = self._stream.sample_aspect_ratio
        return aspect if aspect and 1 / _ODDEST_ASPECT < aspect < _ODDEST_ASPECT else Fraction(1)

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


def _turned(width: int, height: int, turns: int) -> tuple[int, int]:
    """Sides after so many quarter turns."""
    return (height, width) if turns % 2 else (width, height)


def _main_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The pictures that a player shows: no cover, and of several the default, or largest, first.

    Raises:
      UserError: If there are none that can be decoded, or they are absurdly large.
    """
    pictures = av.stream.Disposition.attached_pic
    streams = [each for each in container.streams.video if not each.disposition & pictures]
    if not streams:
        raise errors.UserError("it holds no pictures")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise errors.UserError("its pictures are coded in a way that FFmpeg does not know")
    stream = max(known, key=_preference)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > _MOST_VIDEO_PIXELS:
        raise errors.UserError(
            f"frames of {width} x {height} pixels; at most {_MOST_VIDEO_PIXELS} are read"
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
    """Writes an MP4, H.264 where FFmpeg has it; it is whole once the context is left.

    Args:
      path: Of the file.
      size: (height, width) in pixels; where one is odd, the last row or column is written twice.
      rate: Frames a second. Times that are multiples of its inverse are kept exactly, others to
        20 microseconds.
      aspect: Width of a pixel over its height, which tells a player how wide to show it.

    Yields:
      `write(image, due)`, for frames of that size, `[H, W, 3]` uint8 RGB, each due so many seconds
      from the start, after the one before.

    Raises:
      FFmpegError: If it cannot be encoded.
      OSError: If the file cannot be written. What was at `path` is then as it was before.
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
