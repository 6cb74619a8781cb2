"""Keeps data loading workers running when a whole job is asked to stop: the training process still needs them.

Schedulers and terminals send SIGTERM and SIGINT to every process of a job. A worker obeys these signals only if its
parent process sends them.
"""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalSafeLoader:
    """A data loader whose workers, by its `worker_init_fn`, obey SIGTERM and SIGINT only from their parent process."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.loader.worker_init_fn = _obey_parent_only

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        # Workers inherit the blocked signals, so they are safe from the start: their own code may begin seconds later.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return iter(self.loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_parent_only(worker: int) -> None:
    def wait() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
