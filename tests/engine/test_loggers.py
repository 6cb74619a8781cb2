"""`SOLVER.LOGGERS`, without a network: what was written, read by each tracker's own reader."""

import json
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage, TensorboardXWriter

from se_detection.engine import loggers
from se_detection.engine.checks import check_settings
from se_detection.engine.loggers import build_loggers

from ..helpers import raises
from .conftest import read_metrics, stop_after

# A class may have any name; MLflow doesn't take a comma.
AP, NAME = "bbox/AP", "bbox/AP-light, red"
WRITTEN = {1: {AP: 1.5, NAME: 2.5}, 3: {AP: 3.0, NAME: 5.0}}
LAST = 4


@pytest.fixture(autouse=True)
def _local(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_PROJECT", tmp_path.name)


@pytest.fixture(scope="module")
def trackio(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # It is read once.
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        return pytest.importorskip("trackio", reason="trackio is not installed: pip install 'se_detection[trackio]'")


def configured(folder: Path, *names: str):
    cfg = get_cfg()
    cfg.merge_from_list(["OUTPUT_DIR", str(folder), "SOLVER.LOGGERS", str(list(names)), "SOLVER.MAX_ITER", LAST])
    return cfg


def write(folder: Path, name: str, rate: float) -> str:
    """A run that is stopped after the first half and resumed for the second; returns its id in the tracker."""
    folder.mkdir()
    cfg = configured(folder, name)
    cfg.SOLVER.BASE_LR = rate
    for iteration, scalars in WRITTEN.items():
        (writer,) = build_loggers(cfg, iteration)
        with EventStorage(iteration) as storage:
            storage.put_scalars(**scalars, smoothing_hint=False)
            storage.put_image("detections/0_a", np.full((3, 4, 5), iteration, np.uint8))
            writer.write()
            # A second time, nothing is new.
            storage.clear_images()
            writer.write()
            storage.iter = iteration + 1
            writer.close()
        # W&B names the file of a start by the second.
        time.sleep(1 if name == "wandb" else 0)
    return json.loads((folder / "loggers.json").read_text())[name]


def wandb_records(path: Path):
    """The records of an offline file: LevelDB's log format with blocks of 32 kB, with W&B's protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, content = path.read_bytes(), 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        # Whole, or the last part.
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(content)
            content = b""
            yield record


@pytest.mark.slow
def test_wandb(tmp_path, monkeypatch) -> None:
    # See conftest.py.
    monkeypatch.delitem(sys.modules, "wandb")
    package = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'se_detection[wandb]'")
    number = write(tmp_path / "run", "wandb", 0.25)
    # The process that writes the files ends.
    package.teardown()
    # Each start has a file, which `wandb sync` appends to the run of this id.
    files = sorted(tmp_path.glob(f"run/wandb/offline-run-*-{number}/run-{number}.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    rows = [
        {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert {row["iteration"]: {key: row[key] for key in (AP, NAME)} for row in rows} == WRITTEN
    assert [row["detections/0_a/width"] for row in rows] == [5, 5]
    configs = [record.run.config.update for record in records if record.HasField("run")]
    assert {item.key: item.value_json for item in configs[0]}["SOLVER.BASE_LR"] == "0.25"
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 0]


@pytest.mark.slow
def test_mlflow(tmp_path) -> None:
    package = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'se_detection[mlflow]'")
    number = write(tmp_path / "run", "mlflow", 0.25)
    client = package.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'se_detection'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (number, "run", "FINISHED")
    for key, name in ((AP, AP), (NAME, NAME.replace(",", "_"))):
        history = {each.step: each.value for each in client.get_metric_history(number, name)}
        assert history == {iteration: scalars[key] for iteration, scalars in WRITTEN.items()}
    assert run.data.params["SOLVER.BASE_LR"] == "0.25"
    assert run.data.params["MODEL.SE.STAGES"] == "['res2', 'res3', 'res4', 'res5']"
    assert len([file for file in client.list_artifacts(number, "images") if file.path.endswith(".png")]) == 2


def test_trackio(tmp_path, trackio) -> None:
    number = write(tmp_path / "run", "trackio", 0.25)
    (run,) = trackio.Api().runs(tmp_path.name)
    assert run.name == number
    assert run.config["SOLVER.BASE_LR"] == 0.25
    rows = trackio.SQLiteStorage.get_logs(tmp_path.name, number)
    assert {row["step"]: {key: row[key] for key in (AP, NAME)} for row in rows} == WRITTEN
    assert all((trackio.utils.MEDIA_DIR / row["detections/0_a"]["file_path"]).is_file() for row in rows)


@pytest.mark.slow
def test_a_resumed_training_continues_the_run_of_its_tracker(build, tmp_path, trackio) -> None:
    words = ("SOLVER.LOGGERS", "['trackio']")
    stop_after(build("tracked", *words), 1)
    trainer = build("tracked", *words, resume=True)
    trainer.train()
    folder = Path(trainer.cfg.OUTPUT_DIR)
    assert not list(folder.glob("events.*"))
    # Images are not kept for TensorBoard's writer.
    assert {iteration for _, _, iteration in trainer.storage._vis_data} == {LAST}
    (run,) = trackio.Api().runs(tmp_path.name)
    rows = trackio.SQLiteStorage.get_logs(tmp_path.name, run.name)
    for key in ("total_loss", AP):
        logged = {line["iteration"]: line[key] for line in read_metrics(folder) if key in line}
        assert logged
        assert {row["step"]: row[key] for row in rows if key in row} == pytest.approx(logged, nan_ok=True)
    assert max(row["step"] for row in rows) == LAST


def test_a_tracker_that_fails_does_not_end_the_training(tmp_path, monkeypatch, caplog) -> None:
    class Away(loggers.TrackerWriter):
        id = "7"

        def __init__(self, *_):
            pass

        def log(self, *_):
            raise ConnectionError("no route\nto host")

        def finish(self, *, complete):
            raise ConnectionError("it is away")

    monkeypatch.setitem(loggers.TRACKERS, "wandb", Away)
    writer, board = build_loggers(configured(tmp_path, "tensorboard", "wandb"), 0)
    assert isinstance(board, TensorboardXWriter)
    with EventStorage() as storage:
        storage.put_scalar(AP, 1.0)
        writer.write()
        writer.close()
    assert "no route to host" in caplog.text
    assert "it is away" in caplog.text
    monkeypatch.setattr(Away, "__init__", lambda self, *_: self.log())
    with raises("run.no_logger", "SOLVER.LOGGERS", "wandb", "no route to host"):
        build_loggers(configured(tmp_path, "wandb"), 0)


def test_a_logger_that_is_not_there_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with raises("run.no_logger", "SOLVER.LOGGERS", "mlflow", "se_detection[mlflow]"):
        check_settings(configured(tmp_path, "mlflow"), 1)
    with raises("config.bad_value", "SOLVER.LOGGERS", "wandbb", "tensorboard, wandb, mlflow, trackio"):
        check_settings(configured(tmp_path, "wandbb"), 1)
