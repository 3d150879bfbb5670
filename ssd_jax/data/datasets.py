"""The one entrance to data: a dataset's name and a split -> records by number, and their classes.

Data are read from a copy that is prepared once in `cache_dir`.
"""

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from ssd_jax import cache as cache_lib
from ssd_jax import errors
from ssd_jax.data import (
    annotations,
    examine,
    images,
    machine,
    metadata,
    prepared,
    records,
    split_names,
    voc,
)

_FAR = 1e7  # pixels, VOC's; float32 has them exactly


class Split(NamedTuple):
    """A split of a dataset.

    Attributes:
      source: Its records, by number.
      class_names: Label k is class_names[k - 1].
      max_objects: The most objects in any of its images, at least 1.
      category_ids: The dataset's own id of each class: COCO's and YOLO's; others count from 1.
      annotated: Whether the objects in its images are known; those of tests often are not.
    """

    source: records.Records
    class_names: tuple[str, ...]
    max_objects: int
    category_ids: tuple[int, ...]
    annotated: bool


def load(
    dataset: str,
    split: str,
    *,
    path: str = "",
    archives: str = "",
    cache_dir: str | os.PathLike,
    max_unreadable_fraction: float | None = None,
    memory_gib: float = 0.0,
    max_megapixels: float = images.MAX_MEGAPIXELS,
    prepare: bool = True,
) -> Split:
    """Opens a split of a dataset, preparing it first if needed.

    Args:
      dataset: "voc" (PASCAL VOC 2007 and 2012), "coco" (of 2014 and 2017), "synthetic" (made here
        on first use), or your own: "folder" (in VOC's form), "coco" (JSON) or "yolo" (text files).
      split: Names joined by "+", each perhaps sliced as tfds does, "train[:16]" or "val[50%:]".
        VOC's names start with the year: "2007/train", "2007/val", "2007/trainval", "2007/test",
        "2012/trainval", ... COCO's are "train2017", "val2017" and the others of
        `coco_official.SPLITS`. Synthetic data have "train" and "test". A folder's are those of its
        ImageSets/Main, of your own JSON those of the files' names, YOLO's those of data.yaml;
        without, they are "train", "val" (every fifth image) and "all".
      path: Path of your own dataset; with "coco", empty means the official one.
      archives: Folder with VOC's or COCO's archives; empty: they are downloaded.
      cache_dir: Folder of prepared data and downloads.
      max_unreadable_fraction: Fraction of the split's images, in [0, 1], that may be left out
        because they or their annotations cannot be read; they are named once in the log. None, for
        evaluation: not one. It is taken over the whole splits that `split` names, also where they
        are sliced. A "val" by order is made of what can be read; the log names what the dataset has
        besides.
      memory_gib: Where the files of the splits are no larger than this together, records stay in
        memory once they are read. Reading holds the GIL; kept records do not.
      max_megapixels: Images of your own dataset with more cannot be used. A dataset is prepared for
        one such limit; another limit prepares it again.
      prepare: Whether it may be prepared, and downloaded, now.

    Returns:
      The split; its order is always the same.

    Raises:
      UserError: If there is no such dataset, split, folder or archive, it has more unreadable
        data than allowed, or it is not prepared and must not be.
      MachineError: If the machine is at fault; the failure is not cached.
    """
    cache = cache_lib.folder(cache_dir)
    find = prepared.finder(
        dataset,
        path=path,
        archives=archives,
        cache=cache,
        prepare=prepare,
        max_megapixels=max_megapixels,
    )
    parts = [split_names.parse(part, split) for part in split.split("+")]
    official = dataset == "coco" and not path
    homes = {part: prepared.home(part, official=official) for part in parts}
    with machine.blaming(cache):
        found = {home: _info(find(home, split)) for home in dict.fromkeys(homes.values())}
    infos = {part: found[home] for part, home in homes.items()}
    facts = {part: metadata.Metadata.from_json(info.metadata) for part, info in infos.items()}
    _account(facts, split, max_unreadable_fraction)
    stretches = [
        item for part in parts for item in _stretches(infos[part], facts[part], part, split)
    ]
    info = infos[parts[0]]
    return Split(
        source=records.Records(stretches, memory_gib=memory_gib),
        class_names=tuple(info.features["objects"]["labels"].feature.names),
        max_objects=max(1, *(item.most_objects for item in stretches)),
        category_ids=facts[parts[0]].category_ids,
        annotated=not any(part.name in fact.unannotated for part, fact in facts.items()),
    )


def ground_truth(split: Split) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns the ground truth for evaluation; no image is decoded.

    Args:
      split: A split from `load`.

    Returns:
      By image's name: boxes `[M, 4]` float32 in VOC's pixels (1-based, inclusive), those of
      degenerate objects, which the devkit counts too, as the file has them; labels `[M]` int32
      from 1; difficult `[M]` bool: what counts neither as hit nor as miss, which are VOC's
      difficult objects and COCO's crowds.

    Raises:
      UserError: If the split holds an image twice.
    """
    truth: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for index in range(len(split.source)):
        item = split.source[index]
        if item["name"] in truth:
            raise errors.UserError(
                f"the split holds {item['name']} twice; evaluate each image once"
            )
        boxes = annotations.to_voc_pixels(item["boxes"], item["height"], item["width"])
        whole = annotations.bboxes_to_voc_pixels(item["bboxes"]).clip(-_FAR, _FAR)
        boxes = np.where(item["degenerate"][:, None], whole, boxes).astype(np.float32)
        truth[item["name"]] = boxes, item["labels"], item["difficult"] | item["crowd"]
    return truth


def coco_ground_truth(
    split: Split,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Returns the ground truth for COCO's evaluation exactly as in the files.

    Args:
      split: A split from `load`, with each image once.

    Returns:
      By image's name, in the order of the ids that COCO gives to images, on which the order of
      equal scores depends: bboxes `[M, 4]` float64 (x, y, width, height), labels `[M]` int32 from
      1, crowd `[M]` bool, which are VOC's difficult objects too, and areas `[M]` float64.
    """
    rows: list[tuple[int, str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]] = []
    for index in range(len(split.source)):
        item = split.source[index]
        crowd = item["difficult"] | item["crowd"]
        objects = item["bboxes"], item["labels"], crowd, item["areas"]
        rows.append((item["image_id"], item["name"], objects))
    return {name: objects for _, name, objects in sorted(rows, key=lambda row: row[0])}


def _info(directory: str) -> tfds.core.DatasetInfo:
    return tfds.builder_from_directory(directory).info


def _account(
    facts: Mapping[split_names.Part, metadata.Metadata],
    split: str,
    max_unreadable_fraction: float | None,
) -> None:
    """Checks the number of skipped images against the limit and logs their names.

    Raises:
      UserError: Too many are.
    """
    bad: dict[str, str] = {}
    good = 0
    for part, fact in {part._replace(slice=""): fact for part, fact in facts.items()}.items():
        bad |= fact.skipped.get(part.name, {})
        good += sum(len(fact.object_counts.get(each, [])) for each in fact.stored(part.name))
    if not bad:
        _tell_of_others(facts, split)
        return
    share = len(bad) / (len(bad) + good)
    count = f"split {split!r}: {len(bad)} of {len(bad) + good} images cannot be used"
    if max_unreadable_fraction is None:
        raise errors.UserError(
            f"{count}, and an evaluation skips none; repair or remove them: {examine.summary(bad)}"
        )
    if share > max_unreadable_fraction:
        enough = math.ceil(100 * share) / 100
        raise errors.UserError(
            f"{count}, a share of {share:.1%}, more than config.data.max_unreadable_fraction="
            f"{max_unreadable_fraction:g}; repair or remove them, or train without them by "
            f"--config.data.max_unreadable_fraction={enough:g}: {examine.summary(bad)}"
        )
    logging.warning("%s and are left out: %s", count, examine.summary(bad))


def _tell_of_others(facts: Mapping[split_names.Part, metadata.Metadata], split: str) -> None:
    """Logs the skipped images of a split that is made from the usable images in order."""
    (fact, *_) = facts.values()  # who has splits by order is one dataset
    if fact.by_order and (others := fact.skipped["all"]):
        good = sum(map(len, fact.object_counts.values()))
        logging.warning(
            "split %r, made by order: %d of the dataset's %d images cannot be used and are not "
            "in it: %s",
            split,
            len(others),
            len(others) + good,
            examine.summary(others),
        )


def _stretches(
    info: tfds.core.DatasetInfo, fact: metadata.Metadata, part: split_names.Part, split: str
) -> list[records.Stretch]:
    """Locates the records of one part of a split."""
    if part.name not in fact.joined and part.name not in info.splits:
        prefix = f"{part.year}/" if part.year else ""
        known = ", ".join(prefix + name for name in sorted([*info.splits, *fact.joined]))
        archive = voc.ARCHIVES.get(part.year, {}).get(part.name)
        hint = f"; it comes with {archive.filename}" if archive else ""
        raise errors.UserError(
            f"split {split!r}: there is no {prefix}{part.name}, only {known}{hint}"
        )
    names = fact.stored(part.name)
    lengths = [info.splits[name].num_examples for name in names]
    start, stop = split_names.bounds(part, sum(lengths), split)
    found = []
    for name, length in zip(names, lengths, strict=True):
        low, high = max(start, 0), min(stop, length)
        if low < high:
            most = max(fact.object_counts[name][low:high])
            size = info.splits[name].num_bytes
            found.append(records.Stretch(os.fspath(info.data_dir), name, low, high, most, size))
        start, stop = start - length, stop - length
    return found
