import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image

from se_detection.gates.heat_map import channel_strips, draw_effect, energy_maps, measure_effect

from ..helpers import raises
from .conftest import CONSTANT


@pytest.fixture(scope="module")
def photo(toy, module_path):
    """A photo of another shape than the data: 128 wide and 100 high, so it is padded."""
    path = module_path / "street $1.png"
    Image.open(next(iter(sorted((toy / "val").glob("*.png"))))).crop((0, 0, 128, 100)).save(path)
    return path


@pytest.fixture(scope="module")
def effect(explained, photo):
    return measure_effect(explained, photo)


def test_lift_and_energy_match_the_feature_maps(explained, effect, photo) -> None:
    """Computed in numpy from hooked maps and gates; the photo is resized to 64 x 82 and padded to 64 x 96."""
    maps, gates = {}, {}
    hooks = []
    for name, gate in explained.gates.items():
        hooks.append(gate.squeeze.register_forward_pre_hook(lambda _, x, name=name: maps.update({name: x[0]})))
        hooks.append(gate.activation.register_forward_hook(lambda *args, name=name: gates.update({name: args[2]})))
    image = Image.fromarray(read_image(str(photo), "BGR")).resize((82, 64), Image.Resampling.BILINEAR)
    with torch.no_grad():
        explained.run.model([{"image": torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())}])
    for hook in hooks:
        hook.remove()
    assert effect.covered == (1, pytest.approx(82 / 96))
    for name in explained.gates:
        mean = explained.statistics[name].mean[-1]
        gate, features = (item[name][0].double().numpy() for item in (gates, maps))
        np.testing.assert_allclose(effect.lift[name], gate[:, 0, 0] - mean, rtol=1e-6, atol=1e-9)
        gated, held = ((factor * features) ** 2 for factor in (gate, mean[:, None, None]))
        np.testing.assert_allclose(effect.energy[name], np.log2(gated.sum(axis=0) / held.sum(axis=0)), atol=1e-5)
    assert np.abs(effect.energy[CONSTANT]).max() < 1e-6 < np.abs(effect.energy["SE_5_1"]).max()


@pytest.mark.slow
def test_detections_with_and_without(explained, photo, monkeypatch) -> None:
    monkeypatch.setattr("se_detection.gates.heat_map.MIN_SCORE", 0.0)
    with_gates, without = measure_effect(explained, photo).detections
    assert with_gates
    assert with_gates != without
    # If the statistics are those of this photo, its gates are at their mean.
    (image,) = json.loads(explained.data.annotations.read_text())["images"][:1]
    first = explained.data.image_root / image["file_name"]
    effect = measure_effect(explained, first)
    for name, block in explained.statistics.items():
        monkeypatch.setattr(block, "mean", np.vstack([block.mean[:-1], block.mean[-1] + effect.lift[name]]))
    again = measure_effect(explained, first)
    assert max(np.abs(values).max() for values in again.lift.values()) < 1e-12
    assert again.detections[0] == again.detections[1]


@pytest.mark.slow
def test_existing_drawings_are_not_replaced(explained, photo) -> None:
    paths = draw_effect(explained, photo)
    assert [path.name for path in paths] == [f"street $1_{what}.png" for what in ("channels", "energy", "detections")]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 75
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100, path
    with raises("output.exists", "street $1_channels.png"):
        draw_effect(explained, photo)


def test_strips_and_maps_show_the_effect(effect, photo) -> None:
    strips = channel_strips(effect.lift, "a photo").axes[: len(effect.lift)]
    for axes, values in zip(strips, effect.lift.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array()[0], values)
        low, high = axes.images[0].get_clim()
        assert low == -high
    figure = energy_maps(effect, Image.open(photo))
    shown = {axes.get_title().split(",")[0]: axes for axes in figure.axes if "," in axes.get_title()}
    assert list(shown) == ["SE_3_2", "SE_5_1", "SE_5_2"]
    for name, axes in shown.items():
        np.testing.assert_array_equal(axes.images[1].get_array(), effect.energy[name])
        # The map extends beyond the photo by the padding.
        assert axes.images[1].get_extent() == [0, pytest.approx(128 * 96 / 82), 100, 0]
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 128), (100, 0))


@pytest.mark.slow
def test_long_thin_images_are_rejected_before_anything_is_drawn(explained, tmp_path) -> None:
    path = tmp_path / "tall.png"
    Image.new("RGB", (10, 201)).save(path)
    with raises("gates.long_image", 20):
        draw_effect(explained, path)
    assert list((explained.folder / "pictures").glob("tall*")) == []
    # An aspect ratio of 20 is allowed.
    Image.new("RGB", (10, 200)).save(path)
    assert max(energy_maps(measure_effect(explained, path), Image.open(path)).get_size_inches()) < 200


@pytest.mark.slow
def test_the_tool_draws_an_image_of_a_finished_analysis(se_run, explained, photo, run_script, capsys) -> None:
    photo = shutil.copy(photo, photo.with_name("another.png"))
    run_script("analyze.py", "excitations", "--run", se_run, "--output", explained.folder, "--picture", photo)
    shown = capsys.readouterr()
    assert "resumes after the gates of 12 of 12 images and 6 evaluations" in shown.err
    assert str(explained.folder / "pictures" / "another_energy.png") in shown.out
    assert "SE_5_2" in shown.out
