"""Starts the processes of a run, or joins those that torchrun has started."""

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine.launch import DEFAULT_TIMEOUT, _find_free_port
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from ..errors import UserError
from .signals import SAME_REQUEST_SECONDS, handling

# In the messages of gloo and NCCL when they lose a process.
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|store", re.IGNORECASE)
Run = Callable[[CfgNode, Namespace], None]


def use_torchrun(args: Namespace) -> bool:
    """Whether torchrun started this process; `args` then get torchrun's numbers of processes and machines.

    Raises:
        UserError: the command line also has these numbers.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    if args.num_gpus != 1 or args.num_machines != 1:
        raise UserError(
            "run.contradicting_flags",
            "--num-gpus and --num-machines: torchrun sets the number of processes; omit them",
        )
    args.num_gpus = int(os.environ["LOCAL_WORLD_SIZE"])
    args.num_machines = int(os.environ["WORLD_SIZE"]) // args.num_gpus
    args.machine_rank = int(os.environ["RANK"]) // args.num_gpus
    return True


def run_in_processes(run: Run, cfg: CfgNode, args: Namespace, torchrun: bool) -> None:
    """Calls `run(cfg, args)` in every process of this machine, and returns or exits when all have ended.

    Exit codes: 128 + N after signal N, which is forwarded to the processes; 1 if one of them has died.

    Raises:
        UserError: the port of `--dist-url` is in use.
    """
    if torchrun:
        _join_and_run(int(os.environ["LOCAL_RANK"]), run, cfg, args, "env://")
        return
    if args.num_gpus * args.num_machines == 1:
        run(cfg, args)
        return
    if args.dist_url == "auto":
        url = f"tcp://127.0.0.1:{_find_free_port()}"
    else:
        url = args.dist_url
        if args.num_machines == 1:
            _check_port(url)
    try:
        with _forwarded_signals() as forwarded:
            start_processes(_join_and_run, (run, cfg, args, url), args.num_gpus)
    except ProcessExitedException as error:
        code, died_of = error.exit_code, error.signal_name
        if code > 1:
            sys.exit(code)
        if died_of and forwarded:
            sys.exit(128 + forwarded[0])
        if died_of in (signal.Signals.SIGTERM.name, signal.Signals.SIGINT.name):
            sys.exit(128 - code)
        reason = f"was killed by {died_of} (perhaps the memory was full)" if died_of else f"ended with exit code {code}"
        rank = args.machine_rank * args.num_gpus + error.error_index
        sys.exit(f"error: process {rank} {reason}, which ends the run; {_resume(cfg)}")


def _check_port(url: str) -> None:
    address = urlsplit(url)
    with socket.socket() as probe:
        # As torch's store: a port that was in use a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.hostname or "", address.port or 0))
        except OSError as error:
            raise UserError(
                "run.port_in_use",
                f"--dist-url {url}: the port is not free ({error.strerror}), perhaps because of another run; give "
                "--dist-url auto",
            ) from error


def _join_and_run(local_rank: int, run: Run, cfg: CfgNode, args: Namespace, url: str) -> None:
    """Joins the group as detectron2's `launch` does, which uses a GPU even if `MODEL.DEVICE` is cpu."""
    on_gpu = cfg.MODEL.DEVICE != "cpu"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=url,
        world_size=args.num_gpus * args.num_machines,
        rank=args.machine_rank * args.num_gpus + local_rank,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(args.num_gpus)
    if on_gpu:
        torch.cuda.set_device(local_rank)
    comm.synchronize()
    try:
        run(cfg, args)
    except KeyboardInterrupt:
        # torch would end the process with exit code 0.
        sys.exit(128 + signal.SIGINT)
    except RuntimeError as error:
        if not lost_process(error):
            raise
        reason = " ".join(str(error).split())[:200]
        sys.stderr.write(
            f"error: process {comm.get_rank()} lost another one, which may have died with its machine; {_resume(cfg)} "
            f"({reason})\n"
        )
        sys.stderr.flush()
        # Not sys.exit, whose clean-up would wait for the lost process.
        os._exit(1)


def lost_process(error: BaseException | None) -> bool:
    """Whether an exception says that another process of the run is lost."""
    return isinstance(error, RuntimeError) and comm.get_world_size() > 1 and LOST.search(str(error)) is not None


def _resume(cfg: CfgNode) -> str:
    return f"--resume continues from the last checkpoint in {cfg.OUTPUT_DIR}"


@contextmanager
def _forwarded_signals() -> Iterator[list[int]]:
    """Forwards signals to the launched processes, while this one waits for them; yields the list of those forwarded."""
    forwarded: list[int] = []
    first_at = time.monotonic()

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if not forwarded:
            first_at = time.monotonic()
        # A process that waits for another one does not handle a second request.
        again = bool(forwarded) and time.monotonic() - first_at > SAME_REQUEST_SECONDS
        forwarded.append(number)
        for child in multiprocessing.active_children():
            if again:
                child.kill()
            # On Windows, os.kill would end the process; the terminal sends it Ctrl-C.
            elif child.pid is not None and os.name != "nt":
                os.kill(child.pid, number)

    with handling(forward):
        yield forwarded
