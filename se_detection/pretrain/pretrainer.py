"""Trains a classifier with the detector's trainer, and its checkpoints, resuming and loss guard."""

import shlex
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.train_loader import TrainLoader
from ..data.workers import SignalSafeLoader
from ..engine.checks import check_settings
from ..engine.trainer import Trainer, in_memory_order
from ..files import write_json, write_whole
from ..runs.run_folder import BACKBONE_FILE, INFERENCE, RESULTS
from .classifier import build_classifier
from .image_folder import register_image_folder
from .image_mapper import ImageMapper


class Pretrainer(Trainer):
    """Trains a config's backbone as a classifier, and writes it to `OUTPUT_DIR/backbone.pth` for `MODEL.WEIGHTS`."""

    @staticmethod
    def register_data(args: Namespace) -> None:
        """See :func:`register_image_folder`."""
        register_image_folder(Path(args.data))

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """Checks the machine; :func:`load_pretrain_config` checks the rest."""
        check_settings(cfg, comm.get_world_size())

    @staticmethod
    def image_size(cfg: CfgNode) -> tuple[int, int]:
        """(height, width) of images in testing."""
        return cfg.PRETRAIN.TEST_SIZE, cfg.PRETRAIN.TEST_SIZE

    @staticmethod
    def next_command(cfg: CfgNode, config_file: str) -> str:
        """A detector with this backbone."""
        weights = str(Path(cfg.OUTPUT_DIR, BACKBONE_FILE))
        return shlex.join(["se-det", "train", "--config-file", config_file, "MODEL.WEIGHTS", weights])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The classifier on the config's device."""
        classes = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
        return in_memory_order(build_classifier(cfg, len(classes)).to(cfg.MODEL.DEVICE), cfg)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Batches of augmented images."""
        return TrainLoader.from_cfg(cfg, ImageMapper.from_cfg(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Batches of resized and centre-cropped images, as large as in training."""
        size = max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())
        mapper = ImageMapper.from_cfg(cfg, is_train=False)
        return SignalSafeLoader(build_detection_test_loader(cfg, dataset_name, mapper=mapper, batch_size=size))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Top-1 and top-5 accuracy."""
        return TopKEvaluator(Path(cfg.OUTPUT_DIR, INFERENCE))

    def _train(self) -> Any:
        results = super()._train()
        if comm.is_main_process():
            self._save_backbone()
        return results

    def _save_backbone(self) -> None:
        weights: Any = self.checkpointer.weights
        assumptions: Any = self.checkpointer.assumptions
        content = {
            # With this key, detectron2's own checkpointer loads the file into a detector too.
            "matching_heuristics": True,
            "model": {key: tensor.contiguous() for key, tensor in weights.backbone.state_dict().items()},
            "assumptions": assumptions.to_dict(),
            "pretraining": {"epochs": self.cfg.PRETRAIN.EPOCHS, **self._last_eval_results["classification"]},
        }
        write_whole(Path(self.cfg.OUTPUT_DIR, BACKBONE_FILE), partial(torch.save, content))


class TopKEvaluator(DatasetEvaluator):
    """Percentage of images whose class has the highest score (`top1`) or one of the five highest (`top5`).

    Args:
        folder: where the main process writes `results.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reset(self) -> None:
        """Starts a new evaluation."""
        self.counts = {"images": 0, "top1": 0, "top5": 0}

    def process(self, inputs: list[dict[str, Any]], outputs: Tensor) -> None:
        """Adds a batch; `outputs` are logits (N, classes)."""
        labels = torch.tensor([item["label"] for item in inputs], device=outputs.device)
        hits = outputs.topk(min(5, outputs.shape[1])).indices == labels[:, None]
        for key, count in (("images", len(inputs)), ("top1", hits[:, 0].sum()), ("top5", hits.sum())):
            self.counts[key] += int(count)

    def evaluate(self) -> dict[str, Any]:
        """`top1` and `top5` over all processes; empty except in the main process."""
        gathered = comm.gather(self.counts)
        if not comm.is_main_process():
            return {}
        total = {key: sum(counts[key] for counts in gathered) for key in self.counts}
        results = {key: 100 * total[key] / total["images"] for key in ("top1", "top5")}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / RESULTS, {"images": total["images"], **results}, indent=2)
        return OrderedDict(classification=results)
