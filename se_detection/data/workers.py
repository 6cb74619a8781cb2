"""Data loading workers that outlive the signals to a whole job, and errors in one line when they deliver nothing.

Schedulers and terminals send SIGTERM and SIGINT to every process of a job. A worker obeys these signals only if its
parent process sends them: the training process still needs it.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..errors import UserError, printable

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Whether a worker can find out who sent a signal: not on macOS and Windows.
KNOWS_SENDER = hasattr(signal, "sigwaitinfo")
# Seconds without a batch after which the workers have failed.
LIMIT = 600.0
# Workers pass images to their parent process through this file system.
SHARED_MEMORY = Path("/dev/shm")


class NoBatchError(UserError):
    """A data loader can't deliver a batch."""


class SignalSafeLoader:
    """A data loader whose workers, by its `worker_init_fn`, obey SIGTERM and SIGINT only from their parent process.

    On macOS and Windows, where the sender of a signal is unknown, they ignore SIGINT.

    Iterating over it raises a :class:`NoBatchError` if a worker has ended, if there was no batch for 10 minutes, or if
    the workers' batches don't fit into /dev/shm together. It kills the workers at the end, also those that hang.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.loader.worker_init_fn = _start

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        # Workers inherit the blocked signals, so they are safe from the start: their own code may begin seconds later.
        with _blocked_signals():
            batches: Any = iter(self.loader)
        if not self.loader.num_workers:
            return _deliver(batches, [], 0)
        # torch would report a lost worker by an exception anywhere in the main thread, also within a step. It does if
        # a later version has other names for this.
        if remove := getattr(torch._C, "_remove_worker_pids", None):
            remove(id(batches))
            batches._worker_pids_set = False
        waiting = self.loader.num_workers * (self.loader.prefetch_factor or 1)
        return _deliver(batches, getattr(batches, "_workers", []), waiting)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    if not KNOWS_SENDER:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def waits_for_batch(frame: FrameType | None) -> bool:
    """Whether a stack frame, as a signal handler gets it, is that of a :class:`SignalSafeLoader` or called by it."""
    while frame is not None and frame.f_code is not _deliver.__code__:
        frame = frame.f_back
    return frame is not None


def _deliver(batches: Iterator[Any], workers: list[Any], waiting: int) -> Iterator[Any]:
    """The batches of a loader, of whose batches as many as `waiting` may be in shared memory."""
    unchecked = bool(workers)
    try:
        while True:
            try:
                batch = _next(batches, workers)
            except StopIteration:
                return
            if unchecked:
                _check_shared_memory(batch, waiting)
                unchecked = False
            yield batch
    finally:
        # torch and multiprocessing would wait for those that hang.
        _kill(workers)


def _next(batches: Iterator[Any], workers: list[Any]) -> Any:
    # DataLoader's own time limit does not end all waits for a worker.
    expired = threading.Event()

    def give_up() -> None:
        expired.set()
        _kill(workers)

    timer = threading.Timer(LIMIT, give_up)
    timer.daemon = True
    timer.start()
    try:
        return next(batches)
    except (RuntimeError, OSError, EOFError) as error:
        # A connection breaks before the end of its worker is known.
        ended = wait([worker.sentinel for worker in workers], timeout=1) if workers else []
        if not ended:
            raise
        lost = next(worker for worker in workers if worker.sentinel in ended)
        lost.join()
        if expired.is_set():
            raise NoBatchError(
                "data.no_batch",
                f"no batch came from the data loading workers for {LIMIT / 60:g} minutes: the disk with the images may "
                f"be stalled, or a worker stopped; {_advice()}",
            ) from error
        code = lost.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise NoBatchError(
            "data.lost_worker", f"a data loading worker {how}: the memory may be full; {_advice()}"
        ) from error
    finally:
        timer.cancel()


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        worker.kill()


def _check_shared_memory(batch: list[dict[str, Any]], waiting: int) -> None:
    """Raises if as many batches as this one, for each process of the machine, are more than the shared memory."""
    if not SHARED_MEMORY.is_dir():
        return
    size = sum(item["image"].nbytes for item in batch if "image" in item)
    number = waiting * comm.get_local_size()
    if number * size > shutil.disk_usage(SHARED_MEMORY).total:
        raise NoBatchError(
            "data.small_shared_memory",
            f"{number} batches of {_megabytes(size)} may wait for their training step; {_advice()}",
        )


def _advice() -> str:
    where = "shared memory"
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        where = f"{SHARED_MEMORY}, which has {_megabytes(usage.total)}, {_megabytes(usage.free)} of them free"
    return (
        f"images pass through {where}; enlarge it (docker run --shm-size=8g), lower DATALOADER.NUM_WORKERS, "
        "or set it to 0"
    )


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MB"


def _start(worker: int) -> None:
    """Prepares a worker, in its process."""

    # With a fork server, as on Linux from Python 3.14, os.getppid() is the server.
    parent = multiprocessing.parent_process()

    def obey_parent() -> None:
        while parent is None or signal.sigwaitinfo(SIGNALS).si_pid != parent.pid:
            pass
        os._exit(0)

    if KNOWS_SENDER:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=obey_parent, daemon=True).start()
    else:
        # A terminal sends it to all processes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The parent process would wait for the batch for ever.
    Queue._on_queue_feeder_error = staticmethod(_exit)  # type: ignore[attr-defined]


def _exit(error: Exception, batch: object) -> None:
    sys.stderr.write(f"error: a data loading worker can't pass on a batch: {printable(str(error))[:300]}\n")
    sys.stderr.flush()
    os._exit(1)
