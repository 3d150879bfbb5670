"""JPEG files by segments: faults that affect no pixel are repaired, others are detected.

libjpeg decodes a file with a fault and warns, of the first one only, so a harmless fault would hide
a harmful one behind it. Here the harmless ones are repaired in the file's bytes, until libjpeg
decodes these without a word: what it still warns of has cost pixels.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import simplejpeg

MAGIC = b"\xff\xd8"
PLAIN_COLORS = ("YCbCr", "RGB", "Gray")  # what simplejpeg turns into RGB; CMYK and YCCK it cannot
USUAL_SCANS = 20
"""Number of scans that is always accepted; encoders write a dozen at most."""

_HARMLESS = (
    "Corrupt JPEG data: bad ICC marker",
    "Invalid SOS parameters for sequential JPEG",
    "Unknown Adobe color transform code",
    "Warning: unknown JFIF revision number",
)
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x(\w\w)")
_APP0, _APP14, _COM, _DRI, _RST0, _EOI, _SOS = 0xE0, 0xEE, 0xFE, 0xDD, 0xD0, 0xD9, 0xDA
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # SOFs that libjpeg decodes to 8 bits a channel
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment: TEM, the restarts and SOI
_MARKER = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])", re.DOTALL)
_MOST_SCANS_MENDED = 20  # each is decoded with all before it
_MOST_TRIMS = 4
_PIXELS_IN_SCANS = 1_000_000_000  # of all scans together, beyond the usual ones: some seconds
_LONGEST_SIDE = 65_500  # pixels that libjpeg takes


class Segment(NamedTuple):
    """One segment of a file.

    Attributes:
      marker: Its kind, the byte after 0xff.
      body: Content after its length; empty for the end marker.
      scan: Entropy-coded bytes after a start of scan; empty for others.
    """

    marker: int
    body: bytes = b""
    scan: bytes = b""

    def __bytes__(self) -> bytes:
        marker = bytes([0xFF, self.marker])
        if self.marker == _EOI:
            return marker
        return marker + (len(self.body) + 2).to_bytes(2) + self.body + self.scan


def is_harmless(warning: str) -> bool:
    """Whether a warning of libjpeg is only about faults that `mended` repairs."""
    return warning.startswith(_HARMLESS) or _EXTRANEOUS.match(warning) is not None


def segments(data: bytes) -> Iterator[Segment]:
    """Yields the segments of the first image; it is truncated if the last is not an end marker.

    Like libjpeg, it skips anything else between them.

    Args:
      data: The file, which starts with `MAGIC`.
    """
    place = len(MAGIC)
    while (found := _MARKER.search(data, place)) is not None:
        marker, place = data[found.end() - 1], found.end()
        if marker == _EOI:
            yield Segment(marker)
            return
        if marker in _ALONE:
            continue
        stop = place + max(2, int.from_bytes(data[place : place + 2]))
        body, place = data[place + 2 : stop], stop
        if marker == _SOS:
            end = _END_OF_SCAN.search(data, place)
            stop = len(data) if end is None else end.start()
        yield Segment(marker, body, data[place:stop])
        place = stop


def check_scans(data: bytes, *, pixels: int) -> None:
    """Rejects a small file that takes libjpeg minutes: each scan covers the whole image.

    Args:
      data: The file.
      pixels: Number of pixels of the image.

    Raises:
      ValueError: If there are more scans than accepted for the number of pixels.
    """
    most = max(USUAL_SCANS, _PIXELS_IN_SCANS // max(1, pixels))
    if data.count(bytes([0xFF, _SOS])) <= most:  # those of a thumbnail are among them
        return
    scans = sum(each.marker == _SOS for each in segments(data))
    if scans > most:
        raise ValueError(f"a JPEG of {scans} scans; of {pixels} pixels at most {most} are read")


def exif(data: bytes) -> bytes:
    """Returns the Exif segment before the pixels, starting with `Exif`; empty if there is none."""
    for segment in segments(data):
        if segment.marker == _SOS:
            break
        if segment.body.startswith(b"Exif\0\0"):
            return segment.body
    return b""


def mended(data: bytes) -> bytes:
    """Returns a file with the same pixels and no faults; its metadata are removed.

    Mended is what `is_harmless`: bytes that belong to nothing, scan parameters that a sequential
    JPEG does not use, a JFIF revision or an Adobe transform that is not known, a broken profile.

    Args:
      data: The file, which starts with `MAGIC`.

    Raises:
      ValueError: libjpeg's words on what has cost pixels, such as a file that is cut off.
    """
    found = list(segments(data))
    frame = next((each for each in found if each.marker in _FRAMES), None)
    parts = [_mended(each, frame) for each in found if _shapes_pixels(each)]
    warning = _warning(parts)
    if warning and _EXTRANEOUS.match(warning) and frame and parts[-1].marker == _EOI:
        parts = [*_trimmed(parts[:-1], frame, warning), parts[-1]]
        warning = _warning(parts)
    if warning:
        raise ValueError(warning)
    return _joined(parts)


def _shapes_pixels(segment: Segment) -> bool:
    if segment.marker in (_APP0, _APP14):
        return segment.body.startswith((b"JFIF\0", b"Adobe"))
    return segment.marker != _COM and not 0xE0 <= segment.marker <= 0xEF


def _mended(segment: Segment, frame: Segment | None) -> Segment:
    """Returns a segment with the values that libjpeg assumes when it warns."""
    body = segment.body
    if segment.marker == _APP0 and len(body) > 5:
        body = body[:5] + b"\1" + body[6:]
    elif segment.marker == _APP14 and len(body) >= 12 and frame is not None:
        known = {3: b"\1\0", 4: b"\2\0"}.get(_components(frame), b"")  # assumed; the other one
        if known and body[11] not in known:
            body = body[:11] + known[:1] + body[12:]
    elif segment.marker == _SOS and frame is not None and frame.marker in _SEQUENTIAL:
        body = body[:-3] + b"\0\x3f\0"
    return segment._replace(body=body)


def _trimmed(parts: list[Segment], frame: Segment, warning: str) -> list[Segment]:
    """The segments with scans that end with their last MCU.

    Raises:
      ValueError: If a scan is incomplete; with `warning` if this is undecidable.
    """
    scans = [each for each in parts if each.marker == _SOS]
    if len(scans) > _MOST_SCANS_MENDED:
        raise ValueError(warning)
    interval = next((int.from_bytes(p.body) for p in reversed(parts) if p.marker == _DRI), 0)
    done: list[Segment] = []
    for each in parts:
        if each.marker == _SOS:
            if interval and len(scans) == 1:
                scan = _trimmed_intervals([*done, each], frame, interval)
            else:
                scan = _trimmed_scan([*done, each])
            each = each._replace(scan=scan)
        done.append(each)
    return done


def _trimmed_scan(parts: list[Segment]) -> bytes:
    """The entropy-coded bytes of the last segment, up to the last MCU.

    libjpeg does not mind the few more that it has read ahead.
    """
    *before, last = parts
    return _trimmed_piece(
        last.scan, lambda scan: [*before, last._replace(scan=scan), Segment(_EOI)]
    )


def _trimmed_intervals(parts: list[Segment], frame: Segment, interval: int) -> bytes:
    """As `_trimmed_scan`, with restart markers: each interval is an image that is decoded alone.

    Before a restart libjpeg minds every byte, so there are two in that image, of the same bytes;
    of some it tells at the next marker but one, so there is a comment before the last.
    """
    *before, last = parts
    first, *rest = _RESTART.split(last.scan)
    restarts, pieces = rest[::2], [first, *rest[1::2]]
    mcu, columns, count = _mcus(frame, last)
    sizes = [min(interval, count - done) for done in range(0, count, interval)]
    if restarts != [bytes([_RST0 + number % 8]) for number in range(len(sizes) - 1)]:
        raise ValueError("Corrupt JPEG data: restart markers are missing")
    trimmed = []
    for piece, size in zip(pieces, sizes, strict=True):
        rows, width = (size // columns, columns) if size % columns == 0 else (1, size)
        small = _resized(frame, 2 * rows * mcu[0], width * mcu[1])
        head = [small if each.marker == frame.marker else each for each in before]
        head += [Segment(_DRI, size.to_bytes(2))]

        def twice(scan: bytes, head: list[Segment] = head) -> list[Segment]:
            both = scan + bytes([0xFF, _RST0]) + scan
            return [*head, last._replace(scan=both), Segment(_COM), Segment(_EOI)]

        trimmed.append(_trimmed_piece(piece, twice))
    marked = (b"\xff" + restart for restart in restarts)
    return b"".join(itertools.chain.from_iterable(zip(trimmed, [*marked, b""], strict=True)))


def _trimmed_piece(piece: bytes, image_of: Callable[[bytes], list[Segment]]) -> bytes:
    """Entropy-coded bytes without those at the end that libjpeg calls extraneous.

    Args:
      piece: The bytes.
      image_of: The image that they are decoded in, the only ones of it.
    """
    for _ in range(_MOST_TRIMS):
        warning = _warning(image_of(piece))
        if warning is None:
            return piece
        extraneous = _EXTRANEOUS.match(warning)
        if not extraneous or int(extraneous[2], 16) not in (_RST0, _COM, _EOI):
            break
        piece = piece[: -int(extraneous[1])]  # those that stuff others are not always counted
    raise ValueError(warning)


def _mcus(frame: Segment, scan: Segment) -> tuple[tuple[int, int], int, int]:
    """(Height, width) in pixels of an image's MCU, how many are in a row, and in all."""
    height, width = int.from_bytes(frame.body[1:3]), int.from_bytes(frame.body[3:5])
    factors = [frame.body[7 + 3 * k] for k in range(_components(frame))]
    mcu = (8, 8)
    if scan.body[0] > 1:
        mcu = (8 * max(each & 15 for each in factors), 8 * max(each >> 4 for each in factors))
    columns = math.ceil(width / max(1, mcu[1]))
    return mcu, columns, columns * math.ceil(height / max(1, mcu[0]))


def _components(frame: Segment) -> int:
    return min(frame.body[5], (len(frame.body) - 6) // 3) if len(frame.body) > 5 else 0


def _resized(frame: Segment, height: int, width: int) -> Segment:
    if max(height, width) > _LONGEST_SIDE:
        raise ValueError("Corrupt JPEG data: extraneous bytes before a restart marker")
    sides = height.to_bytes(2) + width.to_bytes(2)
    return frame._replace(body=frame.body[:1] + sides + frame.body[5:])


def _joined(parts: Iterable[Segment]) -> bytes:
    return MAGIC + b"".join(map(bytes, parts))


def _warning(parts: Iterable[Segment]) -> str | None:
    """Decodes a file and returns the warning of libjpeg; None if there is none."""
    data = _joined(parts)
    try:
        colors = simplejpeg.decode_jpeg_header(data, strict=False)[2]
        wanted = "RGB" if colors in PLAIN_COLORS else "CMYK"
        simplejpeg.decode_jpeg(data, colorspace=wanted, min_factor=8)
    except ValueError as error:
        return str(error)
    return None
