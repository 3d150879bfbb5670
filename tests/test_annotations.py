import numpy as np
import pytest
import voc_tree

from ssd_jax import errors
from ssd_jax.data import annotations

SIZE = (24, 32)


def parse(xml: bytes, image_size: tuple[int, int] | None = SIZE) -> annotations.Annotation:
    return annotations.parse(xml, name="a.xml", image_size=image_size)


def test_voc_pixels_become_continuous_edges_and_come_back():
    # The top left pixel alone covers (0, 0)-(1, 1); the whole image (1, 1)-(32, 24) all of it.
    result = parse(voc_tree.xml(voc_tree.box(corners=(1, 1, 32, 24)), voc_tree.box()))
    assert result.boxes.tolist() == [[0, 0, 32, 24], [2, 3, 20, 18]]
    assert result.boxes.dtype == np.float32
    assert result.notes == ()
    normalized = result.boxes / np.array([32, 24, 32, 24], np.float32)
    np.testing.assert_allclose(
        annotations.to_voc_pixels(normalized, 24, 32), [[1, 1, 32, 24], [3, 4, 20, 18]], rtol=1e-6
    )
    assert annotations.to_voc_pixels(np.zeros((0, 4)), 24, 32).shape == (0, 4)


def test_names_and_flags_are_kept_in_order():
    result = parse(voc_tree.xml(voc_tree.box("cat", difficult=1), voc_tree.box("dog", truncated=1)))
    assert result.names == ("cat", "dog")
    assert result.difficult.tolist() == [True, False]
    assert result.truncated.tolist() == [False, True]
    assert (result.height, result.width) == SIZE


def test_missing_flags_are_zero():
    plain = "<object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    result = parse(voc_tree.xml(plain + "</bndbox><difficult/></object>"))
    assert not result.difficult[0]
    assert not result.truncated[0]


def test_a_image_without_objects_has_empty_arrays():
    result = parse(voc_tree.xml())
    assert result.boxes.shape == (0, 4)
    assert result.difficult.shape == result.truncated.shape == (0,)


@pytest.mark.parametrize("xml", [voc_tree.xml(size=None), voc_tree.xml(size=(0, 0))])
def test_without_a_size_the_image_gives_it(xml: bytes):
    assert parse(xml)[:2] == SIZE
    with pytest.raises(errors.UserError, match=r"a\.xml: has no <size>"):
        parse(xml, image_size=None)


def test_without_a_image_the_file_gives_the_size():
    assert parse(voc_tree.xml(size=(7, 9)), image_size=None)[:2] == (7, 9)


def test_a_size_that_is_not_the_images_names_both():
    with pytest.raises(errors.UserError, match=r"a\.xml: says 9 x 7, but the image is 32 x 24"):
        parse(voc_tree.xml(size=(7, 9)))


@pytest.mark.parametrize(
    ("corners", "expected", "note"),
    [
        ((0, 0, 10, 10), [0, 0, 10, 10], "reaches outside the 32 x 24 image; clipped"),
        ((5, 5, 40, 40), [4, 4, 32, 24], "reaches outside the 32 x 24 image; clipped"),
        ((10, 18, 3, 4), [2, 3, 10, 18], "has its corners swapped; reordered"),
        ((3, 18, 10, 4), [2, 3, 10, 18], "has its corners swapped; reordered"),
        ((40, 5, 50, 10), None, "lies outside the 32 x 24 image; dropped from training"),
        ((-9, 5, 0, 10), None, "lies outside the 32 x 24 image; dropped from training"),
        ((5, 5, 5, 10), None, "has no area; dropped from training"),
        ((5, 10, 9, 10), None, "has no area; dropped from training"),
    ],
)
def test_a_bad_box_is_repaired_or_dropped_and_noted(corners, expected, note):
    result = parse(voc_tree.xml(voc_tree.box(), voc_tree.box("cat", corners)))
    assert result.degenerate.tolist() == [False, expected is None]
    assert result.boxes[~result.degenerate][1:].tolist() == ([] if expected is None else [expected])
    assert len(result.names) == len(result.difficult) == len(result.truncated) == len(result.boxes)
    (line,) = result.notes
    assert line.startswith("a.xml: object 2 (cat): box (")
    assert line.endswith(note)


def test_kept_boxes_have_area_in_normalised_float32():
    corners = (31.999999, 5, 32.0000001, 10), (1, 1.0, 1.0000001, 9), (32.98, 3, 33.5, 9)
    result = parse(voc_tree.xml(*(voc_tree.box(corners=each) for each in corners)))
    boxes = (result.boxes / np.array([32, 24, 32, 24], np.float32))[~result.degenerate]
    assert np.all(boxes[:, 2:] > boxes[:, :2])


def test_a_box_of_one_column_is_kept_for_evaluation_as_the_devkit_measures_it():
    """The devkit's width is xmax - xmin + 1: a box of xmin = xmax covers that column of pixels."""
    result = parse(voc_tree.xml(voc_tree.box(corners=(5, 5, 5, 10))))
    assert result.degenerate.tolist() == [True]
    assert result.bboxes.tolist() == [[4, 4, 1, 6]]


def test_fractional_coordinates_are_kept():
    result = parse(voc_tree.xml(voc_tree.box(corners=(1.5, 2.25, 10.75, 11))))
    assert result.boxes.tolist() == [[0.5, 1.25, 10.75, 11]]


def test_parts_of_a_person_are_not_the_person():
    part = "<part><name>head</name><bndbox><xmin>7</xmin><ymin>7</ymin><xmax>9</xmax><ymax>9</ymax>"
    inner = voc_tree.box("person").replace("<object>", f"<object>{part}</bndbox></part>")
    result = parse(voc_tree.xml(inner))
    assert result.names == ("person",)
    assert result.boxes.tolist() == [[2, 3, 20, 18]]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (b"", "a.xml: not well-formed XML"),
        (b"<annotation>\n<size>\n", "a.xml: not well-formed XML .*line 3"),
        (b"\xff\xd8\xff", "a.xml: not well-formed XML"),
        (b'<?xml version="1.0" encoding="none"?><annotation/>', "a.xml: not well-formed XML"),
        (b"<html></html>", "a.xml: its root is <html>"),
        (voc_tree.xml(voc_tree.box("")), "a.xml: object 1 has no <name>"),
        (voc_tree.xml("<object><name>dog</name></object>"), r"object 1 \(dog\) has no <bndbox>"),
        (voc_tree.xml(voc_tree.box(corners=("a", 1, 2, 3))), r"object 1 \(dog\): <xmin> is 'a'"),
        (voc_tree.xml(voc_tree.box(corners=(1, 1, "nan", 3))), r"\(dog\): <xmax> is 'nan'"),
        (voc_tree.xml(voc_tree.box(corners=(1, 1, "inf", 3))), r"\(dog\): <xmax> is 'inf'"),
        (voc_tree.xml(voc_tree.box(corners=(1, "", 2, 3))), r"\(dog\): <ymin> is ''"),
        (voc_tree.xml(voc_tree.box(difficult="no")), r"\(dog\): <difficult> is 'no'"),
        (
            b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
            "a.xml: declares a document type",
        ),
        (
            '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a><annotation/>'.encode("utf-16"),
            "a.xml: declares a document type",
        ),
    ],
)
def test_what_cannot_be_repaired_is_one_line_that_names_the_file(xml: bytes, message: str):
    with pytest.raises(errors.UserError, match=message) as caught:
        parse(xml)
    assert "\n" not in str(caught.value)
