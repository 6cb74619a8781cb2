"""Times the parts of a run other than the model: image loading and box evaluation."""

import contextlib
import io
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from se_detection.runs.run_folder import DETECTIONS

from .case import SIZE_DIVISOR, Case
from .networks import SE, build_network
from .ratio import Ratio, paired_ratio
from .rounds import Clock, rounds_in_turn
from .workload import Training

OURS, DETECTRON2, PYCOCOTOOLS = "ours", "detectron2", "pycocotools"
CLASSES = 80
# Boxes per image: COCO's mean number of objects, and the number of detections that COCO evaluates.
OBJECTS, DETECTED = 7, 100
HEIGHT, WIDTH = 480, 640
# Range of the objects' sides, in pixels.
SIDES = (8, 300)

Runs = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class LoopRow:
    """The time of a loader, an evaluator or a training step.

    Args:
        name: its name.
        rounds: number of timings.
        ratio: its time over the reference's.
    """

    name: str
    rounds: int
    ratio: Ratio

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the name is in `arm`."""
        return {"arm": self.name, "rounds": self.rounds, "ratio": asdict(self.ratio)}


def measure_loop(runs: Runs, *, rounds: int, clock: Clock = time.process_time) -> list[LoopRow]:
    """Times functions in turn, after a warm-up round.

    Args:
        runs: from :func:`loader_runs` or :func:`evaluation_runs`; the first is the reference.
        rounds: number of timings of each.
        clock: by default CPU time, on which other programs have no effect.
    """
    turns = rounds_in_turn(runs, 1 + rounds, clock=clock)
    first, *measured = tqdm(turns, total=1 + rounds, unit="round", disable=None)
    seconds = {name: np.array([times[name] for times in measured]) for name in first}
    reference = seconds[next(iter(runs))]
    return [LoopRow(name=name, rounds=rounds, ratio=paired_ratio(seconds[name], reference)) for name in runs]


def loop_table(rows: Sequence[LoopRow]) -> str:
    """A text table: the time of each row over the first one's."""
    cells = [[row.name, *row.ratio.cells()] for row in rows]
    cells[0][1:] = ["1", ""]
    alignment = ("left", "right", "right")
    return tabulate(cells, ["part", "ratio", "95 % interval"], disable_numparse=True, colalign=alignment)


def loader_runs(cfg: CfgNode) -> Runs:
    """detectron2's training loader and ours. Each call loads the next batch in this process, the same for both.

    Args:
        cfg: `DATASETS.TRAIN` is loaded in its order, at the largest size of `INPUT.MIN_SIZE_TRAIN`.
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
    """A float32 training step of an SE-ResNet-50-FPN Faster R-CNN, always on the same batch.

    Args:
        batch: from a training loader, with at most 80 classes.
        device: `cpu` or `cuda`.
    """
    # The batch replaces the case's images.
    case = Case(part="detector", mode="train", device=device, dtype="float32", size=SIZE_DIVISOR, batch=1, depth=50)
    step = Training(build_network(SE, case), case)
    step.inputs = batch
    return step


def _in_order(images: Any) -> TrainingSampler:
    return TrainingSampler(len(images), shuffle=False)


@contextmanager
def evaluation_runs(images: int) -> Iterator[Runs]:
    """pycocotools, detectron2's evaluator, and ours. Each call evaluates the same random boxes and returns AP.

    All read the annotations from a file. pycocotools also reads the detections from a file; the others take a model's
    outputs and write that file.

    Args:
        images: number of images; each has some objects of 80 classes and 100 detections.
    """
    name = f"benchmark-{uuid.uuid4()}"
    with TemporaryDirectory() as folder:
        annotations, results = Path(folder, "val.json"), Path(folder, OURS, DETECTIONS)
        content, outputs = random_boxes(images)
        annotations.write_text(json.dumps(content), encoding="utf-8")
        register_coco_instances(name, {}, str(annotations), folder)
        # Otherwise the first evaluator would load it.
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

        # Writes the file that pycocotools reads.
        ours()
        try:
            yield {PYCOCOTOOLS: alone, DETECTRON2: theirs, OURS: ours}
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())


def random_boxes(images: int, detections: int = DETECTED) -> tuple[dict[str, Any], list[Instances]]:
    """COCO annotations of random objects of all sizes, and detections near them, many of the wrong class."""
    rng = np.random.default_rng(0)
    objects: list[dict[str, Any]] = []
    outputs = []
    for image in range(1, images + 1):
        count = 1 + rng.poisson(OBJECTS - 1)
        sides = np.exp(rng.uniform(np.log(SIDES[0]), np.log(SIDES[1]), (count, 2)))
        corners = rng.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - sides)
        classes = rng.integers(CLASSES, size=count)
        for corner, side, number in zip(corners, sides, classes, strict=True):
            entry = {"id": len(objects) + 1, "image_id": image, "category_id": int(number) + 1, "iscrowd": 0}
            objects.append({**entry, "bbox": [*corner.tolist(), *side.tolist()], "area": float(side.prod())})
        matched = rng.integers(count, size=detections)
        moved = corners[matched] + rng.normal(0, 0.1, (detections, 2)) * sides[matched]
        sized = sides[matched] * np.exp(rng.normal(0, 0.1, (detections, 2)))
        named = np.where(rng.random(detections) < 0.6, classes[matched], rng.integers(CLASSES, size=detections))
        outputs.append(
            Instances(
                (HEIGHT, WIDTH),
                pred_boxes=Boxes(np.hstack([moved, moved + sized])),
                scores=torch.from_numpy(rng.random(detections) ** 3),
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
