"""One process at a time has a run folder: the others are refused, and a dead owner is replaced."""

import json
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from se_detection import UserError
from se_detection.runs import lock
from se_detection.runs.lock import RunLock
from se_detection.runs.run_folder import LOCK, unfinished_files

from ..helpers import raises

OTHER = {"host": "node7", "process": 4711, "since": "2026-01-02 03:04:05.678", "machine": "another"}


@pytest.fixture(autouse=True)
def _fast(monkeypatch) -> None:
    monkeypatch.setattr(lock, "INTERVAL", 0.02)
    monkeypatch.setattr(lock, "LIMIT", 2)
    monkeypatch.setattr(lock, "SETTLED", 0.2)


@pytest.fixture(params=["flock", "no flock"])
def any_system(request, monkeypatch) -> None:
    """A system with flock, and Windows or a network file system without one."""
    if request.param == "no flock":
        monkeypatch.setattr(lock, "fcntl", None)


@pytest.mark.usefixtures("any_system")
def test_one_of_many_that_start_at_once_gets_the_folder(tmp_path) -> None:
    for number in range(3):
        folder, start = tmp_path / str(number), threading.Barrier(6)

        def contend(own: RunLock, start=start) -> None:
            start.wait()
            own.acquire()

        locks = [RunLock(folder) for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            errors = [future.exception() for future in [pool.submit(contend, own) for own in locks]]
        (winner,) = [own for own, error in zip(locks, errors, strict=True) if error is None]
        assert {error.code for error in errors if isinstance(error, UserError)} == {"output.in_use"}
        with raises("output.in_use", f"process {os.getpid()} on {os.uname().nodename}", folder):
            RunLock(folder).acquire()
        winner.close()
        with closing(RunLock(folder)) as after:
            after.acquire()
        assert (folder / LOCK).read_bytes() == b""


def test_a_killed_owner_is_replaced_at_once_though_its_worker_lives(tmp_path, caplog) -> None:
    reading, writing = os.pipe()
    if (owner := os.fork()) == 0:
        try:
            RunLock(tmp_path).acquire()
            if worker := os.fork():
                os.write(writing, str(worker).encode())
            time.sleep(60)
        finally:
            os._exit(0)
    worker = int(os.read(reading, 20))
    try:
        with raises("output.in_use", f"process {owner}"):
            RunLock(tmp_path).acquire()
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        began = time.monotonic()
        with caplog.at_level(logging.WARNING), closing(RunLock(tmp_path)) as own:
            own.acquire()
        assert time.monotonic() - began < lock.LIMIT
        os.kill(worker, 0)
        assert f"process {owner} on" in caplog.text
        assert "is dead; this process takes over" in caplog.text
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.usefixtures("any_system")
def test_an_owner_on_another_machine_is_replaced_when_it_is_silent(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(lock, "LIMIT", 0.1)
    monkeypatch.setattr(lock, "SETTLED", 0)
    for content in (json.dumps(OTHER), '{"host": "node7", "proc', "[]"):
        (tmp_path / LOCK).write_text(content)
        began = time.monotonic()
        with closing(RunLock(tmp_path)) as own:
            own.acquire()
            assert time.monotonic() - began >= lock.LIMIT
            assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert "a sign of life of process 4711 on node7 (since 2026-01-02 03:04:05)" in caplog.text


@pytest.mark.usefixtures("any_system")
def test_a_living_owner_on_another_machine_keeps_the_folder(tmp_path) -> None:
    (tmp_path / LOCK).write_text(json.dumps(OTHER))
    timers = [threading.Timer(0.02 * number, os.utime, [tmp_path / LOCK]) for number in range(1, 9)]
    for timer in timers:
        timer.start()
    with raises("output.in_use", "process 4711 on node7", "since 2026-01-02 03:04:05", tmp_path):
        RunLock(tmp_path).acquire()
    for timer in timers:
        timer.join()
    assert json.loads((tmp_path / LOCK).read_text()) == OTHER
    # It ends while another one waits for it.
    timer = threading.Timer(0.05, (tmp_path / LOCK).write_bytes, [b""])
    timer.start()
    with closing(RunLock(tmp_path)) as own:
        own.acquire()


def test_an_owner_shows_that_it_lives_and_stops_when_another_one_has_the_folder(tmp_path, monkeypatch, capsys) -> None:
    stopped = threading.Event()
    monkeypatch.setattr(lock.os, "_exit", lambda code: stopped.set() if code == 1 else None)
    with closing(RunLock(tmp_path)) as own:
        own.acquire()
        before = (tmp_path / LOCK).stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
        assert not stopped.is_set()
        (tmp_path / LOCK).write_text(json.dumps(OTHER))
        assert stopped.wait(10)
    assert "process 4711 on node7" in capsys.readouterr().err
    assert json.loads((tmp_path / LOCK).read_text()) == OTHER


def test_the_owner_removes_what_killed_runs_have_left(tmp_path) -> None:
    (tmp_path / "inference").mkdir()
    left = ["model_0000099.pth.0123abcd.part", "last_checkpoint.aaaaaaaa.part", "inference/results.json.0123abcd.part"]
    kept = ["film.mp4.part", "notes.0123abcd.part", "report.html.0123abcd.part", "model_0000099.pth"]
    for name in [*left, *kept]:
        (tmp_path / name).write_text("")
    assert sorted(unfinished_files(tmp_path)) == sorted(tmp_path / name for name in left)
    with closing(RunLock(tmp_path)) as own:
        own.acquire()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "inference", LOCK])
    assert not list((tmp_path / "inference").iterdir())
