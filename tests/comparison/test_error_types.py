import pytest

from se_detection.comparison.error_types import error_types
from se_detection.comparison.matching import match_boxes
from se_detection.data.coco_files import load_annotations

CUP, PLATE = 3, 7


def truth(*objects, crowd=()):
    """Annotations of one image, from (category, box)."""
    items = [
        {"id": number, "image_id": 1, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, (category, box) in enumerate(objects, start=1)
    ]
    for item in items:
        item["iscrowd"] = int(item["id"] in crowd)
    categories = [{"id": CUP, "name": "cup"}, {"id": PLATE, "name": "plate"}, {"id": 9, "name": "fork"}]
    return {"images": [{"id": 1}], "categories": categories, "annotations": items}


def errors(annotations, *detections):
    """Error types of detections (category, box), in descending order of score."""
    results = [
        {"image_id": 1, "category_id": category, "bbox": box, "score": 0.9 - number / 10}
        for number, (category, box) in enumerate(detections)
    ]
    return error_types(list(match_boxes(load_annotations(annotations), results)))


def box(place, width=10):
    """A box that overlaps with no box at another place; with a third of the width, IoU with the full box is 1/3."""
    return [100 * place, 0, width, 10]


def test_errors_equal_those_computed_by_hand() -> None:
    annotations = truth(
        *((CUP, box(1)), (CUP, box(2)), (CUP, box(3)), (CUP, box(4))),
        *((PLATE, box(5)), (PLATE, box(6))),
    )
    found = errors(
        annotations,
        (CUP, box(1)),  # correct
        (CUP, box(2, 10 / 3)),  # wrong location: IoU 1/3 with the second cup
        (CUP, box(6)),  # wrong class: the second plate
        (CUP, box(1, 9)),  # the first cup again
        (CUP, box(8)),  # background
        (CUP, box(5, 10 / 3)),  # wrong class and location: IoU 1/3 with the first plate
        (CUP, box(3)),  # correct
        (PLATE, box(5)),  # correct
    )

    # Recall levels up to 1/4 are 26 of the 101, those up to 1/2 are 51. Of the plates, one of two is found.
    cups, plates = 26 + 25 * 2 / 7, 51
    one_fewer = 26 + 25 * 2 / 6
    fixed = {
        "classification": (one_fewer, 101),
        "localization": (51 + 25 * 3 / 7, plates),
        "both": (one_fewer, plates),
        "duplicate": (one_fewer, plates),
        "background": (one_fewer, plates),
        # Only the fourth cup: the second and the sixth object are the targets of other errors.
        "missed": (34 + 33 * 2 / 7, plates),
        "false_positives": (51, plates),
        "false_negatives": (51 + 50 * 2 / 7, 101),
    }
    counts = [1, 1, 1, 1, 1, 1, 5, 3]
    assert list(found) == list(fixed)
    assert [item.count for item in found.values()] == counts
    for name, (of_cups, of_plates) in fixed.items():
        gain = 100 * (of_cups - cups + of_plates - plates) / 2 / 101
        assert found[name].dap == pytest.approx(gain, abs=1e-9), name


def test_of_two_errors_on_one_object_the_highest_scoring_is_fixed() -> None:
    found = errors(truth((CUP, box(1)), (CUP, box(2))), (CUP, box(1, 10 / 3)), (CUP, box(1, 4)), (CUP, box(2)))
    assert found["localization"].count == 2
    # Correct, removed, correct, instead of one correct detection after two wrong ones.
    assert found["localization"].dap == pytest.approx(100 - 100 * 51 / 101 / 3)


def test_error_types_are_fixed_separately() -> None:
    # Both have the same target; if only the class is fixed, the plate is found, after the badly located one.
    found = errors(truth((PLATE, box(1))), (PLATE, box(1, 10 / 3)), (CUP, box(1)))
    assert found["localization"].dap == pytest.approx(100)
    assert found["classification"].dap == pytest.approx(50)
    assert found["missed"].count == 0


def test_a_found_object_is_not_found_again() -> None:
    found = errors(truth((PLATE, box(1)), (CUP, box(2))), (PLATE, box(1)), (CUP, box(1)), (CUP, box(2)))
    assert found["classification"].count == 1
    # The cup on the plate is removed, and no longer ranks before the correct one.
    assert found["classification"].dap == pytest.approx(25)


def test_detections_matched_to_crowds_are_not_errors() -> None:
    found = errors(truth((CUP, box(1)), (CUP, [200, 0, 100, 100]), crowd=[2]), (CUP, [210, 0, 20, 20]), (CUP, box(1)))
    assert all(item.count == 0 and item.dap == 0 for item in found.values())


def test_detections_in_an_image_without_objects_are_background() -> None:
    annotations = truth((CUP, box(1)))
    annotations["images"].append({"id": 2})
    results = [{"image_id": 2, "category_id": CUP, "bbox": box(1), "score": 0.9}]
    found = error_types(list(match_boxes(load_annotations(annotations), results)))
    assert (found["background"].count, found["missed"].count) == (1, 1)
