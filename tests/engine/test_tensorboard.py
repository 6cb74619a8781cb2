"""What the hooks write to TensorBoard's event files, read with TensorBoard's own reader."""

import copy
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from se_detection import create_backbone
from se_detection.engine import tensorboard
from se_detection.engine.tensorboard import DetectionImages, GateMeans
from se_detection.engine.trainer import Trainer
from se_detection.modeling.squeeze_excitation import SqueezeExcitation
from se_detection.visualization.drawing import class_colours

from .conftest import read_metrics, stop_after

EVALUATED = ("TEST.EVAL_PERIOD", 2)
STAGES = ["gates/res2", "gates/res3"]
# Of the drawn images, which are 128 pixels wide and high.
SIDE = 128


class Bare(Trainer):
    """Without the hooks of this project for TensorBoard."""

    def build_hooks(self):
        return [hook for hook in super().build_hooks() if not isinstance(hook, GateMeans | DetectionImages)]


class Whole(NamedTuple):
    """A run that was not stopped: its folder, its model, and by iteration the backbone's weights and its images."""

    folder: Path
    model: nn.Module
    seen: dict[int, tuple[dict[str, Tensor], Tensor]]


@pytest.fixture(scope="module", autouse=True)
def _every_second_step():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "PERIOD", 2)
        patch.setattr(tensorboard, "IMAGES", 4)
        yield


@pytest.fixture(scope="module")
def whole(build) -> Whole:
    # The brute-force pass has the paper's gate, which is not doubled.
    frozen = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", 1]
    trainer = build("whole", *EVALUATED, *frozen, "MODEL.SE.INIT", "default")
    model = trainer.checkpointer.model
    seen = {}

    def keep(module, inputs) -> None:
        if module.training:
            weights = copy.deepcopy(module.backbone.state_dict())
            seen[trainer.iter] = weights, module.preprocess_image(inputs[0]).tensor

    handle = model.register_forward_pre_hook(keep)
    trainer.train()
    handle.remove()
    return Whole(Path(trainer.cfg.OUTPUT_DIR), model, seen)


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def scalars(found: EventAccumulator) -> dict[str, dict[int, float]]:
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def decoded(event) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))


def brute_force(model: nn.Module, images: torch.Tensor, monkeypatch) -> dict[str, float]:
    """The mean gate of each stage, with the two layers and the sigmoid written out."""
    means: dict[str, list[float]] = {}
    stages = {module: name.split(".")[-3] for name, module in model.named_modules() if name.endswith(".se")}

    def gate(se, x):
        squeezed = x.mean(dim=(2, 3))
        hidden = torch.relu(squeezed @ se.fc1.weight[:, :, 0, 0].T + se.fc1.bias)
        value = 1 / (1 + torch.exp(-(hidden @ se.fc2.weight[:, :, 0, 0].T + se.fc2.bias)))
        means.setdefault(f"gates/{stages[se]}", []).append(value.mean().item())
        return value[:, :, None, None]

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(SqueezeExcitation, "gate", gate)
        model(images)
    return {stage: float(np.mean(values)) for stage, values in means.items()}


@pytest.mark.slow
def test_gates_are_those_of_a_brute_force_pass(whole, monkeypatch) -> None:
    found = scalars(events(whole.folder))
    assert sorted(tag for tag in found if tag.startswith("gates")) == STAGES
    assert {tuple(found[stage]) for stage in STAGES} == {(1, 3)}
    backbone = copy.deepcopy(whole.model.backbone)
    for iteration in (1, 3):
        weights, images = whole.seen[iteration]
        backbone.load_state_dict(weights)
        for stage, mean in brute_force(backbone, images, monkeypatch).items():
            assert found[stage][iteration] == pytest.approx(mean, rel=1e-5)
    assert not any(module._forward_hooks for module in whole.model.modules())


@pytest.mark.slow
def test_scalars_are_those_of_the_log_and_images_show_each_evaluation(whole, tiny) -> None:
    found = events(whole.folder)
    logged = {tag: {} for tag in found.Tags()["scalars"]}
    for line in read_metrics(whole.folder):
        for key, value in line.items():
            if key != "iteration":
                logged[key][line["iteration"]] = value
    for key, values in scalars(found).items():
        assert values == pytest.approx(logged[key], rel=1e-6, nan_ok=True), key
    assert list(logged["bbox/AP"]) == [1, 4]
    assert set(STAGES) <= logged.keys()

    tags = found.Tags()["images"]
    names = sorted(path.stem for path in (tiny / "val").glob("*.png"))
    assert tags == [f"detections/{number:05d}_{name}" for number, name in enumerate(names)]
    colours = np.array(list(class_colours(dict.fromkeys(range(1, 5), "")).values()))
    for tag in tags:
        assert [event.step for event in found.Images(tag)] == [1, 4]
        for event in found.Images(tag):
            sheet = decoded(event).astype(int)
            assert sheet.shape[1] == 2 * SIDE + 8
            truth, detected = (
                (sheet[-SIDE:, columns, None] == colours).all(axis=3)
                for columns in (slice(SIDE), slice(SIDE + 8, None))
            )
            # After four steps no detection has a score of 0.5.
            assert truth.any(axis=2).mean() > 0.01
            assert not detected.any()


@pytest.mark.slow
def test_the_drawn_detections_are_those_evaluated(build, tiny, monkeypatch) -> None:
    monkeypatch.setattr(tensorboard, "MIN_SCORE", 0.0)
    monkeypatch.setattr(tensorboard, "IMAGES", 2)
    trainer = build("drawn", "SOLVER.MAX_ITER", 1, "TEST.DETECTIONS_PER_IMAGE", 1)
    trainer.train()
    folder = Path(trainer.cfg.OUTPUT_DIR)
    found = events(folder)
    tags = found.Tags()["images"]
    assert len(tags) == 2
    detections = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    images = json.loads((tiny / "annotations" / "val.json").read_text())["images"]
    colours = class_colours(dict.fromkeys(range(1, 5), ""))
    # The first and the last of the set, of 128 pixels each.
    for image, tag in zip((images[0], images[-1]), tags, strict=True):
        [detection] = [item for item in detections if item["image_id"] == image["id"]]
        x, y, _, height = detection["bbox"]
        panel = decoded(found.Images(tag)[0])[-SIDE:, SIDE + 8 :]
        edge = panel[min(round(y + height / 2), SIDE - 1), max(int(x) - 1, 0) : int(x) + 3]
        assert colours[detection["category_id"]] in set(map(tuple, edge.tolist()))


@pytest.mark.slow
def test_a_training_is_the_same_without_the_hooks_and_when_resumed(build, whole) -> None:
    frozen = (*EVALUATED, "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", 1, "MODEL.SE.INIT", "default")
    bare = build("bare", *frozen, kind=Bare)
    bare.train()
    stop_after(build("stopped", *frozen), 1)
    rest = build("stopped", *frozen, resume=True)
    rest.train()
    for trainer in (bare, rest):
        for key, tensor in trainer.checkpointer.model.state_dict().items():
            assert torch.equal(tensor, whole.model.state_dict()[key]), key
    one, other = (events(Path(folder)) for folder in (whole.folder, rest.cfg.OUTPUT_DIR))
    for key in (*STAGES, "bbox/AP"):
        assert scalars(one)[key] == scalars(other)[key]
    assert one.Tags()["images"] == other.Tags()["images"]
    for tag in one.Tags()["images"]:
        shown = [{event.step: event.encoded_image_string for event in run.Images(tag)} for run in (one, other)]
        assert shown[0] == shown[1]


@pytest.mark.slow
def test_a_training_continues_if_nothing_can_be_drawn(build, caplog) -> None:
    trainer = build("undrawn", "SOLVER.MAX_ITER", 1)
    drawing = next(hook for hook in trainer._hooks if isinstance(hook, DetectionImages))
    drawing.folder /= "elsewhere"
    trainer.train()
    tags = events(Path(trainer.cfg.OUTPUT_DIR)).Tags()
    assert tags["images"] == []
    assert "bbox/AP" in tags["scalars"]
    assert "No images of iteration 1 are logged: " in caplog.text


def test_a_plain_backbone_has_no_gates() -> None:
    model = create_backbone("resnet18", norm="GN")
    hook = GateMeans(model)
    with EventStorage(19) as storage:
        hook.trainer = SimpleNamespace(max_iter=100, iter=19, storage=storage)
        hook.before_step()
        assert not any(module._forward_hooks for module in model.modules())
        model(torch.zeros(1, 3, 64, 64))
        hook.after_step()
        assert not storage.latest()
