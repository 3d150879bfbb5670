"""Each notebook runs from its first cell to its last."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax import export
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
    """A detector that finds a cat in the middle of everything, and a picture."""
    folder = tmp_path_factory.mktemp("detector")
    config = config_lib.Config()
    config.model.width = 0.125
    model = detector_lib.build_model(config.model, 2)
    shapes = ssd.abstract_params(model, detector_lib.input_size(config.model))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    for level in range(6):
        logits = params[f"conf{level}"]["bias"].reshape(-1, 3)
        logits[:, 0] = 20
    params["conf5"]["bias"].reshape(-1, 3)[0, 2] = 24
    detector = detector_lib.Detector(config, ("dog", "cat"), params)
    export.write(detector, folder / "detector.safetensors")
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(folder / "picture.png")
    return {
        "DETECTOR": str(folder / "detector.safetensors"),
        "PICTURE": str(folder / "picture.png"),
    }


SAID = {
    "detect.ipynb": ["['cat']"],
    "errors.ipynb": [
        f"; the most costly kind: {kind}, "
        for kind in ("classification", "localisation", "duplicate", "background", "missed")
    ],
    "own_pictures.ipynb": ["12 steps; the loss fell: True", "detections of ('"],
    "the_paper.ipynb": ["159 negatives", "53 boxes, 5 detections, 5 objects"],
}
"""What a notebook has to print, beside pictures."""


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
    assert all(text in result for text in SAID[name])
    assert '"image/png"' in result
