"""Several processes on this machine, joined over gloo, as machines are over a network."""

import dataclasses
import json
import re
import signal
import socket
import types

import jax
import numpy as np
import pytest
import tiny_run
import train_worker
from jax._src.clusters import cloud_tpu_cluster
from tiny_run import arrays_of, assert_same, ends, start, start_training, wait_for_checkpoint

from ssd_jax import config as config_lib
from ssd_jax import distributed, errors
from ssd_jax.evaluation import evaluated, run
from ssd_jax.training import workdir as workdir_lib


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    return tiny_run.write_config(tmp_path_factory.mktemp("config"), steps=6, devices=2)


def start_two(config_file, workdir, *, of_each=((), ())):
    port = free_port()
    return [
        start_training(
            config_file,
            workdir,
            f"--coordinator=127.0.0.1:{port}",
            "--num-processes=2",
            f"--process-id={number}",
            *of_each[number],
        )
        for number in range(2)
    ]


@pytest.mark.slow
def test_any_split_over_devices_and_processes_gives_the_same_parameters(tmp_path):
    before, expected = train_worker.run(jax.devices()[:1])
    moved = {name: np.abs(expected[name] - before[name]).max() for name in expected}
    assert max(moved.values()) > 1e-5  # an average in place of a sum would show in all digits
    results = {}
    for devices in (2, 4, 8):
        results[f"{devices} devices"] = train_worker.run(jax.devices()[:devices])[1]
    for parallel in ("shard_map", "pmap"):
        out = tmp_path / f"{parallel}.npz"
        port = free_port()
        processes = [
            start("tests/train_worker.py", port, 2, number, 2, parallel, out) for number in range(2)
        ]
        assert [status for status, _ in ends(processes)] == [0, 0]
        with np.load(out) as arrays:
            results[f"{parallel}, 2 processes of 2 devices"] = dict(arrays)
    for what, result in results.items():
        for name, values in expected.items():
            # Where gradients are small, 1e-6 is more than what the steps have moved.
            near = min(1e-6, 0.02 * moved[name] + np.spacing(np.abs(values).max()))
            np.testing.assert_allclose(
                result[name], values, rtol=0, atol=near, err_msg=f"{what}: {name}"
            )


@pytest.fixture(scope="module")
def whole(config_file, tmp_path_factory):
    """The workdir of a run of two processes that went to its end in one go."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    for status, stderr in ends(start_two(config_file, workdir)):
        assert status == 0, stderr
    return workdir


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(config_file, whole):
    shared, of_two = json.loads((whole / "evaluation.json").read_text()), evaluated.load(whole)
    (status, stderr), *_ = ends([start("evaluate.py", "--config", config_file, "--workdir", whole)])
    assert status == 0, stderr
    alone, of_one = json.loads((whole / "evaluation.json").read_text()), evaluated.load(whole)
    assert shared["images"] == alone["images"] == 7  # shares of 4 and 3
    for name in ("mean_ap_voc07", "mean_ap_area"):
        assert shared[name] == pytest.approx(alone[name], abs=1e-6)
    assert shared["coco"] == pytest.approx(alone["coco"], abs=1e-6)
    assert of_two.detections.keys() == of_one.detections.keys()
    for name, columns in of_one.detections.items():
        for found, expected in zip(of_two.detections[name], columns, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3, err_msg=name)


def test_processes_look_equally_often_for_a_signal_while_they_evaluate(monkeypatch):
    """9 images are shares of 5 and 4, which with 4 in a batch are still two batches each."""
    settings = config_lib.Config()
    settings.eval = dataclasses.replace(settings.eval, batch_size=4)
    detector = types.SimpleNamespace(config=settings, predict_batches=list)
    split = types.SimpleNamespace(source=train_worker.records())
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    looked = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        batches = run.raw_detections(
            detector, split, count=9, on_batch=lambda process=process: looked.append(process)
        )
        assert sum((batch["index"] >= 0).sum() for batch in batches) == (5, 4)[process]
    assert looked == [0, 0, 1, 1]


@pytest.mark.slow
def test_one_process_writes_and_each_step_stands_once(whole):
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]
    assert len(list(whole.glob("events.out.tfevents.*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_process_ends_all_at_the_same_step(config_file, whole, tmp_path, told):
    workdir = tmp_path / "run"
    processes = start_two(config_file, workdir)
    wait_for_checkpoint(workdir, 1, processes)
    processes[told].send_signal(signal.SIGTERM)
    for status, stderr in ends(processes):
        assert status == errors.TRY_AGAIN, stderr
        assert "Traceback" not in stderr
    for status, stderr in ends(start_two(config_file, workdir)):
        assert status == 0, stderr
    assert_same(arrays_of(workdir, 6), arrays_of(whole, 6))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_run_resumes(
    config_file, whole, tmp_path, killed
):
    workdir = tmp_path / "run"
    processes = start_two(config_file, workdir)
    wait_for_checkpoint(workdir, 2, processes)
    processes[killed].kill()
    other = ends(processes, timeout=120)[1 - killed]
    assert other[0] not in (0, 2, None), other[1]
    for status, stderr in ends(start_two(config_file, workdir)):
        assert status == 0, stderr
    assert_same(arrays_of(workdir, 6), arrays_of(whole, 6))


@pytest.mark.slow
def test_where_one_process_hangs_the_others_end(config_file, whole, tmp_path):
    endless = ("--config.train.steps=1000000", "--config.train.watchdog_minutes=1")
    processes = start_two(config_file, tmp_path / "run", of_each=(endless, endless))
    try:
        wait_for_checkpoint(tmp_path / "run", 1, processes)
        processes[1].send_signal(signal.SIGSTOP)
        processes[0].wait(timeout=180)
    finally:
        processes[1].kill()
        (status, stderr), _ = ends(processes)
    assert status == errors.TRY_AGAIN, stderr
    assert "no step in 1 minutes" in stderr


def end_with_one_line(processes):
    """The last line of each, which has to come long before JAX gives up on the others."""
    lines = []
    for status, stderr in ends(processes, timeout=120):
        assert status == 2, stderr
        assert "Traceback" not in stderr
        lines.append(stderr.splitlines()[-1])
    return lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"), [("learning_rate", "0.5"), ("batch_size", "6"), ("accumulate", "4")]
)
def test_processes_with_different_configs_are_told_which_field(config_file, tmp_path, field, value):
    different = ((), (f"--config.train.{field}={value}",))
    for line in end_with_one_line(start_two(config_file, tmp_path / "run", of_each=different)):
        assert re.search(rf"the processes differ: .*{field}.* in process 0", line)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_one_process_finds_wrong_ends_all(config_file, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with workdir_lib._locked(workdir):
        first, second = end_with_one_line(start_two(config_file, workdir))
    assert first.startswith(f"error: {workdir} is in use by process ")
    assert second == first.replace("error: ", "error: in process 0: ")


_ALONE = """
import sys, time
from ssd_jax import cli, distributed, errors

def main(argv):
    port, process = int(argv[1]), int(argv[2])
    distributed.initialize(f"127.0.0.1:{port}", 2, process, timeout=60)
    if process == 1:
        raise errors.UserError("of this one alone")
    distributed.gather(0)

cli.run(main)
"""


@pytest.mark.slow
def test_a_mistake_that_the_others_cannot_know_ends_its_process_soon():
    processes = [start("-c", _ALONE, port, number) for port in [free_port()] for number in range(2)]
    try:
        processes[1].wait(timeout=60)
    finally:
        processes[0].kill()
        _, (status, stderr) = ends(processes)
    assert (status, stderr.splitlines()[-1]) == (2, "error: of this one alone")


def test_a_workdir_that_another_machine_has_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lib, "_UNSEEN", 0)
    with pytest.raises(errors.UserError, match=r"does not see the config.json that process 0 wrot"):
        workdir_lib._check_seen(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{}")
    workdir_lib._check_seen(tmp_path / "config.json")


_LATE = """
import sys, time
import jax
import numpy as np
from ssd_jax import distributed
from ssd_jax.training import step

port, process = map(int, sys.argv[1:])
jax.config.update("jax_num_cpu_devices", 2)
distributed.initialize(f"127.0.0.1:{port}", 2, process, timeout=120)
time.sleep(70 * process)
mesh = step.make_mesh()
mine = {"x": np.full(2, process + 1.0, np.float32)}
split = step.shard_batch(mine, mesh)["x"]
total = jax.jit(lambda x: x.sum(), out_shardings=step.replicated(mesh))(split)
print(float(total), distributed.gather(np.array(process)).tolist())
"""


@pytest.mark.slow
def test_a_process_that_compiles_for_longer_is_waited_for():
    port = free_port()
    processes = [start("-c", _LATE, port, number) for number in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [out.splitlines()[-1:] for out, _ in said] == [["6.0 [0, 1]"]] * 2, said


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer_is_one_line(config_file, tmp_path):
    (status, stderr), *_ = ends(
        [
            start_training(
                config_file,
                tmp_path / "run",
                f"--coordinator=127.0.0.1:{free_port()}",
                "--num-processes=2",
                "--process-id=1",
                "--coordinator-timeout=3",
            )
        ]
    )
    assert status == errors.TRY_AGAIN
    assert stderr.splitlines()[-1].startswith("error: the 2 processes did not meet at 127.0.0.1:")
    assert "Traceback" not in stderr


def test_a_port_in_use_is_one_line():
    with socket.socket() as used:
        used.bind(("0.0.0.0", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(errors.UserError, match=f"cannot listen at port {port} of --coordin"):
            distributed.initialize(f"127.0.0.1:{port}", 2, 0)


def test_what_jax_cannot_join_is_one_line(monkeypatch):
    def fail(**given):
        raise RuntimeError("Failed to start RPC server")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(errors.UserError, match=r"at host:1: Failed to start RPC server; see that"):
        distributed.initialize("host:1", 2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 2, None), "belong together"),
        (("host:1", None, 0), "belong together"),
        (("host", 2, 0), "--coordinator is 'host'; it must be HOST:PORT"),
        (("host:1", 2, 2), "--process-id is 2; of 2 processes it is 0 to 1"),
    ],
)
def test_what_cannot_be_joined_is_one_line(arguments, message):
    with pytest.raises(errors.UserError, match=message):
        distributed.initialize(*arguments)


@pytest.mark.parametrize(
    ("variables", "many"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "7"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "7"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_launchers_are_known_by_their_variables(variables, many):
    assert distributed._launched_by_many(variables) is many


@pytest.mark.parametrize(
    ("present", "hosts", "variables", "many"),
    [
        (True, 2, {"TPU_ML_PLATFORM": "JAX"}, True),
        (True, 1, {"TPU_ML_PLATFORM": "JAX"}, False),
        (False, 2, {"TPU_ML_PLATFORM": "JAX"}, False),
        (True, 2, {"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        (True, 2, {}, False),
    ],
)
def test_a_tpu_pod_is_known_by_the_metadata_of_its_machine(
    monkeypatch, present, hosts, variables, many
):
    monkeypatch.setattr(cloud_tpu_cluster.GceTpuCluster, "is_env_present", lambda: present)
    monkeypatch.setattr(cloud_tpu_cluster.GceTpuCluster, "get_process_count", lambda: hosts)
    assert distributed._launched_by_many(variables) is many


@pytest.fixture
def joined(monkeypatch):
    """What JAX is asked to join."""
    asked = types.SimpleNamespace()
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: vars(asked).update(given))
    monkeypatch.setattr(distributed, "_connect", lambda: None)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    return asked


@pytest.mark.parametrize("of_jax", [False, True])
def test_open_mpi_5_needs_the_coordinator_only(monkeypatch, joined, of_jax):
    for name, value in zip(distributed._OPEN_MPI, "830", strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.UserError, match=r"started 8 processes .* give --coordinator="):
        distributed.initialize()
    if of_jax:
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    distributed.initialize("" if of_jax else "host:1")
    assert joined.coordinator_address == "host:1"
    assert (joined.num_processes, joined.process_id, joined.local_device_ids) == (8, 3, 0)


def test_open_mpi_4_is_left_to_jax(monkeypatch, joined):
    for name, value in zip(distributed._OPEN_MPI, "830", strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "4096.0;tcp://10.0.0.1:34911")
    distributed.initialize()
    assert (joined.coordinator_address, joined.num_processes, joined.process_id) == (None,) * 3


@pytest.mark.parametrize("missing", distributed._OWN)
def test_some_of_the_variables_are_too_few(monkeypatch, missing):
    for name, value in zip(distributed._OWN, ("host:1", "2", "0"), strict=True):
        if name != missing:
            monkeypatch.setenv(name, value)
    with pytest.raises(errors.UserError, match=f"belong together: set {missing} too"):
        distributed.initialize()


def test_variables_that_are_no_numbers_are_one_line(monkeypatch):
    for name, value in zip(distributed._OWN, ("host:1", "two", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.UserError, match="JAX_NUM_PROCESSES=two and JAX_PROCESS_ID=0 must"):
        distributed.initialize()


def test_alone_everything_is_a_plain_value():
    distributed.initialize()
    assert distributed.is_primary()
    assert distributed.all_true(True)
    assert not distributed.all_true(False)
    distributed.check_same(["anything"])
    np.testing.assert_array_equal(distributed.gather(np.arange(3)), [[0, 1, 2]])
