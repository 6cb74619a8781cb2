"""detectron2's unmodified tools with this project's configs.

One is started as a user would, with the environment variable that imports the plugin; the others in this process.
"""

import json
import logging
import math
import re
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis, parameter_count_table
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection import UserError, create_backbone, model_zoo
from se_detection.data.toy import make_toy_dataset

from ..helpers import environment
from .detectors import LAZY, SMALL
from .shapes import draw

TOOLS = Path(sysconfig.get_paths()["purelib"], "tools")
CONFIG = "COCO-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_1x"
LAZY_CONFIG = "COCO-Detection/faster_rcnn_SE_R_50_FPN_1x"
VALUES = {
    **{key: value for key, value in SMALL.items() if "KEYPOINT" not in key},
    # Fewer layers than depth 50.
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.BASE_LR": 0.001,
    "DATALOADER.NUM_WORKERS": 0,
}
# Three steps from a random backbone of depth 18 with small heads, on images of 64 pixels.
LAZY_VALUES = [
    *("model.backbone.bottom_up.name=se_resnet18", "model.roi_heads.num_classes=4"),
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
    *("model.backbone.out_channels=32", "model.proposal_generator.head.in_channels=32"),
    *("model.roi_heads.box_head.input_shape.channels=32", "model.roi_heads.box_head.fc_dims=[32,32]"),
    "model.roi_heads.box_predictor.input_shape.channels=32",
    *("model.roi_heads.batch_size_per_image=16", "model.proposal_generator.post_nms_topk=[20,5]"),
    *("dataloader.train.dataset.names=few_train", "dataloader.test.dataset.names=few_val"),
    *("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
    "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    *("train.device=cpu", "train.max_iter=3", "train.log_period=1", "train.seed=1"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TOOLS.is_dir(), reason=f"this detectron2 was installed without its tools ({TOOLS})"),
]


def write_coco(root: Path) -> None:
    """Writes a small data set in place of COCO; kites are persons and trapezoids bicycles."""
    categories = [
        {"id": category["id"], "name": category["name"]} for category in COCO_CATEGORIES if category["isthing"]
    ]
    (root / "coco" / "annotations").mkdir(parents=True)
    for split, seeds in (("train2017", range(10, 14)), ("val2017", range(3))):
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
    """The folder of a small COCO, and the folder and the output of a run of two iterations on it."""
    write_coco(module_path)
    names = {"DETECTRON2_ENV_MODULE": "se_detection.env", "DETECTRON2_DATASETS": str(module_path)}
    env = environment(HOME=str(module_path), OMP_NUM_THREADS="1", **names)
    folder = module_path / "run"
    command = [sys.executable, TOOLS / "plain_train_net.py", *config_words(OUTPUT_DIR=folder)]
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # In this process, detectron2 has registered COCO in another folder.
    for split in ("train2017", "val2017"):
        name = f"coco_2017_{split.removesuffix('2017')}"
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        annotations = module_path / "coco" / "annotations" / f"instances_{split}.json"
        images = module_path / "coco" / split
        register_coco_instances(name, _get_builtin_metadata("coco"), str(annotations), str(images))
    return SimpleNamespace(root=module_path, trained=folder, printed=done.stdout + done.stderr)


@pytest.fixture
def run(monkeypatch, capsys, catalogs):
    """A function that runs a tool in this process, and returns what it prints and logs."""

    def start(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(TOOLS / name), run_name="__main__")
        printed = capsys.readouterr()
        # Without the ANSI colours of the log.
        return re.sub(r"\x1b\[\d+m", "", printed.out + printed.err)

    return start


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
    assert len(detections) == 30
    assert all({"bbox", "segmentation"} <= item.keys() for item in detections)
    annotations = stock.root / "coco" / "annotations" / "instances_val2017.json"
    printed = [line.rsplit("copypaste: ", 1)[1] for line in stock.printed.splitlines() if "copypaste: " in line]
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


def test_analyze_model_counts_what_fvcore_counts(stock, run, caplog) -> None:
    weights = {"MODEL.WEIGHTS": str(stock.trained / "model_final.pth")}
    tasks = ["--num-inputs", "1", "--tasks", "parameter", "structure", "flop"]
    words = config_words(**weights)
    # The tool's logger does not pass its messages on.
    logger = logging.getLogger("detectron2")
    logger.addHandler(caplog.handler)
    with caplog.at_level("INFO", "detectron2"):
        run("analyze_model.py", *tasks, *words)
    logger.removeHandler(caplog.handler)
    printed = "\n".join(caplog.messages)

    cfg = config(**weights)
    model = build_model(cfg).eval()
    assert f"Parameter Count:\n{parameter_count_table(model, max_depth=5)}" in printed
    assert f"Model Structure:\n{model}" in printed
    assert "(fc1): Conv2d" in str(model) or "(fc1): Linear" in str(model)
    model.load_state_dict(torch.load(weights["MODEL.WEIGHTS"], weights_only=True)["model"])
    loader = build_detection_test_loader(cfg, "coco_2017_val")
    counted = FlopCountAnalysis(model, next(iter(loader))).unsupported_ops_warnings(False)
    total = counted.uncalled_modules_warnings(False).total() / 1e9
    assert f"Total GFlops: {total:.1f}±0.0" in printed
    by_operator = dict(re.findall(r"\('(\w+)', ([\d.e-]+)\)", printed.split("of operators:\n")[1]))
    for operator in ("conv", "linear"):
        assert float(by_operator[operator]) == pytest.approx(counted.by_operator()[operator] / 1e9)


def test_visualize_json_results_draws_detections_and_truth(stock, run, tmp_path) -> None:
    written = stock.trained / "inference" / "coco_2017_val" / "coco_instances_results.json"
    run("visualize_json_results.py", "--input", written, "--output", tmp_path, "--conf-threshold", "0.0")
    sources = sorted((stock.root / "coco" / "val2017").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in sources]
    for source in sources:
        plain = np.asarray(Image.open(source)).astype(int)
        sheet = np.asarray(Image.open(tmp_path / source.name)).astype(int)
        assert sheet.shape == (plain.shape[0], 2 * plain.shape[1], 3)
        for half in np.split(sheet, 2, axis=1):
            # JPEG changes pixels by less than 60, drawn lines by more.
            assert (abs(half - plain).max(axis=2) > 60).mean() > 0.01


def test_visualize_data_draws_the_annotations(stock, run, tmp_path) -> None:
    words = config_words()
    run("visualize_data.py", "--source", "annotation", *words[:2], "--output-dir", tmp_path, *words[2:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]


def train_lazily(run, folder: Path, backbone: str) -> None:
    """Trains in `folder` on a few toy images, from random weights of the named backbone."""
    for split in ("train", "val"):
        json_file = make_toy_dataset(folder, split=split, count=4)
        register_coco_instances(f"few_{split}", {}, str(json_file), str(folder / split))
    torch.manual_seed(0)
    weights = folder / f"{backbone}.pth"
    torch.save({"model": create_backbone(backbone).state_dict(), "matching_heuristics": True}, weights)
    overrides = [*LAZY_VALUES, f"train.init_checkpoint={weights}", f"train.output_dir={folder / 'run'}"]
    run("lazyconfig_train_net.py", "--config-file", LAZY / f"{LAZY_CONFIG}.py", *overrides)


def test_lazyconfig_train_net_trains_and_evaluates(run, tmp_path) -> None:
    train_lazily(run, tmp_path, "se_resnet18")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    # The last line is the evaluation's.
    assert [line["iteration"] for line in metrics] == [0, 1, 2, 3]
    assert all(math.isfinite(line["total_loss"]) for line in metrics[:3])
    assert 0 <= metrics[-1]["bbox/AP"] <= 100

    cfg = model_zoo.get_config(LAZY_CONFIG)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 4, 32, 32
    weights = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    build_model(cfg).load_state_dict(weights, strict=True)
    # Frozen weights are still those of the file, and the gates have changed a little.
    before = torch.load(tmp_path / "se_resnet18.pth", weights_only=True)["model"]
    frozen, gate = "res2.0.se.fc1.weight", "res3.0.se.fc2.weight"
    assert torch.equal(weights[f"backbone.bottom_up.{frozen}"], before[frozen])
    change = (weights[f"backbone.bottom_up.{gate}"] - before[gate]).abs().max()
    assert 0 < change < 0.1

    # The config that the tool has written builds the same network.
    saved = LazyConfig.load(str(tmp_path / "run" / "config.yaml"))
    with torch.device("meta"):
        again = instantiate(saved.model).state_dict()
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in weights.items()}


def test_lazyconfig_train_net_refuses_plain_weights(run, tmp_path) -> None:
    with pytest.raises(UserError, match="the file's backbone is plain and the config's has SE"):
        train_lazily(run, tmp_path, "resnet18")
    assert not (tmp_path / "run" / "model_final.pth").exists()
