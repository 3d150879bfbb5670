"""What happens to runs: signals, damage, a full disk, other people's workdirs, bad numbers."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import kill_and_resume
import numpy as np
import pytest
import scripts
import tiny_run

from ssd_jax import build, config_files, errors, load
from ssd_jax import config as config_lib
from ssd_jax.data import loader
from ssd_jax.training import checkpoint, checks, guard, loop, signals, watchdog
from ssd_jax.training import data as data_lib
from ssd_jax.training import step as step_lib
from ssd_jax.training import summary as summary_lib
from ssd_jax.training import workdir as workdir_lib

pytestmark = pytest.mark.slow


def changed(config, part="train", **fields):
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **fields)}
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run of four steps with checkpoints of steps 2 and 4; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(config, workdir)
    assert tiny_run.steps_saved(workdir) == [2, 4]
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copied")


def test_runs_that_are_killed_resume_bitwise(tmp_path):
    """A few of each; `python tests/kill_and_resume.py` does as many as one likes."""
    lines = list(kill_and_resume.run(tmp_path, trials=1, kills=2, seed=1))
    assert len(lines) == 2
    assert lines[-1].startswith("2 kills, ")


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=os.path.getsize)


def truncate(folder):
    path = largest_file(folder / "params")
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(folder):
    path = largest_file(folder / "training")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, empty])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(
    config, finished, copied, warnings_of, harm
):
    expected = tiny_run.arrays_of(finished, 4)
    harm(copied / "checkpoints" / "4")
    loop.train(config, copied)
    (line,) = (line for line in warnings_of if "is damaged and put aside" in line)
    assert str(copied / "checkpoints" / "4") in line
    assert (copied / "damaged" / "4").is_dir()
    tiny_run.assert_same(tiny_run.arrays_of(copied, 4), expected)
    steps = [json.loads(row)["step"] for row in (copied / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("name", ["_save_image", "data_lib.augmented", "evaluation.draw_samples"])
def test_what_is_only_for_looking_at_costs_no_run(config, tmp_path, monkeypatch, warnings_of, name):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", "a place")

    monkeypatch.setattr(f"ssd_jax.training.loop.{name}", refuse)
    loop.train(config, tmp_path / "run")
    assert tiny_run.steps_saved(tmp_path / "run") == [2, 4]
    assert (tmp_path / "run" / "report.html").exists()
    assert any("is left out: [Errno 13] Permission denied: 'a place'" in w for w in warnings_of)


def test_a_report_that_cannot_be_written_costs_no_run(config, copied, warnings_of):
    (copied / "report.html").unlink()
    (copied / "report.html").mkdir()
    (copied / "metrics.jsonl").write_bytes(b"\xff\nnull\n[]\n")
    (copied / "metrics.csv").unlink()
    (copied / "metrics.csv").mkdir()
    result = loop.train(changed(config, steps=5, eval_every=5), copied, change_config=True)
    assert result.images == 6
    assert tiny_run.steps_saved(copied)[-1] == 5
    assert any(line.startswith(f"{copied / 'report.html'} is left out: ") for line in warnings_of)
    rows = list(map(json.loads, (copied / "metrics.jsonl").read_text().splitlines()))
    assert [row["step"] for row in rows] == [5, 5]


def test_links_in_a_workdir_lead_nothing_out_of_it(config, tmp_path):
    outside = tmp_path / "outside"
    (outside / "samples").mkdir(parents=True)
    (outside / "precious").write_text("keep me")
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "samples").symlink_to(outside / "samples")
    for name in (".lock", "evaluation.json", "report.html", "metrics.jsonl", "weights.txt"):
        (workdir / name).symlink_to(outside / "precious")
    loop.train(config, workdir)
    assert (outside / "precious").read_text() == "keep me"
    assert list((outside / "samples").iterdir()) == []
    assert (workdir / "samples" / "augmented.png").exists()


def test_where_all_are_damaged_the_run_says_so_and_moves_nothing(config, copied):
    for step in (2, 4):
        truncate(copied / "checkpoints" / str(step))
    with pytest.raises(errors.UserError, match=r"every checkpoint in .* is damaged .*stays there"):
        loop.train(config, copied)
    assert tiny_run.steps_saved(copied) == [2, 4]
    assert not (copied / "damaged").exists()


def test_detection_refuses_a_damaged_checkpoint(copied):
    truncate(copied / "checkpoints" / "4")
    with pytest.raises(errors.UserError, match=r"4 is damaged .*: take another checkpoint"):
        load.load_detector(copied / "checkpoints" / "4")


def test_a_workdir_of_a_newer_version_is_refused(config, copied):
    place = copied / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "version": 3}))
    for use in (lambda: loop.train(config, copied), lambda: load.load_detector(copied)):
        with pytest.raises(
            errors.UserError, match=r"newer ssd_jax .format 3, this one reads 2.: update"
        ):
            use()
    assert tiny_run.steps_saved(copied) == [2, 4]


def assert_near(result, expected):
    """But for rounding that passes a ReLU's corner or a tie of a pool.

    3e-5 of an array's largest was seen.
    """
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        near = 1e-4 * np.abs(values).max()
        np.testing.assert_allclose(result[name], values, rtol=0, atol=near, err_msg=name)


def test_processes_of_fewer_devices_resume_from_what_eight_saved(tmp_path):
    """Orbax's own layout, a slice of each array from each device; conftest.py has another."""
    config_file = tiny_run.write_config(tmp_path, steps=3, devices=8)
    finish = functools.partial(kill_and_resume.finish, config_file)
    batch = "--config.train.batch_size=8"
    assert finish(tmp_path / "begun", batch, "--config.train.steps=2") == 0
    for devices in (8, 4, 2, 1):
        workdir = shutil.copytree(tmp_path / "begun", tmp_path / str(devices))
        assert finish(workdir, batch, f"--config.train.cpu_devices={devices}") == 2
        assert_near(tiny_run.arrays_of(workdir, 3), tiny_run.arrays_of(tmp_path / "8", 3))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_checkpoint_of_eight_devices_resumes_with_fewer(config, finished, tmp_path, devices):
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "4")
    some = jax.devices()[:devices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: some)
        loop.train(config, workdir)
    assert_near(tiny_run.arrays_of(workdir, 4), tiny_run.arrays_of(finished, 4))
    steps = [
        json.loads(row)["step"] for row in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 4]


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path):
    """A limit on the size of files stands for the disk: the next checkpoint passes it."""
    config_file = tiny_run.write_config(tmp_path, steps=2, devices=1)
    workdir = tmp_path / "run"
    assert kill_and_resume.finish(config_file, workdir, "--profile=1:2") == 0
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    result = subprocess.run(
        [
            "bash",
            "-c",
            f"ulimit -f 300; exec {sys.executable} train.py --config={config_file} "
            f"--workdir={workdir} --config.train.steps=4",
        ],
        cwd=tiny_run.ROOT,
        env={**os.environ, "PYTHONPATH": str(tiny_run.ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "make room" in result.stderr.splitlines()[-1]
    assert tiny_run.steps_saved(workdir)[-1] == 2
    assert kill_and_resume.finish(config_file, workdir, "--config.train.steps=4") == 2


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_asks_to_be_started_again(tmp_path, sent):
    config_file = tiny_run.write_config(tmp_path, steps=1000, devices=1)
    workdir = tmp_path / "run"
    arguments = ("--config.train.checkpoint_every=1000000",)
    process = tiny_run.start_training(config_file, workdir, *arguments)
    rows = workdir / "metrics.csv"
    while not rows.exists() or len(rows.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(sent)
    ((status, stderr),) = tiny_run.ends([process])
    assert time.monotonic() - began < 30
    assert status == errors.TRY_AGAIN
    assert "Traceback" not in stderr
    assert "the same command resumes" in stderr
    (step,) = tiny_run.steps_saved(workdir)
    logged = [
        json.loads(row)["step"] for row in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert logged == list(range(1, step + 1))  # what was done is saved, and no more than that
    with checkpoint.open_manager(workdir) as manager:
        run = manager.restore(step, args=_run_item())["run"]
    assert run["position"] == 4 * step


def _run_item():
    import orbax.checkpoint as ocp

    return ocp.args.Composite(run=ocp.args.JsonRestore())


def python(code):
    return scripts.run("-c", code, timeout=60)


def test_a_second_signal_ends_at_once():
    result = python(
        "import os, signal, time\n"
        "from ssd_jax.training import signals\n"
        "with signals.Stop() as stop:\n"
        "    stop.defer()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(stop.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    assert result.returncode == 128 + signal.SIGINT
    assert result.stdout == "SIGTERM\n"
    assert "Traceback" not in result.stderr


def test_a_second_signal_ends_at_once_what_is_not_pythons():
    """NumPy sorts in one call, and Python runs no handler until it returns."""
    code = (
        "import numpy as np\n"
        "from ssd_jax.training import signals\n"
        "numbers = np.random.default_rng(0).random(50_000_000, np.float32)\n"
        "with signals.Stop() as stop:\n"
        "    stop.defer()\n"
        "    print('sorting', flush=True)\n"
        "    numbers.sort(kind='stable')\n"
        "    print('sorted', flush=True)\n"
    )
    process = tiny_run.start("-c", code)
    assert process.stdout.readline() == "sorting\n"
    for _ in range(2):
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (128 + signal.SIGTERM, "")
    assert stderr == "stopped at once: the last checkpoint counts\n"


def test_before_the_first_step_a_signal_ends_the_run_at_once(config, tmp_path, monkeypatch):
    def prepare(options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(data_lib, "open_splits", prepare)
    with pytest.raises(errors.StoppedError, match="SIGTERM before the first step"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_the_workers_be(tmp_path, sent):
    """As Ctrl-C in a terminal does, and some schedulers."""
    config_file = tiny_run.write_config(tmp_path, steps=1000, devices=1)
    workdir = tmp_path / "run"
    arguments = ("--config.train.checkpoint_every=1000000", "--config.data.workers=1")
    process = tiny_run.start_training(config_file, workdir, *arguments, start_new_session=True)
    rows = workdir / "metrics.csv"
    while not rows.exists() or len(rows.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, sent)
    ((status, stderr),) = tiny_run.ends([process])
    assert status == errors.TRY_AGAIN, stderr
    assert "Traceback" not in stderr
    assert len(tiny_run.steps_saved(workdir)) == 1


def test_what_was_evaluated_is_saved_before_its_report_is_written(config, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.outputs, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "run")
    assert tiny_run.steps_saved(tmp_path / "run") == [2, 4]


def test_handlers_are_as_before_in_the_end():
    before = signal.getsignal(signal.SIGTERM)
    with signals.Stop():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_that_makes_no_step_is_ended():
    result = python(
        "import time\n"
        "from ssd_jax.training import watchdog\n"
        "with watchdog.Watchdog(minutes=1 / 60) as dog:\n"
        "    for _ in range(8):\n"
        "        time.sleep(0.25)\n"
        "        dog.beat()\n"
        "    print('alive', flush=True)\n"
        "    time.sleep(60)\n"
    )
    assert result.returncode == errors.TRY_AGAIN
    assert result.stdout == "alive\n"
    assert "config.train.watchdog_minutes" in result.stderr
    assert "File" in result.stderr  # where it hung


@pytest.mark.parametrize(("minutes", "awake"), [(0, False), (1, True)])
def test_without_minutes_the_watchdog_sleeps(minutes, awake):
    with watchdog.Watchdog(minutes):
        assert any(thread.name == "watchdog" for thread in threading.enumerate()) is awake


def nan_boxes(batches):
    """The stream with a box of the second batch that is no number."""
    for number, batch in enumerate(batches):
        boxes = batch["boxes"].copy()
        if number == 1:
            boxes[0, 0] = np.nan
            batch["labels"][0, 0] = 1
        yield {**batch, "boxes": boxes}


def test_a_step_that_is_not_finite_is_skipped_and_its_images_named(
    config, tmp_path, monkeypatch, warnings_of
):
    original = loader.training_batches
    monkeypatch.setattr(loader, "training_batches", lambda *a, **k: nan_boxes(original(*a, **k)))
    warming = changed(config, warmup_steps=4, learning_rate=4e-4)
    loop.train(changed(warming, "data", augment="flip"), tmp_path / "run")
    (row,) = map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    assert row["step"] == 2
    stream = original(
        (split := data_lib.open_splits(config.data).train).source,
        batch_size=8,
        max_objects=split.max_objects,
        seed=0,
        decoding=loader.Decoding(160),
    )
    positions = [next(stream)["position"] for _ in range(2)][1]
    order = [*loader.epoch_order(12, 0, 0), *loader.epoch_order(12, 0, 1)]
    assert row["images"] == [split.source[order[place]]["name"] for place in positions]
    assert any("step 2 is skipped" in line for line in warnings_of)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    assert [row["skipped"] for row in rows] == [0, 1, 0, 0]
    # What step 2 did not take the next one takes.
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [1e-4, 2e-4, 2e-4, 3e-4], rtol=1e-6)


def test_too_many_in_a_row_end_the_run_with_its_state_kept_apart(config, tmp_path):
    wrong = changed(config, learning_rate=1e30, max_skipped=2, steps=20)
    with pytest.raises(errors.UserError, match="not finite in 2 steps in a row, to step") as caught:
        loop.train(wrong, tmp_path / "run")
    (folder,) = (tmp_path / "run" / guard.FOLDER).iterdir()
    assert str(folder.parent) in str(caught.value)
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(folder.absolute())
    assert set(state) == {"step", "params", "opt_state"}


def test_a_workdir_in_use_is_refused(config, finished):
    with (
        workdir_lib._locked(finished),
        pytest.raises(errors.UserError, match=f"in use by process {os.getpid()} on "),
    ):
        loop.train(config, finished)


def test_a_workdir_of_another_config_is_refused_and_left_alone(config, finished):
    before = {path: path.read_bytes() for path in finished.glob("*.json*")}
    other = changed(config, learning_rate=1e-5, weight_decay=0.0)
    with pytest.raises(errors.UserError) as caught:
        loop.train(other, finished)
    assert "train.learning_rate 0.0001 in the run, 1e-05 in the config" in str(caught.value)
    assert "train.weight_decay 0.0005 in the run, 0.0 in the config" in str(caught.value)
    assert "--change-config" in str(caught.value)
    assert before == {path: path.read_bytes() for path in finished.glob("*.json*")}


@pytest.mark.parametrize(
    "fields", [{}, {"clip_norm": 10.0, "optimizer": "adam", "freeze": ("tiny/conv1",)}], ids=str
)
def test_a_config_can_be_changed_on_demand(config, copied, fields):
    other = changed(config, learning_rate=1e-5, steps=5, **fields)
    loop.train(other, copied, change_config=True)
    assert not (copied / "damaged").exists()
    rows = list(map(json.loads, (copied / "metrics.jsonl").read_text().splitlines()))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4, 5, 5]
    assert [row["learning_rate"] for row in rows if row["step"] == 5 and "loss" in row] == [
        pytest.approx(1e-5)
    ]


def test_a_workdir_that_cannot_be_made_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match=r"--workdir .*file"):
        loop.train(config, tmp_path / "file" / "run")


def test_the_average_of_the_weights_is_saved_evaluated_and_resumed(config, tmp_path, monkeypatch):
    with_average = changed(config, ema_decay=0.9)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    evaluated, original = [], loop.evaluation.evaluate

    def evaluate(detector, *arguments, **options):
        evaluated.append(detector.params)
        return original(detector, *arguments, **options)

    monkeypatch.setattr(loop.evaluation, "evaluate", evaluate)
    loop.train(with_average, whole)
    loop.train(changed(with_average, steps=2), stopped)
    loop.train(with_average, stopped)
    average = load.load_detector(whole / "checkpoints/4").params
    again = load.load_detector(stopped / "checkpoints/4").params
    jax.tree.map(np.testing.assert_array_equal, evaluated[0], average)
    settings, _ = config_files.load(whole / "config.json")
    raw = changed(settings, "eval", ema=False)
    params = load._restore(raw, whole / "checkpoints/4").params
    for one, other, plain in zip(*map(jax.tree.leaves, (average, again, params)), strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.any(np.asarray(one) != np.asarray(plain)) or not np.any(plain)


def test_the_rate_grows_with_the_batch_where_it_is_told_for_which_it_is(config):
    scaled = changed(config, learning_rate=1e-3, base_batch_size=4, steps=10)
    assert float(build.schedule(scaled)(5)) == pytest.approx(2e-3)
    assert float(build.schedule(changed(scaled, base_batch_size=0))(5)) == pytest.approx(1e-3)


def test_a_profile_of_the_steps_that_were_named_is_written(config, tmp_path, capsys):
    loop.train(config, tmp_path / "run", profile=range(2, 4))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    begun = capsys.readouterr().out
    assert "  devices  8 x cpu, shard_map\n" in begun
    assert "    batch  8: 1 a device\n" in begun


def test_a_layout_says_what_a_device_computes_at_a_time():
    options = config_lib.TrainConfig(batch_size=32, accumulate=2)
    mesh = step_lib.make_mesh(jax.devices()[:4])
    assert summary_lib._batch(options, mesh) == "32: 8 a device, 4 at a time"


def test_a_profile_of_other_steps_than_remain_is_one_line(config, copied):
    with pytest.raises(errors.UserError, match="--profile 2:4 traces nothing: no step is still to"):
        loop.train(config, copied, profile=range(2, 4))
    for profile in (range(1, 3), range(5, 9)):
        with pytest.raises(errors.UserError, match="nothing: steps 3 to 4 are still to do"):
            checks.check_profile(profile, 2, 4)
    for profile in (range(0), range(1, 4), range(4, 9)):
        checks.check_profile(profile, 2, 4)


def test_what_is_compiled_is_kept_where_no_variable_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    code = (
        "import sys, jax, train\n"
        "from ssd_jax import cli\n"
        "from ssd_jax.training import loop\n"
        "def shown(*arguments, profile, **options):\n"
        "    print(jax.config.jax_compilation_cache_dir, profile)\n"
        "    sys.exit()\n"
        "loop.train = shown\n"
        "cli.run(train.main)\n"
    )
    config_file = tiny_run.write_config(tmp_path, steps=4, devices=1)
    process = tiny_run.start("-c", code, "--config", config_file, "--profile=2:4")
    stdout, stderr = process.communicate(timeout=120)
    assert stdout == f"{tmp_path / 'cache' / 'compiled'} range(2, 4)\n", stderr


@pytest.mark.parametrize("value", ["3", "3:", "5:3", "a:b"])
def test_a_profile_that_is_no_range_is_one_line(value):
    process = tiny_run.start("train.py", "--config", "configs/quickstart.py", f"--profile={value}")
    ((status, stderr),) = tiny_run.ends([process])
    assert (status, stderr) == (
        2,
        f"error: --profile is {value!r}; it must be START:STOP, for example 10:15\n",
    )


def test_parts_that_do_not_divide_a_devices_images_are_refused(config, tmp_path):
    with pytest.raises(errors.UserError, match=r"accumulate \(3\) must divide the 1 images"):
        loop.train(changed(config, accumulate=3), tmp_path / "run")


def test_nothing_is_written_outside_of_the_workdir(config, tmp_path):
    before = set(Path.cwd().iterdir())
    loop.train(changed(config, steps=1), tmp_path / "run")
    assert set(Path.cwd().iterdir()) == before
