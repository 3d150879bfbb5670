"""The scripts beside the package, started as a user starts them."""

import subprocess
import sys
from pathlib import Path

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
