import os
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg

import se_detection  # noqa: F401  adds its nodes to detectron2's config
from se_detection.runs.recipe import differing, is_of_backbone, read_recipe

from ..helpers import raises


@pytest.fixture
def recipe_of(tmp_path):
    """A function that gives the recipe of a run of detectron2's defaults with overrides, as a run saves it."""

    def recipe_of(*overrides, where="config.yaml"):
        cfg = get_cfg()
        cfg.merge_from_list(list(overrides))
        (tmp_path / "inference").mkdir(exist_ok=True)
        (tmp_path / where).write_text(cfg.dump())
        return read_recipe(tmp_path)

    return recipe_of


def test_other_keys_than_the_backbones_belong_to_the_recipe(recipe_of) -> None:
    plain = recipe_of()
    changed = {
        "SOLVER.BASE_LR": 0.5,
        "SOLVER.STEPS": [7],
        "INPUT.MIN_SIZE_TRAIN": [640],
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.5,
        "TEST.DETECTIONS_PER_IMAGE": 10,
    }
    found = differing(plain, recipe_of(*(item for pair in changed.items() for item in pair)))
    assert {key: values[1] for key, values in found.items()} == changed
    assert not any(map(is_of_backbone, found))


def test_keys_that_make_no_difference_are_ignored(recipe_of) -> None:
    changed = ("OUTPUT_DIR", "x", "SEED", 7, "DATALOADER.NUM_WORKERS", 1, "MODEL.DEVICE", "cpu", "VIS_PERIOD", 9)
    assert differing(recipe_of(), recipe_of(*changed, "TEST.EVAL_PERIOD", 9)) == {}


def test_res5_heads_differ_with_the_backbone(recipe_of) -> None:
    plain = recipe_of("MODEL.ROI_HEADS.NAME", "Res5ROIHeads")
    assert differing(plain, recipe_of("MODEL.ROI_HEADS.NAME", "SERes5ROIHeads")) == {}
    assert differing(plain, recipe_of("MODEL.ROI_HEADS.NAME", "StandardROIHeads"))


def test_missing_keys_of_an_older_run_have_their_default(recipe_of, tmp_path) -> None:
    now = recipe_of()
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del content["MODEL"]["SE"], content["SOLVER"]["NUM_DECAYS"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert differing(read_recipe(tmp_path), now) == {}


def test_test_keys_are_those_of_the_latest_evaluation(recipe_of, tmp_path) -> None:
    trained = recipe_of("SOLVER.BASE_LR", 0.5)
    os.utime(tmp_path / "config.yaml", (1000, 1000))
    evaluated = recipe_of("INPUT.MIN_SIZE_TEST", 400, where="inference/config.yaml")
    assert differing(trained, evaluated) == {"INPUT.MIN_SIZE_TEST": [800, 400]}
    # It was trained again later, and evaluated with that config.
    os.utime(tmp_path / "inference" / "config.yaml", (500, 500))
    assert differing(trained, read_recipe(tmp_path)) == {}


def test_a_run_that_was_only_evaluated_has_the_evaluations_config(recipe_of, tmp_path) -> None:
    assert read_recipe(tmp_path) is None
    recipe_of(where="inference/config.yaml")
    assert not (tmp_path / "config.yaml").exists()
    assert read_recipe(tmp_path)["SOLVER.BASE_LR"] == 0.001


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SEED: !!python/object/apply:os.mkdir [made]", "config.runs_code"),
        ("a: [", "config.not_yaml"),
        ("- a", "run.bad_config"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path, monkeypatch, text, code) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    with raises(code, "config.yaml"):
        read_recipe(tmp_path)
    assert os.listdir() == ["config.yaml"]
