"""One process of a run: train, or evaluate."""

from argparse import Namespace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup, hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint.checkpointer import StrictCheckpointer
from ..checkpoint.layout import Layout
from .run_folder import run_files, write_run_record
from .trainer import Trainer
from .user_data import register_user_data


def run(cfg: CfgNode, args: Namespace) -> None:
    """Trains or evaluates as the command line says, in each of the processes that detectron2's `launch` starts.

    Args:
        cfg: of :func:`load_config`.
        args: of :func:`argument_parser`.
    """
    register_user_data(args)
    if args.overwrite and comm.is_main_process():
        for path in run_files(Path(cfg.OUTPUT_DIR)):
            path.unlink()
    comm.synchronize()
    default_setup(_evaluation_setup(cfg) if args.eval_only else cfg, args)
    setup_logger(name="se_detection", distributed_rank=comm.get_rank())
    if args.eval_only:
        evaluate(cfg, args)
    else:
        train(cfg, args)


def train(cfg: CfgNode, args: Namespace) -> None:
    """Trains, evaluating every `TEST.EVAL_PERIOD` iterations and at the end."""
    trainer = Trainer(cfg, reset_predictor=args.reset_predictor, allow_partial_trunk=args.allow_partial_trunk)
    trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
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
