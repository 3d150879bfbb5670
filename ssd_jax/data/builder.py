"""The common format in which all datasets are prepared.

A `Builder` has tfds write what `examine` found good as `array_record`, read by `as_data_source()`
without TensorFlow. It is shard-based: tfds' GeneratorBasedBuilder shuffles in memory up to 1 GB and
beyond that through TensorFlow's files. Image files are stored unchanged. Only the
annotations are held in memory, and one shard of images.
"""

import abc
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssd_jax import errors
from ssd_jax.data import examine, images, metadata, readers

VERSION = "1.4.0"
_SHARD_BYTES = 128 << 20


class Builder(tfds.core.ShardBasedBuilder):
    """Base of the builders. A subclass returns the readers.

    Everything found besides the records is stored in tfds' metadata as `metadata.Metadata`.
    """

    VERSION = tfds.core.Version(VERSION)

    @abc.abstractmethod
    def _readers(self, dl_manager: tfds.download.DownloadManager) -> Sequence[readers.Reader]:
        """Returns the readers of images and annotations; each split has one reader."""

    def _info(self) -> tfds.core.DatasetInfo:
        scalar, flags = tfds.features.Scalar, tfds.features.Tensor(shape=(None,), dtype=np.bool_)
        exact = functools.partial(
            tfds.features.Tensor, dtype=np.float64, encoding=tfds.features.Encoding.BYTES
        )
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(doc="The bytes of the file."),
                "name": tfds.features.Text(doc="File name of the image, unique in its split."),
                "image_id": scalar(np.int64),
                "height": scalar(np.int32),
                "width": scalar(np.int32),
                "objects": {
                    "boxes": tfds.features.Tensor(
                        shape=(None, 4), dtype=np.float32, doc="xyxy, normalized to [0, 1]."
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
        sources = self._readers(dl_manager)
        splits: dict[str, list[readers.Example]] = {}
        skipped: dict[str, dict[str, str]] = {}
        remarks: list[str] = []
        for reader in sources:
            examined = examine.examine(reader)
            splits |= examined.splits
            skipped |= examined.skipped
            remarks += examined.remarks
        if not any(splits.values()):
            raise errors.UserError(_nothing(sources[0], skipped))
        examine.log_remarks(remarks)
        categories = sources[0].categories(examine.class_names(splits))
        joined = _joined(splits)
        written = {name: split for name, split in splits.items() if split and name not in joined}
        if "all" in written:
            raise errors.UserError(
                f"{sources[0].name}: rename its split `all` (ImageSets/Main/all.txt, "
                "instances_all.json, ...); tfds reserves `all`"
            )
        self.info.features["objects"]["labels"].feature.names = tuple(categories)
        found = metadata.Metadata(
            category_ids=tuple(categories.values()),
            joined=joined,
            skipped=skipped,
            conditions=metadata.conditions(),
            by_order=not any(reader.splits for reader in sources),
            unannotated=tuple(name for reader in sources for name in reader.unannotated),
            object_counts={
                name: [len(item.annotation.names) for item in split]
                for name, split in written.items()
            },
        )
        self.info.metadata.update(found.to_json())
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
        reader: Callable[[], readers.Reader],
        max_megapixels: float = images.MAX_MEGAPIXELS,
        **kwargs: Any,
    ):
        """Args are those of tfds, and the format.

        Args:
          reader: Lists the dataset; called only where it is not prepared yet.
          max_megapixels: See `Reader`.
          **kwargs: Options of tfds' builders: `data_dir`, ...
        """
        self._reader = reader
        self._max_megapixels = max_megapixels
        super().__init__(**kwargs)

    def _readers(self, dl_manager: tfds.download.DownloadManager) -> list[readers.Reader]:
        del dl_manager  # nothing to download
        reader = self._reader()
        reader.max_megapixels = self._max_megapixels
        return [reader]


def _joined(splits: Mapping[str, Sequence[readers.Example]]) -> dict[str, list[str]]:
    """Splits that equal `train` and `val` together, which need not be stored again."""
    parts = [name for name in ("train", "val") if splits.get(name)]
    names = sorted(item.name for name in parts for item in splits[name])
    return {
        name: parts
        for name in ("trainval", "all")
        if splits.get(name) and sorted(item.name for item in splits[name]) == names
    }


def _nothing(reader: readers.Reader, skipped: Mapping[str, Mapping[str, str]]) -> str:
    """Says that no image can be used, and why."""
    failures = {key: reason for split in skipped.values() for key, reason in split.items()}
    return examine.summary(failures) if failures else f"{reader.name}: holds no image"


def _shards(examples: Sequence[readers.Example]) -> list[list[readers.Example]]:
    """Cuts a split into runs of about `_SHARD_BYTES`, for tfds holds a whole shard in memory."""
    ends = np.cumsum([item.bytes for item in examples])
    shard_of = (ends - 1) // _SHARD_BYTES
    starts = np.flatnonzero(np.diff(shard_of, prepend=-1))
    bounds = [*starts.tolist(), len(examples)]
    return [list(examples[a:b]) for a, b in itertools.pairwise(bounds)]


def _records(examples: Sequence[readers.Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields key and record for tfds."""
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
