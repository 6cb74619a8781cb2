import json

import numpy as np
import pytest
from PIL import Image

from se_detection.comparison.side_by_side import draw_side_by_side

from ..helpers import raises

GROUND = (90, 120, 90)


def panels(path):
    """The three panels of an image, without their titles."""
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    width = (sheet.shape[1] - 16) // 3
    height = round(width * 240 / 320)
    return [sheet[-height:, start : start + width] for start in (0, width + 8, 2 * (width + 8))]


def colours(panel):
    """The colours of the boxes, without dark lines and the few pixels of text."""
    found, counts = np.unique(panel.reshape(-1, 3), axis=0, return_counts=True)
    frequent = {tuple(colour) for colour, count in zip(found.tolist(), counts, strict=True) if count > 150}
    return frequent - {GROUND, (0, 0, 0)}


@pytest.mark.slow
def test_images_show_ground_truth_and_both_models(runs, tmp_path, annotations) -> None:
    first = annotations["images"][0]["id"]
    boxes = {3: [40, 60, 100, 90], 7: [180, 100, 80, 80]}
    found = [{"image_id": first, "category_id": key, "bbox": box, "score": 0.9} for key, box in boxes.items()]
    unsure = [{**item, "score": 0.49} for item in found[1:]]
    for run, results in zip(runs, (found, found[:1] + unsure), strict=True):
        (run / "inference" / "coco_instances_results.json").write_text(json.dumps(results))

    path = draw_side_by_side(*runs, tmp_path / "pictures", 1)[0]

    truth, baseline, candidate = panels(path)
    assert truth.shape[1] == 640
    cup, plate = (tuple(baseline[round(y * 2 + 60), round(x * 2)]) for x, y, _, _ in boxes.values())
    assert len({cup, plate, GROUND}) == 3
    assert colours(baseline) == {cup, plate}
    assert colours(candidate) == {cup}
    assert colours(truth) <= {cup, plate}
    # The line is on the box's edge, at twice the image's size.
    assert tuple(candidate[2 * 150, 2 * 90]) == cup
    assert tuple(candidate[2 * 100, 2 * 90]) == GROUND


@pytest.mark.slow
def test_images_are_evenly_spaced_over_the_data_set(runs, tmp_path) -> None:
    names = [path.name for path in draw_side_by_side(*runs, tmp_path / "pictures", 3)]
    assert names == ["00000_1.png", "00006_7.png", "00011_12.png"]
    # The last image has neither objects nor detections.
    assert [colours(panel) for panel in panels(tmp_path / "pictures" / names[-1])] == [set()] * 3


def test_missing_images_are_named(runs, tmp_path) -> None:
    (tmp_path / "images" / "1.png").unlink()
    with raises("data.bad_image", "1.png"):
        draw_side_by_side(*runs, tmp_path / "pictures", 1)
    for run in runs:
        results = run / "inference" / "results.json"
        results.write_text(json.dumps({**json.loads(results.read_text()), "image_root": None}))
    with raises("compare.no_images", *runs):
        draw_side_by_side(*runs, tmp_path / "pictures", 1)


def test_a_results_file_is_drawn_next_to_a_run(runs, tmp_path) -> None:
    bare = tmp_path / "theirs.json"
    bare.write_bytes((runs[0] / "inference" / "coco_instances_results.json").read_bytes())
    mixed = draw_side_by_side(bare, runs[1], tmp_path / "mixed", 1, tmp_path / "val.json")[0]
    whole = draw_side_by_side(*runs, tmp_path / "whole", 1)[0]
    for ours, theirs in zip(panels(mixed), panels(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
