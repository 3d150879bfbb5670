"""Where things are kept by whom the system gives no home and no name."""

import os
import pwd
import stat
from pathlib import Path

import pytest
from test_datasets import refusal

from ssd_jax import cache, config


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty temporary folder, and a user who has nothing else."""
    for name in ("HOME", "SSD_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    cache._say.cache_clear()
    return tmp_path


def test_who_has_a_home_keeps_things_there(monkeypatch, tmp_path):
    monkeypatch.delenv("SSD_JAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.DataConfig().cache_dir == "~/.cache/ssd_jax"
    assert cache.folder("~/.cache/ssd_jax") == tmp_path / ".cache/ssd_jax"
    monkeypatch.setenv("SSD_JAX_CACHE", "/elsewhere")
    assert config.DataConfig().cache_dir == "/elsewhere"


def test_who_has_no_home_keeps_things_in_a_folder_of_his_own_and_hears_of_it(temporary, capsys):
    place = temporary / f"ssd_jax-{os.geteuid()}"
    assert config.DataConfig().cache_dir == str(place)
    assert not place.exists()
    for _ in range(2):
        assert cache.folder(config.DataConfig().cache_dir) == place
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    (line,) = capsys.readouterr().err.splitlines()
    assert str(place) in line
    assert "SSD_JAX_CACHE" in line


def test_a_home_that_is_not_writable_is_none(temporary, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("HOME", str(temporary))
    assert config.DataConfig().cache_dir == str(temporary / f"ssd_jax-{os.geteuid()}")


def link(place: Path) -> None:
    (place.parent / "anothers").mkdir()
    place.symlink_to(place.parent / "anothers")


def open_to_all(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def file(place: Path) -> None:
    place.write_bytes(b"")


@pytest.mark.parametrize("prepare", [link, open_to_all, file])
def test_a_folder_that_another_user_has_put_there_is_refused(temporary, prepare):
    """What is kept there is compiled code, which is run."""
    place = temporary / f"ssd_jax-{os.geteuid()}"
    prepare(place)
    assert "may be anybody's; remove it, or set SSD_JAX_CACHE" in refusal(cache.folder, str(place))


def test_a_folder_of_another_user_is_refused(temporary, monkeypatch):
    place = temporary / "ssd_jax-12345"
    place.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "is no folder of user 12345 alone" in refusal(cache.folder, str(place))


def test_a_tilde_without_a_home_says_what_to_set(temporary):
    assert "no home directory; set SSD_JAX_CACHE" in refusal(cache.folder, "~/.cache/ssd_jax")
