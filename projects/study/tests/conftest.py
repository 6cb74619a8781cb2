"""A study of two variants and two seeds, whose tools write the files of a run without training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from se_detection.data.toy import make_toy_dataset

from ..definition import Study, read_study
from ..runner import StudyRunner
from ..study_data import StudyData, StudySplit

REPOSITORY = Path(__file__).parents[3]
CONFIGS = REPOSITORY / "configs" / "Study"
# AP on the tuning images by learning rate; None diverges.
TRIALS = {0.01: 3.0, 0.02: 5.0, 0.04: None, 0.08: 4.0}

# Stands in for pretrain.py and train_net.py. Detections are the objects, moved by a random amount; half are missing.
TOOL = """
import json, random, shutil, signal, sys, time
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
    (output / "metrics.json").write_text(json.dumps({{"iteration": 1, "loss_cls": 2.0, "classification/top1": 50}}))
    sys.exit()
rate, tuning = float(value("SOLVER.BASE_LR")), "tuning" in value("--val-json")
if (folder / "waits").exists():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (folder / "waits").unlink()
    time.sleep(60)
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
chance, detections = random.Random(output.name), []
for entry in json.loads(Path(value("--val-json")).read_text())["annotations"]:
    x, y, width, height = entry["bbox"]
    box = [x + chance.gauss(0, 0.1) * width, y + chance.gauss(0, 0.1) * height, width, height]
    detection = {{"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": box}}
    if chance.random() < 0.5:
        detections.append({{**detection, "score": chance.random()}})
(output / "inference" / "coco_instances_results.json").write_text(json.dumps(detections))
(output / "run.json").write_text(json.dumps({{"device": "cpu", "parameters": 1, "backbone_gflops": 1.0}}))
lines = [{{"iteration": number, "total_loss": 1.0}} for number in range(999)] + [{{"iteration": 998, "bbox/AP": 1}}]
(output / "metrics.json").write_text("\\n".join(map(json.dumps, lines)))
"""


class Folder:
    """A study's files, its data, and the calls of its tools."""

    def __init__(self, path: Path, study_images: Path) -> None:
        self.path = path
        for config in CONFIGS.glob("*R_18_FPN*.yaml"):
            shutil.copy(config, path)
        base = yaml.safe_load((CONFIGS / "Base-Study-cpu.yaml").read_text())
        base["_BASE_"] = str(REPOSITORY / "configs" / "Base-RCNN-FPN.yaml")
        base["SOLVER"] |= {"MAX_ITER": 2, "STEPS": [1], "IMS_PER_BATCH": 2, "WARMUP_ITERS": 0, "CHECKPOINT_PERIOD": 1}
        base["MODEL"] |= {"FPN": {"OUT_CHANNELS": 32}, "ROI_BOX_HEAD": {"FC_DIM": 32}}
        base["INPUT"] = {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64}
        base["TEST"], base["DATALOADER"] = {"EVAL_PERIOD": 1}, {"NUM_WORKERS": 0}
        (path / "Base-Study-cpu.yaml").write_text(yaml.safe_dump(base))
        recipe = yaml.safe_load((CONFIGS / "Recipe-study-cpu.yaml").read_text())
        recipe["SOLVER"]["IMS_PER_BATCH"], recipe["DATALOADER"] = 4, {"NUM_WORKERS": 0}
        recipe["PRETRAIN"] |= {"EPOCHS": 1.0, "TRAIN_SIZE": 32, "TEST_SIZE": 32, "TEST_RESIZE": 32, "BF16": False}
        (path / "Recipe-study-cpu.yaml").write_text(yaml.safe_dump(recipe))
        self.content = yaml.safe_load((CONFIGS / "Study-cpu.yaml").read_text())
        variants = {name: self.content["VARIANTS"][name] for name in ("plain", "se-on-plain")}
        self.content |= {"NAME": "small", "SEEDS": [1, 2], "BASE_LR": list(TRIALS), "VARIANTS": variants}
        self.content |= {"TRAIN_IMAGES": 4, "TUNING_IMAGES": 2, "TUNING_ITERS": 5}
        shutil.copytree(study_images, path, dirs_exist_ok=True)
        pretraining = {"epochs": 1.0, "top1": 50.0, "top5": 90.0}
        torch.save({"model": {"x": torch.zeros(1)}, "pretraining": pretraining}, path / "backbone.pth")
        self.tools = path / "tools"
        self.tools.mkdir()
        for tool in ("pretrain.py", "train_net.py"):
            (self.tools / tool).write_text(TOOL.format(folder=str(path), trials=TRIALS))
        self.val = path / "toy" / "annotations" / "val.json"

    @property
    def results(self) -> Path:
        return self.path / "results"

    def study(self) -> Study:
        (self.path / "study.yaml").write_text(yaml.safe_dump(self.content))
        return read_study(self.path / "study.yaml")

    def data(self) -> StudyData:
        toy = self.path / "toy"
        train = StudySplit(toy / "annotations" / "train.json", toy / "train")
        return StudyData(self.path / "images", train, StudySplit(self.val, toy / "val"))

    def run(self, seeds=(1, 2), output="output") -> None:
        runner = StudyRunner(
            study=self.study(),
            data=self.data(),
            tools=self.tools,
            output=self.path / output,
            results=self.results,
            gpus=1,
            command="tools/study.py run",
        )
        runner.run(seeds)

    def calls(self) -> list[list[str]]:
        """The arguments of all tools since the last call of this function."""
        path = self.path / "calls.jsonl"
        lines = [json.loads(line) for line in path.open()] if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def record(self, variant: str, seed: int) -> dict:
        return json.loads((self.results / f"small-{variant}-{seed}.json").read_text())


@pytest.fixture(scope="session")
def study_images(tmp_path_factory) -> Path:
    """A toy set and an image folder of two classes, which tests copy."""
    path, chance = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 12)):
        make_toy_dataset(path / "toy", split=split, count=count)
        for name in ("a", "b"):
            folder = path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(chance.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return path


@pytest.fixture
def folder(tmp_path, study_images, monkeypatch) -> Folder:
    monkeypatch.setattr("projects.study.runner.measure_times", lambda *_: None)
    monkeypatch.setattr("projects.study.run_records.SAMPLES", 100)
    return Folder(tmp_path, study_images)
