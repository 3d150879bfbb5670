"""Several processes as one: joining them, and what they have to agree on.

The engine is JAX's own. A process that is alone needs none of this, and everything here is then a
plain value.
"""

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssd_jax import errors

_OWN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# What tells that the launcher started more than one process, and how many; JAX reads the rest.
# SLURM_NTASKS would not do: it is also set where the script runs that calls srun, only once.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_LONGER = 60  # seconds that JAX waits more than we do
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"


def initialize(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
) -> None:
    """Joins the other processes of a run, before JAX looks for devices.

    Without arguments, SLURM, Open MPI and TPU pods are recognised by what they set in the
    environment, and so are JAX's own `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`; a process that was started alone stays alone.

    Args:
      coordinator: `HOST:PORT` of process 0, the same for all.
      num_processes: How many there are.
      process_id: Of this one, from 0.
      timeout: Seconds to wait for the others; then the process ends with one line and status 2.

    Raises:
      UserError: If the arguments are not complete, or JAX's variables are no numbers.
    """
    own = [os.environ.get(name, "") for name in _OWN]
    if all(own) and not coordinator:
        if not (own[1].isdigit() and own[2].isdigit()):
            raise errors.UserError(f"{_OWN[1]}={own[1]} and {_OWN[2]}={own[2]} must be numbers")
        coordinator, num_processes, process_id = own[0], int(own[1]), int(own[2])
    _check(coordinator, num_processes, process_id)
    if not coordinator and not _launched_by_many(os.environ):
        return
    # Signals are ours: training/signals.py.
    jax.config.update("jax_enable_preemption_service", False)
    alarm = threading.Timer(timeout, _nobody_came, (coordinator, num_processes, timeout))
    alarm.daemon = True
    alarm.start()
    jax.distributed.initialize(
        coordinator_address=coordinator or None,
        num_processes=num_processes,
        process_id=process_id,
        initialization_timeout=timeout + _LONGER,
    )
    alarm.cancel()
    _connect()


def _check(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    given = [bool(coordinator), num_processes is not None, process_id is not None]
    if any(given) and not all(given):
        raise errors.UserError(
            "--coordinator, --num-processes and --process-id belong together: give all three"
        )
    if num_processes is None or process_id is None:
        return
    if ":" not in coordinator or not coordinator.rpartition(":")[2].isdigit():
        raise errors.UserError(f"--coordinator is {coordinator!r}; it must be HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise errors.UserError(
            f"--process-id is {process_id}; of {num_processes} processes it is 0 to "
            f"{num_processes - 1}"
        )


def _launched_by_many(environment: Mapping[str, str]) -> bool:
    """Whether a launcher's variables tell of more than one process."""
    counts = [environment.get(name, "1") for name in _COUNTS]
    hosts = environment.get(_TPU_HOSTS, "").count(",") + 1
    return hosts > 1 or any(count.isdigit() and int(count) > 1 for count in counts)


def _nobody_came(coordinator: str, num_processes: int | None, timeout: int) -> None:
    """Ends the process: JAX's client would abort it with a stack of C++, and can't be caught."""
    sys.stderr.write(
        f"error: the {num_processes or 'other'} processes did not meet at "
        f"{coordinator or 'their coordinator'} within {timeout} s: see that all of them run, "
        f"process 0 there, and that its port is open\n"
    )
    sys.stderr.flush()
    os._exit(2)


def _connect() -> None:
    """Opens the ways between the devices while the processes are together.

    A backend opens them where they are first used, and gives up on a process that comes later (over
    gloo by 30 s, less than a compilation may take); once open, they wait.
    """
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("devices",), ()))
    ones = jax.make_array_from_callback((mesh.size,), split, lambda index: np.ones(1, np.int32))
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=whole)(ones))
    gather(np.zeros(1, np.int32))


def is_primary() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Waits until every process is there.

    Args:
      where: A name for the place, the same in all of them.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def all_true(value: bool) -> bool:
    """Whether a value is true in every process; each of them has to ask."""
    return bool(np.all(gather(np.array(value))))


def gather(values: Any) -> Any:
    """Stacks what the processes have along a new first axis, one row for each.

    Args:
      values: Tree of NumPy arrays, of the same shapes and types in each process.
    """
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: np.asarray(x)[None], values)
    return multihost_utils.process_allgather(values)


def check_same(texts: Sequence[str]) -> None:
    """Makes sure that every process has the same lines of text, say, of its config.

    Args:
      texts: The lines of this one.

    Raises:
      UserError: Naming the first line that differs, and the processes where it does.
    """
    data = "\n".join(texts).encode()
    length = int(np.max(gather(np.array(len(data)))))
    rows = gather(np.frombuffer(data.ljust(length, b"\n"), np.uint8))
    others = [bytes(row).decode().split("\n") for row in rows]
    for number, line in enumerate(others[0]):
        differing = [k for k, lines in enumerate(others) if lines[number : number + 1] != [line]]
        if differing:
            there = others[differing[0]][number : number + 1]
            raise errors.UserError(
                f"the processes differ: {line!r} in process 0, {' '.join(there)!r} in process "
                f"{differing[0]}; start them all with the same command and data"
            )
