import copy
import json
import statistics

import numpy as np
import pytest

from se_detection.comparison.compare import compare, image_weights

from ..helpers import raises

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.fixture
def random_set():
    """A function that makes annotations for 30 images with about three objects each."""

    def random_set(seed):
        rng = np.random.default_rng(seed)
        boxes = [
            {"image_id": int(image), "bbox": [*rng.uniform(0, 120, 2).tolist(), *rng.uniform(20, 80, 2).tolist()]}
            for image in rng.integers(30, size=90)
        ]
        return {
            "images": [{"id": number} for number in range(30)],
            "categories": [{"id": 1, "name": "cup"}],
            "annotations": [
                {**item, "id": number, "category_id": 1, "area": item["bbox"][2] * item["bbox"][3], "iscrowd": 0}
                for number, item in enumerate(boxes, start=1)
            ],
        }

    return random_set


@pytest.mark.slow
def test_metrics_equal_those_of_pycocotools_on_real_annotations(real_annotations, detect, reference) -> None:
    annotations = real_annotations
    models = [detect(annotations, seed=seed, jitter=0.08) for seed in (1, 2)]

    comparison = compare(*models, annotations, n_bootstrap=100)

    for ours, results in zip((comparison.baseline, comparison.candidate), models, strict=True):
        expected = 100 * reference(annotations, results)
        assert [ours[metric] for metric in METRICS] == pytest.approx(expected, abs=1e-6)
    person = annotations["categories"][0]
    alone = {
        **annotations,
        "categories": [person],
        "annotations": [item for item in annotations["annotations"] if item["category_id"] == person["id"]],
    }
    mine = [item for item in models[0] if item["category_id"] == person["id"]]
    ours = comparison.per_class[person["name"]].baseline
    assert ours == pytest.approx(100 * reference(alone, mine)[0], abs=1e-6)


@pytest.mark.slow
def test_metrics_of_several_runs_are_means(annotations, detect, reference) -> None:
    models = [[detect(annotations, seed=seed, jitter=0.1) for seed in seeds] for seeds in ((1, 2), (3, 4, 5))]

    comparison = compare(*models, annotations, n_bootstrap=100)

    expected = [[100 * reference(annotations, results) for results in model] for model in models]
    for ours, theirs in zip((comparison.baseline, comparison.candidate), expected, strict=True):
        assert [ours[metric] for metric in METRICS] == pytest.approx(np.mean(theirs, axis=0))
    for spreads, theirs in zip(comparison.runs.values(), expected, strict=True):
        for metric, values in zip(METRICS, np.transpose(theirs), strict=True):
            assert spreads[metric].values == pytest.approx(values)
            assert spreads[metric].std == pytest.approx(statistics.stdev(values))
    assert compare(models[0][0], models[1], annotations, n_bootstrap=100).runs["baseline"]["AP"].std is None


@pytest.mark.slow
def test_intervals_equal_those_of_a_bootstrap_with_pycocotools(annotations, detect, reference) -> None:
    models = [detect(annotations, seed=seed, jitter=jitter) for seed, jitter in ((1, 0.15), (2, 0.1))]
    difference = compare(*models, annotations, n_bootstrap=100).difference

    def evaluate(results, times):
        sampled = {**annotations, "images": [], "annotations": []}
        found = []
        for image, count in zip(annotations["images"], times, strict=True):
            for _ in range(int(count)):
                new = len(sampled["images"])
                sampled["images"].append({**image, "id": new})
                for source, target in ((annotations["annotations"], sampled["annotations"]), (results, found)):
                    mine = [item for item in source if item["image_id"] == image["id"]]
                    target += [{**item, "image_id": new, "id": len(target) + 1 + i} for i, item in enumerate(mine)]
        return reference(sampled, found)

    samples = image_weights(len(annotations["images"]), 100)[:, 1:].T
    differences = [100 * (evaluate(models[1], times) - evaluate(models[0], times)) for times in samples]
    # 11 images have objects: Student's t with 10 degrees of freedom.
    reach = 2.228139 * np.std(differences, axis=0, ddof=1) * (11 / 10) ** 0.5
    for metric in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100"):
        ours, half = difference[metric], reach[METRICS.index(metric)]
        assert (ours.low, ours.high) == pytest.approx((ours.value - half, ours.value + half), abs=1e-5)


def test_images_are_sampled_with_replacement() -> None:
    counts = image_weights(50, 2000)[:, 1:].T
    assert (counts.sum(axis=1) == 50).all()
    # A binomial distribution: 50 trials with probability 1/50.
    assert counts.mean() == 1
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.03)
    assert (counts == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "trials", "allowed"), [(1, 20, 3), (2, 15, 3)])
def test_intervals_of_equal_detectors_include_zero(random_set, detect, runs, trials, allowed) -> None:
    misses = 0
    for trial in range(trials):
        annotations = random_set(trial)
        found = [detect(annotations, seed=[trial, run], jitter=0.1) for run in range(2 * runs)]
        ap = compare(found[:runs], found[runs:], annotations, 100).difference["AP"]
        misses += not ap.low <= 0 <= ap.high
    assert misses <= allowed


def test_identical_models_do_not_differ(annotations, detect) -> None:
    results = detect(annotations, seed=1, jitter=0.1)
    comparison = compare(results, results, annotations, n_bootstrap=100)
    assert comparison.to_dict()["difference"]["AP"] == {"value": 0, "low": 0, "high": 0}
    intervals = "two tests, each with its own 95 % interval: AP 0.00 to 0.00, AP@0.5 0.00 to 0.00; over images"
    assert comparison.verdict == f"no significant difference in AP or AP@0.5 ({intervals}; not over repeated training)"
    assert comparison.better == ""


@pytest.fixture
def shifted(annotations):
    """A function that detects every n-th object, shifted by a part s of its width: its IoU is (1 - s) / (1 + s)."""

    def shifted(shift, every=1):
        return [
            {
                **{key: item[key] for key in ("image_id", "category_id")},
                "bbox": [x + shift * w, y, w, h],
                "score": 1 - item["id"] / 1000,
            }
            for item in annotations["annotations"][::every]
            for x, y, w, h in [item["bbox"]]
        ]

    return shifted


@pytest.mark.parametrize(
    ("baseline", "candidate", "sentence", "better"),
    [
        ((0, 2), (0, 1), "candidate is better by {AP} AP and {AP50} AP@0.5", "candidate"),
        ((0, 2), (0.3, 1), "candidate is better by {AP50} AP@0.5, but worse by {AP} AP", ""),
        ((0, 1), (0.2, 1), "candidate is worse by {AP} AP, with no significant difference in AP@0.5", "baseline"),
        ((0.3, 1), (0, 9), "candidate is worse by {AP50} AP@0.5, with no significant difference in AP", "baseline"),
    ],
    ids=["both", "opposite", "AP", "AP50"],
)
def test_the_verdict_is_on_both_metrics(annotations, shifted, reference, baseline, candidate, sentence, better) -> None:
    models = [shifted(*baseline), shifted(*candidate)]
    comparison = compare(*models, annotations, n_bootstrap=200)
    change = 100 * (reference(annotations, models[1]) - reference(annotations, models[0]))
    amounts = {}
    for key, expected in zip(("AP", "AP50"), change, strict=False):
        item = comparison.difference[key]
        assert item.value == pytest.approx(expected)
        amounts[key] = "{:.2f} to {:.2f}".format(*sorted([abs(item.low), abs(item.high)]))
    told, scope = comparison.verdict.removesuffix("; over images; not over repeated training)").split(" (")
    assert told == sentence.format(**amounts)
    assert scope.startswith("two tests, each with its own 95 % interval: AP ")
    assert comparison.better == better


def test_the_verdict_says_what_the_intervals_cover(annotations, detect) -> None:
    worse, better = (detect(annotations, seed=seed, jitter=jitter) for seed, jitter in ((1, 0.3), (2, 0.01)))
    comparison = compare(worse, better, annotations, n_bootstrap=100)
    assert comparison.covers == "images"
    assert comparison.better == "candidate"
    reverse = compare(better, worse, annotations, n_bootstrap=100)
    assert reverse.difference["AP"].low == pytest.approx(-comparison.difference["AP"].high)
    assert reverse.better == "baseline"

    trained = compare([worse, better], [better, worse, worse[1:]], annotations, n_bootstrap=100)
    assert trained.covers == "images and training runs"
    assert trained.verdict.startswith("no significant difference in AP or AP@0.5 (two tests")
    assert trained.verdict.endswith("over images and training runs, 2 and 3)")
    assert compare([worse], [better, worse], annotations, n_bootstrap=100).covers == "images"


def test_classes_have_their_own_intervals_and_adjusted_p_values(annotations, detect) -> None:
    for item in annotations["annotations"]:
        item["category_id"] = 3 if item["image_id"] <= 20 else 7
    annotations["annotations"] += [
        {**item, "id": 1000 + item["id"], "category_id": 7}
        for item in annotations["annotations"]
        if item["category_id"] == 3
    ]
    worse, better = (detect(annotations, seed=seed, jitter=jitter) for seed, jitter in ((1, 0.3), (2, 0.01)))
    per_class = compare(worse, better, annotations, n_bootstrap=100).per_class
    assert list(per_class) == ["cup", "plate", "fork"]
    for category, name in ((3, "cup"), (7, "plate")):
        objects = [item for item in annotations["annotations"] if item["category_id"] == category]
        assert per_class[name].images == len({item["image_id"] for item in objects if not item["iscrowd"]})
    assert (per_class["fork"].images, per_class["fork"].baseline, per_class["fork"].p_adjusted) == (0, None, None)
    plate = per_class["plate"]
    assert plate.images >= 10
    assert 0 < plate.difference.low < plate.difference.value
    assert plate.p_adjusted < 0.05
    # Too few images with cups for an interval.
    assert per_class["cup"].images < 10
    assert per_class["cup"].difference.low is None


def test_classes_with_the_same_name_are_kept_apart(annotations, detect) -> None:
    same = {**annotations, "categories": [{**item, "name": "thing"} for item in annotations["categories"]]}
    per_class = compare([], detect(same, seed=1, jitter=0.1), same, 100).per_class
    assert list(per_class) == ["thing (3)", "thing (7)", "thing (9)"]


def test_results_may_be_empty(annotations, detect, tmp_path) -> None:
    empty = tmp_path / "coco_instances_results.json"
    empty.write_text("[]")
    comparison = compare(empty, detect(annotations, seed=1, jitter=0.05), annotations, n_bootstrap=100)
    assert set(comparison.baseline.values()) == {0}
    assert comparison.difference["AP"].value == comparison.candidate["AP"] > 0
    assert comparison.notes == ["baseline: no detections in 11 of 11 images with objects"]
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_two_models_that_find_almost_nothing_have_a_note(annotations, detect) -> None:
    untrained = [detect(annotations, seed=seed, jitter=20) for seed in (1, 2)]
    (note,) = compare(*untrained, annotations, 100).notes
    assert note.startswith("AP@0.5 of both is below 1")
    trained = detect(annotations, seed=1, jitter=0.05)
    assert compare(untrained[0], trained, annotations, 100).notes == []


def test_undefined_metrics_are_none(annotations, detect) -> None:
    large = [item for item in annotations["annotations"] if item["area"] >= 96**2]
    comparison = compare([], detect(annotations, seed=1, jitter=0.1), {**annotations, "annotations": large}, 100)
    content = comparison.to_dict()
    assert content["candidate"]["APs"] is None
    assert content["difference"]["APs"] == {"value": None, "low": None, "high": None}
    assert content["candidate"]["APl"] == content["difference"]["APl"]["value"] > 0

    nothing = compare([], detect(annotations, seed=1, jitter=0.1), {**annotations, "annotations": []}, 100)
    assert nothing.verdict.startswith("no significant difference in AP or AP@0.5 (undefined")
    assert nothing.covers == ""
    json.dumps(nothing.to_dict(), allow_nan=False)


def test_too_few_images_give_no_interval(annotations, detect) -> None:
    few = {**annotations, "images": annotations["images"][:3]}
    few["annotations"] = [item for item in annotations["annotations"] if item["image_id"] <= 15]
    comparison = compare([], detect(few, seed=1, jitter=0.01), few, 100)
    assert comparison.difference["AP"].value > 10
    assert comparison.difference["AP"].low is None
    assert comparison.verdict.endswith("AP or AP@0.5 (too few images with objects for an interval: 3)")


def test_the_content_is_as_documented_and_the_arguments_are_not_changed(annotations, detect) -> None:
    models = [detect(annotations, seed=seed, jitter=0.1) for seed in (1, 2)]
    before = copy.deepcopy([annotations, models])
    content = json.loads(json.dumps(compare(*models, annotations, n_bootstrap=100).to_dict(), allow_nan=False))
    assert [annotations, models] == before
    assert list(content) == [
        *("baseline", "candidate", "difference", "verdict", "covers", "runs", "per_class", "details"),
        *("notes", "names", "recipe", "checkpoints"),
    ]
    assert tuple(content["baseline"]) == tuple(content["candidate"]) == tuple(content["difference"]) == METRICS
    assert content["difference"]["AP"]["value"] == pytest.approx(content["candidate"]["AP"] - content["baseline"]["AP"])


def test_bad_input_is_refused(annotations, tmp_path) -> None:
    good = {"image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    no_list, broken = tmp_path / "results.json", tmp_path / "broken.json"
    no_list.write_text('{"bbox": {}}')
    broken.write_text("[{")
    for baseline, code, named in (
        (tmp_path / "missing.json", "file.unreadable", "missing.json"),
        ([tmp_path / "missing.json"], "file.unreadable", "missing.json"),
        (no_list, "results.not_coco", no_list),
        (broken, "file.not_json", broken),
        ([good, {**good, "image_id": 6}], "results.unknown_id", "baseline: detection 1 has image_id 6"),
        ([[good], [{**good, "image_id": 6}]], "results.unknown_id", "baseline, run 2: detection 0 has image_id 6"),
        ([{**good, "category_id": 4}], "results.unknown_id", "category_id 4"),
        ([[good], [], [dict(good)]], "compare.same_run", "baseline: runs 1 and 3"),
        ([{**good, "bbox": [1, 2, -3, 4]}], "results.bad_detection", "detection 0"),
        ([good, "box"], "results.bad_detection", "detection 1"),
    ):
        with raises(code, named):
            compare(baseline, [], annotations, 100)
    with raises("data.not_coco", no_list):
        compare([good], [], no_list, 100)
    with raises("compare.few_samples", 99):
        compare([good], [], annotations, 99)
