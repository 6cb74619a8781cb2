import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from se_detection.comparison.matching import COCO_AREAS, match_boxes
from se_detection.data.coco_files import load_annotations, load_results, silenced


@pytest.mark.parametrize("source", ["small", "real"])
def test_matches_equal_those_of_pycocotools(source, annotations, detect, request) -> None:
    if source == "real":
        annotations = request.getfixturevalue("real_annotations")
    coco = load_annotations(annotations)
    results = load_results(detect(annotations, seed=1, jitter=0.1), coco, "results")
    areas = (*COCO_AREAS, (0.0, 3000.0), (3000.0, 9000.0))
    found = [{**item, "id": number} for number, item in enumerate(results, start=1)]
    whole = COCOeval(coco, load_annotations(annotations).loadRes(found), "bbox")
    whole.params.areaRng = [list(area) for area in areas]
    with silenced():
        whole.evaluate()
    expected = np.array(whole.evalImgs, dtype=object).reshape(len(coco.cats), len(areas), len(coco.imgs))

    for evaluation, theirs in zip(match_boxes(coco, results, areas), expected, strict=True):
        ours = np.array(evaluation.evalImgs, dtype=object).reshape(len(areas), len(evaluation.image_indices))
        assert sum(item is not None for item in theirs[0]) == len(evaluation.image_indices)
        for ours_of_area, theirs_of_area in zip(ours, theirs, strict=True):
            for mine, place in zip(ours_of_area, evaluation.image_indices, strict=True):
                other = theirs_of_area[place]
                assert (mine["image_id"], mine["category_id"], mine["aRng"]) == (
                    *(other["image_id"], other["category_id"], other["aRng"]),
                )
                order, other_order = np.argsort(mine["gtIds"]), np.argsort(other["gtIds"])
                np.testing.assert_array_equal(mine["gtIgnore"][order], other["gtIgnore"][other_order])
                for key in ("dtScores", "dtMatches", "dtIgnore"):
                    np.testing.assert_array_equal(mine[key], other[key])
