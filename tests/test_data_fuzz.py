"""Damaged descriptions of datasets are read, or refused in one line; nothing else comes of them."""

import json
import random
import re

import pytest
import voc_tree
import yaml
from test_coco_data import write_plain as write_coco
from test_yolo_data import write_plain as write_yolo

from ssd_jax import errors
from ssd_jax.data import annotations, check, examine, prepared

MUTATIONS = 150  # of each format
SUFFIXES = (".json", ".xml", ".txt", ".yaml")
VALUES = (
    *(None, True, -1, 0, 1.5, 10**400, 1e308, float("nan"), "", " ", "a\0b", "\ud800", "x" * 5000),
    *("/", "..", "/etc/passwd", "48", [], {}, [[]], ["a", 1]),
)
WORDS = (
    *(
        "",
        " ",
        "-1",
        "0",
        "1e308",
        "1e400",
        "nan",
        "9" * 400,
        "a\0b",
        "x" * 5000,
        "/",
        "..",
        "\xa0",
    ),
    *(
        "<",
        "&",
        "</object>",
        "<name/>",
        "]]>",
        "\n",
        "\r",
        "\u2028",
        "- ",
        ": ",
        "!!int ''",
        "[" * 5000,
        *("&a ", "*a", "&a [*a]", "<<: *a", "? ", "!!set ", "!!python/object:os.system ", "| "),
        *("0x" + "f" * 9000, "1:" * 9000 + "1", "2024-99-99", "- " * 5000),
    ),
)


def write_voc(root):
    return voc_tree.write_plain(root, 3, splits={"train": ["000001"], "val": ["000002", "000003"]})


def write_yolo_with_lists(root):
    write_yolo(root, train="train.txt", val="images/val", names=["cat", "dog"], nc=2)
    (root / "train.txt").write_text("images/train/a.jpg\nimages/train/b.jpg\n")
    return root


def with_another_value(rng, tree):
    """A nested list or dict with one of its parts replaced, left out or doubled."""
    if not tree or not isinstance(tree, list | dict) or rng.random() < 0.1:
        return rng.choice(VALUES)
    copy = tree.copy()
    place = rng.choice(range(len(tree)) if isinstance(tree, list) else list(tree))
    kind = rng.random()
    if kind < 0.1:
        del copy[place]
    elif kind < 0.2 and isinstance(tree, list):
        copy.append(copy[place])
    else:
        copy[place] = with_another_value(rng, copy[place])
    return copy


def with_another_word(rng, text):
    """A text with a word of it replaced, or a stretch cut out or doubled."""
    spans = [match.span() for match in re.finditer(r"[\w.]+|\W", text)]
    start, end = rng.choice(spans)
    other = rng.choice(spans)[1]
    kind = rng.random()
    if kind < 0.6:
        return text[:start] + rng.choice(WORDS) + text[end:]
    return (
        text[: min(start, other)] + text[max(start, other) :] if kind < 0.8 else text[:end] + text
    )


def damaged(rng, name, content):
    """The bytes of a file in which something is wrong."""
    if rng.random() < 0.1:
        place = rng.randrange(len(content))
        return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    text = content.decode()
    if rng.random() < 0.8 and name.endswith(".json"):
        return json.dumps(with_another_value(rng, json.loads(text))).encode()
    if rng.random() < 0.6 and name.endswith(".yaml"):
        return yaml.safe_dump(with_another_value(rng, yaml.safe_load(text))).encode()
    return with_another_word(rng, text).encode()


def faults(kind, path):
    """What is wrong with a dataset, in lines; asks its reader all that preparing it does."""
    list_files, open_reader = prepared.OWN[kind]
    try:
        for file in list_files(path):
            file.stat()
        reader = open_reader(path)
        examined = examine.examine(reader)
        examples = [item for split in examined.splits.values() for item in split]
        names = {name for item in examples for name in item.annotation.names}
        assert all(annotations.class_name(name, "") == name for name in reader.categories(names))
    except errors.UserError as error:
        return [str(error)]
    return check.wrong(examined)


@pytest.mark.parametrize(
    ("kind", "write"),
    [("folder", write_voc), ("coco", write_coco), ("yolo", write_yolo_with_lists)],
)
def test_damaged_descriptions_are_read_or_refused(tmp_path, kind, write):
    root = write(tmp_path / "own")
    assert faults(kind, str(root)) == []
    files = [file for file in sorted(root.rglob("*")) if file.suffix in SUFFIXES]
    rng = random.Random(0)
    found = 0
    for number in range(MUTATIONS):
        file = rng.choice(files)
        content = file.read_bytes()
        file.write_bytes(damage := damaged(rng, file.name, content))
        try:
            found += bool(faults(kind, str(root)))
        except Exception as error:
            error.add_note(f"mutation {number} of {file.name}: {damage[:500]!r}")
            raise
        file.write_bytes(content)
    assert MUTATIONS / 4 < found < MUTATIONS
