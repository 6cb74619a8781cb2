"""Commands in processes of their own, forked from one that has imported torch and detectron2 and run nothing."""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([f"{__package__}.recorded_train_net", "torch.distributed.run"])


class ForkedCommand:
    """A Python script with its arguments, in a process and a session of its own, with its output in `log_file`.

    Only the imports differ from a new Python process.
    """

    def __init__(self, log_file: Path, script: Path, *words: object, **environment: str) -> None:
        self.log_file = log_file
        arguments = (log_file, [str(script), *map(str, words)], environment, torch.get_num_threads())
        self.process = SERVER.Process(target=_run, args=arguments)
        self.process.start()

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert self.process.is_alive(), self.log[-3000:]
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.02)

    def ended(self) -> int:
        """Waits for the exit code."""
        self.process.join(timeout=240)
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
        return self.process.exitcode


def _run(log_file: Path, argv: list[str], environment: dict[str, str], threads: int) -> None:
    os.setsid()
    # For data loaders. A new Python process has this default; here it is the way in which this process was started.
    multiprocessing.set_start_method("fork", force=True)
    with log_file.open("wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.environ.update(environment)
    torch.set_num_threads(threads)
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        # Python's end, which multiprocessing skips, ends the workers of data loaders.
        atexit._run_exitfuncs()
