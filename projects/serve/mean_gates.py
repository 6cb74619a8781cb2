"""Reads the mean gates of a run, which `se-det analyze excitations` has computed."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from se_detection.errors import UserError
from se_detection.files import read_json
from se_detection.gates.excitations import STATE, STATISTICS, Excitations
from se_detection.gates.recorder import se_gates
from se_detection.gates.statistics import load_statistics
from se_detection.inference.predictor import SEPredictor
from se_detection.runs.evaluation_data import EvaluationData
from se_detection.runs.run_folder import EXCITATIONS
from se_detection.runs.trained_run import TrainedRun


def read_mean_gates(run: Path, predictor: SEPredictor, made_of: Mapping[str, str]) -> Excitations:
    """The content of `RUN/excitations`, for a loaded detector, without reading the data set.

    Args:
        made_of: SHA-256 of the detector's `weights` and `config`.

    Raises:
        UserError: the detector has no gates, or the folder has no means for its checkpoint. The message names no path,
            as it may be shown to strangers.
    """
    run_name = run.resolve().name
    gates = se_gates(predictor.model)
    if not gates or predictor.fused:
        raise UserError(f"{run_name}: the detector has no SE gates")
    folder = run / EXCITATIONS
    command = f"se-det analyze excitations --run {shlex.quote(run_name)} --no-ablation"
    if not (folder / STATISTICS).is_file():
        raise UserError(f"the map needs the mean gates; run {command}, then try again")
    corrupt = UserError(f"the mean gates of {run_name} are corrupt; run {command} --overwrite")
    try:
        state = read_json(folder / STATE)
    except UserError as error:
        raise corrupt from error
    known = state.get("of") if isinstance(state, dict) else None
    if not isinstance(known, dict) or any(known.get(what) != digest for what, digest in made_of.items()):
        raise UserError(
            f"the mean gates of {run_name} are not those of {predictor.weights.name}; for the newest checkpoint, run "
            f"{command} --overwrite"
        )
    try:
        statistics, _ = load_statistics(folder / STATISTICS)
        for name, gate in gates.items():
            block = statistics[name]
            if not block.images[-1] or block.mean[-1].shape != (gate.fc2.out_channels,):
                raise ValueError(name)
    except Exception as error:  # of any class, as the file may hold anything
        raise corrupt from error
    trained = TrainedRun(run, predictor.cfg, predictor.model, predictor.weights)
    split = EvaluationData(Path(), Path(), predictor.classes, tuple(predictor.categories), [])
    return Excitations(trained, split, gates, statistics, None, folder)
