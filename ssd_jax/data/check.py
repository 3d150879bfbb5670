"""Reads a whole dataset, reports its contents and names every fault.

  python -m ssd_jax.data.check FOLDER
  python -m ssd_jax.data.check VOCtrainval_06-Nov-2007.tar
  python -m ssd_jax.data.check instances_val2017.json --prior_sizes coco --image_size 512

Every image is decoded. Exit status: 0 nothing is wrong, 1 something is, 2 the command is.
`python train.py --config FILE --check` is the same with a config's own default boxes.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich import box, table

from ssd_jax import console, errors, priors
from ssd_jax.data import (
    coco,
    coverage,
    examine,
    images,
    paths,
    prepared,
    readers,
    voc,
    yolo,
)

_PRIORS = {
    (300, "voc"): priors.SSD300_VOC,
    (300, "coco"): priors.SSD300_COCO,
    (512, "voc"): priors.SSD512_VOC,
    (512, "coco"): priors.SSD512_COCO,
}
_PATTERNS = {"coco": coco.PATTERNS, "yolo": yolo.PATTERNS}
_BY_SUFFIX = {".tar": "voc", ".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
_DESCRIPTIONS = {
    "voc": "an archive of PASCAL VOC (--config.data.dataset=voc)",
    "folder": "a folder in VOC's form (--config.data.dataset=folder)",
    "coco": "COCO's JSON (--config.data.dataset=coco)",
    "yolo": "YOLO's text files (--config.data.dataset=yolo)",
}
_WIDE = 120  # columns where the output is no terminal


class Objects(NamedTuple):
    """The objects of some images, N in all; crowds and degenerate ones are not among them.

    Attributes:
      boxes: `[N, 4]` float32 xyxy, normalized.
      areas: `[N]` of the boxes, in pixels of their images.
      names: `[N]` class of each.
      images: `[N]` number of its image.
      difficult: `[N]` bool.
      truncated: `[N]` bool.
    """

    boxes: np.ndarray
    areas: np.ndarray
    names: np.ndarray
    images: np.ndarray
    difficult: np.ndarray
    truncated: np.ndarray


def detect_format(path: str) -> str:
    """The format of a dataset: voc (an official archive), folder (VOC's form), coco or yolo.

    Raises:
      UserError: If there is nothing, or nothing that is known.
    """
    place = pathlib.Path(path).expanduser()
    if not paths.exists(place):
        raise errors.UserError(f"{path}: no such folder or file")
    if paths.is_file(place) and place.suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[place.suffix.lower()]
    reasons = []
    for name, (files, _) in prepared.OWN.items() if paths.is_folder(place) else ():
        try:
            files(path)
            return name
        except errors.MachineError:
            raise
        except errors.UserError as error:
            reasons.append(f"not {name} ({error})")
    for name, patterns in _PATTERNS.items() if paths.is_folder(place) else ():
        if any(paths.matching(place, pattern) for pattern in patterns):
            return name  # its description is broken
    tried = "; ".join(reasons) or "it is no folder, .tar, .json or .yaml"
    raise errors.UserError(f"{path}: of no known format, give --format: {tried}")


def open_reader(path: str, kind: str) -> readers.Reader:
    """Lists a dataset of a format.

    Raises:
      UserError: If it is not of that format, or what describes it as a whole is broken.
    """
    if kind != "voc":
        return prepared.OWN[kind][1](path)
    if not paths.is_file(pathlib.Path(path).expanduser()):
        raise errors.UserError(f"{path}: voc is an official archive (.tar); give --format folder")
    for year in voc.ARCHIVES:
        try:
            return voc.read_archive(path, year)
        except errors.MachineError:
            raise
        except errors.UserError as error:
            reason = error
    raise reason


def objects_of(examples: Sequence[readers.Example]) -> Objects:
    """Gathers the objects of images."""
    counts = [len(item.annotation.names) for item in examples]
    sides = [(item.annotation.width, item.annotation.height) * 2 for item in examples]
    sides_of_each = np.repeat(np.array(sides, np.float32).reshape(-1, 4), counts, axis=0)
    pixels = _joined([item.annotation.boxes for item in examples], (0, 4), np.float32)
    left_out = [item.annotation.crowd | item.annotation.degenerate for item in examples]
    keep = ~_joined(left_out, (0,), bool)
    columns = (
        pixels / sides_of_each,
        np.prod(pixels[:, 2:] - pixels[:, :2], axis=1),
        np.array([name for item in examples for name in item.annotation.names], object),
        np.repeat(np.arange(len(examples)), counts),
        _joined([item.annotation.difficult for item in examples], (0,), bool),
        _joined([item.annotation.truncated for item in examples], (0,), bool),
    )
    return Objects(*(column[keep] for column in columns))


def split_table(examined: examine.Examined) -> table.Table:
    """Returns a table of the contents of each split."""
    shown = _table("split", "what it holds")
    for heading in ("images", "empty", "objects", "difficult", "truncated", "crowds", "unusable"):
        shown.add_column(heading, justify="right")
    for name, examples in examined.splits.items():
        found = objects_of(examples)
        crowds = sum(int(item.annotation.crowd.sum()) for item in examples)
        numbers = (
            len(examples),
            sum(not item.annotation.names for item in examples),
            len(found.names),
            found.difficult.sum(),
            found.truncated.sum(),
            crowds,
            len(examined.skipped[name]),
        )
        shown.add_row(console.plain(name), *map(str, numbers))
    return shown


def class_table(found: Objects, class_names: Iterable[str], covered: np.ndarray) -> table.Table:
    """Objects by class and size, and the share of each cell that some prior covers.

    Args:
      found: All objects.
      class_names: In the order of the labels.
      covered: `[N]` bool.
    """
    shown = _table("class", "objects by size, and % with a prior of IoU >= 0.5")
    for heading in ("images", "objects", "difficult", *coverage.SIZES, "all"):
        shown.add_column(heading, justify="right")
    sizes = coverage.size_of(found.areas)
    of_class: dict[str, list[int]] = {name: [] for name in class_names}
    for number, name in enumerate(found.names):
        of_class[name].append(number)
    for name, mine in of_class.items():
        shown.add_row(console.plain(name), *_class_row(found, sizes, covered, np.array(mine, int)))
    shown.add_section()
    shown.add_row("all", *_class_row(found, sizes, covered, np.arange(len(sizes))))
    return shown


def wrong(examined: examine.Examined) -> list[str]:
    """Returns a line per fault, without duplicates, unusable images first."""
    reasons = (reason for split in examined.skipped.values() for reason in split.values())
    return list(dict.fromkeys([*reasons, *examined.remarks]))


def report(reader: readers.Reader, default_boxes: np.ndarray, out: console.Console) -> list[str]:
    """Reads a dataset, prints its tables and returns its faults."""
    examined = examine.examine(reader)
    out.print(split_table(examined))
    examples = {id(item): item for split in examined.splits.values() for item in split}
    found = objects_of(list(examples.values()))
    lines = wrong(examined)
    for split in sorted(examine.without_objects(examined.splits, reader.unannotated)):
        lines.append(f"{reader.name}: split {split!r}: no image has an object to train on")
    try:
        names: Mapping[str, int] = reader.categories(examine.class_names(examined.splits))
    except errors.UserError as error:
        return [*lines, str(error)]
    covered = coverage.best_iou(found.boxes, default_boxes) >= coverage.COVERED
    out.print(class_table(found, names, covered))
    return lines


def check(
    path: str,
    kind: str,
    default_boxes: np.ndarray,
    *,
    max_megapixels: float = images.MAX_MEGAPIXELS,
) -> bool:
    """Reads a whole dataset and prints its contents and faults.

    Args:
      path: Path of the dataset.
      kind: Its format, of `detect_format`.
      default_boxes: `[P, 4]` priors (cxcywh) of the network that is to learn from it.
      max_megapixels: An image of more cannot be used.

    Returns:
      Whether nothing is wrong.

    Raises:
      UserError: If there is no such path.
    """
    if not paths.exists(pathlib.Path(path).expanduser()):
        raise errors.UserError(f"{path}: no such folder or file")
    out = console.Console(highlight=False)
    if not out.is_terminal:
        out = console.Console(highlight=False, width=_WIDE)
    out.print(console.plain(f"{path}: {_DESCRIPTIONS[kind]}"), soft_wrap=True)
    try:
        reader = open_reader(path, kind)
        reader.max_megapixels = max_megapixels
        lines = report(reader, default_boxes, out)
    except errors.MachineError:
        raise
    except errors.UserError as error:  # in what describes the dataset as a whole
        lines = [str(error)]
    out.print(f"{len(lines) or 'nothing'} wrong{':' if lines else ''}")
    for line in lines:
        out.print(console.plain(" ".join(line.split())), soft_wrap=True)
    return not lines


def main(argv: Sequence[str]) -> int:
    """Checks the dataset given on the command line and returns the exit status."""
    return console.run(functools.partial(_check, _arguments(argv)))


def _check(arguments: argparse.Namespace) -> int:
    spec = _PRIORS[arguments.image_size, arguments.prior_sizes]
    kind = detect_format(arguments.path) if arguments.format == "auto" else arguments.format
    boxes, most = priors.default_boxes(spec), arguments.max_megapixels
    return 0 if check(arguments.path, kind, boxes, max_megapixels=most) else 1


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ssd_jax.data.check", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("path", metavar="PATH", help="folder, VOC archive, COCO JSON or data.yaml")
    parser.add_argument("--format", choices=("auto", "voc", *prepared.OWN), default="auto")
    parser.add_argument("--image_size", type=int, choices=(300, 512), default=300)
    parser.add_argument("--prior_sizes", choices=("voc", "coco"), default="voc")
    parser.add_argument("--max_megapixels", type=float, default=images.MAX_MEGAPIXELS)
    return parser.parse_args(argv)


def _table(first: str, title: str) -> table.Table:
    return table.Table(first, title=title, title_justify="left", box=box.SIMPLE_HEAD)


def _class_row(
    found: Objects, sizes: np.ndarray, covered: np.ndarray, mine: np.ndarray
) -> list[str]:
    """Cells of the objects with the indices `mine`."""
    counts = (len(np.unique(found.images[mine])), len(mine), found.difficult[mine].sum())
    parts = [mine[sizes[mine] == index] for index in range(len(coverage.SIZES))]
    return [*map(str, counts), *(_share(covered[part]) for part in [*parts, mine])]


def _share(covered: np.ndarray) -> str:
    """How many they are, and how many percent of them are covered."""
    return f"{len(covered)} {covered.mean():4.0%}" if len(covered) else "0    -"


def _joined(arrays: Sequence[np.ndarray], empty: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *arrays])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
