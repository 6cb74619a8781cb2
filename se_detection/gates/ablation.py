"""AP with gates held at their mean, to find dispensable SE blocks (the paper's Sec. 7.2 for ImageNet).

A constant gate need not be computed: it can be folded into the norm before it or, with SE before the residual branch
(`pre`), into the convolution after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from pycocotools.coco import COCO

from ..comparison.compare import image_weights, images_by_size
from ..comparison.intervals import Difference, estimate
from ..comparison.scores import score_run
from ..data.coco_format import Entry
from ..errors import UserError
from ..files import read_json, write_json
from ..modeling.complexity import count_parameters
from ..runs.evaluation_data import EvaluationData, coco_results, image_batches
from ..runs.trained_run import TrainedRun
from .recorder import Array, Gates, constant_gates
from .time_share import GateTime, measure_gate_time

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
    """The unchanged detector, each block, all blocks, and all individually dispensable blocks together.

    The last two are None if they would repeat another row, or are not evaluated yet.
    """

    unchanged: dict[str, float | None]
    blocks: dict[str, AblatedBlocks]
    all_blocks: AblatedBlocks | None
    together: AblatedBlocks | None
    time: GateTime

    def rows(self) -> dict[str, AblatedBlocks]:
        """All rows: by block, and `all blocks` and `together` if evaluated."""
        joint = {ALL: self.all_blocks, TOGETHER: self.together}
        return {**self.blocks, **{name: row for name, row in joint.items() if row is not None}}


class AblationState:
    """Evaluations done so far, in a file that is written after each of them.

    Args:
        path: the file; its content is read if it exists.
        of: the inputs that the file belongs to: a :func:`~se_detection.runs.evaluation_data.fingerprint`.

    Raises:
        UserError: the file can't be read.
    """

    def __init__(self, path: Path, of: dict[str, str]) -> None:
        self.path = path
        self.content: Entry = read_json(path) if path.is_file() else {"of": of, "time": None, "rows": {}}
        if not isinstance(self.content, dict) or not isinstance(self.content.get("rows"), dict):
            raise UserError(f"{path} is damaged; replace the analysis with --overwrite")

    @property
    def rows(self) -> dict[str, Entry]:
        """For each evaluation the constant `blocks`, and AP and AP50 on the images and on each bootstrap sample."""
        return self.content["rows"]

    @property
    def time(self) -> GateTime | None:
        """The measured time of the gates."""
        return GateTime(**self.content["time"]) if self.content["time"] else None

    def save(self, **changes: Any) -> None:
        """Updates the file."""
        self.content |= changes
        write_json(self.path, self.content)


def detections(
    run: TrainedRun, images: Sequence[Entry], step: Callable[[], object]
) -> Iterator[tuple[Entry, Instances]]:
    """Yields each image and its detections; `step` is called after each image."""
    for image, batch in zip(images, image_batches(run.cfg, images), strict=True):
        with torch.inference_mode():
            output = run.model(batch)
        yield image, output[0]["instances"]
        step()


def max_evaluations(names: Sequence[str]) -> int:
    """The largest number of evaluations for these blocks."""
    return 1 + len(names) + 2 * (len(names) > 1)


def ablate(
    run: TrainedRun,
    data: EvaluationData,
    gates: Gates,
    means: Mapping[str, Array],
    state: AblationState,
    step: Callable[[], object],
    begin: Callable[[str], object],
) -> Ablation:
    """Evaluates the detector with each gate held at its mean; skips the evaluations in `state`.

    Args:
        gates: from :func:`se_gates`.
        means: (channels,) for each gate.
        step: called after each image.
        begin: called with the name of each evaluation before it starts.
    """
    if state.time is None:
        begin("time")
        images = data.images[:TIMED_IMAGES]
        state.save(time=asdict(measure_gate_time(run.model, gates, list(image_batches(run.cfg, images)))))
    coco = data.coco()
    weights = image_weights(len(coco.imgs), SAMPLES)

    def evaluate(label: str, names: Sequence[str]) -> None:
        if label in state.rows:
            return
        begin(label)
        with constant_gates(gates, {name: means[name] for name in names}):
            results = [entry for pair in detections(run, data.images, step) for entry in coco_results(*pair, data)]
        metrics = score_run(coco, results, weights, [], lambda: None).metrics
        row = {"blocks": list(names), **{name: _without_nan(metrics[name]) for name in METRICS}}
        state.save(rows={**state.rows, label: row})

    evaluate(UNCHANGED, [])
    for name in gates:
        evaluate(name, [name])
    if len(gates) > 1:
        evaluate(ALL, list(gates))
    dispensable = [name for name, row in summarize(run, gates, state, coco).blocks.items() if row.dispensable]
    if 1 < len(dispensable) < len(gates):
        evaluate(TOGETHER, dispensable)
    return summarize(run, gates, state, coco)


def summarize(run: TrainedRun, gates: Gates, state: AblationState, coco: COCO) -> Ablation:
    """The evaluations of a state, which must have at least the time and the unchanged detector."""
    if state.time is None:
        raise ValueError("nothing has been evaluated yet")
    objects = images_by_size(coco)[0]
    parameters = count_parameters(run.model)
    unchanged, time = state.rows[UNCHANGED], state.time

    def summary(row: Entry) -> AblatedBlocks:
        saved = sum(count_parameters(gates[name]) for name in row["blocks"])
        return AblatedBlocks(
            blocks=tuple(row["blocks"]),
            metrics={name: row[name][0] for name in METRICS},
            difference={
                name: estimate(_samples(unchanged[name]), _samples(row[name]), objects).difference() for name in METRICS
            },
            parameters=saved,
            parameter_share=saved / parameters,
            time_share=sum(time.share[name] for name in row["blocks"]),
        )

    rows = {label: summary(row) for label, row in state.rows.items() if label != UNCHANGED}
    return Ablation(
        unchanged={name: unchanged[name][0] for name in METRICS},
        blocks={name: rows[name] for name in gates if name in rows},
        all_blocks=rows.get(ALL),
        together=rows.get(TOGETHER),
        time=time,
    )


def _without_nan(values: Array) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _samples(values: Sequence[float | None]) -> Array:
    """(1, 1 + samples), with NaN for None."""
    return np.array([values], dtype=np.float64)
