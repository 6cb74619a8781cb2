"""A detector in one file: the same detections, and one-line errors for damaged or hostile files."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from se_detection import UserError, model_zoo
from se_detection.inference.detector_file import KEY
from se_detection.inference.predictor import SEPredictor

from .small_runs import CLASSES, IMAGES, assert_same, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("exported") / "run", "MODEL.SE.IGNORE_PADDING", "True")


@pytest.fixture(scope="module")
def predictor(run) -> SEPredictor:
    return SEPredictor.from_run(run)


@pytest.fixture(scope="module")
def file(run, predictor) -> Path:
    path = run.parent / "detector.pth"
    predictor.save(path)
    return path


@pytest.fixture(scope="module")
def expected(predictor) -> list[Instances]:
    return predictor(IMAGES)


def test_a_file_alone_gives_the_same_detections(file, predictor, expected, tmp_path) -> None:
    moved = tmp_path / "moved.pth"
    moved.write_bytes(file.read_bytes())
    for read in (SEPredictor.from_file(moved), SEPredictor.from_file(str(moved), fuse=True)):
        assert read.classes == tuple(CLASSES)
        assert read.categories == predictor.categories
        assert read.weights == moved
        for found, other in zip(read(IMAGES), expected, strict=True):
            assert_same(found, other, atol=1e-2 if read.fused else 0)
    assert SEPredictor.from_file(moved).cfg == predictor.cfg
    # It is also a weights file, with the assumptions of the weights.
    content = torch.load(file, weights_only=True)
    assert content["assumptions"]["pixel_mean"] == [60.0, 110.0, 160.0]
    model = build_model(predictor.cfg)
    assert not any(model.load_state_dict(content["model"]))


def test_category_ids_are_kept(predictor, tmp_path) -> None:
    other = SEPredictor.from_run(predictor.weights.parent)
    other.categories = dict(zip([3, 7, 9, 20], CLASSES, strict=True))
    other.save(tmp_path / "other.pth")
    assert SEPredictor.from_file(tmp_path / "other.pth").categories == {
        3: "circle",
        7: "square",
        9: "triangle",
        20: "cross",
    }


def test_save_rejects_existing_files_and_fused_detectors(file, run, predictor, tmp_path) -> None:
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"detector\.pth already exists; choose another name, or remove it"):
        predictor.save(file)
    assert file.read_bytes() == before
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        predictor.save(tmp_path / "nowhere" / "a.pth")
    with pytest.raises(UserError, match=r"a fused detector can't be saved"):
        SEPredictor.from_run(run, fuse=True).save(tmp_path / "fused.pth")
    assert list(tmp_path.iterdir()) == []


def part(**changes: object) -> Callable[[dict], None]:
    return lambda content: content[KEY].update(changes)


def config(*overrides: str) -> Callable[[dict], None]:
    """Changes the config, so that the weights don't fit or the detector can't be built."""

    def change(content: dict) -> None:
        cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
        lines = content[KEY]["config"]
        cfg.merge_from_other_cfg(cfg.load_cfg(lines))
        cfg.merge_from_list(list(overrides))
        content[KEY]["config"] = cfg.dump()

    return change


def add(text: str) -> Callable[[dict], None]:
    return lambda content: content[KEY].update(config=content[KEY]["config"] + text)


CHANGES = {
    "weights alone": (lambda content: content.pop(KEY), "has only weights; give a file of SEPredictor.save"),
    "another thing": (lambda content: content.update({KEY: 3}), "is damaged: it has no config and classes"),
    "no classes": (lambda content: content[KEY].pop("categories"), "is damaged: it has no config and classes"),
    "more": (part(more=1), "is damaged: it has no config and classes"),
    "class names": (
        part(categories=[[1, "a"], [2, 3]]),
        "is damaged: its classes are not a list of names",
    ),
    "class ids": (
        part(categories=[[1, "a"], [1, "b"]]),
        "is damaged: its classes are not a list of names",
    ),
    "other number": (part(categories=[[1, "a"]]), "is damaged: it has 1 classes, but its config has 4"),
    "config of bytes": (part(config=b"a: 1"), "is damaged: its config is of type bytes"),
    "no yaml": (part(config="a: [1"), r"its config can't be used: .*config\.yaml is not valid YAML"),
    "surrogates": (part(config="\ud800"), "its config can't be used"),
    "empty": (part(config=""), r"its config can't be used: .*is not a config"),
    "a list": (part(config="[1, 2]"), "its config can't be used"),
    "python": (add("SEED: !!python/object/apply:os.getcwd []\n"), "it makes Python objects"),
    "a base": (add("_BASE_: /etc/passwd\n"), "its config can't be used: _BASE_ refers to another file"),
    "unknown key": (add("NEW: 1\n"), "its config can't be used: unknown config key NEW"),
    "no detector": (
        config("MODEL.META_ARCHITECTURE", "Nothing"),
        "its config can't be used: this Nothing can't be built",
    ),
    "huge": (config("MODEL.ROI_BOX_HEAD.FC_DIM", "2000000"), "its config can't be used: .* GiB of memory"),
    "other heads": (config("MODEL.ROI_BOX_HEAD.FC_DIM", "48"), "the weights don't fit the config: roi_heads"),
    "other mean": (config("MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"), "the weights don't fit the config: .*PIXEL_MEAN"),
    "other weights": (lambda content: content["model"].popitem(), "tensors outside the backbone are missing"),
    "not finite": (
        lambda content: next(iter(content["model"].values())).fill_(torch.nan),
        "values that are not finite",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_files_are_rejected_in_one_line(file, tmp_path, change) -> None:
    act, message = CHANGES[change]
    content = torch.load(file, weights_only=True)
    act(content)
    path = tmp_path / "changed.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as raised:
        SEPredictor.from_file(path)
    assert "\n" not in str(raised.value)


def test_damaged_files_are_rejected(file, run, tmp_path) -> None:
    data = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    middle = largest.header_offset + largest.file_size // 2
    # The lowest bit of a number, which stays finite.
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    for name, content, message in [
        ("bit", changed, "is damaged: .* in it has a wrong checksum"),
        ("cut", data[: len(data) // 2], "is truncated, broken or not a weights file"),
        ("end", data[:-30], "is truncated, broken or not a weights file"),
        ("empty", b"", "is empty"),
        ("config", (run / "config.yaml").read_bytes(), "is not a weights file"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            SEPredictor.from_file(path)
    with pytest.raises(UserError, match=r"has only weights; .* from_run"):
        SEPredictor.from_file(run / "model_final.pth")
    with pytest.raises(UserError, match="No such file"):
        SEPredictor.from_file(tmp_path / "nowhere.pth")


def test_code_in_a_file_is_not_run(tmp_path) -> None:
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was run",))

    torch.save({"model": {}, KEY: Runs()}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match=r"holds Python objects .* and was not read"):
        SEPredictor.from_file(tmp_path / "hostile.pth")
    assert not (tmp_path / "was run").exists()
