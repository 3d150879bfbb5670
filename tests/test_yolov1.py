"""YOLOv1 as benchmarks/yolov1.py has it, counted by the summary."""

import math
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import yolov1
from ssd_jax.models import summary

ROOT = Path(__file__).parent.parent
# Redmon et al. 2016, figure 3: (kernel, inputs, outputs, side of the output) of each convolution.
CONVOLUTIONS = [
    (7, 3, 64, 224),
    (3, 64, 192, 112),
    (1, 192, 128, 56),
    (3, 128, 256, 56),
    (1, 256, 256, 56),
    (3, 256, 512, 56),
    *[(1, 512, 256, 28), (3, 256, 512, 28)] * 4,
    (1, 512, 512, 28),
    (3, 512, 1024, 28),
    *[(1, 1024, 512, 14), (3, 512, 1024, 14)] * 2,
    (3, 1024, 1024, 14),
    (3, 1024, 1024, 7),
    (3, 1024, 1024, 7),
    (3, 1024, 1024, 7),
]
DENSE = [(7 * 7 * 1024, 4096), (4096, 7 * 7 * 30)]


def test_layers_are_the_papers():
    layers = summary.summarize(yolov1.YOLOv1(), (448, 448))
    assert len(CONVOLUTIONS) == 24
    expected = [
        ((side, side, outputs), kernel**2 * inputs * outputs + outputs)
        for kernel, inputs, outputs, side in CONVOLUTIONS
    ]
    expected += [((outputs,), inputs * outputs + outputs) for inputs, outputs in DENSE]
    assert [(layer.output, layer.parameters) for layer in layers] == expected


def test_operations_by_hand():
    layers = summary.summarize(yolov1.YOLOv1(), (448, 448))
    expected = [
        side**2 * outputs * (2 * kernel**2 * inputs + 1)
        for kernel, inputs, outputs, side in CONVOLUTIONS
    ]
    expected += [2 * inputs * outputs + outputs for inputs, outputs in DENSE]
    assert [layer.flops for layer in layers] == expected


def test_a_dense_layer_on_a_map_counts_at_each_position():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(5, name="dense")(images)

    (layer,) = summary.summarize(Net(), (4, 6))
    assert layer == ("dense", (4, 6, 5), 3 * 5 + 5, 4 * 6 * 5 * (2 * 3 + 1))


def test_output_is_seven_by_seven_by_thirty():
    image = jax.ShapeDtypeStruct((2, 448, 448, 3), jnp.float32)
    out, _ = jax.eval_shape(yolov1.YOLOv1().init_with_output, jax.random.key(0), image)
    assert out.shape == (2, 7, 7, 30)


def test_the_page_shows_the_table_that_the_command_prints():
    command = [sys.executable, "benchmarks/yolov1.py", "--no-speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    page = (ROOT / "docs" / "yolo.md").read_text(encoding="utf-8")
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert "\n".join(rows) in page
    assert math.isclose(
        yolov1.vgg_flops(448) / yolov1.vgg_flops(300), (448 / 300) ** 2, rel_tol=0.02
    )
