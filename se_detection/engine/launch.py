"""Starts the processes of a run with detectron2's `launch`, or joins those that torchrun has started."""

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

# In the messages of gloo and NCCL when they lose a process.
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|store", re.IGNORECASE)


def use_torchrun(args: Namespace) -> bool:
    """Whether torchrun started this process; `args` then get torchrun's numbers of processes and machines.

    Raises:
        UserError: the command line also has these numbers.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    if args.num_gpus != 1 or args.num_machines != 1:
        raise UserError("--num-gpus and --num-machines: torchrun sets the number of processes; omit them")
    args.num_gpus = int(os.environ["LOCAL_WORLD_SIZE"])
    args.num_machines = int(os.environ["WORLD_SIZE"]) // args.num_gpus
    args.machine_rank = int(os.environ["RANK"]) // args.num_gpus
    return True


def start_processes(run: Callable[[CfgNode, Namespace], None], cfg: CfgNode, args: Namespace, torchrun: bool) -> None:
    """Calls `run(cfg, args)` in every process of this machine, and returns or exits when all have ended.

    Exit codes: 128 + N after signal N, which is forwarded to the processes; 1 if one of them has died.
    """
    if torchrun:
        _join_group(cfg, args)
        _run_and_explain(run, cfg, args)
        return
    if args.num_gpus * args.num_machines == 1:
        run(cfg, args)
        return
    try:
        with _hidden_gpus(cfg.MODEL.DEVICE == "cpu"), _forwarded_signals() as forwarded:
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
        if died_of and forwarded:
            sys.exit(128 + forwarded[0])
        if died_of in (signal.Signals.SIGTERM.name, signal.Signals.SIGINT.name):
            sys.exit(128 - code)
        reason = f"was killed by {died_of} (perhaps the memory was full)" if died_of else f"ended with exit code {code}"
        rank = args.machine_rank * args.num_gpus + error.error_index
        sys.exit(f"error: process {rank} {reason}, which ends the run; {_resume(cfg)}")


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


def _join_group(cfg: CfgNode, args: Namespace) -> None:
    on_gpu = cfg.MODEL.DEVICE != "cpu"
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(args.num_gpus)
    if on_gpu:
        torch.cuda.set_device(comm.get_local_rank())
    comm.synchronize()


@contextmanager
def _hidden_gpus(hidden: bool) -> Iterator[None]:
    """Starts processes that see no GPU: `launch` gives each process a GPU if it sees any."""
    if not hidden:
        yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextmanager
def _forwarded_signals() -> Iterator[list[int]]:
    """Forwards signals to the launched processes, while this one waits for them; yields the list of those forwarded."""
    forwarded: list[int] = []
    first_at = time.monotonic()

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if not forwarded:
            first_at = time.monotonic()
        elif time.monotonic() - first_at > SAME_REQUEST_SECONDS:
            # A process that waits for another one does not handle a second request.
            number = signal.SIGKILL
        forwarded.append(number)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    with handling(forward):
        yield forwarded
