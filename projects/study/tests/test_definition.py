from pathlib import Path

import pytest
import yaml

from tests.helpers import raises

from ..definition import read_study
from .conftest import TOY

CONFIGS = Path(__file__).parents[3] / "configs" / "Study"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("Study-*.yaml")), ids=lambda path: path.stem)
def test_our_studies_have_a_plain_baseline_and_several_seeds(path) -> None:
    study = read_study(path)
    assert study.baseline == "plain"
    assert all(len(data.seeds) >= 3 for data in study.data.values())
    assert len(study.base_lr) >= 2


@pytest.fixture
def content(folder) -> dict:
    return folder.content


def write(folder: Path, content: dict) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_digest_covers_the_configs_and_the_data_set_but_not_its_seeds(content, tmp_path) -> None:
    for file in TOY.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text().replace("_BASE_: ../", f"_BASE_: {TOY.parent}/"))
    content["VARIANTS"] = {"plain": "faster_rcnn_R_18_FPN.yaml"}

    def digest() -> str:
        return read_study(write(tmp_path, content)).data["first"].digest

    first = digest()
    base = tmp_path / "Base-Toy.yaml"
    text = base.read_text()
    base.write_text(f"# a comment changes nothing\n{text}")
    content["DATA"]["first"]["SEEDS"] = [1, 2, 3]
    content["DATA"]["second"]["OPTIONS"] = ["SOLVER.MAX_ITER", 3]
    assert digest() == first
    base.write_text(text.replace("MAX_ITER: ", "MAX_ITER: 1"))
    second = digest()
    content["DATA"]["first"]["OPTIONS"] = ["SOLVER.MAX_ITER", 3]
    assert len({first, second, digest()}) == 3


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"SEEDS": [1]}, "study.keys", "VARIANTS"),
        ({"DATA": {"a": {"TRAIN": []}}}, "study.keys", "TUNING_IMAGES"),
        ({"DATA": {}}, "study.bad_value", "DATA"),
        ({"BASE_LR": [-0.1]}, "study.bad_value", "BASE_LR: [-0.1]"),
        ({"NAME": "../out"}, "study.bad_name", "NAME: '../out'"),
        ({"VARIANTS": {}}, "study.bad_value", "VARIANTS"),
        ({"VARIANTS": {"a/b": "x.yaml"}}, "study.bad_name", "a/b"),
        ({"VARIANTS": {"a": "none.yaml"}}, "config.not_found", "none.yaml"),
    ],
)
def test_invalid_definitions_are_reported(content, tmp_path, change, code, named) -> None:
    with raises(code, named):
        read_study(write(tmp_path, content | change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"SEEDS": []}, "first: SEEDS"),
        ({"SEEDS": [1, 1]}, "SEEDS: [1, 1]"),
        ({"SEEDS": [1.5]}, "SEEDS: [1.5]"),
        ({"TUNING_IMAGES": "many"}, "TUNING_IMAGES: ['many']"),
        ({"TRAIN": "train.json"}, "TRAIN"),
    ],
)
def test_invalid_data_sets_are_reported(content, tmp_path, change, named) -> None:
    content["DATA"]["first"] |= change
    with raises("study.bad_value", named):
        read_study(write(tmp_path, content))
