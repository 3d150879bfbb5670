"""The project keeps its own rules: style, types, and which module may import which."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ssd_jax"

PAPER = {"boxes", "priors", "matching", "losses", "detection", "augment", "resampling"}
# What each module, or each package, may import of the others. Each stands below all that it names,
# so that no arrow points up.
ALLOWED = {
    "boxes": "",
    "conventions": "",
    "errors": "",
    "fonts": "",
    "optimizer": "",
    "priors": "",
    "resampling": "",
    "stopping": "",
    "version": "",
    "addresses": "errors",
    "console": "errors",
    "files": "errors",
    "globs": "errors",
    "kernels": "boxes",
    "augment": "boxes resampling",
    "detection": "boxes kernels",
    "losses": "kernels",
    "matching": "boxes kernels",
    "models": "kernels priors",
    "cache": "console errors",
    "distributed": "console errors",
    "download": "console errors",
    "visualize": "augment console fonts",
    "adapters": "detection errors files",
    "tta": "augment detection models",
    "data": "cache console download errors files priors",
    "weights": "cache conventions download errors files models",
    "config": "cache resampling",
    "renamed": "",
    "config_checks": "augment config errors models resampling",
    "config_files": "config config_checks errors files renamed",
    "checkpoints": "config_files errors files",
    "build": "augment config config_checks conventions data detection errors models optimizer "
    "priors tta",
    "detector": "augment build config data detection errors files models tta visualize weights",
    "export": "augment boxes build config config_checks config_files detection detector errors "
    "files models version weights",
    "third_party": "build config data detector errors models weights",
    "load": "build checkpoints config config_checks config_files conventions detector errors "
    "export third_party weights",
    "media": "adapters addresses console data detection detector errors files globs visualize",
    "evaluation": "adapters build config config_files console data detection detector distributed "
    "download errors files models visualize weights",
    "training": "augment boxes build checkpoints config config_checks config_files console "
    "conventions data detector distributed download errors evaluation files load losses matching "
    "models optimizer priors visualize weights",
    "cli": "cache config config_checks console distributed errors files load renamed",
    "__init__": "load version",
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
}


@functools.cache
def imports_of(path):
    """Modules of ssd_jax that a file imports when it runs, within functions too."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {id(each) for node in ast.walk(tree) for each in only_for_types(node)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssd_jax"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.append(module_named(name) or module_named(node.module))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("ssd_jax")]
            found += map(module_named, names)
    return found


def only_for_types(node):
    """What is in a node that only a type checker runs."""
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return ast.walk(node)
    return ()


def module_named(name):
    return next((found for found in (name, f"{name}.__init__") if found in MODULES), None)


def part_of(module):
    """What stands below ssd_jax: `data` of `ssd_jax.data.voc`."""
    return module.split(".")[1]


def test_arrows_of_every_module_are_stated():
    assert ALLOWED.keys() == {part_of(module) for module in MODULES}
    order = list(ALLOWED)
    for part, below in ALLOWED.items():
        assert all(order.index(name) < order.index(part) for name in below.split()), part


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows_point_one_way(part):
    files = {module: path for module, path in MODULES.items() if part_of(module) == part}
    for module, path in files.items():
        used = {part_of(name) for name in imports_of(path)} - {part}
        assert used <= {*ALLOWED[part].split()}, module


def test_no_module_imports_itself_by_way_of_others():
    below = {module: {*imports_of(path)} - {module} for module, path in MODULES.items()}
    while leaves := {name for name, used in below.items() if not used}:
        below = {name: used - leaves for name, used in below.items() if name not in leaves}
    assert not below


def test_no_module_is_longer_than_one_idea_needs():
    for module, path in MODULES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, module


def test_no_function_takes_more_options_than_a_reader_keeps_in_mind():
    """Ten in the paper's modules, eight elsewhere; the four that have more are named here."""
    more = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [argument.arg for argument in named if argument.arg not in ("self", "cls")]
                most = 10 if part_of(module) in PAPER else 8
                if len(names) > most:
                    more[f"{module}.{node.name}"] = len(names)
    assert more == {
        "ssd_jax.data.datasets.load": 9,
        "ssd_jax.evaluation.report.write": 9,
        "ssd_jax.media.annotate.annotate_camera": 9,
    }


def test_nothing_in_the_package_imports_a_script():
    scripts = {"train", "evaluate", "detect", "export", "configs"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not scripts & {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in scripts


def test_numerics_take_no_config():
    files = [PACKAGE / f"{name}.py" for name in PAPER] + [*(PACKAGE / "kernels").glob("*.py")]
    for path in files:
        assert "config" not in path.read_text(encoding="utf-8"), path


def test_each_kernel_names_the_benchmark_that_justifies_it():
    for path in (PACKAGE / "kernels").glob("[!_]*.py"):
        described = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        named = re.findall(r"`(benchmarks/\w+\.py)`", described)
        assert named, path
        assert all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("command", [["check", "."], ["format", "--check", "."]])
def test_ruff_is_clean(command):
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_types_are_clean():
    command = [sys.executable, "-m", "mypy"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def ci_runs(readme, folder):
    """What `.ci/run` says and does beside a README of that text."""
    (folder / ".ci").mkdir()
    (folder / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (folder / "README.md").write_text(readme, encoding="utf-8")
    command = ["bash", str(folder / ".ci" / "run")]
    return subprocess.run(command, capture_output=True, text=True)


def test_ci_runs_the_test_command_of_the_readme(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme.splitlines()
    command = lines[lines.index("<!-- test command -->") + 2]
    assert command.startswith("python3 -m venv")
    assert "-m pytest" in command
    other = "python3 -c 'print(6 * 7)' && exit 5"
    result = ci_runs(readme.replace(command, other), tmp_path)
    assert (result.stdout, result.returncode) == (f"+ {other}\n42\n", 5)


def test_ci_fails_without_a_test_command(tmp_path):
    result = ci_runs("no command", tmp_path)
    assert result.returncode == 1
    assert "must hold one test command" in result.stderr
