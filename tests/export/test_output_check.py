import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from se_detection.export.exporter import Export, Form
from se_detection.export.output_check import compare_detections, compare_maps


def instances(boxes, scores, classes) -> Instances:
    result = Instances((100, 100))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores)
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return result


IMAGE = torch.zeros(3, 60, 100, dtype=torch.uint8)
ORIGINAL = instances([[0, 0, 10, 10], [50, 50, 70, 70], [20, 0, 30, 10]], [0.9, 0.8, 0.1], [0, 1, 1])


def test_detections_are_paired_in_any_order_and_the_largest_difference_is_kept() -> None:
    sizes = []

    def original(image):
        sizes.append(tuple(image.shape[1:]))
        return ORIGINAL

    exported = instances([[50, 50, 70, 68.5], [0, 0, 10, 10.25], [20, 0, 30, 10]], [0.85, 0.9, 0.1], [1, 0, 0])
    difference = compare_detections(original, lambda image: exported, [IMAGE])
    assert sizes == [(60, 100), (45, 75), (75, 125), (100, 60)]
    assert difference.worst == {"boxes": 1.5, "scores": pytest.approx(0.05)}
    # The last detections have different classes: both are unpaired, at four sizes.
    assert (difference.images, difference.detections, difference.unpaired) == (4, 12, 8)


def test_missing_detections_are_unpaired() -> None:
    difference = compare_detections(lambda image: ORIGINAL, lambda image: instances([], [], []), [IMAGE])
    assert (difference.detections, difference.unpaired) == (12, 12)


def test_map_differences_are_relative_to_the_largest_value() -> None:
    maps = {"p2": torch.tensor([-4.0, 1.0]), "p3": torch.tensor([1.0, 1.0])}
    other = {"p2": torch.tensor([-4.0, 2.0]), "p3": torch.tensor([1.0, math.nan])}
    difference = compare_maps(lambda x: maps, lambda x: other, [torch.zeros(2, 3, 8, 8)])
    assert difference.worst == {"p2": 0.25, "p3": math.inf}


def test_tf32_is_off_during_the_comparison() -> None:
    seen = []

    def original(image):
        seen.append(torch.backends.cudnn.allow_tf32)
        return ORIGINAL

    compare_detections(original, lambda image: ORIGINAL, [IMAGE])
    compare_maps(lambda batch: original(batch) and {}, lambda batch: {}, [torch.zeros(2, 3, 8, 8)])
    assert seen == [False] * 5
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("worst", "unpaired", "agrees", "agrees_in_half"),
    [
        ({"boxes": 0.04, "scores": 9e-4}, 1, True, True),
        ({"boxes": 0.06, "scores": 9e-4}, 0, False, True),
        ({"boxes": 0.04, "scores": 2e-3}, 0, False, True),
        ({"boxes": 0.04, "scores": 9e-4, "masks": math.inf}, 0, False, False),
        ({"boxes": 0.0, "scores": 0.0}, 2, False, True),
        # More unpaired detections than the original has detections.
        ({"boxes": 0.0, "scores": 0.0}, 101, False, False),
        ({"p2": 2e-4}, 0, False, True),
    ],
)
def test_agrees(worst, unpaired, agrees, agrees_in_half) -> None:
    difference = compare_maps(lambda x: {}, lambda x: {}, [])
    difference.worst, difference.unpaired, difference.detections = worst, unpaired, 100
    for precision, expected in (("float32", agrees), ("float16", agrees_in_half)):
        form = Form(format="torchscript", precision=precision)
        export = Export(file=None, detector="", form=form, difference=difference, ap=None)
        assert export.agrees == expected
