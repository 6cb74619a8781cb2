"""A run of detectron2's own trainer has no record; the errors about it name the command that writes one."""

import json
import re
import shlex

import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from se_detection import SEPredictor, UserError, model_zoo
from se_detection.runs import record
from se_detection.runs.evaluated_run import read_run
from se_detection_cli.main import main_parser

from .conftest import CONFIG, TINY, data_flags


@pytest.mark.slow
def test_the_named_command_writes_the_record(tiny, tmp_path, monkeypatch, fresh_catalogs) -> None:
    monkeypatch.setattr(record, "backbone_gflops", lambda *_: 1.0)
    run = tmp_path / "a run"
    cfg = model_zoo.get_config(CONFIG)
    assert isinstance(cfg, CfgNode)
    own = [
        "DATASETS.TRAIN",
        ("own_train",),
        "DATASETS.TEST",
        ("own_val",),
        "MODEL.DEVICE",
        "cpu",
        "OUTPUT_DIR",
        str(run),
    ]
    cfg.merge_from_list([*TINY, *own])
    # What is left of a training on data that only that process had registered.
    run.mkdir()
    (run / "config.yaml").write_text(cfg.dump())
    DetectionCheckpointer(build_model(cfg), str(run)).save("model_final", iteration=3)

    commands = set()
    for use, code in ((SEPredictor.from_run, "run.no_classes"), (read_run, "run.not_evaluated")):
        with pytest.raises(UserError) as caught:
            use(run)
        assert caught.value.code == code
        commands |= set(re.findall(r"se-det (.+?) OUTPUT_DIR", caught.value.message))
    (command,) = commands
    args = main_parser().parse_args([*shlex.split(command), *data_flags(tiny)[4:], "OUTPUT_DIR", str(run)])
    args.run_command(args)

    categories = json.loads((tiny / "annotations" / "val.json").read_text())["categories"]
    assert SEPredictor.from_run(run).categories == {category["id"]: category["name"] for category in categories}
    assert read_run(run).record["classes"] == [category["name"] for category in categories]
