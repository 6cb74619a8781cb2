"""The processes of a run: those that detectron2's `launch` starts here, or those that torchrun has started."""

import multiprocessing
import os
import re
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from ..errors import UserError
from .signals import SAME_REQUEST_SECONDS, handling

# How gloo and NCCL say that they lost a process.
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|store", re.IGNORECASE)


def use_torchrun(args: Namespace) -> bool:
    """Whether torchrun started this process; the number of processes and machines is then torchrun's.

    Raises:
        UserError: the command line says how many, too.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    if args.num_gpus != 1 or args.num_machines != 1:
        raise UserError("--num-gpus and --num-machines: torchrun says how many processes there are; leave them out")
    args.num_gpus = int(os.environ["LOCAL_WORLD_SIZE"])
    args.num_machines = int(os.environ["WORLD_SIZE"]) // args.num_gpus
    args.machine_rank = int(os.environ["RANK"]) // args.num_gpus
    return True


def start_processes(run: Callable[[CfgNode, Namespace], None], cfg: CfgNode, args: Namespace, torchrun: bool) -> None:
    """Calls `run(cfg, args)` in every process of this machine, and returns or exits when all have ended.

    Exit codes: 128 + N after signal N, which is passed on to the processes; 1 when one of them has died.
    """
    if torchrun:
        _join_group(cfg, args)
        _run_and_explain(run, cfg, args)
        return
    if args.num_gpus * args.num_machines == 1:
        run(cfg, args)
        return
    try:
        with _passing_signals_on() as passed:
            launch(
                _run_and_explain,
                args.num_gpus,
                args.num_machines,
                args.machine_rank,
                args.dist_url,
                args=(run, cfg, args),
            )
    except ProcessExitedException as error:
        code, died_of = error.exit_code, error.signal_name
        if code > 1:
            sys.exit(code)
        if died_of and passed:
            sys.exit(128 + passed[0])
        if died_of in (signal.Signals.SIGTERM.name, signal.Signals.SIGINT.name):
            sys.exit(128 - code)
        reason = f"was ended by {died_of} (memory may have run out)" if died_of else f"ended with exit code {code}"
        rank = args.machine_rank * args.num_gpus + error.error_index
        sys.exit(f"error: process {rank} {reason}, and the run with it; {_go_on(cfg)}")


def _run_and_explain(run: Callable[[CfgNode, Namespace], None], cfg: CfgNode, args: Namespace) -> None:
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
            f"error: process {comm.get_rank()} lost another one, which may have died with its machine; {_go_on(cfg)} "
            f"({reason})\n"
        )
        sys.stderr.flush()
        # Not sys.exit: what tidies up at an ordinary exit would wait for the lost process.
        os._exit(1)


def lost_process(error: BaseException | None) -> bool:
    """Whether an exception says that another process of the run can't be reached."""
    return isinstance(error, RuntimeError) and comm.get_world_size() > 1 and LOST.search(str(error)) is not None


def _go_on(cfg: CfgNode) -> str:
    return f"--resume goes on from the last checkpoint in {cfg.OUTPUT_DIR}"


def _join_group(cfg: CfgNode, args: Namespace) -> None:
    on_gpu = cfg.MODEL.DEVICE != "cpu"
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(args.num_gpus)
    if on_gpu:
        torch.cuda.set_device(comm.get_local_rank())
    comm.synchronize()


@contextmanager
def _passing_signals_on() -> Iterator[list[int]]:
    """The process that launches others does nothing but wait for them; gives what it has passed on."""
    passed: list[int] = []
    first_at = time.monotonic()

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if not passed:
            first_at = time.monotonic()
        elif time.monotonic() - first_at > SAME_REQUEST_SECONDS:
            # Whoever waits for another process doesn't hear a second request.
            number = signal.SIGKILL
        passed.append(number)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    with handling(pass_on):
        yield passed
