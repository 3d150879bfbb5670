"""The one form in which every dataset is prepared, whatever its files look like.

A format is a `Reader`: it lists a dataset and reads one picture with its annotation at a time.
`examine` reads all of them, each once, and keeps apart what cannot be used. A `Builder` has tfds
write the rest as `array_record`, read by `as_data_source()` without TensorFlow. It is shard-based:
tfds' GeneratorBasedBuilder shuffles in memory up to 1 GB and beyond that through TensorFlow's
files. Pictures are stored byte for byte as they came, after each has been decoded once, so that a
broken one is found at once. Only the annotations are held in memory, and one shard of pictures.
"""

import abc
import concurrent.futures
import contextlib
import functools
import importlib.metadata
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.progress
import tensorflow_datasets as tfds
from absl import logging

from ssd_jax import console, errors
from ssd_jax.data import annotations, images

VERSION = "1.4.0"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
NO_IMAGE_ID = -1
LIST_ALL = "python -m ssd_jax.data.check PATH lists all"

_SPLIT_NAME = re.compile(r"[A-Za-z]\w*")
_VAL_EVERY = 5  # of a dataset without splits every fifth picture validates
_SHARD_BYTES = 128 << 20
_IN_FLIGHT = 1024  # pictures that are given to the threads at a time
_MOST_LISTED = 10
_LONGEST_PART = 1000  # characters of a remark's beginning, and of its end
_DECODERS = ("pillow", "simplejpeg")


class Example(NamedTuple):
    """One picture with its annotation, found good.

    Attributes:
      name: File name of the picture, unique in its split.
      read: Gives the file's bytes.
      bytes: How many they are.
      annotation: What is known of it.
      image_id: COCO's id of the picture; NO_IMAGE_ID in other formats.
      notes: A line for each fault of the file that costs no pixel.
    """

    name: str
    read: Callable[[], bytes]
    bytes: int
    annotation: annotations.Annotation
    image_id: int = NO_IMAGE_ID
    notes: tuple[str, ...] = ()


class Reader(abc.ABC):
    """A dataset whose files are listed; no picture is opened yet.

    Attributes:
      name: What messages call the dataset: its path.
      keys: A word for each picture, unique, in order.
      splits: The keys of each split; empty where the dataset has none.
      remarks: A line for each thing that is wrong with the dataset as a whole, with a file's name.
      unannotated: The splits of which nothing but the pictures was published.
      max_megapixels: An image of more cannot be used.
    """

    name: str
    keys: Sequence[str]
    splits: Mapping[str, Sequence[str]]
    remarks: Sequence[str]
    unannotated: Sequence[str] = ()
    max_megapixels: float = images.MAX_MEGAPIXELS

    @abc.abstractmethod
    def example(self, key: str) -> Example:
        """Reads one picture and its annotation; safe to call from several threads.

        Raises:
          UserError: Either cannot be used; it names the file.
        """

    @abc.abstractmethod
    def categories(self, names: Iterable[str]) -> dict[str, int]:
        """The classes in the order of their labels, with the ids that the dataset gives them.

        Args:
          names: The classes of all objects.
        """


class Examined(NamedTuple):
    """A dataset, read whole.

    Attributes:
      splits: By split, its pictures that can be used.
      skipped: By split, the keys of the others, with the reason.
      remarks: A line for each thing wrong that cost no picture: boxes clipped, ...
    """

    splits: dict[str, list[Example]]
    skipped: dict[str, dict[str, str]]
    remarks: tuple[str, ...]


def examine(reader: Reader) -> Examined:
    """Decodes every picture of a dataset and reads every annotation, each once.

    Without splits of its own, in the order of the keys every fifth picture is `val`, the others
    are `train`, and `all` is both; what cannot be used counts as `train`'s, so that `val` is whole.

    Raises:
      MachineError: The machine could not read one: that says nothing about the image.
    """
    examples: dict[str, Example] = {}
    failures: dict[str, str] = {}
    keys = list(dict.fromkeys(key for split in reader.splits.values() for key in split))
    keys = keys or list(reader.keys)
    with _threads_for(reader.name):
        for key, result in zip(keys, _progress(_results(reader, keys), len(keys)), strict=True):
            if isinstance(result, Example):
                examples[key] = result
            else:
                failures[key] = result
    splits = reader.splits or _split_by_order(keys, failures)
    notes = [note for item in examples.values() for note in (*item.notes, *item.annotation.notes)]
    return Examined(
        splits={
            name: [examples[key] for key in split if key in examples]
            for name, split in splits.items()
        },
        skipped={
            name: {console.printable(key): failures[key] for key in split if key in failures}
            for name, split in splits.items()
        },
        remarks=tuple(map(_line, [*reader.remarks, *notes])),
    )


def conditions() -> dict[str, str]:
    """What decides, beside a dataset's files, which images of it can be used.

    Where some could not, and one of these has changed, they are tried again.
    """
    return {name: importlib.metadata.version(name) for name in _DECODERS}


def without_objects(
    splits: Mapping[str, Sequence[Example]], unannotated: Iterable[str]
) -> set[str]:
    """The splits of which no image has an object to train on, though they have annotations."""
    return {
        name
        for name, split in splits.items()
        if name not in unannotated and not any(map(_has_object, split))
    }


def class_names(splits: Mapping[str, Sequence[Example]]) -> set[str]:
    """The classes of all objects; none where not a single one lies within its image."""
    known = [item.annotation for item in itertools.chain.from_iterable(splits.values())]
    if all(annotation.degenerate.all() for annotation in known):
        return set()
    return {name for annotation in known for name in annotation.names}


def check_split_name(name: str, file: str) -> str:
    """Returns the name of a split where tfds can store it.

    Raises:
      UserError: It cannot; `file` is what has to be renamed.
    """
    if not _SPLIT_NAME.fullmatch(name):
        raise errors.UserError(
            f"{file}: rename it, split {name!r} may have letters, digits and underscores only"
        )
    return name


def decode_size(
    data: bytes, *, name: str, max_megapixels: float
) -> tuple[int, int, tuple[str, ...]]:
    """Height and width of an image, upright, of which every pixel has been decoded, and its notes.

    Args:
      data: The file.
      name: What errors and notes call it.
      max_megapixels: As of `images.decode`.

    Raises:
      UserError: It does not decode.
    """
    notes: list[str] = []
    pixels = images.decode(data, name=name, max_megapixels=max_megapixels, on_remark=notes.append)
    return *pixels.shape[:2], tuple(f"{name}: {note}" for note in notes)


def summary(failures: Mapping[str, str]) -> str:
    """One line for all failures: the first in full, more by their keys, of many the first few."""
    (_, first), *others = failures.items()
    if not others:
        return first
    listed = ", ".join(key for key, _ in others[:_MOST_LISTED])
    more = f", ...: {LIST_ALL}" if len(others) > _MOST_LISTED else ""
    return f"{first}; {len(others)} more cannot be used: {listed}{more}"


class Builder(tfds.core.ShardBasedBuilder):
    """What the builders share. A subclass gives the readers.

    Its metadata: `object_counts`, by split the number of objects of each record; `joined`, the
    splits that are not stored because they are others, named there, one after the other;
    `skipped`, by split the pictures that cannot be used and why; `conditions`, as the function of
    that name gave them; `by_order`, whether the dataset
    has no splits of its own; `category_ids`, its own id of each class; `unannotated`, the splits
    whose annotations were not published.
    """

    VERSION = tfds.core.Version(VERSION)

    @abc.abstractmethod
    def _readers(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Reader]:
        """Where the pictures and annotations are; the splits of one reader are not another's."""

    def _info(self) -> tfds.core.DatasetInfo:
        scalar, flags = tfds.features.Scalar, tfds.features.Tensor(shape=(None,), dtype=np.bool_)
        exact = functools.partial(
            tfds.features.Tensor, dtype=np.float64, encoding=tfds.features.Encoding.BYTES
        )
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(doc="The file's bytes, as they came."),
                "name": tfds.features.Text(doc="File name of the picture, unique in its split."),
                "image_id": scalar(np.int64),
                "height": scalar(np.int32),
                "width": scalar(np.int32),
                "objects": {
                    "boxes": tfds.features.Tensor(
                        shape=(None, 4), dtype=np.float32, doc="xyxy, normalised to [0, 1]."
                    ),
                    "labels": tfds.features.Sequence(tfds.features.ClassLabel()),
                    "difficult": flags,
                    "truncated": flags,
                    "crowd": flags,
                    "degenerate": flags,
                    # tfds stores float64 exactly as bytes only.
                    "bboxes": exact(shape=(None, 4), doc="(x, y, width, height), pixels."),
                    "areas": exact(shape=(None,), doc="In pixels."),
                },
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=(type(self).__doc__ or "").partition("\n")[0],
            features=features,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[functools.partial[Iterator[tuple[str, dict[str, Any]]]]]]:
        readers = self._readers(dl_manager)
        splits: dict[str, list[Example]] = {}
        skipped: dict[str, dict[str, str]] = {}
        remarks: list[str] = []
        for reader in readers:
            examined = examine(reader)
            splits |= examined.splits
            skipped |= examined.skipped
            remarks += examined.remarks
        if not any(splits.values()):
            raise errors.UserError(_nothing(readers[0], skipped))
        _log(remarks)
        categories = readers[0].categories(class_names(splits))
        joined = _joined(splits)
        written = {name: split for name, split in splits.items() if split and name not in joined}
        if "all" in written:
            raise errors.UserError(
                f"{readers[0].name}: rename its split `all` (ImageSets/Main/all.txt, "
                "instances_all.json, ...); tfds reserves `all`"
            )
        self.info.features["objects"]["labels"].feature.names = tuple(categories)
        self.info.metadata["category_ids"] = list(categories.values())
        self.info.metadata["joined"] = joined
        self.info.metadata["skipped"] = skipped
        self.info.metadata["conditions"] = conditions()
        self.info.metadata["by_order"] = not any(reader.splits for reader in readers)
        self.info.metadata["unannotated"] = [
            name for reader in readers for name in reader.unannotated
        ]
        self.info.metadata["object_counts"] = {
            name: [len(item.annotation.names) for item in split] for name, split in written.items()
        }
        return {
            name: [functools.partial(_records, shard) for shard in _shards(split)]
            for name, split in written.items()
        }


class Own(Builder):
    """Somebody's own dataset, of whatever format."""

    name = "ssd_own"  # in tfds' registry

    def __init__(
        self,
        *,
        reader: Callable[[], Reader],
        max_megapixels: float = images.MAX_MEGAPIXELS,
        **kwargs: Any,
    ):
        """Args are those of tfds, and the format.

        Args:
          reader: Lists the dataset; called only where it is not prepared yet.
          max_megapixels: As of `Reader`.
          **kwargs: Of tfds' builders: `data_dir`, ...
        """
        self._reader = reader
        self._max_megapixels = max_megapixels
        super().__init__(**kwargs)

    def _readers(self, dl_manager: tfds.download.DownloadManager) -> list[Reader]:
        del dl_manager  # nothing to download
        reader = self._reader()
        reader.max_megapixels = self._max_megapixels
        return [reader]


def _results(reader: Reader, keys: Sequence[str]) -> Iterator[Example | str]:
    """What becomes of each key: an example, or the reason why there is none."""
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        for start in range(0, len(keys), _IN_FLIGHT):
            part = keys[start : start + _IN_FLIGHT]
            yield from pool.map(functools.partial(_example_or_reason, reader), part)
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _threads_for(name: str) -> Iterator[None]:
    """Tells in one line that the machine has no more threads, which Python calls a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise errors.MachineError(
            f"{name}: {error}: allow more processes (ulimit -u) or free memory, and run the same "
            "command again"
        ) from error


def _example_or_reason(reader: Reader, key: str) -> Example | str:
    """Reads one picture.

    Raises:
      MachineError: The machine could not; the picture may be good.
    """
    try:
        example = reader.example(key)
        example.name.encode()
        return example
    except UnicodeEncodeError:
        return _line(f"{reader.name}: the file name {key!r} is not UTF-8; rename the file")
    except Exception as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, f"{reader.name}: {key}") from error
        if not isinstance(error, errors.UserError):
            raise
        return _line(str(error))


def _line(text: str) -> str:
    """A remark in printable text, without its middle if somebody's file made it endless."""
    if len(text) > 2 * _LONGEST_PART:
        text = f"{text[:_LONGEST_PART]}...{text[-_LONGEST_PART:]}"
    return console.printable(text)


def _has_object(example: Example) -> bool:
    """Whether an image has an object to train on."""
    annotation = example.annotation
    return bool(np.any(~annotation.degenerate & ~annotation.crowd))


def _split_by_order(keys: Sequence[str], bad: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """`all`, and its parts `train` and `val`: the fifth, tenth, ... validates if it can be used."""
    val = tuple(key for key in keys[_VAL_EVERY - 1 :: _VAL_EVERY] if key not in bad)
    held_out = set(val)
    train = tuple(key for key in keys if key not in held_out)
    splits = {"train": train, "val": val, "all": tuple(keys)}
    return {name: split for name, split in splits.items() if split}


def _joined(splits: Mapping[str, Sequence[Example]]) -> dict[str, list[str]]:
    """Splits that hold just what `train` and `val` hold, which need not be stored again."""
    parts = [name for name in ("train", "val") if splits.get(name)]
    pictures = sorted(item.name for name in parts for item in splits[name])
    return {
        name: parts
        for name in ("trainval", "all")
        if splits.get(name) and sorted(item.name for item in splits[name]) == pictures
    }


def _nothing(reader: Reader, skipped: Mapping[str, Mapping[str, str]]) -> str:
    """Says that no picture can be used, and why."""
    failures = {key: reason for split in skipped.values() for key, reason in split.items()}
    return summary(failures) if failures else f"{reader.name}: holds no picture"


def _progress(results: Iterable[Example | str], total: int) -> Iterable[Example | str]:
    screen = console.Console(stderr=True)
    return rich.progress.track(
        results,
        description="Checking pictures",
        total=total,
        console=screen,
        disable=not screen.is_terminal,
    )


def _log(remarks: Sequence[str]) -> None:
    if not remarks:
        return
    logging.warning(
        "%d boxes were clipped, reordered or dropped from training, or files passed over or "
        "missing; %s; the first:",
        len(remarks),
        LIST_ALL,
    )
    for line in remarks[:_MOST_LISTED]:
        logging.warning("  %s", line)


def _shards(examples: Sequence[Example]) -> list[list[Example]]:
    """Cuts a split into runs of about `_SHARD_BYTES`, for tfds holds a whole shard in memory."""
    ends = np.cumsum([item.bytes for item in examples])
    shard_of = (ends - 1) // _SHARD_BYTES
    starts = np.flatnonzero(np.diff(shard_of, prepend=-1))
    bounds = [*starts.tolist(), len(examples)]
    return [list(examples[a:b]) for a, b in itertools.pairwise(bounds)]


def _records(examples: Sequence[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what tfds writes: key and record."""
    for item in examples:
        annotation = item.annotation
        sides = np.array([annotation.width, annotation.height] * 2, np.float32)
        yield (
            item.name,
            {
                "image": item.read(),
                "name": item.name,
                "image_id": item.image_id,
                "height": annotation.height,
                "width": annotation.width,
                "objects": {
                    "boxes": annotation.boxes / sides,
                    "labels": list(annotation.names),
                    "difficult": annotation.difficult,
                    "truncated": annotation.truncated,
                    "crowd": annotation.crowd,
                    "degenerate": annotation.degenerate,
                    "bboxes": annotation.bboxes,
                    "areas": annotation.areas,
                },
            },
        )
