"""Annotations of one image (boxes, names and flags), and their PASCAL VOC XML format.

Boxes lie in the image's continuous plane, whose corners are (0, 0) and (width, height). This is
the one place that knows VOC's pixels: 1-based, with the last pixel inside the box. A box of VOC
pixels (xmin, ymin, xmax, ymax) covers (xmin - 1, ymin - 1, xmax, ymax) of the plane.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from ssd_jax import errors
from ssd_jax.data import parsing

_TO_EDGES = np.array([-1, -1, 0, 0], np.float64)  # VOC pixels -> continuous edges
_LEAST_SIDE = 0.01  # pixels; a thinner sliver would vanish in normalized float32
_ROUNDING = 0.5  # pixels; a box that reaches less than this outside is clipped without a word
_DROPPED = "; dropped from training"
_LONGEST_NAME = 500  # characters of a class


class Annotation(NamedTuple):
    """The annotation of one image with N objects.

    Attributes:
      height: Height of the image in pixels.
      width: Width of the image in pixels.
      boxes: `[N, 4]` float32 xyxy, continuous edges in pixels, within the image; of some area
        unless degenerate.
      names: Class of each object.
      difficult: `[N]` bool.
      truncated: `[N]` bool.
      crowd: `[N]` bool, COCO's `iscrowd`: the box covers a group of objects.
      degenerate: `[N]` bool: the file's box has no area, or none within the image. Training leaves
        such objects out, evaluation counts them, as COCO's and VOC's own programs do.
      bboxes: `[N, 4]` float64 (x, y, width, height) as the file has them, in continuous pixels,
        neither clipped nor rounded: what COCO's evaluation wants.
      areas: `[N]` float64 pixels: COCO's `area`, that of the outline; elsewhere that of the box.
      notes: A line for each object that was clipped or reordered, or is degenerate.
    """

    height: int
    width: int
    boxes: np.ndarray
    names: tuple[str, ...]
    difficult: np.ndarray
    truncated: np.ndarray
    crowd: np.ndarray
    degenerate: np.ndarray
    bboxes: np.ndarray
    areas: np.ndarray
    notes: tuple[str, ...]


class Object(NamedTuple):
    """One object: its class, its box `[4]` xyxy, its flags, and COCO's fields."""

    name: str
    box: np.ndarray
    difficult: bool = False
    truncated: bool = False
    crowd: bool = False
    degenerate: bool = False
    bbox: Sequence[float] | None = None  # (x, y, width, height); None: that of the box
    area: float | None = None  # None: that of the box


def class_name(text: str, where: str) -> str:
    """Normalizes a class name: one line, single spaces; "" if it is blank.

    Prepared data keep a name on each line, without the blanks around it: another form would come
    back as another name, or as two, and move the labels of those behind it.

    Args:
      text: The name as the file has it.
      where: Its place, for error messages.

    Raises:
      UserError: If it contains a lone surrogate, which no file can contain, or is too long.
    """
    name = " ".join(text.split())
    if len(name) > _LONGEST_NAME:
        raise errors.UserError(
            f"{where}: the name {parsing.shown(name)} has {len(name)} characters; rename the class"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise errors.UserError(f"{where}: the name {name!r} is not Unicode text; rename the class")
    return name


def collect(
    objects: Iterable[Object], *, height: int, width: int, notes: Sequence[str]
) -> Annotation:
    """Collects objects with boxes within the image into an annotation."""
    kept = list(objects)
    bboxes = np.array([_bbox(item) for item in kept], np.float64).reshape(-1, 4)
    told = [math.nan if item.area is None else item.area for item in kept]
    areas = np.where(np.isnan(told), np.prod(bboxes[:, 2:], axis=1), told)
    return Annotation(
        height=height,
        width=width,
        boxes=np.array([item.box for item in kept], np.float32).reshape(-1, 4),
        names=tuple(item.name for item in kept),
        difficult=np.array([item.difficult for item in kept], bool),
        truncated=np.array([item.truncated for item in kept], bool),
        crowd=np.array([item.crowd for item in kept], bool),
        degenerate=np.array([item.degenerate for item in kept], bool),
        bboxes=bboxes,
        areas=areas,
        notes=tuple(notes),
    )


def clip(
    edges: np.ndarray, *, height: int, width: int, written: str
) -> tuple[np.ndarray, bool, list[str]]:
    """Brings one box into the image.

    Args:
      edges: `[4]` xyxy, continuous edges in pixels.
      height: Height of the image in pixels.
      width: Width of the image in pixels.
      written: The box as its file has it, for the remarks.

    Returns:
      `[4]` float64 edges within the image, whether the box is degenerate, and the problem in
      words. Less than half a pixel outside is rounding and not worth a remark.
    """
    clipped = np.clip(edges, 0, [width, height, width, height])
    if np.any(edges[2:] - edges[:2] < _LEAST_SIDE):
        return clipped, True, [f"box ({written}) has no area{_DROPPED}"]
    if np.any(clipped[2:] - clipped[:2] < _LEAST_SIDE):
        outside = f"box ({written}) lies outside the {width} x {height} image{_DROPPED}"
        return clipped, True, [outside]
    if np.any(np.abs(clipped - edges) >= _ROUNDING):
        outside = f"box ({written}) reaches outside the {width} x {height} image; clipped"
        return clipped, False, [outside]
    return clipped, False, []


def parse(xml: bytes, *, name: str, image_size: tuple[int, int] | None) -> Annotation:
    """Reads one annotation file.

    Faults that can be repaired are repaired and noted: corners in the wrong order are exchanged, a
    box partly outside the image is clipped, one wholly outside or of no area (xmin = xmax or ymin =
    ymax) is degenerate. A file without a size (or with one of 0) takes the image's; without
    `difficult` or `truncated` they are 0. Coordinates may be fractional. Parts of objects are not
    objects.

    Args:
      xml: The whole file.
      name: Name of the file for errors and notes.
      image_size: (height, width) of the image, upright; None where it is not known.

    Returns:
      The annotation, its boxes in continuous pixel edges.

    Raises:
      UserError: If the XML is malformed or declares entities; its size is not the image's; an
        object lacks its name or box; a coordinate or flag is no number.
    """
    root = _parse_xml(xml, name)
    if root.tag != "annotation":
        raise errors.UserError(
            f"{name}: its root is <{parsing.cut(root.tag)}>, not VOC's <annotation>"
        )
    height, width = _size(root, name, image_size)
    kept: list[Object] = []
    notes: list[str] = []
    for number, element in enumerate(root.findall("object"), start=1):
        item, remarks = _mend(_object(element, f"{name}: object {number}"), height, width)
        notes += [f"{name}: object {number} ({item.name}): {remark}" for remark in remarks]
        kept.append(item)
    return collect(kept, height=height, width=width, notes=notes)


def to_voc_pixels(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Converts boxes to VOC's pixels for evaluation by the devkit's rules: the inverse of `parse`.

    Args:
      boxes: `[N, 4]` xyxy, normalized to [0, 1].
      height: Height of the image in pixels.
      width: Width of the image in pixels.

    Returns:
      `[N, 4]` float32 (xmin, ymin, xmax, ymax), 1-based and inclusive.
    """
    scale = np.array([width, height, width, height], np.float64)
    return (np.asarray(boxes, np.float64).reshape(-1, 4) * scale - _TO_EDGES).astype(np.float32)


def to_bboxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes as COCO has them, `[N, 4]` float64 (x, y, width, height); Args of `to_voc_pixels`."""
    edges = np.asarray(boxes, np.float64).reshape(-1, 4) * [width, height, width, height]
    return np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)


def bboxes_to_voc_pixels(bboxes: np.ndarray) -> np.ndarray:
    """Boxes of COCO, `[N, 4]` (x, y, width, height), in VOC's pixels, float64."""
    bboxes = np.asarray(bboxes, np.float64).reshape(-1, 4)
    return np.concatenate([bboxes[:, :2], bboxes[:, :2] + bboxes[:, 2:]], axis=1) - _TO_EDGES


def voc_pixels_to_bboxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes in VOC's pixels, `[N, 4]`, as COCO's, float64 (x, y, width, height)."""
    edges = from_voc_pixels(boxes)
    return np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)


def _bbox(item: Object) -> Sequence[float]:
    if item.bbox is not None:
        return item.bbox
    left, top, right, bottom = np.asarray(item.box, np.float64).tolist()
    return left, top, right - left, bottom - top


def from_voc_pixels(boxes: np.ndarray) -> np.ndarray:
    """`[N, 4]` VOC's pixels as continuous edges in pixels, float64."""
    return np.asarray(boxes, np.float64).reshape(-1, 4) + _TO_EDGES


def _parse_xml(xml: bytes, name: str) -> ElementTree.Element:
    """Parses XML; rejects document types, which could declare exponential entities."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> None:
        raise errors.UserError(
            f"{name}: declares a document type (DOCTYPE); remove the declaration"
        )

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xml, True)
    except errors.UserError:
        raise
    except (ValueError, LookupError, expat.ExpatError) as error:
        raise errors.UserError(f"{name}: not well-formed XML ({error})") from error
    return builder.close()


def _size(
    root: ElementTree.Element, name: str, image_size: tuple[int, int] | None
) -> tuple[int, int]:
    """Returns (height, width), on which file and image have to agree."""
    width, height = (
        int(_number(root, f"size/{side}", name, default=0.0)) for side in ("width", "height")
    )
    if width <= 0 or height <= 0:
        if image_size is None:
            raise errors.UserError(f"{name}: has no <size>, and the image's size is not known")
        return image_size
    if image_size is not None and image_size != (height, width):
        raise errors.UserError(
            f"{name}: says {width} x {height}, but the image is {image_size[1]} x "
            f"{image_size[0]} (width x height, upright); correct <size> and the boxes"
        )
    return height, width


def _object(element: ElementTree.Element, where: str) -> Object:
    name = class_name(element.findtext("name") or "", where)
    if not name:
        raise errors.UserError(f"{where} has no <name>")
    if element.find("bndbox") is None:
        raise errors.UserError(f"{where} ({name}) has no <bndbox>")
    corners = ("xmin", "ymin", "xmax", "ymax")
    where = f"{where} ({name})"
    return Object(
        name=name,
        box=np.array([_number(element, f"bndbox/{corner}", where) for corner in corners]),
        difficult=_number(element, "difficult", where, default=0.0) != 0,
        truncated=_number(element, "truncated", where, default=0.0) != 0,
    )


def _number(
    element: ElementTree.Element, path: str, where: str, *, default: float | None = None
) -> float:
    """Reads the finite number at `path`, or `default` if it is missing and not None."""
    text = (element.findtext(path) or "").strip()
    if not text and default is not None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        tag = path.rpartition("/")[2]
        raise errors.UserError(f"{where}: <{tag}> is {parsing.shown(text)}, not a number")
    return value


def _mend(item: Object, height: int, width: int) -> tuple[Object, list[str]]:
    """An object with its box, in VOC's pixels as in the file, as edges within the image."""
    voc_box = item.box
    low, high = np.minimum(voc_box[:2], voc_box[2:]), np.maximum(voc_box[:2], voc_box[2:])
    written = ", ".join(f"{value:g}" for value in voc_box)
    edges = np.concatenate([low, high]) + _TO_EDGES
    box, degenerate, remarks = clip(edges, height=height, width=width, written=written)
    if np.any(high - low < _LEAST_SIDE):
        degenerate, remarks = True, [f"box ({written}) has no area{_DROPPED}"]
    elif np.any(voc_box[:2] > voc_box[2:]) and not degenerate:
        remarks.insert(0, f"box ({written}) has its corners swapped; reordered")
    bbox = _bbox(Object(item.name, edges)) if degenerate else None
    return item._replace(box=box, degenerate=degenerate, bbox=bbox), remarks
