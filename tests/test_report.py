import html.parser
import io
import re
import tomllib
from pathlib import Path

import browser
import jinja2
import numpy as np
import pytest
from PIL import Image

from ssd_jax.evaluation import coco, compare, evaluated, gallery, report
from ssd_jax.evaluation import page as page_lib

VOID = {"meta", "img", "br"}
NASTY = '<b>cat & "dog"</b>'


class Page(html.parser.HTMLParser):
    """Collects a page's text, and holds every tag against its end."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.attributes, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def elements(page, tag):
    """The attributes of all elements of a page with that tag."""
    return [a for name, a in zip(page.tags, page.attributes, strict=True) if name == tag]


def evaluation(*, detected=True):
    """An evaluation of three classes, of which the last has no objects."""
    names = (NASTY, "dog", "cow")
    box = np.array([[1.0, 1.0, 50.0, 60.0]])
    truth = {
        "1": (box, np.array([1]), np.array([False])),
        "2": (box, np.array([2]), np.array([False])),
    }
    detections = {"1": (box, np.array([0.9]), np.array([1]))} if detected else {}
    return {
        "coco": coco.evaluate({}, {}, class_names=names),
        "source": source(detections, truth, names),
    }


def source(detections, truth, names, config=None):
    """An evaluation of images of 100 x 80 pixels."""
    return evaluated.Evaluated(
        config={"seed": 0, "eval": {"max_images": 0}} if config is None else config,
        class_names=names,
        sizes=dict.fromkeys(truth, (80, 100)),
        detections=detections,
        ground_truth=truth,
    )


PRIORS = np.array([[0.25, 0.4, 0.5, 0.75], [0.5, 0.5, 0.1, 0.1]], np.float32)


def written(tmp_path, **options):
    path = tmp_path / "report.html"
    options = {"title": "A run", "settings": {"steps": "10"}, **evaluation(), **options}
    report.write(path, **options)
    return path.read_text(encoding="utf-8")


METRICS = (
    {"step": 10, "loss": 9.0, "learning_rate": 1e-3},
    {"step": 20, "loss": None, "learning_rate": 1e-3},
    {"step": 20, "mean_ap": 0.25},
    {"step": 30, "loss": 4.0, "learning_rate": 1e-4},
    {"step": 40, "loss": float("nan"), "learning_rate": 1e-4},
)


def test_page_is_well_formed_and_whole(tmp_path):
    samples = [np.full((20, 30, 3), 90, np.uint8)] * 2
    text = written(tmp_path, metrics=METRICS, samples=samples)
    page = Page(text)
    assert page.tags.count("img") == 2
    plots = [a["aria-label"] for a in page.attributes if "aria-label" in a]
    assert plots[:2] == [NASTY, "dog"]  # the cow has no object
    assert plots[-3:] == ["loss by step", "learning rate by step", "mAP by step"]
    assert len(plots) == 2 + 1 + 3  # and calibration
    words = " ".join(page.text)
    headings = (
        "A run", "Settings", "Average precision of each class", "Errors by kind", "Size and shape",
        "Confusion matrix", "Worst false negatives", "Detections", "Precision-recall curves",
        "Calibration", "Training", "COCO",
    )  # fmt: skip
    for heading in headings:
        assert heading in words


def test_errors_say_what_they_cost_and_why_the_parts_do_not_add_up(tmp_path):
    """Of two classes the dog is missed: one of two APs."""
    text = written(tmp_path)
    row = re.search(r"<tr><td>missed</td>.*?</tr>", text)[0]
    assert re.findall(r"<td>(.*?)</td>", row) == ["missed", "1", "50.0", "50.0"]
    words = " ".join(" ".join(Page(text).text).split())
    assert "do not add up to the 50.0 points that mAP lacks, since each is measured among" in words


def test_gallery_shows_the_image_with_the_boxes_of_truth_and_detection(tmp_path):
    """The dog is missed in image 2; the cat, found at 0.9 in image 1, is called a dog too."""
    box = np.array([[1.0, 1.0, 50.0, 60.0]])
    figures = evaluation()
    truth = figures["source"].ground_truth
    found = {"1": (np.repeat(box, 2, axis=0), np.array([0.9, 0.8]), np.array([1, 2]))}
    asked = []

    def read(name):
        asked.append(name)
        return np.full((80, 100, 3), 60, np.uint8)

    figures["source"] = source(found, truth, figures["source"].class_names)
    page = Page(written(tmp_path, **figures, read_image=read))
    assert asked == ["2", "1"]
    words = "\n".join(page.text)
    assert "dog: not detected at any score (2)" in words
    assert f"dog 0.80: classification, it is {NASTY} (1)" in words
    drawn = [
        (a.get("class"), a["x"], a["width"]) for a in page.attributes if "x" in a and "width" in a
    ]
    assert ("truth subject", "0.0", "50.0") in drawn
    assert any(a.get("class") == "detection subject" for a in page.attributes)


def test_labels_of_boxes_lie_in_the_image_and_not_over_each_other():
    """Six detections and an object at one place, and one at the right edge."""
    edges = (2.0, 3.0, 90.0, 70.0)
    boxes = [gallery.Box(*edges, "detection", f"person 0.{k}") for k in range(6)]
    boxes += [gallery.Box(95.0, 0.0, 100.0, 9.0, "detection", "pottedplant 0.9")]
    boxes += [gallery.Box(*edges, "truth subject", "person")]
    shot = gallery.Shot(None, (80, 100), boxes, "all")
    labels, letters = shot.labels(), shot.text_size
    assert letters == 5
    assert len(labels) == 8
    assert labels[0][1:] == (pytest.approx(70 - 5 / 4, abs=1), "person")  # the truth below
    for k, (x, y, _) in enumerate(labels):
        assert letters <= y <= 80
        assert x >= 0
        for other_x, other_y, _ in labels[:k]:
            assert abs(y - other_y) >= letters or abs(x - other_x) > 6 * letters
    (plant,) = [x for x, _, text in labels if text == "pottedplant 0.9"]
    assert plant + len("pottedplant 0.9") * letters * 0.6 <= 100


def test_images_are_of_bounded_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    page = Page(written(tmp_path, samples=[noise]))
    (shown,) = [a for a in page.attributes if "src" in a]
    assert (shown["width"], shown["height"]) == ("400", "300")
    assert len(shown["src"]) < 150_000


def test_default_boxes_that_fit(tmp_path):
    """One of the two priors is the box of both objects."""
    text = written(tmp_path, priors_cxcywh=PRIORS)
    assert ">100.0\N{NO-BREAK SPACE}%<" in covered(text)
    assert ">0.0\N{NO-BREAK SPACE}%<" in covered(written(tmp_path, priors_cxcywh=PRIORS[1:]))


def covered(text):
    """The row of all objects in the table of the default boxes."""
    return re.search(r"<tr><td>all objects</td>.*?</tr>", text)[0]


def test_headline_is_the_mean(tmp_path):
    page = Page(written(tmp_path))
    first = page.text.index("mAP, VOC07 (11 points)")
    assert page.text[first - 1] == "50.0\N{NO-BREAK SPACE}%"  # one class of two is found


def test_page_needs_no_network_and_no_script(tmp_path):
    text = written(tmp_path, metrics=METRICS, samples=[np.zeros((5, 5, 3), np.uint8)])
    page = Page(text)
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r"base64,[^\"]+", "", text))
    assert not {"script", "link", "iframe"} & set(page.tags)
    sources = [a["src"] for a in page.attributes if "src" in a]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_names_are_escaped(tmp_path):
    text = written(tmp_path, title="<i>run</i>", settings={"<u>": "a < b & c"})
    page = Page(text)
    words = "\n".join(page.text)
    assert NASTY in words
    assert "<i>run</i>" in words
    assert "a < b & c" in words
    assert not {"u"} & set(page.tags)
    assert NASTY not in text
    assert NASTY in [a.get("aria-label") for a in page.attributes]


def test_names_of_classes_and_files_do_not_leave_their_attributes(tmp_path):
    """Names with quotes and tags; a control character or a turned direction is an escape."""
    hostile = '"><script>alert(1)</script>', "' onload='x", "{{ 7 * 7 }}", "\x1b[31m\u202ecat\n"
    box = np.array([[1.0, 1.0, 50.0, 60.0]])
    truth = {name: (box, np.array([k + 1]), np.array([False])) for k, name in enumerate(hostile)}
    found = {name: (box, np.array([0.9]), np.array([1])) for name in hostile}
    several = source(found, truth, hostile)
    text = written(tmp_path, source=several, read_image=image, priors_cxcywh=PRIORS)
    page = Page(text)
    assert "script" not in page.tags
    assert not any("onload" in attributes for attributes in page.attributes)
    words = " ".join(page.text)
    for shown in (*hostile[:3], r"\x1b[31m\u202ecat\n"):
        assert shown in words
        assert any(shown in a.get("alt", "") for a in page.attributes)
        assert any(shown in a.get("title", "") for a in page.attributes)
    assert not set("\x1b\u202e") & set(text)


def test_confusion_matrix_has_counts_and_shares(tmp_path):
    """The cat is detected, the dog is not: each is all of its row."""
    page = Page(written(tmp_path))
    titles = [a["title"] for a in elements(page, "td") if "title" in a]
    assert titles == [f"{NASTY}: {NASTY} 1 (100%)", "dog: not detected 1 (100%)"]


def test_bars_stand_at_their_scores(tmp_path):
    """One detection of 0.9 is the last of ten bars, though the others are none."""
    page = Page(written(tmp_path))
    bars = [a for a in elements(page, "rect") if a["y"] == "0"]
    assert [(a["x"], a["height"]) for a in bars] == [("904.0", "1000.0")]


def test_a_value_that_a_template_lacks_is_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError):
        page_lib.write(tmp_path / "page.html", "report.html.j2", {"title": "A run"})


def test_templates_travel_with_the_package():
    root = Path(__file__).parent.parent
    setuptools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    ((package, globs),) = setuptools["package-data"].items()
    folder = root.joinpath(*package.split("."))
    packed = {path for pattern in globs for path in folder.glob(pattern)}
    assert packed == {path for path in (folder / "templates").rglob("*") if path.is_file()}
    assert folder / "templates" / "report.html.j2" in packed
    assert folder == Path(page_lib.__file__).parent


def test_a_path_that_is_no_utf8_is_shown(tmp_path):
    text = written(tmp_path, settings={"data.path": "images\udcff"})
    assert "images\\udcff" in text


def test_class_without_objects_says_so(tmp_path):
    text = written(tmp_path)
    assert "nan" not in text.lower()
    row = re.search(r"<tr><td>cow</td>.*?</tr>", text)[0]
    assert row.count("no objects") == 2
    assert "<i" not in row


def test_no_detections_at_all(tmp_path):
    page = Page(written(tmp_path, **evaluation(detected=False)))
    assert "0.0\N{NO-BREAK SPACE}%" in page.text


def test_no_objects_at_all(tmp_path):
    numbers = coco.evaluate({}, {}, class_names=("cat",))
    nothing = source({}, {}, ("cat",))
    text = written(tmp_path, coco=numbers, source=nothing)
    assert "nan" not in text.lower()
    assert Page(text).tags.count("svg") == 0


def test_what_is_not_given_has_no_heading(tmp_path):
    words = " ".join(Page(written(tmp_path)).text)
    for heading in ("Training", "Detections", "Default boxes", "Most confident false positives"):
        assert heading not in words


@pytest.mark.parametrize("length", [1, 2, 5000])
def test_curves_stay_small_and_inside_the_plot(tmp_path, length):
    metrics = [{"step": k, "loss": 1.0 + k % 7} for k in range(length)]
    page = Page(written(tmp_path, metrics=metrics))
    points = [a["points"].split() for a in page.attributes if "points" in a]
    assert max(map(len, points)) <= 200
    for point in (p for line in points for p in line):
        x, y = map(float, point.split(","))
        assert 0 <= x <= 1000  # thousandths of the axes
        assert 0 <= y <= 1000


def test_report_is_replaced(tmp_path):
    written(tmp_path, title="the run before")
    assert "the run before" not in written(tmp_path, title="this run")


@pytest.fixture(scope="module")
def tab():
    """A tab of headless Chromium."""
    path = browser.find()
    if path is None:
        pytest.skip("no Chromium is installed; apt-get install chromium")
    with browser.start(path) as opened:
        yield opened


def many_classes(right):
    """An evaluation of 81 classes in 40 images; that share is right, at most, and all at 1."""
    names = tuple(f"a class of a long name {number}" for number in range(81))
    boxes = np.array([[x, y, x + 24, y + 30] for x in (2, 32, 62) for y in (3, 42)], float)
    truth, detections = {}, {}
    rng = np.random.default_rng(0)
    for number in range(40):
        labels = (np.arange(6) + 6 * number) % 81 + 1
        truth[f"{number}.jpg"] = boxes, labels, np.zeros(6, bool)
        seen = np.where(rng.random(6) < right, labels, rng.integers(1, 82, 6))
        moved = boxes + rng.integers(0, 8, (6, 4)) * (right < 1)
        detections[f"{number}.jpg"] = moved, rng.random(6), seen
    return source(detections, truth, names)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages to open, by name: a small report, one of many classes, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    small, large = folder / "small", folder / "large"
    small.mkdir()
    large.mkdir()
    shown = [np.full((300, 400, 3), 90, np.uint8)] * 2
    options = {"metrics": METRICS, "samples": shown, "priors_cxcywh": PRIORS}
    written(small, settings={"a.field": "value " * 40}, **options)
    first, second = many_classes(right=0.6), many_classes(right=1)
    written(
        large,
        settings={"detections": "runs/" + "a" * 90},
        **options,
        source=first,
        read_image=image,
    )
    compare.write(
        folder / "comparison.html",
        first._replace(config={"train": {"learning_rate": 0.1}}),
        second,
        names=("runs/" + "a" * 90, "runs/b"),
        read_image=image,
    )
    return {
        "small": small / "report.html",
        "large": large / "report.html",
        "comparison": folder / "comparison.html",
    }


def image(name):
    return np.full((80, 100, 3), 60, np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [browser.PHONE, browser.DESKTOP])
@pytest.mark.parametrize(
    ("name", "widths"),
    [("small", {400: 2}), ("large", {100: 24, 400: 2}), ("comparison", {100: 16})],
)
def test_page_reads_well_in_a_browser(tab, pages, tmp_path, name, widths, size, scheme):
    """It fits, asks for nothing, all images decode, and letters stand out from the page.

    What is wider than a phone, such as the confusion of 81 classes, is scrolled on its own.
    """
    tab.open(pages[name], size=size, scheme=scheme)
    assert tab.complaints() == ([], [])
    sections = "document.querySelectorAll('section')"
    tab.value(f"{sections}.forEach(section => section.style.contentVisibility = 'visible')")
    assert tab.value("document.documentElement.scrollWidth") <= size[0]
    decoded = "i.loading = 'eager'; return i.decode().then(() => i.naturalWidth)"
    found = tab.value(f"Promise.all([...document.images].map(i => {{{decoded}}}))")
    assert {width: found.count(width) for width in found} == widths
    for element, least in (("body", 7), (".note", 4.5), ("th", 4.5), ("a", 4.5)):
        ink, paper = (
            tab.value(f"getComputedStyle(document.querySelector('{one}')).{name}")
            for one, name in ((element, "color"), ("body", "backgroundColor"))
        )
        assert contrast(ink, paper) >= least, element
    tab.screenshot(tmp_path / "top.png")
    corner = Image.open(io.BytesIO((tmp_path / "top.png").read_bytes())).convert("L")
    assert (corner.getpixel((2, 2)) < 60) == (scheme == "dark")


def contrast(ink, paper):
    """Of two CSS colors, as WCAG 2.1 defines it: 1 to 21."""
    lights = []
    for color in (ink, paper):
        channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return (max(lights) + 0.05) / (min(lights) + 0.05)
