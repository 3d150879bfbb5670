"""A run on one page: `report.html` holds its pictures and curves itself and needs no network."""

import base64
import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ssd_jax.evaluation import voc

_CURVE_POINTS = 200  # more than a small plot has pixels
_JPEG_QUALITY = 88
_PLOT = 300, 180  # units of the plots' coordinates
_MARGIN = 42, 8, 8, 22  # left, top, right, bottom, for the axes' numbers

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5d6773; --line: #d9dee4; --page: #fff;
  --card: #f5f7f9; --mark: #2563c9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa5b1; --line: #363d46;
  --page: #14171a; --card: #1d2126; --mark: #6ea8fe; } }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
.tiles, .plots { display: grid; gap: .75rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.tiles div { background: var(--card); border-radius: 8px; padding: .75rem 1rem; }
.tiles b { display: block; font-size: 1.9rem; line-height: 1.2; }
.tiles span, figcaption, th, .note { color: var(--soft); font-size: .875rem; }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(var(--least), 100%), 1fr)); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  font-weight: normal; vertical-align: top; }
.number { text-align: right; white-space: nowrap; }
.bar { width: 35%; min-width: 5rem; vertical-align: middle; }
.bar i { display: block; height: .6rem; border-radius: 2px; background: var(--mark); }
.settings { max-width: 44rem; }
.settings th { width: 38%; }
.settings td { overflow-wrap: anywhere; }
@media (max-width: 34rem) { .bar { display: none; } }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 13px; }
svg path { fill: none; stroke: var(--line); }
svg polyline { fill: none; stroke: var(--mark); stroke-width: 2; stroke-linejoin: round; }
img { display: block; max-width: 100%; height: auto; margin: 0 0 .75rem; border-radius: 4px; }
"""


def write(
    path: str | os.PathLike[str],
    *,
    title: str,
    settings: Mapping[str, str],
    voc07: voc.Result,
    area: voc.Result,
    coco: Mapping[str, float],
    metrics: Sequence[Mapping[str, float | None]] = (),
    pictures: Sequence[np.ndarray] = (),
) -> None:
    """Writes the report of a run; a file that is there is replaced.

    Args:
      path: Where to, such as `report.html`; its folder is there.
      title: Of the page.
      settings: What was run, name -> value.
      voc07: The evaluation by VOC2007's 11 points.
      area: The same detections by the area under the curve.
      coco: COCO's numbers in [0, 1]; negative where there is no such object.
      metrics: Rows of a training log with `step` and any of `loss`, `learning_rate` and `mean_ap`.
      pictures: `[H, W, 3]` uint8 each, for the gallery.

    Raises:
      OSError: The file can't be written.
    """
    sections = (
        _headline(voc07, area, coco),
        _settings(settings),
        _classes(voc07, area),
        _coco(coco),
        _training(metrics),
        _curves(area.curves),
        _gallery(pictures),
    )
    Path(path).write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f"<h1>{html.escape(title)}</h1>\n{''.join(sections)}</body></html>\n",
        encoding="utf-8",
    )


def _headline(voc07: voc.Result, area: voc.Result, coco: Mapping[str, float]) -> str:
    figures = {
        "mAP, VOC07 (11 points)": voc07.mean_ap,
        "mAP, VOC10+ (area)": area.mean_ap,
        "AP, COCO (IoU 0.5 to 0.95)": coco["AP"],
    }
    tiles = [f"<div><b>{_share(v)}</b><span>{name}</span></div>" for name, v in figures.items()]
    return f'<div class="tiles">{"".join(tiles)}</div>\n'


def _settings(settings: Mapping[str, str]) -> str:
    rows = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in settings.items()
    ]
    return _section("Settings", f'<table class="settings">{"".join(rows)}</table>') if rows else ""


def _classes(voc07: voc.Result, area: voc.Result) -> str:
    rows = [
        f'<tr><td>{html.escape(name)}</td><td class="number">{area.curves[name].num_objects}</td>'
        f'<td class="number">{_share(ap)}</td><td class="bar">{_bar(ap)}</td>'
        f'<td class="number">{_share(area.ap[name])}</td></tr>'
        for name, ap in voc07.ap.items()
    ]
    return _section(
        "Average precision of each class",
        '<div class="wide"><table><tr><th>class</th><th class="number">objects</th>'
        '<th class="number">VOC07</th><th class="bar"></th><th class="number">VOC10+</th></tr>'
        f'{"".join(rows)}</table></div><p class="note">Objects marked difficult are not counted. '
        "Classes without objects are left out of the mean.</p>",
    )


def _coco(coco: Mapping[str, float]) -> str:
    tiles = [
        f"<div>{_share(value)} <span>{html.escape(name)}</span></div>"
        for name, value in coco.items()
    ]
    return _section("COCO", f'<div class="tiles">{"".join(tiles)}</div>')


def _training(metrics: Sequence[Mapping[str, float | None]]) -> str:
    plots = []
    for key, name in (("loss", "loss"), ("learning_rate", "learning rate"), ("mean_ap", "mAP")):
        pairs = [(row["step"], row.get(key)) for row in metrics]
        known = [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(y)]
        if known:
            steps, values = np.array(known, np.float64).T
            top = 1.0 if key == "mean_ap" else max(values.max(), 1e-12)
            plots.append(_plot(f"{name} by step", steps, values, max(steps.max(), 1.0), top))
    return _section("Training", _plots(plots, "18rem")) if plots else ""


def _curves(curves: Mapping[str, voc.Curve]) -> str:
    plots = [
        _plot(name, curve.recall, curve.precision, 1.0, 1.0)
        for name, curve in curves.items()
        if curve.num_objects
    ]
    return _section("Precision by recall", _plots(plots, "10rem")) if plots else ""


def _gallery(pictures: Sequence[np.ndarray]) -> str:
    images = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY)
        data = base64.b64encode(buffer.getvalue()).decode()
        images.append(f'<img alt="Detections" src="data:image/jpeg;base64,{data}">\n')
    return _section("Detections", "".join(images)) if images else ""


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>\n{body}\n"


def _plots(plots: Sequence[str], least: str) -> str:
    """Plots side by side, each at least so wide."""
    return f'<div class="plots" style="--least:{least}">{"".join(plots)}</div>'


def _plot(name: str, x: np.ndarray, y: np.ndarray, right: float, top: float) -> str:
    """One line as SVG over [0, right] x [0, top], numbers at the axes' ends; `x` never falls."""
    (width, height), (left, above, margin, below) = _PLOT, _MARGIN
    shown = np.searchsorted(x, np.linspace(0, right, _CURVE_POINTS - 1))
    shown = np.unique(np.append(shown[shown < len(x)], np.arange(len(x))[-1:]))
    across, down = width - left - margin, height - above - below
    points = zip(left + x[shown] / right * across, above + (1 - y[shown] / top) * down, strict=True)
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    foot, name = height - below, html.escape(name)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
        f'<path d="M{left} {above}V{foot}H{width - margin}"/><polyline points="{line}"/>'
        f'<text x="{left - 4}" y="{above + 9}" text-anchor="end">{top:.3g}</text>'
        f'<text x="{left - 4}" y="{foot}" text-anchor="end">0</text>'
        f'<text x="{left}" y="{height - 6}">0</text>'
        f'<text x="{width - margin}" y="{height - 6}" text-anchor="end">{right:.6g}</text>'
        f"</svg><figcaption>{name}</figcaption></figure>"
    )


def _bar(ap: float) -> str:
    return "" if math.isnan(ap) else f'<i style="width:{100 * ap:.1f}%"></i>'


def _share(value: float) -> str:
    """A share in per cent; NaN and COCO's -1 mean that there was nothing to find."""
    return f"{100 * value:.1f}&nbsp;%" if value >= 0 else "no objects"
