"""Detectors of other frameworks answer here as they do there."""

import ast

import jax
import numpy as np
import pytest
import test_parity as torchvision_recipe
import weight_files

import ssd_jax
from ssd_jax.data import classes
from ssd_jax.weights import reader


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "parity/torchvision_ssd300.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def state_dict(golden):
    """The recipe's weights by torchvision's names."""
    pairs = zip(golden["names"], golden["shapes"], strict=True)
    return {
        str(name): torchvision_recipe.weight(str(name), ast.literal_eval(str(shape)))
        for name, shape in pairs
    }


@pytest.fixture(scope="module", params=["zip", "legacy"])
def torchvision_file(request, state_dict, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "ssd300.pth"
    write = {"zip": weight_files.torch_zip, "legacy": weight_files.torch_legacy}[request.param]
    write(path, state_dict)
    yield path
    path.unlink()


@pytest.mark.slow
def test_both_forms_of_pth_hold_torchvisions_entries(torchvision_file, state_dict):
    arrays = reader.read(torchvision_file)
    assert list(arrays) == list(state_dict)
    assert all(np.array_equal(arrays[name], state_dict[name]) for name in arrays)


@pytest.mark.slow
def test_a_pth_of_torchvision_detects_what_torchvision_detects(torchvision_file, golden):
    detector = ssd_jax.load_detector(torchvision_file)
    assert detector.class_names == classes.VOC
    (found,) = detector([torchvision_recipe.picture()], score_threshold=0.01)
    np.testing.assert_allclose(found.scores, golden["scores"], atol=1e-4)
    np.testing.assert_array_equal(found.labels, golden["labels"])
    # Two networks in float32 that differ by 1e-6 relative, in a picture of 500 pixels: 5e-4.
    np.testing.assert_allclose(found.boxes, golden["boxes"], atol=5e-3)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == np.float32, detector.params))
