"""Detections drawn into copies of images and videos: the run of a detector over its inputs."""

import contextlib
import errno
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from PIL import Image

from ssd_jax import addresses, errors, files, visualize
from ssd_jax import detector as detector_lib
from ssd_jax.data import images as image_files
from ssd_jax.detection import Detections
from ssd_jax.media import crops as crops_lib
from ssd_jax.media import files as media_files
from ssd_jax.media import outputs, video

_BATCH_PIXELS = 1 << 26  # of the images held at a time: 200 MB, however large they are
_MOST_BYTES = 1 << 30  # of an image file
_EVERY_FILE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
)  # errors that the next file would meet too
Item = TypeVar("Item")


def check_classes(detector: detector_lib.Detector, classes: Sequence[str]) -> None:
    """Whether a detector has these classes.

    Raises:
      UserError: If it has no class of such a name.
    """
    _labels(detector, classes)


def annotate_inputs(
    detector: detector_lib.Detector,
    targets: Mapping[media_files.Input, Path],
    *,
    score_threshold: float,
    classes: Sequence[str] = (),
    crops: Path | None = None,
    on_frame: Callable[[object, int], None] = lambda path, frames: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[outputs.Outcome]:
    """Detects in inputs and writes their annotated copies, one batch in memory at a time.

    Args:
      detector: The detector.
      targets: Output path of each input, from `files.places`; the folders exist.
      score_threshold: Only detections that score more, in [0, 1].
      classes: Only detections of these; empty: of all.
      crops: Folder for an image of each object, in a folder of its class; None: none is written.
      on_frame: Called with a video and the number of its frames done, after each batch.
      stopped: Whether to end after the current images or the current batch of a video.

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
    run: "_Run", targets: Mapping[media_files.Input, Path], on_frame: Callable[[object, int], None]
) -> Iterator[outputs.Outcome]:
    for videos, group in itertools.groupby(targets, key=media_files.is_video):
        if not videos:
            yield from _annotate_images(run, group, targets)  # type: ignore[arg-type]
            continue
        for path in group:
            if not run.ends():
                live = isinstance(path, addresses.Address) and path.live
                source = functools.partial(video.opened, path)
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
) -> outputs.Outcome | None:
    """Detects in the frames of a camera until it is stopped.

    Frames that arrive while the detector is busy are skipped.

    Args:
      detector: The detector.
      camera: Its number, from 0, its device, its address such as `rtsp://host/1`, or `FORMAT:NAME`
        as FFmpeg has them.
      place: Path of the annotated video.
      score_threshold: Only detections that score more, in [0, 1].
      classes: Only detections of these; empty: of all.
      crops: Folder for an image of each object, in a folder of its class; None: none is written.
      seconds: Ends by itself after so long; 0: it does not.
      on_frame: Called with the camera's name and the number of its frames done, after each.
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
    source = functools.partial(video.open_camera, camera)
    return _annotate_video(run, name, place, source, on_frame, seconds=seconds)


class _Run:
    """A detector with the options for its outputs and its end.

    Attributes:
      detector: The detector.
      ends: Whether no further input is started.
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
        """Args are those of `annotate_inputs`."""
        self.detector, self.stopped = detector, stopped
        self.trouble: errors.MachineError | None = None
        self._score_threshold, self._labels = score_threshold, _labels(detector, classes)
        self._crops = (
            None
            if crops is None
            else crops_lib.Crops(crops, detector.class_names, not_written=self.not_written)
        )

    def ends(self) -> bool:
        """Whether no further input is started."""
        return self.stopped() or self.trouble is not None

    def note(self, error: BaseException, name: object) -> None:
        """Raises errors of the machine, which would affect the next file as well."""
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _EVERY_FILE:
            self.trouble = self.trouble or errors.of_machine(error, name)

    def read(self, path: Path) -> np.ndarray:
        """The pixels of an image file, `[H, W, 3]` uint8.

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
        """Returns a line about a file that was not written."""
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

    def draw(self, image: np.ndarray, found: Detections) -> Image.Image:
        """The image or frame with the boxes, names and scores of its detections."""
        boxes, scores, labels = (np.asarray(values) for values in found)
        names = self.detector.class_names
        return visualize.draw_image(image, boxes, labels, scores, class_names=names)

    def save_crops(self, image: np.ndarray, found: Detections, name: str) -> str | None:
        """Writes the crops of an image or frame if they are wanted, see `Crops.save`."""
        return self._crops.save(image, found, name) if self._crops else None


def _labels(detector: detector_lib.Detector, classes: Sequence[str]) -> np.ndarray | None:
    if unknown := [name for name in classes if name not in detector.class_names]:
        raise errors.UserError(
            f"--classes {unknown[0]}: the detector has no such class; it has "
            f"{', '.join(detector.class_names)}"
        )
    return np.array([1 + detector.class_names.index(name) for name in classes]) if classes else None


def _annotate_images(
    run: _Run, paths: Iterable[Path], targets: Mapping[media_files.Input, Path]
) -> Iterator[outputs.Outcome]:
    unreadable: list[outputs.Outcome] = []

    def readable() -> Iterator[tuple[Path, np.ndarray]]:
        for path in paths:
            if run.ends():
                return
            try:
                image = run.read(path)
            except errors.UserError as error:
                unreadable.append(outputs.Outcome(path, targets[path], None, str(error)))
            else:
                yield path, image

    detector = run.detector
    for batch in _batches(readable(), most=detector.config.eval.batch_size):
        detections = run.detect([image for _, image in batch])
        for (path, image), found in zip(batch, detections, strict=True):
            problem = None
            try:
                outputs.save_image(run.draw(image, found), targets[path])
            except OSError as error:
                problem = f"{path}: {run.not_written(targets[path], error)}"
            crops = run.save_crops(image, found, targets[path].name)
            problem = "; ".join(filter(None, (problem, crops))) or None
            yield outputs.Outcome(
                path, targets[path], outputs.as_json(found, detector.class_names), problem
            )
    yield from unreadable


def _annotate_video(
    run: _Run,
    path: media_files.Input | str,
    place: Path,
    open_source: Callable[[], contextlib.AbstractContextManager[Any]],
    on_frame: Callable[[object, int], None],
    *,
    seconds: float | None = None,
) -> outputs.Outcome:
    """Annotates a file or, with `seconds`, a camera without delay."""
    detector, live = run.detector, seconds is not None
    frames: list[tuple[float, dict[str, Any]]] = []
    crops = None
    try:
        with open_source() as source:
            reader = video.VideoReader(source)
            taken = _Until(run.stopped, reader if seconds is None else video.live(reader, seconds))
            most = 1 if live else detector.config.eval.batch_size
            with _Copy(run, place, reader) as copy:
                for batch in _batches(taken, most=most):
                    detections = run.detect([image for _, image in batch])
                    for (due, image), found in zip(batch, detections, strict=True):
                        copy.write(np.asarray(run.draw(image, found)), due)
                        frames.append(
                            (round(float(due), 6), outputs.as_json(found, detector.class_names))
                        )
                        name = f"{place.name}-{len(frames):06d}"
                        crops = run.save_crops(image, found, name) or crops
                    on_frame(path, len(frames))
                    if live and copy.problem:
                        break
                cut = not live and taken.is_cut()
    except (av.FFmpegError, OSError, errors.UserError) as error:
        run.note(error, path)
        kind = "a camera that can be opened" if live else "a readable video"
        return outputs.Outcome(
            path, place, None, f"{path}: not {kind} ({video.reason(error, path)})"
        )
    if not frames:
        return outputs.Outcome(path, place, None, f"{path}: no frame of this video can be read")
    result = {"fps": float(reader.rate), "size": list(reader.size)}
    result["times"], result["frames"] = map(list, zip(*frames, strict=True))
    unread = reader.problem
    if cut:
        unread = f"stopped at {frames[-1][0]:.1f} s"
    unread = unread and f"{unread}; {len(frames)} frames are kept"
    problems = "; ".join(filter(None, (unread, copy.problem, crops)))
    return outputs.Outcome(path, place, result, f"{path}: {problems}" if problems else None)


class _Until:
    """Yields from an iterable, at least one item, until it is stopped."""

    def __init__(self, stopped: Callable[[], bool], items: Iterable[Any]):
        self._stopped, self._items = stopped, iter(items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item
            if self._stopped():
                return

    def is_cut(self) -> bool:
        """Whether there is another item, which is consumed; may block."""
        return self._stopped() and next(self._items, None) is not None


class _Copy:
    """Writes the annotated copy of a video until a failure.

    Attributes:
      problem: None, or a line on why it was not written.
    """

    def __init__(self, run: _Run, place: Path, reader: video.VideoReader):
        self.problem: str | None = None
        self._run, self._place, self._reader = run, place, reader
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
        """Writes a frame as `video.video_writer` does; all frames have the first one's size."""
        if self.problem:
            return
        try:
            if self._write is None:
                rate, aspect = self._reader.rate, self._reader.aspect
                writer = video.video_writer(self._place, image.shape[:2], rate=rate, aspect=aspect)
                self._write = self._stack.enter_context(writer)
            self._write(image, due)
        except (av.FFmpegError, OSError) as failure:
            self.problem = self._run.not_written(self._place, failure)
            # PyAV crashes where it is made to write on.
            self.__exit__(type(failure), failure, failure.__traceback__)


def _batches(
    images: Iterable[tuple[Item, np.ndarray]], *, most: int
) -> Iterator[list[tuple[Item, np.ndarray]]]:
    """Groups (anything, image) pairs: at most `most`, and fewer large ones."""
    batch: list[tuple[Item, np.ndarray]] = []
    for item in images:
        batch.append(item)
        if len(batch) == most or sum(image.size // 3 for _, image in batch) >= _BATCH_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch
