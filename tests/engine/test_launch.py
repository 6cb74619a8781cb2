"""A run of several processes: on two machines, killed, and resumed under torchrun. The rest is checked in one."""

import errno
import json
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from detectron2.config import get_cfg
from detectron2.engine.launch import _find_free_port
from torch.multiprocessing.spawn import ProcessExitedException

from se_detection.engine import heartbeat, launch
from se_detection.engine.checks import load_config
from se_detection.engine.launch import run_in_processes, use_torchrun
from se_detection.engine.train_and_evaluate import launch_run
from se_detection.engine.trainer import Trainer
from se_detection.runs.checkpoints import is_whole

from ..helpers import raises, relative_error
from .conftest import CONFIG, data_flags, stop_after, train_arguments
from .forked_command import ForkedCommand

ONE = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
SCRIPT, TORCHRUN = (Path(__file__).with_name(name) for name in ("recorded_train_net.py", "forking_torchrun.py"))
# Every image gives as many samples, so that the mean over processes of their means is that over all images.
OPTIONS = [
    *("MODEL.RESNETS.NORM", "GN", "INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.BACKBONE_FREEZE_ITERS", 1),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.RPN.POSITIVE_FRACTION", 1.0, "MODEL.RPN.NMS_THRESH", 1.0),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
    *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 4),
]


class Job(ForkedCommand):
    """The recorded train_net.py on a machine, which is this one, with its log and record in `folder`."""

    def __init__(self, data: Path, folder: Path, output: Path, *command: object, **changes: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        words = [*command, "--config-file", CONFIG, *data_flags(data), *train_arguments(data, output, *OPTIONS).opts]
        changes |= {"HOME": str(folder), "RECORD": str(folder), "GLOO_SOCKET_IFNAME": "lo"}
        super().__init__(folder / "log", *words, **changes)

    def record(self, rank: int) -> list[dict]:
        path = self.folder / f"{rank}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def weights(self, rank: int) -> list[str]:
        """The digest of the weights after each step."""
        return [line["weights"] for line in self.record(rank) if "weights" in line]


def gradients_of_one_process(build) -> dict[str, torch.Tensor]:
    """Those of the first step, which does not train the backbone."""
    gradients = {}

    class Recorded(Trainer):
        def run_step(self) -> None:
            super().run_step()
            named = self.checkpointer.model.named_parameters()
            gradients.update({name: item.grad.clone() for name, item in named if item.grad is not None})

    stop_after(build("alone", *OPTIONS, kind=Recorded), 0)
    return gradients


@pytest.mark.slow
def test_a_run_on_two_machines_is_killed_and_resumed_under_torchrun(build, tiny, tmp_path) -> None:
    """Each machine has its own folders; only the first gets the run."""
    output, port, machines = tmp_path / "output0", _find_free_port(), []
    for rank in (0, 1):
        flags = ["--num-machines", 2, "--machine-rank", rank, "--dist-url", f"tcp://127.0.0.1:{port}"]
        # The second machine forks its process: the first shows that one can be started.
        changes = {"SECONDS": "1"} | ({"FORK": "1"} if rank else {})
        machines.append(Job(tiny, tmp_path / f"machine{rank}", tmp_path / f"output{rank}", SCRIPT, *flags, **changes))
    for rank, job in enumerate(machines):
        job.wait_for(lambda rank=rank, job=job: len(job.weights(rank)) >= 3)
    os.kill(machines[1].record(1)[-1]["pid"], signal.SIGKILL)
    assert [job.ended() for job in machines] == [1, 1]
    for job in machines:
        assert "--resume continues from the last checkpoint in " in job.log
        assert "Traceback" not in job.log
    assert "process 1 was killed by SIGKILL" in machines[1].log
    assert is_whole(output / (output / "last_checkpoint").read_text())
    assert not list((tmp_path / "output1").glob("*.pth"))
    steps = [job.weights(rank) for rank, job in enumerate(machines)]
    assert len(set(steps[0])) == 3
    assert steps[0] == steps[1]
    first, second = (
        torch.load(job.folder / f"gradients{rank}.pth", weights_only=True) for rank, job in enumerate(machines)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = gradients_of_one_process(build)
    assert first.keys() == alone.keys()
    for name, gradient in alone.items():
        assert gradient.abs().max() > 0
        assert relative_error(first[name], gradient) < 1e-3, name

    # torchrun repeats the last step, to the last bit, and continues.
    torchrun = [TORCHRUN, "--nproc-per-node", 2, "--master-port", _find_free_port()]
    rest = Job(tiny, tmp_path / "rest", output, *torchrun, SCRIPT, "--resume")
    assert rest.ended() == 0, rest.log[-3000:]
    assert rest.weights(0) == rest.weights(1)
    assert rest.weights(0)[0] == steps[0][2]
    assert [line["iteration"] for line in rest.record(0) if "iteration" in line] == [2, 3]

    # Its evaluation, shared by two, is that of this process alone.
    shares = [[line["evaluated"] for line in rest.record(rank) if "evaluated" in line] for rank in (0, 1)]
    assert [len(share) for share in shares] == [2, 2]
    assert len({*shares[0], *shares[1]}) == 4
    names = ("results.json", "coco_instances_results.json")
    shared = [(output / "inference" / name).read_bytes() for name in names]
    args = train_arguments(tiny, output, *OPTIONS, flags=("--eval-only", "--resume"))
    launch_run(load_config(args), args)
    assert [(output / "inference" / name).read_bytes() for name in names] == shared


def test_torchruns_numbers_are_used(monkeypatch) -> None:
    args = Namespace(**ONE)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not use_torchrun(args)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 6, "RANK": 5}.items():
        monkeypatch.setenv(name, str(value))
    assert use_torchrun(args)
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (2, 3, 2)
    for flag in ("num_gpus", "num_machines"):
        with raises("run.contradicting_flags", "--num-gpus"):
            use_torchrun(Namespace(**{**ONE, flag: 2}))


@pytest.mark.parametrize(
    ("died", "forwarded", "code"),
    [
        ({"exit_code": 143}, [], 143),
        ({"exit_code": -9, "signal_name": "SIGKILL"}, [signal.SIGTERM, signal.SIGKILL], 143),
        ({"exit_code": -2, "signal_name": "SIGINT"}, [], 130),
        ({"exit_code": -9, "signal_name": "SIGKILL"}, [], "process 5 was killed by SIGKILL"),
        ({"exit_code": 1}, [], "process 5 ended with exit code 1"),
    ],
)
def test_the_exit_code_says_how_a_process_ended(monkeypatch, died, forwarded, code) -> None:
    def fail(function, args, processes) -> None:
        assert (args[3], processes) == ("tcp://first:1", 4)
        error = ProcessExitedException("", error_index=1, error_pid=1, **died)
        handlers = [signal.getsignal(number) for number in forwarded[:1]]
        for handler in handlers:
            handler(forwarded[0], None)
        raise error

    monkeypatch.setattr(launch, "start_processes", fail)
    args = Namespace(num_gpus=4, num_machines=2, machine_rank=1, dist_url="tcp://first:1")
    with pytest.raises(SystemExit) as caught:
        run_in_processes(None, get_cfg(), args, torchrun=False)
    assert caught.value.code == code or str(caught.value.code).startswith(f"error: {code}")


def test_a_late_second_signal_kills_the_processes(monkeypatch) -> None:
    now, sent = [100.0], []
    monkeypatch.setattr(launch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(launch.os, "kill", lambda pid, number: sent.append((pid, number)))
    children = [SimpleNamespace(pid=pid, kill=partial(launch.os.kill, pid, signal.SIGKILL)) for pid in (7, 8)]
    monkeypatch.setattr(multiprocessing, "active_children", lambda: children)
    before = signal.getsignal(signal.SIGTERM)
    with launch._forwarded_signals():
        handler = signal.getsignal(signal.SIGTERM)
        for later in (0, 1.9, 0.2):
            now[0] += later
            handler(signal.SIGTERM, None)
    assert signal.getsignal(signal.SIGTERM) is before
    assert sent == [(pid, number) for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL) for pid in (7, 8)]


def test_a_lost_process_is_recognized(monkeypatch) -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:47821")
    assert not launch.lost_process(lost)
    monkeypatch.setattr(launch.comm, "get_world_size", lambda: 2)
    assert launch.lost_process(lost)
    assert not launch.lost_process(RuntimeError("shape '[3]' is invalid"))
    assert not launch.lost_process(ValueError("gloo"))


@pytest.mark.slow
def test_a_process_whose_heartbeat_stops_ends_the_others(monkeypatch, capsys) -> None:
    """In this process as rank 0, with the real store; the other one is played by the test."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ended = threading.Event()
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.05)
    monkeypatch.setattr(heartbeat, "LIMIT", 2.0)
    monkeypatch.setattr(heartbeat, "_get_default_store", lambda: store)
    group = SimpleNamespace(get_world_size=lambda: 2, get_rank=lambda: 0, synchronize=lambda: None)
    monkeypatch.setattr(heartbeat, "comm", group)
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: ended.set())
    with heartbeat.heartbeat("output/run"):
        for beat in range(30):
            store.set(heartbeat._key(1), str(beat))
            time.sleep(0.1)
        assert not ended.is_set()
        assert int(store.get(heartbeat._key(0))) > 5
        assert ended.wait(20)
    said = capsys.readouterr().err
    assert said.startswith("error: process 1 of 2 is lost")
    assert "--resume continues from the last checkpoint in output/run" in said


class FullDisk(Trainer):
    raised = True

    @staticmethod
    def register_data(args) -> None:
        FullDisk.raised = logging.raiseExceptions
        raise OSError(errno.ENOSPC, "No space left on device", "log.txt")


def test_logging_is_as_before_after_a_run() -> None:
    train_loop = logging.getLogger("detectron2.engine.train_loop")
    filters = list(train_loop.filters)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    with raises("output.failed", "log.txt", "free some space"):
        launch_run(cfg, Namespace(**ONE), trainer_class=FullDisk)
    assert not FullDisk.raised
    assert logging.raiseExceptions
    assert train_loop.filters == filters


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        args = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url=url)
        with raises("run.port_in_use", url, "--dist-url auto"):
            run_in_processes(print, get_cfg(), args, False)
