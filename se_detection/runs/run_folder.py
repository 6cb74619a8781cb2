"""What a run leaves in its OUTPUT_DIR, and the record that says what was run."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ..errors import UserError
from .bad_images import BAD_IMAGES
from .record import class_names, read_record

TRAINING = (
    "last_checkpoint",
    "metrics.json",
    "model_final.pth",
    "model_best.pth",
    "model_initial.pth",
    "backbone.pth",
    "model_[0-9]*.pth",
    "model_*.pth.corrupt",
    "*.part",
    "non_finite.json",
    BAD_IMAGES,
    "events.out.tfevents.*",
)
RESULTS = (
    *("coco_instances_results.json", "instances_predictions.pth", "results.json"),
    # Of Panoptic FPN.
    *("sem_seg_predictions.json", "sem_seg_evaluation.pth", "predictions.json"),
)


def training_files(folder: Path) -> list[Path]:
    """What a training that got under way has left in a folder; one that failed at its start leaves none of it."""
    return _found(folder, TRAINING)


def result_files(folder: Path) -> list[Path]:
    """What an evaluation has left in a folder."""
    return _found(folder, [f"{parent}/**/{name}" for parent in ("inference", "inference_TTA") for name in RESULTS])


def check_run_folder(cfg: CfgNode, args: Namespace) -> None:
    """Whether a run may write into `OUTPUT_DIR`, so that nothing that is there is lost.

    Raises:
        UserError: it can't be written to, holds another run, or has nothing to resume.
    """
    output = Path(cfg.OUTPUT_DIR)
    if not cfg.OUTPUT_DIR:
        raise UserError("OUTPUT_DIR is empty; name a folder for the run")
    existing = next(path for path in (output, *output.absolute().parents) if path.exists() or path.is_symlink())
    for path in (existing, output / "inference"):
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            raise UserError(f"OUTPUT_DIR: {path} is not a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"OUTPUT_DIR: {existing} can't be written to")
    if args.resume and args.overwrite:
        raise UserError("--resume goes on with a run and --overwrite replaces it: give one of them")
    trained, evaluated = training_files(output), result_files(output)
    if args.resume:
        _check_same_run(cfg, output)
        return
    if args.overwrite and not args.eval_only and Path(cfg.MODEL.WEIGHTS).absolute() in [f.absolute() for f in trained]:
        raise UserError(f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} is of the run that --overwrite replaces; start elsewhere")
    # On several machines that share a folder, the first may have begun to write.
    in_the_way = evaluated if args.eval_only else [*trained, *evaluated]
    if in_the_way and not args.overwrite and args.machine_rank == 0:
        what = "an evaluation" if args.eval_only else "a run"
        raise UserError(
            f"OUTPUT_DIR: {output} holds {what} already ({in_the_way[0].name}); --resume goes on with the run that is "
            f"there, --overwrite replaces {what}, or choose another OUTPUT_DIR"
        )


def _check_same_run(cfg: CfgNode, output: Path) -> None:
    """A resumed run has the backbone and the classes that it began with."""
    record = read_record(output)
    classes = class_names(cfg.DATASETS.TEST)
    now = {"backbone": cfg.MODEL.BACKBONE.NAME, "depth": cfg.MODEL.RESNETS.DEPTH, "classes": classes}
    for key, value in now.items():
        if value and record.get(key, value) != value:
            raise UserError(f"--resume: the run in {output} has {key} {record[key]}, and now it is {value}")


def _found(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return [path for path in found if path.is_file()]
