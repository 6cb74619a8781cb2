"""Data loading workers that deliver nothing. Signals to a whole job are in tests/engine/test_signals.py."""

import multiprocessing
import os
import signal
import time
from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader

from se_detection.data import workers
from se_detection.data.workers import SignalSafeLoader

from ..helpers import raises


class Images(list):
    """Four images of 300 bytes; what comes after them is called for the others."""

    def __init__(self, after) -> None:
        super().__init__(range(8))
        self.after = after

    def __getitem__(self, index: int) -> dict:
        return {"image": torch.zeros(3, 10, 10, dtype=torch.uint8), "more": self.after() if index > 3 else None}


def take(after, *, workers: int = 1) -> list:
    return list(SignalSafeLoader(DataLoader(Images(after), batch_size=2, num_workers=workers, collate_fn=list)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "code", "named"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "data.lost_worker", "SIGKILL"),
        # A worker can't pass on what pickle refuses, as it can't without room in the shared memory.
        (lambda: lambda: None, "data.lost_worker", "ended with code 1"),
        (lambda: os.kill(os.getpid(), signal.SIGSTOP), "data.no_batch", "0.01 minutes"),
    ],
    ids=["killed", "full", "stopped"],
)
def test_a_loader_that_does_not_deliver(after, code, named, monkeypatch) -> None:
    # The others end before it, also on a busy machine.
    monkeypatch.setattr(workers, "LIMIT", 0.6 if code == "data.no_batch" else 30.0)
    others, started = set(multiprocessing.active_children()), time.monotonic()
    with raises(code, named, "/dev/shm", "--shm-size", "DATALOADER.NUM_WORKERS"):
        take(after)
    assert time.monotonic() - started < 25
    # They ended, also the one that was stopped.
    assert set(multiprocessing.active_children()) <= others


def test_workers_ignore_ctrl_c_where_the_sender_is_unknown(monkeypatch) -> None:
    """As on macOS and Windows."""
    monkeypatch.setattr(workers, "KNOWS_SENDER", False)
    assert len(take(lambda: os.kill(os.getpid(), signal.SIGINT))) == 4


def test_batches_must_fit_into_the_shared_memory(monkeypatch) -> None:
    """Two batches a worker, which torch prefetches, of two images each."""
    usage = namedtuple("usage", "total free")
    room = 2 * 2 * 300
    for total in (room, room - 1):
        monkeypatch.setattr(workers.shutil, "disk_usage", lambda path, total=total: usage(total, 0))
        if total == room:
            assert len(take(int)) == 4
            continue
        with raises("data.small_shared_memory", "2 batches", "/dev/shm", "--shm-size", "DATALOADER.NUM_WORKERS"):
            take(int)
    # Without workers, images do not pass through it.
    assert len(take(int, workers=0)) == 4
