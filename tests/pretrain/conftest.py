import gc
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from se_detection import model_zoo
from se_detection.pretrain.pretrain_config import load_pretrain_config
from se_detection.pretrain.pretrainer import Pretrainer
from se_detection_cli import pretrain_command
from se_detection_cli.main import command_parser

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}

# Small images; an epoch takes less than a second.
SMALL = [
    *("PRETRAIN.TRAIN_SIZE", "32", "PRETRAIN.TEST_SIZE", "32", "PRETRAIN.TEST_RESIZE", "36"),
    *("SOLVER.IMS_PER_BATCH", "6", "SOLVER.BASE_LR", "0.005", "DATALOADER.NUM_WORKERS", "0", "SEED", "5"),
    *("PRETRAIN.WARMUP_EPOCHS", "0.0", "PRETRAIN.STEP_EPOCHS", "[]"),
]


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """An image folder of three colours with noise: 12 training and 4 test images per class, of several sizes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(-30, 30, (40 + number, 48, 3))
                Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(folder / f"{number:02}.png")
    return root


@pytest.fixture
def arguments(images, tmp_path):
    """A function that returns the parsed command line of a small run."""

    def make(*overrides: str, config: str = "Toy/faster_rcnn_SE_R_18_FPN", flags: tuple[str, ...] = ()) -> Namespace:
        words = ["--config-file", model_zoo.get_config_file(config), "--data", str(images), *flags]
        return command_parser(pretrain_command).parse_args(
            [*words, *SMALL, "OUTPUT_DIR", str(tmp_path / "run"), *overrides]
        )

    return make


@pytest.fixture
def build(arguments, tmp_path):
    """A function that returns a trainer, ready to train."""

    def make(*overrides: str, name: str = "run", resume: bool = False, flags=(), **options) -> Pretrainer:
        flags = (*flags, *(["--resume"] if resume else []))
        cfg = load_pretrain_config(arguments(*overrides, "OUTPUT_DIR", str(tmp_path / name), flags=flags, **options))
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        torch.manual_seed(0)
        trainer = Pretrainer(cfg)
        trainer.resume_or_load(resume)
        return trainer

    yield make
    # Trainers have reference cycles.
    gc.collect()
