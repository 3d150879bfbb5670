"""What every test needs: eight CPU devices, and the way to the material beside the repository."""

import os
import pathlib
import signal
import tempfile

import pytest
from absl import logging

# Before jax is imported. Without NPROC, many fake devices on few cores can deadlock.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ["NPROC"] = "32"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test compiles, others, the scripts that they start and other workers need not.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="ssd_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
import compiled
import jax
import tiny_backbone  # noqa: F401 -- registered before ssd_jax.weights lists the backbones
from orbax.checkpoint import type_handlers

# As Orbax does on GPUs: each fake device would save a slice of every array, to be compiled first.
type_handlers.register_type_handler(
    jax.Array, type_handlers.ArrayHandler(use_replica_parallel=False), override=True
)
compiled.share()
# What runs under nohup ignores SIGHUP, and so would all that it starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Four steps of a tiny network on a few built-in images."""
    import tiny_run

    from ssd_jax.data import prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "SYNTHETIC", {"train": 12, "test": 6, "seed": 0})
        yield tiny_run.config(tmp_path_factory.mktemp("cache"))


# In tests of loops and scripts, compiling takes most of the time, for code that runs once or twice;
# so do the forks of `scripts.py`. All others, and what it starts `fresh`, compile as users do.
_HARDLY_OPTIMIZED = {
    *("test_ablations", "test_checkpoint", "test_detect_script", "test_evaluate_script"),
    *("test_logs", "test_results", "test_survival", "test_training", "test_transfer"),
    "test_trust",
}


@pytest.fixture(scope="module", autouse=True)
def _compiler(request):
    hardly = request.module.__name__ in _HARDLY_OPTIMIZED
    jax.config.update("jax_disable_most_optimizations", hardly)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def hardly_optimized():
    """Compiles quickly within one test of a module whose other tests compile as users do."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder `../shared` beside the repository: real data and other frameworks' outputs."""
    path = pathlib.Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("no folder ../shared beside the repository: its data are not part of it")
    return path


@pytest.fixture
def warnings_of(monkeypatch) -> list[str]:
    """What is logged as a warning."""
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    return lines
