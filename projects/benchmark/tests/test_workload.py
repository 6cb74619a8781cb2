import pytest
import torch

from ..networks import build_network
from ..workload import Inference, Training, make_inputs


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
        assert (boxes.tensor >= 0).all()
        assert (boxes.tensor <= 96).all()


def test_inference_computes_no_gradients(make_case) -> None:
    case = make_case(part="backbone")
    maps = Inference(build_network("se", case), case, autocast=False)()
    assert [maps[stage].shape[1:] for stage in ("res2", "res5")] == [(64, 16, 16), (512, 2, 2)]
    assert not any(features.requires_grad for features in maps.values())
    assert all(features.isfinite().all() for features in maps.values())


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
    assert not any(name.split(".")[-4] in ("stem", "res2") for name in trained if name.count(".") > 3)
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


def test_a_detectors_training_step_has_its_losses(make_case, monkeypatch) -> None:
    case = make_case(part="detector", mode="train")
    detector = build_network("se", case)
    losses = []
    detector.register_forward_hook(lambda _, __, found: losses.append(found))
    Training(detector, case)()
    assert losses[0].keys() == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    assert all(loss.isfinite() and loss.requires_grad for loss in losses[0].values())


def test_half_precision_uses_autocast(make_case) -> None:
    case = make_case(dtype="bfloat16")
    network = build_network("plain", case)
    dtypes = []
    network.bottom_up.res3[0].conv1.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    Inference(network, case, autocast=True)()
    Inference(network, case, autocast=False)()
    assert dtypes == [torch.bfloat16, torch.float32]
