"""Joins several processes and checks that they agree.

The engine is JAX's own. A process that is alone needs none of this, and everything here is then a
plain value.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssd_jax import console, errors

_OWN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Variables with the number of processes of a launcher; JAX reads the rest.
# SLURM_NTASKS would not do: it is also set where the script runs that calls srun, only once.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
_OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"  # where JAX reads the coordinator's address from
_TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # as JAX asks for them
_TPU, _NO_METADATA = "TPU_ML_PLATFORM", "TPU_SKIP_MDS_QUERY"
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # where process 0 listens, if not at the coordinator's port
_LONGER = 60  # seconds that JAX waits more than we do
_PARTING = 10  # seconds that a failing process waits for others that fail with it


def initialize(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
) -> None:
    """Joins the other processes of a run, before JAX initializes its backends.

    Without arguments, SLURM, Open MPI 4 and TPU pods are recognized by what they set in the
    environment, and so are JAX's own `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`; a single process stays alone. Open MPI 5 sets everything but the
    coordinator.

    Args:
      coordinator: `HOST:PORT` of process 0, the same for all.
      num_processes: How many there are.
      process_id: Index of this process, from 0.
      timeout: Seconds to wait for the others; then the process exits with one line and the status
        `errors.TRY_AGAIN`.

    Raises:
      UserError: If the arguments or JAX's variables are not complete, or are no numbers, or the
        coordinator cannot start.
    """
    local = None
    if num_processes is None and process_id is None:
        coordinator, num_processes, process_id, local = _found(coordinator, os.environ)
    _check(coordinator, num_processes, process_id)
    if not coordinator and not _launched_by_many(os.environ):
        return
    if coordinator and process_id == 0 and _BIND not in os.environ:
        _check_port(coordinator)
    # Signals are ours: training/signals.py.
    jax.config.update("jax_enable_preemption_service", False)
    alarm = threading.Timer(timeout, _nobody_came, (coordinator, num_processes, timeout))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator or None,
            num_processes=num_processes,
            process_id=process_id,
            local_device_ids=local,
            initialization_timeout=timeout + _LONGER,
        )
    except (RuntimeError, ValueError) as error:
        raise errors.UserError(
            f"cannot join the other processes at {coordinator or 'their coordinator'}: {error}; "
            f"see that the address is that of process 0, and its port free"
        ) from error
    finally:
        alarm.cancel()
    _connect()


def _check_port(coordinator: str) -> None:
    """Checks the port first, because JAX may crash if it is taken."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise errors.UserError(
            f"process 0 cannot listen at port {port} of --coordinator={coordinator} "
            f"({error.strerror}): give all processes a free one"
        ) from None


def _found(
    coordinator: str, environment: Mapping[str, str]
) -> tuple[str, int | None, int | None, int | None]:
    """Returns coordinator, number of processes, process id and device id; None: JAX finds it."""
    if int(environment.get(_OPEN_MPI[0], "1")) > 1 and (
        coordinator or _OPEN_MPI_4 not in environment
    ):
        count, number, local = (int(environment[name]) for name in _OPEN_MPI)
        address = coordinator or environment.get(_OWN[0], "")
        if not address:
            raise errors.UserError(
                f"Open MPI started {count} processes but sets no address of process 0: "
                f"give --coordinator=HOST:PORT with its host and a free port"
            )
        return address, count, number, local
    if coordinator:
        return coordinator, None, None, None
    return *_own_variables(environment), None


def _own_variables(environment: Mapping[str, str]) -> tuple[str, int | None, int | None]:
    """Returns coordinator, number of processes and process id from JAX's variables, if set.

    With a launcher the coordinator alone may be given; JAX uses it then.
    """
    own = {name: environment.get(name, "") for name in _OWN}
    address, count, number = own.values()
    if not any(own.values()) or (not (count or number) and _launched_by_many(environment)):
        return "", None, None
    if missing := [name for name, value in own.items() if not value]:
        raise errors.UserError(
            f"{', '.join(_OWN)} belong together: set {' and '.join(missing)} too, or none of them"
        )
    if not (count.isdigit() and number.isdigit()):
        raise errors.UserError(f"{_OWN[1]}={count} and {_OWN[2]}={number} must be numbers")
    return address, int(count), int(number)


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
    """Whether the variables of a launcher, or the metadata of a TPU, name several processes."""
    counts = [environment.get(name, "1") for name in _COUNTS]
    hosts = [environment.get(name, "").count(",") + 1 for name in _TPU_HOSTS]
    if max(hosts) > 1 or any(count.isdigit() and int(count) > 1 for count in counts):
        return True
    # JAX sets the first where it finds a TPU, and the second where it finds none.
    return _TPU in environment and _NO_METADATA not in environment and _in_google_pod()


def _in_google_pod() -> bool:
    """Whether Google's metadata server lists several hosts for this TPU."""
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster  # no public function asks it

    try:
        return GceTpuCluster.is_env_present() and GceTpuCluster.get_process_count() > 1
    except (ImportError, OSError, RuntimeError):  # no such server: not a Google TPU VM
        return False


def _nobody_came(coordinator: str, num_processes: int | None, timeout: int) -> None:
    """Ends the process: JAX's client would abort it with a stack of C++, and can't be caught."""
    console.error(
        f"the {num_processes or 'other'} processes did not meet at "
        f"{coordinator or 'their coordinator'} within {timeout} s: see that all of them run, "
        f"process 0 there, and that its port is open; the same command tries again"
    )
    sys.stderr.flush()
    os._exit(errors.TRY_AGAIN)


def _connect() -> None:
    """Opens the ways between the devices while the processes are together.

    A backend opens them at first use, and gives up on a process that arrives later (over
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
    """Waits until every process has arrived.

    Args:
      where: A name for the place, the same in all of them.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def all_true(value: bool) -> bool:
    """Whether a value is true in every process; each of them has to ask."""
    return bool(np.all(gather(np.array(value))))


def any_true(value: bool) -> bool:
    """Whether a value is true in some process; each of them has to ask."""
    return not all_true(not value)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """All processes have to enter this `with` block: a mistake found by one ends all of them.

    Raises:
      UserError: In a process that found one, its own; in the others, that of the first.
    """
    mistake = None
    try:
        yield
    except errors.UserError as error:
        mistake = error
    found = {k: text for k, text in enumerate(_gather_text(str(mistake or ""))) if text}
    if mistake:
        raise mistake
    for process, text in found.items():
        raise errors.UserError(f"in process {process}: {text}")


def gather(values: Any) -> Any:
    """Stacks values of the processes along a new first axis.

    Args:
      values: Tree of NumPy arrays, of the same shapes and types in each process.
    """
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: np.asarray(x)[None], values)
    return multihost_utils.process_allgather(values)


def check_same(texts: Sequence[str]) -> None:
    """Checks that all processes have the same lines of text, for example of their config.

    Args:
      texts: The lines of this one.

    Raises:
      UserError: Naming the first line that differs, and the processes where it does.
    """
    others = [text.split("\n") for text in _gather_text("\n".join(texts))]
    for number, line in enumerate(others[0]):
        differing = [k for k, lines in enumerate(others) if lines[number : number + 1] != [line]]
        if differing:
            there = others[differing[0]][number : number + 1]
            raise errors.UserError(
                f"the processes differ: {line!r} in process 0, {' '.join(there)!r} in process "
                f"{differing[0]}; start them all with the same command and data"
            )


def leave(status: int) -> NoReturn:
    """Exits this process soon after a failure: JAX would wait five minutes for the others.

    Those that fail at the same time end together, without a word of the coordinator's absence.
    """
    if not jax.distributed.is_initialized():
        sys.exit(status)
    parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    parting.start()
    parting.join(_PARTING)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _gather_text(text: str) -> list[str]:
    """The text of each process, without zeros at its end."""
    data = text.encode()
    length = int(np.max(gather(np.array(len(data)))))
    rows = gather(np.frombuffer(data.ljust(length, b"\0"), np.uint8))
    return [bytes(row).rstrip(b"\0").decode() for row in rows]
