"""Runs that are killed, stopped, or short of disk, and resumed. `pytest --faults N` tries each random fault N times."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from se_detection.runs.checkpoints import is_whole, numbered_checkpoints

from .conftest import SMALL, read_metrics

STEPS = 12
AVERAGED = "/trainer/hooks/MovingAverage/trained"
RUN = [
    *SMALL,
    *("SOLVER.MAX_ITER", str(STEPS), "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "6", "SEED", "3"),
    *("INPUT.MIN_SIZE_TRAIN", "(48,64,80)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.EMA_DECAY", "0.5"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "DATALOADER.NUM_WORKERS", "1"),
]


class Runs:
    """Starts tools/train_net.py as a user would, and reads its log."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        self.command = command

    def start(self, *arguments: object, **options) -> subprocess.Popen:
        log = (self.folder / "log").open("w")
        return subprocess.Popen(
            [*self.command, *map(str, arguments)],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )

    def finish(self, *arguments: object, **options) -> int:
        return self.start(*arguments, **options).wait(timeout=300)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_for(self, process: subprocess.Popen, text: str) -> None:
        deadline = time.monotonic() + 120
        while text not in self.log:
            assert process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)


@pytest.fixture
def runs(tmp_path, train_net, se_config, tiny_flags) -> Runs:
    return Runs(tmp_path, [sys.executable, str(train_net), "--resume", "--config-file", se_config, *tiny_flags, *RUN])


@pytest.fixture(scope="module")
def uninterrupted(module_path, tiny) -> Path:
    """A run that was not interrupted, and its time in `seconds`."""
    script = Path(__file__).parents[2] / "tools" / "train_net.py"
    config = Path(__file__).parents[2] / "configs" / "Toy" / "faster_rcnn_SE_R_18_FPN.yaml"
    data = [
        *("--train-json", str(tiny / "annotations" / "train.json"), "--train-images", str(tiny / "train")),
        *("--val-json", str(tiny / "annotations" / "val.json"), "--val-images", str(tiny / "val")),
    ]
    started = time.monotonic()
    runs = Runs(module_path, [sys.executable, str(script), "--config-file", str(config), *data, *RUN])
    assert runs.finish("OUTPUT_DIR", module_path / "run") == 0, runs.log
    (module_path / "run" / "seconds").write_text(str(time.monotonic() - started))
    return module_path / "run"


def leaves(node, path: str = ""):
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, node


def check_same(run: Path, uninterrupted: Path) -> None:
    """The same to the last bit: weights, their average, momentum, schedule, position, and evaluation."""
    ours, theirs = (
        dict(leaves(torch.load(folder / "model_final.pth", weights_only=True))) for folder in (run, uninterrupted)
    )
    torch.testing.assert_close(
        {key: value for key, value in ours.items() if isinstance(value, torch.Tensor)},
        {key: value for key, value in theirs.items() if isinstance(value, torch.Tensor)},
        rtol=0,
        atol=0,
    )
    assert {key: value for key, value in ours.items() if not isinstance(value, torch.Tensor)} == {
        key: value for key, value in theirs.items() if not isinstance(value, torch.Tensor)
    }
    average, trained = (f"{place}/backbone.fpn_output2.weight" for place in ("/model", AVERAGED))
    assert not torch.equal(ours[average], ours[trained])
    for name in ("results.json", "coco_instances_results.json"):
        assert (run / "inference" / name).read_bytes() == (uninterrupted / "inference" / name).read_bytes()
    found, expected = (
        {line["iteration"]: line.get("bbox/AP") for line in read_metrics(folder)} for folder in (run, uninterrupted)
    )
    assert {key: value for key, value in found.items() if value is not None} == {
        key: value for key, value in expected.items() if value is not None
    }
    logged = [(line["iteration"], key) for line in read_metrics(run) for key in line if key != "iteration"]
    assert len(logged) == len(set(logged))
    assert not list(run.glob("*.part"))


def test_killed_at_any_moment(runs, uninterrupted, tmp_path, request) -> None:
    """SIGKILL three times, at random moments; each time the same command resumes."""
    chance = random.Random(request.config.getoption("--faults"))
    seconds = float((uninterrupted / "seconds").read_text())
    for fault in range(request.config.getoption("--faults")):
        run, kills = tmp_path / f"run{fault}", 0
        while kills < 3:
            process = runs.start("OUTPUT_DIR", run)
            # After the start, so that the run makes progress.
            runs.wait_for(process, "Starting training from iteration")
            time.sleep(chance.uniform(0, seconds / 2))
            process.kill()
            if process.wait() == 0:
                break
            kills += 1
            last = run / "last_checkpoint"
            assert not last.exists() or is_whole(run / last.read_text())
            assert not list(run.glob("*.corrupt"))
        assert runs.finish("OUTPUT_DIR", run) == 0, runs.log
        check_same(run, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(runs, uninterrupted, tmp_path, number) -> None:
    """A scheduler signals all processes, also the data loading workers, and gets 128 + the signal's number."""
    run = tmp_path / "run"
    process = runs.start("OUTPUT_DIR", run)
    runs.wait_for(process, "Starting training from iteration")
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == 128 + number, runs.log
    assert "Traceback" not in runs.log
    assert f"{number.name}: stopped after iteration" in runs.log
    assert is_whole(run / (run / "last_checkpoint").read_text())
    assert runs.finish("OUTPUT_DIR", run) == 0, runs.log
    check_same(run, uninterrupted)


def test_a_signal_during_the_evaluation(runs, tmp_path) -> None:
    """After a step without a periodic checkpoint: it is saved, and evaluated when the run resumes."""
    run, periods = tmp_path / "run", ["TEST.EVAL_PERIOD", 4, "SOLVER.MAX_ITER", 5]
    process = runs.start("OUTPUT_DIR", run, *periods)
    runs.wait_for(process, "Start inference")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM, runs.log
    assert "copypaste" not in runs.log
    assert "SIGTERM: stopped after iteration 3, which was saved" in runs.log
    assert (run / "last_checkpoint").read_text() == "model_0000003.pth"
    assert runs.finish("OUTPUT_DIR", run, *periods) == 0, runs.log
    assert [line["iteration"] for line in read_metrics(run) if "bbox/AP" in line] == [3, 5]


def test_a_second_signal_stops_at_once(runs, tmp_path) -> None:
    """During a step on large images, which takes longer than the time in which two signals are one request."""
    large = ["SOLVER.IMS_PER_BATCH", 8, "INPUT.MIN_SIZE_TRAIN", "(1000,)", "INPUT.MAX_SIZE_TRAIN", 1000]
    process = runs.start("OUTPUT_DIR", tmp_path / "run", *large)
    runs.wait_for(process, "Starting training from iteration")
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        assert process.poll() is None
        time.sleep(2.2)
    assert process.wait(timeout=1) == -signal.SIGTERM
    assert not list((tmp_path / "run").glob("model_*"))


def test_a_finished_run_is_evaluated(runs, uninterrupted, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "inference")
    record = json.loads((run / "run.json").read_text())
    assert runs.finish("OUTPUT_DIR", run) == 0, runs.log
    assert f"is finished ({STEPS} iterations): it is evaluated" in runs.log
    check_same(run, uninterrupted)
    resumed = json.loads((run / "run.json").read_text())
    assert {**resumed, "resumed": None} == {**record, "resumed": None}
    assert [entry["iteration"] for entry in resumed["resumed"]] == [STEPS]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
def test_a_broken_checkpoint_is_set_aside(runs, uninterrupted, tmp_path, damage) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    newest = run / "model_final.pth"
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncated": content[:-5000], "flipped": content, "empty": b"", "missing": b""}[damage])
    if damage == "missing":
        newest.unlink()
    broken = newest.read_bytes() if damage != "missing" else None
    assert runs.finish("OUTPUT_DIR", run) == 0, runs.log
    if broken is not None:
        assert (run / "model_final.pth.corrupt").read_bytes() == broken
        assert "model_final.pth is truncated or corrupt and was set aside as model_final.pth.corrupt" in runs.log
        assert "is truncated or corrupt" in (run / "log.txt").read_text()
    assert f"Resuming from {run / 'model_0000008.pth'}" in runs.log
    check_same(run, uninterrupted)


def test_a_run_without_whole_checkpoint_is_not_resumed(runs, tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model_0000002.pth", "model_0000005.pth"):
        (run / name).write_bytes(b"PK\3\4 no more")
    assert runs.finish("OUTPUT_DIR", run) == 2
    assert "all checkpoints are corrupt (model_0000005.pth, model_0000002.pth)" in runs.log
    assert sorted(path.name for path in run.iterdir()) == ["model_0000002.pth", "model_0000005.pth"]


def test_a_full_disk_loses_no_checkpoint(runs, uninterrupted, tmp_path) -> None:
    """A limit of file sizes to two thirds of a checkpoint acts like a full disk."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    for name in ("model_final.pth", "model_0000008.pth"):
        (run / name).unlink()
    (run / "last_checkpoint").write_text("model_0000005.pth")
    whole = (run / "model_0000005.pth").read_bytes()
    size = len(whole) * 2 // 3

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    assert runs.finish("OUTPUT_DIR", run, preexec_fn=limit) == 2, runs.log
    last = runs.log.strip().splitlines()[-1]
    assert last.startswith("error: the checkpoint could not be saved (model_0000005.pth is kept)"), last
    assert "free some space" in last
    assert (run / "last_checkpoint").read_text() == "model_0000005.pth"
    assert (run / "model_0000005.pth").read_bytes() == whole
    assert not list(run.glob("*.part"))
    assert runs.finish("OUTPUT_DIR", run) == 0, runs.log
    check_same(run, uninterrupted)


def test_values_that_a_checkpoint_would_override_are_refused(runs, uninterrupted, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert runs.finish("OUTPUT_DIR", run, "SOLVER.BASE_LR", "0.5") == 2
    assert "--resume: SOLVER.BASE_LR was 0.05 in the run in" in runs.log
    # Other images need another run.
    data = json.loads((Path(runs.command[runs.command.index("--train-json") + 1])).read_text())
    gone = data["images"].pop()["id"]
    data["annotations"] = [item for item in data["annotations"] if item["image_id"] != gone]
    (tmp_path / "train.json").write_text(json.dumps(data))
    runs.command[runs.command.index("--train-json") + 1] = str(tmp_path / "train.json")
    assert runs.finish("OUTPUT_DIR", run, "SOLVER.MAX_ITER", 14) == 2
    assert "the training data (train_train) has changed since the run" in runs.log
    assert {path: path.read_bytes() for path in before} == before


def test_the_last_checkpoints_and_the_best_are_kept(runs, uninterrupted, tmp_path) -> None:
    run = tmp_path / "run"
    assert runs.finish("OUTPUT_DIR", run, "SOLVER.CHECKPOINTS_TO_KEEP", 2, "TEST.EVAL_PERIOD", 2) == 0, runs.log
    assert list(numbered_checkpoints(run)) == [5, 8]
    assert (run / "last_checkpoint").read_text() == "model_final.pth"
    evaluated = {line["iteration"]: line["bbox/AP"] for line in read_metrics(run) if "bbox/AP" in line}
    best = torch.load(run / "model_best.pth", weights_only=True)
    # The first of equal ones.
    assert best["iteration"] == max(evaluated, key=lambda iteration: (evaluated[iteration], -iteration))
    assert best["bbox/AP"] == evaluated[best["iteration"]]
    assert best.keys() == {"model", "assumptions", "iteration", "bbox/AP"}
