import itertools

import jax
import numpy as np
import pytest

from ssd_jax import visualize

CLASSES = ("cat", "dog", "sheep")


def picture(height=200, width=300):
    return np.full((height, width, 3), 40, np.uint8)


def draw(image, boxes, labels, scores=None, **options):
    return visualize.draw(
        image, np.array(boxes), np.array(labels), scores, class_names=CLASSES, **options
    )


def changed(before, after):
    return np.any(before != after, axis=-1)


def test_colors_are_distinct_and_stable():
    colors = [visualize.class_color(label) for label in range(81)]
    assert colors == [visualize.class_color(label) for label in range(81)]
    assert len(set(colors)) == 81
    assert all(0 <= part <= 255 for color in colors for part in color)


def test_neighbouring_classes_differ_clearly():
    colors = [np.array(visualize.class_color(label)) for label in range(1, 22)]
    for one, next_one in itertools.pairwise(colors):
        assert np.abs(one - next_one).sum() > 150


def test_box_is_drawn_in_the_color_of_its_class():
    drawn = draw(picture(), [[50.0, 60.0, 150.0, 160.0]], [2])
    for y, x in ((160, 100), (110, 50), (110, 150), (60, 149)):
        assert tuple(drawn[y, x]) == visualize.class_color(2)
    assert tuple(drawn[110, 100]) == (40, 40, 40)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (200, 300, 3)


def test_argument_stays_as_it_is():
    image = picture()
    drawn = draw(image, [[50, 60, 150, 160]], [1])
    assert (image == 40).all()
    drawn[:] = 0
    assert (image == 40).all()


def test_nothing_to_draw_gives_an_equal_copy():
    image = picture()
    drawn = draw(image, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


def test_padding_rows_are_not_drawn():
    drawn = draw(picture(), [[50, 60, 150, 160]], [0], [0.0])
    assert not changed(picture(), drawn).any()


def test_caption_stands_above_the_box_with_black_or_white_letters():
    drawn = draw(picture(800, 1200), [[200, 240, 600, 640]], [1], [0.5])
    tag = drawn[180:240, 200:440].reshape(-1, 3)
    assert (tag == visualize.class_color(1)).all(axis=1).any()
    assert ((tag == 0).all(axis=1) | (tag == 255).all(axis=1)).any()


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 1200, 800),
        (1150, 760, 1199, 799),
        (-50, -80, 20, 30),
        (1120, 0, 1500, 900),
        (1600, 1600, 2000, 2000),
        (200, 200, 160, 160),
    ],
)
def test_caption_is_whole_wherever_the_box_is(box):
    """As many pixels of the letters as where there is room for all of them."""

    def letters(box):
        drawn = draw(picture(800, 1200), [box], [3], [0.5])
        return int((drawn == 0).all(axis=-1).sum() + (drawn == 255).all(axis=-1).sum())

    assert letters(box) == letters((200, 240, 600, 640)) > 0


def test_scores_are_written_as_asked():
    boxes, labels, scores = [[50, 60, 150, 160]], [1], [0.126]
    two = draw(picture(), boxes, labels, scores)
    assert not np.array_equal(two, draw(picture(), boxes, labels))
    assert not np.array_equal(two, draw(picture(), boxes, labels, scores, score_format=".0%"))
    np.testing.assert_array_equal(two, draw(picture(), boxes, labels, [0.13]))


def test_first_row_is_on_top():
    drawn = draw(picture(), [[50, 60, 150, 160], [50, 60, 150, 160]], [1, 2])
    assert tuple(drawn[160, 100]) == visualize.class_color(1)


def test_lines_and_letters_grow_with_the_picture():
    box = np.array([[0.2, 0.3, 0.8, 0.8]])
    small = draw(picture(200, 200), box * 200, [1])
    large = draw(picture(1600, 1600), box * 1600, [1])

    def line(image):
        side = len(image)
        return changed(picture(side, side), image)[side // 2, : side // 2].sum()

    assert line(large) == pytest.approx(8 * line(small), abs=8)
    share = [changed(picture(len(i), len(i)), i).mean() for i in (small, large)]
    assert share[1] > share[0] / 3


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (300, 8)])
def test_tiny_pictures_can_be_drawn_on(size):
    assert draw(picture(*size), [[0, 0, 300, 300]], [1], [1.0]).shape == (*size, 3)


def test_grid_puts_pictures_in_reading_order():
    grey = [np.full((50, 100, 3), 20 * k, np.uint8) for k in range(5)]
    sheet = visualize.grid(grey, columns=2, width=208, gap=4)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (3 * (49 + 4) + 4, 208, 3)
    centers = [(4 + 53 * row + 25, 53 + 102 * column) for row in range(3) for column in range(2)]
    assert [int(sheet[center][0]) for center in centers] == [0, 20, 40, 60, 80, 255]


def test_grid_takes_pictures_of_any_size():
    sheet = visualize.grid([picture(10, 40), picture(300, 200)], columns=2, width=400)
    assert sheet.shape[1] == 400
    assert sheet.shape[0] > 250


def test_grid_of_nothing_is_a_blank_strip():
    assert (visualize.grid([], columns=3, width=100) == 255).all()


@pytest.mark.parametrize(("columns", "width"), [(0, 100), (-1, 100), (50, 100)])
def test_columns_that_do_not_fit_are_refused(columns, width):
    with pytest.raises(ValueError, match=rf"columns \({columns}\) must be at least 1"):
        visualize.grid([picture()], columns=columns, width=width)


def test_scores_in_the_place_of_labels_are_refused():
    with pytest.raises(ValueError, match="labels must be integers, not float64"):
        draw(picture(), [[50, 60, 150, 160]], [0.9], [1])


def test_a_sheet_of_augmentations_shows_the_picture_first():
    key, image = jax.random.key(0), picture(60, 80)
    boxes, labels = np.float32([[0.25, 0.25, 0.75, 0.75]]), np.array([2])
    sheet = visualize.augmentations(
        key, image, boxes, labels, class_names=CLASSES, size=40, count=5, columns=3
    )
    column = (1200 - 8) // 3 - 8
    high = round(60 * column / 80)
    first = sheet[8 + (column - high) // 2 :][:high, 8 : 8 + column]
    (whole,) = [visualize.draw(image, boxes * [80, 60, 80, 60], labels, class_names=CLASSES)]
    expected = visualize.grid([whole], columns=1, width=column + 16)[8:-8, 8:-8]
    np.testing.assert_array_equal(first, expected)
    assert sheet.shape == (2 * (column + 8) + 8, 1200, 3)


def test_a_sheet_without_objects_is_drawn():
    sheet = visualize.augmentations(
        jax.random.key(0), picture(), np.zeros((0, 4)), [], class_names=CLASSES, size=20, count=1
    )
    assert sheet.dtype == np.uint8
