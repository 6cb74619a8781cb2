"""The rest of a run besides its model: loading images, next to what it is built on and to the training step, and
evaluating boxes."""

import contextlib
import io
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import TrainingSampler
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate
from tqdm import tqdm

from se_detection.data.mapper import CheckedMapper
from se_detection.data.train_loader import TrainLoader
from se_detection.evaluation.coco_evaluator import COCODetectionEvaluator

from .case import STEP, Case
from .networks import SE, build_network
from .ratio import Ratio, paired_ratio
from .rounds import Clock, rounds_in_turn
from .workload import Training

OURS, DETECTRON2, PYCOCOTOOLS = "ours", "detectron2", "pycocotools"
CLASSES = 80
# Boxes in an image: as many objects as COCO has on average, and as many detections as are evaluated.
OBJECTS, DETECTIONS = 7, 100
HEIGHT, WIDTH = 480, 640
# Of the objects' sides, in pixels.
SIDES = (8, 300)

Arms = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class LoopRow:
    """What was timed.

    Args:
        arm: its name.
        rounds: how often it was timed.
        ratio: its time over the reference's.
    """

    arm: str
    rounds: int
    ratio: Ratio


def measure_loop(arms: Arms, *, rounds: int, clock: Clock = time.process_time) -> list[LoopRow]:
    """Times arms in turn, after a round that isn't counted.

    Args:
        arms: of :func:`loader_arms` or :func:`evaluation_arms`; the first is the reference.
        rounds: how often each is timed.
        clock: that of the processor, which another program's work doesn't move.
    """
    turns = rounds_in_turn(arms, 1 + rounds, clock=clock)
    first, *measured = tqdm(turns, total=1 + rounds, unit="round", disable=None)
    seconds = {name: np.array([times[name] for times in measured]) for name in first}
    reference = seconds[next(iter(arms))]
    return [LoopRow(arm=name, rounds=rounds, ratio=paired_ratio(seconds[name], reference)) for name in arms]


def loop_table(rows: Sequence[LoopRow]) -> str:
    """Each arm's time over the first one's, for the screen."""
    cells = [[row.arm, *row.ratio.cells()] for row in rows]
    cells[0][1:] = ["1", ""]
    alignment = ("left", "right", "right")
    return tabulate(cells, ["arm", "ratio", "95 % interval"], disable_numparse=True, colalign=alignment)


def loader_arms(cfg: CfgNode) -> Arms:
    """detectron2's training loader and ours: each call loads the next batch, in this process, the same of both.

    Args:
        cfg: its `DATASETS.TRAIN`, with images in the data set's order and each at the largest of
            `INPUT.MIN_SIZE_TRAIN`, so that the work is the same.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = (max(cfg.INPUT.MIN_SIZE_TRAIN),)
    images = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    batch = {"total_batch_size": cfg.SOLVER.IMS_PER_BATCH, "aspect_ratio_grouping": False, "num_workers": 0}
    theirs = build_detection_train_loader(
        images, mapper=DatasetMapper(cfg, is_train=True), sampler=_in_order(images), **batch
    )
    ours = TrainLoader(images, mapper=CheckedMapper(cfg, is_train=True), make_sampler=_in_order, **batch)
    return {DETECTRON2: iter(theirs).__next__, OURS: iter(ours).__next__}


def training_step(batch: list[dict[str, Any]], device: str) -> Training:
    """A step of SE-ResNet-50-FPN Faster R-CNN on a loaded batch, the same one each time, in float32.

    Args:
        batch: of a training loader, of 80 classes at most.
        device: `cpu` or `cuda`.
    """
    # The case's images are of no matter, as the batch takes their place.
    case = Case(part="detector", mode="train", device=device, dtype="float32", size=STEP, batch=1, depth=50)
    step = Training(build_network(SE, case), case)
    step.inputs = batch
    return step


def _in_order(images: Any) -> TrainingSampler:
    return TrainingSampler(len(images), shuffle=False)


@contextmanager
def evaluation_arms(images: int) -> Iterator[Arms]:
    """pycocotools alone, detectron2's evaluator with it, and ours: each call evaluates made-up boxes, and gives AP.

    The annotations are read from a file; pycocotools reads the detections from one too, the others take them as a model
    gives them and write that file.

    Args:
        images: how many; each has some objects of 80 classes and 100 detections.
    """
    name = f"benchmark-{uuid.uuid4()}"
    with TemporaryDirectory() as folder:
        annotations, results = Path(folder, "val.json"), Path(folder, OURS, "coco_instances_results.json")
        content, outputs = made_up_boxes(images)
        annotations.write_text(json.dumps(content), encoding="utf-8")
        register_coco_instances(name, {}, str(annotations), folder)
        # Otherwise the first evaluator would do it, at some cost.
        DatasetCatalog.get(name)

        def evaluate(evaluator: COCOEvaluator) -> float:
            with _silence():
                evaluator.reset()
                for image, output in zip(content["images"], outputs, strict=True):
                    evaluator.process([{"image_id": image["id"]}], [{"instances": output}])
                return float(evaluator.evaluate()["bbox"]["AP"])

        def ours() -> float:
            return evaluate(COCODetectionEvaluator(name, output_dir=str(results.parent)))

        def theirs() -> float:
            return evaluate(COCOEvaluator(name, output_dir=str(Path(folder, DETECTRON2)), use_fast_impl=False))

        def alone() -> float:
            with _silence():
                truth = COCO(str(annotations))
                evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            return float(100 * evaluation.stats[0])

        # It writes what pycocotools reads.
        ours()
        try:
            yield {PYCOCOTOOLS: alone, DETECTRON2: theirs, OURS: ours}
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())


def made_up_boxes(images: int, detections: int = DETECTIONS) -> tuple[dict[str, Any], list[Instances]]:
    """COCO annotations of objects of all sizes, and detections that are near to them, many of the wrong class."""
    chance = np.random.default_rng(0)
    objects: list[dict[str, Any]] = []
    outputs = []
    for image in range(1, images + 1):
        count = 1 + chance.poisson(OBJECTS - 1)
        sides = np.exp(chance.uniform(np.log(SIDES[0]), np.log(SIDES[1]), (count, 2)))
        corners = chance.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - sides)
        classes = chance.integers(CLASSES, size=count)
        for corner, side, number in zip(corners, sides, classes, strict=True):
            entry = {"id": len(objects) + 1, "image_id": image, "category_id": int(number) + 1, "iscrowd": 0}
            objects.append({**entry, "bbox": [*corner.tolist(), *side.tolist()], "area": float(side.prod())})
        found = chance.integers(count, size=detections)
        moved = corners[found] + chance.normal(0, 0.1, (detections, 2)) * sides[found]
        sized = sides[found] * np.exp(chance.normal(0, 0.1, (detections, 2)))
        named = np.where(chance.random(detections) < 0.6, classes[found], chance.integers(CLASSES, size=detections))
        outputs.append(
            Instances(
                (HEIGHT, WIDTH),
                pred_boxes=Boxes(np.hstack([moved, moved + sized])),
                scores=torch.from_numpy(chance.random(detections) ** 3),
                pred_classes=torch.from_numpy(named),
            )
        )
    content = {
        "info": {},
        "images": [
            {"id": image, "file_name": f"{image}.jpg", "height": HEIGHT, "width": WIDTH}
            for image in range(1, images + 1)
        ],
        "annotations": objects,
        "categories": [{"id": number, "name": str(number)} for number in range(1, CLASSES + 1)],
    }
    return content, outputs
