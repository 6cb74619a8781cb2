"""A pass of a model on random images: a forward call, or a training step; and its peak memory."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.profiler import ProfilerActivity, profile

from .networks import DTYPES, Case, random_image

BOXES = 8
CLASSES = 80
# The profiler's event of an allocation, or with negative bytes of a release.
MEMORY_EVENT = "[memory]"


class Inference:
    """A forward call without gradients.

    Args:
        model: in evaluation mode.
        case: determines the images.
        autocast: whether to use autocast for half precision.
    """

    def __init__(self, model: nn.Module, case: Case, *, autocast: bool) -> None:
        self.model = model
        self.inputs = make_inputs(case)
        enabled = autocast and case.dtype != "float32"
        self.autocast = torch.autocast(case.device, DTYPES[case.dtype] if enabled else None, enabled=enabled)

    def __call__(self) -> Any:
        with torch.no_grad(), self.autocast:
            return self.model(self.inputs)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that are kept between passes."""
        yield from self.model.parameters()
        yield from self.model.buffers()


class Training(Inference):
    """Forward, backward, a step of SGD with momentum, and gradients freed, as in detectron2's trainer.

    A backbone has no losses: its features get random gradients.

    Args:
        model: in training mode.
        case: determines the images.
    """

    def __init__(self, model: nn.Module, case: Case) -> None:
        super().__init__(model, case, autocast=True)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # With a learning rate of 0, all the work is done and the weights stay the same.
        self.optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)
        # The scale has no effect on time; 1 keeps random gradients finite.
        self.scaler = GradScaler(case.device, init_scale=1.0, enabled=case.dtype == "float16")
        self.gradients: list[Tensor] = []

    def __call__(self) -> None:
        with EventStorage(), self.autocast:
            outputs = self.model(self.inputs)
        if isinstance(self.inputs, list):
            self.scaler.scale(sum(outputs.values())).backward()
        else:
            # res2 is frozen, and has no gradient.
            features = [feature for feature in outputs.values() if feature.requires_grad]
            if not self.gradients:
                self.gradients = [self.scaler.scale(torch.randn_like(feature)) for feature in features]
            torch.autograd.backward(features, self.gradients)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that are kept between steps."""
        yield from super().tensors()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def make_workload(model: nn.Module, case: Case, *, autocast: bool) -> Inference:
    """A :class:`Training` or :class:`Inference`, by the case's mode."""
    return Training(model, case) if case.mode == "train" else Inference(model, case, autocast=autocast)


def make_inputs(case: Case) -> Any:
    """Random images, the same for each model: a normalized batch, or a detector's inputs with boxes."""
    generator = torch.Generator().manual_seed(0)
    height, width = case.size, case.width
    if case.part != "detector":
        return torch.randn(case.batch, 3, height, width, generator=generator).to(case.device)
    inputs = []
    for _ in range(case.batch):
        image, size = random_image(case, generator), torch.tensor([width, height])
        corner = torch.rand(BOXES, 2, generator=generator) * size / 2
        extent = (0.1 + 0.4 * torch.rand(BOXES, 2, generator=generator)) * size
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
        instances.gt_classes = torch.randint(CLASSES, (BOXES,), generator=generator)
        inputs.append({"image": image.to(case.device), "instances": instances, "height": height, "width": width})
    return inputs


def peak_bytes(workload: Inference, device: str) -> int:
    """The bytes kept between passes (weights, and in training the optimizer's state), and the most that a pass adds.

    Only memory of PyTorch's allocators is counted, on the CPU as its profiler reports it. Memory that libraries such as
    oneDNN or cuDNN allocate is not.

    Args:
        workload: must be warmed up.
    """
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in workload.tensors()}
    added = _added_on_cpu(workload) if device == "cpu" else _added_on_gpu(workload)
    return sum(kept.values()) + added


def _added_on_cpu(workload: Inference) -> int:
    # Silences the profiler's warnings about missing GPUs.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        workload()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == MEMORY_EVENT:
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def _added_on_gpu(workload: Inference) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    workload()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
