"""How much a detector's output for an image depends on the other images of its batch."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Instances
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from se_detection.errors import UserError, counted
from se_detection.export.output_check import pair_detections
from se_detection.gates.recorder import se_gates
from se_detection.runs.evaluation_data import EvaluationData, image_batches, open_evaluation_data
from se_detection.runs.trained_run import TrainedRun, load_trained_run, read_run_config


@dataclass
class Drift:
    """Differences between an image alone and the same image in a batch.

    Args:
        images: number of images.
        batch: images per batch.
        gates: for each image, the largest difference of an SE gate's values.
        features: for each map and image, the largest difference inside the image, relative to the largest value.
        scores: for each matched detection, the difference of the scores.
        boxes: for each matched detection, the largest move of a side, in pixels of the original image.
        detections: number of detections in the images alone.
        lost: number of these that are missing in the batch.
        gained: number of detections that occur only in the batch.
    """

    images: int
    batch: int
    gates: list[float] = field(default_factory=list)
    features: dict[str, list[float]] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    boxes: list[float] = field(default_factory=list)
    detections: int = 0
    lost: int = 0
    gained: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all fields, with mean and maximum instead of lists."""
        features = {name: _summary(values) for name, values in self.features.items()}
        single = {name: _summary(getattr(self, name)) for name in ("gates", "scores", "boxes")}
        return {**asdict(self), **single, "features": features}


def padding_drift(
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    split: Sequence[Path] | None = None,
    images: int | None = None,
    batch: int = 4,
) -> Drift:
    """Runs a trained detector on each image alone, and in a batch with the images that follow it.

    Args:
        folder: a run folder of `se-det train`.
        overrides: config overrides, `KEY VALUE ...`.
        split: COCO annotations and the folder of their images; by default the run's test set.
        images: use at most this number of images, spread evenly over the set.
        batch: images per batch.

    Raises:
        UserError: an argument is invalid, or there are fewer than two images.
    """
    if batch < 2:
        raise UserError("padding.small_batch", f"--batch {batch}: give at least 2")
    run = load_trained_run(folder, read_run_config(folder, overrides))
    opened = open_evaluation_data(run, split, images)
    if len(opened.images) < 2:
        raise UserError("padding.small_batch", f"{opened.annotations}: a batch needs at least 2 images")
    return _measure(run, opened, batch)


def _measure(run: TrainedRun, split: EvaluationData, size: int) -> Drift:
    drift = Drift(images=len(split.images), batch=size)
    backbone: Any = run.model.backbone
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    waiting: list[dict[str, Any]] = []
    for place, (entry,) in enumerate(tqdm(image_batches(run.cfg, split.images), "images", drift.images), 1):
        waiting.append(entry)
        if len(waiting) < size and place < drift.images:
            continue
        together, shared_gates, shared_maps = _run(run.model, waiting)
        for row, image in enumerate(waiting):
            (alone,), gates, maps = _run(run.model, [image])
            if gates:
                changes = [(shared_gates[name][row] - own[0]).abs().max() for name, own in gates.items()]
                drift.gates.append(torch.stack(changes).max().item())
            for name, stride in strides.items():
                height, width = (-(-length // stride) for length in image["image"].shape[1:])
                own, shared = maps[name][0, :, :height, :width], shared_maps[name][row, :, :height, :width]
                change = (own - shared).abs().max() / own.abs().max()
                drift.features.setdefault(name, []).append(change.item())
            _compare(drift, alone["instances"], together[row]["instances"])
        waiting = []
    return drift


def _run(model: Any, batch: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, Tensor]]:
    """The model's outputs, the backbone's gates, (N, channels, ...) each, and its maps."""
    gates: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}

    def keep(name: str, activation: nn.Module, inputs: Any, output: Tensor) -> None:
        gates[name] = output

    with torch.no_grad(), ExitStack() as hooks:
        for name, gate in se_gates(model.backbone).items():
            hooks.callback(gate.activation.register_forward_hook(partial(keep, name)).remove)
        hooks.callback(model.backbone.register_forward_hook(lambda module, inputs, output: maps.update(output)).remove)
        return model(batch), gates, maps


def _compare(drift: Drift, alone: Instances, together: Instances) -> None:
    pairs = pair_detections(alone, together)
    for place, other in pairs:
        drift.scores.append((alone.scores[place] - together.scores[other]).abs().item())
        sides = alone.pred_boxes.tensor[place] - together.pred_boxes.tensor[other]
        drift.boxes.append(sides.abs().max().item())
    drift.detections += len(alone)
    drift.lost += len(alone) - len(pairs)
    drift.gained += len(together) - len(pairs)


def drift_table(drift: Drift) -> str:
    """Mean and maximum for gates, maps, scores and boxes, and below the lost and gained detections."""
    summaries = drift.to_dict()
    values = {f"features {name}": summary for name, summary in summaries["features"].items()}
    values = {"gate": summaries["gates"], **values, "score": summaries["scores"], "box (pixels)": summaries["boxes"]}
    rows = [[name, f"{row['mean']:.1e}", f"{row['max']:.1e}"] for name, row in values.items() if row]
    table = tabulate(rows, ["difference", "mean", "max"], tablefmt="simple", disable_numparse=True)
    return (
        f"{table}\n\n{counted(drift.images, 'image')}, each alone and in a batch of {drift.batch}: of "
        f"{counted(drift.detections, 'detection')}, {drift.lost} are missing in the batch, and {drift.gained} occur "
        "only in the batch."
    )


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and maximum; None without values."""
    return {"mean": sum(values) / len(values), "max": max(values)} if values else None
