"""SSD300 of 21 classes, one image: our ONNX file on ONNX Runtime beside torchvision's detector.

  pip install -e '.[export]' torch torchvision
  python benchmarks/onnx_runtime.py [--runs 15] [--threads 2]

Both take a float image of 300 x 300 and give detections (decode, softmax, NMS, top-k with the same
settings), or the heads' outputs alone (`raw`). They take turns in one process, A B A B; the table
shows medians and the median of the ratios of neighbors. Weights are random: `dense` scores all pass
the threshold, so that NMS has most to do; `sparse` is a background that is sure everywhere. Before
it is measured, the outputs of each of our files must equal JAX's: `apart` is the largest difference
of a box's corner in [0, 1], of a score or, of `raw`, of an output; `rows` are the detections that
were compared, and those of them whose scores fix their order.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import torch
import torchvision

from ssd_jax import build, detector, export
from ssd_jax import config as config_lib
from ssd_jax.detection import Detections
from ssd_jax.evaluation import parity
from ssd_jax.export import network
from ssd_jax.models import ssd

CLASSES = 20
FURTHEST = 1e-3  # that an output may be from JAX's
NEAR = 1e-4  # detections whose scores differ by less may change places
SURE = 9.0  # logit of the background where detections are sparse
Run = Callable[[], object]


def ours(
    path: Path, image: np.ndarray, *, outputs: str, sparse: bool, threads: int
) -> tuple[Run, str, float]:
    """An exported SSD300 on ONNX Runtime, with its comparison to JAX."""
    config = config_lib.Config()
    model = build.model(config.model, CLASSES)
    params = ssd.init(jax.random.key(0), model, (300, 300))
    for level in range(6):
        bias = params[f"conf{level}"]["bias"].reshape(-1, CLASSES + 1)
        params[f"conf{level}"]["bias"] = bias.at[:, 0].add(SURE * sparse).reshape(-1)
    names = [f"class {label}" for label in range(1, CLASSES + 1)]
    export.write(detector.Detector(config, names, params), path, outputs=outputs)

    @jax.jit
    def in_jax(images: jax.Array) -> dict[str, jax.Array]:
        raw = network.raw_network(config.model, CLASSES)(params, images)
        return raw if outputs == "raw" else network.detections_of(raw, config.eval)._asdict()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    keys = [output.name for output in session.get_outputs()]
    found = dict(zip(keys, session.run(keys, {"images": image[None]}), strict=True))
    rows, apart = distance(jax.device_get(in_jax(image[None])), found)
    return lambda: session.run(None, {"images": image[None]}), rows, apart


def distance(wanted: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[str, float]:
    """Rows and largest difference of two networks' outputs for one image: they have to agree.

    Of detections each has to have its partner; those whose scores are not within `NEAR` of their
    neighbors' have to be in the same row.
    """
    if "scores" not in wanted:
        apart = max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)
        assert apart < FURTHEST, apart
        return "all", apart
    theirs, here = (
        Detections(*(outputs[name][0] for name in Detections._fields))
        for outputs in (wanted, found)
    )
    difference = parity.difference(theirs, here)
    assert difference.alone == 0, difference
    steps = np.diff(theirs.scores) < -NEAR
    settled = np.append(True, steps) & np.append(steps, False)
    np.testing.assert_array_equal(here.labels[settled], theirs.labels[settled])
    np.testing.assert_allclose(here.boxes[settled], theirs.boxes[settled], atol=FURTHEST)
    apart = max(difference.boxes, difference.scores)
    assert apart < FURTHEST, difference
    there = theirs.scores > 0
    return f"{there.sum()}, {(settled & there).sum()}", apart


def torchvisions(image: np.ndarray, *, outputs: str, sparse: bool, channels_last: bool) -> Run:
    """Torchvision's ssd300_vgg16, which has these settings for its post-processing."""
    model = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1
    ).eval()
    with torch.no_grad():
        for layer in model.head.classification_head.module_list:
            layer.bias.view(-1, CLASSES + 1)[:, 0] += SURE * sparse
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy() / 255)
    batch = tensor[None]
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        batch = batch.to(memory_format=torch.channels_last)

    def run() -> object:
        with torch.inference_mode():
            if outputs == "raw":
                return model.head(list(model.backbone(batch).values()))
            return model([tensor])

    return run


def seconds(run: Run) -> float:
    time.sleep(0.05)  # the other's threads stop spinning
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(
        f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}; {arguments.threads} threads; {arguments.runs} runs\n"
    )
    image = np.random.default_rng(0).uniform(0, 255, (300, 300, 3)).astype(np.float32)
    print(
        "| outputs | torch's layout | ours, ms | torchvision, ms | ratio | rows | apart |\n"
        "|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for outputs, sparse in (("detections", True), ("detections", False), ("raw", True)):
            same = {"outputs": outputs, "sparse": sparse}
            path = Path(folder) / "ours.onnx"
            a, rows, apart = ours(path, image, **same, threads=arguments.threads)
            for channels_last in (False, True):
                b = torchvisions(image, **same, channels_last=channels_last)
                a(), b()
                pairs = [(seconds(a), seconds(b)) for _ in range(arguments.runs)]
                mine, theirs = (statistics.median(t) * 1e3 for t in zip(*pairs, strict=True))
                ratio = statistics.median(x / y for x, y in pairs)
                name = "raw" if outputs == "raw" else "sparse" if sparse else "dense"
                layout = "channels last" if channels_last else "channels first"
                figures = f"{mine:.1f} | {theirs:.1f} | {ratio:.2f} | {rows} | {apart:.0e}"
                print(f"| {name} | {layout} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
