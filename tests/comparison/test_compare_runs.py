import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from se_detection.comparison.compare import compare
from se_detection.comparison.compare_runs import compare_runs
from se_detection.comparison.intervals import Difference
from se_detection.comparison.tables import comparison_table
from se_detection.data.image_files import BadImage
from se_detection.runs.bad_images import write_bad_images

from ..helpers import raises


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def evaluate(run, **checkpoint):
    """Sets the checkpoint that a run records."""
    path = run / "inference" / "results.json"
    change(path, checkpoint={**json.loads(path.read_text())["checkpoint"], **checkpoint})


def configure(run, **values):
    """Sets keys of a run's saved config, `SOLVER__MAX_ITER=5`."""
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text())
    for key, value in values.items():
        *nodes, leaf = key.split("__")
        node = content
        for name in nodes:
            node = node[name]
        node[leaf] = value
    path.write_text(yaml.safe_dump(content))


@pytest.fixture
def refuse(runs):
    """A function that checks that a comparison is refused."""

    def refuse(code, *named, baseline=runs[0], candidate=runs[1], **options):
        with raises(f"compare.{code}", *named):
            compare_runs(baseline, candidate, 100, **options)

    return refuse


def test_runs_are_compared_by_their_files(runs) -> None:
    files = [run / "inference" / "coco_instances_results.json" for run in runs]
    expected = compare(*files, runs[0].parents[1] / "val.json", n_bootstrap=100).to_dict()
    comparison = compare_runs(*runs, n_bootstrap=100)
    content = comparison.to_dict()

    assert content["verdict"] == expected["verdict"]
    assert content["difference"]["AP"] == expected["difference"]["AP"]
    assert content["baseline"] == {**expected["baseline"], "parameters": 41_700_000, "gflops": 80.5}
    assert content["candidate"] == {**expected["candidate"], "parameters": 44_200_000, "gflops": 80.6}
    assert content["difference"]["parameters"] == {"value": 2_500_000, "low": None, "high": None}
    assert content["difference"]["gflops"]["value"] == pytest.approx(0.1)
    assert [model.name for model in comparison.models.values()] == ["plain", "se"]
    assert [model.backbone for model in comparison.models.values()] == ["resnet_fpn 50"] * 2
    assert comparison.models["baseline"].backbone_input == (480, 640)
    assert content["names"] == {"baseline": [str(runs[0])], "candidate": [str(runs[1])]}
    backbones = ["build_resnet_fpn_backbone", "build_se_resnet_fpn_backbone"]
    assert content["recipe"] == {"backbone and weights": {"MODEL.BACKBONE.NAME": backbones}, "others": {}}
    last = {"file": "model_final.pth", "iteration": 39999, "sha256": "0a"}
    assert content["checkpoints"] == {"baseline": [last], "candidate": [last]}
    assert content["notes"] == []


def test_several_runs_of_each_model_are_compared(seeds) -> None:
    files = [[run / "inference" / "coco_instances_results.json" for run in model] for model in seeds]
    expected = compare(*files, seeds[0][0].parents[1] / "val.json", n_bootstrap=100)
    comparison = compare_runs(*seeds, n_bootstrap=100)
    assert comparison.covers == "images and training runs"
    assert comparison.difference["AP"] == expected.difference["AP"]
    assert [model.name for model in comparison.models.values()] == ["plain (2 runs)", "se (2 runs)"]
    assert comparison.names["candidate"] == [str(run) for run in seeds[1]]
    unequal = compare_runs(seeds[0], seeds[1][:1], n_bootstrap=100)
    assert unequal.covers == "images"
    assert [len(spreads["AP"].values) for spreads in unequal.runs.values()] == [2, 1]


def test_runs_with_different_bad_images_are_refused(runs, refuse) -> None:
    bad = [BadImage(f"/data/{number}.jpg", 4, 5, "is not there") for number in range(3)]
    write_bad_images(runs[1], bad)
    refuse("not_comparable", "bad_images.json ('0 images' and '3 images')")
    # The folder of the images doesn't matter.
    write_bad_images(runs[0], [image._replace(file_name=f"/other/{number}.jpg") for number, image in enumerate(bad)])
    assert compare_runs(*runs, n_bootstrap=100).recipe["others"] == {}


def test_a_run_without_a_record_has_no_costs(runs) -> None:
    (runs[0] / "run.json").unlink()
    comparison = compare_runs(*runs, n_bootstrap=100)
    assert comparison.baseline["parameters"] is None
    assert comparison.candidate["parameters"] == 44_200_000
    assert comparison.difference["parameters"] == Difference(None)


def test_equal_annotations_in_another_file_are_the_same_data(runs, tmp_path, annotations) -> None:
    other = tmp_path / "copy.json"
    shuffled = {"info": {}, **annotations, "images": annotations["images"][::-1]}
    other.write_text(json.dumps(shuffled, indent=1))
    change(runs[1] / "inference" / "results.json", annotations=str(other))
    assert compare_runs(*runs, n_bootstrap=100).difference["AP"].value > 0


@pytest.mark.parametrize("what", ["categories", "images", "boxes"])
def test_different_data_is_refused(runs, tmp_path, annotations, refuse, what) -> None:
    key = {"boxes": "annotations"}.get(what, what)
    other = tmp_path / "other.json"
    last = {**annotations[key][-1], "name": "bowl", "id": 1000, "area": 7}
    other.write_text(json.dumps({**annotations, key: [*annotations[key][:-1], last]}))
    change(runs[1] / "inference" / "results.json", annotations=str(other))
    for options in ({}, {"force": True}, {"annotations": tmp_path / "val.json"}):
        refuse("different_data", "val.json", "other.json", what, **options)


def test_results_for_other_images_or_categories_are_refused(runs, refuse) -> None:
    found = runs[1] / "inference" / "coco_instances_results.json"
    found.write_text(json.dumps([{"image_id": 999, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 1.0}]))
    with raises("results.unknown_id", found, "image_id 999"):
        compare_runs(*runs, 100)
    change(runs[1] / "inference" / "results.json", categories=["cup", "plate"])
    refuse("different_data", "categories")


def test_different_recipes_are_refused_with_every_key(runs, refuse) -> None:
    configure(runs[1], SOLVER__MAX_ITER=5, INPUT__MIN_SIZE_TEST=400, MODEL__WEIGHTS="se.pth", SEED=4)
    refuse("not_comparable", *runs, "INPUT.MIN_SIZE_TEST (800 and 400), SOLVER.MAX_ITER (40000 and 5); --force")
    comparison = compare_runs(*runs, 100, force=True)
    assert list(comparison.recipe["others"]) == ["INPUT.MIN_SIZE_TEST", "SOLVER.MAX_ITER"]
    assert list(comparison.recipe["backbone and weights"]) == ["MODEL.BACKBONE.NAME", "MODEL.WEIGHTS"]
    assert "SOLVER.MAX_ITER" in comparison.notes[0]
    assert comparison.verdict.endswith("see the notes")


def test_unfinished_and_partially_loaded_runs_are_refused(runs, refuse) -> None:
    (runs[0] / "last_checkpoint").write_text("model_0000199.pth")
    refuse("not_comparable", runs[0], "model_0000199.pth")
    (runs[0] / "last_checkpoint").unlink()
    change(runs[1] / "run.json", allow_partial_backbone=True)
    refuse("not_comparable", "--allow-partial-backbone (False and True)")


def test_a_checkpoint_that_is_not_the_last_is_refused(runs, refuse) -> None:
    evaluate(runs[1], file="model_0000999.pth", iteration=999)
    refuse("not_comparable", f"{runs[1]} was evaluated with model_0000999.pth (iteration 999)", "model_final.pth")
    # In training, between two checkpoints.
    evaluate(runs[1], file=None, iteration=1999)
    refuse("not_comparable", f"{runs[1]} was evaluated with weights that were not saved (iteration 1999)")
    evaluate(runs[1], file=str(runs[0] / "model_final.pth"), iteration=39999)
    refuse("not_comparable", f"{runs[1]} was evaluated with {runs[0]}")
    comparison = compare_runs(*runs, 100, force=True)
    assert comparison.notes[0].startswith(f"{runs[1]} was evaluated with {runs[0]}")
    assert comparison.verdict.endswith("see the notes")
    # Without a training in the folder, any checkpoint may be evaluated.
    (runs[1] / "last_checkpoint").unlink()
    assert compare_runs(*runs, 100).notes == []


def test_a_checkpoint_that_has_changed_is_refused(runs, refuse) -> None:
    for run in runs:
        (run / "model_final.pth").write_bytes(run.name.encode())
        evaluate(run, file="model_final.pth", sha256=hashlib.sha256(run.name.encode()).hexdigest())
    compare_runs(*runs, 100)
    (runs[0] / "model_final.pth").write_bytes(b"trained again")
    refuse("not_comparable", f"{runs[0]}: model_final.pth has changed")


def test_different_iterations_are_refused(runs, refuse) -> None:
    for run, iteration in zip(runs, (4999, 39999), strict=True):
        (run / "last_checkpoint").unlink()
        evaluate(run, file=f"/elsewhere/{run.name}.pth", iteration=iteration)
    refuse("not_comparable", "plain.pth (iteration 4999)", "se.pth (iteration 39999)")
    # A file of another project may not record it.
    evaluate(runs[1], file="/elsewhere/se.pkl", iteration=None)
    compare_runs(*runs, 100)


def test_the_best_checkpoints_may_be_compared(runs, refuse) -> None:
    evaluate(runs[0], file="model_best.pth", iteration=19999)
    refuse("not_comparable", "model_best.pth (iteration 19999)", "model_final.pth (iteration 39999)")
    evaluate(runs[1], file="model_best.pth", iteration=29999)
    assert compare_runs(*runs, 100).notes == [
        "plain, se: model_best.pth was evaluated; its AP is too high if it was chosen on these images"
    ]


def test_results_without_a_checkpoint_are_accepted(runs) -> None:
    results = runs[0] / "inference" / "results.json"
    results.write_text(json.dumps({**json.loads(results.read_text()), "checkpoint": None}))
    comparison = compare_runs(*runs, 100)
    assert comparison.notes == ["the evaluated checkpoint is not recorded, and was not checked: plain"]
    assert comparison.checkpoints["baseline"] == [None]
    shown = "Evaluated: baseline not recorded; candidate model_final.pth (iteration 39999)."
    assert shown in comparison_table(comparison)


def test_masks_and_keypoints_are_named(runs) -> None:
    for run, ap in zip(runs, (33.2, 34.125), strict=True):
        change(run / "inference" / "results.json", segm={"AP": ap, "AP50": 2 * ap}, keypoints={"AP": 0.0, "AP50": None})
    assert compare_runs(*runs, 100).notes == [
        "only boxes are compared; masks have AP 33.20 and 34.12, AP@0.5 66.40 and 68.25, without intervals",
        "only boxes are compared; keypoints have AP 0.00 and 0.00, AP@0.5 undefined and undefined, without intervals",
    ]


def test_different_training_data_is_refused(runs, tmp_path, annotations, refuse) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for run, file in zip(runs, files, strict=True):
        file.write_text("{}")
        change(run / "run.json", data={"train_cups": {"json": str(file)}})
    compare_runs(*runs, 100)
    files[1].write_text("[]")
    refuse("not_comparable", "DATASETS.TRAIN", *files)
    # If a file can't be read, the names are compared.
    files[1].unlink()
    compare_runs(*runs, 100)
    configure(runs[1], DATASETS__TRAIN=["train_plates"])
    refuse("not_comparable", "DATASETS.TRAIN")


@pytest.mark.slow
def test_runs_of_a_model_must_be_of_one_detector(seeds, refuse) -> None:
    models = {"baseline": seeds[0], "candidate": seeds[1]}
    configure(seeds[1][1], MODEL__SE__REDUCTION=8)
    refuse("not_comparable", *seeds[1], "MODEL.SE.REDUCTION (16 and 8)", **models)
    configure(seeds[1][1], MODEL__SE__REDUCTION=16, SEED=3)
    configure(seeds[1][0], SEED=3)
    refuse("not_comparable", "have the same SEED 3", **models)
    configure(seeds[1][1], SEED=4, MODEL__WEIGHTS="b.pth")
    refuse("not_comparable", "MODEL.WEIGHTS", **models)
    # Runs that were only evaluated have their own weights.
    for run in seeds[1]:
        (run / "config.yaml").rename(run / "inference" / "config.yaml")
    compare_runs(*seeds, 100)


def test_a_run_given_twice_is_refused(runs, seeds, refuse) -> None:
    refuse("same_run", runs[0], baseline=[runs[0], runs[0].parent / "se" / ".." / "plain"])
    refuse("same_run", runs[0], candidate=runs[0])
    shutil.copy(*(run / "inference" / "coco_instances_results.json" for run in seeds[1]))
    refuse("same_run", "candidate: runs 1 and 2", baseline=seeds[0], candidate=seeds[1])


def test_results_files_are_compared(runs, tmp_path) -> None:
    expected = compare_runs(*runs, n_bootstrap=100)
    theirs, ours = (tmp_path / "theirs.json", tmp_path / "ours.json")
    for run, file in zip(runs, (theirs, ours), strict=True):
        shutil.copy(run / "inference" / "coco_instances_results.json", file)
    with raises("run.no_annotations", theirs):
        compare_runs(theirs, ours, 100)
    comparison = compare_runs(theirs, ours, 100, annotations=tmp_path / "val.json")
    assert comparison.difference["AP"] == expected.difference["AP"]
    assert [model.name for model in comparison.models.values()] == ["theirs", "ours"]
    assert comparison.notes[0].endswith("was not checked: theirs, ours")
    # With a run folder, its annotations are used.
    mixed = compare_runs(theirs, runs[1], 100)
    assert mixed.difference["AP"] == expected.difference["AP"]
    assert mixed.notes[0].endswith("was not checked: theirs")
    with raises("file.unreadable", "nowhere.json"):
        compare_runs(theirs, ours, annotations=Path("nowhere.json"))
