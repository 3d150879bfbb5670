"""Finds prepared datasets, preparing them first if needed.

The name of its folder in the cache holds a fingerprint of what it was made from: a changed archive
or folder, or a new test archive, is prepared again. tfds prepares in a folder of another
name and renames it at the end, so nothing half-made is ever read. One process prepares at a time,
the others wait; remains of killed processes are removed.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow_datasets as tfds

from ssd_jax import cache as cache_lib
from ssd_jax import errors
from ssd_jax.data import (
    builder,
    coco,
    coco_official,
    images,
    locks,
    metadata,
    paths,
    readers,
    split_names,
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


def home(part: split_names.Part, *, official: bool) -> str:
    """Returns the unit of preparation: a VOC year, an official COCO split, any other dataset whole.

    VOC2012's test images have an archive of their own, which training does not need.
    """
    if official:
        return f"{part.year}/{part.name}" if part.year else part.name
    both = f"{part.year}{part.name}"
    return both if both in voc.ARCHIVES else part.year


def finder(
    dataset: str,
    *,
    path: str,
    archives: str,
    cache: pathlib.Path,
    prepare: bool,
    max_megapixels: float,
) -> Callable[[str, str], str]:
    """Returns a function from `home` and the whole split to the directory of the prepared data.

    Args are those of `datasets.load`.

    Raises:
      UserError: If there is no such dataset.
    """
    how: dict[str, Any] = {"cache": cache, "prepare": prepare}
    finders: dict[str, Callable[[str, str], str]] = {
        "voc": functools.partial(_voc, archives=archives, **how),
        "synthetic": functools.partial(_synthetic, **how),
    }
    for name in OWN:
        finders[name] = functools.partial(
            _own, dataset=name, path=path, max_megapixels=max_megapixels, **how
        )
    if not path:
        finders["coco"] = functools.partial(_coco, archives=archives, **how)
    if dataset not in finders:
        raise errors.UserError(
            f"config.data.dataset={dataset!r}: no such dataset; there are {', '.join(DATASETS)}"
        )
    return finders[dataset]


def _voc(year: str, split: str, *, archives: str, cache: pathlib.Path, prepare: bool) -> str:
    """Prepares one year of PASCAL VOC; returns its directory."""
    if year not in voc.ARCHIVES:
        years = " or ".join(f"{known}/" for known in voc.ARCHIVES if known.isdigit())
        raise errors.UserError(
            f"split {split!r}: VOC's splits start with {years}, {split_names.HELP}"
        )
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
    """Prepares a user's own dataset and returns its directory."""
    if not path:
        raise errors.UserError(
            f"config.data.path is empty; give the folder of your dataset in {dataset} form"
        )
    if year:
        raise errors.UserError(
            f"split {split!r}: a year is for dataset voc only, {split_names.HELP}"
        )
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
        name = split_names.parse(part, split).name
        if name not in synthetic.SPLITS:
            known = ", ".join(synthetic.SPLITS)
            raise errors.UserError(f"split {split!r}: there is no {name}, only {known}")
    folder = cache / f"synthetic-{_digest([synthetic.code(), str(SYNTHETIC)])}"
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
    """Prepares a dataset below `data_dir` with tfds unless it exists, and returns its directory.

    Images that could not be used are tried again if the conditions have changed.
    """

    def make(place: pathlib.Path) -> tfds.core.DatasetBuilder:
        maker = make_builder(data_dir=place, file_format="array_record")
        if not _is_prepared(maker) or maker.info.metadata:
            return maker
        # Another process has just prepared it, after this builder was created.
        return make_builder(data_dir=place, file_format="array_record")

    if prepare:
        _sweep(data_dir.parent)
    maker = make(data_dir)
    if _is_prepared(maker) and metadata.Metadata.from_json(maker.info.metadata).may_be_repaired():
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
    """Like tfds' `is_prepared`, but without its warnings about unprepared data."""
    return paths.is_file(os.path.join(maker.data_dir, "dataset_info.json"))


def _unfinished(data_dir: pathlib.Path) -> list[pathlib.Path]:
    """Lists incomplete folders that a killed tfds left below a dataset's folder."""
    own = ("ssd_*/incomplete.*", "ssd_*/*/incomplete.*")  # not other content of the cache folder
    return [found for pattern in own for found in data_dir.glob(pattern)]


def _sweep(cache: pathlib.Path) -> None:
    """Removes incomplete folders that killed processes left for other datasets."""
    for data_dir in filter(_unfinished, list(cache.iterdir())):
        with contextlib.suppress(OSError), locks.alone(_lock_of(data_dir), wait=False) as alone:
            if alone:
                _remove(_unfinished(data_dir))


def _lock_of(data_dir: pathlib.Path) -> pathlib.Path:
    """The file that whoever prepares a dataset holds."""
    return data_dir.with_name(f".{data_dir.name}.lock")


def _remove(folders: Iterable[pathlib.Path]) -> None:
    """Removes folders and parents left empty, which tfds would report."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
