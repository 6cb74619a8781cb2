import gc
import json
import logging
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine.hooks import CallbackHook
from detectron2.utils.env import seed_all_rng
from torch import Tensor

from se_detection.data.toy import make_toy_dataset
from se_detection.engine.checks import load_config
from se_detection.engine.signals import Interrupted
from se_detection.engine.trainer import Trainer
from se_detection.runs import record
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

CONFIG = "Toy/faster_rcnn_SE_R_18_FPN"
# A detector with two of the four stages and no FPN, which trains a step in a twentieth of a second, and keeps
# detections of any score.
TINY = [
    *("MODEL.BACKBONE.NAME", "build_se_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res3']"),
    *("MODEL.RPN.IN_FEATURES", "['res3']", "MODEL.ROI_HEADS.IN_FEATURES", "['res3']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8, 16, 32]]", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("INPUT.MIN_SIZE_TRAIN", "(48,64)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20", "SEED", "3"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", "False", "SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "0"),
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Eight images to train on and four to evaluate, in COCO format; in a folder with a space and other letters."""
    folder = tmp_path_factory.mktemp("пример 例")
    for split, count in (("train", 8), ("val", 4)):
        make_toy_dataset(folder, split=split, count=count)
    return folder


@pytest.fixture
def fresh_catalogs(monkeypatch) -> None:
    """detectron2's catalogs without the data sets of the command line, so that others may have their names."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        kept = {name: entry for name, entry in catalog.data.items() if not name.startswith(("train_", "val_"))}
        monkeypatch.setattr(catalog, "data", kept)


@pytest.fixture
def tiny_flags(tiny) -> list[str]:
    return data_flags(tiny)


def data_flags(folder: Path) -> list[str]:
    flags = []
    for split in ("train", "val"):
        flags += [f"--{split}-json", f"{folder / 'annotations' / split}.json", f"--{split}-images", str(folder / split)]
    return flags


def train_arguments(folder: Path, run: Path, *words: object, flags: tuple[str, ...] = ()) -> Namespace:
    """The parsed command line of a run of the tiny detector."""
    given = [*flags, "--config-file", CONFIG, *data_flags(folder), *TINY, *words, "OUTPUT_DIR", run]
    return command_parser(train_command).parse_args(list(map(str, given)))


@pytest.fixture(scope="module")
def build(tiny, module_path) -> Iterator[Callable[..., Trainer]]:
    """A function that makes a tiny trainer of four steps, in the folder `name` below `module_path`."""

    def make(name: str, *words: object, resume: bool = False, kind: type[Trainer] = Trainer, data: Path = tiny):
        args = train_arguments(data, module_path / name, *words, flags=("--resume",) if resume else ())
        cfg = load_config(args)
        # As from the command line.
        seed_all_rng(cfg.SEED)
        with pytest.MonkeyPatch.context() as patch:
            # `load_config` has checked it.
            patch.setattr(kind, "check_config", staticmethod(lambda cfg: None))
            trainer = kind(cfg, bad_images=args.bad_images)
        trainer.resume_or_load(resume)
        return trainer

    logging.getLogger("se_detection").setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        # It would take longer than the training.
        patch.setattr(record, "backbone_gflops", lambda *_: 1.0)
        yield make
    # Trainers with hooks of the tests are in reference cycles, and large.
    gc.collect()


def stop_after(trainer: Trainer, iteration: int, number: int = signal.SIGTERM) -> None:
    """Trains until a signal arrives in an iteration."""

    def stop(it: Trainer) -> None:
        if it.iter == iteration:
            it.stop.received = number

    trainer.register_hooks([CallbackHook(before_step=stop)])
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert caught.value.code == 128 + number


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of the weights that are saved."""
    return {key: tensor.clone() for key, tensor in trainer.checkpointer.weights.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def read_metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "log.txt"}
