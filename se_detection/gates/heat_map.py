"""The effect of the gates on one image: channels raised and lowered, changes in the features, and detections."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.structures import Instances
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from ..data.coco_format import Entry
from ..errors import UserError
from ..runs.evaluation_data import coco_results, load_image
from ..visualization.drawing import class_colours, draw_boxes, side_by_side
from .excitations import Excitations
from .gate_plots import DPI, shown_blocks
from .recorder import Array, Gates, constant_gates, recorded_gates, se_gates

MIN_SCORE = 0.5
# Blue: lower, white: unchanged, red: higher; safe for colour-blind readers.
COLOUR_MAP = "RdBu_r"
# Share of the values that may lie outside the colour scale.
OUTSIDE = 0.02
# Largest aspect ratio of an image: the panels have its shape, but text of a fixed size.
LONGEST = 20


@dataclass(frozen=True)
class Effect:
    """The effect of the gates on one image, compared with gates held at their mean over the data.

    Args:
        lift: by block, gate minus mean: (channels,).
        energy: by block of the backbone, log2 of the energy of the gated features over that with the mean gate:
            (height, width) of the feature map.
        covered: the part of the feature map that covers the image, as height and width from 0 to 1; the rest is
            padding.
        detections: with the unchanged gates, and with all gates held at their mean; in COCO's results format.
    """

    lift: dict[str, Array]
    energy: dict[str, Array]
    covered: tuple[float, float]
    detections: tuple[list[Entry], list[Entry]]


@contextmanager
def _recorded_energy(gates: Gates, means: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Within the context, records how each gate changes the energy of the features that it multiplies."""
    energy: dict[str, Array] = {}
    maps: dict[str, Tensor] = {}

    def keep(name: str, squeeze: nn.Module, inputs: tuple[Tensor]) -> None:
        maps[name] = inputs[0].detach().double()

    def compare(name: str, activation: nn.Module, inputs: Any, output: Tensor) -> None:
        features = maps.pop(name)
        mean = torch.from_numpy(means[name]).to(features).reshape(1, -1, 1, 1)
        gated, held = (((gate * features) ** 2).sum(dim=1)[0] for gate in (output.double(), mean))
        # Where all features are 0, nothing changes.
        smallest = torch.finfo(torch.float32).tiny
        energy[name] = ((gated + smallest) / (held + smallest)).log2().cpu().numpy()

    with ExitStack() as hooks:
        for name, gate in gates.items():
            hooks.callback(gate.squeeze.register_forward_pre_hook(partial(keep, name)).remove)
            hooks.callback(gate.activation.register_forward_hook(partial(compare, name)).remove)
        yield energy


def measure_effect(analysis: Excitations, photo: Path | Entry) -> Effect:
    """Runs the detector on an image, with its gates and with constant gates.

    Args:
        analysis: the detector and its mean gates.
        photo: a file, or an input of a detectron2 model: a dictionary with the resized image.

    Raises:
        UserError: the file can't be read.
    """
    run = analysis.run
    batch = [load_image(run.cfg, photo) if isinstance(photo, Path) else photo]
    means = {name: block.mean[-1] for name, block in analysis.statistics.items()}
    detector: Any = run.model
    with torch.inference_mode():
        with recorded_gates(analysis.gates) as take, _recorded_energy(se_gates(detector.backbone), means) as energy:
            with_gates = run.model(batch)[0]["instances"]
        with constant_gates(analysis.gates, means):
            without = run.model(batch)[0]["instances"]
    height, width = batch[0]["image"].shape[-2:]
    step = max(detector.backbone.size_divisibility, 1)
    return Effect(
        lift={name: values.mean - means[name] for name, values in take().items()},
        energy=energy,
        covered=(height / (-(-height // step) * step), width / (-(-width // step) * step)),
        detections=(_confident(with_gates, analysis), _confident(without, analysis)),
    )


def _confident(instances: Instances, analysis: Excitations) -> list[Entry]:
    return [entry for entry in coco_results({"image_id": 0}, instances, analysis.data) if entry["score"] >= MIN_SCORE]


def draw_effect(analysis: Excitations, photo: Path) -> list[Path]:
    """Draws channels, energy and detections of an image into `pictures/`, and returns the paths.

    The energy is that of the backbone; it is not drawn if only the heads of a C4 detector have SE.

    Raises:
        UserError: the image can't be read, its aspect ratio is too large, or one of the files exists.
    """
    folder = analysis.folder / "pictures"
    channels, energy, boxes = (folder / f"{photo.stem}_{what}.png" for what in ("channels", "energy", "detections"))
    for path in (channels, energy, boxes):
        if path.exists():
            raise UserError("output.exists", f"{path} already exists; remove it, or rename the image")
    effect = measure_effect(analysis, photo)
    image = Image.fromarray(detection_utils.read_image(str(photo), "RGB"))
    with rc_context({"text.parse_math": False}):
        figures = {channels: channel_strips(effect.lift, photo.name)}
    if effect.energy:
        figures[energy] = energy_maps(effect, image)
    names = dict(zip(analysis.data.category_ids, analysis.data.classes, strict=True))
    panels = [draw_boxes(image, entries, names, class_colours(names)) for entries in effect.detections]
    counts = [len(entries) for entries in effect.detections]
    titles = [f"unchanged gates: {counts[0]}", f"gates held at their mean: {counts[1]}"]
    folder.mkdir(parents=True, exist_ok=True)
    for path, figure in figures.items():
        figure.savefig(path, dpi=DPI, bbox_inches="tight")
    side_by_side(panels, titles).save(boxes)
    return [*figures, boxes]


def channel_strips(lift: dict[str, Array], title: str) -> Figure:
    """A strip for each block: the difference of each channel's gate from its mean."""
    figure = Figure(figsize=(10, 1.2 + 0.34 * len(lift)), layout="constrained")
    panels = figure.subplots(len(lift), 1, squeeze=False)[:, 0]
    limit = _limit(list(lift.values()))
    for axes, (name, values) in zip(panels, lift.items(), strict=True):
        strip = axes.imshow(values[None, :], aspect="auto", cmap=COLOUR_MAP, vmin=-limit, vmax=limit)
        axes.set_xticks([])
        axes.set_yticks([0], [f"{name} ({len(values)})"], fontsize=9)
        axes.yaxis.set_label_position("right")
        changed = float(np.sqrt((values**2).mean()))
        axes.set_ylabel(f"±{changed:.3f}", rotation=0, ha="left", va="center", fontsize=9)
    panels[0].set_title(f"{title}: channels raised (red) and lowered (blue) by the gates", fontsize=11, loc="left")
    panels[-1].set_xlabel("channels; left: number of channels, right: root mean square", fontsize=9)
    figure.colorbar(strip, ax=panels, label="gate − mean over images", shrink=0.9)
    return figure


def energy_maps(effect: Effect, image: Image.Image) -> Figure:
    """The image, and maps of changed features over it, for the last block of each stage and all of the last stage.

    Raises:
        UserError: the aspect ratio of the image is too large.
    """
    names = shown_blocks(list(effect.energy))
    width, height = image.size
    if max(width, height) > LONGEST * min(width, height):
        raise UserError(
            "gates.long_image",
            f"one side of the image is more than {LONGEST} times the other, too long for a map of the gates; crop it",
        )
    columns = min(len(names) + 1, 3 if width >= height else 4)
    rows = -(-(len(names) + 1) // columns)
    # The compressed layout keeps panels of a fixed aspect ratio close together.
    size = 3.6 * columns + 1, 3.6 * rows * height / width + 0.4 * rows
    figure = Figure(figsize=size, layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    limit = _limit([effect.energy[name] for name in names])
    for axes in panels:
        axes.axis("off")
    panels[0].imshow(image)
    panels[0].set_title("the image", fontsize=10)
    grey = image.convert("L")
    for axes, name in zip(panels[1:], names, strict=False):
        energy = effect.energy[name]
        axes.imshow(grey, cmap="gray")
        # The map covers the padded image.
        extent = (0, width / effect.covered[1], height / effect.covered[0], 0)
        shown = axes.imshow(
            energy, cmap=COLOUR_MAP, vmin=-limit, vmax=limit, alpha=0.5, extent=extent, interpolation="bilinear"
        )
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        typical = 100 * (2 ** float(np.abs(energy).mean()) - 1)
        axes.set_title(f"{name}, {energy.shape[0]}×{energy.shape[1]}: ±{typical:.2g} %", fontsize=10)
    figure.colorbar(shown, ax=panels, label="log₂ (energy with the gate / with its mean)", shrink=0.8)
    return figure


def _limit(values: list[Array]) -> float:
    """The limit of a colour scale that is symmetric around zero."""
    joined = np.abs(np.concatenate([item.ravel() for item in values]))
    return float(np.quantile(joined, 1 - OUTSIDE)) or 1.0
