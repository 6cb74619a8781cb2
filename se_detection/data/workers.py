"""Data loading workers that outlive the signals to a whole job, and errors in one line when they deliver nothing.

Schedulers and terminals send SIGTERM and SIGINT to every process of a job. A worker obeys these signals only if its
parent process sends them: the training process still needs it.
"""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType
from typing import Any

from detectron2.utils import comm
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader

from ..errors import UserError, printable

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds without a batch after which the workers have failed.
LIMIT = 600.0
# Workers pass images to their parent process through this file system.
SHARED_MEMORY = Path("/dev/shm")


class NoBatchError(UserError):
    """A data loader can't deliver a batch."""


class SignalSafeLoader:
    """A data loader whose workers, by its `worker_init_fn`, obey SIGTERM and SIGINT only from their parent process.

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
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            batches: Any = iter(self.loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if not self.loader.num_workers:
            return _deliver(batches, [], 0)
        # torch would report a lost worker by an exception anywhere in the main thread, also within a step.
        _remove_worker_pids(id(batches))
        batches._worker_pids_set = False
        waiting = self.loader.num_workers * (self.loader.prefetch_factor or 1)
        return _deliver(batches, batches._workers, waiting)


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
    timer = threading.Timer(LIMIT, _kill, [workers])
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
        if not timer.is_alive():
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

    def obey_parent() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=obey_parent, daemon=True).start()
    # The parent process would wait for the batch for ever.
    Queue._on_queue_feeder_error = staticmethod(_exit)  # type: ignore[attr-defined]


def _exit(error: Exception, batch: object) -> None:
    sys.stderr.write(f"error: a data loading worker can't pass on a batch: {printable(str(error))[:300]}\n")
    sys.stderr.flush()
    os._exit(1)
