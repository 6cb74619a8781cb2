import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import Boxes

from se_detection.modeling.fuse.fused_roi_heads import _flatten_last
from se_detection.modeling.ops.channels_last_pooler import pool_channels_last

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def boxes(number: int) -> Boxes:
    """Boxes of up to 300 pixels, some of them partly outside of an image of 256 x 384, and one that is empty."""
    corner = torch.rand(number, 2) * torch.tensor([390.0, 260.0]) - 8
    content = torch.cat([corner, corner + torch.rand(number, 2) ** 3 * 300], dim=1)
    content[0, 2] = content[0, 0]
    return Boxes(content)


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("levels", [1, 4])
def test_channels_last_pooling_has_torchvisions_values_and_gradients(kind, ratio, levels) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 8, int(256 * scale), int(384 * scale)) for scale in SCALES[:levels]]
    found = [boxes(60), boxes(30)]
    # detectron2 puts several levels together for square outputs only.
    size = (7, 5) if levels == 1 else (7, 7)
    pooler = ROIPooler(size, SCALES[:levels], ratio, kind)
    # In float64, torchvision's rounding does not matter.
    exact_maps = [map_.double().requires_grad_() for map_ in maps]
    exact = pooler(exact_maps, [Boxes(own.tensor.double()) for own in found])
    change = torch.randn(exact.shape)
    exact_gradients = torch.autograd.grad(exact, exact_maps, change.double())

    pool_channels_last(pooler)
    maps = [map_.to(memory_format=torch.channels_last).requires_grad_() for map_ in maps]
    own = pooler(maps, found)
    torch.testing.assert_close(own.double(), exact, rtol=0, atol=1e-4)
    assert own.is_contiguous(memory_format=torch.channels_last)
    assert pooler(maps, [Boxes(torch.zeros(0, 4))] * 2).shape == (0, 8, *size)
    for gradient, expected in zip(torch.autograd.grad(own, maps, change), exact_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-4)


def test_levels_without_regions_have_a_gradient() -> None:
    """DistributedDataParallel waits for the gradient of each parameter."""
    maps = [torch.randn(2, 8, 64 // 2**level, 96 // 2**level, requires_grad=True) for level in range(4)]
    pooler = ROIPooler((7, 7), SCALES, 0, "ROIAlignV2")
    pool_channels_last(pooler)
    for found in ([boxes(1)] * 2, [Boxes(torch.zeros(0, 4))] * 2):
        regions = pooler(maps, found)
        assert regions.shape == (sum(map(len, found)), 8, 7, 7)
        assert all(gradient is not None for gradient in torch.autograd.grad(regions.sum(), maps))


def test_a_box_head_takes_channels_last_regions() -> None:
    head = FastRCNNConvFCHead(ShapeSpec(channels=6, height=7, width=5), conv_dims=[], fc_dims=[4, 3])
    regions = torch.randn(3, 6, 7, 5)
    expected = head(regions)
    _flatten_last(head, 7, 5)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        torch.testing.assert_close(head(regions.to(memory_format=memory_format)), expected)
