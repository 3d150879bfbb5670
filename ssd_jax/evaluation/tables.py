"""Tables for the terminal: layers of a network, average precision of classes, exported files."""

import math
from collections.abc import Mapping, Sequence

import rich.console
from rich import table

from ssd_jax import console
from ssd_jax.evaluation import parity, run
from ssd_jax.models import summary


def layers(rows: Sequence[summary.Layer]) -> table.Table:
    """The layers of a network, with a line of totals."""
    result = table.Table("layer", title="layers, for one image")
    for heading in ("output", "parameters", "GFLOP"):
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(
            row.name,
            " x ".join(map(str, row.output)),
            f"{row.parameters:,}",
            f"{row.flops / 1e9:.3f}",
        )
    result.add_section()
    parameters, flops = sum(row.parameters for row in rows), sum(row.flops for row in rows)
    result.add_row("all", "", f"{parameters:,}", f"{flops / 1e9:.3f}")
    return result


def evaluation(result: run.Evaluation) -> rich.console.Group:
    """All figures of an evaluation."""
    return rich.console.Group(average_precision(result), coco(result))


def average_precision(result: run.Evaluation) -> table.Table:
    """AP of each class by VOC's two metrics, with their means."""
    shown = table.Table("class", title=f"average precision on {result.images} images")
    for heading in ("objects", "AP (VOC07)", "AP (VOC10+)"):
        shown.add_column(heading, justify="right")
    for name, ap in result.voc07.ap.items():
        objects = result.voc07.curves[name].num_objects
        shown.add_row(console.plain(name), str(objects), _figure(ap), _figure(result.area.ap[name]))
    shown.add_section()
    shown.add_row("mAP", "", _figure(result.voc07.mean_ap), _figure(result.area.mean_ap))
    return shown


def coco(result: run.Evaluation) -> rich.console.Group:
    """COCO's 12 numbers: precisions above recalls, so that both fit into 80 columns."""
    names = list(result.coco)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    return rich.console.Group(
        *(_row({name: result.coco[name] for name in half}) for half in halves)
    )


def differences(found: Mapping[str, parity.Difference], *, images: int) -> table.Table:
    """How far each exported file's detections are from JAX's."""
    shown = table.Table("format", title=f"largest difference from JAX on {images} images")
    for heading in ("boxes", "scores", "detections", "without a partner"):
        shown.add_column(heading, justify="right")
    for name, of in found.items():
        apart = f"{of.boxes:.1e}", f"{of.scores:.1e}"
        shown.add_row(name, *apart, str(of.detections), str(of.alone))
    return shown


def _row(figures: Mapping[str, float]) -> table.Table:
    shown = table.Table()
    for name in figures:
        shown.add_column(name, justify="right")
    shown.add_row(*(_figure(value) for value in figures.values()))
    return shown


def _figure(value: float) -> str:
    return "no objects" if math.isnan(value) or value < 0 else f"{value:.4f}"
