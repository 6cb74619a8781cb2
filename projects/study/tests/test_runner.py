"""The order of a study's runs, with fake tools that only record their arguments."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from se_detection import UserError
from se_detection.data.toy import make_toy_dataset

from ..definition import read_study
from ..runner import best_rate, run_study
from ..study_data import StudyData
from ..study_report import write_study_report

CONFIGS = Path(__file__).parents[3] / "configs" / "Study"
# AP on the tuning images by learning rate; None diverges.
TRIALS = {0.01: 3.0, 0.02: 5.0, 0.04: None, 0.08: 4.0}

TOOL = """
import json, shutil, sys
from pathlib import Path

folder = Path({folder!r})
arguments = sys.argv[1:]
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps([Path(sys.argv[0]).stem, *arguments]) + "\\n")
value = lambda key: arguments[arguments.index(key) + 1]
output = Path(value("OUTPUT_DIR"))
(output / "inference").mkdir(parents=True, exist_ok=True)
if "pretrain" in sys.argv[0]:
    shutil.copy(folder / "backbone.pth", output)
    (output / "metrics.json").write_text("")
    sys.exit()
rate, tuning = float(value("SOLVER.BASE_LR")), "tuning" in value("--val-json")
ap = {trials!r}[rate] if tuning else 1.0
if ap is None:
    (output / "non_finite.json").write_text("[]")
    sys.exit("error: the loss is not finite")
if (folder / "broken").exists() and not tuning:
    # Stopped in its last evaluation: the results are those of the previous one.
    (folder / "broken").unlink()
    (output / "model_final.pth").touch()
    (output / "inference" / "results.json").write_text("half")
    sys.exit("error: broken off")
results = {{"bbox": {{"AP": ap}}, "annotations": value("--val-json"), "categories": []}}
(output / "inference" / "results.json").write_text(json.dumps(results))
(output / "inference" / "coco_instances_results.json").write_text("[]")
(output / "run.json").write_text(json.dumps({{"device": "cpu", "parameters": 1, "backbone_gflops": 1.0}}))
(output / "metrics.json").write_text(json.dumps({{"iteration": 1, "total_loss": 1.0}}))
"""


class Folder:
    """A study of two variants and two seeds, and the arguments of its tools."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for config in CONFIGS.glob("*R_18_FPN*.yaml"):
            shutil.copy(config, path)
        for name in ("Base-Study-cpu.yaml", "Recipe-study-cpu.yaml"):
            (path / name).write_text((CONFIGS / name).read_text().replace("_BASE_: ../", f"_BASE_: {CONFIGS.parent}/"))
        self.content = yaml.safe_load((CONFIGS / "Study-cpu.yaml").read_text())
        variants = {name: self.content["VARIANTS"][name] for name in ("plain", "se-on-plain")}
        self.content |= {"NAME": "small", "SEEDS": [1, 2], "BASE_LR": list(TRIALS), "VARIANTS": variants}
        self.content |= {"TRAIN_IMAGES": 4, "TUNING_IMAGES": 2, "RECIPE": "Recipe-study-cpu.yaml"}
        for split, count in (("train", 8), ("val", 12)):
            make_toy_dataset(path / "toy", split=split, count=count)
            (path / "images" / split / "a").mkdir(parents=True)
        pretraining = {"epochs": 1.0, "top1": 50.0, "top5": 90.0}
        torch.save({"model": {"x": torch.zeros(1)}, "pretraining": pretraining}, path / "backbone.pth")
        (path / "tools").mkdir()
        for tool in ("pretrain.py", "train_net.py"):
            (path / "tools" / tool).write_text(TOOL.format(folder=str(path), trials=TRIALS))

    def study(self):
        (self.path / "study.yaml").write_text(yaml.safe_dump(self.content))
        return read_study(self.path / "study.yaml")

    def run(self, *, seeds=None, output="output", val="val.json") -> None:
        toy = self.path / "toy"
        study = self.study()
        data = StudyData(
            classification=self.path / "images",
            train_json=toy / "annotations" / "train.json",
            train_images=toy / "train",
            val_json=toy / "annotations" / val,
            val_images=toy / "val",
        )
        run_study(
            study,
            data,
            tools=self.path / "tools",
            output=self.path / output,
            results=self.path / "results",
            seeds=seeds or study.seeds,
            gpus=1,
            command="tools/study.py run",
        )

    def calls(self) -> list[list[str]]:
        """The arguments of all tools since the last call of this function."""
        path = self.path / "calls.jsonl"
        lines = [json.loads(line) for line in path.open()] if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def record(self, variant: str, seed: int) -> dict:
        return json.loads((self.path / "results" / f"small-{variant}-{seed}.json").read_text())


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    monkeypatch.setattr("projects.study.runner.measure_times", lambda *_: None)
    return Folder(tmp_path)


def value(words: list[str], key: str) -> str:
    return words[words.index(key) + 1]


def test_each_run_has_its_seed_its_backbone_and_the_best_learning_rate(folder) -> None:
    folder.run()
    calls = folder.calls()
    backbones = [words for words in calls if words[0] == "pretrain"]
    # The control uses the plain variant's backbone.
    assert [value(words, "SEED") for words in backbones] == ["1", "2"]
    trials = [words for words in calls if words[0] == "train_net" and "tuning.json" in value(words, "--val-json")]
    assert [float(value(words, "SOLVER.BASE_LR")) for words in trials] == 2 * list(TRIALS)
    assert {value(words, "SEED") for words in trials} == {"1"}
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
    assert (record["AP"], record["images"]["AP"]) == (0.0, 12)
    folder.run()
    assert folder.calls() == []


def test_a_run_without_a_final_evaluation_is_not_finished(folder) -> None:
    (folder.path / "broken").touch()
    with pytest.raises(UserError, match="broken off"):
        folder.run(seeds=[1])
    assert not list((folder.path / "results").glob("*.json"))
    folder.calls()
    folder.run(seeds=[1])
    assert next(value(words, "OUTPUT_DIR").split("/")[-1] for words in folder.calls()) == "plain-1"
    assert folder.record("plain", 1)["AP"] == 0.0


def test_a_trial_without_a_result_is_reported(folder) -> None:
    folder.run(seeds=[1])
    for path in (folder.path / "results").glob("*.json"):
        path.unlink()
    trial = folder.path / "output" / "trials" / "plain-0.02"
    for content in ("[]", "null", '{"bbox": 3}', '{"bbox": {"AP": "high"}}'):
        (trial / "inference" / "results.json").write_text(content)
        with pytest.raises(UserError, match=rf"results\.json has no AP; remove {trial} to repeat the trial"):
            folder.run(seeds=[1])
    shutil.rmtree(trial)
    folder.run(seeds=[1])
    assert folder.record("plain", 1)["learning_rate"] == 0.02


def test_another_machine_only_needs_the_records(folder) -> None:
    folder.run(seeds=[1])
    folder.calls()
    folder.run(seeds=[2], output="elsewhere")
    calls = folder.calls()
    assert [words[0] for words in calls] == ["pretrain", "train_net", "train_net"]
    assert {value(words, "SEED") for words in calls} == {"2"}


def test_wrong_seeds_data_and_trials_are_reported(folder) -> None:
    with pytest.raises(UserError, match="--seeds 7: small has the seeds 1, 2"):
        folder.run(seeds=[7])
    with pytest.raises(UserError, match="the learning rate is chosen with seed 1"):
        folder.run(seeds=[2])
    folder.run(seeds=[1])
    annotations = folder.path / "toy" / "annotations"
    other = json.loads((annotations / "val.json").read_text())
    other["images"], other["annotations"] = other["images"][:-1], []
    (annotations / "other.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="or of other data; choose another --output"):
        folder.run(val="other.json")
    with pytest.raises(UserError, match="has records of other data"):
        folder.run(val="other.json", output="elsewhere")
    with pytest.raises(UserError, match="diverged with each BASE_LR: 1, 2"):
        best_rate("plain", {1: None, 2: None})


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "is from an earlier definition"), ("{", "can't be read"), ("[" * 5000, "can't be read")],
)
def test_invalid_records_are_reported(folder, content, message) -> None:
    (folder.path / "results").mkdir()
    path = folder.path / "results" / "small-plain-1.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"{path}.* {message}"):
        write_study_report(folder.study(), folder.path / "results", None)


@pytest.mark.parametrize("key", ["data_digest", "device"])
def test_records_of_other_data_or_devices_are_reported(folder, key) -> None:
    folder.run(seeds=[1])
    path = folder.path / "results" / "small-se-on-plain-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "other"}))
    with pytest.raises(UserError, match=f"have different {key}"):
        write_study_report(folder.study(), folder.path / "results", None)


def test_the_report_shows_missing_runs_diverged_trials_and_rates_at_the_edge(folder, capsys) -> None:
    folder.run(seeds=[1])
    write_study_report(folder.study(), folder.path / "results", None)
    assert "2 of 4 runs are finished." in capsys.readouterr().out
    folder.run()
    write_study_report(folder.study(), folder.path / "results", None)
    text = capsys.readouterr().out
    assert "of 4 runs" not in text
    assert "0.04: diverged" in text
    assert "0.02†" not in text
    for path in (folder.path / "results").glob("small-*-?.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "learning_rate": 0.08}))
    write_study_report(folder.study(), folder.path / "results", None)
    text = capsys.readouterr().out
    assert "0.08†" in text
    assert "† The lowest or highest rate of the trials" in text
