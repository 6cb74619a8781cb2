"""The lines on the screen before a training or an evaluation, and after it."""

import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..config.timm_config import backbone_label
from ..data.coco_format import is_number
from ..data.coco_sets import name_failing_dataset
from ..data.train_loader import TrainLoader
from ..errors import UserError, counted, printable
from ..modeling.complexity import count_parameters
from ..runs.evaluated_run import EvaluatedRun, read_run
from ..runs.metrics import MetricsFile
from ..runs.record import class_names
from ..runs.run_folder import BEST, INFERENCE, METRICS_FILE, RESULTS
from .progress import METRICS, duration, headlines

SHOWN_CLASSES = 8


def describe_run(
    cfg: CfgNode,
    model: nn.Module,
    *,
    weights: str,
    log: Path,
    train_loader: Iterable[Any] | None = None,
    start: int = 0,
) -> list[str]:
    """The lines before a training or an evaluation: versions, device, data, model, schedule, log.

    Args:
        model: not wrapped for DDP.
        weights: what the model starts from, in words.
        log: the file with the rest.
        train_loader: of a training.
        start: how many steps of a training are done.
    """
    device = torch.cuda.get_device_name() if cfg.MODEL.DEVICE != "cpu" else "cpu"
    device += f", {counted(torch.get_num_threads(), 'thread')}" if device == "cpu" else ""
    if comm.get_world_size() > 1:
        device += f", {counted(comm.get_world_size(), 'process', 'processes')}"
    size = f"{count_parameters(model) / 1e6:.1f} M parameters"
    if frozen := sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad):
        size += f" ({frozen / 1e6:.1f} M frozen)"
    lines = {
        "device": device,
        **_data_lines(cfg, train_loader),
        "model": f"{type(model).__name__}, {backbone_label(cfg)}, {size}",
        "weights": weights,
        **({"schedule": _schedule(cfg, train_loader, start)} if train_loader is not None else {}),
        "log": f"{log} has all details",
    }
    versions = ", ".join(f"{package} {version(package)}" for package in ("se_detection", "torch"))
    return [versions, *_table(lines)]


def _data_lines(cfg: CfgNode, train_loader: Iterable[Any] | None) -> dict[str, str]:
    lines = {}
    if isinstance(train_loader, TrainLoader):
        lines["train"] = f"{', '.join(cfg.DATASETS.TRAIN)}: {counted(len(train_loader.groups), 'image')}"
    tests = []
    for name in cfg.DATASETS.TEST:
        # It also finds what the evaluation would fail on.
        with name_failing_dataset([name]):
            tests.append(f"{name}: {counted(len(DatasetCatalog.get(name)), 'image')}")
    if tests:
        lines["test"] = "; ".join(tests)
    if names := class_names([*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]):
        shown = ", ".join(map(printable, names[:SHOWN_CLASSES])) + ", ..." * (len(names) > SHOWN_CLASSES)
        lines["classes"] = f"{len(names)}: {shown}"
    return lines


def _schedule(cfg: CfgNode, train_loader: Iterable[Any], start: int) -> str:
    solver = cfg.SOLVER
    text = f"{counted(solver.MAX_ITER, 'step')} of {counted(solver.IMS_PER_BATCH, 'image')}"
    if isinstance(train_loader, TrainLoader):
        text += f", {solver.MAX_ITER * solver.IMS_PER_BATCH / len(train_loader.groups):.1f} passes over the data"
    text += f", from step {start + 1:,}" if 0 < start < solver.MAX_ITER else ""
    text += f"; learning rate {solver.BASE_LR:g}"
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and steps:
        text += f", times {solver.GAMMA:g} at {', '.join(f'{step:,}' for step in steps)}"
    period = cfg.TEST.EVAL_PERIOD
    return f"{text}; evaluated {f'every {period:,} steps and ' if period else ''}at the end"


def _table(lines: Mapping[str, str]) -> list[str]:
    return [f"{name:<9} {text}" for name, text in lines.items()]


def summary(cfg: CfgNode, results: Mapping[str, Any], *, seconds: float, command: str, trained: bool) -> list[str]:
    """The lines after a training or an evaluation: metrics, the best checkpoint, time, folder, the next command.

    Args:
        results: of the last evaluation, as detectron2's `test` returns them.
        seconds: how long all of it took.
        command: the next one; empty for none.
        trained: it was a training, which may have a best checkpoint.
    """
    folder = Path(cfg.OUTPUT_DIR)
    lines = {
        "result": "; ".join(headlines(flatten_results_dict(results))) or "none, because DATASETS.TEST is empty",
        **(_best(cfg, folder) if trained else {}),
        "time": duration(seconds),
        "folder": str(folder),
        **({"next": command} if command else {}),
    }
    return ["", *_table(lines)]


def _best(cfg: CfgNode, folder: Path) -> dict[str, str]:
    """The line about `model_best.pth`; none without one."""
    key = cfg.SOLVER.BEST_METRIC
    lines = MetricsFile(folder / METRICS_FILE).lines() if (folder / BEST).is_file() else []
    found = [(line[key], -line["iteration"]) for line in lines if is_number(line.get(key))]
    if not found:
        return {}
    # Of equal values, the first one was kept.
    value, iteration = max(found)
    metric = METRICS.get(key.rpartition("/")[2], key)
    return {"best": f"{metric} {value:.1f} at step {min(1 - iteration, cfg.SOLVER.MAX_ITER):,} ({BEST})"}


def next_command(folder: Path) -> str:
    """The comparison of a run with one next to it that was evaluated on the same data, or else a prediction.

    Raises:
        UserError: the run was not evaluated on one data set.
    """
    run = read_run(folder)
    others = []
    for path in folder.absolute().parent.glob(f"*/{INFERENCE}/{RESULTS}"):
        with suppress(UserError):
            other = read_run(path.parents[1])
            if other.annotations == run.annotations and not other.unfinished and other.name != run.name:
                others.append((path.stat().st_mtime, folder.parent / other.name, other))
    if not others:
        return shlex.join(["se-det", "predict", "--run", str(folder), run.results.get("image_root") or "IMAGES"])
    _, path, other = max(others)
    pair = [path, folder]
    if _has_se(other) and not _has_se(run):
        pair.reverse()
    return shlex.join(["se-det", "compare", "--baseline", str(pair[0]), "--candidate", str(pair[1])])


def _has_se(run: EvaluatedRun) -> bool:
    return "_se_" in run.record.get("backbone", "") or bool(run.record.get("added_se"))
