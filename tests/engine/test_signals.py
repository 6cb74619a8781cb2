"""A run that is stopped by a scheduler's SIGTERM, killed, and resumed, as a process of its own."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from se_detection.engine import signals
from se_detection.runs.checkpoints import is_whole

from .conftest import CONFIG, data_flags, read_metrics, train_arguments
from .forked_command import ForkedCommand

RUN = [
    *("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 3, "SOLVER.EMA_DECAY", 0.5),
    *("DATALOADER.NUM_WORKERS", 1),
]
TRAIN_NET = Path(__file__).parents[2] / "tools" / "train_net.py"
AVERAGED = "/trainer/hooks/MovingAverage/trained"


def start(folder: Path, data: Path) -> ForkedCommand:
    """tools/train_net.py --resume in `folder / "run"`, after its first checkpoint."""
    output = folder / "run"
    words = ["--resume", "--config-file", CONFIG, *data_flags(data), *train_arguments(data, output, *RUN).opts]
    command = ForkedCommand(folder / "log", TRAIN_NET, *words, HOME=str(folder))
    command.wait_for((output / "last_checkpoint").exists)
    return command


def leaves(node, path: str = ""):
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, node


def check_same(run: Path, whole: Path) -> None:
    """The same to the last bit: weights, their average, momentum, schedule, position, and evaluation."""
    ours, theirs = (dict(leaves(torch.load(folder / "model_final.pth", weights_only=True))) for folder in (run, whole))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value, key
    average, trained = (f"{place}/backbone.res3.0.conv1.weight" for place in ("/model", AVERAGED))
    assert not torch.equal(ours[average], ours[trained])
    for name in ("results.json", "coco_instances_results.json"):
        assert (run / "inference" / name).read_bytes() == (whole / "inference" / name).read_bytes()
    found, expected = (
        {line["iteration"]: line["bbox/AP"] for line in read_metrics(folder) if "bbox/AP" in line}
        for folder in (run, whole)
    )
    assert found == expected
    logged = [(line["iteration"], key) for line in read_metrics(run) for key in line if key != "iteration"]
    assert len(logged) == len(set(logged))
    assert not list(run.glob("*.part"))


@pytest.mark.slow
def test_a_run_that_is_stopped_and_killed_resumes_exactly(build, tiny, tmp_path, module_path) -> None:
    whole = build("whole", *RUN)
    whole.train()
    command, output = start(tmp_path, tiny), tmp_path / "run"
    process = command.process.pid
    # The files of a paused run are those that SIGKILL would leave.
    os.killpg(process, signal.SIGSTOP)
    killed = shutil.copytree(output, module_path / "killed")
    os.killpg(process, signal.SIGCONT)
    # A scheduler signals all processes, also the data loading workers.
    os.killpg(process, signal.SIGTERM)
    assert command.ended() == 128 + signal.SIGTERM, command.log
    assert "Traceback" not in command.log
    assert "SIGTERM: stopped after iteration" in command.log

    (module_path / "stopped").symlink_to(output)
    for folder in (killed, module_path / "stopped"):
        assert is_whole(folder / (folder / "last_checkpoint").read_text())
        rest = build(folder.name, *RUN, resume=True)
        assert 0 < rest.start_iter < 6
        assert not list(folder.glob("*.corrupt"))
        rest.train()
        check_same(folder, module_path / "whole")


def test_a_request_to_stop_without_a_timer(monkeypatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(signals, "HAS_TIMER", False)
    for name in ("SIGALRM", "setitimer"):
        monkeypatch.delattr(signal, name)
    stop = signals.StopRequest(signals.RankMaximum())
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(signals.Interrupted) as caught:
        stop.raise_if_any()
    assert caught.value.code == 128 + signal.SIGTERM
