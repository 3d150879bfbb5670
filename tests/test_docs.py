"""The documentation builds, its links and commands lead somewhere, and it is not out of date."""

import ast
import dataclasses
import importlib.util
import os
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
    monkeypatch.delenv("SSD_JAX_MIRROR", raising=False)
    written = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert written == pages().configuration(), "run python docs/pages.py"
    for part in ("model", "data", "train", "eval"):
        for field in dataclasses.fields(getattr(config_lib.Config(), part)):
            assert written.count(f"| `config.{part}.{field.name}` |") == 1
    assert not re.findall(r"^\| (`config\S+`) .*\|\s*\|$", written, re.MULTILINE)


@pytest.mark.parametrize("what", ["photo", "training image"])
def test_each_walk_names_functions_that_are_there_and_none_twice(what):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"## The walk of one {what}\n")[2].partition("\n## ")[0]
    hops = re.findall(r"^- `([\w.]+)`: \S", section, re.MULTILINE)
    assert len(hops) == len(set(hops)) == section.count("\n- ") > 9
    for hop in hops:
        assert is_defined(hop), hop


def is_defined(name):
    """Whether `MODULE.FUNCTION` or `MODULE.CLASS.METHOD` of the package or a script is there."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        for folder in (ROOT / "ssd_jax", ROOT):
            path = folder.joinpath(*parts[:count]).with_suffix(".py")
            if path.is_file() and has(ast.parse(path.read_text("utf-8")), parts[count:]):
                return True
    return False


def has(node, names):
    """Whether a definition, or an attribute of a class, of these nested names is in a body."""
    if not names:
        return True
    for child in node.body:
        target = getattr(child, "target", None)
        name = getattr(child, "name", None) or getattr(target, "id", None)
        if name == names[0]:
            return has(child, names[1:])
    return False


def test_links_between_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tests_that_pages_name_are_there():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    rows = (ROOT / "docs/differences.md").read_text(encoding="utf-8").partition("row is a test")[2]
    rows = [row for row in rows.partition("\n## ")[0].splitlines() if row.startswith("| ")][1:]
    assert len(rows) == 9
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row)
        assert names, row
        assert all(f"\ndef {name}(" in tests for name in names), row


def test_each_promise_of_the_security_page_names_tests_that_are_there():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    rows = [
        row for row in page.splitlines() if row.startswith("| ") and row != "| promise | test |"
    ]
    assert len(rows) > 20
    for names in (re.findall(r"`(test_\w+)`", row) for row in [*rows, page]):
        assert names
        assert not [name for name in names if f"\ndef {name}(" not in tests]


def commands(page):
    """The commands of a page that call one of our scripts."""
    for line in try_commands.lines(page):
        found = re.search(r"(?:^|&& |srun |exec |\S*/)python3? (\w+\.py.*)", line)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_python_use_names_that_exist(page):
    for kind, block in try_commands.blocks(page):
        tree, ours = ast.parse(block if kind == "python" else ""), {}
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom) and "ssd_jax" in ast.unparse(node):
                exec(ast.unparse(node), ours)
        for node in ast.walk(tree):
            owner = getattr(getattr(node, "value", None), "id", None)
            if isinstance(node, ast.Attribute) and owner in ours:
                assert hasattr(ours[owner], node.attr), ast.unparse(node)


def test_the_script_runs_blocks_and_what_stands_in_sentences():
    found = try_commands.commands()
    for part in (
        "python train.py --config configs/ssd300.py --summary",
        "detect.py --workdir runs/quickstart IMAGE.jpg --config.eval.tta_flip",
        "evaluate.py --workdir runs/quickstart --config.eval.tta_flip --config.eval.tta_sizes=",
        "export.py --workdir runs/quickstart --formats onnx",
        "export.py --workdir runs/quickstart --outputs raw",
        "python docs/pages.py",
        "python train.py --config configs/quickstart.py --config.train.log_every=1",
        "--process-id=0 & python train.py",
        "matches = match(gt_boxes",
        "onnxruntime.InferenceSession",
        "jax.export.deserialize",
        "safetensors.safe_open",
    ):
        assert any(part in command for command in found), part
    for flags, command in try_commands.BEHIND:
        assert any(re.match(f"{command} ({flags})", other) for other in found)
    for way in try_commands.WAYS:
        assert any(re.search(way.pattern, command) for command in found), way.pattern


@pytest.mark.parametrize(("status", "again"), [(0, False), (2, False), (75, True), (134, True)])
def test_the_slurm_script_asks_for_another_try_where_one_is_worth_it(tmp_path, status, again):
    (script,) = (
        text
        for kind, text in try_commands.blocks(ROOT / "docs/scaling.md")
        if kind == "bash" and "srun" in text
    )
    for name, body in {"srun": f"exit {status}", "scontrol": 'echo "$@"'}.items():
        stand_in = tmp_path / name
        stand_in.write_text(f"#!/bin/sh\n{body}\n")
        stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("requeue 7\n" if again else "", "")


def test_commands_are_found():
    """The test above would pass on pages whose commands it does not see."""
    found = [script for page in PAGES for script, *_ in commands(page)]
    assert {"train.py", "evaluate.py", "detect.py", "export.py"} <= set(found)
    assert len(found) >= 15
