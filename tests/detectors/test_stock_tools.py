"""detectron2's unmodified tools with this project's configs; only an environment variable imports the plugin."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis, parameter_count_table
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection import model_zoo

from .detectors import SMALL
from .shapes import draw

TOOLS = Path(sysconfig.get_paths()["purelib"], "tools")
CONFIG = "COCO-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_1x"
VALUES = {
    **{key: value for key, value in SMALL.items() if "KEYPOINT" not in key},
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.BASE_LR": 0.001,
    "DATALOADER.NUM_WORKERS": 0,
}

pytestmark = pytest.mark.skipif(not TOOLS.is_dir(), reason=f"this detectron2 was installed without its tools ({TOOLS})")


def write_coco(root: Path) -> None:
    """Writes a small data set in place of COCO; kites are persons and trapezoids bicycles."""
    categories = [
        {"id": category["id"], "name": category["name"]} for category in COCO_CATEGORIES if category["isthing"]
    ]
    (root / "coco" / "annotations").mkdir(parents=True)
    for split, seeds in (("train2017", range(10, 14)), ("val2017", range(6))):
        (root / "coco" / split).mkdir()
        images, annotations = [], []
        for number, seed in enumerate(seeds, 1):
            image = draw(seed)
            height, width = image.semantic.shape
            Image.fromarray(image.pixels).save(root / "coco" / split / f"{number}.jpg")
            images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
            for item in image.annotations:
                ids = {"id": len(annotations) + 1, "image_id": number, "category_id": item["category_id"] + 1}
                annotations.append({**item, **ids})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "coco" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def stock(module_path) -> SimpleNamespace:
    """`run`, a function that runs a tool on the small COCO, and the folder of a run of two iterations."""
    write_coco(module_path)
    environment = {
        **{"PATH": os.environ["PATH"], "HOME": str(module_path), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        **{"DETECTRON2_ENV_MODULE": "se_detection.env", "DETECTRON2_DATASETS": str(module_path)},
    }

    def run(name: str, *arguments: object) -> str:
        command = [sys.executable, TOOLS / name, *arguments]
        done = subprocess.run(
            list(map(str, command)), cwd=module_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # Without the ANSI colours of the log.
        return re.sub(r"\x1b\[\d+m", "", done.stdout + done.stderr)

    folder = module_path / "run"
    run("plain_train_net.py", *config_words(OUTPUT_DIR=folder))
    return SimpleNamespace(run=run, root=module_path, trained=folder)


def config_words(**overrides: object) -> list[str]:
    words = [str(word) for item in {**VALUES, **overrides}.items() for word in item]
    return ["--config-file", model_zoo.get_config_file(CONFIG), *words]


def config(**overrides: object):
    cfg = model_zoo.get_config(CONFIG)
    for key, value in {**VALUES, **overrides}.items():
        cfg.merge_from_list([key, value])
    return cfg


def test_plain_train_net_trains_and_evaluates(stock) -> None:
    weights = torch.load(stock.trained / "model_final.pth", weights_only=True)["model"]
    assert any(".se.fc1." in key for key in weights)
    written = stock.trained / "inference" / "coco_2017_val" / "coco_instances_results.json"
    detections = json.loads(written.read_text())
    assert len(detections) == 60
    assert all({"bbox", "segmentation"} <= item.keys() for item in detections)
    annotations = stock.root / "coco" / "annotations" / "instances_val2017.json"
    evaluated = stock.run(
        "plain_train_net.py",
        "--eval-only",
        *config_words(**{"OUTPUT_DIR": stock.trained, "MODEL.WEIGHTS": stock.trained / "model_final.pth"}),
    )
    printed = [line.rsplit("copypaste: ", 1)[1] for line in evaluated.splitlines() if "copypaste: " in line]
    for task, place in (("bbox", 0), ("segm", 1)):
        truth = COCO(str(annotations))
        results = [{k: v for k, v in item.items() if task == "bbox" or k != "bbox"} for item in detections]
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert printed[3 * place] == f"Task: {task}"
        values = [float(value) for value in printed[3 * place + 2].split(",")]
        expected = [100 * value if value >= 0 else np.nan for value in evaluation.stats[:6]]
        assert values == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_analyze_model_counts_what_fvcore_counts(stock) -> None:
    weights = {"MODEL.WEIGHTS": str(stock.trained / "model_final.pth")}
    tasks = ["--num-inputs", "2", "--tasks", "parameter", "structure", "flop"]
    words = config_words(**weights)
    printed = stock.run("analyze_model.py", *tasks, *words)

    cfg = config(**weights)
    model = build_model(cfg).eval()
    assert f"Parameter Count:\n{parameter_count_table(model, max_depth=5)}" in printed
    assert f"Model Structure:\n{model}" in printed
    assert "(fc1): Conv2d" in str(model) or "(fc1): Linear" in str(model)
    model.load_state_dict(torch.load(weights["MODEL.WEIGHTS"], weights_only=True)["model"])
    annotations = stock.root / "coco" / "annotations" / "instances_val2017.json"
    register_coco_instances("small_val", {}, str(annotations), str(stock.root / "coco" / "val2017"))
    loader = build_detection_test_loader(cfg, "small_val")
    counted = [FlopCountAnalysis(model, data).unsupported_ops_warnings(False) for data in islice(loader, 2)]
    totals = [count.uncalled_modules_warnings(False).total() / 1e9 for count in counted]
    assert f"Total GFlops: {np.mean(totals):.1f}±{np.std(totals):.1f}" in printed
    by_operator = dict(re.findall(r"\('(\w+)', ([\d.e-]+)\)", printed.split("of operators:\n")[1]))
    expected = sum(
        (count.by_operator() for count in counted), start=counted[0].by_operator() - counted[0].by_operator()
    )
    for operator in ("conv", "linear"):
        assert float(by_operator[operator]) == pytest.approx(expected[operator] / 2 / 1e9)


def test_visualize_json_results_draws_detections_and_truth(stock, tmp_path) -> None:
    written = stock.trained / "inference" / "coco_2017_val" / "coco_instances_results.json"
    stock.run("visualize_json_results.py", "--input", written, "--output", tmp_path, "--conf-threshold", "0.0")
    sources = sorted((stock.root / "coco" / "val2017").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in sources]
    for source in sources:
        plain = np.asarray(Image.open(source)).astype(int)
        sheet = np.asarray(Image.open(tmp_path / source.name)).astype(int)
        assert sheet.shape == (plain.shape[0], 2 * plain.shape[1], 3)
        for half in np.split(sheet, 2, axis=1):
            # JPEG changes pixels by less than 60, drawn lines by more.
            assert (abs(half - plain).max(axis=2) > 60).mean() > 0.01


def test_visualize_data_draws_the_annotations(stock, tmp_path) -> None:
    words = config_words()
    stock.run("visualize_data.py", "--source", "annotation", *words[:2], "--output-dir", tmp_path, *words[2:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]


def test_benchmark_measures_inference(stock) -> None:
    if find_spec("psutil") is None:
        pytest.skip("detectron2's benchmark.py needs psutil")
    smallest = {"INPUT.MIN_SIZE_TEST": 32, "MODEL.RPN.POST_NMS_TOPK_TEST": 5, "TEST.DETECTIONS_PER_IMAGE": 2}
    printed = stock.run("benchmark.py", "--task", "eval", *config_words(**smallest))
    assert float(re.search(r"300 iters in ([\d.]+) seconds", printed)[1]) > 0
