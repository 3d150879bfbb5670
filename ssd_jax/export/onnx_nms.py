"""SSD's post-processing in ONNX's own operators."""

import numpy as np
import onnx

from ssd_jax.export import onnx_graph


def suppress(
    graph: onnx_graph.Graph,
    boxes: onnx_graph.Value,
    scores: onnx_graph.Value,
    *,
    iou_threshold: float,
    top_k: int,
    max_detections: int,
) -> dict[str, onnx_graph.Value]:
    """Adds the NMS of `detection.multiclass_nms` after its score threshold, and clips the boxes.

    Args:
      graph: Grows.
      boxes: `[B, P, 4]` corners.
      scores: `[B, C - 1, P]` of the classes without background; those of 0 take no part.
      iou_threshold: IoU threshold of NMS.
      top_k: Best boxes of a class that enter NMS.
      max_detections: D, rows of the result.

    Returns:
      `boxes` `[B, D, 4]` in [0, 1], `scores` `[B, D]` and `labels` `[B, D]` int32, best first;
      unused rows are 0.
    """
    _, classes, count = scores.shape
    assert classes is not None
    assert count is not None
    top_k = min(top_k, count)
    zero = graph.constant(np.float32(0), "zero")
    best_scores, index = _top_k(graph, graph.named(scores), top_k)  # [B, C - 1, K]
    index = _reshaped(graph, index, 0, classes * top_k)
    candidates = _gather_rows(graph, graph.named(boxes), index)  # [B, (C - 1) K, 4]
    kept = _suppressed(graph, candidates, best_scores, top_k, iou_threshold)
    kept = _reshaped(graph, kept, -1, classes * top_k)
    final, where = _top_k(graph, kept, min(max_detections, classes * top_k))  # [B, D]
    real = graph.add("Greater", final, zero)
    found = _gather_rows(graph, candidates, where)
    found = graph.add("Clip", found, zero, graph.constant(np.float32(1), "whole"))
    found = graph.add("Where", _with_axis(graph, real), found, zero)
    missing = max(0, max_detections - classes * top_k)
    rows: onnx_graph.Shape = (None, max_detections)
    labels = _padded(graph, _labels(graph, where, real, top_k), missing, rank=2)
    return {
        "boxes": onnx_graph.Value(_padded(graph, found, missing, rank=3), (*rows, 4)),
        "scores": onnx_graph.Value(_padded(graph, final, missing, rank=2), rows),
        "labels": onnx_graph.Value(labels, rows, dtype=np.int32),
    }


def _suppressed(
    graph: onnx_graph.Graph, candidates: str, scores: str, top_k: int, iou_threshold: float
) -> str:
    """`[B (C - 1), 1, K]` scores of the boxes kept in their class, 0 for the others.

    Each class of an image is a separate image for NonMaxSuppression, because it has its own boxes.
    """
    scores = _reshaped(graph, scores, -1, 1, top_k)
    zero = graph.constant(np.float32(0), "zero")
    chosen = graph.add(
        "NonMaxSuppression",
        _reshaped(graph, candidates, -1, top_k, 4),
        scores,
        graph.constant(np.int64(top_k), "top_k"),
        graph.constant(np.float32(iou_threshold), "iou_threshold"),
        zero,  # of the score, which has to be more
    )
    nothing = graph.add("Mul", scores, zero)
    return graph.add("ScatterND", nothing, chosen, graph.add("GatherND", scores, chosen))


def _labels(graph: onnx_graph.Graph, where: str, real: str, top_k: int) -> str:
    """`[B, D]` int32 labels of indices into `[B, (C - 1) K]`; 0 for padding."""
    place = graph.add("Div", where, graph.constant(np.int64(top_k), "top_k"))
    label = graph.add("Add", place, graph.constant(np.int64(1), "one"))
    label = graph.add("Where", real, label, graph.constant(np.int64(0), "none"))
    return graph.add("Cast", label, to=onnx.TensorProto.INT32)


def _top_k(graph: onnx_graph.Graph, values: str, count: int) -> list[str]:
    """The largest of the last axis, best first, equal ones by index; and their int64 index."""
    most = graph.constant(np.array([count], np.int64), "count")
    return graph.add_many("TopK", values, most, outputs=2, axis=-1)


def _gather_rows(graph: onnx_graph.Graph, rows: str, index: str) -> str:
    """Rows of `[B, N, 4]` by `[B, M]`."""
    return graph.add("GatherND", rows, _with_axis(graph, index), batch_dims=1)


def _with_axis(graph: onnx_graph.Graph, values: str) -> str:
    """A last axis of size 1 more."""
    return graph.add("Unsqueeze", values, graph.constant(np.array([-1], np.int64), "last"))


def _reshaped(graph: onnx_graph.Graph, values: str, *shape: int) -> str:
    return graph.add("Reshape", values, graph.constant(np.array(shape, np.int64), "shape"))


def _padded(graph: onnx_graph.Graph, values: str, rows: int, rank: int) -> str:
    """`[B, D]` or `[B, D, 4]` padded with rows of 0."""
    if not rows:
        return values
    ends = np.zeros(2 * rank, np.int64)
    ends[rank + 1] = rows
    return graph.add("Pad", values, graph.constant(ends, "ends"))
