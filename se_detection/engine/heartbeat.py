"""Ends every process of a run when one of them is lost because it or its machine stopped.

Without it, the others would wait for the lost process for half an hour, detectron2's time-out. A shorter time-out would
end the processes that wait while the main one computes AP.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from detectron2.utils import comm
from torch.distributed.distributed_c10d import _get_default_store

INTERVAL = 2.0
LIMIT = 50.0


@contextmanager
def heartbeat(output_dir: str) -> Iterator[None]:
    """Ends this process with exit code 1 and one line when another has not sent a heartbeat for 50 seconds.

    Args:
        output_dir: the run folder, named in the message.
    """
    if comm.get_world_size() == 1:
        yield
        return
    ended = threading.Event()
    # A separate connection: another thread may be waiting on the default one.
    store: Any = _get_default_store()
    store = store.clone()
    store.set_timeout(timedelta(seconds=LIMIT))
    store.set(_key(comm.get_rank()), "0")
    comm.synchronize()
    heard = {rank: time.monotonic() for rank in range(comm.get_world_size()) if rank != comm.get_rank()}
    # Two threads: a request to a lost machine may block for much longer than the time-out.
    for target, args in ((_exchange, (store, heard, ended)), (_watch, (heard, ended, output_dir))):
        threading.Thread(target=target, args=args, daemon=True).start()
    try:
        yield
        # A process that leaves early would look lost to the others.
        comm.synchronize()
    except SystemExit:
        comm.synchronize()
        raise
    finally:
        ended.set()


def _key(rank: int) -> str:
    return f"se_detection/heartbeat/{rank}"


def _exchange(store: Any, heard: dict[int, float], ended: threading.Event) -> None:
    """Sends this process's heartbeats, and keeps in `heard` when each of the others was last received."""
    seen = dict.fromkeys(heard, b"")
    beats = 0
    try:
        while not ended.wait(INTERVAL):
            beats += 1
            store.set(_key(comm.get_rank()), str(beats))
            for other, beat in zip(seen, store.multi_get([_key(other) for other in seen]), strict=True):
                if beat != seen[other]:
                    seen[other], heard[other] = beat, time.monotonic()
    except RuntimeError:
        # The first process, or torchrun, holds the store.
        heard[0] = float("-inf")


def _watch(heard: dict[int, float], ended: threading.Event, output_dir: str) -> None:
    rank, size = comm.get_rank(), comm.get_world_size()
    while not ended.wait(1):
        lost = [other for other, last in list(heard.items()) if time.monotonic() - last > LIMIT]
        if lost and not ended.is_set():
            who = f"process {lost[0]} of {size}" if lost[0] != rank else "the launcher of the processes"
            print(
                f"error: {who} is lost (its machine may be down, or its memory full); process {rank} stops too. "
                f"--resume continues from the last checkpoint in {output_dir}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)
