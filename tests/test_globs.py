"""Globs: what they match, by Python's own, and that they end whatever links lead where."""

import errno
import glob
import os
from pathlib import Path

import pytest

from ssd_jax import errors, globs

NAMES = (
    "1.jpg", "[1].jpg", ".hidden.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/.deep/4.jpg", "a/CAP.JPG",
    "x[1]/5.jpg", "a/new\nline.jpg", "a/und\udcff.jpg",
)  # fmt: skip
PATTERNS = (
    "*", "**", "**/*.jpg", "**/*", "*/*.jpg", "a/**", "**/b/**/*.jpg", "./**/*.jpg", "a/../*.jpg",
    "**/.deep/*", ".*", "?.jpg", "[0-9].jpg", "nope/*", "a/**/b/*.jpg", "*.jpg/x", "**/**/*.jpg",
    "**.jpg", "a/b/3.jpg",
)  # fmt: skip


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(pattern):
    return [str(path) for path in globs.expand(pattern).paths]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_globs_match_what_pythons_do(tree, pattern):
    names = {str(Path(name)) for name in glob.glob(pattern, recursive=True)}
    assert found(pattern) == sorted(name for name in names if os.path.isfile(name))
    names = {str(Path(name)) for name in glob.glob(f"{tree}/{pattern}", recursive=True)}
    assert found(f"{tree}/{pattern}") == sorted(name for name in names if os.path.isfile(name))


def test_a_folder_with_brackets_means_itself(tree):
    assert found("x[1]/*.jpg") == ["x[1]/5.jpg"]
    assert found("[[]1].jpg") == ["[1].jpg"]


@pytest.mark.parametrize("links", [1, 2, 5])
def test_links_that_lead_back_give_each_image_once(tree, links):
    before = found("**/*.jpg")
    for number in range(links):
        (tree / f"a/loop{number}").symlink_to("..")
        (tree / f"0loop{number}").symlink_to(".")
    assert found("**/*.jpg") == before
    matches = found("*/*/*/*/*/*/*.jpg")
    assert len(matches) == len({(os.path.realpath(name)) for name in matches})


def test_a_folder_behind_links_is_searched_once(tree, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "6.jpg").touch()
    for name in ("one", "two"):
        (tree / name).symlink_to(outside)
    assert [name for name in found("**/*.jpg") if name.endswith("6.jpg")] == ["one/6.jpg"]


def test_a_folder_that_cannot_be_listed_is_named(tree, monkeypatch):
    listed = os.scandir

    def scandir(folder):
        if folder == "a/b":
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(globs.os, "scandir", scandir)
    matches = globs.expand("**/*.jpg")
    assert "a/2.jpg" in map(str, matches.paths)
    assert matches.problems == ["a/b: its content cannot be listed: Permission denied"]


def test_too_many_open_files_are_no_empty_folder(tree, monkeypatch):
    def scandir(folder):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(globs.os, "scandir", scandir)
    with pytest.raises(errors.MachineError, match="ulimit"):
        globs.expand("*.jpg")


def test_links_that_lead_nowhere_and_pipes_are_matches(tree):
    """So that they are named when they are read, instead of missing in silence."""
    (tree / "nowhere.jpg").symlink_to("nothing")
    (tree / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(tree / "pipe.jpg")
    assert {"nowhere.jpg", "circle.jpg", "pipe.jpg"} <= set(found("*.jpg"))
