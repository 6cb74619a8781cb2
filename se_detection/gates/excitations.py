"""A detector's gates, explained: what they are by class, and what they are worth.

The images are gone through once to record the gates, and once more for each block whose gate is then held constant.
What is done is saved as it goes: the same command goes on with an analysis that was stopped.
"""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..engine.signals import Interrupted, RankMaximum, StopRequest
from ..errors import UserError
from ..files import read_json
from ..runs.evaluation_data import EvaluationData, fingerprint, open_evaluation_data, read_image
from ..runs.trained_run import TrainedRun, load_trained_run, read_run_config
from .ablation import UNCHANGED, Ablation, AblationState, ablate, detections, evaluations, summarise
from .recorder import GateRecorder, Gates, se_gates
from .statistics import BlockStatistics, load_statistics, save_statistics

STATE, STATISTICS = "state.json", "excitations.npz"
FILES = ("excitations.json", "blocks.csv", "channels.csv", STATISTICS, STATE, "plots", "pictures")
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Excitations:
    """What was found of a run's gates; `ablation` is None where nothing was evaluated."""

    run: TrainedRun
    split: EvaluationData
    gates: Gates
    statistics: dict[str, BlockStatistics]
    ablation: Ablation | None
    folder: Path


def explain(
    run_folder: Path,
    output: Path | None = None,
    *,
    split: Sequence[Path] | None = None,
    images: int | None = None,
    ablation: bool = True,
    image: Path | None = None,
    overwrite: bool = False,
) -> Excitations:
    """Records a run's gates over a split and evaluates the detector without each; goes on where it was stopped.

    Args:
        run_folder: of tools/train_net.py.
        output: what is found is kept there; `excitations` in the run's folder unless given.
        split: a COCO file and the folder of its images, instead of the run's test set.
        images: at most so many, spread evenly over the set.
        ablation: whether the detector is evaluated without each gate; if not, what has been evaluated before is kept.
        image: a file that is to be drawn afterwards, and must be readable.
        overwrite: begin anew where the folder has an analysis already.

    Raises:
        UserError: it is no run with SE gates, the data can't be used, or the folder has another analysis.
        Interrupted: it was asked to stop; what was done is saved.
    """
    cfg = read_run_config(run_folder)
    if image is not None:
        read_image(cfg, image)
    run = load_trained_run(run_folder, cfg)
    gates = se_gates(run.model)
    if not gates:
        raise UserError(f"{run_folder}: its backbone, {cfg.MODEL.BACKBONE.NAME}, has no SE gates; give an SE run")
    data = open_evaluation_data(run, split, images)
    of = fingerprint(run, data)
    folder = _open_folder(output or run_folder / "excitations", of, overwrite=overwrite)
    state = AblationState(folder / STATE, of)
    state.save()

    blocks = {name: BlockStatistics(gate.fc2.out_channels, len(data.classes)) for name, gate in gates.items()}
    seen = 0
    if (folder / STATISTICS).is_file():
        blocks, seen = load_statistics(folder / STATISTICS)
    total = len(data.images)
    parts = 1 + ablation * evaluations(list(gates))
    if seen:
        print(f"{folder}: goes on after {_done(seen, total, len(state.rows))}", file=sys.stderr)
    stop = StopRequest(RankMaximum())
    done = seen + ablation * len(state.rows) * total
    with (
        stop.listening(),
        tqdm(total=parts * total, initial=done, desc="gates", unit="image", mininterval=0.5) as progress,
    ):

        def step() -> None:
            progress.update()
            if stop.received:
                stop.raise_if_any()

        def begin(label: str) -> None:
            progress.set_description(label)

        try:
            seen = _record(run, data, gates, blocks, seen, folder / STATISTICS, step)
            means = {name: block.mean[-1] for name, block in blocks.items()}
            ablated = None
            if ablation:
                ablated = ablate(run, data, gates, means, state, step, begin)
            elif UNCHANGED in state.rows:
                ablated = summarise(run, gates, state, data.coco())
        except Interrupted:
            progress.close()
            _, seen = load_statistics(folder / STATISTICS)
            has = _done(seen, total, len(state.rows))
            print(f"stopped: {folder} has {has}; the same command goes on", file=sys.stderr)
            raise
        # What would have been the same as another evaluation was left out.
        progress.total = progress.n
    return Excitations(run, data, gates, blocks, ablated, folder)


def _record(
    run: TrainedRun,
    split: EvaluationData,
    gates: Gates,
    blocks: dict[str, BlockStatistics],
    seen: int,
    path: Path,
    step: Callable[[], object],
) -> int:
    """Adds the images from `seen` on to the statistics, which are saved now and then, and at the end."""
    if seen == len(split.images):
        return seen
    saved = time.monotonic()
    try:
        with GateRecorder(gates) as recorder:
            for image, _ in detections(run, split.images[seen:], step):
                for name, values in recorder.take().items():
                    blocks[name].add(values, split.classes_in(image))
                seen += 1
                if time.monotonic() - saved > SAVE_SECONDS:
                    save_statistics(blocks, split.classes, seen, path)
                    saved = time.monotonic()
    finally:
        save_statistics(blocks, split.classes, seen, path)
    return seen


def _done(seen: int, images: int, rows: int) -> str:
    return f"the gates of {seen} of {images} images and {rows} evaluations"


def _open_folder(folder: Path, of: dict[str, str], *, overwrite: bool) -> Path:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--output {folder}: {existing} is a file; name a folder")
    there = [folder / name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        known = read_json(folder / STATE) if (folder / STATE).is_file() else None
        made_of = known.get("of") if isinstance(known, dict) else None
        differing = [key for key, value in of.items() if not isinstance(made_of, dict) or made_of.get(key) != value]
        if differing:
            raise UserError(
                f"{there[0]} is there already, and of other {', '.join(differing)}; choose another --output, or "
                "replace it with --overwrite"
            )
    for path in there if overwrite else []:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
