"""One process of a run: train, or evaluate."""

import logging
import os
from argparse import Namespace
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint.assumptions import WeightsAssumptions
from ..checkpoint.checkpointer import StrictCheckpointer
from ..errors import UserError, user_message
from ..modeling.fuse.fuse import fuse_for_inference
from ..runs.record import write_run_record
from ..runs.run_folder import result_files, training_files
from .heartbeat import heartbeat
from .launch import lost_process, start_processes
from .resume import as_begun, changed_keys, shared_checkpoint
from .trainer import Trainer

logger = logging.getLogger(__name__)


def launch_run(
    cfg: CfgNode, args: Namespace, *, torchrun: bool = False, trainer_class: type[Trainer] = Trainer
) -> None:
    """Starts the processes that the command line asks for, by detectron2's `launch`, and :func:`run` in each.

    Args:
        cfg: of :func:`load_config`.
        args: of :func:`argument_parser`.
        torchrun: the processes are there already.
        trainer_class: what trains and evaluates.
    """
    if cfg.MODEL.DEVICE == "cpu":
        # launch gives each process a GPU where it finds any.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    start_processes(partial(run, trainer_class), cfg, args, torchrun)


def run(trainer_class: type[Trainer], cfg: CfgNode, args: Namespace) -> None:
    """Trains or evaluates as the command line says.

    Raises:
        UserError: what a person can mend, a full disk among it.
        Interrupted: the training was asked to stop.
    """
    changed = changed_keys(cfg) if args.resume and not args.eval_only and comm.is_main_process() else {}
    # A full disk is told once, not with every line of the log.
    logging.raiseExceptions = False
    try:
        trainer_class.register_data(args)
        setup = _evaluation_setup(cfg) if args.eval_only else cfg
        config = Path(setup.OUTPUT_DIR, "config.yaml")
        replaced = config.read_bytes() if config.is_file() and not args.eval_only else None
        default_setup(setup, args)
        if replaced is not None and comm.is_main_process():
            # That of the run stays until this one has taken its place.
            config.write_bytes(replaced)
        setup_logger(setup.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="se_detection")
        # detectron2 logs the traceback of whatever ends the training; what can be said in a line needs none.
        logging.getLogger("detectron2.engine.train_loop").addFilter(_needs_traceback)
        for key, (before, now) in changed.items():
            logger.warning("--resume: %s was %s when the run was last started, and is %s now", key, before, now)
        if args.eval_only:
            evaluate(trainer_class, cfg, args)
        else:
            train(trainer_class, cfg, args)
    except OSError as error:
        if (message := user_message(error)) is None:
            raise
        raise UserError(message) from error


def train(trainer_class: type[Trainer], cfg: CfgNode, args: Namespace) -> None:
    """Trains, evaluating every `TEST.EVAL_PERIOD` iterations and at the end; a run that is finished is evaluated."""
    as_given = cfg
    if args.resume:
        cfg = as_begun(cfg)
    trainer = trainer_class(
        cfg,
        reset_predictor=args.reset_predictor,
        allow_partial_backbone=args.allow_partial_backbone,
        bad_images=args.bad_images,
    )
    trainer.resume_or_load(args.resume)
    if comm.is_main_process():
        # Not before all is built and loaded: a run that can't start replaces none.
        if args.overwrite:
            folder = Path(cfg.OUTPUT_DIR)
            for path in [*training_files(folder), *result_files(folder)]:
                path.unlink()
        resumed_at = trainer.start_iter if trainer.resumed else None
        size = trainer_class.image_size(cfg)
        write_run_record(cfg, args, trainer.checkpointer.model, size, resumed_at=resumed_at)
        Path(cfg.OUTPUT_DIR, "config.yaml").write_text(as_given.dump(), encoding="utf-8")
    if trainer.start_iter >= trainer.max_iter:
        logger.info("The run in %s is finished (%d iterations): it is evaluated", cfg.OUTPUT_DIR, trainer.start_iter)
    trainer.train()


def evaluate(trainer_class: type[Trainer], cfg: CfgNode, args: Namespace) -> None:
    """Evaluates `MODEL.WEIGHTS`, or with `--resume` the last checkpoint of the run."""
    model = trainer_class.build_model(cfg)
    checkpointer = StrictCheckpointer(
        model,
        save_dir=cfg.OUTPUT_DIR,
        assumptions=WeightsAssumptions.from_cfg(cfg),
        allow_partial_backbone=args.allow_partial_backbone,
        needs_heads=True,
    )
    path = shared_checkpoint(Path(cfg.OUTPUT_DIR), set_aside=False) if args.resume else None
    checkpointer.load(str(path or cfg.MODEL.WEIGHTS), checkpointables=[])
    if comm.is_main_process() and not Path(cfg.OUTPUT_DIR, "run.json").exists():
        write_run_record(cfg, args, model, trainer_class.image_size(cfg), resumed_at=None)
    if args.fuse:
        model = fuse_for_inference(model)
    with heartbeat(cfg.OUTPUT_DIR):
        results = trainer_class.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(trainer_class.test_with_tta(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)


def _evaluation_setup(cfg: CfgNode) -> CfgNode:
    # detectron2's set-up writes log.txt and config.yaml; those of the training stay as they are.
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, "inference"))
    cfg.freeze()
    return cfg


def _needs_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or (user_message(error) is None and not lost_process(error))
