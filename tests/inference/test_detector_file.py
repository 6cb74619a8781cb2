"""A detector in one file: the same detections, and one-line errors for damaged or hostile files."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from se_detection import model_zoo
from se_detection.inference.detector_file import KEY
from se_detection.inference.predictor import SEPredictor

from ..helpers import raises
from .conftest import CATEGORIES
from .small_runs import IMAGES, assert_same


@pytest.fixture(scope="module")
def file(predictor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "detector.pth"
    predictor.save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("fuse", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_file_alone_gives_the_same_detections(file, predictor, tmp_path, fuse) -> None:
    moved = tmp_path / "moved.pth"
    moved.write_bytes(file.read_bytes())
    read = SEPredictor.from_file(str(moved), fuse=fuse)
    assert (read.categories, read.weights, read.fused, read.cfg) == (CATEGORIES, moved, fuse, predictor.cfg)
    assert_same(read(IMAGES[1]), predictor(IMAGES[1]), atol=1e-2 if fuse else 0)
    # It is also a weights file, with the assumptions of the weights.
    content = torch.load(file, weights_only=True)
    assert content["assumptions"]["pixel_mean"] == [60.0, 110.0, 160.0]
    model = build_model(predictor.cfg)
    assert not any(model.load_state_dict(content["model"]))


def test_save_rejects_existing_files_and_fused_detectors(file, predictor, tmp_path, monkeypatch) -> None:
    before = file.read_bytes()
    with raises("output.exists", "detector.pth"):
        predictor.save(file)
    assert file.read_bytes() == before
    with raises("output.no_folder", "nowhere"):
        predictor.save(tmp_path / "nowhere" / "a.pth")
    monkeypatch.setattr(predictor, "fused", True)
    with raises("predict.fused", "fused.pth"):
        predictor.save(tmp_path / "fused.pth")
    assert list(tmp_path.iterdir()) == []


def part(**changes: object) -> Callable[[dict], None]:
    return lambda content: content[KEY].update(changes)


def config(*overrides: str) -> Callable[[dict], None]:
    """Changes the config, so that the weights don't fit or the detector can't be built."""

    def change(content: dict) -> None:
        cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
        cfg.merge_from_other_cfg(cfg.load_cfg(content[KEY]["config"]))
        cfg.merge_from_list(list(overrides))
        content[KEY]["config"] = cfg.dump()

    return change


def add(text: str) -> Callable[[dict], None]:
    return lambda content: content[KEY].update(config=content[KEY]["config"] + text)


CHANGES = {
    "weights alone": (lambda content: content.pop(KEY), "weights.only_weights", "from_run"),
    "another thing": (lambda content: content.update({KEY: 3}), "weights.broken", "no config and classes"),
    "no classes": (lambda content: content[KEY].pop("categories"), "weights.broken", "no config and classes"),
    "class ids": (part(categories=[[math.inf, "a"]]), "weights.broken", "no config and classes"),
    "other number": (part(categories=[[1, "a"], [1, "b"]]), "weights.broken", "it has 1 class, but its config has 4"),
    "no yaml": (part(config="a: [1"), "config.not_yaml", "its config can't be used: "),
    "surrogates": (part(config="\ud800"), "config.bad_value", "its config can't be used: "),
    "empty": (part(config=""), "config.no_keys", "its config can't be used: "),
    "python": (add("SEED: !!python/object/apply:os.getcwd []\n"), "config.runs_code", "its config can't be used: "),
    "a base": (add("_BASE_: /etc/passwd\n"), "config.bad_base", "_BASE_ refers to another file"),
    "huge": (config("MODEL.ROI_BOX_HEAD.FC_DIM", "2000000"), "config.too_large", "its config can't be used: "),
    "other heads": (config("MODEL.ROI_BOX_HEAD.FC_DIM", "48"), "weights.wrong_shape", "roi_heads"),
    "other mean": (config("MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"), "weights.contradicts_config", "PIXEL_MEAN"),
    "other weights": (lambda content: content["model"].popitem(), "weights.partial_heads", "roi_heads"),
    "not finite": (lambda content: next(iter(content["model"].values())).fill_(torch.nan), "weights.not_finite", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_other_files_are_rejected(file, tmp_path, change) -> None:
    act, code, named = CHANGES[change]
    content = torch.load(file, weights_only=True)
    act(content)
    torch.save(content, tmp_path / "changed.pth")
    with raises(code, named):
        SEPredictor.from_file(tmp_path / "changed.pth")


def test_damaged_files_are_rejected(file, trained, tmp_path) -> None:
    data = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    middle = largest.header_offset + largest.file_size // 2
    # The lowest bit of a number, which stays finite.
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path = tmp_path / "changed.pth"
    for content, code, named in [
        (changed, "weights.broken", "wrong checksum"),
        (data[: len(data) // 2], "weights.broken", path),
        ((trained / "config.yaml").read_bytes(), "weights.not_weights", path),
    ]:
        path.write_bytes(content)
        with raises(code, named):
            SEPredictor.from_file(path)


def test_code_in_a_file_is_not_run(tmp_path) -> None:
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was run",))

    torch.save({"model": {}, KEY: Runs()}, tmp_path / "hostile.pth")
    with raises("weights.runs_code", "hostile.pth"):
        SEPredictor.from_file(tmp_path / "hostile.pth")
    assert not (tmp_path / "was run").exists()
