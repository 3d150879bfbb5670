"""Each notebook runs from its first cell to its last."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ssd_jax import build, export
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.models import ssd

ROOT = Path(__file__).parent.parent
# In a process of its own: what Jupyter warns of is not ours.
_RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=300).execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detector that finds a cat in the middle of everything, and an image."""
    folder = tmp_path_factory.mktemp("detector")
    config = config_lib.Config()
    config.model.width = 0.125
    model = build.model(config.model, 2)
    shapes = ssd.abstract_params(model, build.input_size(config.model))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    for level in range(6):
        logits = params[f"conf{level}"]["bias"].reshape(-1, 3)
        logits[:, 0] = 20
    params["conf5"]["bias"].reshape(-1, 3)[0, 2] = 24
    detector = detector_lib.Detector(config, ("dog", "cat"), params)
    export.write(detector, folder / "detector.safetensors")
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(folder / "image.png")
    return {
        "DETECTOR": str(folder / "detector.safetensors"),
        "IMAGE": str(folder / "image.png"),
    }


COST = r"mAP 0\.\d\d\d; the most costly kind: {}, \d+\.\d points"
SAID = {
    "detect.ipynb": [r"\['cat'\]"],
    "errors.ipynb": [
        f"{kind:15} {COST.format(costly)}"
        for kind, costly in (
            ("classification", "classification"),
            ("localization", "localization"),
            ("both", "missed"),  # its object is found by no detection either
            ("duplicate", "duplicate"),
            ("background", "background"),
            ("missed", "missed"),
        )
    ],
    "own_images.ipynb": ["12 steps; the loss fell: True", r"\d+ detections of \('.*"],
    "the_paper.ipynb": [
        "53 positives, 159 negatives",
        r"\{.*'loss': \d+\.\d+, 'negatives': 159.0, 'positives': 53.0\}",
        "53 boxes, 5 detections, 5 objects",
    ],
}
"""Patterns of whole lines that a notebook has to print."""
DRAWN = {"detect.ipynb": 1, "errors.ipynb": 3, "own_images.ipynb": 3, "the_paper.ipynb": 8}
"""How many images it shows."""


def printed(notebook):
    """The lines of all its cells."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return [line for one in outputs for line in "".join(one.get("text", "")).splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in (ROOT / "notebooks").glob("*.ipynb")])
def test_notebook_runs(name, files, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _RUN, ROOT / "notebooks" / name, tmp_path / "done.ipynb"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **files},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = (tmp_path / "done.ipynb").read_text()
    lines = printed(json.loads(result))
    for pattern in SAID[name]:
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, lines)
    assert result.count('"image/png": ') == DRAWN[name]
