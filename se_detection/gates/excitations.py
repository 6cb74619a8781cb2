"""Analyses a detector's gates: their values by class, and AP without them.

One pass over the images records the gates; one more pass for each block evaluates the detector with a constant gate.
Progress is saved, so that the same command resumes a stopped analysis.
"""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..data.coco_format import Entry
from ..engine.signals import Interrupted, RankMaximum, StopRequest
from ..errors import UserError, counted
from ..files import check_folder, read_json, write_json
from ..runs.evaluation_data import EvaluationData, fingerprint, load_image, open_evaluation_data
from ..runs.run_folder import EXCITATIONS
from ..runs.trained_run import TrainedRun, load_trained_run, read_run_config
from .ablation import UNCHANGED, Ablation, ablate, detections, summarize
from .recorder import Gates, recorded_gates, se_gates
from .statistics import BlockStatistics, load_statistics, save_statistics

STATE, STATISTICS = "state.json", "excitations.npz"
TABLES = ("excitations.json", "blocks.csv", "channels.csv")
FILES = (*TABLES, STATISTICS, STATE, "plots", "pictures")
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Excitations:
    """An analysis of a run's gates; `ablation` is None if nothing was evaluated."""

    run: TrainedRun
    data: EvaluationData
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
    """Records a run's gates and evaluates the detector with each gate held at its mean; resumes a stopped analysis.

    Args:
        run_folder: the folder of the run.
        output: the folder for the results; `excitations` in the run's folder by default.
        split: a COCO file and its image folder, to use instead of the run's test set.
        images: use at most this many images, spread evenly over the set.
        ablation: evaluate the detector without each gate; if false, earlier evaluations are kept.
        image: an image file to draw later; it is only checked here.
        overwrite: replace an analysis in the folder.

    Raises:
        UserError: the folder is not a run, or its detector has no SE gates; the data can't be used; or `output` has
            another analysis.
        Interrupted: a signal stopped it; progress is saved.
    """
    cfg = read_run_config(run_folder)
    if image is not None:
        load_image(cfg, image)
    run = load_trained_run(run_folder, cfg)
    gates = se_gates(run.model)
    if not gates:
        backbone = cfg.MODEL.BACKBONE.NAME
        raise UserError(
            "gates.none",
            f"{run_folder}: its detector ({backbone}) has no SE gates of this project (timm's networks with their own "
            "SE are not analyzed); give a run with SE",
        )
    data = open_evaluation_data(run, split, images)
    folder = output or run_folder / EXCITATIONS
    state = _open_state(folder, fingerprint(run, data), overwrite=overwrite)
    blocks = {name: BlockStatistics(gate.fc2.out_channels, len(data.classes)) for name, gate in gates.items()}
    seen, total = 0, len(data.images)
    if (folder / STATISTICS).is_file():
        blocks, seen = load_statistics(folder / STATISTICS)
        print(f"{folder}: resumes after {_done(seen, total, state)}", file=sys.stderr)
    passes = 1 + ablation * (1 + len(gates) + 2 * (len(gates) > 1))
    stop = StopRequest(RankMaximum())
    done = seen + ablation * len(state["rows"]) * total
    with (
        stop.listening(),
        tqdm(total=passes * total, initial=done, desc="gates", unit="image", mininterval=0.5) as progress,
    ):

        def step() -> None:
            progress.update()
            if stop.received:
                stop.raise_if_any()

        try:
            _record(run, data, gates, blocks, seen, folder / STATISTICS, step)
            means = {name: block.mean[-1] for name, block in blocks.items()}
            ablated = None
            if ablation:
                ablated = ablate(run, data, gates, means, state, folder / STATE, step, progress.set_description)
            elif UNCHANGED in state["rows"]:
                ablated = summarize(run, gates, state, data.coco())
        except Interrupted:
            progress.close()
            _, seen = load_statistics(folder / STATISTICS)
            print(f"stopped: {folder} has {_done(seen, total, state)}; run the same command to resume", file=sys.stderr)
            raise
        # Evaluations that would repeat another one were skipped.
        progress.total = progress.n
    return Excitations(run, data, gates, blocks, ablated, folder)


def _record(
    run: TrainedRun,
    data: EvaluationData,
    gates: Gates,
    blocks: dict[str, BlockStatistics],
    seen: int,
    path: Path,
    step: Callable[[], object],
) -> None:
    """Adds the images from index `seen` on to the statistics; saves them regularly and at the end."""
    if seen == len(data.images):
        return
    saved = time.monotonic()
    try:
        with recorded_gates(gates) as take:
            for image, _ in detections(run, data.images[seen:], step):
                for name, values in take().items():
                    blocks[name].add(values, data.classes_in(image))
                seen += 1
                if time.monotonic() - saved > SAVE_SECONDS:
                    save_statistics(blocks, data.classes, seen, path)
                    saved = time.monotonic()
    finally:
        save_statistics(blocks, data.classes, seen, path)


def _done(seen: int, images: int, state: Entry) -> str:
    return f"the gates of {seen} of {counted(images, 'image')} and {counted(len(state['rows']), 'evaluation')}"


def _open_state(folder: Path, of: dict[str, str], *, overwrite: bool) -> Entry:
    """The state of the analysis in a folder, new or resumed: what it is `of`, and see :func:`ablate`."""
    check_folder(folder)
    existing = [folder / name for name in FILES if (folder / name).exists()]
    if existing and not overwrite:
        state: Entry = read_json(folder / STATE) if (folder / STATE).is_file() else {"of": {}}
        if differing := [key for key, value in of.items() if state["of"].get(key) != value]:
            raise UserError(
                "output.exists",
                f"{existing[0]} already exists and is for other {', '.join(differing)}; choose another --output, or "
                "replace it with --overwrite",
            )
        return state
    for path in existing:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    state = {"of": of, "time": None, "rows": {}}
    write_json(folder / STATE, state)
    return state
