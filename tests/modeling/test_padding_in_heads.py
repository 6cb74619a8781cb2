import copy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_model
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import ImageList

from se_detection import create_backbone, model_zoo
from se_detection.modeling.fuse.fuse_detector import fuse_for_inference
from se_detection.modeling.padding import ignore_padding, ignore_padding_in_heads

from ..helpers import randomize_norms

SMALL = [
    *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "200", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"),
    *("MODEL.DEVICE", "cpu", "MODEL.SE.IGNORE_PADDING", "True"),
]
FASTER: list[str] = []
RETINANET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_se_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']", "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
]


pytestmark = pytest.mark.usefixtures("shallow")


def detector(*overrides: str) -> torch.nn.Module:
    """A detector with random weights; its detections depend on the position."""
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    # Gates that start as the identity would not depend on the padding.
    cfg.merge_from_list(["MODEL.SE.INIT", "default", *SMALL, *overrides])
    torch.manual_seed(0)
    model = randomize_norms(build_model(cfg)).eval()
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone") and name.endswith("weight"):
            parameter.data *= 3
    return model


def found(model, *sizes) -> list:
    """The detections in images of these sizes; there is one image for each size."""
    chance = torch.Generator()
    inputs = [{"image": torch.rand(3, *size, generator=chance.manual_seed(sum(size))) * 255} for size in sizes]
    with torch.no_grad():
        return [output["instances"] for output in model(inputs)]


def largest_difference(one, other) -> float:
    """Of boxes and scores; detections with almost the same score may be in another order."""
    if len(one) != len(other):
        return float("inf")
    places = torch.tensor([1.0, 3.0, 7.0, 11.0, 1e4], dtype=torch.float64)
    one, other = (
        found[(torch.column_stack([found.pred_boxes.tensor, found.pred_classes]).double() @ places).argsort()]
        for found in (one, other)
    )
    moved = (one.pred_boxes.tensor - other.pred_boxes.tensor).abs().max() / 100
    return max(moved.item(), (one.scores - other.scores).abs().max().item())


CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
TWO_CONVOLUTIONS = ["MODEL.RPN.CONV_DIMS", "[-1, 32]"]


# The first size needs no padding.
@pytest.mark.parametrize("size", [pytest.param((128, 96), marks=pytest.mark.slow), (101, 75)])
@pytest.mark.parametrize(
    "overrides",
    [FASTER, *(pytest.param(one, marks=pytest.mark.slow) for one in (TWO_CONVOLUTIONS, CASCADE, RETINANET))],
)
def test_boxes_do_not_depend_on_the_batch(overrides, size) -> None:
    stock = detector(*overrides, "MODEL.SE.IGNORE_PADDING", "False")
    assert largest_difference(found(stock, size)[0], found(stock, size, (160, 192))[0]) > 1e-3
    model = detector(*overrides)
    ignore_padding_in_heads(model)
    alone = found(model, size)[0]
    assert len(alone) > 20
    assert largest_difference(alone, found(model, size, (160, 192), (64, 200))[0]) < 1e-4


@pytest.mark.slow
def test_an_ignoring_backbone_is_not_enough() -> None:
    """The heads look beyond the end of the image, where the map of a larger batch continues."""
    size = (128, 96)
    model = detector()
    assert largest_difference(found(model, size)[0], found(model, size, (160, 192))[0]) > 1e-3


@pytest.mark.slow
def test_boxes_of_a_fused_detector_do_not_depend_on_the_batch() -> None:
    model = detector()
    ignore_padding_in_heads(model)
    fused = fuse_for_inference(model)
    # The fused copy must use the sizes of its own batch.
    found(model, (64, 64))
    alone = found(fused, (101, 75))[0]
    assert largest_difference(alone, found(fused, (101, 75), (160, 192))[0]) < 1e-4
    assert largest_difference(alone, found(model, (101, 75))[0]) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FASTER, RETINANET], ids=["Faster R-CNN", "RetinaNet"])
def test_without_padding_the_boxes_are_detectron2s(kind) -> None:
    """A single image of this size has no padding."""
    stock = detector(*kind, "MODEL.SE.IGNORE_PADDING", "False")
    ours = detector(*kind)
    ignore_padding_in_heads(ours)
    assert largest_difference(found(stock, (128, 96))[0], found(ours, (128, 96))[0]) < 1e-4


def test_in_training_anchors_in_the_padding_have_finite_logits() -> None:
    model = detector().train()
    ignore_padding_in_heads(model)
    images = ImageList.from_tensors([torch.randn(3, 96, 64), torch.randn(3, 64, 128)], 32)
    features = model.backbone(images.tensor)
    logits, _ = model.proposal_generator.rpn_head([features[name] for name in model.proposal_generator.in_features])
    assert all(values.isfinite().all() for values in logits)


def test_group_norm_in_a_dense_head_ignores_the_padding() -> None:
    """Against PyTorch's GN on the part of the map with the image."""
    strides = {"p3": 8, "p4": 16}
    shapes = [ShapeSpec(channels=8, stride=stride) for stride in strides.values()]
    head = FCOSHead(input_shape=shapes, num_classes=3, conv_dims=[64], norm="GN")
    for parameter in head.parameters():
        parameter.data.normal_(std=0.3)
    alone = copy.deepcopy(head)
    backbone = create_backbone("se_resnet18", out_features=("res3", "res4"))
    fpn = FPN(backbone, ["res3", "res4"], 8)
    ignore_padding(fpn)
    mean = std = [1.0, 1.0, 1.0]
    options = {"head_in_features": list(strides), "num_classes": 3, "pixel_mean": mean, "pixel_std": std}
    ignore_padding_in_heads(FCOS(backbone=fpn, head=head, **options))
    sizes = [(96, 64), (64, 128)]
    fpn(ImageList.from_tensors([torch.rand(3, *size) + 1 for size in sizes], 32).tensor)
    maps = [torch.randn(2, 8, 96 // stride, 128 // stride) for stride in strides.values()]
    outputs = head.train()(maps)
    for i, (height, width) in enumerate(sizes):
        parts = [
            x[i : i + 1, :, : height // stride, : width // stride]
            for x, stride in zip(maps, strides.values(), strict=True)
        ]
        for found_maps, expected_maps in zip(outputs, alone(parts), strict=True):
            for ours, theirs in zip(found_maps, expected_maps, strict=True):
                part = ours[i : i + 1, :, : theirs.shape[2], : theirs.shape[3]]
                torch.testing.assert_close(part, theirs, rtol=1e-4, atol=1e-4)
