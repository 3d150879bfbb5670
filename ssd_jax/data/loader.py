"""Fixed-size batches from records: decode on threads, pad, stack.

The training stream is infinite and a pure function of (seed, position): position `n` holds the same
image for any batch size and any number of threads, workers and processes, so a run resumes by
starting the stream at `step * batch_size`.
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
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from absl import flags

from ssd_jax import errors
from ssd_jax.data import images

Batch = dict[str, Any]  # of arrays, see training_batches

HELD_BACK = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
"""Signals at which training saves its state; they are blocked in the worker processes."""

_ENDLESS = 1 << 40  # batches
_ALIVE = 5  # batches of each worker at a time: one being made, two queued, one read, one in use
_SHM = "/dev/shm"
_MORE_SHM = (
    "give the container more (docker run --shm-size=8g), or set --config.data.workers=0 or fewer"
)


class Source(Protocol):
    """Records by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Decoding(NamedTuple):
    """How images are decoded.

    Attributes:
      canvas: Side of the square canvas in pixels; larger images are shrunk to fit.
      threads: Decoding threads, one batch each; as many batches are prefetched. 0 decodes in the
        caller's thread.
      workers: Decoding processes, each with `threads` threads; 0 decodes in this process.
        Evaluation always does.
      max_megapixels: Larger images are rejected, see `images.decode`.
    """

    canvas: int
    threads: int = 4
    workers: int = 0
    max_megapixels: float = images.MAX_MEGAPIXELS


class Shard(NamedTuple):
    """The part of the data that one of several processes reads.

    Attributes:
      process: Index of this process.
      processes: Number of processes.
    """

    process: int = 0
    processes: int = 1


ALL = Shard()
"""The shard of the only process."""


class Pool:
    """Recycles the memory of batches: allocating new pages takes a sixth of a batch's time."""

    def __init__(self) -> None:
        self._free: collections.deque[np.ndarray] = collections.deque()

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an uninitialized uint8 array; its memory is reused once no view of it is left.

        Args:
          shape: Shape of the array, the same in every call to one pool.
        """
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(shape, np.uint8)
        return np.asarray(_Lease(memory, self._free))


class _Lease:
    """Owns the memory of an array and returns it to the pool when the array is deleted."""

    def __init__(self, memory: np.ndarray, free: collections.deque[np.ndarray]):
        self.__array_interface__ = memory.__array_interface__
        self._memory = memory
        self._free = free

    def __del__(self) -> None:
        self._free.append(self._memory)


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of the records in an epoch.

    Args:
      count: Number of records.
      seed: Seed of the run.
      epoch: Index of the epoch, from 0.

    Returns:
      `[count]` int64 permutation, read-only because callers share it.
    """
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.flags.writeable = False
    return order


def training_batches(
    source: Source,
    *,
    batch_size: int,
    max_objects: int,
    seed: int,
    decoding: Decoding,
    start: int = 0,
    difficult: bool = True,
    shard: Shard = ALL,
) -> Iterator[Batch]:
    """Returns the endless shuffled batches of this process; every epoch has its own order.

    Args:
      source: Records as `datasets.load` returns them.
      batch_size: Global batch size B; this process gets `batch_size / processes` of each batch.
      max_objects: Number of rows G that boxes are padded to.
      seed: Seed of the order.
      decoding: How images are decoded.
      start: Position in the stream, in images, of the first batch.
      difficult: Keep objects that are marked difficult; COCO's crowds and objects without area are
        always left out.
      shard: The shard of this process.

    Returns:
      An iterator of batches: `image` `[b, canvas, canvas, 3]` uint8; `valid_size` `[b, 2]` float32
      (height, width) of the image on the canvas; `boxes` `[b, G, 4]` float32 corners in [0, 1];
      `labels` `[b, G]` int32, 0 is padding; `position` `[b]` int32 in the stream.

    Raises:
      ValueError: If the processes do not divide the batch.
      UserError: While iterating, if an image cannot be decoded.
      MachineError: Immediately or while iterating, if the workers run out of memory.
    """
    process, processes = shard
    if batch_size % processes:
        raise ValueError(f"batch_size ({batch_size}) must be divisible by {processes} processes")

    rows = batch_size // processes
    pool = Pool()

    def batch(number: int) -> Batch:
        first = start + number * batch_size + process
        positions = np.arange(first, first + batch_size, processes, dtype=np.int32)
        made = {
            **_blank(rows, decoding.canvas, pool),
            "boxes": np.zeros((rows, max_objects, 4), np.float32),
            "labels": np.zeros((rows, max_objects), np.int32),
            "position": positions,
        }
        records = [_record_at(source, position, seed) for position in positions.tolist()]
        for row, record in enumerate(records):
            _draw(record, made, row, decoding.max_megapixels)
            keep = trained_on(record, difficult=difficult)
            count = np.count_nonzero(keep)
            made["boxes"][row, :count] = record["boxes"][keep]
            made["labels"][row, :count] = record["labels"][keep]
        return made

    batches = grain.MapDataset.range(_ENDLESS).map(batch)
    if not decoding.workers:
        return _iterate(batches, decoding.threads)
    _check_shared_memory(decoding.workers * _ALIVE * rows * decoding.canvas**2 * 3)
    return _Workers(batches, decoding.threads, decoding.workers)


def trained_on(record: Mapping[str, Any], *, difficult: bool) -> np.ndarray:
    """Selects the objects of a record to train on: `[N]` bool, never crowds or degenerate ones.

    Args:
      record: A record as `datasets.load` returns it.
      difficult: Keep objects that are marked difficult.
    """
    return (difficult | ~record["difficult"]) & ~record["crowd"] & ~record["degenerate"]


def check_objects(source: Source, *, difficult: bool, split: str) -> None:
    """Checks that there is an object to train on, reading records up to the first one.

    Args:
      source: Records as `datasets.load` returns them.
      difficult: Whether to train on objects that are marked difficult.
      split: Name of the split in the error message.

    Raises:
      UserError: If no record has an object to train on.
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
    """Returns the names of the images at some positions of a training stream.

    Args:
      source: Records as `datasets.load` returns them.
      positions: Positions in the stream, in images, from 0.
      seed: Seed of the order.
    """
    records = (_record_at(source, position, seed) for position in positions)
    return [record["name"] for record in records]


def evaluation_batches(
    source: Source,
    *,
    count: int,
    batch_size: int,
    decoding: Decoding,
    shard: Shard = ALL,
) -> Iterator[Batch]:
    """Returns the first `count` records once, in order; the last batch is padded with black images.

    With several processes, each gets every `processes`-th record, in the same number of batches.

    Args:
      source: Records as `datasets.load` returns them.
      count: Number of records.
      batch_size: Number of images B per batch.
      decoding: How images are decoded, in this process.
      shard: The shard of this process.

    Returns:
      An iterator of batches: `image` and `valid_size` as in `training_batches`, `index` `[B]` int32
      into `source`, -1 for padding.

    Raises:
      UserError: While iterating, if an image cannot be decoded.
    """
    process, processes = shard
    pool = Pool()

    def batch(number: int) -> Batch:
        rows = np.arange(number * batch_size, (number + 1) * batch_size, dtype=np.int32)
        index = rows * processes + process
        index[index >= count] = -1
        made = {**_blank(batch_size, decoding.canvas, pool), "index": index}
        for row in np.flatnonzero(index >= 0).tolist():
            _draw(source[int(index[row])], made, row, decoding.max_megapixels)
        made["image"][index < 0] = 0
        return made

    own = -(-count // processes)
    return _iterate(grain.MapDataset.range(-(-own // batch_size)).map(batch), decoding.threads)


def _record_at(source: Source, position: int, seed: int) -> Mapping[str, Any]:
    epoch, place = divmod(position, len(source))
    return source[epoch_order(len(source), seed, epoch)[place]]


def _iterate(batches: grain.MapDataset, threads: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(batches.to_iter_dataset(options))


class _Workers:
    """Batches made by worker processes and passed in shared memory.

    The name of each shared memory block is unlinked as soon as its batch arrives, so no block is
    left behind when this process is killed: the memory is freed with the last array.
    """

    def __init__(self, batches: grain.MapDataset, threads: int, workers: int):
        """Starts the workers.

        Raises:
          MachineError: See `__next__`.
        """
        if not flags.FLAGS.is_parsed():  # grain reads absl flags, which a notebook does not parse
            flags.FLAGS.mark_as_parsed()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        shared = grain.MultiprocessingOptions(num_workers=workers)
        prefetched = batches.to_iter_dataset(options).mp_prefetch(shared, _end_with_parent)
        with _signals_held_back():
            self._iterators = [iter(prefetched)]
            self._waiting = [self._next()]  # the first batch starts the workers
        self._ending = weakref.finalize(self, _end, self._iterators)
        self._ending.atexit = False
        # Runs before multiprocessing shuts down what grain frees memory with (last in, first out).
        atexit.register(self._ending)

    def __iter__(self) -> "_Workers":
        return self

    def __next__(self) -> Batch:
        """Returns the next batch; must not be called after `close`.

        Raises:
          MachineError: If the system killed a worker or shared memory is full.
          UserError: If an image cannot be decoded.
        """
        return self._waiting.pop() if self._waiting else self._next()

    def close(self) -> None:
        """Stops the workers."""
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
    """Closes and releases an iterator while the modules it needs for that still exist."""
    while iterators:
        iterators.pop().close()


def _forget_name(array: np.ndarray) -> None:
    """Unlinks the shared memory of an array, which stays valid until the array is deleted."""
    memory = getattr(array, "shm", None)
    if isinstance(memory, shared_memory.SharedMemory):
        memory.unlink()
        setattr(memory, "unlink", lambda: None)  # noqa: B010  # for grain, at deletion


def _trouble_of_workers(error: Exception) -> errors.MachineError | None:
    """Converts an error of the workers that the machine caused; None for other errors."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return errors.MachineError(f"{_SHM} is full: {_MORE_SHM}")
    status = re.search(r"exit code (-?\d+)", str(error))
    number = -int(status[1]) if status else 0
    if number == signal.SIGBUS:  # raised by a write to shared memory that is full
        return errors.MachineError(f"{_SHM} is full: {_MORE_SHM}")
    if number == signal.SIGKILL:
        return errors.MachineError(
            "a worker of config.data.workers was killed, probably because memory ran out: free "
            "memory, or set --config.data.workers=0"
        )
    return errors.of_machine(error) if errors.is_of_machine(error) else None


def _check_shared_memory(needed: int) -> None:
    """Checks that shared memory can hold the first batches of all workers."""
    try:
        found = os.statvfs(_SHM)
    except OSError:  # no such file system, for example on macOS
        return
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise errors.MachineError(
            f"{_SHM} has {free >> 20} MB free, and the batches of config.data.workers need "
            f"{-(-needed >> 20)} MB: {_MORE_SHM}"
        )


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Starts the processes of its `with` block with `HELD_BACK` blocked.

    A scheduler or Ctrl-C signals the whole process group, but the main process still needs its
    workers while it saves the state.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        resource_tracker.ensure_running()  # it unblocks some of them in this thread
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _end_with_parent(worker: int, workers: int) -> None:
    """Runs in a worker and exits it when its parent process ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _blank(rows: int, canvas: int, pool: Pool) -> Batch:
    """Allocates the images of a batch, uninitialized."""
    return {
        "image": pool.empty((rows, canvas, canvas, 3)),
        "valid_size": np.full((rows, 2), canvas, np.float32),
    }


def _draw(record: Mapping[str, Any], batch: Batch, row: int, max_megapixels: float) -> None:
    """Decodes an image into its row of a batch."""
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
