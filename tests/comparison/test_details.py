import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from se_detection.comparison.compare import compare
from se_detection.comparison.details import size_ranges
from se_detection.data.coco_files import load_annotations, silenced


@pytest.fixture
def evaluated():
    """A function that returns pycocotools' precision in ranges of area."""

    def evaluated(annotations, results, areas):
        coco = load_annotations(annotations)
        evaluation = COCOeval(coco, coco.loadRes([dict(item) for item in results]), "bbox")
        evaluation.params.areaRng = [[0, 1e10], *map(list, areas)]
        evaluation.params.areaRngLbl = list(map(str, evaluation.params.areaRng))
        with silenced():
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval["precision"][..., -1]

    return evaluated


def mean(precision):
    return 100 * precision[precision > -1].mean()


def test_curves_equal_those_of_pycocotools(real_annotations, detect, evaluated) -> None:
    annotations = real_annotations
    results = detect(annotations, seed=1, jitter=0.08)
    sizes = size_ranges(load_annotations(annotations))
    precision = evaluated(annotations, results, sizes)

    details = compare([], results, annotations, n_bootstrap=100).details

    assert details.ap_by_iou.x == pytest.approx(np.arange(0.5, 1, 0.05))
    assert details.ap_by_iou.candidate == pytest.approx([mean(at) for at in precision[..., 0]], abs=1e-6)
    assert details.ap_by_iou.baseline == [0] * 10
    assert [item.value for item in details.ap_by_iou.difference] == pytest.approx(details.ap_by_iou.candidate)

    areas = np.array([item["area"] for item in annotations["annotations"] if not item["iscrowd"]])
    counts = [((low <= areas) & (areas <= high)).sum() for low, high in sizes]
    assert len(counts) == 6
    assert counts == pytest.approx([len(areas) / 6] * 6, abs=2)
    assert details.ap_by_size.x == pytest.approx([high**0.5 for _, high in sizes])
    expected = [mean(precision[:, :, :, place]) for place in range(1, 7)]
    assert details.ap_by_size.candidate == pytest.approx(expected, abs=1e-6)
    known = [item for item in details.ap_by_size.difference if item.low is not None]
    assert len(known) > 2
    assert all(item.low < item.value < item.high for item in known)

    for name, place in (("0.50", 0), ("0.75", 5)):
        curve = details.precision_recall[name]
        known = precision[place, 0, :, 0] > -1
        assert curve.x == list(range(101))
        assert curve.candidate == pytest.approx(100 * precision[place][:, known, 0].mean(axis=1), abs=1e-6)


def test_objects_of_one_size_have_no_ranges(annotations) -> None:
    alike = [{**item, "area": 50.0} for item in annotations["annotations"]]
    assert size_ranges(load_annotations({**annotations, "annotations": alike})) == []
    assert size_ranges(load_annotations({**annotations, "annotations": []})) == []


def test_calibration_equals_one_computed_by_hand(annotations) -> None:
    cups = [item for item in annotations["annotations"] if item["category_id"] == 3 and not item["iscrowd"]][:4]
    data = {**annotations, "annotations": cups}
    keys = [{key: item[key] for key in ("image_id", "category_id", "bbox")} for item in cups]
    nowhere = {**keys[0], "bbox": [300, 200, 5, 5]}
    scored = [(keys[0], 0.95), (keys[1], 0.91), (nowhere, 0.93), (keys[2], 0.25), (nowhere, 0.0), (nowhere, 1.0)]
    results = [{**box, "score": score} for box, score in scored]

    calibration = compare(results, [results, results[:3]], data, n_bootstrap=100).details.calibration

    found = calibration["baseline"]
    assert found.count == [1, 0, 1, 0, 0, 0, 0, 0, 0, 4]
    top = (0.95 + 0.91 + 0.93 + 1.0) / 4
    assert found.score == [0, None, 0.25, *[None] * 6, pytest.approx(top)]
    assert found.precision == [0, None, 1, *[None] * 6, 0.5]
    ece = (1 * 0 + 1 * 0.75 + 4 * (top - 0.5)) / 6
    assert found.ece == pytest.approx(ece)
    # With several runs: the detections of all runs, and the mean of their errors.
    both = calibration["candidate"]
    assert both.count == [1, 0, 1, 0, 0, 0, 0, 0, 0, 7]
    assert both.ece == pytest.approx((ece + 0.93 - 2 / 3) / 2)


def test_scores_that_are_not_probabilities_have_no_calibration(annotations, detect) -> None:
    results = detect(annotations, seed=1, jitter=0.1)
    logits = [{**item, "score": 5 * item["score"]} for item in results]
    calibration = compare(results, logits, annotations, n_bootstrap=100).details.calibration
    assert calibration["baseline"] is not None
    assert calibration["candidate"] is None


def test_errors_are_means_over_runs(annotations, detect) -> None:
    runs = [detect(annotations, seed=seed, jitter=0.2) for seed in (1, 2)]
    alone = [compare(run, [], annotations, n_bootstrap=100).details.error_types["baseline"] for run in runs]
    both = compare(runs, [], annotations, n_bootstrap=100).details.error_types["baseline"]
    for name, error in both.items():
        assert error.dap == pytest.approx((alone[0][name].dap + alone[1][name].dap) / 2)
        assert error.count == (alone[0][name].count + alone[1][name].count) / 2
    assert both["localization"].count > 0
