"""Data loading processes that go on when all of a job are asked to stop: the process that they work for needs them.

Schedulers and terminals send SIGTERM and SIGINT to every process of a job. Who loads images obeys the process that
started it alone, and ends when that is gone.
"""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalSafeLoader:
    """Batches of a loader.

    Args:
        loader: torch's; its `worker_init_fn` is replaced.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.loader.worker_init_fn = _obey_parent_alone

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        # What is blocked here is so from the beginning in the processes that are started: they may take seconds to
        # get to their own code.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return iter(self.loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_parent_alone(worker: int) -> None:
    def wait() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
