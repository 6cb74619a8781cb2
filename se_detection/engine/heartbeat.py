"""Notices in every process when another is gone: killed, frozen, or on a machine that is.

A collective operation that waits for it would wait for half an hour, detectron2's time-out; a shorter one would end
processes that wait while the main one computes AP.
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

INTERVAL = 5.0
LIMIT = 40.0


@contextmanager
def heartbeat(output_dir: str) -> Iterator[None]:
    """Ends this process with exit code 1 and one line when another has shown no sign of life for 40 seconds.

    Args:
        output_dir: named in the message.
    """
    if comm.get_world_size() == 1:
        yield
        return
    ended = threading.Event()
    # A connection of its own: the default one may be waited on.
    store: Any = _get_default_store()
    store = store.clone()
    store.set_timeout(timedelta(seconds=LIMIT))
    store.set(_key(comm.get_rank()), "0")
    comm.synchronize()
    threading.Thread(target=_watch, args=(store, ended, output_dir), daemon=True).start()
    try:
        yield
        # Whoever leaves early looks dead to the others.
        comm.synchronize()
    except SystemExit:
        comm.synchronize()
        raise
    finally:
        ended.set()


def _key(rank: int) -> str:
    return f"se_detection/heartbeat/{rank}"


def _watch(store: Any, ended: threading.Event, output_dir: str) -> None:
    rank, others = comm.get_rank(), [rank for rank in range(comm.get_world_size()) if rank != comm.get_rank()]
    heard = {other: (b"", time.monotonic()) for other in others}
    beats = 0
    while not ended.wait(INTERVAL):
        beats += 1
        try:
            store.set(_key(rank), str(beats))
            for other, beat in zip(others, store.multi_get([_key(other) for other in others]), strict=True):
                if beat != heard[other][0]:
                    heard[other] = (beat, time.monotonic())
            lost = [other for other in others if time.monotonic() - heard[other][1] > LIMIT]
        except RuntimeError:
            # The first process holds the store.
            lost = [0]
        if lost and not ended.is_set():
            print(
                f"error: process {lost[0]} of {comm.get_world_size()} is gone (its machine may be, or its memory may "
                f"have run out); process {rank} stops too. --resume goes on from the last checkpoint in {output_dir}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)
