"""The record of a finished run: a small file for the report, without weights or predictions."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from se_detection.checkpoint.read_weights import read_checkpoint
from se_detection.comparison.compare import image_weights, images_by_size
from se_detection.comparison.scores import METRICS, score_run
from se_detection.data.coco_files import load_annotations, load_results
from se_detection.errors import UserError
from se_detection.files import read_json
from se_detection.runs.evaluated_run import read_run
from se_detection.runs.metrics import MetricsFile
from se_detection.runs.run_folder import BACKBONE_FILE, METRICS_FILE

from .definition import Study

# By variant and seed.
Records = Mapping[str, Mapping[int, Mapping[str, Any]]]

# The key of the pre-training in a record.
BACKBONE = "backbone"
KEPT = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Bootstrap samples. They give a standard deviation with a relative standard error of 1 / sqrt(2 * 500), 3 %.
SAMPLES = 500
# The largest number of points in a curve.
POINTS = 200


def record_file(folder: Path, study: Study, variant: str, seed: int) -> Path:
    """The path of a run's record."""
    return folder / f"{study.name}-{variant}-{seed}.json"


def times_file(folder: Path, study: Study) -> Path:
    """The path of a study's times; see :func:`measure_times`."""
    return folder / f"{study.name}-times.json"


def read_records(folder: Path, study: Study) -> dict[str, dict[int, dict[str, Any]]]:
    """The existing records, by variant and seed.

    Raises:
        UserError: a record is from another definition of the study, other data or another device, or can't be read.
    """
    records: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in study.variants}
    first: dict[str, Any] = {}
    for name in study.variants:
        for seed in study.seeds:
            path = record_file(folder, study, name, seed)
            record = read_of_study(path, study)
            if record is None:
                continue
            first = first or record
            for key in ("data_digest", "device"):
                if record[key] != first[key]:
                    raise UserError(
                        "study.mixed_records",
                        f"{path} has another {key} than other records of {study.name} ({record[key]}, {first[key]}); "
                        "move one of them away, or give the study another NAME",
                    )
            records[name][seed] = record
    return records


def read_of_study(path: Path, study: Study) -> dict[str, Any] | None:
    """The content of a file of a study's results, or None without a file.

    Raises:
        UserError: it is from another definition of the study, or can't be read.
    """
    content = read_json(path) if path.is_file() else None
    if content is not None and (not isinstance(content, dict) or content.get("definition") != study.digest):
        raise UserError(
            "study.other_definition",
            f"{path} is from an earlier definition of {study.name}; move the old files away, or give the study another "
            "NAME",
        )
    return content


def scores_of_run(run: Path) -> dict[str, Any]:
    """A detector's part of its record: its data, metrics, costs and curves.

    It includes `bootstrap`: each metric on the test images and on resamples of them. The resamples are the same for
    every run, and the intervals are computed from them.
    """
    finished = read_run(run)
    coco = load_annotations(finished.annotations)
    weights = image_weights(len(coco.imgs), SAMPLES)
    scores = score_run(coco, load_results(finished.detections, coco, str(run)), weights, [], lambda: None).metrics
    counts = images_by_size(coco)
    return {
        "data": finished.annotations.stem,
        "images": {name: counts[METRICS[name]] for name in KEPT},
        "device": finished.record["device"],
        "threads": torch.get_num_threads(),
        **{name: _finite(scores[name][0]) for name in KEPT},
        "parameters": finished.record["parameters"],
        "backbone_gflops": finished.record["backbone_gflops"],
        "curve": _curve(run, "total_loss", "bbox/AP"),
        "bootstrap": {name: [_finite(round(float(value), 2)) for value in scores[name]] for name in KEPT},
        "commit": _commit(),
    }


def scores_of_backbone(run: Path) -> dict[str, Any]:
    """A record's part on the pre-training: epochs, top-1, top-5, and curves."""
    pretraining = read_checkpoint(run / BACKBONE_FILE)["pretraining"]
    return {**pretraining, "curve": _curve(run, "loss_cls", "classification/top1")}


def _curve(run: Path, loss: str, metric: str) -> dict[str, list[list[float]]]:
    """(iteration, value) pairs of the loss and of the evaluations."""
    lines = MetricsFile(run / METRICS_FILE).lines()
    losses = [[line["iteration"], round(line[loss], 4)] for line in lines if loss in line]
    return {
        "loss": losses[:: -(-len(losses) // POINTS) or 1],
        "evaluations": [[line["iteration"], round(line[metric], 2)] for line in lines if metric in line],
    }


def _finite(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return float(value) if np.isfinite(value) else None


def _commit() -> str:
    """The commit of the checkout, with `-dirty` if there are changes; empty if it is not a git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    describe = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    return subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
