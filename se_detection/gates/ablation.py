"""AP with gates held at their mean, to find dispensable SE blocks (the paper's Sec. 7.2 for ImageNet).

A constant gate need not be computed: it can be folded into the norm before it or, with SE before the residual branch
(`pre`), into the convolution after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Instances
from pycocotools.coco import COCO

from ..comparison.compare import image_weights, images_by_size
from ..comparison.intervals import Difference, estimate
from ..comparison.scores import score_run
from ..data.coco_format import Entry
from ..files import write_json
from ..modeling.complexity import count_parameters
from ..runs.evaluation_data import EvaluationData, coco_results, image_batches
from ..runs.trained_run import TrainedRun
from .recorder import Array, Gates, constant_gates
from .time_share import measure_gate_time

# Bootstrap samples of the images, for the intervals; with 200, a standard error is accurate to about 5 %.
SAMPLES = 200
# A block is dispensable if the interval of the AP without it stays within this loss.
MARGIN = 0.5
TIMED_IMAGES = 10
UNCHANGED, ALL, TOGETHER = "unchanged", "all blocks", "together"
METRICS = ("AP", "AP50")


@dataclass(frozen=True)
class AblatedBlocks:
    """A detector whose gates in `blocks` are constant.

    Args:
        blocks: their names.
        metrics: AP and AP50 in percent; None if the data has no objects.
        difference: from the unchanged detector, with 95 % intervals over images.
        parameters: number of parameters of the blocks' SE, which is saved.
        parameter_share: the same as a share of the detector's parameters.
        time_share: share of the detector's time that computing these gates takes.
    """

    blocks: tuple[str, ...]
    metrics: dict[str, float | None]
    difference: dict[str, Difference]
    parameters: int
    parameter_share: float
    time_share: float

    @property
    def dispensable(self) -> bool:
        """Whether the detector has more than 0.5 AP, and loses at most 0.5 AP at the lower end of the interval."""
        ap, change = self.metrics["AP"], self.difference["AP"]
        if ap is None or change.value is None or change.low is None:
            return False
        return ap - change.value > MARGIN and change.low >= -MARGIN


@dataclass(frozen=True)
class Ablation:
    """The unchanged detector's metrics, each block, and several blocks together.

    Args:
        unchanged: AP and AP50 in percent; None if the data has no objects.
        blocks: by name, the detector without that block's gates.
        joint: `all blocks`, and `together`, all individually dispensable blocks; without those that would repeat
            another row, or are not evaluated yet.
        time: see :func:`measure_gate_time`.
    """

    unchanged: dict[str, float | None]
    blocks: dict[str, AblatedBlocks]
    joint: dict[str, AblatedBlocks]
    time: Entry

    def rows(self) -> dict[str, AblatedBlocks]:
        """The rows of a table: `blocks`, then `joint`."""
        return {**self.blocks, **self.joint}


def detections(
    run: TrainedRun, images: Sequence[Entry], step: Callable[[], object]
) -> Iterator[tuple[Entry, Instances]]:
    """Yields each image and its detections; `step` is called after each image."""
    for image, batch in zip(images, image_batches(run.cfg, images), strict=True):
        with torch.inference_mode():
            output = run.model(batch)
        yield image, output[0]["instances"]
        step()


def ablate(
    run: TrainedRun,
    data: EvaluationData,
    gates: Gates,
    means: Mapping[str, Array],
    state: Entry,
    path: Path,
    step: Callable[[], object],
    begin: Callable[[str], object],
) -> Ablation:
    """Evaluates the detector with each gate held at its mean; skips the evaluations in `state`.

    Args:
        gates: from :func:`se_gates`.
        means: (channels,) for each gate.
        state: `time`, and `rows`: for each evaluation the constant `blocks`, and AP and AP50 on the images and on each
            bootstrap sample. It grows, and is written to `path` after each evaluation.
        step: called after each image.
        begin: called with the name of each evaluation before it starts.
    """
    if state["time"] is None:
        begin("time")
        state["time"] = measure_gate_time(run.model, gates, list(image_batches(run.cfg, data.images[:TIMED_IMAGES])))
    coco = data.coco()
    weights = image_weights(len(coco.imgs), SAMPLES)

    def evaluate(label: str, names: Sequence[str]) -> None:
        if label in state["rows"]:
            return
        begin(label)
        with constant_gates(gates, {name: means[name] for name in names}):
            results = [entry for pair in detections(run, data.images, step) for entry in coco_results(*pair, data)]
        metrics = score_run(coco, results, weights, [], lambda: None).metrics
        state["rows"][label] = {
            "blocks": list(names),
            # JSON has no NaN.
            **{key: [None if np.isnan(value) else float(value) for value in metrics[key]] for key in METRICS},
        }
        write_json(path, state)

    evaluate(UNCHANGED, [])
    for name in gates:
        evaluate(name, [name])
    if len(gates) > 1:
        evaluate(ALL, list(gates))
    dispensable = [name for name, row in summarize(run, gates, state, coco).blocks.items() if row.dispensable]
    if 1 < len(dispensable) < len(gates):
        evaluate(TOGETHER, dispensable)
    return summarize(run, gates, state, coco)


def summarize(run: TrainedRun, gates: Gates, state: Entry, coco: COCO) -> Ablation:
    """The evaluations of a state, which must have at least the time and the unchanged detector."""
    objects = images_by_size(coco)[0]
    parameters = count_parameters(run.model)
    # (1, 1 + samples), with NaN for None.
    samples = {
        label: {key: np.array([row[key]], dtype=np.float64) for key in METRICS} for label, row in state["rows"].items()
    }
    rows = {}
    for label, row in state["rows"].items():
        saved = sum(count_parameters(gates[name]) for name in row["blocks"])
        rows[label] = AblatedBlocks(
            blocks=tuple(row["blocks"]),
            metrics={key: row[key][0] for key in METRICS},
            difference={
                key: estimate(samples[UNCHANGED][key], samples[label][key], objects).difference() for key in METRICS
            },
            parameters=saved,
            parameter_share=saved / parameters,
            time_share=sum(state["time"]["share"][name] for name in row["blocks"]),
        )
    return Ablation(
        unchanged=rows.pop(UNCHANGED).metrics,
        blocks={name: rows[name] for name in gates if name in rows},
        joint={label: rows[label] for label in (ALL, TOGETHER) if label in rows},
        time=state["time"],
    )
