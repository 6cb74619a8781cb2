import pytest
import torch
import torch.nn.functional as F

from se_detection.modeling.padding import ImageSqueeze, Padding
from se_detection.modeling.squeeze_excitation import SQUEEZE_LAYERS

SIZES = [(48, 64), (33, 47), (1, 1), (20, 64)]


def padded() -> torch.Tensor:
    images = torch.zeros(len(SIZES), 3, 64, 64)
    for image, (height, width) in zip(images, SIZES, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    return images


def padding_of(images, **options) -> Padding:
    padding = Padding(**{"unpadded_pool": False, **options})
    padding.find_sizes(torch.nn.Identity(), (images,))
    return padding


def test_sizes_are_found() -> None:
    images = padded()
    images[0, :, :10] = 0
    images[1, :, :, 20] = 0
    assert padding_of(images).sizes(0).tolist() == [list(size) for size in SIZES]


@pytest.mark.parametrize("unpadded_pool", [False, True])
def test_sizes_are_those_of_the_maps_of_a_single_image(unpadded_pool) -> None:
    padding = padding_of(padded(), unpadded_pool=unpadded_pool)
    for row, size in enumerate(SIZES):
        x = F.conv2d(torch.zeros(1, 1, *size), torch.zeros(1, 1, 7, 7), stride=2, padding=3)
        assert padding.sizes(1)[row].tolist() == list(x.shape[2:])
        if min(size) < 3 and unpadded_pool:  # the pool of the Caffe models has no output for such an image
            assert padding.sizes(2)[row].min() == 1
            continue
        x = F.max_pool2d(x, 3, 2, ceil_mode=True) if unpadded_pool else F.max_pool2d(x, 3, 2, padding=1)
        assert padding.sizes(2)[row].tolist() == list(x.shape[2:])
        for level in (3, 4, 5):
            x = F.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
            assert padding.sizes(level)[row].tolist() == list(x.shape[2:])


def test_an_image_of_zeros_counts_as_one_pixel() -> None:
    assert padding_of(torch.zeros(1, 3, 32, 32)).sizes(0).tolist() == [[1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["avg", "max", "avgmax"])
def test_squeezes_equal_those_of_the_cropped_images(kind, memory_format, dtype) -> None:
    padding = padding_of(padded())
    original = SQUEEZE_LAYERS[kind]()
    x = torch.randn(4, 5, 32, 32).to(dtype).contiguous(memory_format=memory_format)
    squeezed = ImageSqueeze(original, padding=padding, level=1)(x)
    assert squeezed.dtype == dtype
    for row, (height, width) in enumerate(SIZES):
        alone = x[row : row + 1, :, : -(-height // 2), : -(-width // 2)].float()
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(squeezed[row : row + 1].float(), original(alone), rtol=tolerance, atol=tolerance)


def test_large_sums_do_not_overflow_in_float16() -> None:
    padding = padding_of(torch.ones(1, 3, 256, 256))
    x = torch.full((1, 2, 256, 256), 30.0, dtype=torch.float16)
    squeeze = ImageSqueeze(torch.nn.AdaptiveAvgPool2d(1), padding=padding, level=0)
    assert squeeze(x).flatten().tolist() == [30, 30]


def test_squeezes_have_the_gradients_of_the_cropped_images() -> None:
    padding = padding_of(padded())
    squeeze = ImageSqueeze(SQUEEZE_LAYERS["avgmax"](), padding=padding, level=0)
    x = torch.randn(4, 2, 64, 64, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 4, 1, 1, dtype=torch.float64)
    (squeeze(x) * weights).sum().backward()
    expected = torch.zeros_like(x)
    for row, (height, width) in enumerate(SIZES):
        alone = x.detach()[row : row + 1, :, :height, :width].requires_grad_()
        pooled = torch.cat([alone.mean((2, 3), keepdim=True), alone.amax((2, 3), keepdim=True)], 1)
        (pooled * weights[row : row + 1]).sum().backward()
        expected[row, :, :height, :width] = alone.grad[0]
    torch.testing.assert_close(x.grad, expected)


def test_images_are_extended_by_one_row_and_column() -> None:
    padding = padding_of(padded())
    x = torch.randn(4, 2, 64, 64)
    for row, (height, width) in enumerate(SIZES):
        x[row, :, height:] = 0
        x[row, :, :, width:] = 0
    ours = padding.extend_images(x, 0)
    for row, (height, width) in enumerate(SIZES):
        image = F.pad(x[row : row + 1, :, :height, :width], (0, 1, 0, 1), mode="replicate")[0]
        expected = torch.zeros(2, 65, 65)
        expected[:, : height + 1, : width + 1] = image
        assert torch.equal(ours[row], expected[:, :64, :64])
