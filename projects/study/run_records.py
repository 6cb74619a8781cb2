"""The record of a finished run: a small file for the report, without weights or predictions."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from se_detection.comparison.compare import image_weights, images_by_size
from se_detection.comparison.scores import METRICS, score_run
from se_detection.data.coco_files import load_annotations, load_results
from se_detection.errors import UserError
from se_detection.files import read_json
from se_detection.runs.evaluated_run import read_run

from .definition import Study

Record = Mapping[str, Any]
# By data set, variant and seed.
Records = Mapping[str, Mapping[str, Mapping[int, Record]]]

KEPT = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Bootstrap samples. They give a standard deviation with a relative standard error of 1 / sqrt(2 * 500), 3 %.
SAMPLES = 500


def record_file(folder: Path, study: Study, data: str, variant: str, seed: int) -> Path:
    """The path of a run's record."""
    return folder / f"{study.name}-{data}-{variant}-{seed}.json"


def times_file(folder: Path, study: Study) -> Path:
    """The path of a study's times; see :func:`measure_times`."""
    return folder / f"{study.name}-times.json"


def read_records(folder: Path, study: Study) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """The existing records, by data set, variant and seed.

    Raises:
        UserError: a record is from another definition of the study, other data or another device, or can't be read.
    """
    records: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for data in study.data.values():
        runs = records[data.name] = {variant: {} for variant in study.variants}
        first: dict[str, Any] = {}
        for variant in study.variants:
            for seed in data.seeds:
                path = record_file(folder, study, data.name, variant, seed)
                if not path.is_file():
                    continue
                record = read_json(path)
                if not isinstance(record, dict) or record.get("definition") != data.digest:
                    raise UserError(
                        "study.other_definition",
                        f"{path} is from an earlier definition of {study.name}; move the old files away, or give the "
                        "study another NAME",
                    )
                first = first or record
                for key in ("data_digest", "device"):
                    if record[key] != first[key]:
                        raise UserError(
                            "study.mixed_records",
                            f"{path} has another {key} than others of {data.name} ({record[key]}, {first[key]}); "
                            "move one of them away, or give the study another NAME",
                        )
                runs[variant][seed] = record
    return records


def scores_of_run(run: Path) -> dict[str, Any]:
    """A detector's part of its record: its data, metrics and costs.

    It includes `bootstrap`: each metric on the test images and on resamples of them. The resamples are the same for
    every run, and the intervals are computed from them.
    """
    finished = read_run(run)
    coco = load_annotations(finished.annotations)
    weights = image_weights(len(coco.imgs), SAMPLES)
    scores = score_run(coco, load_results(finished.detections, coco, str(run)), weights, [], lambda: None).metrics
    counts = images_by_size(coco)
    return {
        "images": {name: counts[METRICS[name]] for name in KEPT},
        "device": finished.record["device"],
        "threads": torch.get_num_threads(),
        **{name: _finite(scores[name][0]) for name in KEPT},
        "parameters": finished.record["parameters"],
        "backbone_gflops": finished.record["backbone_gflops"],
        "bootstrap": {name: [_finite(round(float(value), 2)) for value in scores[name]] for name in KEPT},
        "commit": _commit(),
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
