"""The order of a study's runs, with a fake tool that only records its arguments and writes the files of a run."""

import json
import os
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
def test_each_run_has_its_seed_its_options_and_the_best_learning_rate(folder) -> None:
    folder.run()
    calls = folder.calls()
    trials = [words for words in calls if "tuning.json" in value(words, "--val-json")]
    # For each data set and variant, with the data set's first seed.
    assert [float(value(words, "SOLVER.BASE_LR")) for words in trials] == 4 * list(TRIALS)
    assert [value(words, "SEED") for words in trials] == ["1"] * 8 + ["3"] * 8
    runs = [words for words in calls if words not in trials]
    order = [("first", 1), ("second", 3), ("first", 2)]
    for words, ((data, seed), variant) in zip(runs, [(s, v) for s in order for v in ("plain", "se")], strict=True):
        assert value(words, "OUTPUT_DIR").endswith(f"output/{data}/{variant}-{seed}")
        assert (value(words, "SEED"), float(value(words, "SOLVER.BASE_LR"))) == (str(seed), 0.02)
        assert value(words, "--config-file") == folder.content["VARIANTS"][variant]
        assert value(words, "--train-json").endswith(f"data/{data}-train.json")
        assert value(words, "--val-json").endswith("annotations/val.json")
        assert value(words, "INPUT.MIN_SIZE_TEST") == "64"
    # The best trial is the run of the first seed.
    trained = {path.parent.name: path.read_text() for path in (folder.path / "output/first").glob("*/model_final.pth")}
    assert (trained["plain-1"], trained["plain-2"]) == ("plain-rate-0.02", "plain-2")
    record = folder.record("first", "plain", 2)
    assert record["learning_rate"] == 0.02
    assert record["learning_rate_trials"] == {str(rate): ap for rate, ap in TRIALS.items()}
    assert record["images"]["AP"] == 12
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
        folder.run(["second"])
    thread.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert len(folder.calls()) == 1
    folder.run(["second"])
    # The stopped trial is resumed.
    assert [words[0] for words in folder.calls()] == ["--resume"] * 10


@pytest.mark.slow
def test_a_run_without_a_final_evaluation_is_not_finished(folder) -> None:
    (folder.path / "broken").touch()
    with raises("study.failed_run", "exit code 1: broken off", "log-plain-1.txt"):
        folder.run(seeds=[1])
    assert not list(folder.results.glob("*.json"))
    folder.calls()
    folder.run(seeds=[1])
    assert next(value(words, "OUTPUT_DIR").split("/")[-1] for words in folder.calls()) == "plain-1"
    assert folder.record("first", "plain", 1)["AP"] > 0


@pytest.mark.slow
def test_another_machine_only_needs_the_records(folder) -> None:
    folder.run(seeds=[1])
    folder.calls()
    folder.run(seeds=[2], variants=["plain"], output="elsewhere")
    # No trials.
    assert [value(words, "SEED") for words in folder.calls()] == ["2"]


@pytest.mark.slow
def test_wrong_seeds_data_and_trials_are_reported(folder) -> None:
    with raises("study.unknown_seed", 7, "1, 2"):
        folder.run(seeds=[7])
    with raises("study.unknown_data", "third", "first, second"):
        folder.run(["third"])
    with raises("study.unknown_variant", "sse", "plain, "):
        folder.run(variants=["sse"])
    with raises("study.no_learning_rate", "first, plain", "seed 1"):
        folder.run(seeds=[2])
    folder.run(seeds=[1])
    other = json.loads(folder.val.read_text())
    other["images"], other["annotations"] = other["images"][:-1], []
    folder.val.write_text(json.dumps(other))
    with raises("study.other_output", folder.path / "output" / "first"):
        folder.run()
    with raises("study.other_data", folder.results, "first"):
        folder.run(output="elsewhere")
    with raises("study.diverged", "1, 2"):
        best_rate("plain", {1: None, 2: None})
    folder.val.unlink()
    with raises("data.not_found", folder.val):
        folder.run()


def test_tuning_images_are_not_used_for_training(folder, tmp_path) -> None:
    for name, tuning in (("first", 2), ("second", 4)):
        splits = make_splits(folder.study().data[name], tmp_path, tmp_path / "data")
        contents = {part: json.loads(splits[part].json_file.read_text()) for part in ("train", "tuning")}
        ids = {part: {image["id"] for image in content["images"]} for part, content in contents.items()}
        assert (len(ids["train"]), len(ids["tuning"])) == (8 - tuning, tuning)
        assert not ids["train"] & ids["tuning"]
        for part, content in contents.items():
            assert {item["image_id"] for item in content["annotations"]} <= ids[part]
    folder.content["DATA"]["first"]["TUNING_IMAGES"] = 8
    with raises("study.too_few_images", "8 images", "takes 8"):
        make_splits(folder.study().data["first"], tmp_path, tmp_path / "more")
