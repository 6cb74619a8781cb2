"""Runs of several processes on two machines, some of which die. `pytest --faults N` tries each random fault N times."""

import json
import os
import random
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from se_detection import model_zoo
from se_detection.data.toy import make_toy_dataset
from se_detection.runs.checkpoints import is_whole

from ..helpers import relative_error
from .conftest import SMALL, read_metrics
from .machines import Job, Machine, free_port, two_machines, wait_until

SCRIPT = Path(__file__).with_name("recorded_train_net.py")
STEPS = 8
# Every image gives as many samples, so that the mean over processes of their means is that over all images.
OPTIONS = [
    *SMALL,
    *("SOLVER.MAX_ITER", STEPS, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 4, "SOLVER.BASE_LR", 0.01),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", False, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.RPN.POSITIVE_FRACTION", 1.0, "MODEL.RPN.NMS_THRESH", 1.0),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False, "SEED", 3),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
]
# Seconds in which a job must end, with all its processes, when one of them is lost.
LIMIT = 60
# Slows down steps and images, so that something can happen meanwhile.
SLOWLY = {"SECONDS": 0.4}


class Run:
    """A run on one machine or two, which may be started several times."""

    def __init__(self, machines: list[Machine], folder: Path, data: list[object], *, own_folders: bool = False) -> None:
        self.machines = machines
        self.folder = folder
        self.data = data
        self.outputs = [folder / "output", folder / ("output1" if own_folders else "output")]
        self.jobs: list[Job] = []
        self.starts = 0
        self.torchrun = False

    def start(self, processes: int, *arguments: object, on: int = 1, torchrun: bool = False, **environment: object):
        """Starts the processes on one machine or `on` two, by launch or torchrun, with flags and overrides."""
        self.starts += 1
        # torchrun prints its own tracebacks.
        self.torchrun = torchrun
        self.record_folder.mkdir(parents=True)
        first, port = self.machines[0].address, free_port()
        flags = [argument for argument in arguments if str(argument).startswith("--")]
        overrides = [argument for argument in arguments if argument not in flags]
        self.jobs = []
        for rank in range(on):
            if torchrun:
                nodes = ["--nnodes", on, "--node-rank", rank, "--master-addr", first, "--master-port", port]
                start = ["-m", "torch.distributed.run", *nodes, "--nproc-per-node", processes // on, SCRIPT]
            else:
                nodes = ["--num-machines", on, "--machine-rank", rank, "--dist-url", f"tcp://{first}:{port}"]
                start = [SCRIPT, *nodes, "--num-gpus", processes // on]
            options = [*self.data, *flags, *OPTIONS, *overrides, "OUTPUT_DIR", self.outputs[rank]]
            self.jobs.append(self.machines[rank].start(*start, *options, RECORD=self.record_folder, **environment))

    def finish(self, processes: int, *arguments: object, **options) -> None:
        self.start(processes, *arguments, **options)
        assert [job.wait() for job in self.jobs] == [0] * len(self.jobs), self.said_last
        assert self.torchrun or "Traceback" not in self.said

    def ended(self, fault: str) -> list[int]:
        """Waits until all processes have ended, at most LIMIT seconds; returns the exit codes of all machines."""
        began = time.monotonic()
        codes = [job.wait(began + LIMIT - time.monotonic()) for job in self.jobs]
        while any(machine.processes() for machine in self.machines):
            assert time.monotonic() < began + LIMIT, f"{fault}: processes are left, after they said:\n{self.said_last}"
            time.sleep(0.1)
        print(f"{fault}: ended after {time.monotonic() - began:.1f} seconds with exit codes {codes}")
        return codes

    @property
    def said(self) -> str:
        return "\n\n".join(job.said for job in self.jobs)

    @property
    def said_last(self) -> str:
        return "\n\n".join(job.said_last for job in self.jobs)

    @property
    def record_folder(self) -> Path:
        return self.folder / f"record{self.starts}"

    def record(self, rank: int) -> list[dict]:
        path = self.record_folder / f"{rank}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def steps(self, rank: int) -> dict[int, dict]:
        """The record of each step since the last start."""
        return {line["iteration"]: line for line in self.record(rank) if "iteration" in line}

    def pid(self, rank: int) -> int:
        return self.record(rank)[-1]["pid"]

    def wait_for_step(self, number: int, rank: int = 0) -> None:
        wait_until(lambda: any(iteration >= number for iteration in self.steps(rank)), self.jobs)

    def checkpoint(self, name: str = "model_final") -> dict:
        return torch.load(self.outputs[0] / f"{name}.pth", weights_only=True)

    @property
    def results(self) -> tuple[bytes, bytes]:
        folder = self.outputs[0] / "inference"
        return tuple((folder / name).read_bytes() for name in ("results.json", "coco_instances_results.json"))


@pytest.fixture(scope="module")
def machines(module_path) -> Iterator[list[Machine]]:
    folder = module_path / "machines"
    folder.mkdir()
    with two_machines(folder) as (found, reason):
        if reason:
            warnings.warn(f"both machines are this one, for want of network namespaces: {reason}", stacklevel=1)
        yield found


@pytest.fixture(autouse=True)
def _nothing_left(machines) -> Iterator[None]:
    yield
    for machine in machines:
        machine.clear()


@pytest.fixture(scope="module")
def data(module_path) -> list[object]:
    """Arguments of a run: eight images to train on and five to evaluate."""
    folder = module_path / "data"
    data: list[object] = ["--config-file", model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")]
    for split, count in (("train", 8), ("val", 5)):
        data += [
            f"--{split}-json",
            make_toy_dataset(folder, split=split, count=count),
            f"--{split}-images",
            folder / split,
        ]
    return data


@pytest.fixture
def new_run(machines, data, tmp_path):
    """A function that makes a run on all machines, in one folder or in a folder per machine."""

    def make(name: str, *, own_folders: bool = False) -> Run:
        (tmp_path / name).mkdir()
        return Run(machines, tmp_path / name, data, own_folders=own_folders)

    return make


@pytest.fixture(scope="module")
def trained(machines, data, module_path) -> dict[int, Run]:
    """The same run by one process, by two on a machine, and by four on two machines."""
    found = {}
    for processes in (1, 2, 4):
        folder = module_path / f"trained{processes}"
        folder.mkdir()
        found[processes] = Run(machines, folder, data)
    for processes, run in found.items():
        run.finish(processes, on=2 if processes == 4 else 1)
    return found


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The distance between the weights of two models."""
    assert one.keys() == other.keys()
    return sum((one[key] - other[key]).square().sum().item() for key in one) ** 0.5


def check_same_weights(run: Run, reference: Run, *, exactly: bool) -> None:
    """The same to the last bit, or up to the order of summation."""
    ours, theirs = run.checkpoint(), reference.checkpoint()
    assert ours["iteration"] == theirs["iteration"]
    if exactly:
        torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)
        momenta = [state["trainer"]["_trainer"]["optimizer"]["state"] for state in (ours, theirs)]
        torch.testing.assert_close(*momenta, rtol=0, atol=0)
        assert run.results == reference.results
    learnt = distance(theirs["model"], reference.checkpoint("model_0000001")["model"])
    assert distance(ours["model"], theirs["model"]) < 1e-2 * learnt


def check_all_processes_agree(run: Run) -> None:
    """All processes have the same weights after each step of the last start."""
    first, *others = [
        {number: step["weights"] for number, step in run.steps(int(path.stem)).items()}
        for path in sorted(run.record_folder.glob("*.jsonl"))
    ]
    assert first
    assert all(other == first for other in others)


def check_explained(run: Run) -> None:
    """Each machine prints what happened and what to do; the last checkpoint is whole."""
    for job in run.jobs:
        assert job.errors(), job.said_last
        assert all("--resume continues from the last checkpoint in " in line for line in job.errors())
        assert run.torchrun or "Traceback" not in job.said, job.said_last
    tag = run.outputs[0] / "last_checkpoint"
    assert is_whole(run.outputs[0] / tag.read_text())


def test_gradients_are_those_of_one_process_on_the_whole_batch(trained) -> None:
    def gradients(processes: int, rank: int) -> dict[str, torch.Tensor]:
        return torch.load(trained[processes].record_folder / f"gradients{rank}.pth", weights_only=True)

    alone = gradients(1, 0)
    assert all(gradient.abs().max() > 0 for gradient in alone.values())
    for processes in (2, 4):
        assert len(list(trained[processes].record_folder.glob("gradients*"))) == processes
        first = gradients(processes, 0)
        for rank in range(1, processes):
            torch.testing.assert_close(gradients(processes, rank), first, rtol=0, atol=0)
        for name, gradient in alone.items():
            assert relative_error(first[name], gradient) < 1e-3, name
        check_same_weights(trained[processes], trained[1], exactly=False)
        check_all_processes_agree(trained[processes])


def test_evaluation_is_the_same_by_any_number_of_processes(new_run) -> None:
    """Five images in one share, two, and four; with batch norms, whose statistics differ between processes."""
    norms = ["MODEL.RESNETS.NORM", "BN"]
    trained = new_run("evaluated")
    trained.finish(2, *norms)
    assert len(json.loads(trained.results[1])) > 5
    weights = ["MODEL.WEIGHTS", trained.outputs[0] / "model_final.pth"]
    for processes, on in ((1, 1), (2, 1), (4, 2)):
        run = new_run(f"evaluated{processes}")
        run.finish(processes, "--eval-only", *norms, *weights, on=on, torchrun=processes > 1)
        assert run.results == trained.results
        shares = [[line["evaluated"] for line in run.record(rank)] for rank in range(processes)]
        assert sorted(len(share) for share in shares) == {1: [5], 2: [2, 3], 4: [1, 1, 1, 2]}[processes]
        assert len({name for share in shares for name in share}) == 5


def test_a_killed_process_ends_the_run_on_all_machines(new_run, trained, request) -> None:
    """One next to the main process in training, and one on the other machine in evaluation; --resume continues."""
    chance = random.Random(0)
    for fault in range(request.config.getoption("--faults")):
        run = new_run(f"killed{fault}")
        run.start(4, on=2, **SLOWLY)
        run.wait_for_step(chance.randint(1, 2), rank=1)
        time.sleep(chance.uniform(0, 0.8))
        os.kill(run.pid(rank=1), signal.SIGKILL)
        assert run.ended("SIGKILL on the same machine") == [1, 1]
        check_explained(run)
        run.start(4, "--resume", on=2, torchrun=True, **SLOWLY)
        wait_until(lambda: "evaluated" in str(run.record(rank=3)), run.jobs)  # noqa: B023
        os.kill(run.pid(rank=3), signal.SIGKILL)
        assert run.ended("SIGKILL on the other machine, in evaluation") == [1, 1]
        check_explained(run)
        run.finish(4, "--resume", on=2, torchrun=True)
        check_all_processes_agree(run)
        check_same_weights(run, trained[4], exactly=False)


def test_torchrun_and_a_machine_that_vanishes(new_run, trained) -> None:
    """Two machines with separate folders: only the first has the checkpoint."""
    run = new_run("torchrun", own_folders=True)
    run.start(2, on=2, torchrun=True, **SLOWLY)
    run.wait_for_step(3)
    other = run.machines[1]
    other.vanish()
    try:
        if not other.namespace:
            # It is frozen, and can only end when it is back.
            run.jobs[0].wait(LIMIT)
            other.come_back()
        assert run.ended("a machine that vanishes") == [1, 1]
    finally:
        other.come_back()
    check_explained(run)
    run.start(2, "--resume", on=2, torchrun=True, **SLOWLY)
    run.wait_for_step(4)
    run.jobs[1].process.send_signal(signal.SIGTERM)
    # torchrun has no other exit code.
    assert run.ended("SIGTERM to torchrun on the other machine") == [1, 1]
    assert "SIGTERM: stopped after iteration" in run.jobs[0].said
    run.finish(2, "--resume", on=2, torchrun=True)
    assert not list(run.outputs[1].glob("*.pth"))
    check_all_processes_agree(run)
    check_same_weights(run, trained[2], exactly=True)


def test_torchrun_on_one_machine_and_loading_processes(new_run, trained) -> None:
    """The weights are to the last bit those of detectron2's `launch`, also with data loading workers."""
    run = new_run("workers")
    run.finish(2, "DATALOADER.NUM_WORKERS", 2, torchrun=True)
    check_same_weights(run, trained[2], exactly=True)


def test_all_processes_stop_when_asked_or_orphaned(new_run, trained) -> None:
    run = new_run("stopped")
    stops = (
        # To all processes of a job, as from schedulers and Ctrl-C; or to the first process only.
        (0, signal.SIGTERM, os.killpg, ["DATALOADER.NUM_WORKERS", 1]),
        (2, signal.SIGINT, os.killpg, []),
        (4, signal.SIGTERM, os.kill, []),
    )
    for step, number, kill, options in stops:
        run.start(2, "--resume", *options, **SLOWLY)
        run.wait_for_step(step)
        kill(run.jobs[0].process.pid, number)
        assert run.ended(f"{number.name} by {kill.__name__}") == [128 + number], run.said_last
        assert f"{number.name}: stopped after iteration" in run.said
        assert "Traceback" not in run.said
        iteration = max(run.steps(0))
        assert (run.outputs[0] / "last_checkpoint").read_text() == f"model_{iteration:07d}.pth"
    # A process hangs, so the iteration does not end.
    run.start(2, "--resume", **SLOWLY)
    run.wait_for_step(5, rank=1)
    os.kill(run.pid(rank=1), signal.SIGSTOP)
    run.jobs[0].process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    assert run.jobs[0].process.poll() is None
    run.jobs[0].process.send_signal(signal.SIGTERM)
    assert run.ended("a second SIGTERM") == [128 + signal.SIGTERM]
    run.start(2, "--resume", **SLOWLY)
    run.wait_for_step(6)
    run.jobs[0].process.kill()
    assert run.ended("SIGKILL of what launched the processes") == [-signal.SIGKILL]
    run.finish(2, "--resume", torchrun=True)
    check_same_weights(run, trained[2], exactly=True)


def test_resuming_with_more_or_fewer_processes(new_run, trained) -> None:
    """1, 2, 4 and 1 again see the images that one would have seen, in batches of the size that the run began with."""
    run = new_run("varied", own_folders=True)
    # As configured for two processes: for one half of the batch, half the rate, and twice the iterations.
    scaled = ["SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 0.02]
    seen = {}
    for part, processes in enumerate((1, 2, 4, 1), start=1):
        last = 2 * part - 1
        start = {"on": 2 if processes == 4 else 1, "torchrun": processes > 1}
        run.finish(processes, "--resume", *scaled, "SOLVER.MAX_ITER", part, **start)
        # detectron2's words.
        assert f"Auto-scaling the config to batch_size=4, learning_rate=0.01, max_iter={last + 1}" in run.said
        warnings_ = [line for line in run.said.splitlines() if "WRN" in line or "WARNING" in line]
        assert [line for line in warnings_ if "SOLVER.MAX_ITER" not in line] == []
        steps = [run.steps(rank) for rank in range(processes)]
        assert list(steps[0]) == [last - 1, last]
        seen |= {number: [name for step in steps for name in step[number]["files"]] for number in steps[0]}
        check_all_processes_agree(run)
    assert seen == {number: step["files"] for number, step in trained[1].steps(0).items()}
    assert {line["lr"] for line in read_metrics(run.outputs[0]) if "lr" in line} == {0.01}
    check_same_weights(run, trained[1], exactly=False)
