"""Training or evaluation from the command line, in all its processes."""

import logging
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint.checkpointer import StrictCheckpointer
from ..checkpoint.timm_weights import assumptions_of
from ..errors import UserError, user_message
from ..modeling.fuse.fuse_detector import fuse_for_inference
from ..runs.evaluated_checkpoint import EvaluatedCheckpoint, record_checkpoint
from ..runs.lock import RunLock
from ..runs.record import record_evaluation, write_run_record
from ..runs.run_folder import CONFIG, INFERENCE, RECORD, result_folders
from .heartbeat import heartbeat
from .launch import lost_process, run_in_processes
from .resume import on_main_process, scale_to_original, shared_checkpoint
from .trainer import Trainer


def launch_run(
    cfg: CfgNode, args: Namespace, *, torchrun: bool = False, trainer_class: type[Trainer] = Trainer
) -> None:
    """Starts the processes of a command line with detectron2's `launch`, and calls :func:`run` in each.

    Args:
        cfg: the config from :func:`load_config`.
        args: the arguments of the train command.
        torchrun: torchrun has started the processes.
        trainer_class: the trainer that trains or evaluates.
    """
    run_in_processes(partial(run, trainer_class), cfg, args, torchrun)


def run(trainer_class: type[Trainer], cfg: CfgNode, args: Namespace) -> None:
    """Trains or evaluates in one process.

    Raises:
        UserError: an error that the user can fix, such as a full disk.
        Interrupted: a signal asked the training to stop.
    """
    with _plain_logging(), closing(RunLock(Path(cfg.OUTPUT_DIR))) as lock:
        try:
            trainer_class.register_data(args)
            on_main_process(lock.acquire)
            _set_up(cfg, args)
            if args.eval_only:
                evaluate(trainer_class, cfg, args)
            else:
                train(trainer_class, cfg, args)
        except OSError as error:
            if (message := user_message(error)) is None:
                raise
            raise UserError("output.failed", message) from error


def train(trainer_class: type[Trainer], cfg: CfgNode, args: Namespace) -> None:
    """Trains, evaluating every `TEST.EVAL_PERIOD` iterations and at the end; a finished run is only evaluated."""
    trainer = trainer_class(
        scale_to_original(cfg) if args.resume else cfg,
        overwrite=args.overwrite,
        reset_predictor=args.reset_predictor,
        allow_partial_backbone=args.allow_partial_backbone,
        bad_images=args.bad_images,
    )
    trainer.config_file, trainer.saved_cfg, trainer.has_lock = args.config_file, cfg, True
    trainer.resume_or_load(args.resume)
    trainer.train()


def evaluate(trainer_class: type[Trainer], cfg: CfgNode, args: Namespace) -> None:
    """Evaluates `MODEL.WEIGHTS`, or the last checkpoint of the run with `--resume`."""
    model = trainer_class.build_model(cfg)
    checkpointer = StrictCheckpointer(
        model,
        save_dir=cfg.OUTPUT_DIR,
        assumptions=assumptions_of(cfg),
        allow_partial_backbone=args.allow_partial_backbone,
        needs_heads=True,
    )
    folder = Path(cfg.OUTPUT_DIR)
    newest = shared_checkpoint(folder, set_aside=False) if args.resume else None
    weights = str(newest or cfg.MODEL.WEIGHTS)
    content = checkpointer.load(weights, checkpointables=[])
    if comm.is_main_process():
        file = Path(checkpointer.path_manager.get_local_path(weights.partition("?")[0])) if weights else None
        checkpoint = EvaluatedCheckpoint.describe(file, content.get("iteration"), folder)
    if comm.is_main_process() and not Path(folder, RECORD).exists():
        write_run_record(
            cfg,
            model,
            trainer_class.image_size(cfg),
            config_file=args.config_file,
            allow_partial_backbone=args.allow_partial_backbone,
        )
    if args.fuse:
        model = fuse_for_inference(model)
    with heartbeat(cfg.OUTPUT_DIR):
        results = trainer_class.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(trainer_class.test_with_tta(cfg, model))
    if comm.is_main_process():
        record_checkpoint(checkpoint, result_folders(folder, cfg.DATASETS.TEST, augmented=cfg.TEST.AUG.ENABLED))
        record_evaluation(folder)
        verify_results(cfg, results)


def _set_up(cfg: CfgNode, args: Namespace) -> None:
    """detectron2's `default_setup`, which writes log.txt and config.yaml, but keeps an existing config.yaml."""
    if args.eval_only:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, INFERENCE))
        cfg.freeze()
    config = Path(cfg.OUTPUT_DIR, CONFIG)
    # The trainer replaces it when the first step is about to be made.
    replaced = config.read_bytes() if config.is_file() and not args.eval_only else None
    default_setup(cfg, args)
    if replaced is not None and comm.is_main_process():
        config.write_bytes(replaced)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="se_detection")


@contextmanager
def _plain_logging() -> Iterator[None]:
    """Logs no traceback for user errors, and reports a full disk once, not with every line of the log."""
    # detectron2 logs a traceback for every exception that ends a training.
    train_loop = logging.getLogger("detectron2.engine.train_loop")
    raised, logging.raiseExceptions = logging.raiseExceptions, False
    train_loop.addFilter(_needs_traceback)
    try:
        yield
    finally:
        logging.raiseExceptions = raised
        train_loop.removeFilter(_needs_traceback)


def _needs_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or (user_message(error) is None and not lost_process(error))
