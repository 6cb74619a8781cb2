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
from functools import partial
from typing import Any

from detectron2.utils import comm
from torch.distributed.distributed_c10d import _get_default_store

INTERVAL = 2.0
LIMIT = 50.0


@contextmanager
def heartbeat(output_dir: str) -> Iterator[None]:
    """Ends this process with exit code 1 and one line when another has shown no sign of life for 50 seconds.

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
    heard = {rank: time.monotonic() for rank in range(comm.get_world_size()) if rank != comm.get_rank()}
    # Two threads: whoever asks a machine that has vanished may wait for the answer far longer than any time-out.
    for task in (partial(_exchange, store, heard, ended), partial(_watch, heard, ended, output_dir)):
        threading.Thread(target=task, daemon=True).start()
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


def _exchange(store: Any, heard: dict[int, float], ended: threading.Event) -> None:
    """Shows the others that this process lives, and keeps in `heard` when each of them last did."""
    seen = dict.fromkeys(heard, b"")
    beats = 0
    while not ended.wait(INTERVAL):
        beats += 1
        try:
            store.set(_key(comm.get_rank()), str(beats))
            for other, beat in zip(seen, store.multi_get([_key(other) for other in seen]), strict=True):
                if beat != seen[other]:
                    seen[other], heard[other] = beat, time.monotonic()
        except RuntimeError:
            # The first process holds the store, or torchrun does.
            heard[0] = float("-inf")
            return


def _watch(heard: dict[int, float], ended: threading.Event, output_dir: str) -> None:
    rank, size = comm.get_rank(), comm.get_world_size()
    while not ended.wait(1):
        lost = [other for other, last in list(heard.items()) if time.monotonic() - last > LIMIT]
        if lost and not ended.is_set():
            who = f"process {lost[0]} of {size}" if lost[0] != rank else "what started the processes"
            print(
                f"error: {who} is gone (its machine may be, or its memory may have run out); process {rank} stops "
                f"too. --resume goes on from the last checkpoint in {output_dir}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)
