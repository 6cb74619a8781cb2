"""A study of two variants, two data sets and two seeds, whose tool writes the files of a run without training."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from se_detection.data.toy import make_toy_dataset

from ..definition import Study, read_study
from ..runner import StudyRunner

REPOSITORY = Path(__file__).parents[3]
TOY = REPOSITORY / "configs" / "Toy"
# AP on the tuning images by learning rate; None diverges.
TRIALS = {0.01: 3.0, 0.02: 5.0, 0.04: None, 0.08: 4.0}
SMALL = [
    "SOLVER.MAX_ITER",
    "2",
    "SOLVER.IMS_PER_BATCH",
    "2",
    "INPUT.MIN_SIZE_TRAIN",
    "(64,)",
    "INPUT.MIN_SIZE_TEST",
    "64",
]
SMALL += ["TEST.EVAL_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "1", "MODEL.FPN.OUT_CHANNELS", "32"]

# Stands in for train_net.py. Detections are the objects, moved by a random amount; half are missing.
TOOL = """
import json, random, signal, sys, time
from pathlib import Path

folder = Path({folder!r})
arguments = sys.argv[1:]
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps(arguments) + "\\n")
value = lambda key: arguments[arguments.index(key) + 1]
output = Path(value("OUTPUT_DIR"))
(output / "inference").mkdir(parents=True, exist_ok=True)
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
# A finished training is only evaluated.
if not (output / "model_final.pth").exists():
    (output / "model_final.pth").write_text(output.name)
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
    """A study's files, its data, and the calls of its tool."""

    def __init__(self, path: Path, toy: Path) -> None:
        self.path = path
        data = {"TRAIN": ["toy/annotations/train.json", "toy/train"], "VAL": ["toy/annotations/val.json", "toy/val"]}
        data |= {"SEEDS": [1, 2], "TUNING_IMAGES": 2, "OPTIONS": SMALL}
        variants = {"plain": TOY / "faster_rcnn_R_18_FPN.yaml", "se": TOY / "faster_rcnn_SE_R_18_FPN.yaml"}
        self.content = {
            "NAME": "small",
            "BASE_LR": list(TRIALS),
            "VARIANTS": {name: str(file) for name, file in variants.items()},
            "DATA": {"first": data, "second": {**data, "SEEDS": [3], "TUNING_IMAGES": 4}},
        }
        shutil.copytree(toy, path / "toy")
        self.tools = path / "tools"
        self.tools.mkdir()
        (self.tools / "train_net.py").write_text(TOOL.format(folder=str(path), trials=TRIALS))
        self.val = path / "toy" / "annotations" / "val.json"

    @property
    def results(self) -> Path:
        return self.path / "results"

    def study(self) -> Study:
        (self.path / "study.yaml").write_text(yaml.safe_dump(self.content))
        return read_study(self.path / "study.yaml")

    def run(self, names=(), seeds=(), variants=(), output="output") -> None:
        runner = StudyRunner(
            study=self.study(),
            root=self.path,
            tools=self.tools,
            output=self.path / output,
            results=self.results,
            gpus=1,
            command="tools/study.py run",
        )
        runner.run(names, seeds, variants)

    def calls(self) -> list[list[str]]:
        """The arguments of all calls of the tool since the last call of this function."""
        path = self.path / "calls.jsonl"
        lines = [json.loads(line) for line in path.open()] if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def record(self, data: str, variant: str, seed: int) -> dict:
        return json.loads((self.results / f"small-{data}-{variant}-{seed}.json").read_text())


@pytest.fixture(scope="session")
def study_images(tmp_path_factory) -> Path:
    """A toy set, which tests copy."""
    path = tmp_path_factory.mktemp("study") / "toy"
    for split, count in (("train", 8), ("val", 12)):
        make_toy_dataset(path, split=split, count=count)
    return path


@pytest.fixture
def folder(tmp_path, study_images, monkeypatch) -> Folder:
    monkeypatch.setattr("projects.study.runner.measure_times", lambda *_: None)
    monkeypatch.setattr("projects.study.run_records.SAMPLES", 100)
    return Folder(tmp_path, study_images)
