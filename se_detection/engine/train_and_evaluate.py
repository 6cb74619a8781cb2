"""Training or evaluation from the command line, in all its processes."""

import logging
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

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
from .overview import describe_run, summary
from .progress import Progress
from .resume import on_main_process, scale_to_original, shared_checkpoint
from .run_log import LOG, run_log
from .trainer import Trainer

logger = logging.getLogger(__name__)


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
            folder = Path(cfg.OUTPUT_DIR, INFERENCE) if args.eval_only else Path(cfg.OUTPUT_DIR)
            with run_log(folder):
                _set_up(cfg, args, folder)
                # A pre-training has none.
                _show(vars(args).get("data_lines", ()))
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
    started = time.monotonic()
    trainer = trainer_class(
        scale_to_original(cfg) if args.resume else cfg,
        overwrite=args.overwrite,
        reset_predictor=args.reset_predictor,
        allow_partial_backbone=args.allow_partial_backbone,
        bad_images=args.bad_images,
    )
    trainer.config_file, trainer.saved_cfg, trainer.has_lock = args.config_file, cfg, True
    trainer.resume_or_load(args.resume)
    described = partial(
        describe_run,
        trainer.cfg,
        trainer.checkpointer.model,
        weights=f"of this run after step {trainer.start_iter:,}" if trainer.resumed else _named(cfg.MODEL.WEIGHTS),
        train_loader=trainer.loader,
        log=Path(cfg.OUTPUT_DIR, LOG),
        start=trainer.start_iter,
    )
    _show(on_main_process(described))
    if comm.is_main_process():
        trainer.register_hooks([Progress()])
    trainer.train()
    if comm.is_main_process():
        command = trainer_class.next_command(cfg, args.config_file)
        results, seconds = trainer._last_eval_results, time.monotonic() - started
        _show(summary(trainer.cfg, results, seconds=seconds, command=command, trained=True))


def evaluate(trainer_class: type[Trainer], cfg: CfgNode, args: Namespace) -> None:
    """Evaluates `MODEL.WEIGHTS`, or the last checkpoint of the run with `--resume`."""
    started = time.monotonic()
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
    log = folder / INFERENCE / LOG
    _show(on_main_process(partial(describe_run, cfg, model, weights=_named(weights), log=log)))
    if args.fuse:
        model = fuse_for_inference(model)
    with heartbeat(cfg.OUTPUT_DIR):
        results = trainer_class.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(trainer_class.test_with_tta(cfg, model))
    if comm.is_main_process():
        record_checkpoint(checkpoint, result_folders(folder, cfg.DATASETS.TEST, augmented=cfg.TEST.AUG.ENABLED))
        record_evaluation(folder)
        command = trainer_class.next_command(cfg, args.config_file)
        _show(summary(cfg, results, seconds=time.monotonic() - started, command=command, trained=False))
        verify_results(cfg, results)


def _set_up(cfg: CfgNode, args: Namespace, folder: Path) -> None:
    """As detectron2's `default_setup`: logs command, environment and config, writes `config.yaml`, sets the seed.

    A training keeps an existing `config.yaml`: the trainer replaces it when the first step is about to be made.
    """
    rank = comm.get_rank()
    # Only in the file.
    logger.debug("Process %d of %d: %s", rank, comm.get_world_size(), shlex.join(sys.argv))
    if comm.is_main_process():
        logger.debug("Environment:\n%s", collect_env_info())
        logger.debug("%s:\n%s", args.config_file, Path(args.config_file).read_text(encoding="utf-8"))
        text, config = cfg.dump(), folder / CONFIG
        logger.debug("The full config:\n%s", text)
        if args.eval_only or not config.is_file():
            config.write_text(text, encoding="utf-8")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def _named(weights: str) -> str:
    return weights or "random initialization"


def _show(lines: Iterable[str]) -> None:
    if comm.is_main_process():
        for line in lines:
            logger.info("%s", line)


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
