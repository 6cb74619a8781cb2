"""The files of a run folder (`OUTPUT_DIR`): their names, and lists of the existing ones."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.checkpointer import LAST
from ..files import TEMPORARY

RECORD = "run.json"
# See RunLock.
LOCK = ".run.lock"
CONFIG = "config.yaml"
METRICS_FILE = "metrics.json"
BAD_IMAGES = "bad_images.json"
NON_FINITE = "non_finite.json"
# The ids of the run in the trackers of SOLVER.LOGGERS.
TRACKED = "loggers.json"
# Checkpoints: at the end, before the first step, and with the highest metric. A pre-training also writes its backbone.
FINAL, INITIAL, BEST = "model_final.pth", "model_initial.pth", "model_best.pth"
BACKBONE_FILE = "backbone.pth"
# Folders of the evaluation, without and with test-time augmentation, and their files.
INFERENCE, INFERENCE_TTA = "inference", "inference_TTA"
RESULTS, DETECTIONS = "results.json", "coco_instances_results.json"
# Folder of the analysis of the gates.
EXCITATIONS = "excitations"

TRAINING_PATTERNS = (
    *(LAST, METRICS_FILE, FINAL, BEST, INITIAL, BACKBONE_FILE, NON_FINITE, BAD_IMAGES, TRACKED),
    *("model_[0-9]*.pth", "model_*.pth.corrupt", "events.out.tfevents.*", RECORD),
)
RESULT_NAMES = (
    *(DETECTIONS, RESULTS, "instances_predictions.pth"),
    # Panoptic FPN
    *("sem_seg_predictions.json", "sem_seg_evaluation.pth", "predictions.json"),
)
RESULT_PATTERNS = [f"{parent}/**/{name}" for parent in (INFERENCE, INFERENCE_TTA) for name in RESULT_NAMES]


def training_files(folder: Path) -> list[Path]:
    """The files that a training has written; a training that was refused leaves none of them."""
    return _matching(folder, TRAINING_PATTERNS)


def result_files(folder: Path) -> list[Path]:
    """The files that an evaluation has written."""
    return _matching(folder, RESULT_PATTERNS)


def unfinished_files(folder: Path) -> list[Path]:
    """The temporary files that a run left when it was killed."""
    return _matching(folder, [pattern + TEMPORARY for pattern in (*TRAINING_PATTERNS, *RESULT_PATTERNS)])


def evaluation_advice(folder: Path) -> str:
    """What to do about a run that has no record or evaluation, such as one of detectron2's own tools/train_net.py."""
    words = ["se-det", "train", "--eval-only", "--resume", "--config-file", str(folder / CONFIG)]
    command = shlex.join([*words, "OUTPUT_DIR", str(folder)])
    return (
        f"evaluate it, which writes them: {command} (your own data: with --val-json and --val-images before OUTPUT_DIR)"
    )


def evaluation_folder(folder: Path, datasets: Sequence[str], dataset_name: str) -> Path:
    """Where a data set's results are: `inference/`, or `inference/<data set>/` if there are several test sets."""
    return folder / INFERENCE / dataset_name if len(datasets) > 1 else folder / INFERENCE


def result_folders(folder: Path, datasets: Sequence[str], *, augmented: bool) -> list[Path]:
    """The folders of all data sets' results; with `augmented`, also those with test-time augmentation."""
    plain = [evaluation_folder(folder, datasets, name) for name in datasets]
    return plain + [folder / INFERENCE_TTA / name for name in datasets if augmented]


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
