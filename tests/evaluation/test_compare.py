import copy
import json

import numpy as np
import pytest

from se_detection import UserError
from se_detection.evaluation import compare
from se_detection.evaluation.compare import draw_images

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def test_ap_is_that_of_pycocotools_on_real_annotations(shared_data, detect, reference) -> None:
    json_file = shared_data / "coco_mini" / "annotations" / "instances_val2017.json"
    annotations = json.loads(json_file.read_text())
    arms = [detect(annotations, seed=seed, jitter=0.08) for seed in (1, 2)]

    comparison = compare(*arms, json_file, n_bootstrap=100)

    for ours, results in zip((comparison.baseline, comparison.candidate), arms, strict=True):
        expected = 100 * reference(annotations, results)
        assert [ours[metric] for metric in METRICS] == pytest.approx(expected, abs=1e-6)


def test_the_interval_is_that_of_a_bootstrap_done_with_pycocotools(annotations, detect, reference) -> None:
    arms = [detect(annotations, seed=seed, jitter=jitter) for seed, jitter in ((1, 0.15), (2, 0.1))]
    difference = compare(*arms, annotations, n_bootstrap=100).to_dict()["difference"]

    def evaluate(results, times):
        drawn = {**annotations, "images": [], "annotations": []}
        found = []
        for image, count in zip(annotations["images"], times, strict=True):
            for _ in range(int(count)):
                new = len(drawn["images"])
                drawn["images"].append({**image, "id": new})
                for source, target in ((annotations["annotations"], drawn["annotations"]), (results, found)):
                    mine = [item for item in source if item["image_id"] == image["id"]]
                    target += [{**item, "image_id": new, "id": len(target) + 1 + i} for i, item in enumerate(mine)]
        return reference(drawn, found)

    samples = draw_images(len(annotations["images"]), 100)
    differences = [100 * (evaluate(arms[1], times) - evaluate(arms[0], times)) for times in samples]
    low, high = np.nanpercentile(differences, [2.5, 97.5], axis=0)
    assert [difference[metric]["low"] for metric in METRICS] == pytest.approx(low, abs=1e-9)
    assert [difference[metric]["high"] for metric in METRICS] == pytest.approx(high, abs=1e-9)


def test_bootstrap_samples_are_drawn_with_replacement() -> None:
    drawn = draw_images(50, 2000)
    assert (drawn.sum(axis=1) == 50).all()
    # A binomial count of 50 draws with probability 1/50 each.
    assert drawn.mean() == 1
    assert drawn.var() == pytest.approx(1 - 1 / 50, abs=0.03)
    assert (drawn == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.005)


def test_identical_arms_do_not_differ(annotations, detect) -> None:
    results = detect(annotations, seed=1, jitter=0.1)
    comparison = compare(results, results, annotations, n_bootstrap=100)
    assert comparison.to_dict()["difference"]["AP"] == {"value": 0, "low": 0, "high": 0}
    assert comparison.verdict.startswith("no difference in AP can be told")


def test_equally_good_arms_are_told_to_be_so(annotations, detect) -> None:
    arms = [detect(annotations, seed=seed, jitter=0.1) for seed in (1, 2)]
    ap = compare(*arms, annotations).difference["AP"]
    assert ap.low < 0 < ap.high


def test_the_better_arm_is_told(annotations, detect) -> None:
    worse, better = (detect(annotations, seed=seed, jitter=jitter) for seed, jitter in ((1, 0.3), (2, 0.01)))
    comparison = compare(worse, better, annotations, n_bootstrap=200)
    ap = comparison.difference["AP"]
    assert 0 < ap.low < ap.value < ap.high
    assert comparison.verdict.startswith(f"candidate is better by {ap.low:.2f} to {ap.high:.2f} AP (95 % interval")

    reverse = compare(better, worse, annotations, n_bootstrap=200)
    assert reverse.verdict.startswith(f"candidate is worse by {ap.low:.2f} to {ap.high:.2f} AP")
    assert reverse.difference["AP"].low == pytest.approx(-ap.high)


def test_an_arm_may_be_empty(annotations, detect, tmp_path) -> None:
    empty = tmp_path / "coco_instances_results.json"
    empty.write_text("[]")
    comparison = compare(empty, detect(annotations, seed=1, jitter=0.05), annotations, n_bootstrap=100)
    assert set(comparison.baseline.values()) == {0}
    assert comparison.difference["AP"].value == comparison.candidate["AP"] > 0


def test_what_is_undefined_is_none(annotations, detect) -> None:
    large = [item for item in annotations["annotations"] if item["area"] >= 96**2]
    comparison = compare([], detect(annotations, seed=1, jitter=0.1), {**annotations, "annotations": large}, 100)
    content = comparison.to_dict()
    assert content["candidate"]["APs"] is None
    assert content["difference"]["APs"] == {"value": None, "low": None, "high": None}
    assert content["difference"]["APl"]["low"] is not None


def test_a_few_images_give_no_interval(annotations, detect) -> None:
    few = {**annotations, "images": annotations["images"][:3]}
    few["annotations"] = [item for item in annotations["annotations"] if item["image_id"] <= 15]
    comparison = compare([], detect(few, seed=1, jitter=0.01), few, 100)
    assert comparison.difference["AP"].value > 10
    assert comparison.difference["AP"].low is None
    assert comparison.verdict.startswith("no difference in AP can be told (3 images")


def test_the_content_is_as_documented_and_the_arguments_stay_as_they_are(annotations, detect) -> None:
    arms = [detect(annotations, seed=seed, jitter=0.1) for seed in (1, 2)]
    before = copy.deepcopy([annotations, arms])
    content = json.loads(json.dumps(compare(*arms, annotations, n_bootstrap=100).to_dict(), allow_nan=False))
    assert [annotations, arms] == before
    assert list(content) == ["baseline", "candidate", "difference", "verdict"]
    assert tuple(content["baseline"]) == tuple(content["candidate"]) == tuple(content["difference"]) == METRICS
    assert content["difference"]["AP"]["value"] == pytest.approx(content["candidate"]["AP"] - content["baseline"]["AP"])


def test_bad_input_is_refused_in_one_line(annotations, tmp_path) -> None:
    def refuse(baseline, annotations, message, n_bootstrap=100):
        with pytest.raises(UserError, match=message) as caught:
            compare(baseline, [], annotations, n_bootstrap)
        assert "\n" not in str(caught.value)

    good = {"image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    no_list = tmp_path / "results.json"
    no_list.write_text('{"bbox": {}}')
    broken = tmp_path / "broken.json"
    broken.write_text("[{")
    refuse(tmp_path / "missing.json", annotations, r"missing\.json: No such file")
    refuse(no_list, annotations, r"results\.json: no COCO results")
    refuse(broken, annotations, r"broken\.json: no valid JSON")
    refuse([good, {**good, "image_id": 6}], annotations, "baseline: detection 1 has image_id 6")
    refuse([{**good, "category_id": 4}], annotations, "category_id 4")
    refuse([{**good, "bbox": [1, 2, 3]}], annotations, "detection 0")
    refuse([{**good, "bbox": [1, 2, -3, 4]}], annotations, "detection 0")
    refuse([{**good, "score": float("nan")}], annotations, "detection 0")
    refuse(["box"], annotations, "detection 0")
    refuse([good], no_list, r"results\.json: no COCO annotations")
    refuse([good], {**annotations, "images": []}, "no images")
    refuse([good], {**annotations, "annotations": [{**annotations["annotations"][0], "area": None}]}, "area")
    refuse([good], annotations, "99 bootstrap samples are too few", n_bootstrap=99)
