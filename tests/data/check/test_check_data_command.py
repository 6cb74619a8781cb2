"""`se-det check-data` is about the config that will be trained."""

import json

import pytest

from se_detection.data.coco_sets import check_coco
from se_detection_cli.main import COMMANDS, command_parser
from se_detection_cli.quick_checks import QuickError

from ...helpers import raises
from ..exports import write_yolo


def run(*words: object) -> int:
    args = command_parser(COMMANDS["check-data"]).parse_args(list(map(str, words)))
    with pytest.raises(SystemExit) as end:
        args.run_command(args)
    return end.value.code


def test_config_and_overrides(data_set, tmp_path) -> None:
    data_set.write()
    report = tmp_path / "report.json"
    command = (data_set.json_file, data_set.images, "--json", report)
    config = ("--config-file", "Toy/faster_rcnn_R_18_FPN", "--opts", "MODEL.ANCHOR_GENERATOR.SIZES")
    assert run(*command, *config, "[[8],[16],[32],[64],[100]]", "INPUT.MIN_SIZE_TEST", 77) == 0
    anchors = json.loads(report.read_text())["anchors"]
    assert anchors["test_size"] == [77, 1333]
    assert anchors["sides"] == pytest.approx([8, 100], abs=0.5)
    parser = command_parser(COMMANDS["check-data"])
    with raises("config.unknown_key", "INPUT.MIN_SIZE_TESTS"):
        COMMANDS["check-data"].run(parser.parse_args([*map(str, command[:2]), "--opts", "INPUT.MIN_SIZE_TESTS", "77"]))


def test_a_folder_is_checked_against_its_other_part(tmp_path) -> None:
    for part in ("train", "valid"):
        write_yolo(tmp_path / part / "images", tmp_path / part / "labels")
    (tmp_path / "data.yaml").write_text("train: train/images\nval: valid/images\nnames: [car, bicycle]\n")
    fixed, report = tmp_path / "fixed.json", tmp_path / "report.json"
    # The parts have the same images.
    assert run("--train-data", tmp_path, "--fix", fixed, "--json", report) == 1
    found = {finding["key"]: finding["count"] for finding in json.loads(report.read_text())["findings"]}
    assert found["overlap-same-content"] == 3
    assert check_coco(fixed, tmp_path / "train/images") == ["car", "bicycle"]
    for words in ([], ["a.json"], ["a.json", tmp_path, "--val-data", tmp_path]):
        args = command_parser(COMMANDS["check-data"]).parse_args(list(map(str, words)))
        with pytest.raises(QuickError, match="--train-data"):
            COMMANDS["check-data"].check(args)


def test_a_folder_without_parts_becomes_a_json_that_can_be_split(tmp_path, capsys) -> None:
    images = tmp_path / "data" / "images"
    write_yolo(images, tmp_path / "data" / "labels")
    (tmp_path / "data" / "classes.txt").write_text("car\nbicycle\n")
    fixed = tmp_path / "fixed.json"
    assert run("--train-data", tmp_path / "data", "--fix", fixed) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'data'} is not divided into train and val" in out
    assert f"Written: {fixed} (its images are in {images})" in out
    assert check_coco(fixed, images) == ["car", "bicycle"]
