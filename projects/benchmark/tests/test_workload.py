import pytest
import torch
from torch import nn

from ..networks import build_network
from ..workload import Inference, Training, make_inputs, peak_bytes


def test_images_are_deterministic_and_a_detectors_have_valid_boxes(make_case) -> None:
    case = make_case(size=96, batch=2)
    assert torch.equal(make_inputs(case), make_inputs(case))
    assert make_inputs(case).shape == (2, 3, 96, 96)
    inputs = make_inputs(make_case(part="detector", size=96, batch=2))
    assert [item["image"].shape for item in inputs] == [(3, 96, 96)] * 2
    for item in inputs:
        boxes = item["instances"].gt_boxes
        assert len(boxes) == len(item["instances"].gt_classes) == 8
        assert boxes.nonempty().all()
        assert 0 <= boxes.tensor.min() < boxes.tensor.max() <= 96


def test_inference_computes_no_gradients_and_half_precision_uses_autocast(make_case) -> None:
    case = make_case(part="backbone", dtype="bfloat16")
    network = build_network("se", case)
    maps = {autocast: Inference(network, case, autocast=autocast)() for autocast in (True, False)}
    assert [maps[False][stage].shape[1:] for stage in ("res2", "res5")] == [(64, 16, 16), (512, 2, 2)]
    dtypes = []
    network.res3[0].conv1.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    for autocast in maps:
        Inference(network, case, autocast=autocast)()
        assert not any(features.requires_grad for features in maps[autocast].values())
        assert all(features.isfinite().all() for features in maps[autocast].values())
    assert dtypes == [torch.bfloat16, torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["backbone", "backbone+fpn"])
def test_a_training_step_has_the_right_gradients_and_keeps_the_weights(part, make_case) -> None:
    case = make_case(part=part, mode="train")
    network = build_network("se", case)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step = Training(network, case)
    step()
    found = {}
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    assert trained
    assert not any(name.startswith(("stem", "res2", "bottom_up.stem", "bottom_up.res2")) for name in trained)
    for name, value in trained.items():
        value.register_post_accumulate_grad_hook(lambda value, name=name: found.update({name: value.grad.clone()}))
    step()
    outputs = [value for value in network(make_inputs(case)).values() if value.requires_grad]
    total = sum((value * gradient).sum() for value, gradient in zip(outputs, step.gradients, strict=True))
    expected = dict(zip(trained, torch.autograd.grad(total, list(trained.values())), strict=True))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()), name
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None for value in trained.values())
    # Momentum was computed, although the weights did not change.
    assert all(step.optimizer.state[value]["momentum_buffer"].any() for value in trained.values())


class Chain:
    """Keeps two maps between passes, and allocates `added` more at a time."""

    def __init__(self, added: int, side: int) -> None:
        self.kept = [torch.zeros(side, side), torch.zeros(side, side)]
        self.added, self.side = added, side

    def tensors(self):
        # A view takes no memory.
        return [*self.kept, self.kept[0][:1]]

    def __call__(self) -> None:
        for _ in range(3):
            [torch.ones(self.side, self.side) for _ in range(self.added)]


@pytest.mark.parametrize("added", [1, 4])
def test_peak_of_allocations(added) -> None:
    assert peak_bytes(Chain(added, 256), "cpu") == pytest.approx((2 + added) * 4 * 256**2, rel=0.01)


class Deep(nn.Module):
    """A chain of sigmoids; the backward of each needs its output."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 3, 128, 128))
        self.depth = depth

    def forward(self, x):
        x = x * self.weight
        for _ in range(self.depth):
            x = x.sigmoid()
        return {"out": x}


def test_training_memory_includes_saved_tensors_and_optimizer_state(make_case) -> None:
    map_bytes = 4 * 3 * 128 * 128
    peaks = []
    for depth in (4, 9):
        workload = Training(Deep(depth), make_case(mode="train", size=128))
        workload()
        peaks.append(peak_bytes(workload, "cpu"))
        # The weight and its momentum.
        assert sum(tensor.nbytes for tensor in workload.tensors()) == 2 * map_bytes
    assert peaks[1] - peaks[0] == pytest.approx(5 * map_bytes, rel=0.01)
