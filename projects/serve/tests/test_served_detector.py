"""Detections and gate maps, against detectron2's predictor and the gate analysis."""

import json
import shutil
from io import BytesIO

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from PIL import Image

from se_detection.gates.excitations import explain
from se_detection.gates.heat_map import energy_maps, measure_effect
from tests.helpers import raises
from tests.inference.small_runs import KINDS, image, run_config, write_run

from ..served_detector import SHOWN_SIZE, ServedDetector
from .conftest import toy

pytestmark = pytest.mark.slow


def check(detector: ServedDetector, predictor: DefaultPredictor) -> None:
    entries, seconds = detector.detect(image(96, 128))
    expected = predictor(image(96, 128))["instances"]
    assert len(entries) == len(expected) > 10
    assert [entry["category_id"] for entry in entries] == expected.pred_classes.tolist()
    corners = [[x, y, x + width, y + height] for x, y, width, height in (entry["bbox"] for entry in entries)]
    torch.testing.assert_close(torch.tensor(corners), expected.pred_boxes.tensor, rtol=0, atol=1e-4)
    scores = [entry["score"] for entry in entries]
    torch.testing.assert_close(torch.tensor(scores), expected.scores, rtol=0, atol=1e-5)
    assert 0 < seconds < 60


def test_detections_are_those_of_detectron2s_predictor(detectors) -> None:
    for detector in detectors:
        check(detector, DefaultPredictor(run_config(detector.run)))


def test_masks_are_drawn(tmp_path) -> None:
    run = write_run(tmp_path / "run", *KINDS["Mask R-CNN"])
    detector = ServedDetector(run)
    check(detector, DefaultPredictor(run_config(run)))
    entries, _ = detector.detect(image(96, 128))
    with_masks = detector.draw(image(96, 128), entries)
    for entry in entries:
        del entry["segmentation"]
    assert with_masks.size == (640, 480)
    assert with_masks.tobytes() != detector.draw(image(96, 128), entries).tobytes()


def test_other_weights_and_fused(folder, detectors, tmp_path) -> None:
    state = torch.load(folder / "SE_R" / "model_final.pth", weights_only=True)
    state["model"]["roi_heads.box_predictor.cls_score.bias"] += torch.tensor([3.0, 0.0, 0.0, 0.0, 0.0])
    torch.save(state, tmp_path / "model_0000009.pth")
    cfg = run_config(folder / "SE_R")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_0000009.pth")
    fused = ServedDetector(folder / "SE_R", tmp_path / "model_0000009.pth", fuse=True)
    check(fused, DefaultPredictor(cfg))
    assert fused.predictor.fused
    assert [bool(detector.gates) for detector in (fused, *detectors)] == [False, False, True]
    # The means are those of the newest weights.
    other = ServedDetector(folder / "SE_R", tmp_path / "model_0000009.pth")
    with raises("gates.no_means", "model_0000009.pth", f"--run {folder / 'SE_R'} --no-ablation --overwrite"):
        other.gate_map(image(96, 128))


def test_a_large_image_is_drawn_smaller(detectors) -> None:
    drawn = detectors[0].draw(image(1200, 2000), [])
    assert drawn.size == (SHOWN_SIZE, 960)
    expected = Image.fromarray(image(1200, 2000)[:, :, ::-1]).resize(drawn.size)
    assert np.abs(np.asarray(drawn, float) - np.asarray(expected, float)).mean() < 6


def test_the_map_is_that_of_the_analysis(folder, detectors, tmp_path) -> None:
    means = explain(folder / "SE_R", split=toy(folder), ablation=False)
    rgb = Image.fromarray(image(96, 128)[:, :, ::-1])
    rgb.save(tmp_path / "image.png")
    drawn = BytesIO()
    energy_maps(measure_effect(means, tmp_path / "image.png"), rgb).savefig(drawn, format="png", bbox_inches="tight")
    ours = np.asarray(detectors[1].gate_map(image(96, 128)))
    np.testing.assert_array_equal(ours, np.asarray(Image.open(drawn).convert("RGB")))


@pytest.mark.parametrize(
    ("file", "content"), [("state.json", json.dumps({"of": {"weights": "0", "config": "0"}})), ("excitations.npz", "")]
)
def test_damaged_means(folder, detectors, tmp_path, monkeypatch, file, content) -> None:
    shutil.copytree(folder / "SE_R" / "excitations", tmp_path / "excitations")
    (tmp_path / "excitations" / file).write_text(content)
    monkeypatch.setattr(detectors[1], "run", tmp_path)
    with raises("gates.no_means", "model_final.pth", "se-det analyze excitations"):
        detectors[1].gate_map(image(96, 128))
