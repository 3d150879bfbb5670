"""Parts of a page that holds all it shows: text, tables, charts as SVG, pictures as JPEG."""

import base64
import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ssd_jax import errors, files
from ssd_jax.data import images

PICTURE_SIDE = 400  # pixels of an embedded picture's longer side, at most

_CURVE_POINTS = 200  # more than a small plot has pixels
_JPEG_QUALITY = 75
_PLOT = 300, 180  # units of the plots' coordinates
_MARGIN = 42, 8, 8, 22  # left, top, right, bottom, for the axes' numbers
_CELL, _NAMES = 26, 110  # units of a table of colours: its cells, and the room for the names
_NUMBERED = 26  # rows of a table of colours that still has numbers in its cells
_NAME_LENGTH = 15  # letters of a class beside a table of colours
_DARKEST = 0.6  # opacity of a full cell, on which the number can still be read

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57616c; --line: #d9dee4; --page: #fff;
  --card: #f5f7f9; --mark: #2563c9; --other: #b4540a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #a3aebb; --line: #363d46;
  --page: #14171a; --card: #1d2126; --mark: #6ea8fe; --other: #f0a05a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
a { color: var(--mark); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 1rem 0; font-size: .9375rem; }
p { max-width: 46rem; overflow-wrap: anywhere; }
.tiles, .plots, .shots { display: grid; gap: .75rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.tiles div { background: var(--card); border-radius: 8px; padding: .75rem 1rem; }
.tiles b { display: block; font-size: 1.9rem; line-height: 1.2; }
.tiles span, figcaption, th, .note { color: var(--soft); font-size: .875rem; }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(var(--least), 100%), 1fr)); }
.shots { gap: 1.25rem .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
.wide { overflow-x: auto; }
.wide + .wide { margin-top: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  font-weight: normal; vertical-align: top; }
.number { text-align: right; white-space: nowrap; }
.bar { width: 30%; min-width: 4rem; vertical-align: middle; }
.bar i { display: block; height: .6rem; border-radius: 2px; background: var(--mark); }
.bar .fall { background: var(--other); }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
.settings { max-width: 44rem; }
.settings th { width: 38%; overflow-wrap: anywhere; }
.settings td { overflow-wrap: anywhere; }
@media (max-width: 34rem) { .bar { display: none; } }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: .25rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 13px; }
svg path { fill: none; stroke: var(--line); }
svg polyline { fill: none; stroke: var(--mark); stroke-width: 2; stroke-linejoin: round; }
svg polyline + polyline { stroke: var(--other); stroke-dasharray: 5 3; }
.bars rect { fill: var(--mark); }
.cells rect { fill: var(--mark); }
.cells text { fill: var(--ink); font-size: 10px; }
.cells text.name { fill: var(--soft); font-size: 12px; }
img { display: block; width: 100%; height: auto; }
.sheet img { width: auto; max-width: 100%; margin: 0 0 .75rem; border-radius: 4px; }
.shot { position: relative; background: var(--card); border-radius: 4px; overflow: hidden; }
.shot svg { position: absolute; inset: 0; height: 100%; }
.shot rect { fill: none; stroke: #ff5d2e; stroke-width: 2.5; vector-effect: non-scaling-stroke; }
.shot .truth { stroke: #19e68c; stroke-dasharray: 6 4; }
.shot .subject { stroke-width: 4.5; }
.shot text { fill: #fff; paint-order: stroke; stroke: #000; stroke-width: .22em;
  stroke-linejoin: round; }
.key b { font-weight: 600; border-bottom: 3px solid #ff5d2e; }
.key b.truth { border-bottom: 3px dashed #12a866; }
section { content-visibility: auto; contain-intrinsic-size: auto 40rem; }
"""


class Box(NamedTuple):
    """A box on a picture.

    Attributes:
      edges: `[4]` xyxy, continuous edges in pixels of the picture.
      kind: `truth` or `found`, and `subject` in addition for what the picture is about.
      text: Written at its upper left corner, of `truth` at the lower one; empty: nothing.
    """

    edges: np.ndarray
    kind: str
    text: str = ""


def write(
    path: str | os.PathLike[str], title: str, opening: str, sections: Mapping[str, str]
) -> None:
    """Writes `document`; a file that is there is replaced.

    Bytes of file names that are no UTF-8 are written as escapes.

    Raises:
      UserError: The file can't be written.
    """
    text = document(title, opening, sections)
    try:
        files.write(path, text)
    except OSError as error:
        raise errors.UserError(
            f"{path} cannot be written ({error.strerror}); give another place"
        ) from None


def document(title: str, opening: str, sections: Mapping[str, str]) -> str:
    """A whole page; sections of no content are left out.

    Args:
      title: Of the page, plain text.
      opening: HTML of what comes first.
      sections: Heading, plain text -> HTML.
    """
    shown = {heading: body for heading, body in sections.items() if body}
    links = [f'<a href="#s{k}">{html.escape(name)}</a>' for k, name in enumerate(shown)]
    parts = [
        f'<section id="s{k}"><h2>{html.escape(name)}</h2>\n{body}</section>\n'
        for k, (name, body) in enumerate(shown.items())
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f"<h1>{html.escape(title)}</h1>\n{opening}<nav>{''.join(links)}</nav>\n"
        f"{''.join(parts)}</body></html>\n"
    )


def tiles(figures: Mapping[str, str]) -> str:
    """Large figures: name, plain text -> HTML of the value."""
    parts = [
        f"<div><b>{v}</b><span>{html.escape(name)}</span></div>" for name, v in figures.items()
    ]
    return f'<div class="tiles">{"".join(parts)}</div>\n'


def note(text: str) -> str:
    """A paragraph in small letters, of plain text."""
    return f'<p class="note">{html.escape(text)}</p>\n'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers.

    Args:
      headings: Plain text; an empty one is that of a column of bars.
      rows: The first cell is plain text, the others are HTML.
    """
    kinds = ["", *('class="number"' if name else 'class="bar"' for name in headings[1:])]
    head = "".join(
        f"<th {kind}>{html.escape(name)}</th>" for name, kind in zip(headings, kinds, strict=True)
    )
    lines = []
    for first, *others in rows:
        cells = zip(kinds, (html.escape(first), *others), strict=True)
        lines.append(f"<tr>{''.join(f'<td {kind}>{cell}</td>' for kind, cell in cells)}</tr>\n")
    whole = f"<table><tr>{head}</tr>\n{''.join(lines)}</table>".replace("<td >", "<td>")
    return f'<div class="wide">{whole.replace("<th >", "<th>")}</div>\n'


def texts(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    lines = [f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>\n" for row in rows]
    return f'<div class="wide"><table><tr>{head}</tr>\n{"".join(lines)}</table></div>\n'


def settings(values: Mapping[str, str]) -> str:
    """Names and values, folded away."""
    rows = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
    ]
    return (
        f'<details><summary>Settings</summary><table class="settings">{"".join(rows)}</table>'
        "</details>\n"
        if rows
        else ""
    )


def plots(figures: Sequence[str], least: str) -> str:
    """Plots side by side, each at least so wide."""
    return (
        f'<div class="plots" style="--least:{least}">{"".join(figures)}</div>\n' if figures else ""
    )


def line_plot(
    name: str, lines: Sequence[tuple[np.ndarray, np.ndarray]], *, right: float, top: float
) -> str:
    """One or two lines over [0, right] x [0, top], numbers at the axes' ends.

    Args:
      name: Plain text.
      lines: (x, y) of each, `[N]`; x never falls.
      right: End of the x axis.
      top: End of the y axis.
    """
    (width, height), (left, above, margin, below) = _PLOT, _MARGIN
    across, down = width - left - margin, height - above - below
    shown = []
    for x, y in lines:
        few = _few(x, right)
        points = zip(left + x[few] / right * across, above + (1 - y[few] / top) * down, strict=True)
        text = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        shown.append(f'<polyline points="{text}"/>')
    return _figure(name, _frame(f"{right:.6g}", f"{top:.3g}") + "".join(shown))


def bar_plot(
    name: str,
    heights: np.ndarray,
    titles: Sequence[str],
    *,
    top: float = 1.0,
    diagonal: bool = False,
) -> str:
    """Bars side by side over [0, 1] x [0, top]; NaN is none.

    Args:
      name: Plain text.
      heights: `[N]` in [0, top].
      titles: What a bar says under the pointer, plain text.
      top: End of the y axis.
      diagonal: Draw the line from the lower left to the upper right.
    """
    (width, height), (left, above, margin, below) = _PLOT, _MARGIN
    across, down, foot = width - left - margin, height - above - below, height - below
    step = across / len(heights)
    bars = [
        f'<rect x="{left + k * step + 1:.1f}" y="{foot - value / top * down:.1f}" '
        f'width="{step - 2:.1f}" height="{value / top * down:.1f}">'
        f"<title>{html.escape(title)}</title></rect>"
        for k, (value, title) in enumerate(zip(heights, titles, strict=True))
        if not math.isnan(value)
    ]
    line = f'<path d="M{left} {foot}L{width - margin} {above}"/>' if diagonal else ""
    return _figure(name, f'{_frame("1", f"{top:.3g}")}<g class="bars">{"".join(bars)}</g>{line}')


def heat_table(
    values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], name: str
) -> str:
    """A table of counts by colour, each row's shares; with numbers where it is small.

    Args:
      values: `[R, C]` counts.
      rows: Names, plain text.
      columns: Likewise.
      name: Of the table.
    """
    width, height = _NAMES + len(columns) * _CELL, _NAMES + len(rows) * _CELL
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    parts = [
        f'<text class="name" x="{_NAMES - 6}" y="{_NAMES + (k + 0.68) * _CELL:.0f}" '
        f'text-anchor="end">{_short(row)}</text>'
        for k, row in enumerate(rows)
    ]
    parts += [
        f'<text class="name" transform="translate({_NAMES + (k + 0.65) * _CELL:.0f} {_NAMES - 6}) '
        f'rotate(-60)">{_short(column)}</text>'
        for k, column in enumerate(columns)
    ]
    numbered = len(rows) <= _NUMBERED
    for i, k in zip(*np.nonzero(values), strict=True):
        x, y = _NAMES + k * _CELL, _NAMES + i * _CELL
        title = html.escape(f"{rows[i]}: {columns[k]} {values[i, k]} ({shares[i, k]:.0%})")
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" '
            f'fill-opacity="{0.04 + (_DARKEST - 0.04) * shares[i, k]:.2f}">'
            f"<title>{title}</title></rect>"
        )
        if numbered:
            parts.append(
                f'<text x="{x + (_CELL - 1) / 2}" y="{y + 17}" text-anchor="middle">'
                f"{_compact(int(values[i, k]))}</text>"
            )
    room = _NAMES // 2  # for the last leaning name
    return (
        f'<div class="wide"><svg class="cells" style="min-width:{min(width + room, 1500)}px;'
        f'max-width:{1.4 * (width + room):.0f}px" viewBox="0 0 {width + room} {height}" role="img" '
        f'aria-label="{html.escape(name)}">{"".join(parts)}</svg></div>\n'
    )


def shot(
    picture: np.ndarray | None, size: tuple[int, int], boxes: Sequence[Box], caption: str
) -> str:
    """A picture with boxes, which stay sharp at any scale.

    Args:
      picture: `[H, W, 3]` uint8; None: only the boxes are shown.
      size: Its (height, width) in pixels.
      boxes: Later ones over earlier ones.
      caption: Plain text.
    """
    height, width = size
    shapes = []
    for box in boxes:
        left, top, right, bottom = np.clip(box.edges, 0, [width, height, width, height])
        shapes.append(
            f'<rect class="{box.kind}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"/>'
        )
    shapes += _labels(boxes, size)
    inner = "" if picture is None else _jpeg(picture, html.escape(caption))
    return (
        f'<figure><div class="shot" style="aspect-ratio:{width}/{height}">{inner}'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(shapes)}</svg>'
        f"</div><figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )


def shots(figures: Sequence[str]) -> str:
    """Pictures side by side, with a key to their boxes."""
    if not figures:
        return ""
    return (
        '<p class="note key">Boxes: <b class="truth">truth, dashed</b>, <b>detection</b>; '
        f'thick: what the caption is about.</p><div class="shots">{"".join(figures)}</div>\n'
    )


def sheet(pictures: Sequence[np.ndarray]) -> str:
    """Pictures that have all on them, `[H, W, 3]` uint8 each, one after the other."""
    parts = [_jpeg(picture, "Detections") for picture in pictures]
    return f'<div class="sheet plots" style="--least:15rem">{"".join(parts)}</div>' if parts else ""


def share(value: float) -> str:
    """A share in per cent; NaN and COCO's -1 mean that there was nothing to find."""
    return f"{100 * value:.1f}&nbsp;%" if value >= 0 else "no objects"


def points(value: float, *, sign: bool = False) -> str:
    """A difference of shares in percentage points, perhaps with its sign; NaN: a dash."""
    if math.isnan(value):
        return "\N{EN DASH}"
    text = f"{100 * value:{'+' if sign else ''}.1f}"
    return text.replace("-", "\N{MINUS SIGN}")


def bar(value: float, *, largest: float = 1.0) -> str:
    """A bar of that share of `largest`, in another colour below 0; NaN: none."""
    if math.isnan(value) or largest <= 0:
        return ""
    kind = ' class="fall"' if value < 0 else ""
    return f'<i{kind} style="width:{100 * min(abs(value) / largest, 1):.1f}%"></i>'


def _labels(boxes: Sequence[Box], size: tuple[int, int]) -> list[str]:
    """Texts of boxes, the last one's first: in the picture, on the nearest line that is free."""
    height, width = size
    letters = max(width, height) / 20
    taken: list[tuple[float, float, float]] = []  # left, right, foot
    shapes = []
    for box in reversed([box for box in boxes if box.text]):
        long = 0.6 * letters * len(box.text)
        left = max(0.0, min(box.edges[0] + letters / 5, width - long))
        truth = box.kind.startswith("truth")
        nearest = box.edges[3] - letters / 4 if truth else box.edges[1] - letters / 5
        feet = np.arange(letters, max(height, letters + 1), letters / 4)
        feet = feet[np.argsort(np.abs(feet - nearest), kind="stable")]
        free = (
            foot
            for foot in feet
            if not any(
                left < other_right and other_left < left + long and abs(foot - other) < letters
                for other_left, other_right, other in taken
            )
        )
        foot = next(free, feet[0])
        taken.append((left, left + long, foot))
        shapes.append(
            f'<text x="{left:.1f}" y="{foot:.1f}" style="font-size:{letters:.0f}px">'
            f"{html.escape(box.text)}</text>"
        )
    return shapes


def _few(x: np.ndarray, right: float) -> np.ndarray:
    """Rows of the points that a plot shows, the last among them."""
    shown = np.searchsorted(x, np.linspace(0, right, _CURVE_POINTS - 1))
    return np.unique(np.append(shown[shown < len(x)], np.arange(len(x))[-1:]))


def _frame(right: str, top: str) -> str:
    """Axes and the numbers at their ends."""
    (width, height), (left, above, margin, below) = _PLOT, _MARGIN
    foot = height - below
    return (
        f'<path d="M{left} {above}V{foot}H{width - margin}"/>'
        f'<text x="{left - 4}" y="{above + 9}" text-anchor="end">{top}</text>'
        f'<text x="{left - 4}" y="{foot}" text-anchor="end">0</text>'
        f'<text x="{left}" y="{height - 6}">0</text>'
        f'<text x="{width - margin}" y="{height - 6}" text-anchor="end">{right}</text>'
    )


def _figure(name: str, content: str) -> str:
    name, (width, height) = html.escape(name), _PLOT
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{content}'
        f"</svg><figcaption>{name}</figcaption></figure>"
    )


def _jpeg(picture: np.ndarray, alt: str) -> str:
    """The picture as an element, its longer side at most `PICTURE_SIDE` pixels."""
    small = images.shrink(np.asarray(picture, np.uint8), height=PICTURE_SIDE, width=PICTURE_SIDE)
    buffer = io.BytesIO()
    Image.fromarray(small).convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = small.shape[:2]
    return (
        f'<img alt="{alt}" width="{width}" height="{height}" loading="lazy" decoding="async" '
        f'src="data:image/jpeg;base64,{data}">\n'
    )


def _short(name: str) -> str:
    text = name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
    return html.escape(text)


def _compact(count: int) -> str:
    """A count in at most four letters."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 10_000 else f"{count // 1000}k"
