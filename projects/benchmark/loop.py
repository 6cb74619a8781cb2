"""Times the parts of a run other than the model: image loading and box evaluation."""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
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
from tqdm import tqdm

from se_detection.data.mapper import CheckedMapper
from se_detection.data.train_loader import TrainLoader
from se_detection.evaluation.coco_evaluator import COCODetectionEvaluator
from se_detection.files import write_json
from se_detection.runs.run_folder import DETECTIONS

from .networks import SE, Case, build_network
from .rounds import Clock, paired_ratio, rounds_in_turn
from .workload import Training

OURS, DETECTRON2, PYCOCOTOOLS = "ours", "detectron2", "pycocotools"
DATA_SET = "benchmark_boxes"
CLASSES = 80
# Boxes per image: COCO's mean number of objects, and the number of detections that COCO evaluates.
OBJECTS, DETECTED = 7, 100
HEIGHT, WIDTH = 480, 640
# Range of the objects' sides, in pixels.
SIDES = (8, 300)

Runs = Mapping[str, Callable[[], Any]]


def measure_loop(runs: Runs, *, rounds: int, clock: Clock = time.process_time) -> list[dict[str, Any]]:
    """Times functions in turn, after a warm-up round; a row for each has its name in `arm`, `rounds` and `ratio`.

    Args:
        runs: from :func:`loader_runs` or :func:`evaluation_runs`; the first is the reference.
        rounds: number of timings of each.
        clock: by default CPU time, on which other programs have no effect.
    """
    turns = rounds_in_turn(runs, 1 + rounds, clock=clock)
    _, *measured = tqdm(turns, total=1 + rounds, unit="round", disable=None)
    seconds = {name: np.array([times[name] for times in measured]) for name in runs}
    reference = seconds[next(iter(runs))]
    return [{"arm": name, "rounds": rounds, "ratio": paired_ratio(seconds[name], reference)._asdict()} for name in runs]


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
        images, mapper=DatasetMapper(cfg, is_train=True), sampler=in_order(images), **batch
    )
    ours = TrainLoader(images, mapper=CheckedMapper(cfg, is_train=True), make_sampler=in_order, **batch)
    return {DETECTRON2: iter(theirs).__next__, OURS: iter(ours).__next__}


def in_order(images: Any) -> TrainingSampler:
    """A sampler of images in their order."""
    return TrainingSampler(len(images), shuffle=False)


def training_step(batch: list[dict[str, Any]], device: str) -> Training:
    """A float32 training step of an SE-ResNet-50-FPN Faster R-CNN, always on the same batch of a training loader."""
    # The batch replaces the case's images.
    case = Case(part="detector", mode="train", device=device, dtype="float32", size=32, width=32, batch=1, depth=50)
    step = Training(build_network(SE, case), case)
    step.inputs = batch
    return step


@contextmanager
def evaluation_runs(images: int) -> Iterator[Runs]:
    """pycocotools, detectron2's evaluator, and ours. Each call evaluates the same random boxes and returns AP.

    All read the annotations from a file. pycocotools also reads the detections from a file; the others take a model's
    outputs and write that file.

    Args:
        images: number of images; each has some objects of 80 classes and 100 detections.
    """
    with TemporaryDirectory() as folder:
        annotations, results = Path(folder, "val.json"), Path(folder, OURS, DETECTIONS)
        content, outputs = random_boxes(images)
        write_json(annotations, content)
        register_coco_instances(DATA_SET, {}, str(annotations), folder)
        # Otherwise the first evaluator would load it.
        DatasetCatalog.get(DATA_SET)

        def evaluate(evaluator: COCOEvaluator) -> float:
            with redirect_stdout(io.StringIO()):
                evaluator.reset()
                for image, output in zip(content["images"], outputs, strict=True):
                    evaluator.process([{"image_id": image["id"]}], [{"instances": output}])
                return float(evaluator.evaluate()["bbox"]["AP"])

        def ours() -> float:
            return evaluate(COCODetectionEvaluator(DATA_SET, output_dir=str(results.parent)))

        def theirs() -> float:
            return evaluate(COCOEvaluator(DATA_SET, output_dir=str(Path(folder, DETECTRON2)), use_fast_impl=False))

        def alone() -> float:
            with redirect_stdout(io.StringIO()):
                truth = COCO(str(annotations))
                evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            return float(100 * evaluation.stats[0])

        try:
            # Writes the file that pycocotools reads.
            ours()
            yield {PYCOCOTOOLS: alone, DETECTRON2: theirs, OURS: ours}
        finally:
            DatasetCatalog.remove(DATA_SET)
            MetadataCatalog.remove(DATA_SET)


def random_boxes(images: int, detections: int = DETECTED) -> tuple[dict[str, Any], list[Instances]]:
    """COCO annotations of random objects of all sizes, and detections near them, many of the wrong class."""
    rng = np.random.default_rng(0)
    numbers = range(1, images + 1)
    objects: list[dict[str, Any]] = []
    outputs = []
    for image in numbers:
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
        "images": [{"id": image, "file_name": f"{image}.jpg", "height": HEIGHT, "width": WIDTH} for image in numbers],
        "annotations": objects,
        "categories": [{"id": number, "name": str(number)} for number in range(1, CLASSES + 1)],
    }
    return content, outputs
