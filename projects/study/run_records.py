"""The record of a finished run: a small file for the report, without weights or predictions."""

import json
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
from se_detection.files import parse_json, write_whole
from se_detection.runs.evaluated_run import read_run
from se_detection.runs.metrics import MetricsFile
from se_detection.runs.run_folder import BACKBONE_FILE, METRICS_FILE

from .definition import Study, Variant

# The key of the pre-training in a record.
BACKBONE = "backbone"
KEPT = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Bootstrap samples. They give a standard deviation with a relative standard error of 1 / sqrt(2 * 500), 3 %.
SAMPLES = 500
# The largest number of points in a curve.
POINTS = 200


def record_file(folder: Path, study: Study, variant: Variant, seed: int) -> Path:
    """The path of a run's record."""
    return folder / f"{study.name}-{variant.name}-{seed}.json"


def read_records(folder: Path, study: Study) -> dict[str, dict[int, dict[str, Any]]]:
    """The existing records, by variant and seed.

    Raises:
        UserError: a record is from another definition of the study, other data or another device, or can't be read.
    """
    records: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in study.variants}
    first: tuple[Path, dict[str, Any]] | None = None
    for variant in study.variants.values():
        for seed in study.seeds:
            path = record_file(folder, study, variant, seed)
            if not path.is_file():
                continue
            record = _read(path, study)
            first = first or (path, record)
            for key in ("data_digest", "device"):
                if record[key] != first[1][key]:
                    raise UserError(
                        f"{path} and {first[0]} have different {key} ({record[key]}, {first[1][key]}) and can't be "
                        "compared; move one of them away, or give the study another NAME"
                    )
            records[variant.name][seed] = record
    return records


def read_times(folder: Path, study: Study) -> dict[str, Any] | None:
    """The content of the file of :func:`measure_times`, or None without a file.

    Raises:
        UserError: it is from another definition of the study.
    """
    path = times_file(folder, study)
    return _read(path, study) if path.is_file() else None


def times_file(folder: Path, study: Study) -> Path:
    """The path of a study's times."""
    return folder / f"{study.name}-times.json"


def _read(path: Path, study: Study) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}; remove it and run the study again") from error
    if not isinstance(content, dict) or content.get("definition") != study.digest:
        raise UserError(
            f"{path} is from an earlier definition of {study.name}; move the old files away, or give the study another "
            "NAME"
        )
    return content


def write_record(
    folder: Path,
    study: Study,
    variant: Variant,
    seed: int,
    *,
    run: Path,
    backbone: Path,
    rates: Mapping[float, float | None],
    rate: float,
    data_digest: str,
    command: str,
) -> dict[str, Any]:
    """Writes and returns the record of a finished run.

    It includes `bootstrap`: each metric on the test images and on resamples of them. The resamples are the same for
    every run, and the intervals are computed from them.

    Args:
        folder: folder of the records.
        run: the detector's run folder.
        backbone: the run folder of its pre-training.
        rates: AP on the tuning images by learning rate; None if the trial diverged.
        rate: the chosen learning rate.
        data_digest: see :meth:`StudyData.digest`.
        command: the command line of the study.
    """
    finished = read_run(run)
    coco = load_annotations(finished.annotations)
    weights = image_weights(len(coco.imgs), SAMPLES)
    scores = score_run(coco, load_results(finished.detections, coco, str(run)), weights, [], lambda: None).metrics
    counts = images_by_size(coco)
    pretraining = read_checkpoint(backbone / BACKBONE_FILE)["pretraining"]
    content = {
        "study": study.name,
        "definition": study.digest,
        "arm": variant.name,
        "seed": seed,
        "data": finished.annotations.stem,
        "data_digest": data_digest,
        "images": {name: counts[METRICS[name]] for name in KEPT},
        "device": finished.record["device"],
        "threads": torch.get_num_threads(),
        **{name: _finite(scores[name][0]) for name in KEPT},
        "learning_rate": rate,
        "learning_rate_trials": {str(rate): ap for rate, ap in rates.items()},
        "parameters": finished.record["parameters"],
        "backbone_gflops": finished.record["backbone_gflops"],
        BACKBONE: {
            "arm": variant.backbone,
            **pretraining,
            "curve": _curve(backbone, "loss_cls", "classification/top1"),
        },
        "curve": _curve(run, "total_loss", "bbox/AP"),
        "bootstrap": {name: [_finite(value, 2) for value in scores[name]] for name in KEPT},
        "command": command,
        "commit": _commit(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, allow_nan=False) + "\n"
    write_whole(record_file(folder, study, variant, seed), lambda file: file.write(text.encode()))
    return content


def _curve(run: Path, loss: str, metric: str) -> dict[str, list[list[float]]]:
    """(iteration, value) pairs of the loss and of the evaluations."""
    lines = MetricsFile(run / METRICS_FILE).lines()
    losses = [[line["iteration"], round(line[loss], 4)] for line in lines if loss in line]
    return {
        "loss": losses[:: -(-len(losses) // POINTS) or 1],
        "evaluations": [[line["iteration"], round(line[metric], 2)] for line in lines if metric in line],
    }


def _finite(value: float, digits: int | None = None) -> float | None:
    """None for NaN, which JSON does not have."""
    if not np.isfinite(value):
        return None
    return float(value) if digits is None else round(float(value), digits)


def _commit() -> str:
    """The commit of the checkout, with `-dirty` if there are changes; empty if it is not a git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    describe = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    return subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
