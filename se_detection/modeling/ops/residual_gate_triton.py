"""`relu(gate * residual + shortcut)` and its gradients in Triton, one pass over memory each."""
# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import memory_format_of

# Elements of the tile of a program; its rows are channels, its columns positions.
TILE = 2048


def forward(residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
    """relu(gate * residual + shortcut), in float32 and rounded once.

    Args:
        residual: (N, C, H, W), not empty, on a GPU, contiguous or channels-last (others are copied). The output has the
            same memory format.
        gate: (N, C, 1, 1).
        shortcut: (N, C, H, W).
    """
    memory_order = memory_format_of(residual)
    residual, shortcut = (x.contiguous(memory_format=memory_order) for x in (residual, shortcut))
    out = torch.empty_like(residual, dtype=torch.promote_types(residual.dtype, shortcut.dtype))
    grid, sizes = _plan(out, memory_order)
    with torch.cuda.device_of(out):
        _forward[grid](residual, gate.contiguous(), shortcut, out, *sizes)
    return out


def backward(grad: Tensor, gate: Tensor, out: Tensor, kept: Tensor, is_residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of :func:`forward`.

    Args:
        grad: the gradient of the output, (N, C, H, W).
        gate, out: those of the forward pass.
        kept: the residual or the shortcut of the forward pass, (N, C, H, W).
        is_residual: whether `kept` is the residual.

    Returns:
        The gradients of shortcut and residual, and the sum over positions of `d * residual` or of
        `d * (out - shortcut)`, (N, C, 1, 1) in float32, where `d` is the gradient before the ReLU. The order of
        summation is always the same.
    """
    memory_order = memory_format_of(out)
    grad, out, kept = (x.contiguous(memory_format=memory_order) for x in (grad, out, kept))
    to_shortcut, to_residual = torch.empty_like(out), torch.empty_like(out)
    grid, sizes = _plan(out, memory_order)
    parts = torch.empty(*out.shape[:2], grid[0], device=out.device, dtype=torch.float32)
    with torch.cuda.device_of(out):
        _backward[grid](grad, gate.contiguous(), out, kept, to_shortcut, to_residual, parts, *sizes, is_residual)
    return to_shortcut, to_residual, parts.sum(dim=2)[:, :, None, None]


def _plan(x: Tensor, memory_order: torch.memory_format) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """The grid of tiles, and the sizes and strides for the kernels."""
    images, channels, height, width = x.shape
    positions = height * width
    # A tile is long in the direction of memory, but not longer than the map.
    if memory_order == torch.channels_last:
        strides = (1, channels)
        rows = min(64, triton.next_power_of_2(channels))
        columns = TILE // rows
    else:
        strides = (positions, 1)
        columns = min(1024, triton.next_power_of_2(positions))
        rows = TILE // columns
    grid = (triton.cdiv(positions, columns), triton.cdiv(channels, rows), images)
    return grid, (channels, positions, *strides, rows, columns)


@triton.jit
def _tile(channels, positions, channel_stride, position_stride, rows: tl.constexpr, columns: tl.constexpr):
    """For this program: its channels, the indices of their gates and of its elements, and a mask of valid elements."""
    # Indices into large maps do not fit into 32 bits.
    image = tl.program_id(2).to(tl.int64)
    channel = (tl.program_id(1) * rows + tl.arange(0, rows)).to(tl.int64)
    position = tl.program_id(0) * columns + tl.arange(0, columns)
    place = channel[:, None] * channel_stride + position[None, :] * position_stride
    inside = (channel[:, None] < channels) & (position[None, :] < positions)
    return channel, image * channels + channel, image * channels * positions + place, inside


@triton.jit
def _forward(
    residual,
    gate,
    shortcut,
    out,
    channels,
    positions,
    channel_stride,
    position_stride,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    channel, row, place, inside = _tile(channels, positions, channel_stride, position_stride, rows, columns)
    factor = tl.load(gate + row, channel < channels).to(tl.float32)[:, None]
    branch = tl.load(residual + place, inside).to(tl.float32)
    value = factor * branch + tl.load(shortcut + place, inside).to(tl.float32)
    # A comparison, not a maximum: like PyTorch's ReLU it propagates NaN.
    tl.store(out + place, tl.where(value < 0, 0.0, value), inside)


@triton.jit
def _backward(
    grad,
    gate,
    out,
    kept,
    to_shortcut,
    to_residual,
    parts,
    channels,
    positions,
    channel_stride,
    position_stride,
    rows: tl.constexpr,
    columns: tl.constexpr,
    is_residual: tl.constexpr,
):
    channel, row, place, inside = _tile(channels, positions, channel_stride, position_stride, rows, columns)
    factor = tl.load(gate + row, channel < channels).to(tl.float32)[:, None]
    value = tl.load(out + place, inside, 0.0).to(tl.float32)
    before = tl.load(grad + place, inside, 0.0).to(tl.float32)
    d = tl.where(value <= 0, 0.0, before)
    branch = tl.load(kept + place, inside, 0.0).to(tl.float32)
    if not is_residual:
        branch = value - branch
    tl.store(to_shortcut + place, d, inside)
    tl.store(to_residual + place, factor * d, inside)
    total = tl.sum(d * branch, axis=1)
    tl.store(parts + row * tl.num_programs(0) + tl.program_id(0), total, channel < channels)
