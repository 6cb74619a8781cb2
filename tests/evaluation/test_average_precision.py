import numpy as np

from se_detection.evaluation.average_precision import METRICS, average_precision, load_coco, match_boxes


def repeat_images(annotations, results, times):
    """The data set and the detections with each image as often as `times` says, under a new id each time."""
    copies = np.repeat(np.arange(len(times)), times.astype(int))
    old_ids = [annotations["images"][index]["id"] for index in copies]
    images = [{**annotations["images"][index], "id": new + 1} for new, index in enumerate(copies)]

    def entries(source):
        pairs = [(new + 1, item) for new, old in enumerate(old_ids) for item in source if item["image_id"] == old]
        return [{**item, "image_id": new, "id": number + 1} for number, (new, item) in enumerate(pairs)]

    return {**annotations, "images": images, "annotations": entries(annotations["annotations"])}, entries(results)


def test_a_weighted_image_counts_as_if_it_were_there_so_often(annotations, detect, reference) -> None:
    results = detect(annotations, seed=1, jitter=0.1)
    n = len(annotations["images"])
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=25).astype(float)
    one_image = np.zeros((1, n))
    one_image[0, 2] = 2  # where not all sizes are
    weights = np.concatenate([np.ones((1, n)), one_image, weights])

    ours = average_precision(match_boxes(load_coco(annotations), list(results)), weights)

    theirs = [reference(*repeat_images(annotations, results, times)) for times in weights]
    assert np.isnan(theirs[1]).any()
    np.testing.assert_allclose(np.transpose([ours[metric] for metric in METRICS]), theirs, atol=1e-12)


def test_no_detections_are_ap_zero(annotations) -> None:
    ap = average_precision(match_boxes(load_coco(annotations), []), np.ones((1, len(annotations["images"]))))
    assert [values.tolist() for values in ap.values()] == [[0.0]] * 6
