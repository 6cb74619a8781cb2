"""The order of a study's runs, with fake tools that only record their arguments and write the files of a run."""

import json
import os
import shutil
import signal
import threading
import time

import pytest

from se_detection.engine.signals import Interrupted
from tests.helpers import raises

from ..runner import best_rate
from ..study_data import make_splits
from .conftest import TRIALS


def value(words: list[str], key: str) -> str:
    return words[words.index(key) + 1]


@pytest.mark.slow
def test_each_run_has_its_seed_its_backbone_and_the_best_learning_rate(folder) -> None:
    folder.run()
    calls = folder.calls()
    backbones = [words for words in calls if words[0] == "pretrain"]
    # The control uses the plain variant's backbone.
    assert [value(words, "SEED") for words in backbones] == ["1", "2"]
    trials = [words for words in calls if words[0] == "train_net" and "tuning.json" in value(words, "--val-json")]
    assert [float(value(words, "SOLVER.BASE_LR")) for words in trials] == 2 * list(TRIALS)
    assert {value(words, "SEED") for words in trials} == {"1"}
    assert {(value(words, "SOLVER.MAX_ITER"), value(words, "SOLVER.STEPS")) for words in trials} == {("5", "(4,)")}
    runs = [words for words in calls if words[0] == "train_net" and words not in trials]
    assert len(runs) == 4
    for words, (seed, variant) in zip(runs, [(s, v) for s in (1, 2) for v in ("plain", "se-on-plain")], strict=True):
        assert value(words, "OUTPUT_DIR").endswith(f"runs/{variant}-{seed}")
        assert (value(words, "SEED"), float(value(words, "SOLVER.BASE_LR"))) == (str(seed), 0.02)
        backbone = next(words for words in backbones if value(words, "SEED") == str(seed))
        assert value(words, "MODEL.WEIGHTS") == f"{value(backbone, 'OUTPUT_DIR')}/backbone.pth"
        assert ("--allow-partial-backbone" in words) == (variant != "plain")
        assert value(words, "--train-json").endswith("data/train.json")
        assert value(words, "--val-json").endswith("annotations/val.json")
    record = folder.record("plain", 2)
    assert record["learning_rate"] == 0.02
    assert record["learning_rate_trials"] == {str(rate): ap for rate, ap in TRIALS.items()}
    assert record["images"]["AP"] == 12
    assert record["backbone"] == {
        **{"arm": "plain", "epochs": 1.0, "top1": 50.0, "top5": 90.0},
        "curve": {"loss": [[1, 2.0]], "evaluations": [[1, 50]]},
    }
    # At most 200 of 999 points.
    assert [point[0] for point in record["curve"]["loss"]] == list(range(0, 999, 5))
    assert record["curve"]["evaluations"] == [[998, 1]]
    folder.run()
    assert folder.calls() == []


@pytest.mark.slow
def test_a_stopped_study_resumes(folder) -> None:
    """The signal goes to the tool, and the study ends with its exit code."""
    (folder.path / "waits").touch()

    def stop() -> None:
        while (folder.path / "waits").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted) as stopped:
        folder.run(seeds=[1])
    thread.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert [words[0] for words in folder.calls()] == ["pretrain", "train_net"]
    folder.run(seeds=[1])
    # The backbone is not trained again; the stopped trial is resumed.
    assert [words[:2] for words in folder.calls()] == [["train_net", "--resume"]] * 10


@pytest.mark.slow
def test_a_run_without_a_final_evaluation_is_not_finished(folder) -> None:
    (folder.path / "broken").touch()
    with raises("study.failed_run", "exit code 1: broken off", "log-1.txt"):
        folder.run(seeds=[1])
    assert not list(folder.results.glob("*.json"))
    folder.calls()
    folder.run(seeds=[1])
    assert next(value(words, "OUTPUT_DIR").split("/")[-1] for words in folder.calls()) == "plain-1"
    assert folder.record("plain", 1)["AP"] > 0


@pytest.mark.slow
def test_another_machine_only_needs_the_records(folder) -> None:
    folder.run(seeds=[1])
    folder.calls()
    folder.run(seeds=[2], output="elsewhere")
    calls = folder.calls()
    assert [words[0] for words in calls] == ["pretrain", "train_net", "train_net"]
    assert {value(words, "SEED") for words in calls} == {"2"}


@pytest.mark.slow
def test_wrong_seeds_data_and_trials_are_reported(folder) -> None:
    with raises("study.unknown_seed", 7, "1, 2"):
        folder.run(seeds=[7])
    with raises("study.no_learning_rate", "plain", "seed 1"):
        folder.run(seeds=[2])
    folder.run(seeds=[1])
    other = json.loads(folder.val.read_text())
    other["images"], other["annotations"] = other["images"][:-1], []
    folder.val = folder.val.with_name("other.json")
    folder.val.write_text(json.dumps(other))
    with raises("study.other_output", folder.path / "output"):
        folder.run()
    with raises("study.other_data", folder.results):
        folder.run(output="elsewhere")
    with raises("study.diverged", "1, 2"):
        best_rate("plain", {1: None, 2: None})
    folder.val.unlink()
    with raises("data.not_found", folder.val):
        folder.run()


def test_tuning_images_are_not_used_for_training(folder, tmp_path) -> None:
    splits = make_splits(folder.study(), folder.data(), tmp_path / "data")
    contents = {name: json.loads(splits[name].json_file.read_text()) for name in ("train", "tuning")}
    ids = {name: {image["id"] for image in content["images"]} for name, content in contents.items()}
    assert (len(ids["train"]), len(ids["tuning"])) == (4, 2)
    assert not ids["train"] & ids["tuning"]
    for name, content in contents.items():
        assert {item["image_id"] for item in content["annotations"]} <= ids[name]
    folder.content["TRAIN_IMAGES"] = 0
    shutil.rmtree(tmp_path / "data")
    rest = make_splits(folder.study(), folder.data(), tmp_path / "data")["train"]
    assert len(json.loads(rest.json_file.read_text())["images"]) == 8 - 2
    folder.content["TRAIN_IMAGES"] = 7
    with raises("study.too_few_images", "8 images", "7 and 2"):
        make_splits(folder.study(), folder.data(), tmp_path / "more")
