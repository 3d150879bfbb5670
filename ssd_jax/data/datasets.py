"""The one entrance to data: a dataset's name and a split -> records by number, and their classes.

What is read is a copy prepared once under `cache_dir`, whose name holds a fingerprint of what it
was made from: a changed archive or folder, or a test archive that has come, is prepared anew. tfds
prepares in a folder of another name and renames it at the end, so nothing half-made is ever read.
One process prepares at a time, others wait for it; what killed ones left behind is removed.
"""

import bisect
import contextlib
import errno
import functools
import hashlib
import io
import itertools
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.proto import tf_example_pb2

from ssd_jax import cache as cache_lib
from ssd_jax import errors
from ssd_jax.data import (
    annotations,
    builder,
    coco,
    coco_official,
    examine,
    images,
    locks,
    metadata,
    paths,
    readers,
    synthetic,
    voc,
    yolo,
)

DATASETS = ("voc", "folder", "coco", "yolo", "synthetic")
SYNTHETIC = {"train": 2000, "test": 200, "seed": 0}

OWN: dict[str, tuple[Callable[[str], list[pathlib.Path]], Callable[[str], readers.Reader]]] = {
    "folder": (voc.folder_files, voc.read_folder),
    "coco": (coco.files, coco.read_folder),
    "yolo": (yolo.files, yolo.Reader),
}
"""Of each format that people bring: path -> its files, to see a change by; path -> its reader."""

_PART = re.compile(r"(?:(?P<year>\w+)/)?(?P<name>\w+)(?P<slice>\[[^\]]*\])?")
_TOLD_IN_WORDS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE),
)
_FAR = 1e7  # pixels, VOC's; float32 has them exactly
_HELP = 'as in "2007/trainval+2012/trainval" or, of a folder, "train[:80%]"'


class Stretch(NamedTuple):
    """Records `start` to `stop`, less that one, of a split prepared in `directory`.

    Attributes:
      most_objects: The most that any of them has.
      size: Of the whole split's files, in bytes.
    """

    directory: str
    split: str
    start: int
    stop: int
    most_objects: int
    size: int


class Records:
    """Stretches of prepared splits, one after the other, as one sequence of records.

    Threads may share it; pickled, it opens its files anew and keeps nothing, as worker processes
    would each keep all. Item `i`, which may be shared and is not to be changed, is a dict of
    `image` (the bytes of the picture's file), `name`, `height` and `width` (pixels), `boxes`
    ([N, 4] float32 xyxy in [0, 1]), `labels` ([N] int32, from 1), `difficult`, `truncated`,
    `crowd` and `degenerate` ([N] bool), `bboxes` ([N, 4] float64, (x, y, width, height) as the file
    has them) and `areas` ([N] float64), in pixels, and `image_id`, that of COCO, which is -1 in
    other datasets.

    Args:
      stretches: Which records.
      memory_gib: As `load` takes it.
    """

    def __init__(self, stretches: Iterable[Stretch], *, memory_gib: float = 0.0):
        self._stretches = tuple(stretches)
        files = {(part.directory, part.split): part.size for part in self._stretches}
        self._keep = 0 < sum(files.values()) <= memory_gib * 2**30
        self._kept: dict[int, dict[str, Any]] = {}
        self._ends = list(itertools.accumulate(part.stop - part.start for part in self._stretches))
        with _blaming_the_machine(self._stretches[0].directory):
            self._sources = [_open(part.directory, part.split) for part in self._stretches]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        record = self._kept.get(index)
        if record is None:
            record = self._read(index)
            if self._keep:
                for value in record.values():
                    if isinstance(value, np.ndarray):
                        value.flags.writeable = False  # it is everybody's
                self._kept[index] = record
        return record

    def _read(self, index: int) -> dict[str, Any]:
        number = bisect.bisect_right(self._ends, index)
        offset = index - (self._ends[number - 1] if number else 0)
        with _blaming_the_machine(self._stretches[number].directory):
            return _record(self._sources[number][self._stretches[number].start + offset])

    def __reduce__(self) -> tuple[type["Records"], tuple[tuple[Stretch, ...]]]:
        return Records, (self._stretches,)

    def __repr__(self) -> str:
        return f"Records({list(self._stretches)})"


class Split(NamedTuple):
    """What `load` gives.

    Attributes:
      source: Its records, by number.
      class_names: Label k is class_names[k - 1].
      max_objects: The most objects in any of its pictures, at least 1.
      category_ids: The dataset's own id of each class: COCO's and YOLO's; others count from 1.
      annotated: Whether the objects in its pictures are known; those of tests often are not.
    """

    source: Records
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
    max_bad_share: float | None = None,
    memory_gib: float = 0.0,
    max_megapixels: float = images.MAX_MEGAPIXELS,
    prepare: bool = True,
) -> Split:
    """Opens a split of a dataset, which is prepared first where it has not been.

    Args:
      dataset: "voc" (PASCAL VOC 2007 and 2012), "coco" (of 2014 and 2017), "synthetic" (made here
        on first use), or your own: "folder" (in VOC's form), "coco" (JSON) or "yolo" (text files).
      split: Names joined by "+", each perhaps sliced as tfds does, "train[:16]" or "val[50%:]".
        VOC's names begin with the year: "2007/train", "2007/val", "2007/trainval", "2007/test",
        "2012/trainval", ... COCO's are "train2017", "val2017" and the others of `coco_official.SPLITS`.
        Synthetic data have "train" and "test". A folder's are those of its ImageSets/Main, of your
        own JSON those of the files' names, YOLO's those of data.yaml; without, they are "train",
        "val" (every fifth picture) and "all".
      path: Of your own dataset; with "coco", empty is the official one.
      archives: Folder with VOC's or COCO's archives; empty: they are downloaded.
      cache_dir: Where prepared data and downloads are kept.
      max_bad_share: Which share of the split's pictures, in [0, 1], may be left out because they or
        their annotations cannot be read; they are named once in the log. None, for evaluation:
        not one. It is taken over the whole splits that `split` names, also where they are sliced.
        A "val" by order is made of what can be read; the log names what the dataset has besides.
      memory_gib: Where the files of the splits are no larger than this together, records stay in
        memory once they are read. What is read holds Python's lock, what is kept does not.
      max_megapixels: An image of your own dataset that has more cannot be used. What is prepared is
        for one such bound: another one prepares anew.
      prepare: Whether it may be prepared, and downloaded, now.

    Returns:
      The split; its order is always the same.

    Raises:
      UserError: There is no such dataset, split, folder or archive, it holds more broken data
        than may be left out, or it has not been prepared and may not be.
      MachineError: The machine stands in the way; nothing of that is remembered.
    """
    cache = cache_lib.folder(cache_dir)
    how: dict[str, Any] = {"cache": cache, "prepare": prepare}
    official = dataset == "coco" and not path
    find = {
        "voc": functools.partial(_voc, archives=archives, **how),
        "synthetic": functools.partial(_synthetic, **how),
        **{
            name: functools.partial(
                _own, dataset=name, path=path, max_megapixels=max_megapixels, **how
            )
            for name in OWN
        },
        **({"coco": functools.partial(_coco, archives=archives, **how)} if official else {}),
    }.get(dataset)
    if find is None:
        raise errors.UserError(
            f"config.data.dataset={dataset!r}: no such dataset; there are {', '.join(DATASETS)}"
        )
    parts = [_parse(part, split) for part in split.split("+")]
    homes = {part: _home(part, official=official) for part in parts}
    with _blaming_the_machine(cache):
        found = {home: _info(find(home, split)) for home in dict.fromkeys(homes.values())}
    infos = {part: found[home] for part, home in homes.items()}
    facts = {part: metadata.Metadata.from_json(info.metadata) for part, info in infos.items()}
    _account(facts, split, max_bad_share)
    stretches = [
        item for part in parts for item in _stretches(infos[part], facts[part], part, split)
    ]
    info = infos[parts[0]]
    return Split(
        source=Records(stretches, memory_gib=memory_gib),
        class_names=tuple(info.features["objects"]["labels"].feature.names),
        max_objects=max(1, *(item.most_objects for item in stretches)),
        category_ids=facts[parts[0]].category_ids,
        annotated=not any(part.name in fact.unannotated for part, fact in facts.items()),
    )


def ground_truth(split: Split) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What evaluation compares detections with; no picture is decoded.

    Args:
      split: Of `load`.

    Returns:
      By picture's name: boxes `[M, 4]` float32 in VOC's pixels (1-based, inclusive), those of
      degenerate objects, which the devkit counts too, as the file has them; labels `[M]` int32
      from 1; difficult `[M]` bool: what counts neither as hit nor as miss, which are VOC's
      difficult objects and COCO's crowds.

    Raises:
      UserError: The split holds a picture twice.
    """
    truth: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for index in range(len(split.source)):
        item = split.source[index]
        if item["name"] in truth:
            raise errors.UserError(
                f"the split holds {item['name']} twice; evaluate each picture once"
            )
        boxes = annotations.to_voc_pixels(item["boxes"], item["height"], item["width"])
        whole = annotations.bboxes_to_voc_pixels(item["bboxes"]).clip(-_FAR, _FAR)
        boxes = np.where(item["degenerate"][:, None], whole, boxes).astype(np.float32)
        truth[item["name"]] = boxes, item["labels"], item["difficult"] | item["crowd"]
    return truth


def coco_ground_truth(
    split: Split,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """What COCO's evaluation compares detections with, exactly as the files have it.

    Args:
      split: Of `load`, with each picture once.

    Returns:
      By picture's name, in the order of the ids that COCO gives to pictures, on which the order of
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


class _Part(NamedTuple):
    year: str
    name: str
    slice: str


def _parse(part: str, split: str) -> _Part:
    match = _PART.fullmatch(part.strip())
    if match is None:
        raise errors.UserError(f"split {split!r}: {part.strip()!r} is no split's name, {_HELP}")
    return _Part(match["year"] or "", match["name"], match["slice"] or "")


def _home(part: _Part, *, official: bool) -> str:
    """What is prepared together: a year of VOC, an official split of COCO, whole other datasets.

    VOC2012's test pictures have an archive of their own, which training does not need.
    """
    if official:
        return f"{part.year}/{part.name}" if part.year else part.name
    both = f"{part.year}{part.name}"
    return both if both in voc.ARCHIVES else part.year


def _voc(year: str, split: str, *, archives: str, cache: pathlib.Path, prepare: bool) -> str:
    """Prepares one year of PASCAL VOC; returns its directory."""
    if year not in voc.ARCHIVES:
        years = " or ".join(f"{known}/" for known in voc.ARCHIVES if known.isdigit())
        raise errors.UserError(f"split {split!r}: VOC's splits begin with {years}, {_HELP}")
    found = voc.find_archives(archives, year) if archives else []
    if found:
        key = _fingerprint((path.absolute(), paths.status(path)) for path in found)
    else:
        key = _digest([voc.MIRROR, *map(str, voc.ARCHIVES[year].values())])
    return _prepare(
        functools.partial(voc.Voc, config=year, archives=found),
        cache / f"voc{year}-{key}",
        downloads=cache / "downloads",
        prepare=prepare,
    )


def _coco(name: str, split: str, *, archives: str, cache: pathlib.Path, prepare: bool) -> str:
    """Prepares one official split of COCO; returns its directory."""
    if name not in coco_official.SPLITS:
        raise errors.UserError(
            f"split {split!r}: COCO has {', '.join(coco_official.SPLITS)}, and no {name}; for your "
            "own data in COCO's form give --config.data.path"
        )
    found = coco_official.find_archives(archives, name) if archives else ()
    if found:
        key = _fingerprint((path.absolute(), paths.status(path)) for path in found)
    else:
        key = _digest([coco_official.HOST, *map(str, coco_official.archives_of(name))])
    return _prepare(
        functools.partial(coco_official.Coco, config=name, archives=found),
        cache / f"coco-{name}-{key}",
        downloads=cache / "downloads",
        prepare=prepare,
    )


def _own(
    year: str,
    split: str,
    *,
    dataset: str,
    path: str,
    cache: pathlib.Path,
    prepare: bool,
    max_megapixels: float = images.MAX_MEGAPIXELS,
) -> str:
    """Prepares a dataset that somebody brought; returns its directory."""
    if not path:
        raise errors.UserError(
            f"config.data.path is empty; give the folder of your dataset in {dataset} form"
        )
    if year:
        raise errors.UserError(f"split {split!r}: a year is for dataset voc only, {_HELP}")
    list_files, reader = OWN[dataset]
    key = _fingerprint((file, paths.status(file)) for file in list_files(path))
    stem = re.sub(r"[^\w.-]+", "_", pathlib.Path(path).expanduser().absolute().name)
    if max_megapixels != images.MAX_MEGAPIXELS:
        key += f"-{max_megapixels:g}"
    return _prepare(
        functools.partial(
            builder.Own, reader=functools.partial(reader, path), max_megapixels=max_megapixels
        ),
        cache / f"{dataset}-{stem}-{key}",
        downloads=cache / "downloads",
        prepare=prepare,
    )


def _synthetic(year: str, split: str, *, cache: pathlib.Path, prepare: bool) -> str:
    """Makes and prepares the synthetic dataset; returns its directory."""
    for part in split.split("+"):  # before the minutes that it takes
        name = _parse(part, split).name
        if name not in synthetic.SPLITS:
            known = ", ".join(synthetic.SPLITS)
            raise errors.UserError(f"split {split!r}: there is no {name}, only {known}")
    generator = pathlib.Path(synthetic.__file__).read_text()
    folder = cache / f"synthetic-{_digest([generator, str(SYNTHETIC)])}"
    if prepare and not folder.exists():
        with locks.alone(cache / ".synthetic.lock") as alone:
            if alone:
                _remove(cache.glob(".synthetic-*"))
            if not folder.exists():  # otherwise another process was first
                synthetic.write(folder, **SYNTHETIC)
    return _own(year, split, dataset="folder", path=str(folder), cache=cache, prepare=prepare)


def _fingerprint(files: Iterable[tuple[pathlib.Path, os.stat_result]]) -> str:
    """Of files' names, sizes and times of change."""
    return _digest(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in files)


def _digest(lines: Iterable[str]) -> str:
    text = "\n".join([builder.VERSION, *lines])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _prepare(
    make_builder: Callable[..., tfds.core.DatasetBuilder],
    data_dir: pathlib.Path,
    *,
    downloads: pathlib.Path,
    prepare: bool,
) -> str:
    """Has tfds prepare a dataset below `data_dir` unless it is there; returns its directory.

    What could not be used is tried again where that may go otherwise by now.
    """

    def make(place: pathlib.Path) -> tfds.core.DatasetBuilder:
        return make_builder(data_dir=place, file_format="array_record")

    if prepare:
        _sweep(data_dir.parent)
    maker = make(data_dir)
    if _is_prepared(maker) and metadata.Metadata.from_json(maker.info.metadata).may_be_mended():
        conditions = itertools.chain.from_iterable(metadata.conditions().items())
        data_dir = data_dir.with_name(f"{data_dir.name}-{_digest(conditions)[:8]}")
        maker = make(data_dir)
    if _is_prepared(maker):
        return maker.data_dir
    if not prepare:
        raise errors.UserError(f"the dataset is not prepared in {data_dir}; evaluate.py does that")
    with locks.alone(_lock_of(data_dir)) as alone:
        if alone:  # who was waited for may have been killed
            _remove(_unfinished(data_dir))
        maker = make(data_dir)  # another process may have been first
        if not _is_prepared(maker):
            _write(maker, downloads)
    return maker.data_dir


def _write(maker: tfds.core.DatasetBuilder, downloads: pathlib.Path) -> None:
    try:
        # tfds prints; its bars go to stderr.
        with contextlib.redirect_stdout(io.StringIO()), cache_lib.users_without_names():
            maker.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except OSError:
        if not _is_prepared(maker):  # otherwise another process was first, where there are no locks
            raise


def _is_prepared(maker: tfds.core.DatasetBuilder) -> bool:
    """What tfds' own `is_prepared` says, which warns of everything that is not yet."""
    return paths.is_file(os.path.join(maker.data_dir, "dataset_info.json"))


def _unfinished(data_dir: pathlib.Path) -> list[pathlib.Path]:
    """What tfds had begun to write below a dataset's folder when it was killed."""
    own = ("ssd_*/incomplete.*", "ssd_*/*/incomplete.*")  # whatever else lies in the cache's folder
    return [found for pattern in own for found in data_dir.glob(pattern)]


def _sweep(cache: pathlib.Path) -> None:
    """Removes what killed processes had begun to write for other datasets."""
    for data_dir in filter(_unfinished, list(cache.iterdir())):
        with contextlib.suppress(OSError), locks.alone(_lock_of(data_dir), wait=False) as alone:
            if alone:
                _remove(_unfinished(data_dir))


def _lock_of(data_dir: pathlib.Path) -> pathlib.Path:
    """The file that whoever prepares a dataset holds."""
    return data_dir.with_name(f".{data_dir.name}.lock")


def _remove(folders: Iterable[pathlib.Path]) -> None:
    """Removes folders, and those that they leave empty: tfds wonders about such."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
            folder.parent.parent.rmdir()


@contextlib.contextmanager
def _blaming_the_machine(place: object) -> Iterator[None]:
    """Turns what libraries raise where the machine is at fault into a MachineError.

    tfds and array_record tell it in words only, in errors of any kind.
    """
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:
        trouble = _trouble(error, place)
        if trouble is None:
            raise
        raise trouble from error


def _trouble(error: BaseException | None, place: object) -> errors.MachineError | None:
    """What the machine has to do with an error, or with what caused it; None: nothing."""
    while error is not None:
        if errors.is_of_machine(error):
            named = isinstance(error, errors.MachineError) or getattr(error, "filename", None)
            return errors.of_machine(error, None if named else place)
        for number in _TOLD_IN_WORDS:
            if os.strerror(number) in str(error):
                return errors.of_machine(OSError(number, os.strerror(number)), place)
        error = error.__cause__
    return None


def _info(directory: str) -> tfds.core.DatasetInfo:
    return tfds.builder_from_directory(directory).info


def _open(directory: str, split: str) -> Any:
    return tfds.builder_from_directory(directory).as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )


def _account(
    facts: Mapping[_Part, metadata.Metadata], split: str, max_bad_share: float | None
) -> None:
    """Sees to it that no more pictures are left out than may be, and names them in the log.

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
    count = f"split {split!r}: {len(bad)} of {len(bad) + good} pictures cannot be used"
    if max_bad_share is None:
        raise errors.UserError(
            f"{count}, and an evaluation skips none; repair or remove them: {examine.summary(bad)}"
        )
    if share > max_bad_share:
        enough = math.ceil(100 * share) / 100
        raise errors.UserError(
            f"{count}, a share of {share:.1%}, more than config.data.max_bad_share="
            f"{max_bad_share:g}; repair or remove them, or train without them by "
            f"--config.data.max_bad_share={enough:g}: {examine.summary(bad)}"
        )
    logging.warning("%s and are left out: %s", count, examine.summary(bad))


def _tell_of_others(facts: Mapping[_Part, metadata.Metadata], split: str) -> None:
    """Names what is missing in a split by order, which is made of what can be used."""
    (fact, *_) = facts.values()  # who has splits by order is one dataset
    if fact.by_order and (others := fact.skipped["all"]):
        good = sum(map(len, fact.object_counts.values()))
        logging.warning(
            "split %r, made by order: %d of the dataset's %d pictures cannot be used and are not "
            "in it: %s",
            split,
            len(others),
            len(others) + good,
            examine.summary(others),
        )


def _stretches(
    info: tfds.core.DatasetInfo, fact: metadata.Metadata, part: _Part, split: str
) -> list[Stretch]:
    """Where the records of one part of a split are."""
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
    start, stop = _bounds(part, sum(lengths), split)
    found = []
    for name, length in zip(names, lengths, strict=True):
        low, high = max(start, 0), min(stop, length)
        if low < high:
            most = max(fact.object_counts[name][low:high])
            size = info.splits[name].num_bytes
            found.append(Stretch(os.fspath(info.data_dir), name, low, high, most, size))
        start, stop = start - length, stop - length
    return found


def _bounds(part: _Part, length: int, split: str) -> tuple[int, int]:
    """First record of a slice in tfds' syntax and the one after its last."""
    whole = tfds.core.SplitInfo(name="part", shard_lengths=[length], num_bytes=0)
    try:
        instruction = tfds.core.ReadInstruction.from_spec(f"part{part.slice}")
        (bounds,) = instruction.to_absolute({"part": whole})
    except (ValueError, AssertionError) as error:
        raise errors.UserError(
            f"split {split!r}: cannot take {part.slice} of {length} pictures, {_HELP}"
        ) from error
    start, stop, _ = slice(bounds.from_, bounds.to).indices(length)
    if start >= stop:
        raise errors.UserError(f"split {split!r}: {part.slice} of {length} pictures is none")
    return start, stop


def _record(example: bytes) -> dict[str, Any]:
    """Reads a stored `tf.train.Example`.

    tfds' own way from there to arrays takes three times as long, with the GIL held: a fifth of the
    time that decoding the picture takes.
    """
    # NumPy takes a list in half the time that it takes protobuf's own sequence.
    feature = tf_example_pb2.Example.FromString(example).features.feature

    def integers(name: str) -> list[int]:
        return list(feature[name].int64_list.value)

    def flags(name: str) -> np.ndarray:
        return np.array(integers(f"objects/{name}"), bool)

    def numbers(name: str) -> np.ndarray:
        return np.frombuffer(feature[f"objects/{name}"].bytes_list.value[0], np.float64)

    return {
        "image": feature["image"].bytes_list.value[0],
        "name": feature["name"].bytes_list.value[0].decode(),
        "image_id": integers("image_id")[0],
        "height": integers("height")[0],
        "width": integers("width")[0],
        "boxes": np.array(list(feature["objects/boxes"].float_list.value), np.float32).reshape(
            -1, 4
        ),
        "labels": np.array(integers("objects/labels"), np.int32) + 1,
        "difficult": flags("difficult"),
        "truncated": flags("truncated"),
        "crowd": flags("crowd"),
        "degenerate": flags("degenerate"),
        "bboxes": numbers("bboxes").reshape(-1, 4),
        "areas": numbers("areas"),
    }
