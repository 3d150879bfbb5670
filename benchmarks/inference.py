"""From images to detections with SSD300: ours, by XLA and by ONNX Runtime, beside torchvision's.

  pip install -e '.[export]' torch torchvision
  python benchmarks/inference.py [--runs 9] [--batches 1,8] [--skip-onnx] [--dtype bfloat16]

All get the same decoded images of 500 x 375 as uint8 arrays and give boxes in pixels, scores and
labels: scaling, normalization, network and post-processing are in it. They take turns in one
process; the table shows medians, and medians of the ratios of neighbors. Weights are random, with
a background that is sure everywhere, as a trained detector's mostly is. Torchvision's
network lies channels last, on a GPU if JAX runs on one, and takes bfloat16 by automatic mixed
precision.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import torch
import torchvision
import turns

from ssd_jax import build, export
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.models import ssd

CLASSES, THRESHOLD = 20, 0.01
SURE = 9.0  # logit of the background
Run = Callable[[], object]


def our_detector(dtype: str) -> detector_lib.Detector:
    config = config_lib.Config()
    config.model.dtype = dtype
    model = build.model(config.model, CLASSES)
    params = ssd.init(jax.random.key(0), model, (300, 300))
    for level in range(6):
        bias = params[f"conf{level}"]["bias"].reshape(-1, CLASSES + 1)
        params[f"conf{level}"]["bias"] = bias.at[:, 0].add(SURE).reshape(-1)
    names = tuple(f"class {label}" for label in range(1, CLASSES + 1))
    return detector_lib.Detector(config, names, params)


def their_detector() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1
    )
    with torch.no_grad():
        for layer in model.head.classification_head.module_list:
            layer.bias.view(-1, CLASSES + 1)[:, 0] += SURE
    return model.eval().to(turns.torch_device(), memory_format=torch.channels_last)


def ours(detector: detector_lib.Detector, images: list[np.ndarray]) -> Run:
    return lambda: detector(images, score_threshold=THRESHOLD)


def torchvisions(model: torch.nn.Module, images: list[np.ndarray], dtype: str) -> Run:
    device = turns.torch_device()

    def run() -> object:
        with torch.inference_mode(), turns.torch_precision(dtype):
            tensors = [
                torch.from_numpy(image).to(device).permute(2, 0, 1) / 255 for image in images
            ]
            found = model(tensors)
            return [{name: values.cpu() for name, values in own.items()} for own in found]

    return run


def line(batch: int, ways: list[Run], runs: int) -> str:
    """A row of the table; the last way is the one that the others are compared with."""
    for run in ways:
        run()
    *mine, theirs = turns.measure(ways, runs)
    cells = [str(batch)]
    for times in mine:
        ratio = statistics.median(a / b for a, b in zip(times, theirs, strict=True))
        cells += [f"{statistics.median(times):.4g}", f"{ratio:.2f}"]
    cells.append(f"{statistics.median(theirs):.4g}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--batches", default="1,8", help="numbers of images")
    parser.add_argument("--skip-onnx", action="store_true")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    print(
        f"{options.dtype}; jax {jax.__version__} on {jax.devices()[0].device_kind}; onnxruntime "
        f"{onnxruntime.__version__}; torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, {torch.get_num_threads()} threads; {options.runs} runs\n"
    )
    detectors, model = {"XLA": our_detector(options.dtype)}, their_detector()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        if not options.skip_onnx:
            path = Path(folder) / "ssd300.onnx"
            export.write(detectors["XLA"], path)
            detectors["ONNX Runtime"] = export.load(path)
        heads = " | ".join(f"{name}, ms | ratio" for name in detectors)
        print(f"| images | {heads} | torchvision, ms |\n|{'---|' * (2 + 2 * len(detectors))}")
        for batch in map(int, options.batches.split(",")):
            images = list(rng.integers(0, 256, (batch, 375, 500, 3), dtype=np.uint8))
            ways = [ours(detector, images) for detector in detectors.values()]
            ways.append(torchvisions(model, images, options.dtype))
            print(line(batch, ways, options.runs), flush=True)


if __name__ == "__main__":
    main()
