"""The boxes and maps of the page, against detectron2's predictor and the gate analysis."""

import base64
import json
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from PIL import Image

from se_detection import UserError
from se_detection.data.toy import SHAPES
from se_detection.gates.excitations import explain
from se_detection.gates.heat_map import energy_maps, measure_effect
from se_detection.gates.statistics import load_statistics, save_statistics
from se_detection.visualization.drawing import class_colours
from tests.data.hostile_images import broken, images, noise, saved
from tests.inference.small_runs import CLASSES, KINDS, run_config, write_run

from ..detectors import FORMATS, Detectors
from .conftest import IMAGES

FILES = images()
# Files that differ only in their name are redundant: the page sees no names.
FILES = {name: data for name, data in FILES.items() if name == "plain.png" or data != FILES["plain.png"]}
# Browsers do not show TIFF.
FILES = {name: data for name, data in FILES.items() if not name.endswith(".tif")}


@pytest.fixture(scope="module")
def theirs(plain_run, se_run) -> list[DefaultPredictor]:
    return [DefaultPredictor(run_config(run)) for run in (plain_run, se_run)]


def shown(answer: dict) -> Image.Image:
    kind, _, data = answer["image"].partition(";base64,")
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{image.format.lower()}"
    return image


def check_boxes(run: dict, predictor: DefaultPredictor, bgr: np.ndarray, classes=CLASSES) -> None:
    expected = predictor(bgr)["instances"]
    assert len(run["boxes"]) == len(expected) > 10
    assert [box["class"] for box in run["boxes"]] == [classes[number] for number in expected.pred_classes]
    for name, values in (("score", expected.scores), ("box", expected.pred_boxes.tensor)):
        torch.testing.assert_close(torch.tensor([box[name] for box in run["boxes"]]), values, rtol=0, atol=0)
    scores = [box["score"] for box in run["boxes"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 < run["seconds"] < 60


@pytest.mark.parametrize("name", FILES)
def test_boxes_equal_those_of_detectron2s_predictor(detectors, theirs, tmp_path, name) -> None:
    (tmp_path / "file").write_bytes(FILES[name])
    bgr = read_image(str(tmp_path / "file"), "BGR")
    answer = detectors.detect(FILES[name])
    assert (answer["height"], answer["width"]) == bgr.shape[:2]
    for run, predictor in zip(answer["runs"], theirs, strict=True):
        check_boxes(run, predictor, bgr)
    assert json.loads(json.dumps(answer)) == answer
    image = shown(answer)
    assert image.size == (answer["width"], answer["height"])
    # Only brightness is compared: JPEG halves the resolution of colours.
    greys = (np.asarray(one.convert("L"), float) for one in (image, Image.fromarray(bgr[:, :, ::-1])))
    assert np.abs(np.subtract(*greys)).mean() < 6


def test_a_large_image_is_shown_smaller_with_boxes_in_original_pixels(detectors, theirs) -> None:
    small = noise((30, 20))
    large = small.resize((3000, 2000), Image.Resampling.NEAREST)
    answer = detectors.detect(saved(large, "PNG"))
    assert (answer["width"], answer["height"]) == (3000, 2000)
    check_boxes(answer["runs"][1], theirs[1], np.asarray(large)[:, :, ::-1])
    assert max(box["box"][2] for box in answer["runs"][1]["boxes"]) > 1600
    image = shown(answer)
    assert image.size == (1600, 1067)
    expected = np.asarray(large.resize(image.size, Image.Resampling.BICUBIC), float)
    assert np.abs(np.asarray(image, float) - expected).mean() < 6


def test_a_class_has_the_same_colour_in_all_runs(detectors, plain_run, se_run, theirs, tmp_path) -> None:
    expected = class_colours(dict(enumerate(CLASSES)))
    assert detectors.colours == {name: f"rgb{expected[number]}" for number, name in enumerate(CLASSES)}
    assert len(set(detectors.colours.values())) == len(CLASSES)
    # The same classes in another order, and one more.
    other = tmp_path / "R"
    shutil.copytree(se_run, other, ignore=shutil.ignore_patterns("excitations"))
    classes = ["cross", "star", "circle", "square"]
    (other / "run.json").write_text(json.dumps({"classes": classes}))
    both = Detectors([plain_run, other])
    assert list(both.colours) == [*CLASSES, "star"]
    assert len(set(both.colours.values())) == 5
    # Folders with the same name are shown with their paths.
    assert both.names == [str(plain_run), str(other)]
    runs = both.detect(FILES["plain.png"])["runs"]
    bgr = np.asarray(noise())[:, :, ::-1]
    check_boxes(runs[0], theirs[0], bgr)
    check_boxes(runs[1], theirs[1], bgr, classes)


@pytest.mark.parametrize("kind", ["Mask R-CNN", "Keypoint R-CNN", "RetinaNet", "RGB"])
def test_boxes_of_other_detectors(kind, tmp_path) -> None:
    run = write_run(tmp_path / "run", *KINDS[kind])
    answer = Detectors([run]).detect(FILES["plain.png"])
    check_boxes(answer["runs"][0], DefaultPredictor(run_config(run)), np.asarray(noise())[:, :, ::-1])


def test_other_weights_and_fuse(se_run, detectors, tmp_path) -> None:
    state = torch.load(se_run / "model_final.pth", weights_only=True)
    state["model"]["roi_heads.box_predictor.cls_score.bias"] += torch.tensor([3.0, 0.0, 0.0, 0.0, 0.0])
    torch.save(state, tmp_path / "model_0000009.pth")
    chosen = Detectors([se_run], tmp_path / "model_0000009.pth", fuse=True)
    cfg = run_config(se_run)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_0000009.pth")
    expected = DefaultPredictor(cfg)(np.asarray(noise())[:, :, ::-1])["instances"]
    (run,) = chosen.detect(FILES["plain.png"])["runs"]
    scores = torch.tensor([box["score"] for box in run["boxes"]])
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-4)
    assert run["boxes"][0]["class"] == CLASSES[0]
    newest = detectors.detect(FILES["plain.png"])["runs"][1]["boxes"]
    assert abs(newest[0]["score"] - run["boxes"][0]["score"]) > 0.01
    assert (chosen.has_gates(0), detectors.has_gates(1), detectors.has_gates(0)) == (False, True, False)


@pytest.mark.parametrize("name", ["plain.png", "turned_6.jpg", "palette_transparent.gif"])
def test_the_map_equals_that_of_the_analysis(detectors, se_run, toy, tmp_path, name) -> None:
    means = explain(se_run, split=(toy / "annotations" / "val.json", toy / "val"), ablation=False)
    (tmp_path / "file").write_bytes(FILES[name])
    effect = measure_effect(means, tmp_path / "file")
    image = Image.fromarray(read_image(str(tmp_path / "file"), "RGB"))
    drawn = BytesIO()
    energy_maps(effect, image).savefig(drawn, format="png", bbox_inches="tight")
    answer = detectors.gate_map(1, FILES[name])
    assert answer["images"] == IMAGES
    np.testing.assert_array_equal(np.asarray(shown(answer)), np.asarray(Image.open(drawn)))
    # Another image has another map.
    other = shown(detectors.gate_map(1, FILES["grey.png"]))
    assert other.size != shown(answer).size or np.any(np.asarray(other) != np.asarray(shown(answer)))


def test_the_map_of_a_large_image_is_drawn_on_a_smaller_one(detectors, monkeypatch) -> None:
    drawn, opened = [], []

    def draw(effect, image):
        drawn.append(image.size)
        return energy_maps(effect, image)

    def open_image(*args, formats=None, open_image=Image.open):
        opened.append(formats)
        return open_image(*args, formats=formats)

    monkeypatch.setattr("projects.serve.detectors.energy_maps", draw)
    monkeypatch.setattr(Image, "open", open_image)
    data = saved(noise((30, 20)).resize((3000, 2000)), "PNG")
    opened.clear()
    detectors.gate_map(1, data)
    assert drawn == [(1600, 1067)]
    # The image is decoded once, only by the allowed decoders.
    assert opened == [FORMATS]


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10)])
def test_an_image_that_is_long_and_thin_has_no_map(detectors, size) -> None:
    with pytest.raises(UserError, match=r"^one side is more than 20 times the other, too long .*; crop it$"):
        detectors.gate_map(1, saved(Image.new("RGB", size), "PNG"))


def test_broken_images_and_tiff_are_refused(detectors, capfd) -> None:
    for name, data in {**broken(), "whole.tif": saved(noise(), "TIFF")}.items():
        with pytest.raises(UserError, match=r"^(the image can't|this file is not a readable image)") as caught:
            detectors.detect(data)
        assert "TIFF" not in str(caught.value)
        assert "not a readable image" in str(caught.value) or not name.endswith(".tif"), name
    assert capfd.readouterr() == ("", "")


def other_channels(file: Path) -> None:
    blocks, seen = load_statistics(file)
    next(iter(blocks.values())).mean = np.zeros((len(SHAPES) + 1, 7))
    save_statistics(blocks, SHAPES, seen, file)


def no_images(file: Path) -> None:
    blocks, _ = load_statistics(file)
    for block in blocks.values():
        block.images[:] = 0
    save_statistics(blocks, SHAPES, 0, file)


def one_block(file: Path) -> None:
    blocks, seen = load_statistics(file)
    save_statistics(dict(list(blocks.items())[:1]), SHAPES, seen, file)


def other_weights(file: Path) -> None:
    state = json.loads(file.read_text())
    state["of"]["weights"] = "0" * 64
    file.write_text(json.dumps(state))


MISSING = r"^the map needs the mean gates; run se-det analyze excitations --run 'a x' --no-ablation, then try again$"
OTHER = (
    r"^the mean gates of a x are not those of model_final\.pth; for the newest checkpoint, run "
    r"se-det analyze excitations .* --overwrite$"
)
CORRUPT = r"^the mean gates of a x are corrupt; run se-det analyze excitations .* --overwrite$"
CHANGES = {
    "no means": ("excitations.npz", Path.unlink, MISSING),
    "a folder": ("excitations.npz", lambda file: (file.unlink(), file.mkdir()), MISSING),
    "half of them": ("excitations.npz", lambda file: file.write_bytes(file.read_bytes()[:2000]), CORRUPT),
    "something else": ("excitations.npz", lambda file: file.write_text("means"), CORRUPT),
    "one block": ("excitations.npz", one_block, CORRUPT),
    "other channels": ("excitations.npz", other_channels, CORRUPT),
    "no images": ("excitations.npz", no_images, CORRUPT),
    "other weights": ("state.json", other_weights, OTHER),
    "a list": ("state.json", lambda file: file.write_text("[]"), OTHER),
    "a text": ("state.json", lambda file: file.write_text('{"of": "this"}'), OTHER),
    "no JSON": ("state.json", lambda file: file.write_text("{"), CORRUPT),
    "no state": ("state.json", Path.unlink, CORRUPT),
}


@pytest.mark.parametrize("name", CHANGES)
def test_invalid_mean_gates_are_reported(detectors, se_run, tmp_path, monkeypatch, name) -> None:
    file, change, message = CHANGES[name]
    run = tmp_path / "a x"
    shutil.copytree(se_run / "excitations", run / "excitations")
    monkeypatch.setattr(detectors, "runs", [detectors.runs[0], run])
    change(run / "excitations" / file)
    with pytest.raises(UserError) as caught:
        detectors.gate_map(1, FILES["plain.png"])
    assert re.search(message, str(caught.value)), caught.value
    assert str(caught.value).isprintable()
    # Strangers may read the message.
    assert str(tmp_path) not in str(caught.value)


def test_mean_gates_that_are_computed_later_are_used(detectors, se_run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(detectors, "runs", [detectors.runs[0], tmp_path])
    with pytest.raises(UserError, match=r"the map needs the mean gates; run .*, then try again$"):
        detectors.gate_map(1, FILES["plain.png"])
    shutil.copytree(se_run / "excitations", tmp_path / "excitations")
    assert detectors.gate_map(1, FILES["plain.png"])["images"] == IMAGES


def test_a_run_without_gates_has_no_map(detectors, plain_run) -> None:
    with pytest.raises(UserError, match=r"^R: the detector has no SE gates$"):
        detectors.gate_map(0, FILES["plain.png"])
