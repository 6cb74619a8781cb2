import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from detectron2.structures import ImageList

from se_detection import SEConfig, create_backbone, model_zoo
from se_detection.errors import UserError
from se_detection.modeling.fuse.fuse_detector import fuse_for_inference
from se_detection.modeling.padding import ignore_padding

from ..helpers import randomize_norms, relative_error

# Some maps of the largest image have an odd size.
SIZES = [(101, 75), (160, 128), (64, 97)]


def images() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Images, and their batch with detectron2's padding."""
    alone = [torch.randn(1, 3, *size) for size in SIZES]
    return alone, torch.cat([F.pad(x, (0, 128 - x.shape[3], 0, 160 - x.shape[2])) for x in alone])


def backbone(name: str, **options) -> torch.nn.Module:
    return randomize_norms(create_backbone(name, norm="FrozenBN", **options)).eval()


def check_same_as_alone(ignoring, reference, tolerance: float = 2e-6) -> None:
    """`reference` computes each image alone, without padding."""
    alone, batch = images()
    with torch.no_grad():
        ours = ignoring(batch)
        for row, image in enumerate(alone):
            for name, theirs in reference(image).items():
                height, width = theirs.shape[2:]
                inside = ours[name][row : row + 1, :, :height, :width]
                assert relative_error(inside, theirs) < tolerance, (name, row)
                outside = ours[name][row].clone()
                outside[:, :height, :width] = 0
                assert not outside.any(), (name, row)


def test_detectron2s_backbone_equals_itself_on_single_images() -> None:
    reference = randomize_norms(build_resnet_backbone(get_cfg(), ShapeSpec(channels=3))).eval()
    ignoring = copy.deepcopy(reference)
    ignore_padding(ignoring)
    check_same_as_alone(ignoring, reference)
    with pytest.raises(AssertionError):
        check_same_as_alone(reference, reference)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("se_resnet18", {}),
        ("se_resnet50", {}),
        ("se_resnet50", {"layout": "caffe"}),
        ("se_resnext50_32x4d", {}),
        *(("se_resnet50", {"se": SEConfig(position=position)}) for position in ("pre", "post", "identity", "3x3")),
        *(("se_resnet50", {"se": SEConfig(squeeze=squeeze)}) for squeeze in ("max", "avgmax", "none")),
        ("se_resnet18", {"se": SEConfig(position="pre", stages=("res3", "res5"))}),
    ],
)
def test_backbones_equal_themselves_on_single_images(name, options) -> None:
    reference = backbone(name, **options)
    ignoring = copy.deepcopy(reference)
    ignore_padding(ignoring)
    assert ignoring.state_dict().keys() == reference.state_dict().keys()
    check_same_as_alone(ignoring, reference)


def test_senet154_equals_itself_on_single_images() -> None:
    reference = backbone("senet154")
    # One block of each stage is enough.
    reference.stages = [torch.nn.Sequential(stage[0]) for stage in reference.stages]
    for name, stage in zip(reference.stage_names, reference.stages, strict=True):
        setattr(reference, name, stage)
    ignoring = copy.deepcopy(reference)
    ignore_padding(ignoring)
    check_same_as_alone(ignoring, reference)


IGNORE = ("MODEL.SE.IGNORE_PADDING", "True")
RETINANETS = (
    *("MODEL.BACKBONE.NAME", "build_retinanet_se_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']", "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
)


def fpn(*overrides: str, depth: int = 18) -> torch.nn.Module:
    cfg = model_zoo.get_config(f"Toy/faster_rcnn_SE_R_{depth}_FPN")
    cfg.merge_from_list(["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.DEVICE", "cpu", *overrides])
    torch.manual_seed(0)
    return randomize_norms(build_backbone(cfg)).eval()


@pytest.mark.parametrize("kind", [(), RETINANETS], ids=["R-CNN's", "RetinaNet's"])
def test_fpn_does_not_depend_on_the_batch(kind) -> None:
    """FPN needs even maps, so the reference is an image whose size needs no padding."""
    stock, ignoring = fpn(*kind), fpn(*kind, *IGNORE)
    image = torch.randn(1, 3, 128, 64)
    others = torch.randn(2, 3, 256, 192)
    batch = torch.cat([F.pad(image, (0, 128, 0, 128)), others])
    with torch.no_grad():
        alone, shared, leaking = stock(image), ignoring(batch), stock(batch)
    for level, theirs in alone.items():
        height, width = theirs.shape[2:]
        assert relative_error(shared[level][:1, :, :height, :width], theirs) < 2e-6
        assert relative_error(leaking[level][:1, :, :height, :width], theirs) > 1e-3
        outside = shared[level][0].clone()
        outside[:, :height, :width] = 0
        assert not outside.any()


@pytest.mark.parametrize("depth", [18, 50])
def test_fused_backbones_ignore_padding(depth) -> None:
    ignoring = fpn(*IGNORE, depth=depth)
    fused = fuse_for_inference(ignoring)
    _, batch = images()
    with torch.no_grad():
        for level, theirs in ignoring(batch).items():
            assert relative_error(fused(batch)[level], theirs) < 1e-5


def test_gradients_are_those_of_single_images() -> None:
    reference = backbone("se_resnet18").train().double()
    ignoring = copy.deepcopy(reference)
    ignore_padding(ignoring)
    alone, batch = images()
    ours = ignoring(batch.double())
    for row, image in enumerate(alone):
        for name, values in reference(image.double()).items():
            weight = torch.randn_like(values) / values.numel()
            height, width = values.shape[2:]
            (values * weight).sum().backward(retain_graph=True)
            (ours[name][row, :, :height, :width] * weight[0]).sum().backward(retain_graph=True)
    theirs = dict(reference.named_parameters())
    for name, parameter in ignoring.named_parameters():
        assert relative_error(parameter.grad, theirs[name].grad) < 1e-9, name


def test_a_pixel_mean_of_zero_is_warned_about(caplog) -> None:
    fpn(*IGNORE)
    assert "black borders" not in caplog.text
    fpn(*IGNORE, "MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]")
    assert "black borders" in caplog.text


def test_group_norm_is_refused() -> None:
    with pytest.raises(UserError, match=r"IGNORE_PADDING: the statistics of GN include the padding"):
        fpn(*IGNORE, "MODEL.FPN.NORM", "GN")


def test_a_trace_works_for_other_batches() -> None:
    ignoring = fpn(*IGNORE)
    images = [torch.randn(3, *size) for size in SIZES]
    small, large = (ImageList.from_tensors(some, 32).tensor for some in (images[::2], images))
    with torch.no_grad():
        traced = torch.jit.trace(ignoring, small, strict=False)
        for level, theirs in ignoring(large).items():
            torch.testing.assert_close(traced(large)[level], theirs)
