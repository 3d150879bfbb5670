"""The documentation builds, its links and commands lead somewhere, and it is not out of date."""

import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys

import pytest
import tiny_run
import try_commands

from ssd_jax import config as config_lib

ROOT = tiny_run.ROOT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# absl's own and those of `config_flags`, which every script has.
COMMON = {"config", "verbosity"}


def pages():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs/pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    front = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "configuration.html" in front
    assert "Single Shot MultiBox Detector" in front


def test_the_page_of_the_configuration_is_that_of_the_dataclasses(monkeypatch):
    monkeypatch.delenv("SSD_JAX_CACHE", raising=False)
    written = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert written == pages().configuration(), "run python docs/pages.py"
    for part in ("model", "data", "train", "eval"):
        for field in dataclasses.fields(getattr(config_lib.Config(), part)):
            assert written.count(f"| `config.{part}.{field.name}` |") == 1


def test_links_between_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def commands(page):
    """The lines of a page's blocks that call one of our scripts, joined where they go on."""
    for line in try_commands.lines(page):
        found = re.search(r"(?:^|&& |srun |\S*/)python3? (\w+\.py.*)", line)
        if found and "..." not in line:
            command = found[1].split(" && ")[0].replace(";", " ")
            if command.count('"') % 2:  # the end of what another program is given
                command = command.rstrip('"')
            yield shlex.split(command, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_scripts_flags_and_fields_that_exist(page):
    for script, *arguments in commands(page):
        source = (ROOT / script).read_text(encoding="utf-8")
        source += (ROOT / "ssd_jax/cli.py").read_text(encoding="utf-8")
        for place, argument in enumerate(arguments):
            name = argument.partition("=")[0].removeprefix("--")
            if not argument.startswith("--"):
                continue
            if name == "config":
                file = argument.partition("=")[2] or arguments[place + 1]
                assert (ROOT / file).exists(), file
            elif name.startswith("config."):
                value = config_lib.Config()
                for part in name.split(".")[1:]:
                    value = getattr(value, part)
            elif name not in COMMON:
                assert f'"{name.replace("-", "_")}"' in source, f"{script} has no --{name}"


def test_commands_are_found():
    """The test above would pass on pages whose commands it does not see."""
    found = [script for page in PAGES for script, *_ in commands(page)]
    assert {"train.py", "evaluate.py", "detect.py", "export.py"} <= set(found)
    assert len(found) >= 15
