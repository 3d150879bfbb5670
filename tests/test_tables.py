import io

from rich import console

from ssd_jax.evaluation import coco, run, tables, voc


def test_all_figures_fit_into_80_columns():
    names = ("aeroplane", "tvmonitor")
    curves = voc.precision_recall({}, {"a": ([[1, 1, 5, 5]], [1], [False])}, class_names=names)
    result = run.Evaluation(
        voc07=voc.summarize(curves, use_07_metric=True),
        area=voc.summarize(curves, use_07_metric=False),
        coco=dict.fromkeys(coco.METRICS, 0.1234) | {"APs": -1.0},
        images=1,
        detections={},
        ground_truth={},
    )
    screen = console.Console(file=io.StringIO(), width=80)
    screen.print(tables.evaluation(result))
    text = screen.file.getvalue()
    assert "…" not in text
    assert text.count("0.1234") == 11
    assert all(name in text for name in (*coco.METRICS, *names))
    assert text.count("no objects") == 3  # small objects, and tvmonitor by both metrics
