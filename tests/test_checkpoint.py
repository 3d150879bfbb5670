"""Checkpoints of a state of a few numbers: damage, another optimizer, what the machine can't do."""

import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scripts

from ssd_jax import checkpoints, config_files, errors, files, optimizer
from ssd_jax import config as config_lib
from ssd_jax.training import checkpoint, logs
from ssd_jax.training import step as step_lib

UPDATES = 3  # of four steps: one was skipped


def made(step=4, *, value=1.0, freeze=(), **options):
    """A state whose numbers all are of `value`, but those of the optimizer, which moves by it."""
    params = {
        layer: {"kernel": jnp.full((3, 2), value), "bias": jnp.full(2, value)}
        for layer in ("conv", "head")
    }
    opt = optimizer.make_optimizer(optax.constant_schedule(0.1), **options)
    trained = optimizer.trainable(params, freeze)
    opt_state = opt.init(trained)
    for _ in range(UPDATES if value else 0):
        _, opt_state = opt.update(trained, opt_state, trained)
    average = jax.tree.map(lambda x: 2 * x, params)
    return step_lib.TrainState(jnp.asarray(step, jnp.int32), params, opt_state, average)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints of steps 2 and 4; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("runs") / "saved"
    with checkpoint.open_manager(workdir) as manager:
        for step, mean_ap in ((2, 0.5), (4, 0.25)):
            checkpoint.save(manager, made(step), run={"position": step}, mean_ap=mean_ap)
            checkpoint.wait(manager)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def restored(workdir, **options):
    """Restores the state and the facts saved beside it, as a resumed run does."""
    with checkpoint.open_manager(workdir, clean=True) as manager:
        return checkpoint.restore(manager, made(0, value=0.0, **options))


def assert_same(result, expected):
    for got, want in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_is_saved_is_restored(workdir):
    state, run = restored(workdir)
    assert_same(state, made())
    assert run["position"] == 4


@pytest.mark.parametrize(
    "options", [{"clip_norm": 10.0}, {"optimizer": "adam"}, {"freeze": ("conv",)}], ids=str
)
def test_with_another_optimizer_all_but_its_moments_resumes(workdir, warnings_of, options):
    state, run = restored(workdir, **options)
    expected, fresh = made(), made(value=0.0, **options)
    assert_same((state.step, state.params, state.ema), (4, expected.params, expected.ema))
    assert int(step_lib.updates_done(state.opt_state)) == UPDATES
    assert_same(step_lib.with_updates_done(state.opt_state, 0), fresh.opt_state)
    assert run["position"] == 4
    (line,) = warnings_of
    assert line.startswith(f"the optimizer of {workdir / 'checkpoints' / '4'} is another one: ")
    assert not (workdir / "damaged").exists()


# One file of each kind in a checkpoint; those that it is whole without, and the others.
WHOLE_WITHOUT = (
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    "metrics/metrics",
    "training/ocdbt.process_0/manifest.ocdbt",
)
KINDS = (
    *WHOLE_WITHOUT,
    "run/metadata",
    "params/_METADATA",
    "params/_sharding",
    "params/manifest.ocdbt",
    "params/d/*",
    "ema/d/*",
    "training/_METADATA",
    "training/manifest.ocdbt",
    "training/d/*",
)


def empty(path):
    path.write_bytes(b"")


def garble(path):
    """Other bytes of the same number: neither JSON nor an array."""
    path.write_bytes(bytes(np.random.default_rng(0).integers(128, 256, path.stat().st_size, "u1")))


@pytest.mark.parametrize("harm", [empty, garble, os.remove])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_file_is_damaged_the_run_resumes(workdir, warnings_of, kind, harm):
    (path,) = (workdir / "checkpoints" / "4").glob(kind)
    harm(path)
    state, run = restored(workdir)
    whole = kind in WHOLE_WITHOUT or (kind, harm) == ("params/_sharding", os.remove)
    assert run["position"] == (4 if whole else 2)
    assert_same(state, made(run["position"]))
    put_aside = [line for line in warnings_of if "is damaged and put aside" in line]
    assert len(put_aside) == (not whole)
    assert (workdir / "damaged" / "4").is_dir() is not whole


@pytest.mark.parametrize("harm", [empty, garble, os.remove])
def test_a_map_that_cannot_be_read_is_none(workdir, harm):
    assert checkpoints.find(workdir).name == "2"
    for step, best in (("4", "2"), ("2", "4")):
        harm(workdir / "checkpoints" / step / "metrics" / "metrics")
        assert checkpoints.find(workdir).name == best
    with checkpoint.open_manager(workdir, clean=True) as manager:
        assert sorted(manager.all_steps()) == [2, 4]
        assert manager.metrics(4) == {"mean_ap": None}


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"mean_ap": NaN}', '{"mean_ap": 1' + "0" * 400 + "}", "[" * 100_000]
)
def test_a_map_that_is_none_is_as_if_there_was_no_evaluation(workdir, text):
    (workdir / "checkpoints" / "2" / "metrics" / "metrics").write_text(text)
    assert checkpoints.find(workdir).name == "4"
    with checkpoint.open_manager(workdir, clean=True) as manager:
        assert sorted(manager.all_steps()) == [2, 4]


def test_a_pipe_in_the_place_of_a_map_blocks_nothing(workdir):
    path = workdir / "checkpoints" / "2" / "metrics" / "metrics"
    path.unlink()
    os.mkfifo(path)
    assert checkpoints.find(workdir).name == "4"
    with checkpoint.open_manager(workdir, clean=True) as manager:
        assert manager.metrics(2) == {"mean_ap": None}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_map_that_the_machine_cannot_read_now_is_not_forgotten(workdir, monkeypatch, number):
    def fail(path, **options):
        raise OSError(number, os.strerror(number), str(path))

    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    monkeypatch.setattr(files, "read", fail)
    for read in (lambda: checkpoints.find(workdir), lambda: restored(workdir)):
        with pytest.raises(errors.MachineError, match=r"metrics/metrics: "):
            read()
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_where_all_are_damaged_nothing_is_moved(workdir):
    for step in (2, 4):
        garble(workdir / "checkpoints" / str(step) / "params" / "manifest.ocdbt")
    before = sorted(workdir.rglob("*"))
    for _ in range(2):
        with pytest.raises(
            errors.UserError, match=r"every checkpoint in .* is damaged \(4: .*DATA"
        ):
            restored(workdir)
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ESTALE, "Stale file handle"),
        ValueError("DATA_LOSS: reading: [OS error 24: EMFILE Too many open files]"),
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
    ],
    ids=repr,
)
def test_what_the_machine_cannot_read_is_no_damage(workdir, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoints, "verify", fail)
    before = sorted(workdir.rglob("*"))
    folder = workdir / "checkpoints" / "4"
    for read in (
        lambda: restored(workdir),
        lambda: checkpoints.restore_params(folder, made().params),
    ):
        with pytest.raises(errors.MachineError, match=rf"^{folder}: .*, and run the same command"):
            read()
    assert sorted(workdir.rglob("*")) == before


def test_a_checkpoint_of_a_newer_version_is_refused(workdir):
    place = workdir / "checkpoints" / "4" / "run" / "metadata"
    place.write_text(json.dumps({**json.loads(place.read_text()), "version": 3}))
    for read in (
        restored,
        lambda _: checkpoints.restore_params(checkpoints.find(place.parents[1]), made().params),
    ):
        with pytest.raises(
            errors.UserError, match=r"newer ssd_jax .format 3, this one reads 2.: up"
        ):
            read(workdir)
    assert not (workdir / "damaged").exists()


def test_a_config_of_a_newer_version_is_refused(tmp_path):
    place = tmp_path / "config.json"
    config_files.save(place, config_lib.Config(), ("cat",))
    content = json.loads(place.read_text())
    assert content["version"] == 2
    content["config"]["train"]["invention"] = 3
    place.write_text(json.dumps({**content, "version": 3}))
    with pytest.raises(errors.UserError, match=r"newer ssd_jax .format 3, this one reads 2.: up"):
        config_files.load(place)


def test_a_config_without_a_version_is_of_the_first(tmp_path):
    place = tmp_path / "config.json"
    config_files.save(place, config_lib.Config(seed=3), ("cat",))
    content = json.loads(place.read_text())
    del content["version"]
    place.write_text(json.dumps(content))
    assert config_files.load(place) == (config_lib.Config(seed=3), ("cat",))


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        PermissionError(errno.EPERM, "Operation not permitted"),
        OSError(errno.EROFS, "Read-only file system"),
        ValueError("PERMISSION_DENIED: [OS error 13: EACCES Permission denied]"),
    ],
    ids=repr,
)
def test_what_may_not_be_written_is_one_line(tmp_path, error):
    with (
        pytest.raises(errors.MachineError, match=rf"^{tmp_path}: .*: give the permission, and run"),
        checkpoints.room_for(tmp_path),
    ):
        raise error


def test_a_file_has_its_old_content_until_it_has_the_new(tmp_path, monkeypatch):
    place = tmp_path / "config.json"
    files.write(place, "old\r\n")
    first = place.stat().st_ino
    files.write(place, "old\r\n")
    assert place.stat().st_ino == first  # not even touched

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        files.write(place, "new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "config.json": b"old\r\n"
    }


def test_what_breaks_off_leaves_what_was_there(tmp_path):
    place = tmp_path / "detections.npz"
    place.write_bytes(b"old")

    def break_off():
        with files.replacing(place) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {place.name: b"old"}


def test_a_link_is_replaced_and_a_terminal_is_written_to(tmp_path):
    place, link = tmp_path / "there", tmp_path / "link"
    place.write_text("old")
    link.symlink_to(place)
    files.write(link, "new")
    assert (link.is_symlink(), link.read_text(), place.read_text()) == (False, "new", "old")
    ends = os.openpty()
    files.write(os.ttyname(ends[1]), "new")
    assert os.read(ends[0], 3) == b"new"
    for end in ends:
        os.close(end)


def test_without_room_the_files_of_a_run_stay_what_they_were(tmp_path):
    """A limit of nothing on the size of files stands for a full disk."""
    config_files.save(tmp_path / "config.json", config_lib.Config(), ("cat",))
    log = logs.MetricsLog(tmp_path, step=0)
    for step in range(4):
        log.write(step=step, loss=1.0)
    log.close()
    shutil.copy(tmp_path / "metrics.jsonl", tmp_path / "skipped.jsonl")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = scripts.run("-c", _FULL, tmp_path, timeout=120)
    assert (result.returncode, result.stdout) == (0, "full\n"), result.stderr
    for name in ("metrics.jsonl", "metrics.csv", "skipped.jsonl"):
        assert f"{tmp_path / name} is left out: [Errno 27] File too large" in result.stderr
    assert {path: path.read_bytes() for path in before} == before


_FULL = """
import pathlib, resource, sys

from ssd_jax import config, config_files
from ssd_jax.training import guard, logs

workdir = pathlib.Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    config_files.save(workdir / "config.json", config.Config(seed=7), ("dog",))
except OSError:
    print("full")
logs.MetricsLog(workdir, step=2)
guard.Guard(workdir, step=2, most=0, names_of=None)
"""
