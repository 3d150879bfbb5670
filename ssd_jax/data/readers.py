"""A format of datasets: a `Reader` lists one and reads an image with its annotation at a time."""

import abc
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ssd_jax import errors
from ssd_jax.data import annotations, images

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
NO_IMAGE_ID = -1

_SPLIT_NAME = re.compile(r"[A-Za-z]\w*")


class Example(NamedTuple):
    """One image with its annotation, found good.

    Attributes:
      name: File name of the image, unique in its split.
      read: Gives the file's bytes.
      bytes: How many they are.
      annotation: Its annotation.
      image_id: COCO's id of the image; NO_IMAGE_ID in other formats.
      notes: A line for each fault of the file that costs no pixel.
    """

    name: str
    read: Callable[[], bytes]
    bytes: int
    annotation: annotations.Annotation
    image_id: int = NO_IMAGE_ID
    notes: tuple[str, ...] = ()


class Reader(abc.ABC):
    """A dataset with its files listed and no image opened yet.

    Attributes:
      name: Name of the dataset for messages: its path.
      keys: A word for each image, unique, in order.
      splits: The keys of each split; empty where the dataset has none.
      remarks: A line for each thing that is wrong with the dataset as a whole, with a file's name.
      unannotated: The splits of which nothing but the images was published.
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
        """Reads one image and its annotation; safe to call from several threads.

        Raises:
          UserError: Either cannot be used; it names the file.
        """

    @abc.abstractmethod
    def categories(self, names: Iterable[str]) -> dict[str, int]:
        """Classes in the order of their labels, with their ids in the dataset.

        Args:
          names: The classes of all objects.
        """


def check_split_name(name: str, file: str) -> str:
    """Checks that tfds can store a split name, and returns it.

    Raises:
      UserError: If it cannot be; the message names `file`, which has to be renamed.
    """
    if not _SPLIT_NAME.fullmatch(name):
        raise errors.UserError(
            f"{file}: rename it, split {name!r} may have letters, digits and underscores only"
        )
    return name


def decode_size(
    data: bytes, *, name: str, max_megapixels: float
) -> tuple[int, int, tuple[str, ...]]:
    """Decodes an image completely and returns its upright height and width, and notes.

    Args:
      data: The file.
      name: Name of the file for errors and notes.
      max_megapixels: See `images.decode`.

    Raises:
      UserError: If it cannot be decoded.
    """
    notes: list[str] = []
    pixels = images.decode(data, name=name, max_megapixels=max_megapixels, on_remark=notes.append)
    return *pixels.shape[:2], tuple(f"{name}: {note}" for note in notes)
