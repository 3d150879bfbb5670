"""Facts about the built-in dataset."""

import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ssd_jax import errors
from ssd_jax.data import synthetic, synthetic_scenes, synthetic_shapes


def _scene(number):
    return synthetic_scenes.scene(np.random.default_rng([0, 0, number]))


@pytest.fixture(scope="module")
def scenes():
    return [_scene(number) for number in range(150)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "parent" / "shapes"
    synthetic.write(folder, train=5, test=3, seed=7, processes=2)
    return folder


def _files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _iou(a, b):
    a, b = (np.array(box) - (1, 1, 0, 0) for box in (a, b))
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
    return np.prod(sides) / (sum(areas) - np.prod(sides))


def test_a_scene_depends_on_its_random_generator_only():
    first, again, other = _scene(3), _scene(3), _scene(4)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_neither_the_number_of_images_nor_of_processes_changes_a_image(folder, tmp_path):
    synthetic.write(tmp_path / "shapes", train=2, test=4, seed=7, processes=1)
    many, few = _files(folder), _files(tmp_path / "shapes")
    images = [path for path in few if path.suffix in (".jpg", ".xml") and path in many]
    assert len(images) == 2 * (2 + 3)
    assert all(few[path] == many[path] for path in images)


def test_splits_and_seeds_share_no_image(folder, tmp_path):
    synthetic.write(tmp_path / "shapes", train=5, test=3, seed=8, processes=1)
    both = [
        *_files(folder / "JPEGImages").values(),
        *_files(tmp_path / "shapes/JPEGImages").values(),
    ]
    assert len(set(both)) == 16


def test_boxes_lie_inside_the_image_and_have_an_area(scenes):
    for scene in scenes:
        height, width, _ = scene.image.shape
        for one in scene.objects:
            xmin, ymin, xmax, ymax = one.box
            assert 1 <= xmin < xmax <= width
            assert 1 <= ymin < ymax <= height


def test_images_are_portrait_and_landscape_within_the_stated_sides(scenes):
    heights, widths = np.array([scene.image.shape[:2] for scene in scenes]).T
    assert min(heights.min(), widths.min()) >= synthetic_scenes.IMAGE_SIDES[0]
    assert max(heights.max(), widths.max()) <= synthetic_scenes.IMAGE_SIDES[1]
    assert 0.3 < (heights > widths).mean() < 0.7
    assert all(scene.image.dtype == np.uint8 for scene in scenes)


def test_sizes_reach_from_5_to_90_percent_and_are_mostly_medium(scenes):
    sizes = [
        max(one.box[2] - one.box[0] + 1, one.box[3] - one.box[1] + 1) / min(scene.image.shape[:2])
        for scene in scenes
        for one in scene.objects
        if not one.truncated
    ]
    assert 0.04 < min(sizes) < 0.08
    assert 0.8 < max(sizes) < 0.92
    assert np.mean((np.array(sizes) > 0.1) & (np.array(sizes) < 0.5)) > 0.7


def test_every_class_and_every_kind_of_trouble_occurs(scenes):
    objects = [one for scene in scenes for one in scene.objects]
    names = [one.name for one in objects]
    assert min(names.count(name) for name in synthetic_shapes.CLASS_NAMES) > len(names) / 10
    assert set(names) == set(synthetic_shapes.CLASS_NAMES)
    assert 0.01 < np.mean([one.difficult for one in objects]) < 0.2
    assert any(one.truncated for one in objects)
    assert any(one.occluded and not one.difficult for one in objects)
    assert 0.01 < np.mean([not scene.objects for scene in scenes]) < 0.12
    assert 6 <= max(len(scene.objects) for scene in scenes) <= synthetic_scenes.MAX_OBJECTS


def test_objects_overlap(scenes):
    overlaps = [
        _iou(a.box, b.box)
        for scene in scenes
        for a in scene.objects
        for b in scene.objects
        if a != b
    ]
    assert max(overlaps) > 0.3
    assert np.mean(np.array(overlaps) > 0) > 0.1


@pytest.mark.parametrize("name", synthetic_shapes.CLASS_NAMES)
@pytest.mark.parametrize("size", [15.0, 60.0, 200.0])
def test_the_longer_side_of_a_shape_is_its_size(name, size):
    shape = synthetic_shapes.silhouette(np.random.default_rng(0), name, size)
    rows, columns = np.nonzero(shape.coverage >= 0.5)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(size, abs=2)
    assert shape.coverage[[0, -1]].max() == 0
    assert shape.coverage[:, [0, -1]].max() == 0


def test_boxes_are_tight_and_flags_right_for_one_object_on_plain_ground(monkeypatch):
    """The painted pixels, found by comparing with the bare ground, span the box."""

    def plain(rng, height, width):
        return np.full((height, width, 3), 0.5, np.float32)

    def white(rng, name, shape, ground, side):
        return np.where(shape.coverage[..., None] >= 0.5, np.float32(1), ground)

    monkeypatch.setattr(synthetic_scenes, "_ground", plain)
    monkeypatch.setattr(synthetic_shapes, "paint", white)
    monkeypatch.setattr(
        synthetic_scenes, "_photograph", lambda rng, image: (255 * image).astype(np.uint8)
    )
    monkeypatch.setattr(synthetic_scenes, "_plan", lambda rng: [("star", rng.uniform(0.05, 0.9))])
    monkeypatch.setattr(synthetic_scenes, "CUT_SHARE", 0.5)
    for number in range(30):
        image, (one,) = _scene(number)
        rows, columns = np.nonzero(image[..., 0] == 255)
        assert one.box == (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
        assert not one.occluded
        if not one.truncated:
            assert not one.difficult


def test_half_hidden_is_difficult_and_nearly_hidden_is_refused():
    """Blocks of 10 x 10 pixels: the second covers 40, then 60, then 90 of the first's 100."""
    block, back = np.ones((10, 10), bool), np.zeros((30, 30), np.int16)
    flags = []
    for y in (16, 14):
        owner, things = synthetic_scenes._put(
            back, [], "ball", block, (10, 10), synthetic_scenes.GONE_FROM
        )
        owner, things = synthetic_scenes._put(
            owner, things, "cube", block, (y, 10), synthetic_scenes.GONE_FROM
        )
        left = synthetic_scenes._visible(owner, things)
        first, second = (
            synthetic_scenes._annotated(*pair) for pair in zip(things, left, strict=True)
        )
        assert first.box == (11, 11, 20, 20)
        assert (second.occluded, second.difficult) == (False, False)
        flags.append((first.occluded, first.difficult))
    assert flags == [(True, False), (True, True)]
    owner, things = synthetic_scenes._put(
        back, [], "ball", block, (10, 10), synthetic_scenes.GONE_FROM
    )
    assert (
        synthetic_scenes._put(owner, things, "cube", block, (11, 10), synthetic_scenes.GONE_FROM)
        is None
    )


def test_the_edge_of_the_image_hides_too():
    """A block of 10 x 10 pixels with 4, 6 and 9 rows above the image."""
    block, back = np.ones((10, 10), bool), np.zeros((30, 30), np.int16)
    for y, difficult in ((-4, False), (-6, True)):
        owner, things = synthetic_scenes._put(
            back, [], "ball", block, (y, 5), synthetic_scenes.GONE_FROM
        )
        one = synthetic_scenes._annotated(things[0], synthetic_scenes._visible(owner, things)[0])
        assert one.box == (6, 1, 15, 10 + y)
        assert (one.truncated, one.occluded, one.difficult) == (True, False, difficult)
    assert (
        synthetic_scenes._put(back, [], "ball", block, (-9, 5), synthetic_scenes.GONE_FROM) is None
    )


def test_color_does_not_give_the_class_away():
    """Mean color of one shape on gray: classes differ by far less than each spreads."""
    rng, means = np.random.default_rng(0), {}
    for name in synthetic_shapes.CLASS_NAMES:
        colors = []
        for _ in range(200):
            shape = synthetic_shapes.silhouette(rng, name, 40.0)
            ground = np.full((*shape.coverage.shape, 3), 0.5, np.float32)
            painted = synthetic_shapes.paint(rng, name, shape, ground, 1.0)
            colors.append(painted[shape.coverage >= 0.5].mean(axis=0))
        # chromaticity: what is left of a color when shading is divided out
        chroma = np.array(colors) / np.sum(colors, axis=1, keepdims=True)
        means[name] = chroma.mean(axis=0), chroma.std(axis=0)
    centers, spreads = (np.array(values) for values in zip(*means.values(), strict=True))
    assert np.ptp(centers, axis=0).max() < 0.35 * spreads.min()
    assert spreads.min() > 0.08
    assert spreads.max() < 1.3 * spreads.min()


def test_the_folder_is_a_voc_folder(folder):
    names = {
        split: (folder / f"ImageSets/Main/{split}.txt").read_text().split()
        for split in ("train", "test")
    }
    assert names["train"] == [f"train_{number:06d}" for number in range(1, 6)]
    assert len(names["test"]) == 3
    for name in names["train"] + names["test"]:
        root = ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot()
        with Image.open(folder / "JPEGImages" / f"{name}.jpg") as image:
            size = (*image.size, len(image.getbands()))
        assert root.findtext("folder") == "shapes"
        assert root.findtext("filename") == f"{name}.jpg"
        assert root.findtext("source/database")
        assert tuple(int(side.text) for side in root.find("size")) == size
        assert [side.tag for side in root.find("size")] == ["width", "height", "depth"]
        for one in root.iter("object"):
            assert one.findtext("name") in synthetic_shapes.CLASS_NAMES
            assert all(one.findtext(f) in "01" for f in ("truncated", "occluded", "difficult"))
            corners = [int(one.findtext(f"bndbox/{c}")) for c in ("xmin", "ymin", "xmax", "ymax")]
            assert 1 <= corners[0] < corners[2] <= size[0]
            assert 1 <= corners[1] < corners[3] <= size[1]
    assert len(_files(folder)) == 2 * 8 + 2
    assert [path.name for path in folder.parent.iterdir()] == ["shapes"]


def test_an_annotation_says_what_the_scene_says():
    drawn = next(scene for scene in map(_scene, range(9)) if len(scene.objects) > 2)
    root = synthetic._annotation("shapes", "a.jpg", drawn)
    for element, one in zip(root.iter("object"), drawn.objects, strict=True):
        assert element.findtext("name") == one.name
        assert tuple(int(corner.text) for corner in element.find("bndbox")) == one.box
        for flag in ("truncated", "occluded", "difficult"):
            assert element.findtext(flag) == str(int(getattr(one, flag)))


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "mine").write_text("precious")
    for existing in (tmp_path, tmp_path / "mine"):
        with pytest.raises(errors.UserError) as caught:
            synthetic.write(existing, train=1, test=1)
        assert str(existing) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(*job):
        raise OSError("disk full")

    monkeypatch.setattr(synthetic, "_write_share_in_a_process", fails)
    with pytest.raises(OSError, match="disk full"):
        synthetic.write(tmp_path / "shapes", train=1, test=1, processes=1)
    assert not list(tmp_path.iterdir())


def test_importing_it_does_not_import_jax():
    code = "import sys, ssd_jax.data.synthetic; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
