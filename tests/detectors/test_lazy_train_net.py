"""detectron2's unmodified tools/lazyconfig_train_net.py with a lazy config of this project."""

import json
import math
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from se_detection import create_backbone

TOOL = Path(sysconfig.get_paths()["purelib"], "tools", "lazyconfig_train_net.py")
CONFIGS = Path(__file__).parents[2] / "configs"
NAME = "COCO-Detection/faster_rcnn_SE_R_50_FPN_1x"
# Three steps from a random backbone of depth 18, on the toy set at 64 pixels.
OVERRIDES = [
    *("model.backbone.bottom_up.name=se_resnet18", "model.roi_heads.num_classes=4"),
    *("model.roi_heads.batch_size_per_image=16", "model.proposal_generator.post_nms_topk=[20,5]"),
    *("dataloader.train.dataset.names=se_toy_train", "dataloader.test.dataset.names=se_toy_val"),
    *("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
    "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    *("train.device=cpu", "train.max_iter=3", "train.log_period=1", "train.seed=1"),
]

pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason=f"this detectron2 was installed without its tools ({TOOL})")


def train(folder: Path, backbone: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Trains in `folder`, from random weights of the named backbone."""
    torch.manual_seed(0)
    weights = folder / f"{backbone}.pth"
    torch.save({"model": create_backbone(backbone).state_dict(), "matching_heuristics": True}, weights)
    config = CONFIGS / "lazy" / f"{NAME}.py"
    overrides = [*OVERRIDES, f"train.init_checkpoint={weights}", f"train.output_dir={folder / 'run'}"]
    return subprocess.run(
        [sys.executable, TOOL, "--config-file", config, *overrides],
        cwd=folder,
        env={
            **{"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
            **{"DETECTRON2_DATASETS": os.environ["DETECTRON2_DATASETS"], **environment},
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tool_trains_and_evaluates(tmp_path) -> None:
    DatasetCatalog.get("se_toy_val")
    done = train(tmp_path, "se_resnet18", DETECTRON2_ENV_MODULE="se_detection.env")
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    # The last line is the evaluation's.
    assert [line["iteration"] for line in metrics] == [0, 1, 2, 3]
    assert all(math.isfinite(line["total_loss"]) for line in metrics[:3])
    assert 0 <= metrics[-1]["bbox/AP"] <= 100

    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{NAME}.yaml"), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    weights = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    build_model(cfg).load_state_dict(weights, strict=True)
    # Frozen weights are still those of the file, and the gates have changed a little.
    before = torch.load(tmp_path / "se_resnet18.pth", weights_only=True)["model"]
    frozen, gate = "res2.0.se.fc1.weight", "res3.0.se.fc2.weight"
    assert torch.equal(weights[f"backbone.bottom_up.{frozen}"], before[frozen])
    change = (weights[f"backbone.bottom_up.{gate}"] - before[gate]).abs().max()
    assert 0 < change < 0.1

    # The config that the tool has written builds the same network.
    saved = LazyConfig.load(str(tmp_path / "run" / "config.yaml"))
    with torch.device("meta"):
        again = instantiate(saved.model).state_dict()
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in weights.items()}


def test_plain_weights_are_refused(tmp_path) -> None:
    """Also without the environment variable, because the config imports the plugin."""
    done = train(tmp_path, "resnet18")
    assert done.returncode != 0
    assert "the weights don't fit the config: the file's backbone is plain and the config's has SE" in done.stderr
    assert not (tmp_path / "run" / "model_final.pth").exists()
