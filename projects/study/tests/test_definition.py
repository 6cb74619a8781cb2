from pathlib import Path

import pytest
import yaml

from se_detection import UserError

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
    path = write(tmp_path, content)
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
    ("change", "message"),
    [
        ({"SEED": 1}, "must have exactly the keys"),
        ({"SEEDS": []}, "SEEDS must be a list"),
        ({"SEEDS": [1, 1]}, "without duplicates"),
        ({"TUNING_ITERS": 0}, "TUNING_ITERS: 0"),
        ({"RECIPE": "none.yaml"}, "RECIPE: no such file"),
        ({"VARIANTS": {}}, "at least one detector"),
        ({"VARIANTS": {"a": {"CONFIG": "none.yaml"}}}, "VARIANTS: a: no such file"),
        (
            {"VARIANTS": {"a": {"CONFIG": "faster_rcnn_R_18_FPN.yaml", "BACKBONE": "b"}}},
            "b is not one of VARIANTS",
        ),
        ({"VARIANTS": {"a": {"FILE": "faster_rcnn_R_18_FPN.yaml"}}}, "must have CONFIG"),
    ],
)
def test_invalid_definitions_are_reported(content, tmp_path, change, message) -> None:
    with pytest.raises(UserError, match=message):
        read_study(write(tmp_path, content | change))
