"""The project keeps its own rules: style, types, and which module may import which."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ssd_jax"

# What a module of each layer may import of ssd_jax; whatever is not named here may import all but
# the scripts. The arrows of the house point down this list.
PAPER = {"boxes", "priors", "matching", "losses", "detection", "augment", "resampling"}
ALLOWED = {
    "errors": set(),
    "console": {"errors"},
    "files": {"errors"},
    "cache": {"console", "errors"},
    "boxes": set(),
    "kernels": {"boxes"},
    "priors": set(),
    "matching": {"boxes", "kernels"},
    "losses": {"kernels"},
    "detection": {"boxes", "kernels"},
    "resampling": set(),
    "augment": {"boxes", "resampling"},
    "fonts": set(),
    "config": {"cache", "resampling"},
    "config_checks": {"augment", "config", "errors", "models", "resampling"},
    "config_files": {"config", "config_checks", "errors", "files"},
    "visualize": {"augment", "console", "fonts"},
    "models": PAPER | {"kernels", "models"},
    "download": {"console", "errors", "files"},
    "data": {"cache", "console", "errors", "files", "download", "data", "priors"},
    "weights": {"cache", "console", "errors", "files", "download", "models", "weights"},
    "adapters": {"detection", "errors", "files"},
    "media": {
        "adapters",
        "addresses",
        "console",
        "data",
        "detection",
        "detector",
        "errors",
        "files",
        "globs",
        "media",
        "visualize",
    },
    "onnx_graph": set(),
    "onnx_operations": {"onnx_graph"},
    "onnx_trace": {"onnx_graph", "onnx_operations"},
    "onnx_nms": {"onnx_graph"},
    "stablehlo": set(),
}


def imports_of(path):
    """(module, name) of each import of ssd_jax in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssd_jax"):
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("ssd_jax"):
                    yield alias.name, ""


def part_of(module, name):
    """The first part of what is imported below ssd_jax: `data` of `ssd_jax.data.voc`."""
    return module.split(".")[1] if "." in module else name


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows_point_one_way(part):
    files = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else []
    files += (PACKAGE / part).glob("*.py")
    assert files
    for path in files:
        used = {part_of(module, name) for module, name in imports_of(path)}
        assert used <= ALLOWED[part], f"{path.name} imports {sorted(used - ALLOWED[part])}"


@pytest.mark.parametrize("part", ["evaluation", "media"])
def test_packages_have_no_import_circle(part):
    """No module of it imports itself by way of others, within a function neither."""
    modules = {path.stem: path for path in (PACKAGE / part).glob("*.py")}
    below = {name: local_imports(path) & modules.keys() for name, path in modules.items()}
    while leaves := {name for name, used in below.items() if not used}:
        below = {name: used - leaves for name, used in below.items() if name not in leaves}
    assert not below


def local_imports(path):
    """Modules of the same folder that a module imports."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return {name for module, name in imports_of(path) if module == package}


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
