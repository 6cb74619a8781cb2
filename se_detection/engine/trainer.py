"""detectron2's trainer, on the CPU as well, with evaluation that writes its results to a file."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from ..checkpoint.checkpointer import StrictCheckpointer
from ..checkpoint.layout import Layout
from ..data.mapper import CheckedMapper
from ..errors import UserError
from ..evaluation.coco import COCODetectionEvaluator


class Trainer(DefaultTrainer):
    """What `DefaultTrainer` does, with four differences.

    - Several processes work on the CPU: DDP takes no `device_ids` there, and detectron2 always passes them.
    - Weights that don't fit are refused (:class:`StrictCheckpointer`).
    - An image that can't be read is named (:class:`CheckedMapper`).
    - Evaluation is COCO's; several test sets have a folder each, where detectron2 lets the last overwrite the others.
    """

    def __init__(self, cfg: CfgNode, *, reset_predictor: bool = False, allow_partial_trunk: bool = False) -> None:
        # Not DefaultTrainer's: it wraps the model for DDP in its constructor. The rest builds the same parts.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER

        module = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, module)
        data_loader = self.build_train_loader(cfg)
        on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
        device_ids = None if on_cpu else [comm.get_local_rank()]
        model = create_ddp_model(module, broadcast_buffers=False, device_ids=device_ids)
        step_trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = step_trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # The checkpointer saves the trainer's state, and the trainer holds the checkpointer: no strong cycle.
        self.checkpointer = StrictCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            layout=Layout.from_cfg(cfg),
            reset_predictor=reset_predictor,
            allow_partial_trunk=allow_partial_trunk,
        )
        self.register_hooks(self.build_hooks())

    def build_writers(self) -> list[EventWriter]:
        """detectron2's, which open their files when there is something to write."""
        return [_Deferred(super().build_writers)]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """detectron2's loader, which names an image that can't be read."""
        with _naming(cfg.DATASETS.TRAIN):
            return build_detection_train_loader(cfg, mapper=CheckedMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """As :meth:`build_train_loader`."""
        with _naming([dataset_name]):
            return build_detection_test_loader(cfg, dataset_name, mapper=CheckedMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO evaluation into `inference/` of the run, or into `inference/<data set>/` where there are several.

        Raises:
            UserError: the data set is not evaluated as COCO is.
        """
        if MetadataCatalog.get(dataset_name).get("evaluator_type") != "coco":
            raise UserError(f"data set {dataset_name!r} is not evaluated as COCO is")
        folder = Path(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            folder /= dataset_name
        return COCODetectionEvaluator(dataset_name, output_dir=str(folder))

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluates with the scales and flips of `TEST.AUG` into `inference_TTA/`; the keys end with `_TTA`."""
        folder = Path(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [COCODetectionEvaluator(name, output_dir=str(folder / name)) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{key}_TTA", value) for key, value in results.items())


class _Deferred(EventWriter):
    """Writers that are made at the first writing, so that a run which never gets so far leaves no files of theirs."""

    def __init__(self, build: Callable[[], list[EventWriter]]) -> None:
        self._build = build
        self._writers: list[EventWriter] = []

    def write(self) -> None:
        self._writers = self._writers or self._build()
        for writer in self._writers:
            writer.write()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@contextmanager
def _naming(datasets: Iterable[str]) -> Iterator[None]:
    """Names the data sets whose annotations detectron2 stumbles over; built-in ones are not read through before."""
    try:
        yield
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data set {', '.join(datasets)}: its annotations can't be used: {reason}") from error
