"""Importing and using the engine leaves the process as it was: logging, environment and Pillow."""

import errno
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from detectron2.config import get_cfg

from se_detection import UserError
from se_detection.engine import launch
from se_detection.engine.train_and_evaluate import launch_run
from se_detection.engine.trainer import Trainer

TRAIN_LOOP = logging.getLogger("detectron2.engine.train_loop")
ONE = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}


class FullDisk(Trainer):
    raised = True

    @staticmethod
    def register_data(args) -> None:
        FullDisk.raised = logging.raiseExceptions
        raise OSError(errno.ENOSPC, "No space left on device", "log.txt")


def test_logging_is_as_before_after_a_run() -> None:
    filters = list(TRAIN_LOOP.filters)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(UserError, match="free some space"):
        launch_run(cfg, SimpleNamespace(**ONE), trainer_class=FullDisk)
    assert not FullDisk.raised
    assert logging.raiseExceptions
    assert TRAIN_LOOP.filters == filters


@pytest.mark.parametrize("before", [None, "0,1"])
@pytest.mark.parametrize(("device", "seen"), [("cpu", ""), ("cuda", None)])
def test_gpus_are_hidden_from_launched_processes_only(monkeypatch, before, device, seen) -> None:
    found = []
    monkeypatch.setattr(launch, "launch", lambda *args, **kwargs: found.append(os.environ.get("CUDA_VISIBLE_DEVICES")))
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = device
    launch_run(cfg, SimpleNamespace(**{**ONE, "num_gpus": 2}))
    assert found == [before if seen is None else seen]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_importing_leaves_pillow_and_logging_as_they_are() -> None:
    code = """
import logging, os
from PIL import EpsImagePlugin
before = EpsImagePlugin.gs_binary, logging.raiseExceptions, os.environ.get("CUDA_VISIBLE_DEVICES")
import se_detection.engine, se_detection.inference.predictor
assert before == (EpsImagePlugin.gs_binary, logging.raiseExceptions, os.environ.get("CUDA_VISIBLE_DEVICES"))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
