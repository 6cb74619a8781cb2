"""configs/Ablations against the paper's tables: each config changes one thing, and can be trained."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from projects.paper.paper_tables import ROWS
from se_detection import SEConfig, UserError, model_zoo
from se_detection.engine.checks import load_config
from se_detection.modeling import se_resnet
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

FOLDER = Path(model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")).parents[1] / "Ablations"
BASE = "se_r50_reduction_16"
# The paper repeats the standard network in each table.
SAME_AS_BASE = [f"se_r50_{row}" for row in ("squeeze_avg", "gate_sigmoid", "stage_all", "position_standard")]


def config(name: str) -> CfgNode:
    return model_zoo.get_config(f"Ablations/{name}")


def small(name: str) -> CfgNode:
    """The config with small heads, and with BN instead of FrozenBN, for random weights."""
    cfg = config(name)
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.WIDTH_PER_GROUP", 16),
            *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 4),
        ]
    )
    return cfg


def test_a_file_for_each_row() -> None:
    rows = {row.name.replace(" ", "_") for row in ROWS if row.table >= 10}
    expected = {"r50_no_se"} | {f"se_r50_{row}" for row in rows - {"no_SE"}}
    assert {path.stem for path in FOLDER.glob("*r50*.yaml")} == expected


@pytest.mark.parametrize("row", [row for row in ROWS if row.table >= 10], ids=lambda row: row.name)
def test_a_row_changes_only_se(row) -> None:
    cfg = config("r50_no_se" if row.name == "no SE" else f"se_r50_{row.name.replace(' ', '_')}")
    found = SEConfig.from_cfg(cfg)
    if row.name == "no SE":
        assert not found.stages
    else:
        assert fields(found) == fields(row.classifier.se)
    # The rest of the detector is the same; its layers are those of the paper's Caffe models.
    base = config(BASE)
    assert base.MODEL.RESNETS.STEM_TYPE == "caffe"
    assert base.MODEL.RESNETS.STRIDE_IN_1X1
    for one in (cfg, base):
        one.MODEL.SE = CfgNode()
    assert cfg == base


def fields(se: SEConfig) -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple | list) else value for key, value in vars(se).items()}


@pytest.mark.parametrize("name", SAME_AS_BASE)
def test_rows_of_the_same_network(name) -> None:
    assert config(name) == config(BASE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [BASE, "se_r50_squeeze_none", "se_r50_position_3x3"])
def test_it_trains_a_step(name, monkeypatch) -> None:
    """With fewer blocks; tests/modeling/test_blocks.py has the gradients and the scripts of each position."""
    monkeypatch.setattr(se_resnet, "BLOCKS_PER_STAGE", {50: (1, 1, 1, 1)})
    detector = build_model(small(name)).train()
    instances = Instances(
        (64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 48.0, 40.0]])), gt_classes=torch.tensor([1])
    )
    # Two different images: for equal images, the means after BN, which SE squeezes, are 0.
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    with EventStorage():
        losses = detector([{"image": image, "instances": instances} for image in images])
    sum(losses.values()).backward()
    optimizer.step()
    for key, parameter in detector.backbone.named_parameters():
        assert torch.isfinite(parameter).all(), key
        # A bias before BN may not change; every convolution learns, also those of the gates.
        assert parameter.dim() < 4 or parameter.grad.abs().max() > 0, key


def test_training_needs_a_pretrained_backbone(tmp_path) -> None:
    arguments = ["--config-file", str(FOLDER / "se_r50_reduction_8.yaml"), "OUTPUT_DIR", str(tmp_path / "run")]
    arguments += ["DATASETS.TRAIN", "('se_toy_train',)", "DATASETS.TEST", "('se_toy_val',)"]
    with pytest.raises(UserError, match=r"MODEL.WEIGHTS: .*a-backbone-pre-trained-with-this-MODEL.SE.pth"):
        load_config(command_parser(train_command).parse_args([*arguments, "MODEL.ROI_HEADS.NUM_CLASSES", "4"]))
