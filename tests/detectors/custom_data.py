"""Custom COCO data with masks and keypoints, and training runs on it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection import model_zoo
from se_detection.engine.checks import load_config
from se_detection.engine.trainer import Trainer
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

from .detectors import DETECTORS, SMALL
from .shapes import SHAPES, draw

KEYPOINTS = ["top", "right_wing", "bottom", "left_wing"]
SIGMAS = [0.1, 0.2, 0.3, 0.2]
# From scratch, as in configs/Toy.
RECIPE = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.5,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 1,
}


def write_set(folder: Path, name: str, *, count: int, classes: int = len(SHAPES), suffix: str = ".png") -> Path:
    """Writes images of shapes and a COCO file with their polygons and keypoints."""
    images, annotations = [], []
    (folder / name).mkdir(parents=True)
    for number in range(1, count + 1):
        image = draw(number, classes=classes)
        height, width = image.semantic.shape
        Image.fromarray(image.pixels).save(folder / name / f"{number}{suffix}")
        images.append({"id": number, "file_name": f"{number}{suffix}", "height": height, "width": width})
        for item in image.annotations:
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": 10 * (item["category_id"] + 1)}
            annotations.append(item | ids)
    categories = [{"id": 10 * (kind + 1), "name": name} for kind, name in enumerate(("kite", "trapezoid")[:classes])]
    if classes == 1:
        categories[0] |= {"keypoints": KEYPOINTS, "skeleton": [[1, 2], [2, 3], [3, 4], [4, 1]]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def changed(path: Path, target: Path, change) -> Path:
    content = json.loads(path.read_text())
    change(content)
    target.write_text(json.dumps(content))
    return target


def use_rle(content) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        (rle,) = masks.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        annotation["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}


def flags(train: Path, images: Path, val: Path | None = None) -> list[str]:
    pairs = (("train", train), ("val", val or train))
    return [part for split, path in pairs for part in (f"--{split}-json", str(path), f"--{split}-images", str(images))]


def load(name: str, data_flags: list[str], run: Path, overrides: dict[str, object] | None = None):
    """The config of a run, loaded as from the command line."""
    values = {**SMALL, **RECIPE, "OUTPUT_DIR": run, **(overrides or {})}
    if "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS" not in (overrides or {}):
        # Set from the data.
        del values["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"]
    words = [word for key, value in values.items() for word in (key, str(value))]
    config = model_zoo.get_config_file(DETECTORS[name].config)
    return load_config(command_parser(train_command).parse_args(["--config-file", config, *data_flags, *words]))


def train(cfg) -> None:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


def reference(annotations: Path, results_file: Path, task: str) -> list[float]:
    """pycocotools' AP, AP50, ... of a results file, in percent."""
    truth = COCO(str(annotations))
    results = json.loads(results_file.read_text())
    if task == "segm":
        # With a bbox, pycocotools would use the area of the box instead of the mask's.
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    evaluation = COCOeval(truth, truth.loadRes(results), task)
    if task == "keypoints":
        evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return (100 * evaluation.stats).tolist()
