import itertools
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import ImageFont

from ssd_jax import fonts, visualize

CLASSES = ("cat", "dog", "sheep")


def make_image(height=200, width=300):
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


def test_neighboring_classes_differ_clearly():
    colors = [np.array(visualize.class_color(label)) for label in range(1, 22)]
    for one, next_one in itertools.pairwise(colors):
        assert np.abs(one - next_one).sum() > 150


def test_box_is_drawn_in_the_color_of_its_class():
    drawn = draw(make_image(), [[50.0, 60.0, 150.0, 160.0]], [2])
    for y, x in ((160, 100), (110, 50), (110, 150), (60, 149)):
        assert tuple(drawn[y, x]) == visualize.class_color(2)
    assert tuple(drawn[110, 100]) == (40, 40, 40)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (200, 300, 3)


def test_argument_stays_as_it_is():
    image = make_image()
    drawn = draw(image, [[50, 60, 150, 160]], [1])
    assert (image == 40).all()
    drawn[:] = 0
    assert (image == 40).all()


def test_nothing_to_draw_gives_an_equal_copy():
    image = make_image()
    drawn = draw(image, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


def test_padding_rows_are_not_drawn():
    drawn = draw(make_image(), [[50, 60, 150, 160]], [0], [0.0])
    assert not changed(make_image(), drawn).any()


def test_caption_stands_above_the_box_with_black_or_white_letters():
    drawn = draw(make_image(800, 1200), [[200, 240, 600, 640]], [1], [0.5])
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
        drawn = draw(make_image(800, 1200), [box], [3], [0.5])
        return int((drawn == 0).all(axis=-1).sum() + (drawn == 255).all(axis=-1).sum())

    assert letters(box) == letters((200, 240, 600, 640)) > 0


def test_scores_are_written_as_asked():
    boxes, labels, scores = [[50, 60, 150, 160]], [1], [0.126]
    two = draw(make_image(), boxes, labels, scores)
    assert not np.array_equal(two, draw(make_image(), boxes, labels))
    assert not np.array_equal(two, draw(make_image(), boxes, labels, scores, score_format=".0%"))
    np.testing.assert_array_equal(two, draw(make_image(), boxes, labels, [0.13]))


def test_first_row_is_on_top():
    drawn = draw(make_image(), [[50, 60, 150, 160], [50, 60, 150, 160]], [1, 2])
    assert tuple(drawn[160, 100]) == visualize.class_color(1)


def test_lines_and_letters_grow_with_the_image():
    box = np.array([[0.2, 0.3, 0.8, 0.8]])
    small = draw(make_image(200, 200), box * 200, [1])
    large = draw(make_image(1600, 1600), box * 1600, [1])

    def line(image):
        side = len(image)
        return changed(make_image(side, side), image)[side // 2, : side // 2].sum()

    assert line(large) == pytest.approx(8 * line(small), abs=8)
    share = [changed(make_image(len(i), len(i)), i).mean() for i in (small, large)]
    assert share[1] > share[0] / 3


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (300, 8)])
def test_tiny_images_can_be_drawn_on(size):
    assert draw(make_image(*size), [[0, 0, 300, 300]], [1], [1.0]).shape == (*size, 3)


def test_grid_puts_images_in_reading_order():
    gray = [np.full((50, 100, 3), 20 * k, np.uint8) for k in range(5)]
    sheet = visualize.grid(gray, columns=2, width=208, gap=4)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (3 * (49 + 4) + 4, 208, 3)
    centers = [(4 + 53 * row + 25, 53 + 102 * column) for row in range(3) for column in range(2)]
    assert [int(sheet[center][0]) for center in centers] == [0, 20, 40, 60, 80, 255]


def test_grid_takes_images_of_any_size():
    sheet = visualize.grid([make_image(10, 40), make_image(300, 200)], columns=2, width=400)
    assert sheet.shape[1] == 400
    assert sheet.shape[0] > 250


def test_grid_of_nothing_is_a_blank_strip():
    assert (visualize.grid([], columns=3, width=100) == 255).all()


@pytest.mark.parametrize(("columns", "width"), [(0, 100), (-1, 100), (50, 100)])
def test_columns_that_do_not_fit_are_refused(columns, width):
    with pytest.raises(ValueError, match=rf"columns \({columns}\) must be at least 1"):
        visualize.grid([make_image()], columns=columns, width=width)


def test_scores_in_the_place_of_labels_are_refused():
    with pytest.raises(ValueError, match="labels must be integers, not float64"):
        draw(make_image(), [[50, 60, 150, 160]], [0.9], [1])


def test_a_sheet_of_augmentations_shows_the_image_first():
    key, image = jax.random.key(0), make_image(60, 80)
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
        jax.random.key(0), make_image(), np.zeros((0, 4)), [], class_names=CLASSES, size=20, count=1
    )
    assert sheet.dtype == np.uint8


# --- Letters of any script ---

SCRIPTS = {
    "\u732b": "Chinese",
    "\u043a\u043e\u0448\u043a\u0430": "Cyrillic",
    "caf\u00e9": "accents",
}


@pytest.fixture
def machine(monkeypatch):
    """Sets the fonts that the machine has; those of before come back."""

    def forget():
        fonts._with_letters.cache_clear()
        visualize._say_once.cache_clear()

    def has(*paths):
        forget()
        monkeypatch.setattr(fonts, "of_machine", lambda: paths)

    yield has
    forget()


def table_of_letters(*, wide=False):
    """A font's table for A, B and D, and of 32 bits for a cat's face too, after OpenType."""
    segments = [(0x41, 0x44, 0, 4), (0xFFFF, 0xFFFF, 1, 0)]  # first, last, delta, range's offset
    columns = [[one[k] for one in segments] for k in (1, 0, 2, 3)]
    glyphs = [5, 6, 0, 7]  # of the first segment: C has none
    words = [4, 0, 0, 4, 0, 0, 0, *columns[0], 0, *columns[1], *columns[2], *columns[3], *glyphs]
    body = np.array(words, ">u2").tobytes()
    if wide:
        groups = [(0x41, 0x42, 5), (0x44, 0x44, 7), (0x1F431, 0x1F431, 8)]
        numbers = [0, 0, len(groups), *itertools.chain(*groups)]
        body = b"\0\x0c\0\0" + np.array(numbers, ">u4").tobytes()
    cmap = b"\0\0\0\1\0\3" + (b"\0\x0a" if wide else b"\0\1") + b"\0\0\0\x0c" + body
    entry = b"cmap" + np.array([0, 28, len(cmap)], ">u4").tobytes()
    return b"\0\1\0\0" + b"\0\1" + b"\0" * 6 + entry + cmap


@pytest.mark.parametrize(
    ("wide", "has", "has_not"), [(False, "ABD", "C@\uffff"), (True, "ABD\U0001f431", "C@")]
)
def test_a_fonts_letters_are_those_that_have_a_glyph(tmp_path, machine, wide, has, has_not):
    path = tmp_path / "a.ttf"
    path.write_bytes(table_of_letters(wide=wide))
    machine(path)
    assert fonts._with_letters(has) == (path,)
    assert fonts._with_letters("A \t B") == (path,)
    for letter in has_not:
        assert fonts._with_letters("A" + letter) == ()


def test_files_that_are_no_fonts_are_passed_over(tmp_path, machine):
    contents = {"empty": b"", "cut": table_of_letters()[:40], "other": b"\xff" * 1000}
    contents["unusable"] = table_of_letters(wide=True)  # has letters, but FreeType does not take it
    paths = []
    for name, content in contents.items():
        paths.append(tmp_path / f"{name}.ttf")
        paths[-1].write_bytes(content)
    machine(*paths, tmp_path / "none.ttf", tmp_path)
    assert fonts.load("\U0001f431", 20) is None
    assert isinstance(fonts.load("cat 0.5", 20), ImageFont.FreeTypeFont)


def test_fonts_are_found_in_the_folders_of_the_machine_plain_ones_first(tmp_path, monkeypatch):
    for name in ("b/Sans-Bold.ttf", "b/Sans.OTF", "a/Serif.ttc", "LastResort.ttf", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(fonts, "_folders", lambda: [tmp_path, tmp_path / "none"])
    found = fonts.of_machine.__wrapped__()
    assert [path.name for path in found] == ["Sans.OTF", "Sans-Bold.ttf", "Serif.ttc"]


@pytest.mark.parametrize("name", SCRIPTS, ids=SCRIPTS.values())
def test_a_name_of_any_script_is_drawn_by_a_font_that_has_its_letters(name):
    """Its letters are neither the box of a letter that is missing nor the class's number."""
    font = fonts.load(name, 30)
    if font is None:
        pytest.skip("this machine has no font of this script")
    missing = bytes(font.getmask("\U0010fffe"))
    assert all(bytes(font.getmask(letter)) != missing for letter in name)
    box, labels = np.array([[50, 60, 150, 160]]), np.array([1])
    shown = [
        visualize.draw(make_image(), box, labels, class_names=[text]) for text in (name, "class 1")
    ]
    assert changed(*shown).any()


def test_a_name_that_no_font_has_is_the_classs_number_and_said_once(machine, capsys):
    machine()
    box, labels = [[50, 60, 250, 160]], [2]
    expected = visualize.draw(
        make_image(), np.array(box), np.array(labels), [0.5], class_names=("cat", "class 2")
    )
    for _ in range(2):
        for name in ("\u732b", "\u72ac"):
            drawn = visualize.draw(
                make_image(), np.array(box), np.array(labels), [0.5], class_names=("cat", name)
            )
            np.testing.assert_array_equal(drawn, expected)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "no font of this machine has the letters of '\u732b'" in err
    assert "'class 2'" in err


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("two\nlines", "two lines"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("x" * 10_000, "x" * 37 + "..."),
        ("\ud800", "\\ud800"),
        ("", ""),
    ],
)
def test_a_caption_is_one_short_line_whatever_the_name_is(name, same):
    box, labels = np.array([[50, 60, 250, 160]]), np.array([1])
    tracemalloc.start()
    drawn = visualize.draw(make_image(), box, labels, [0.5], class_names=[name])
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    np.testing.assert_array_equal(
        drawn, visualize.draw(make_image(), box, labels, [0.5], class_names=[same])
    )


def test_fonts_are_looked_for_where_each_platform_has_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for platform, folder in (
        ("linux", "/usr/share/fonts"),
        ("linux", "/home/me/.fonts"),
        ("darwin", "/System/Library/Fonts"),
    ):
        monkeypatch.setattr(fonts.sys, "platform", platform)
        assert Path(folder) in list(fonts._folders())


def test_a_very_tall_image_does_not_make_an_endless_sheet():
    sheet = visualize.grid([make_image(30_000, 3), make_image(10, 10)], columns=2, width=216, gap=8)
    assert sheet.shape == (4 * 96 + 16, 216, 3)
    assert (sheet[8:-8, 8 + 47] == 40).all()  # a pixel wide, in the middle of its column
    assert (sheet[8 : 8 + 100, 8 + 10] == 255).all()


def test_all_rows_of_a_high_drawing_are_those_of_the_image():
    image = np.random.default_rng(0).integers(0, 256, (700, 20, 3), np.uint8)
    np.testing.assert_array_equal(draw(image, np.zeros((0, 4)), np.zeros(0, int)), image)
