"""Bytes of a picture file -> RGB pixels, whatever the file holds.

Ordinary 8-bit JPEGs are decoded by simplejpeg, which is quick, releases the GIL and refuses
corrupt data that others decode silently; everything else goes through Pillow, CMYK JPEGs after
simplejpeg has found them whole. Exif's orientation is applied.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from ssd_jax import errors

_MAX_PIXELS = 89_478_485  # where Pillow begins to suspect a decompression bomb
_JPEG_MAGIC = b"\xff\xd8\xff"
_PLAIN_COLORS = ("YCbCr", "RGB", "Gray")  # what simplejpeg turns into RGB; CMYK and YCCK it cannot
_START_OF_SCAN = b"\xff\xda"  # of a JPEG: the segments before it say what its pixels are
_SWAPPED_SIDES = (5, 6, 7, 8)  # Exif orientations that exchange height and width


def decode(
    data: bytes,
    *,
    name: str,
    fit: tuple[int, int] | None = None,
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes a picture file of any common kind.

    Grey, palette and CMYK pictures become RGB, 16 bits a channel are scaled to 8, transparent
    pixels are laid on white, and of an animation the first frame is taken.

    Args:
      data: The whole file: JPEG, PNG, WebP, BMP, GIF or another kind that Pillow reads.
      name: What an error calls the picture.
      fit: Largest (height, width) to return. A larger picture is scaled down, keeping its aspect
        ratio; JPEGs then decode fewer pixels. None: every pixel.
      into: `[rows, W, 3]` uint8, contiguous. An upright JPEG of that very width and no more rows
        is decoded there, and the result is a view of it: a copy is saved. Others ignore it.

    Returns:
      `[H, W, 3]` uint8 RGB, the way up that Exif says.

    Raises:
      UserError: The data is empty, truncated, corrupt, no picture or absurdly large.
    """
    with _blaming(data, name):
        if stored := _plain_jpeg_size(data):
            image = _decode_jpeg(data, stored, fit, into)
        else:
            with Image.open(io.BytesIO(data)) as opened:
                _refuse_bomb(*opened.size)
                if data.startswith(_JPEG_MAGIC):  # of which Pillow takes half-destroyed ones
                    simplejpeg.decode_jpeg(data, colorspace="CMYK")
                image = rgb(opened)
        return image if fit is None else shrink(image, height=fit[0], width=fit[1])


def rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a PIL picture as `decode` gives those of a file: `[H, W, 3]` uint8, upright.

    Raises:
      ValueError: The pixels are floating-point numbers.
    """
    return _upright(_rgb(image), _orientation(image))


def size(data: bytes, *, name: str) -> tuple[int, int]:
    """Height and width that `decode` would return, in pixels, from the file's header alone.

    Raises:
      UserError: The header is that of no picture, or of an absurdly large one.
    """
    with _blaming(data, name):
        if stored := _plain_jpeg_size(data):
            height, width = stored
            orientation = _jpeg_orientation(data)
        else:
            with Image.open(io.BytesIO(data)) as opened:
                width, height = opened.size
                orientation = _orientation(opened)
        _refuse_bomb(width, height)
        return (width, height) if orientation in _SWAPPED_SIDES else (height, width)


def shrink(image: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Scales a picture down, never up, to fit within `height` x `width`, keeping its aspect ratio.

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


def put(picture: np.ndarray, canvas: np.ndarray) -> None:
    """Writes a picture into the upper left corner of a canvas and black around it.

    Args:
      picture: `[H, W, 3]` uint8, perhaps a view of the canvas, where it then lies already.
      canvas: `[height, width, 3]` uint8 with room for it.
    """
    height, width = picture.shape[:2]
    if not np.may_share_memory(picture, canvas):  # else it was decoded there
        canvas[:height, :width] = picture
    canvas[:height, width:] = 0
    canvas[height:] = 0


def place(picture: np.ndarray, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts a picture into the upper left corner of a square canvas, shrunk if it must be.

    Args:
      picture: `[H, W, 3]` uint8.
      canvas: The canvas's side in pixels.

    Returns:
      `[canvas, canvas, 3]` uint8, and `[2]` float32 (height, width) of the picture on it.
    """
    picture = shrink(picture, height=canvas, width=canvas)
    image = np.empty((canvas, canvas, 3), np.uint8)
    put(picture, image)
    return image, np.array(picture.shape[:2], np.float32)


def _fitted_size(height: int, width: int, fit: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, fit[0] / height, fit[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


@contextlib.contextmanager
def _blaming(data: bytes, name: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a UserError that names the picture."""
    if not data:
        raise errors.UserError(f"{name}: the file is empty; replace or remove it")
    try:
        yield
    except Exception as error:  # Pillow's plugins raise a dozen kinds, Warnings and SyntaxError too
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "of no known format"
        raise errors.UserError(
            f"{name}: not a readable picture ({reason}); replace or remove it"
        ) from error


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; at most {_MAX_PIXELS} are read")


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) as stored of a JPEG that simplejpeg takes; None: Pillow is to read it."""
    if not data.startswith(_JPEG_MAGIC):
        return None
    height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    return (height, width) if colors in _PLAIN_COLORS else None


def _decode_jpeg(
    data: bytes,
    stored: tuple[int, int],
    fit: tuple[int, int] | None,
    into: np.ndarray | None,
) -> np.ndarray:
    height, width = stored
    _refuse_bomb(width, height)
    orientation = _jpeg_orientation(data)
    if into is not None and orientation == 1 and width == into.shape[1] and height <= len(into):
        simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=into[:height])
        return into[:height]
    at_least = (0, 0)
    if fit is not None:
        rows, columns = _fitted_size(
            height, width, fit[::-1] if orientation in _SWAPPED_SIDES else fit
        )
        if 2 * rows <= height:  # libjpeg's scales between a half and one are slower than one
            at_least = (rows, columns)
    image = simplejpeg.decode_jpeg(
        data, colorspace="RGB", min_height=at_least[0], min_width=at_least[1]
    )
    return _upright(image, orientation)


def _jpeg_orientation(data: bytes) -> int:
    """Exif's orientation of a JPEG; one without Exif, the usual case, is not opened for it."""
    if not _may_have_exif(data):
        return 1
    with Image.open(io.BytesIO(data)) as opened:
        return _orientation(opened)


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
    return True  # oddly built: Pillow is to say


def _orientation(image: Image.Image) -> int:
    """Exif's orientation, 1 to 8; 1 (upright) where there is none or Exif is unreadable."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken Exif says nothing about the pixels
        return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels the way up that Exif's `orientation` says."""
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


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels of an opened picture as `[H, W, 3]` uint8, not yet turned upright."""
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64) * (255 / 65535)
        grey = np.clip(np.round(grey), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))
