from pathlib import Path

import pytest
import yaml

from tests.helpers import raises

from ..definition import read_study

CONFIGS = Path(__file__).parents[3] / "configs" / "Study"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("Study-*.yaml")), ids=lambda path: path.stem)
def test_our_studies_have_both_negative_controls(path) -> None:
    study = read_study(path)
    assert list(study.variants)[:4] == ["plain", "se", "se-on-plain", "se-on-plain-open"]
    assert [variant.backbone for variant in study.variants.values()][:4] == ["plain", "se", "plain", "plain"]
    assert study.baseline.name == "plain"
    assert len(study.seeds) >= 3


@pytest.fixture
def content() -> dict:
    return yaml.safe_load((CONFIGS / "Study-cpu.yaml").read_text())


def write(folder: Path, content: dict) -> Path:
    for path in CONFIGS.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text().replace("_BASE_: ../", f"_BASE_: {CONFIGS.parent}/"))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_digest_covers_all_files_of_the_study(content, tmp_path) -> None:
    path = write(tmp_path, content | {"VARIANTS": {"plain": content["VARIANTS"]["plain"]}})
    first = read_study(path).digest
    recipe = tmp_path / content["RECIPE"]
    recipe.write_text(f"# a comment changes nothing\n{recipe.read_text()}")
    assert read_study(path).digest == first
    recipe.write_text(recipe.read_text().replace("EPOCHS: 5.0", "EPOCHS: 6.0"))
    second = read_study(path).digest
    base = tmp_path / "Base-Study-cpu.yaml"
    base.write_text(base.read_text().replace("MAX_ITER: 360", "MAX_ITER: 361"))
    assert len({first, second, read_study(path).digest}) == 3


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"SEED": 1}, "study.keys", "SEEDS"),
        ({"SEEDS": []}, "study.bad_value", "SEEDS"),
        ({"SEEDS": [1, 1]}, "study.bad_value", "SEEDS: [1, 1]"),
        ({"SEEDS": [1.5]}, "study.bad_value", "SEEDS: [1.5]"),
        ({"BASE_LR": [-0.1]}, "study.bad_value", "BASE_LR: [-0.1]"),
        ({"TUNING_ITERS": "many"}, "study.bad_value", "TUNING_ITERS: 'many'"),
        ({"NAME": "../out"}, "study.bad_name", "NAME: '../out'"),
        ({"VARIANTS": {}}, "study.bad_variant", "at least one detector"),
        ({"VARIANTS": {"a/b": {"CONFIG": "faster_rcnn_R_18_FPN.yaml"}}}, "study.bad_name", "a/b"),
        ({"VARIANTS": {"a": {"CONFIG": "faster_rcnn_R_18_FPN.yaml", "BACKBONE": "b"}}}, "study.bad_variant", "b"),
        ({"VARIANTS": {"a": {"FILE": "faster_rcnn_R_18_FPN.yaml"}}}, "study.bad_variant", "CONFIG"),
        ({"RECIPE": "none.yaml"}, "config.not_found", "none.yaml"),
        ({"VARIANTS": {"a": {"CONFIG": "none.yaml"}}}, "config.not_found", "none.yaml"),
    ],
)
def test_invalid_definitions_are_reported(content, tmp_path, change, code, named) -> None:
    with raises(code, named):
        read_study(write(tmp_path, content | change))
