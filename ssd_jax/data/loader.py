"""Fixed-size batches from records: decode on threads, pad, stack.

The training stream is infinite and a pure function of (seed, position): position `n` holds the same
image whatever the batch size, the number of threads, workers and processes, so a run resumes
by asking for the stream from `step * batch_size` on.
"""

import atexit
import collections
import contextlib
import errno
import functools
import multiprocessing
import os
import re
import signal
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing import resource_tracker, shared_memory
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from ssd_jax import errors
from ssd_jax.data import images

Batch = dict[str, Any]  # of arrays, see training_batches

HELD_BACK = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
"""Signals to a whole group of processes that workers never get, those that training saves at."""

_ENDLESS = 1 << 40  # batches
_ALIVE = 5  # batches of each worker at a time: being made, waiting twice, being read, in use
_SHM = "/dev/shm"
_MORE_SHM = (
    "give the container more (docker run --shm-size=8g), or set --config.data.workers=0 or fewer"
)


class Source(Protocol):
    """Records by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Pool:
    """Memory for arrays that come and go: new pages cost a batch a sixth of its time."""

    def __init__(self) -> None:
        self._free: collections.deque[np.ndarray] = collections.deque()

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """A uint8 array, not filled; when it and all its views are gone, its memory serves again.

        Args:
          shape: The same in every call to one pool.
        """
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(shape, np.uint8)
        return np.asarray(_Lease(memory, self._free))


class _Lease:
    """Owns an array's memory for NumPy, and gives it back to the pool in the end."""

    def __init__(self, memory: np.ndarray, free: collections.deque[np.ndarray]):
        self.__array_interface__ = memory.__array_interface__
        self._memory = memory
        self._free = free

    def __del__(self) -> None:
        self._free.append(self._memory)


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch goes through the records.

    Args:
      count: How many records there are.
      seed: Of the run.
      epoch: From 0.

    Returns:
      `[count]` int64, a permutation; read-only, for it is shared.
    """
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.flags.writeable = False
    return order


def training_batches(
    source: Source,
    *,
    batch_size: int,
    canvas: int,
    max_objects: int,
    seed: int,
    start: int = 0,
    difficult: bool = True,
    process: int = 0,
    processes: int = 1,
    threads: int = 4,
    workers: int = 0,
    max_megapixels: float = images.MAX_MEGAPIXELS,
) -> Iterator[Batch]:
    """Endless shuffled batches of this process, each epoch in an order of its own.

    Args:
      source: Records as `datasets.load` gives them.
      batch_size: Global batch size B; this process gets `batch_size / processes` of each batch.
      canvas: Side of the square canvas in pixels; larger images are shrunk to it.
      max_objects: G, rows that boxes are padded to.
      seed: Of the order.
      start: Position in the stream, in images, to begin at.
      difficult: Keep objects that are marked difficult; crowds, of COCO, and objects without area
        are always left out.
      process: Index of this process.
      processes: Number of processes.
      threads: That decode, a batch each; as many batches lie ready. 0: in the caller's thread.
      workers: Processes that share the decoding, each with `threads`; 0: this process decodes.
      max_megapixels: As of `images.decode`.

    Returns:
      An iterator of batches: `image` `[b, canvas, canvas, 3]` uint8; `valid_size` `[b, 2]` float32
      (height, width) of the image on the canvas; `boxes` `[b, G, 4]` float32 corners in [0, 1];
      `labels` `[b, G]` int32, 0 is padding; `position` `[b]` int32 in the stream.

    Raises:
      ValueError: If the processes do not divide the batch.
      UserError: While iterating, if an image does not decode.
      MachineError: At once or while iterating, if the workers lack memory.
    """
    if batch_size % processes:
        raise ValueError(f"batch_size ({batch_size}) must be divisible by {processes} processes")

    rows = batch_size // processes
    pool = Pool()

    def batch(number: int) -> Batch:
        first = start + number * batch_size + process
        positions = np.arange(first, first + batch_size, processes, dtype=np.int32)
        made = {
            **_blank(rows, canvas, pool),
            "boxes": np.zeros((rows, max_objects, 4), np.float32),
            "labels": np.zeros((rows, max_objects), np.int32),
            "position": positions,
        }
        records = [_record_at(source, position, seed) for position in positions.tolist()]
        for row, record in enumerate(records):
            _draw(record, made, row, max_megapixels)
            keep = trained_on(record, difficult=difficult)
            count = np.count_nonzero(keep)
            made["boxes"][row, :count] = record["boxes"][keep]
            made["labels"][row, :count] = record["labels"][keep]
        return made

    batches = grain.MapDataset.range(_ENDLESS).map(batch)
    if not workers:
        return _iterate(batches, threads)
    _check_shared_memory(workers * _ALIVE * rows * canvas * canvas * 3)
    return _Workers(batches, threads, workers)


def trained_on(record: Mapping[str, Any], *, difficult: bool) -> np.ndarray:
    """`[N]` bool: the objects of a record that training takes, crowds and degenerate ones never.

    Args:
      record: As `datasets.load` gives them.
      difficult: Keep objects that are marked difficult.
    """
    return (difficult | ~record["difficult"]) & ~record["crowd"] & ~record["degenerate"]


def check_objects(source: Source, *, difficult: bool, split: str) -> None:
    """Makes sure that there is something to learn from; reads no further than the first object.

    Args:
      source: Records as `datasets.load` gives them.
      difficult: Whether training takes objects that are marked difficult.
      split: What an error calls them.

    Raises:
      UserError: Training would take no object of any record.
    """
    left_out = 0
    for index in range(len(source)):
        keep = trained_on(source[index], difficult=difficult)
        if keep.any():
            return
        left_out += len(keep)
    kinds = "crowds or without area" if difficult else "crowds, difficult or without area"
    why = f"; its {left_out} objects are {kinds}, which training leaves out" if left_out else ""
    raise errors.UserError(
        f"{split}: none of its {len(source)} images has an object to train on{why}; correct the "
        "annotations, or name another split"
    )


def names(source: Source, *, positions: Iterable[int], seed: int) -> list[str]:
    """Names of the images that a training stream holds at some positions.

    Args:
      source: Records as `datasets.load` gives them.
      positions: In the stream, in images, from 0.
      seed: Of the order.
    """
    records = (_record_at(source, position, seed) for position in positions)
    return [record["name"] for record in records]


def evaluation_batches(
    source: Source,
    *,
    count: int,
    batch_size: int,
    canvas: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 4,
    max_megapixels: float = images.MAX_MEGAPIXELS,
) -> Iterator[Batch]:
    """The first `count` records once, in order; the last batch is filled up with black images.

    Of several processes each has its own share, every `processes`-th record, in as many batches.

    Args:
      source: Records as `datasets.load` gives them.
      count: How many of them.
      batch_size: B.
      canvas: Side of the square canvas in pixels; larger images are shrunk to it.
      process: Index of this process.
      processes: Number of processes.
      threads: That decode, a batch each; as many batches lie ready.
      max_megapixels: As of `images.decode`.

    Returns:
      An iterator of batches: `image` and `valid_size` as in `training_batches`, `index` `[B]` int32
      into `source`, -1 where a row only fills up.

    Raises:
      UserError: While iterating, if an image does not decode.
    """
    pool = Pool()

    def batch(number: int) -> Batch:
        rows = np.arange(number * batch_size, (number + 1) * batch_size, dtype=np.int32)
        index = rows * processes + process
        index[index >= count] = -1
        made = {**_blank(batch_size, canvas, pool), "index": index}
        for row in np.flatnonzero(index >= 0).tolist():
            _draw(source[int(index[row])], made, row, max_megapixels)
        made["image"][index < 0] = 0
        return made

    share = -(-count // processes)
    return _iterate(grain.MapDataset.range(-(-share // batch_size)).map(batch), threads)


def _record_at(source: Source, position: int, seed: int) -> Mapping[str, Any]:
    epoch, place = divmod(position, len(source))
    return source[epoch_order(len(source), seed, epoch)[place]]


def _iterate(batches: grain.MapDataset, threads: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(batches.to_iter_dataset(options))


class _Workers:
    """Batches that worker processes make, which hand them over in shared memory.

    No name of a block of it outlives the batch's coming, so that none is left behind, however this
    process ends: the memory goes with the last array.
    """

    def __init__(self, batches: grain.MapDataset, threads: int, workers: int):
        """Starts the workers.

        Raises:
          MachineError: As `__next__`.
        """
        if not flags.FLAGS.is_parsed():  # grain reads absl's flags, which a notebook never parses
            flags.FLAGS.mark_as_parsed()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        shared = grain.MultiprocessingOptions(num_workers=workers)
        prefetched = batches.to_iter_dataset(options).mp_prefetch(shared, _end_with_parent)
        with _signals_held_back():
            self._iterators = [iter(prefetched)]
            self._waiting = [self._next()]  # the first starts the workers
        self._ending = weakref.finalize(self, _end, self._iterators)
        self._ending.atexit = False
        # Before multiprocessing ends what grain gives memory back with: the last comes first.
        atexit.register(self._ending)

    def __iter__(self) -> "_Workers":
        return self

    def __next__(self) -> Batch:
        """The next batch; not to be called after `close`.

        Raises:
          MachineError: The machine has ended a worker, or lacks shared memory.
          UserError: An image does not decode.
        """
        return self._waiting.pop() if self._waiting else self._next()

    def close(self) -> None:
        """Ends the workers."""
        self._ending()

    def _next(self) -> Batch:
        try:
            batch = next(self._iterators[0])
        except (RuntimeError, OSError) as error:
            trouble = _trouble_of_workers(error)
            if trouble is None:
                raise
            raise trouble from error
        for array in batch.values():
            _forget_name(array)
        return batch


def _end(iterators: list[grain.DatasetIterator]) -> None:
    """Closes an iterator and lets it go, while there is still all that it needs for that."""
    while iterators:
        iterators.pop().close()


def _forget_name(array: np.ndarray) -> None:
    """Removes the name of an array's shared memory, which it alone needs from now on."""
    memory = getattr(array, "shm", None)
    if isinstance(memory, shared_memory.SharedMemory):
        memory.unlink()
        setattr(memory, "unlink", lambda: None)  # noqa: B010  # for grain, when the array goes


def _trouble_of_workers(error: Exception) -> errors.MachineError | None:
    """What the machine has to do with what stopped the workers; None: nothing."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return errors.MachineError(f"{_SHM} is full: {_MORE_SHM}")
    status = re.search(r"exit code (-?\d+)", str(error))
    number = -int(status[1]) if status else 0
    if number == signal.SIGBUS:  # what a write to memory that is not there gives
        return errors.MachineError(f"{_SHM} is full: {_MORE_SHM}")
    if number == signal.SIGKILL:
        return errors.MachineError(
            "a worker of config.data.workers was killed, as the system does when memory runs out: "
            "free memory, or set --config.data.workers=0"
        )
    return errors.of_machine(error) if errors.is_of_machine(error) else None


def _check_shared_memory(needed: int) -> None:
    """Refuses to start workers that would die of the first few batches."""
    try:
        found = os.statvfs(_SHM)
    except OSError:  # another system's is elsewhere
        return
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise errors.MachineError(
            f"{_SHM} has {free >> 20} MB free, and the batches of config.data.workers need "
            f"{-(-needed >> 20)} MB: {_MORE_SHM}"
        )


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """What is started within its `with` never gets what a scheduler or Ctrl-C sends to all.

    They are for the process that saves the state, and needs its workers until then.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        resource_tracker.ensure_running()  # it lets some in again in the thread that starts it
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _end_with_parent(worker: int, workers: int) -> None:
    """Called in a worker: it would go on for ever without the process that it works for."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _blank(rows: int, canvas: int, pool: Pool) -> Batch:
    """Room for the images of a batch, not yet filled."""
    return {
        "image": pool.empty((rows, canvas, canvas, 3)),
        "valid_size": np.full((rows, 2), canvas, np.float32),
    }


def _draw(record: Mapping[str, Any], batch: Batch, row: int, max_megapixels: float) -> None:
    """Decodes an image to its place in a batch."""
    canvas = batch["image"][row]
    image = images.decode(
        record["image"],
        name=record["name"],
        fit=canvas.shape[:2],
        into=canvas,
        max_megapixels=max_megapixels,
    )
    images.put(image, canvas)
    batch["valid_size"][row] = image.shape[:2]
