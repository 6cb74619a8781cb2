import json

import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from se_detection.errors import UserError
from se_detection.runs.evaluation_data import image_batches, open_evaluation_data
from se_detection.runs.trained_run import load_trained_run, read_run_config

from .. import padding_drift as module
from ..padding_drift import Drift, drift_table, padding_drift

BN = ["MODEL.RESNETS.NORM", "BN"]
IGNORE = ["MODEL.SE.IGNORE_PADDING", "True"]


@pytest.fixture(scope="module")
def run(make_run):
    return make_run("SE_R_18_FPN", *BN, "INPUT.MIN_SIZE_TEST", "96", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")


@pytest.fixture(scope="module")
def images(toy, module_path):
    """The toy images, each cropped to another size."""
    content = json.loads((toy / "annotations" / "val.json").read_text())
    for number, entry in enumerate(content["images"]):
        with Image.open(toy / "val" / entry["file_name"]) as image:
            cut = image.crop((0, 0, image.width - 7 * number, image.height - 3 * (number % 5)))
        cut.save(module_path / entry["file_name"])
        entry["width"], entry["height"] = cut.size
    content["annotations"] = [{**content["annotations"][0], "bbox": [0, 0, 9, 9], "area": 81, "segmentation": []}]
    (module_path / "val.json").write_text(json.dumps(content))
    return module_path / "val.json", module_path


def test_differences_equal_those_of_two_forward_passes(run, images) -> None:
    drift = padding_drift(run, images=2, batch=2, split=images)
    trained = load_trained_run(run, read_run_config(run))
    model = trained.model
    inputs = [entry for (entry,) in image_batches(trained.cfg, open_evaluation_data(trained, images, 2).images)]
    largest = {}
    with torch.no_grad():
        shared = model.backbone(model.preprocess_image(inputs).tensor)
        for row, entry in enumerate(inputs):
            for name, values in model.backbone(model.preprocess_image([entry]).tensor).items():
                stride = model.backbone.output_shape()[name].stride
                height, width = (-(-side // stride) for side in entry["image"].shape[1:])
                own, theirs = values[0, :, :height, :width], shared[name][row, :, :height, :width]
                error = ((own - theirs).abs().max() / own.abs().max()).item()
                largest[name] = max(largest.get(name, 0), error)
    assert {name: max(values) for name, values in drift.features.items()} == pytest.approx(largest)
    assert drift.images == 2
    assert drift.detections > 0


def test_no_differences_with_ignore_padding(run, images) -> None:
    leaking = padding_drift(run, batch=3, split=images)
    ignoring = padding_drift(run, batch=3, split=images, overrides=IGNORE)
    assert len(ignoring.gates) == ignoring.images == 12
    assert max(ignoring.gates) < 1e-5 < 1e-3 < max(leaking.gates)
    assert max(max(values) for values in ignoring.features.values()) < 1e-5
    assert (ignoring.lost, ignoring.gained) == (0, 0)
    assert max(ignoring.scores) < 1e-4


def test_detections_are_matched_by_class_and_overlap() -> None:
    def instances(*rows):
        found = Instances((100, 100), pred_boxes=Boxes(torch.tensor([row[:4] for row in rows]).reshape(-1, 4).float()))
        found.scores = torch.tensor([row[4] for row in rows])
        found.pred_classes = torch.tensor([row[5] for row in rows])
        return found

    drift = Drift(images=1, batch=2)
    alone = instances((0, 0, 10, 10, 0.9, 0), (0, 1, 10, 10, 0.8, 0), (50, 50, 60, 60, 0.7, 1), (0, 0, 10, 10, 0.6, 1))
    together = instances((0, 0, 10, 10, 0.5, 0), (0, 3, 10, 10, 0.4, 0), (52, 50, 60, 60, 0.7, 2))
    module._compare(drift, alone, together)
    assert drift.scores == pytest.approx([0.4, 0.4])
    assert drift.boxes == [0, 2]
    assert (drift.detections, drift.lost, drift.gained) == (4, 2, 1)


def test_command(run, run_script, tmp_path, capsys) -> None:
    run_script("analyze.py", "padding", "--run", run, "--images", 2, "--json", tmp_path / "drift.json", *IGNORE)
    content = json.loads((tmp_path / "drift.json").read_text())
    assert content["images"] == 2
    assert f"{content['gates']['max']:.1e}" in capsys.readouterr().out


def test_table_without_gates_and_detections() -> None:
    drift = Drift(images=2, batch=2, features={"p2": [0.25, 0.75]})
    assert "5.0e-01  7.5e-01" in drift_table(drift)
    assert "gate" not in drift_table(drift)


@pytest.mark.parametrize("options", [{"batch": 1}, {"images": 1}])
def test_a_single_image_is_rejected(run, options) -> None:
    with pytest.raises(UserError, match="at least 2"):
        padding_drift(run, **options)
