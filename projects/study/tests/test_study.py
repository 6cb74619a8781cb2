"""A whole study of two variants: interrupted, resumed, and reported."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from se_detection import UserError
from se_detection.comparison.compare import compare
from se_detection.data.toy import make_toy_dataset

from ..definition import read_study
from ..run_records import SAMPLES
from ..study_data import StudyData, make_splits
from ..study_report import write_study_report

REPOSITORY = Path(__file__).parents[3]
CONFIGS = REPOSITORY / "configs" / "Study"
VARIANTS = ("plain", "se-on-plain")


@pytest.fixture(scope="module")
def folder(module_path) -> Path:
    """A small study's files, an image folder, and a detection set."""
    for path in CONFIGS.glob("*R_18_FPN*.yaml"):
        shutil.copy(path, module_path)
    base = yaml.safe_load((CONFIGS / "Base-Study-cpu.yaml").read_text())
    base["_BASE_"] = str(REPOSITORY / "configs" / "Base-RCNN-FPN.yaml")
    base["SOLVER"] |= {"MAX_ITER": 2, "STEPS": [1], "IMS_PER_BATCH": 2, "WARMUP_ITERS": 0, "CHECKPOINT_PERIOD": 1}
    base["MODEL"]["FPN"] = {"OUT_CHANNELS": 32}
    base["MODEL"]["ROI_BOX_HEAD"] = {"FC_DIM": 32}
    base["TEST"] = {"EVAL_PERIOD": 1}
    (module_path / "Base-Study-cpu.yaml").write_text(yaml.safe_dump(base))
    recipe = yaml.safe_load((CONFIGS / "Recipe-study-cpu.yaml").read_text())
    recipe["SOLVER"]["IMS_PER_BATCH"] = 4
    recipe["PRETRAIN"] |= {"EPOCHS": 3.0, "TRAIN_SIZE": 32, "TEST_SIZE": 32, "TEST_RESIZE": 32, "BF16": False}
    (module_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    study = yaml.safe_load((CONFIGS / "Study-cpu.yaml").read_text())
    study |= {"NAME": "small", "SEEDS": [1], "RECIPE": "recipe.yaml", "BASE_LR": [0.001], "TUNING_ITERS": 5}
    study |= {"TRAIN_IMAGES": 4, "TUNING_IMAGES": 2, "VARIANTS": {name: study["VARIANTS"][name] for name in VARIANTS}}
    (module_path / "study.yaml").write_text(yaml.safe_dump(study))
    chance = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            classes = module_path / "images" / split / name
            classes.mkdir(parents=True)
            for number in range(6):
                pixels = chance.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(classes / f"{number}.png")
    for split, count in (("train", 8), ("val", 12)):
        make_toy_dataset(module_path / "toy", split=split, count=count)
    return module_path


def command(folder: Path, results: Path) -> list[str]:
    words = [sys.executable, REPOSITORY / "tools" / "study.py", "run", "--study", folder / "study.yaml"]
    words += ["--classification", folder / "images", "--output", folder / "output", "--results", results]
    for split in ("train", "val"):
        words += [f"--{split}-json", folder / "toy" / "annotations" / f"{split}.json"]
        words += [f"--{split}-images", folder / "toy" / split]
    return list(map(str, words))


@pytest.fixture(scope="module")
def results(folder) -> Path:
    """The records of a study that was interrupted in its first pre-training and resumed."""
    kept = folder / "results"
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(command(folder, kept), stdout=said, stderr=subprocess.STDOUT)
        log = folder / "output" / "log-1.txt"
        deadline = time.monotonic() + 120
        while process.poll() is None and "Starting training" not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM, (folder / "said.txt").read_text()
    assert not list(folder.glob("output/backbones/*/backbone.pth"))
    done = subprocess.run(command(folder, kept), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "SIGTERM: stopped after iteration" in log.read_text()
    assert "Resuming from" in log.read_text()
    return kept


def commit() -> str:
    if not (REPOSITORY / ".git").exists():
        return ""
    git = ["git", "-C", REPOSITORY]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    return f"{head}-dirty" if changed else head


def records(results: Path) -> dict[str, dict]:
    return {name: json.loads((results / f"small-{name}-1.json").read_text()) for name in VARIANTS}


def test_each_run_is_recorded(folder, results) -> None:
    for name, record in records(results).items():
        run = folder / "output" / "runs" / f"{name}-1"
        measured = json.loads((run / "inference" / "results.json").read_text())
        # Without predictions, detectron2 has no results, and AP is 0.
        expected = {key: value or 0.0 for key, value in measured["bbox"].items()}
        known = {key: record[key] or 0.0 for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
        assert known == pytest.approx(expected)
        assert set(record["learning_rate_trials"]) == {"0.001"}
        assert [point[0] for point in record["curve"]["evaluations"]] == [0, 2]
        backbone = json.loads(next(folder.glob("output/backbones/*/inference/results.json")).read_text())
        assert record["backbone"]["top1"] == backbone["top1"]
        assert record["commit"] == commit()
    # The control starts from the plain variant's backbone; its gates are not pre-trained.
    assert len(list(folder.glob("output/backbones/*"))) == 1
    log = (folder / "output" / "runs" / "se-on-plain-1" / "log.txt").read_text()
    assert "loaded in part" in log
    times = json.loads((results / "small-times.json").read_text())["ratios"]
    assert times["plain"] == {kind: {"ratio": 1, "low": 1, "high": 1} for kind in ("train", "inference")}
    assert 0.3 < times["se-on-plain"]["train"]["ratio"] < 3


def test_finished_runs_are_not_repeated(folder, results) -> None:
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    done = subprocess.run(command(folder, results), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.endswith(f"all runs are finished; for the tables, use tools/study.py report --results {results}")
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before


def test_intervals_equal_those_of_compare(folder, results, tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- small begin -->\nold\n<!-- small end -->\nafter\n")
    written = write_study_report(read_study(folder / "study.yaml"), results, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- small begin -->")
    assert text.endswith("<!-- small end -->\nafter\n")
    assert "old" not in text
    runs = [folder / "output" / "runs" / f"{name}-1" / "inference" / "coco_instances_results.json" for name in VARIANTS]
    theirs = compare(*runs, folder / "toy" / "annotations" / "val.json", n_bootstrap=SAMPLES).difference
    row = next(
        line for line in text.splitlines() if line.startswith("| `se-on-plain`") and " to " in line.split("|")[3]
    )
    # With single runs.
    assert row.split("|")[2].strip() == "images"
    for cell, metric in zip(row.split("|")[3:], ("AP", "AP50", "AP75", "APs", "APm", "APl"), strict=False):
        if theirs[metric].low is None:
            assert cell.strip() == "–"
            continue
        found = [float(number) for number in re.findall(r"[+-]?\d+\.\d+", cell)]
        # The records keep two decimals.
        assert found == pytest.approx([theirs[metric].value, theirs[metric].low, theirs[metric].high], abs=0.03)
    assert np.asarray(Image.open(written[0]).convert("L")).std() > 10


def test_a_page_without_marks_is_not_changed(folder, results, tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(UserError, match="has no lines <!-- small begin -->"):
        write_study_report(read_study(folder / "study.yaml"), results, page)
    assert page.read_text() == "nothing"


def test_records_of_another_definition_are_reported(folder, results, tmp_path) -> None:
    for path in folder.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    study = yaml.safe_load((tmp_path / "study.yaml").read_text())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"TUNING_ITERS": 2}))
    changed = read_study(tmp_path / "study.yaml")
    with pytest.raises(UserError, match="is from an earlier definition"):
        write_study_report(changed, results, None)
    words = [
        word.replace(str(folder / "study.yaml"), str(tmp_path / "study.yaml")) for word in command(folder, results)
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds runs of another study" in done.stderr


def test_tuning_images_are_not_used_for_training(folder, tmp_path) -> None:
    toy = folder / "toy"
    data = StudyData(
        classification=folder / "images",
        train_json=toy / "annotations" / "train.json",
        train_images=toy / "train",
        val_json=toy / "annotations" / "val.json",
        val_images=toy / "val",
    )
    splits = make_splits(read_study(folder / "study.yaml"), data, tmp_path)
    contents = {name: json.loads(splits[name].json_file.read_text()) for name in ("train", "tuning")}
    ids = {name: {image["id"] for image in content["images"]} for name, content in contents.items()}
    assert (len(ids["train"]), len(ids["tuning"])) == (4, 2)
    assert not ids["train"] & ids["tuning"]
    for name, content in contents.items():
        assert {item["image_id"] for item in content["annotations"]} <= ids[name]
