"""One process of a run: train, or evaluate."""

import logging
import os
from argparse import Namespace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup, hooks, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint.checkpointer import StrictCheckpointer
from ..checkpoint.layout import Layout
from ..errors import user_message
from .run_folder import result_files, training_files, write_run_record
from .trainer import Trainer
from .user_data import register_user_data


def launch_run(cfg: CfgNode, args: Namespace) -> None:
    """Starts the processes that the command line asks for, by detectron2's `launch`, and :func:`run` in each.

    Args:
        cfg: of :func:`load_config`.
        args: of :func:`argument_parser`.
    """
    if cfg.MODEL.DEVICE == "cpu":
        # launch gives each process a GPU where it finds any.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    launch(run, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(cfg, args))


def run(cfg: CfgNode, args: Namespace) -> None:
    """Trains or evaluates as the command line says."""
    register_user_data(args)
    default_setup(_evaluation_setup(cfg) if args.eval_only else cfg, args)
    setup_logger(name="se_detection", distributed_rank=comm.get_rank())
    # detectron2 logs the traceback of whatever ends the training; a UserError needs none.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_user_error)
    if args.eval_only:
        evaluate(cfg, args)
    else:
        train(cfg, args)


def train(cfg: CfgNode, args: Namespace) -> None:
    """Trains, evaluating every `TEST.EVAL_PERIOD` iterations and at the end."""
    trainer = Trainer(cfg, reset_predictor=args.reset_predictor, allow_partial_trunk=args.allow_partial_trunk)
    trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        # Not before all is built and loaded: a run that can't start replaces none.
        if args.overwrite:
            folder = Path(cfg.OUTPUT_DIR)
            for path in [*training_files(folder), *result_files(folder)]:
                path.unlink()
        write_run_record(cfg, args, trainer.checkpointer.model)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks([hooks.EvalHook(0, lambda: Trainer.test_with_tta(cfg, trainer.model))])
    trainer.train()


def evaluate(cfg: CfgNode, args: Namespace) -> None:
    """Evaluates `MODEL.WEIGHTS`, or with `--resume` the last checkpoint of the run."""
    model = Trainer.build_model(cfg)
    checkpointer = StrictCheckpointer(
        model,
        save_dir=cfg.OUTPUT_DIR,
        layout=Layout.from_cfg(cfg),
        allow_partial_trunk=args.allow_partial_trunk,
        needs_heads=True,
    )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    if comm.is_main_process() and not Path(cfg.OUTPUT_DIR, "run.json").exists():
        write_run_record(cfg, args, model)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_tta(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)


def _evaluation_setup(cfg: CfgNode) -> CfgNode:
    # detectron2's set-up writes log.txt and config.yaml; those of the training stay as they are.
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, "inference"))
    cfg.freeze()
    return cfg


def _is_no_user_error(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or user_message(error) is None
