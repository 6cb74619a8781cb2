"""AP when a gate is held at its mean: which SE blocks a detector could do without (the paper's Sec. 7.2 for ImageNet).

A gate that is constant is no longer computed: it goes into the scales of the norm before it or, with SE before the
residual branch (`pre`), into the convolution after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from pycocotools.coco import COCO

from ..compare.compare import image_weights, images_by_size
from ..compare.intervals import Difference, estimate
from ..compare.scores import score_run
from ..data.coco_format import Entry
from ..errors import UserError
from ..files import read_json, write_json
from ..modeling.complexity import count_parameters
from ..runs.evaluation_data import EvaluationData, batches, coco_results
from ..runs.trained_run import TrainedRun
from .recorder import Array, Gates, constant_gates
from .time_share import GateTime, measure_gate_time

# Drawings of images for the intervals; with 200, a standard error is right to a twentieth.
SAMPLES = 200
# A block that costs less AP than that, whichever images are drawn, is one to do without.
MARGIN = 0.5
TIMED_IMAGES = 10
UNCHANGED, ALL, TOGETHER = "unchanged", "all blocks", "together"
METRICS = ("AP", "AP50")


@dataclass(frozen=True)
class AblatedBlocks:
    """A detector whose gates in `blocks` are constant.

    Args:
        blocks: their names.
        metrics: AP and AP50 in percent; None where there is nothing to find.
        difference: of these from the unchanged detector's, with 95 % intervals over images.
        parameters: what the blocks' SE has, which is saved.
        parameter_share: the same as a part of the detector's.
        time_share: the part of the detector's time that computing these gates takes.
    """

    blocks: tuple[str, ...]
    metrics: dict[str, float | None]
    difference: dict[str, Difference]
    parameters: int
    parameter_share: float
    time_share: float

    @property
    def dispensable(self) -> bool:
        """Whether the detector could do without: it has more than 0.5 AP, and loses no more at the interval's end."""
        ap, change = self.metrics["AP"], self.difference["AP"]
        if ap is None or change.value is None or change.low is None:
            return False
        return ap - change.value > MARGIN and change.low >= -MARGIN


@dataclass(frozen=True)
class Ablation:
    """The unchanged detector, each block alone, all of them, and those together that are dispensable alone.

    The last two are None where they would repeat another row, or have not been evaluated yet.
    """

    unchanged: dict[str, float | None]
    blocks: dict[str, AblatedBlocks]
    all_blocks: AblatedBlocks | None
    together: AblatedBlocks | None
    time: GateTime

    def rows(self) -> dict[str, AblatedBlocks]:
        """Each, by its name or what it is."""
        joint = {ALL: self.all_blocks, TOGETHER: self.together}
        return {**self.blocks, **{name: row for name, row in joint.items() if row is not None}}


class AblationState:
    """What has been evaluated, in a file that is written after each evaluation.

    Args:
        path: the file; what it holds is taken over.
        of: what it must be of: a :func:`~.trained_run.fingerprint`.

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
        """Of each evaluation the `blocks` that were constant, and AP and AP50 on the images and on each drawing."""
        return self.content["rows"]

    @property
    def time(self) -> GateTime | None:
        """What was timed."""
        return GateTime(**self.content["time"]) if self.content["time"] else None

    def save(self, **changes: Any) -> None:
        """Adds to the file."""
        self.content |= changes
        write_json(self.path, self.content)


def detections(
    run: TrainedRun, images: Sequence[Entry], step: Callable[[], object]
) -> Iterator[tuple[Entry, Instances]]:
    """Each image and what the detector finds on it, one after another; `step` is called after each."""
    for image, batch in zip(images, batches(run.cfg, images), strict=True):
        with torch.inference_mode():
            output = run.model(batch)
        yield image, output[0]["instances"]
        step()


def evaluations(names: Sequence[str]) -> int:
    """At most so many times all images are evaluated."""
    return 1 + len(names) + 2 * (len(names) > 1)


def ablate(
    run: TrainedRun,
    split: EvaluationData,
    gates: Gates,
    means: Mapping[str, Array],
    state: AblationState,
    step: Callable[[], object],
    begin: Callable[[str], object],
) -> Ablation:
    """Evaluates the detector with each gate held at its mean; goes on from what `state` has.

    Args:
        gates: of :func:`se_gates`.
        means: (channels,) of each gate.
        step: called after each image.
        begin: called with what is evaluated next.
    """
    if state.time is None:
        begin("time")
        images = split.images[:TIMED_IMAGES]
        state.save(time=asdict(measure_gate_time(run.model, gates, list(batches(run.cfg, images)))))
    coco = split.coco()
    weights = image_weights(len(coco.imgs), SAMPLES)

    def evaluate(label: str, names: Sequence[str]) -> None:
        if label in state.rows:
            return
        begin(label)
        with constant_gates(gates, {name: means[name] for name in names}):
            found = [entry for pair in detections(run, split.images, step) for entry in coco_results(*pair, split)]
        metrics = score_run(coco, found, weights, [], lambda: None).metrics
        row = {"blocks": list(names), **{name: _without_nan(metrics[name]) for name in METRICS}}
        state.save(rows={**state.rows, label: row})

    evaluate(UNCHANGED, [])
    for name in gates:
        evaluate(name, [name])
    if len(gates) > 1:
        evaluate(ALL, list(gates))
    dispensable = [name for name, row in summarise(run, gates, state, coco).blocks.items() if row.dispensable]
    if 1 < len(dispensable) < len(gates):
        evaluate(TOGETHER, dispensable)
    return summarise(run, gates, state, coco)


def summarise(run: TrainedRun, gates: Gates, state: AblationState, coco: COCO) -> Ablation:
    """What a state says; at least time and the unchanged detector must be there."""
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
    """(1, 1 + samples), NaN for None."""
    return np.array([values], dtype=np.float64)
