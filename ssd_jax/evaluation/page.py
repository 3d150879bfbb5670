"""Renders a page by its template; the page holds its images itself and needs no network."""

import base64
import functools
import io
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from ssd_jax import console, errors, files
from ssd_jax.data import images

IMAGE_SIDE = 400  # pixels of an embedded image's longer side, at most

_JPEG_QUALITY = 75


class Embedded(NamedTuple):
    """A JPEG in base64, and its width and height in pixels."""

    base64: str
    width: int
    height: int


def write(path: str | os.PathLike[str], template: str, values: Mapping[str, Any]) -> None:
    r"""Renders a template into a file; an existing file is replaced.

    Args:
      path: Path of the page.
      template: The name of a file in `templates`.
      values: Values of the template. All text is escaped, and control characters and bytes of file
        names that are no UTF-8 are shown as escapes such as `\x1b`.

    Raises:
      UserError: If the file can't be written.
    """
    text = _environment().get_template(template).render(values)
    try:
        files.write(path, text)
    except OSError as error:
        raise errors.UserError(
            f"{path} cannot be written ({error.strerror}); give another place"
        ) from None


def embed(image: np.ndarray) -> Embedded:
    """An image `[H, W, 3]` uint8 as JPEG, its longer side at most `IMAGE_SIDE` pixels."""
    small = images.shrink(np.asarray(image, np.uint8), height=IMAGE_SIDE, width=IMAGE_SIDE)
    buffer = io.BytesIO()
    Image.fromarray(small).convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY)
    height, width = small.shape[:2]
    return Embedded(base64.b64encode(buffer.getvalue()).decode(), width, height)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssd_jax.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "points": points, "width": width}
    return environment


def _printable(value: Any) -> Any:
    """Plain text without control characters; numbers and finished markup as they are."""
    return console.printable(value) if type(value) is str else value


def share(value: float) -> str:
    """Formats a fraction in percent; NaN and COCO's -1 mean that there is no object."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if value >= 0 else "no objects"


def points(value: float, sign: bool = False) -> str:
    """A difference of shares in percentage points, perhaps with its sign; NaN: a dash."""
    if math.isnan(value):
        return "\N{EN DASH}"
    return f"{100 * value:{'+' if sign else ''}.1f}".replace("-", "\N{MINUS SIGN}")


def width(value: float, largest: float) -> float:
    """Length of a bar in percent of the longest; 0 for empty bars."""
    if math.isnan(value) or largest <= 0:
        return 0.0
    return round(100 * min(abs(float(value)) / largest, 1), 1)
