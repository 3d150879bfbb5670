import html.parser
import re

import numpy as np
import pytest

from ssd_jax.evaluation import coco, report, voc

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


def evaluation(*, detected=True):
    """Figures of three classes, of which the last has no objects."""
    names = (NASTY, "dog", "cow")
    box = np.array([[1.0, 1.0, 50.0, 60.0]])
    truth = {
        "1": (box, np.array([1]), np.array([False])),
        "2": (box, np.array([2]), np.array([False])),
    }
    detections = {"1": (box, np.array([0.9]), np.array([1]))} if detected else {}
    curves = voc.precision_recall(detections, truth, class_names=names)
    return {
        "voc07": voc.summarize(curves, use_07_metric=True),
        "area": voc.summarize(curves, use_07_metric=False),
        "coco": coco.evaluate(detections, truth, class_names=names),
    }


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
    pictures = [np.full((20, 30, 3), 90, np.uint8)] * 2
    text = written(tmp_path, metrics=METRICS, pictures=pictures)
    page = Page(text)
    assert page.tags.count("img") == 2
    assert page.tags.count("svg") == 3 + 2  # loss, learning rate, mAP; two classes with objects
    words = " ".join(page.text)
    for heading in ("A run", "Settings", "COCO", "Training", "Precision by recall", "Detections"):
        assert heading in words


def test_headline_is_the_mean(tmp_path):
    page = Page(written(tmp_path))
    first = page.text.index("mAP, VOC07 (11 points)")
    assert page.text[first - 1] == "50.0\N{NO-BREAK SPACE}%"  # one class of two is found


def test_page_needs_no_network_and_no_script(tmp_path):
    text = written(tmp_path, metrics=METRICS, pictures=[np.zeros((5, 5, 3), np.uint8)])
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
    curves = voc.precision_recall({}, {}, class_names=("cat",))
    result = voc.summarize(curves, use_07_metric=True)
    numbers = coco.evaluate({}, {}, class_names=("cat",))
    text = written(tmp_path, voc07=result, area=result, coco=numbers)
    assert "nan" not in text.lower()
    assert Page(text).tags.count("svg") == 0


def test_what_is_not_given_has_no_heading(tmp_path):
    words = " ".join(Page(written(tmp_path)).text)
    assert "Training" not in words
    assert "Detections" not in words


@pytest.mark.parametrize("length", [1, 2, 5000])
def test_curves_stay_small_and_inside_the_plot(tmp_path, length):
    metrics = [{"step": k, "loss": 1.0 + k % 7} for k in range(length)]
    page = Page(written(tmp_path, metrics=metrics))
    points = [a["points"].split() for a in page.attributes if "points" in a]
    assert max(map(len, points)) <= 200
    for point in (p for line in points for p in line):
        x, y = map(float, point.split(","))
        assert 0 <= x <= 300
        assert 0 <= y <= 180


def test_report_is_replaced(tmp_path):
    written(tmp_path, title="first")
    assert "first" not in written(tmp_path, title="second")
