"""Times the detectors of a study in turn, in one process: a training step, and inference on an image."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from projects.benchmark.rounds import rounds_in_turn
from se_detection.config.read_config import read_config
from se_detection.data.coco_sets import register_coco_json
from se_detection.data.mapper import CheckedMapper
from se_detection.engine.checks import available_device
from se_detection.engine.trainer import Trainer
from se_detection.files import write_json

from .definition import DataSet, Study
from .study_data import Split

ROUNDS = 12


def measure_times(study: Study, data: DataSet, split: Split, path: Path, command: str) -> None:
    """Writes, for each variant, the median and quartiles of the ratio of its time to the baseline's in the same round.

    Weights are random: they only affect times that depend on the number of boxes.
    """
    register_coco_json("study_times", str(split.json_file), str(split.images))
    try:
        timers = {name: _timers(config, data.options) for name, config in study.variants.items()}
        runs = {(name, kind): run for name, kinds in timers.items() for kind, run in kinds.items()}
        for run in runs.values():
            run()
        rounds = list(tqdm(rounds_in_turn(runs, ROUNDS), desc="timing", total=ROUNDS, unit="round", disable=None))
    finally:
        DatasetCatalog.remove("study_times")
    seconds = {run: np.array([turn[run] for turn in rounds]) for run in runs}
    base = study.baseline
    content = {
        "study": study.name,
        "data": data.name,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "ratios": {
            name: {kind: _quartiles(seconds[name, kind] / seconds[base, kind]) for kind in kinds}
            for name, kinds in timers.items()
        },
        "command": command,
    }
    write_json(path, content, indent=2)


def _quartiles(ratios: Any) -> dict[str, float]:
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return {"ratio": round(float(median), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def _timers(config: Path, options: Sequence[str]) -> dict[str, Callable[[], None]]:
    """A training step, and inference on one image, with real images."""
    cfg = read_config(str(config))
    cfg.merge_from_list(list(options))
    cfg.MODEL.DEVICE = available_device(cfg)
    cfg.DATASETS.TRAIN = ("study_times",)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(MetadataCatalog.get("study_times").thing_classes)
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    images: Any = DatasetCatalog.get("study_times")[: cfg.SOLVER.IMS_PER_BATCH]
    torch.manual_seed(0)
    batch = [CheckedMapper(cfg, is_train=True)(item) for item in images]
    image = [CheckedMapper(cfg, is_train=False)(item) for item in images[:1]]

    precision = torch.bfloat16 if cfg.SOLVER.AMP.BF16 else torch.float16
    mixed = torch.autocast("cuda", precision, enabled=cfg.SOLVER.AMP.ENABLED and torch.cuda.is_available())

    def train() -> None:
        model.train()
        with EventStorage(), mixed:
            loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        # No optimizer step: random weights with frozen norms would diverge.

    def infer() -> None:
        model.eval()
        # Without mixed precision, as in detectron2's evaluation.
        with torch.no_grad():
            model(image)

    return {"train": train, "inference": infer}
