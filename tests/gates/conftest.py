"""A run with an SE detector on a few toy images, and its analysis."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from se_detection import model_zoo
from se_detection.checkpoint.assumptions import WeightsAssumptions
from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.data.toy import SHAPES, make_toy_dataset
from se_detection.gates.excitations import explain
from se_detection.gates.gate_tables import write_excitations
from se_detection.gates.recorder import se_gates

SMALL = [
    *("MODEL.RESNETS.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "INPUT.MIN_SIZE_TEST", 64, "MODEL.DEVICE", "cpu"),
    *("MODEL.SE.STAGES", ["res3", "res5"], "MODEL.SE.INIT", "default", "DATASETS.TEST", ("images",)),
]
IMAGES, SOME = 12, 4
# The gate of this block is the same for all images.
CONSTANT = "SE_3_1"


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """Twelve images: `annotations/val.json` and `val/`. The last image has no objects."""
    folder = tmp_path_factory.mktemp("pictures")
    json_file = make_toy_dataset(folder, split="val", count=IMAGES)
    content = json.loads(json_file.read_text())
    last = content["images"][-1]["id"]
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] != last]
    json_file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def make_run(toy, tmp_path_factory):
    """A function that writes a run with random weights, with overrides of its config.

    Its gates depend on the image, like those of a trained network.
    """

    def make(name: str, *overrides: object) -> Path:
        run = tmp_path_factory.mktemp(name)
        cfg = model_zoo.get_config(f"Toy/faster_rcnn_{name}")
        cfg.merge_from_list([*SMALL, *overrides])
        (run / "config.yaml").write_text(cfg.dump())
        torch.manual_seed(0)
        model = build_model(cfg)
        for gate in se_gates(model).values():
            gate.fc1.weight.data *= 8
            gate.fc2.weight.data *= 8
        if CONSTANT in se_gates(model):
            se_gates(model)[CONSTANT].fc2.weight.data.zero_()
        StrictCheckpointer(model, str(run), assumptions=WeightsAssumptions.from_cfg(cfg)).save("model_final")
        data = {"images": {"json": str(toy / "annotations" / "val.json"), "images": str(toy / "val")}}
        (run / "run.json").write_text(json.dumps({"data": data, "classes": list(SHAPES)}))
        return run

    return make


@pytest.fixture(scope="session", autouse=True)
def _short_timing_and_small_plots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("se_detection.gates.gate_plots.DPI", 40)
        patch.setattr("se_detection.gates.heat_map.DPI", 40)
        patch.setattr("se_detection.gates.ablation.TIMED_IMAGES", 2)
        patch.setattr("se_detection.gates.time_share.REPEATS", 2)
        yield


@pytest.fixture(scope="session")
def se_run(make_run) -> Path:
    return make_run("SE_R_18_FPN")


@pytest.fixture(scope="session")
def some_explained(se_run, tmp_path_factory):
    """An analysis of only a few of the images."""
    return explain(se_run, tmp_path_factory.mktemp("some"), images=SOME)


@pytest.fixture(scope="session")
def explained(se_run, tmp_path_factory):
    return explain(se_run, tmp_path_factory.mktemp("explained"))


@pytest.fixture(scope="session")
def written(explained) -> list[Path]:
    """The files of an analysis, with its plots."""
    return write_excitations(explained)
