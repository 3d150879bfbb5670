"""The scripts beside the package, started as a user starts them."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent


def run(script: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A script of the repository with these arguments, in a folder; what it wrote is text."""
    return subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def refused(done: subprocess.CompletedProcess[str], *named: object) -> bool:
    """Whether a run ended with one line on stderr that names what it has to."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(str(name) in done.stderr for name in named), done.stderr
    return True


def call(script: str, *arguments: object) -> None:
    """Runs a script's `main` in this process: what it raises is the caller's; no flag remains."""
    from absl import flags

    argv = [script, *map(str, arguments)]
    there = set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with mock.patch.object(sys, "argv", argv):
            spec.loader.exec_module(module)
            module.main(argv)
    finally:
        for name in set(flags.FLAGS) - there:
            delattr(flags.FLAGS, name)
