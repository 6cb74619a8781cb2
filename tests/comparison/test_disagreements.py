import pytest

from se_detection.comparison.disagreements import find_disagreements, most_different
from se_detection.data.coco_files import load_annotations, load_results

PLACES = [[10, 10, 40, 40], [100, 10, 40, 40], [10, 100, 40, 40]]


@pytest.fixture
def coco():
    """Four images: three cups in each of the first three, a cup and a crowd of plates in the last."""
    boxes = [(image, 1, place, 0) for image in (1, 2, 3) for place in PLACES]
    boxes += [(4, 1, PLACES[0], 0), (4, 2, [150, 100, 100, 100], 1)]
    keys = ("image_id", "category_id", "bbox", "iscrowd")
    annotations = [
        {"id": number, "area": box[2][2] * box[2][3], **dict(zip(keys, box, strict=True))}
        for number, box in enumerate(boxes, start=1)
    ]
    images = [{"id": number, "file_name": f"{number}.png", "height": 240, "width": 320} for number in (1, 2, 3, 4)]
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}]
    return load_annotations({"images": images, "annotations": annotations, "categories": categories})


def found(coco, *items):
    keys = ("image_id", "category_id", "bbox")
    entries = [dict(zip(keys, item, strict=True)) | {"score": 0.9 - 0.1 * place} for place, item in enumerate(items)]
    return load_results(entries, coco, "results")


def counts(outcome):
    return len(outcome.correct), len(outcome.false), len(outcome.missed)


def test_detections_are_correct_or_false_and_objects_found_or_missed(coco) -> None:
    baseline = found(
        coco,
        (1, 1, PLACES[0]),
        (1, 1, [12, 12, 40, 40]),  # a duplicate
        (1, 2, PLACES[1]),  # of another class
        (2, 1, [30, 10, 40, 40]),  # IoU 1/3
        (4, 2, [160, 110, 20, 20]),  # in the crowd
    )
    first, second, third, last = find_disagreements(coco, baseline, found(coco, *((1, 1, place) for place in PLACES)))
    assert counts(first.baseline) == (1, 2, 2)
    assert counts(first.candidate) == (3, 0, 0)
    assert first.lead == 4
    assert first.found_by_one == 2
    assert [item["id"] for item in first.baseline.missed] == [2, 3]
    assert counts(second.baseline) == (0, 1, 3)
    assert second.lead == 1
    assert second.found_by_one == 0
    assert counts(third.baseline) == counts(third.candidate) == (0, 0, 3)
    assert counts(last.baseline) == (0, 0, 1)
    assert [len(item.objects) for item in (first, second, third, last)] == [3, 3, 3, 1]


def test_the_largest_leads_are_chosen_alternately(coco) -> None:
    baseline = found(coco, (1, 1, PLACES[0]), *((3, 1, place) for place in PLACES))
    candidate = found(
        coco, *((1, 1, place) for place in PLACES), (2, 1, PLACES[0]), (2, 1, [200, 200, 9, 9]), (4, 1, PLACES[0])
    )
    disagreements = find_disagreements(coco, baseline, candidate)
    assert [item.lead for item in disagreements] == [2, 0, -3, 1]
    chosen = most_different(disagreements, 6)
    # The candidate's largest lead, the baseline's only one, then the rest; no image where both are equally good.
    assert [item.image["id"] for item in chosen] == [1, 3, 4]
    assert [item.image["id"] for item in most_different(disagreements, 2)] == [1, 3]
    assert most_different(find_disagreements(coco, baseline, baseline), 6) == []
