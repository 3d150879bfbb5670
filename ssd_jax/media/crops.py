"""Crops: an image file of each detected object, in a folder of its class."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ssd_jax import files
from ssd_jax.detection import Detections
from ssd_jax.media import files as media_files
from ssd_jax.media import outputs

_LONGEST_FOLDER = 100  # bytes of a class's folder
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\.|$)", re.IGNORECASE)  # by Windows


class Crops:
    """Writes the detected objects of images and frames as image files of their own."""

    def __init__(
        self,
        folder: Path,
        class_names: Sequence[str],
        *,
        not_written: Callable[[Path, OSError], str],
    ):
        """Prepares for crops without writing.

        Args:
          folder: For the folders of the classes.
          class_names: Label k is `class_names[k - 1]`.
          not_written: Called for a crop that fails; returns the message about it.
        """
        self._folder, self._folders = folder, folder_names(class_names)
        self._not_written = not_written
        self._made: set[Path] = set()

    def save(self, image: np.ndarray, found: Detections, name: str) -> str | None:
        """Writes an image of each object; returns a line about the first failure.

        Args:
          image: `[H, W, 3]` uint8, with the objects.
          found: The objects in it, boxes in pixels.
          name: A name that no other image or frame has.
        """
        last = np.array(image.shape[1::-1]) - 1  # a crop has a pixel at least
        problems = []
        for number, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True), start=1):
            left, top = np.minimum(np.floor(box[:2]).astype(int), last)
            right, bottom = np.maximum(np.ceil(box[2:]).astype(int), (left + 1, top + 1))
            place = self._folder / self._folders[label - 1] / f"{name}-{number}.jpg"
            try:
                self._make(place.parent)
                outputs.save_image(Image.fromarray(image[top:bottom, left:right]), place)
            except OSError as error:
                problems.append(self._not_written(place, error))
        more = f" (and {len(problems) - 1} more crops)" if problems[1:] else ""
        return f"{problems[0]}{more}" if problems else None

    def _make(self, folder: Path) -> None:
        """Creates a folder of crops; a link is replaced."""
        for part in (folder.parent, folder):
            if part not in self._made:
                files.make_folder(part)
                self._made.add(part)


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Returns a unique folder name, valid on every system, for each class."""
    taken: set[str] = set()
    names = []
    for class_name in class_names:
        base = re.sub(r"^\.+|[^\w.-]+|\.+$", "_", class_name) or "_"
        base = media_files.shortened(f"_{base}" if _RESERVED.match(base) else base, _LONGEST_FOLDER)
        others = (f"{base}-{number}" for number in itertools.count(2))
        name = next(
            n for n in itertools.chain([base], others) if media_files.folded(n) not in taken
        )
        taken.add(media_files.folded(name))
        names.append(name)
    return names
