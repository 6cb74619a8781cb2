"""detectron2's trainer, extended: exact resumption, checks before the first step, a record of the run, CPU training."""

import logging
import weakref
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..checkpoint.checkpointer import StrictCheckpointer
from ..checkpoint.timm_handler import find_model_weights
from ..checkpoint.timm_weights import assumptions_of
from ..config.buildable import check_backbone, check_model
from ..config.timm_config import has_timm_backbone
from ..data.coco_sets import name_failing_dataset
from ..data.image_files import BadImage
from ..data.mapper import CheckedMapper
from ..data.train_loader import Phase, TrainLoader
from ..data.workers import NoBatchError, SignalSafeLoader
from ..errors import UserError, counted
from ..evaluation.coco_evaluator import build_evaluator
from ..modeling.complexity import image_size
from ..modeling.drop_block import add_drop_block, drop_blocks
from ..modeling.ops.channels_last_pooler import pool_channels_last
from ..modeling.padding import ignore_padding_in_heads
from ..runs.evaluated_checkpoint import EvaluatedCheckpoint, record_checkpoint
from ..runs.lock import RunLock
from ..runs.metrics import MetricsFile
from ..runs.record import last_start, write_run_record
from ..runs.run_folder import (
    CONFIG,
    INFERENCE_TTA,
    INITIAL,
    METRICS_FILE,
    evaluation_folder,
    result_files,
    result_folders,
    training_files,
)
from .allocator import keep_freed_memory
from .checks import available_device, check_data, check_run_folder, check_settings
from .fine_tuning import FrozenBackbone, backbone_of
from .heartbeat import heartbeat
from .hooks import BestCheckpoint, Checkpoints, DropBlockSchedule, Evaluation, MovingAverage, PreciseBN, Writers
from .loggers import build_loggers
from .loss_guard import (
    LossGuard,
    NonFiniteLossError,
    gather_normalizers,
    guard_forward,
    norm_statistics,
    restore_normalizer,
    weights_are_finite,
)
from .optimizer import build_optimizer
from .overview import next_command
from .resume import changed_keys, check_fixed_values, fixed_values, on_main_process, shared_checkpoint
from .signals import Interrupted, InterruptibleEvaluator, RankMaximum, StopRequest
from .skipped_images import SkippedImages
from .steps import CheckedAMPTrainer, CheckedTrainer, SeededBatches
from .tensorboard import DetectionImages, GateMeans
from .user_data import register_user_data

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """detectron2's `DefaultTrainer`, with these differences.

    - Config, data, output folder and weights are checked before the first step. Without a GPU, it trains on the CPU.
    - `OUTPUT_DIR` gets `config.yaml` and the record `run.json`, which other commands read.
    - A resumed run continues as if it had not been stopped: images, augmentation and the model's random numbers depend
      only on the seed and the iteration, and the checkpoint has the rest.
    - SIGTERM and SIGINT save a checkpoint and stop the run; if a process dies, the others stop.
    - A loss that is not finite stops the run, or skips the step: `SOLVER.SKIP_NON_FINITE`.
    - `SOLVER.CHECKPOINTS_TO_KEEP`, `SOLVER.BEST_METRIC`, `SOLVER.EMA_DECAY`, `SOLVER.AMP.BF16`, `SOLVER.CHANNELS_LAST`,
      `SOLVER.BACKBONE_FREEZE_ITERS`, `SOLVER.BACKBONE_MULTIPLIER`, `SOLVER.OPTIMIZER`, `SOLVER.LOGGERS`,
      `MODEL.RESNETS.DROP_BLOCK`.
    - Several processes can train on the CPU, where detectron2 passes `device_ids` to DDP, which refuses them.
    - Weights that don't fit, and images that can't be read, are errors.
    - Each of several test sets has its own folder; in detectron2 the last overwrites the others.

    Args:
        cfg: the config. It is not changed.
        overwrite: replace the run in `OUTPUT_DIR`: its files are removed before the first step.
        reset_predictor, allow_partial_backbone: see :class:`StrictCheckpointer`.
        bad_images: training images to skip; with a list, also an empty one, those that can't be used later are skipped
            too. By default they are errors.

    Raises:
        UserError: see :meth:`check_config`.
    """

    # Recorded in `run.json` and `config.yaml`; the command line sets them.
    config_file = ""
    saved_cfg: CfgNode
    # The command line locks `OUTPUT_DIR` before it writes its log.
    has_lock = False

    def __init__(
        self,
        cfg: CfgNode,
        *,
        overwrite: bool = False,
        reset_predictor: bool = False,
        allow_partial_backbone: bool = False,
        bad_images: Sequence[BadImage] | None = None,
    ) -> None:
        # Not DefaultTrainer's constructor, which wraps the model for DDP with device_ids.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            # As DefaultTrainer does: a notebook would show no progress.
            setup_logger(distributed_rank=comm.get_rank())
        # A copy: the caller may change the config for the next run.
        cfg = self.saved_cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = available_device(cfg)
        cfg.freeze()
        self.check_config(cfg)
        if cfg.MODEL.DEVICE == "cpu":
            keep_freed_memory()
        cfg = self.cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.overwrite = overwrite
        self.resumed: bool | None = None
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self._last_eval_results: dict[str, Any] = {}
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.agreement = RankMaximum()
        self.stop = StopRequest(self.agreement)
        self.metrics = MetricsFile(Path(cfg.OUTPUT_DIR, METRICS_FILE))

        module = self.build_model(cfg)
        if rate := cfg.MODEL.RESNETS.DROP_BLOCK:
            add_drop_block(backbone_of(module), rate)
        guard_forward(module)
        self.guard = LossGuard(cfg, module, self.agreement)
        optimizer = self.build_optimizer(cfg, module)
        self.bad_images = bad_images
        self.loader = self._build_train_loader()
        self.batches = SeededBatches(self.loader)
        self.phases: list[Phase] = []
        model = self._wrap(module)
        if cfg.SOLVER.AMP.ENABLED:
            precision = torch.bfloat16 if cfg.SOLVER.AMP.BF16 else torch.float16
            self._trainer = CheckedAMPTrainer(model, self.batches, optimizer, precision=precision)
        else:
            self._trainer = CheckedTrainer(model, self.batches, optimizer)
        self._trainer.guard = self.guard
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = StrictCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            # Weak references avoid cycles, which would keep the trainer in memory.
            trainer=weakref.proxy(self),
            assumptions=assumptions_of(cfg),
            reset_predictor=reset_predictor,
            allow_partial_backbone=allow_partial_backbone,
        )
        self.register_hooks(self.build_hooks())

    def _build_train_loader(self) -> Iterable[list[dict[str, Any]]]:
        loader = self.build_train_loader(self.cfg)
        if self.bad_images is not None:
            if not isinstance(loader, TrainLoader):
                raise UserError(
                    "train.custom_loader",
                    "--skip-bad-images: build_train_loader must return a TrainLoader, which can skip images",
                )
            loader.skip(self.bad_images)
        return loader

    def _wrap(self, module: nn.Module) -> nn.Module:
        device_ids = None if self.cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
        return create_ddp_model(module, broadcast_buffers=False, device_ids=device_ids)

    def _wrap_again(self) -> None:
        self.model = self._wrap(self.checkpointer.model)

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """Raises a :class:`UserError` if the config can't be built, or fits neither the machine nor the data sets."""
        check_settings(cfg, comm.get_world_size())
        check_backbone(cfg)
        owner = next(parent for parent in cls.__mro__ if "build_evaluator" in vars(parent))
        check_data(cfg, coco_evaluation=owner is Trainer)
        check_model(cfg)

    @staticmethod
    def register_data(args: Namespace) -> None:
        """Registers the data of the command line with detectron2, in every process."""
        register_user_data(args)

    @staticmethod
    def image_size(cfg: CfgNode) -> tuple[int, int]:
        """Height and width of the 4:3 image for which the record gives GFLOPs: the test size."""
        return image_size(cfg)

    @staticmethod
    def next_command(cfg: CfgNode, config_file: str) -> str:
        """What to do next with an evaluated run; empty if there are several test sets or none."""
        try:
            return next_command(Path(cfg.OUTPUT_DIR))
        except UserError:
            return ""

    def build_hooks(self) -> list[HookBase | None]:
        """detectron2's hooks, with this project's checkpoints and evaluation; :meth:`train` adds the writers."""
        cfg, solver, model = self.cfg, self.cfg.SOLVER, self.checkpointer.model
        folder, period = Path(cfg.OUTPUT_DIR), cfg.TEST.EVAL_PERIOD
        weak = weakref.proxy(self)

        built: list[HookBase | None] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if self.bad_images is not None:
            found = self.batches.take_skipped
            built.append(SkippedImages(folder, known=self.bad_images, found=found, agreement=self.agreement))
        if iterations := solver.BACKBONE_FREEZE_ITERS:
            built.append(FrozenBackbone(backbone_of(model), iterations=iterations, wrap=lambda: weak._wrap_again()))
        if cfg.MODEL.RESNETS.DROP_BLOCK or cfg.MODEL.TIMM.DROP_BLOCK:
            built.append(DropBlockSchedule(drop_blocks(model)))
        if solver.EMA_DECAY > 0:
            built.append(MovingAverage(self.checkpointer, solver.EMA_DECAY))
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader = self._build_train_loader()
            built.append(PreciseBN(period, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER))
        checkpoints = Checkpoints(
            self.checkpointer, period=solver.CHECKPOINT_PERIOD, keep=solver.CHECKPOINTS_TO_KEEP, stop=self.stop
        )
        evaluation = Evaluation(lambda: weak._evaluate(), period=period, checkpoints=checkpoints, metrics=self.metrics)
        # Weights are saved first: the evaluation may fail.
        built += [checkpoints, evaluation]
        if solver.BEST_METRIC and period:
            built.append(BestCheckpoint(self.checkpointer, metric=solver.BEST_METRIC, metrics=self.metrics))
        if comm.is_main_process():
            # Before the other hooks that run the model after a step.
            built.insert(0, GateMeans(model))
            first = next(iter(cfg.DATASETS.TEST), "")
            built.append(DetectionImages(evaluation_folder(folder, cfg.DATASETS.TEST, first)))
        return built

    def build_writers(self) -> list[EventWriter]:
        """detectron2's writers and those of `SOLVER.LOGGERS`; they open their files."""
        loggers = build_loggers(self.cfg, self.start_iter)
        return [CommonMetricPrinter(self.max_iter), JSONWriter(str(self.metrics.path)), *loggers]

    def resume_or_load(self, resume: bool = True) -> None:
        """Resumes from the newest whole checkpoint in `OUTPUT_DIR`, or loads `MODEL.WEIGHTS`.

        The main process decides; machines that don't have its files get the checkpoint from it.

        Raises:
            UserError: `OUTPUT_DIR` holds another run, all its checkpoints are corrupt, or the checkpoint or the
                weights file does not fit the config or the data.
        """
        self._check_folder(resume=resume)
        path = shared_checkpoint(Path(self.cfg.OUTPUT_DIR), set_aside=True) if resume else None
        self.resumed = path is not None
        if path is not None:
            self.checkpointer.resume(path)
            # A checkpoint has the iteration that was just finished.
            self.start_iter = self.iter + 1
            if self.start_iter > self.max_iter:
                # It would only be evaluated, and its config would have a schedule that it did not have.
                raise UserError(
                    "train.past_the_end",
                    f"SOLVER.MAX_ITER: {self.max_iter} is less than the {counted(self.start_iter, 'iteration')} of "
                    f"{path}; give at least as many, or evaluate it (--eval-only --resume)",
                )
            for key, (before, now) in changed_keys(self.saved_cfg).items():
                logger.warning("--resume: %s was %s when the run was last started, and is %s now", key, before, now)
            return
        if resume:
            logger.info("%s has no checkpoint yet: the run starts from MODEL.WEIGHTS", self.cfg.OUTPUT_DIR)
        if weights := self.cfg.MODEL.WEIGHTS:
            # The main process downloads them, the others on its machine find them in the cache.
            on_main_process(partial(find_model_weights, weights, for_timm=has_timm_backbone(self.cfg)))
        self.checkpointer.load(weights, checkpointables=[])

    def _check_folder(self, *, resume: bool) -> None:
        self.found_start = last_start(Path(self.cfg.OUTPUT_DIR))
        on_main_process(partial(check_run_folder, self.cfg, resume=resume, overwrite=self.overwrite))

    def _check_unchanged(self) -> None:
        if last_start(Path(self.cfg.OUTPUT_DIR)) != self.found_start:
            raise UserError(
                "output.exists",
                f"OUTPUT_DIR: another run has started in {self.cfg.OUTPUT_DIR} since this trainer looked into it; "
                "choose another OUTPUT_DIR, or resume that run: make a new trainer, and call resume_or_load()",
            )

    def train(self) -> Any:
        """Trains from `start_iter` to the end; evaluates only, if the run is finished.

        Returns:
            The metrics of the last evaluation.

        Raises:
            Interrupted: a signal asked to stop, and a checkpoint was saved.
            UserError: another process writes into `OUTPUT_DIR`, or it holds another run.
        """
        if self.resumed is None:
            self._check_folder(resume=False)
        with closing(RunLock(Path(self.cfg.OUTPUT_DIR))) as lock:
            if not self.has_lock:
                on_main_process(lock.acquire)
            on_main_process(self._check_unchanged)
            return self._train()

    def _train(self) -> Any:
        if self.start_iter >= self.max_iter:
            logger.info("The run is finished (%s): it is evaluated", counted(self.max_iter, "iteration"))
        self.batches.start_at(self.start_iter, self.seed)
        if isinstance(self.loader, TrainLoader):
            self.loader.start_at(self.start_iter, seed=self.seed, phases=self.phases)
        if comm.is_main_process():
            self._write_record()
            self.metrics.forget_from(self.start_iter)
            self.register_hooks([Writers(self.build_writers(), self.cfg.TEST.EVAL_PERIOD)])
        with heartbeat(self.cfg.OUTPUT_DIR), self.stop.listening():
            # detectron2 returns the results only if they are compared with TEST.EXPECTED_RESULTS.
            super().train()
        return self._last_eval_results

    def _write_record(self) -> None:
        """Removes the run that is overwritten, and writes `run.json` and `config.yaml`."""
        folder = Path(self.cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        if self.overwrite:
            for path in [*training_files(folder), *result_files(folder)]:
                path.unlink()
        write_run_record(
            self.cfg,
            self.checkpointer.model,
            self.image_size(self.cfg),
            config_file=self.config_file,
            allow_partial_backbone=self.checkpointer.allow_partial_backbone,
            resumed_at=self.start_iter if self.resumed else None,
        )
        self.found_start = last_start(folder)
        (folder / CONFIG).write_text(self.saved_cfg.dump(), encoding="utf-8")

    def run_step(self) -> None:
        """Runs one step; saves the state before it if its loss is not finite or, in one process, it gets no images.

        Raises:
            UserError: the loss is not finite, or the data loader does not deliver.
            Interrupted: the data loader does not deliver, and a signal asked to stop.
        """
        try:
            super().run_step()
        except NonFiniteLossError as error:
            if weights_are_finite(self.checkpointer.model):
                self._save_before()
                saved = "is saved: --resume repeats the step, and with a larger SOLVER.SKIP_NON_FINITE skips it"
            else:
                saved = "is not saved, because its weights are not finite: --resume continues from the last checkpoint"
            comm.synchronize()
            raise UserError(error.code, f"{error.message}; the state before it {saved}") from error
        except (NoBatchError, Interrupted):
            # Several processes don't get here together, and can't gather their state.
            if comm.get_world_size() == 1 and self.iter > self.start_iter:
                self._save_before()
                logger.info("No images for iteration %d; the state before it is saved: --resume continues", self.iter)
            raise

    def _save_before(self) -> None:
        # The state is that after the previous step.
        self.iter -= 1
        name = f"model_{self.iter:07d}" if self.iter >= 0 else Path(INITIAL).stem
        self.checkpointer.save(name, iteration=self.iter)
        self.iter += 1

    def _evaluate(self) -> dict[str, Any]:
        # Each process has its own norm statistics. Those of the main process are saved, so they are evaluated.
        if comm.get_world_size() > 1:
            for tensor in norm_statistics(self.checkpointer.weights):
                torch.distributed.broadcast(tensor, 0)
        evaluators = [
            InterruptibleEvaluator(partial(self.build_evaluator, self.cfg, name), self.stop)
            for name in self.cfg.DATASETS.TEST
        ]
        self._last_eval_results = self.test(self.cfg, self.checkpointer.weights, evaluators)
        augmented = self.cfg.TEST.AUG.ENABLED and self.iter >= self.max_iter
        if augmented:
            self._last_eval_results.update(self.test_with_tta(self.cfg, self.checkpointer.weights, self.stop))
        if comm.is_main_process():
            # The last evaluation is logged at max_iter, after the last iteration.
            last = max(self.start_iter, self.max_iter) - 1
            iteration = self.storage.iter if self.storage.iter < self.max_iter else last
            folder = Path(self.cfg.OUTPUT_DIR)
            checkpoint = EvaluatedCheckpoint.describe(self.checkpointer.files.get(iteration), iteration, folder)
            record_checkpoint(checkpoint, result_folders(folder, self.cfg.DATASETS.TEST, augmented=augmented))
        return self._last_eval_results

    def state_dict(self) -> dict[str, Any]:
        """detectron2's state, and the state of the image order; all processes must call it."""
        phases, data = self.phases, None
        if isinstance(self.loader, TrainLoader):
            phases, data = self.loader.phases, self.loader.fingerprint
        return {
            **super().state_dict(),
            "position": {"seed": self.seed, "phases": [list(phase) for phase in phases], "data": data},
            "skipped": [self.guard.skipped, self.guard.skipped_in_a_row],
            "loss_normalizers": gather_normalizers(self.checkpointer.model),
            "config": fixed_values(self.cfg),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`.

        Raises:
            UserError: the training data is not that of the run, or a config value differs that the state would
                override.
        """
        check_fixed_values(self.cfg, state_dict.get("config", {}))
        position = state_dict.get("position")
        if position is None or not isinstance(self.loader, TrainLoader):
            logger.warning(
                "The order of images starts again: the checkpoint does not have it, or build_train_loader does not "
                "return a TrainLoader"
            )
        elif position["data"] not in (None, self.loader.fingerprint):
            raise UserError(
                "train.changed_data",
                f"--resume: the training data ({', '.join(self.cfg.DATASETS.TRAIN)}) has changed since the run in "
                f"{self.cfg.OUTPUT_DIR} began; to train on the new data, start a new run with MODEL.WEIGHTS of it",
            )
        if position is not None:
            self.seed = position["seed"]
            self.phases = [Phase(*phase) for phase in position["phases"]]
        self.guard.skipped, self.guard.skipped_in_a_row = state_dict.get("skipped", (0, 0))
        restore_normalizer(self.checkpointer.model, state_dict.get("loss_normalizers", ()))
        super().load_state_dict(state_dict)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """detectron2's model, with `SOLVER.CHANNELS_LAST` and, in its heads, `MODEL.SE.IGNORE_PADDING`."""
        model = super().build_model(cfg)
        ignore_padding_in_heads(model)
        return in_memory_order(model, cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """SGD or AdamW: :func:`~se_detection.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Batches in detectron2's order and size; an image that can't be read is named in the error."""
        with name_failing_dataset(cfg.DATASETS.TRAIN):
            return TrainLoader.from_cfg(cfg, CheckedMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """detectron2's test loader; an image that can't be read is named in the error."""
        with name_failing_dataset([dataset_name]):
            loader = build_detection_test_loader(cfg, dataset_name, mapper=CheckedMapper(cfg, is_train=False))
        return SignalSafeLoader(loader)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO evaluation into `inference/` of the run, or `inference/<data set>/` if there are several test sets."""
        folder = evaluation_folder(Path(cfg.OUTPUT_DIR), cfg.DATASETS.TEST, dataset_name)
        return build_evaluator(cfg, dataset_name, str(folder))

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module, stop: StopRequest | None = None) -> dict[str, Any]:
        """Evaluates with the scales and flips of `TEST.AUG` into `inference_TTA/`; the keys end with `_TTA`.

        Args:
            stop: a request to stop the evaluation.
        """
        folder = Path(cfg.OUTPUT_DIR, INFERENCE_TTA)
        builders = [partial(build_evaluator, cfg, name, str(folder / name)) for name in cfg.DATASETS.TEST]
        evaluators = [InterruptibleEvaluator(build, stop) if stop else build() for build in builders]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{key}_TTA", value) for key, value in results.items())


def in_memory_order(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Sets the memory format of the weights by `SOLVER.CHANNELS_LAST`; feature maps and RoIAlign follow it."""
    if cfg.SOLVER.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pool_channels_last(model)
    return model
