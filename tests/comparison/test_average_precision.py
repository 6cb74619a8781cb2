import numpy as np
import pytest

from se_detection.comparison.average_precision import average_precision
from se_detection.comparison.matching import match_boxes
from se_detection.data.coco_files import load_annotations


def repeat_images(annotations, results, times):
    """The data set and the detections with each image repeated `times` times, under new ids."""
    copies = np.repeat(np.arange(len(times)), times.astype(int))
    old_ids = [annotations["images"][index]["id"] for index in copies]
    images = [{**annotations["images"][index], "id": new + 1} for new, index in enumerate(copies)]

    def entries(source):
        pairs = [(new + 1, item) for new, old in enumerate(old_ids) for item in source if item["image_id"] == old]
        return [{**item, "image_id": new, "id": number + 1} for number, (new, item) in enumerate(pairs)]

    return {**annotations, "images": images, "annotations": entries(annotations["annotations"])}, entries(results)


def of_category(category, annotations, results):
    kept = [item for item in annotations["annotations"] if item["category_id"] == category]
    data = {**annotations, "categories": [{"id": category}], "annotations": kept}
    return data, [item for item in results if item["category_id"] == category]


def test_a_weighted_image_counts_like_repeated_images(annotations, detect, reference) -> None:
    results = detect(annotations, seed=1, jitter=0.1)
    n = len(annotations["images"])
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=15).astype(float)
    one_image = np.zeros((1, n))
    one_image[0, 2] = 2  # this image has objects of some sizes only
    weights = np.concatenate([np.ones((1, n)), one_image, weights])

    evaluations = match_boxes(load_annotations(annotations), results)
    for category, evaluation in zip((3, 7), evaluations, strict=False):
        ap = average_precision(evaluation, weights.T)
        assert ap.areas[0] == pytest.approx(ap.thresholds.mean(axis=0), nan_ok=True)
        ours = np.vstack([ap.areas[0], ap.thresholds[[0, 5]], ap.areas[1:], ap.recalls])
        theirs = [reference(*of_category(category, *repeat_images(annotations, results, times))) for times in weights]
        assert np.isnan(theirs[1]).any()
        np.testing.assert_allclose(ours.T, theirs, atol=1e-12)


def test_ap_is_zero_without_detections(annotations) -> None:
    weights = np.ones((len(annotations["images"]), 1))
    cup, plate, fork = (
        average_precision(evaluation, weights) for evaluation in match_boxes(load_annotations(annotations), [])
    )
    for found in (cup, plate):
        assert [found.areas.max(), found.thresholds.max(), found.recalls.max()] == [0, 0, 0]
    # The third category has no objects.
    assert np.isnan(fork.areas).all()
    assert np.isnan(fork.recalls).all()
