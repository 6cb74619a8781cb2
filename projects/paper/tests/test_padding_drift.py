import json

import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from se_detection.data.toy import make_toy_dataset
from se_detection.runs.evaluation_data import image_batches, open_evaluation_data
from se_detection.runs.trained_run import load_trained_run, read_run_config
from tests.helpers import raises
from tests.inference.small_runs import write_run

from ..padding_drift import Drift, _compare, drift_table, padding_drift

IGNORE = ["MODEL.SE.IGNORE_PADDING", "True"]


@pytest.fixture(scope="module")
def run(module_path):
    return write_run(module_path / "run", "INPUT.MIN_SIZE_TEST", "64")


@pytest.fixture(scope="module")
def images(module_path):
    """Five toy images, each cropped to another size."""
    json_file = make_toy_dataset(module_path / "toy", split="val", count=5)
    content = json.loads(json_file.read_text())
    for number, entry in enumerate(content["images"]):
        path = module_path / "toy" / "val" / entry["file_name"]
        with Image.open(path) as image:
            cut = image.crop((0, 0, image.width - 9 * number, image.height - 3 * (number % 3)))
        cut.save(path)
        entry["width"], entry["height"] = cut.size
    content["annotations"] = [{**content["annotations"][0], "bbox": [0, 0, 9, 9], "area": 81, "segmentation": []}]
    json_file.write_text(json.dumps(content))
    return json_file, module_path / "toy" / "val"


@pytest.mark.slow
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


@pytest.mark.slow
def test_no_differences_with_ignore_padding(run, images, run_script, tmp_path, capsys) -> None:
    leaking = padding_drift(run, batch=3, split=images)
    file = tmp_path / "drift.json"
    run_script(
        *("analyze.py", "padding", "--run", run, "--batch", 3, "--split", *images, "--images", 5),
        *("--json", file, *IGNORE),
    )
    ignoring = json.loads(file.read_text())
    assert len(leaking.gates) == leaking.images == ignoring["images"] == 5
    assert ignoring["gates"]["max"] < 1e-5 < 5e-5 < max(leaking.gates)
    assert max(values["max"] for values in ignoring["features"].values()) < 1e-5
    assert (ignoring["lost"], ignoring["gained"], ignoring["batch"]) == (0, 0, 3)
    assert ignoring["scores"]["max"] < 1e-4
    assert f"{ignoring['gates']['max']:.1e}" in capsys.readouterr().out


def test_detections_are_matched_by_class_and_overlap() -> None:
    def instances(*rows):
        found = Instances((100, 100), pred_boxes=Boxes(torch.tensor([row[:4] for row in rows]).reshape(-1, 4).float()))
        found.scores = torch.tensor([row[4] for row in rows])
        found.pred_classes = torch.tensor([row[5] for row in rows])
        return found

    drift = Drift(images=1, batch=2)
    alone = instances((0, 0, 10, 10, 0.9, 0), (0, 1, 10, 10, 0.8, 0), (50, 50, 60, 60, 0.7, 1), (0, 0, 10, 10, 0.6, 1))
    together = instances((0, 0, 10, 10, 0.5, 0), (0, 3, 10, 10, 0.4, 0), (52, 50, 60, 60, 0.7, 2))
    _compare(drift, alone, together)
    assert drift.scores == pytest.approx([0.4, 0.4])
    assert drift.boxes == [0, 2]
    assert (drift.detections, drift.lost, drift.gained) == (4, 2, 1)


def test_table_without_gates_and_detections() -> None:
    drift = Drift(images=2, batch=2, features={"p2": [0.25, 0.75]})
    assert "5.0e-01  7.5e-01" in drift_table(drift)
    assert "gate" not in drift_table(drift)


@pytest.mark.parametrize(("options", "named"), [({"batch": 1}, "--batch 1"), ({"images": 1}, "val.json")])
def test_a_single_image_is_rejected(run, images, options, named) -> None:
    with raises("padding.small_batch", named, "at least 2"):
        padding_drift(run, split=images, **options)
