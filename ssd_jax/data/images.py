"""Bytes of an image file -> RGB pixels, whatever the file holds.

Ordinary 8-bit JPEGs are decoded by simplejpeg, which is fast, releases the GIL and rejects corrupt
data that other decoders accept silently; everything else goes through Pillow, CMYK JPEGs after
simplejpeg has found them whole. Exif's orientation is applied.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, JpegImagePlugin

from ssd_jax import errors
from ssd_jax.data import jpeg, pillow

MAX_MEGAPIXELS = 179.0  # twice the size at which Pillow warns of a decompression bomb
_BYTES_PER_PIXEL = 8  # of the largest file that is read: four channels of 16 bits
_START_OF_SCAN = b"\xff\xda"  # of a JPEG: the segments before it describe its pixels
_SWAPPED_SIDES = (5, 6, 7, 8)  # Exif orientations that exchange height and width
_OUT_OF_MEMORY = re.compile(r"insufficient memory|out of memory|memory allocation", re.IGNORECASE)


def decode(
    data: bytes,
    *,
    name: str,
    fit: tuple[int, int] | None = None,
    into: np.ndarray | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    on_remark: Callable[[str], object] = lambda remark: None,
) -> np.ndarray:
    """Decodes an image file of any common kind.

    Gray, palette and CMYK images become RGB, 16 bits a channel are scaled to 8, transparent
    pixels are laid on white, and of an animation the first frame is taken. A JPEG with a fault that
    affects no pixel (libjpeg only warns) is read; see `jpeg.mended`.

    Args:
      data: Content of a file in one of `pillow.FORMATS`.
      name: Name of the image for error messages.
      fit: Largest (height, width) to return. A larger image is scaled down, keeping its aspect
        ratio; JPEGs then decode fewer pixels. None: every pixel.
      into: `[rows, W, 3]` uint8, contiguous. An upright JPEG of that very width and no more rows
        is decoded there, and the result is a view of it: a copy is saved. Others ignore it.
      max_megapixels: A larger image is refused before it is decoded: `config.data.max_megapixels`.
      on_remark: Called with a line on a fault that costs no pixel.

    Returns:
      `[H, W, 3]` uint8 RGB, oriented as in Exif.

    Raises:
      UserError: If the data is empty, truncated, corrupt, no image or too large.
      MachineError: If there is too little memory; the data may be good.
    """
    with _blaming(data, name):
        if stored := _plain_jpeg_size(data):
            pillow.check_size(*stored, name, max_megapixels)
            jpeg.check_scans(data, pixels=stored[0] * stored[1])
            image = _decode_jpeg(data, stored, fit, into, on_remark)
        else:
            image = _decode_other(data, name, max_megapixels, on_remark)
        return image if fit is None else shrink(image, height=fit[0], width=fit[1])


def rgb(image: Image.Image) -> np.ndarray:
    """Converts a PIL image as `decode` does a file: `[H, W, 3]` uint8, upright.

    Raises:
      ValueError: If the pixels are floating-point numbers.
    """
    pixels = pillow.rgb(image)  # first: of a TIFF this turns it upright
    return _upright(pixels, pillow.orientation(image))


def size(data: bytes, *, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[int, int]:
    """Height and width that `decode` would return, in pixels, from the file's header alone.

    Raises:
      UserError: If the header is not that of an image, or the image has more than `max_megapixels`.
      MachineError: If there is too little memory.
    """
    with _blaming(data, name):
        if stored := _plain_jpeg_size(data):
            height, width = stored
            orientation = _jpeg_orientation(data)
            pillow.check_size(height, width, name, max_megapixels)
        else:
            with pillow.opened(data, name, max_megapixels) as opened:
                (height, width), orientation = (
                    pillow.stored_size(opened),
                    pillow.orientation(opened),
                )
        return (width, height) if orientation in _SWAPPED_SIDES else (height, width)


def most_bytes(max_megapixels: float = MAX_MEGAPIXELS) -> int:
    """Returns the maximum file size in bytes for images up to some megapixels."""
    return (1 << 26) + int(min(max_megapixels, 1e6) * 1e6) * _BYTES_PER_PIXEL


def shrink(image: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Scales an image down, never up, to fit within `height` x `width`, keeping its aspect ratio.

    Args:
      image: `[H, W, 3]` uint8.
      height: Most rows of the result, in pixels.
      width: Most columns of the result, in pixels.

    Returns:
      `[h, w, 3]` uint8, each pixel the mean of those it covers; `image` itself where it fits.
    """
    rows, columns = _fitted_size(image.shape[0], image.shape[1], (height, width))
    if (rows, columns) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(resized)


def put(image: np.ndarray, canvas: np.ndarray) -> None:
    """Writes an image into the upper left corner of a canvas and fills the rest with black.

    Args:
      image: `[H, W, 3]` uint8, possibly a view of the canvas that it was decoded into.
      canvas: `[height, width, 3]` uint8 with room for it.
    """
    height, width = image.shape[:2]
    if not np.may_share_memory(image, canvas):  # else it was decoded there
        canvas[:height, :width] = image
    canvas[:height, width:] = 0
    canvas[height:] = 0


def place(image: np.ndarray, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts an image into the upper left corner of a square canvas, shrunk to fit.

    Args:
      image: `[H, W, 3]` uint8.
      canvas: The canvas's side in pixels.

    Returns:
      `[canvas, canvas, 3]` uint8, and `[2]` float32 (height, width) of the image on it.
    """
    image = shrink(image, height=canvas, width=canvas)
    filled = np.empty((canvas, canvas, 3), np.uint8)
    put(image, filled)
    return filled, np.array(image.shape[:2], np.float32)


def _fitted_size(height: int, width: int, fit: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, fit[0] / height, fit[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


@contextlib.contextmanager
def _blaming(data: bytes, name: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a UserError that names the image."""
    if not data:
        raise errors.UserError(f"{name}: the file is empty; replace or remove it")
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds, Warnings and SyntaxError too
        if errors.is_of_machine(error):
            raise errors.of_machine(error, name) from error
        if _OUT_OF_MEMORY.search(str(error)):
            raise errors.of_machine(MemoryError(), name) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise errors.UserError(
            f"{name}: not a readable image ({reason}); replace or remove it"
        ) from error


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Stored (height, width) of a JPEG for simplejpeg; None if Pillow has to read it."""
    if not data.startswith(jpeg.MAGIC):
        return None
    height, width, colors, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    return (height, width) if colors in jpeg.PLAIN_COLORS else None


def _decode_jpeg(
    data: bytes,
    stored: tuple[int, int],
    fit: tuple[int, int] | None,
    into: np.ndarray | None,
    on_remark: Callable[[str], object],
) -> np.ndarray:
    height, width = stored
    orientation = _jpeg_orientation(data)
    if into is not None and orientation == 1 and width == into.shape[1] and height <= len(into):
        _strictly(data, on_remark, colorspace="RGB", buffer=into[:height])
        return into[:height]
    at_least = (0, 0)
    if fit is not None:
        rows, columns = _fitted_size(
            height, width, fit[::-1] if orientation in _SWAPPED_SIDES else fit
        )
        if 2 * rows <= height:  # libjpeg's scales between a half and one are slower than one
            at_least = (rows, columns)
    image = _strictly(
        data, on_remark, colorspace="RGB", min_height=at_least[0], min_width=at_least[1]
    )
    return _upright(image, orientation)


def _strictly(data: bytes, on_remark: Callable[[str], object], **options: Any) -> np.ndarray:
    """Decodes a JPEG; every pixel has to be intact.

    Args:
      data: The file.
      on_remark: Called with a line on a fault that costs none of them.
      **options: Options of simplejpeg.
    """
    try:
        return simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        warning = str(error)
        if not jpeg.is_harmless(warning):
            raise
    pixels = simplejpeg.decode_jpeg(jpeg.mended(data), **options)
    on_remark(f"the JPEG has a fault that costs no pixel ({warning})")
    return pixels


def _decode_other(
    data: bytes, name: str, max_megapixels: float, on_remark: Callable[[str], object]
) -> np.ndarray:
    """The upright pixels of a file that is no plain JPEG, by Pillow."""
    with pillow.opened(data, name, max_megapixels) as opened:
        if data.startswith(jpeg.MAGIC):  # of which Pillow takes half-destroyed ones
            jpeg.check_scans(data, pixels=opened.height * opened.width)
            _strictly(data, on_remark, colorspace="CMYK")
        pillow.check_tiles(opened)
        with pillow.asking_for_memory(opened.height, opened.width):
            pixels = pillow.rgb(opened)
        orientation = pillow.orientation(opened)
    return _upright(pixels, orientation)


def _jpeg_orientation(data: bytes) -> int:
    """Exif's orientation of a JPEG; one without Exif, the usual case, is not opened for it."""
    if not _may_have_exif(data):
        return 1
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as opened:
            return pillow.orientation(opened)
    except (SyntaxError, OSError, ValueError):  # bytes between the segments, which libjpeg passes
        return pillow.orientation_of(lambda: _exif_of(jpeg.exif(data)))


def _exif_of(segment: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(segment)
    return exif


def _may_have_exif(data: bytes) -> bool:
    """Walks a JPEG's segments up to its pixels."""
    place = 2
    while data.startswith(b"\xff", place):
        if data.startswith(_START_OF_SCAN, place):
            return False
        if data.startswith(b"Exif\0\0", place + 4):
            return True
        padding = data.startswith(b"\xff\xff", place)
        place += 1 if padding else 2 + int.from_bytes(data[place + 2 : place + 4])
    return True  # malformed: left to Pillow


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors stored pixels by Exif's `orientation`."""
    match orientation:
        case 2:
            image = image[:, ::-1]
        case 3:
            image = image[::-1, ::-1]
        case 4:
            image = image[::-1]
        case 5:
            image = image.swapaxes(0, 1)
        case 6:
            image = np.rot90(image, -1)
        case 7:
            image = image[::-1, ::-1].swapaxes(0, 1)
        case 8:
            image = np.rot90(image)
    return np.ascontiguousarray(image)
