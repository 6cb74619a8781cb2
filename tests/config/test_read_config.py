import json
from pathlib import Path

import pytest
import torch
from detectron2.data import get_detection_dataset_dicts

from se_detection import UserError, model_zoo
from se_detection.engine.checks import load_config
from se_detection.engine.trainer import Trainer
from se_detection.errors import user_message
from se_detection.runs.run_folder import result_files, training_files
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

SE = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")


def load(tmp_path: Path, *arguments: str, config: str = SE):
    output = [] if "OUTPUT_DIR" in arguments else ["OUTPUT_DIR", str(tmp_path / "run")]
    return load_config(command_parser(train_command).parse_args(["--config-file", config, *arguments, *output]))


def refusal(tmp_path: Path, *arguments: str, config: str = SE) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, *arguments, config=config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def test_missing_unreadable_and_broken_configs(tmp_path) -> None:
    assert f"--config-file {tmp_path}/no.yaml: there is no such file" in refusal(tmp_path, config=f"{tmp_path}/no.yaml")
    assert "there is no such file" in refusal(tmp_path, config=str(tmp_path))
    lazy = model_zoo.get_config_file("lazy/COCO-Detection/fcos_SE_R_50_FPN_1x.py")
    assert f"{lazy} is a lazy config; detectron2's own tools/lazyconfig_train_net.py" in refusal(tmp_path, config=lazy)
    assert "--config-file is missing" in refusal(tmp_path, config="")
    broken = tmp_path / "broken.yaml"
    for text, message in [
        ("MODEL: [1, 2", "is not valid YAML"),
        ("MODEL: !!python/object/apply:os.system ['true']", "no code is run from a config"),
        ("MODEL:\n  SE:\n    REDUCTIO: 8", "unknown config key MODEL.SE.REDUCTIO; did you mean MODEL.SE.REDUCTION?"),
        ("MODEL:\n  SE:\n    REDUCTION: many", "Type mismatch"),
        ("just words", "broken.yaml"),
        ("", "broken.yaml"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml"),
        ("_BASE_: broken.yaml", "broken.yaml"),
        ("DATASETS:\n  TRAIN: [5]", "data set '5' is not registered"),
        ("A: !!python/object/apply:eval ['1']", "no code is run from a config"),
    ]:
        broken.write_text(text)
        assert message in refusal(tmp_path, config=str(broken)), text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL.SE.RATIO", "8"], "unknown config key"),
        (["MODEL.SE.REDUCTION", "many"], "Type mismatch"),
        (["MODEL.SE.REDUCTION"], "MODEL.SE.REDUCTION"),
        (["MODEL.SE.GATE", "swish"], "MODEL.SE.GATE: 'swish' is not one of sigmoid, tanh, relu, hardsigmoid"),
        (["MODEL.RESNETS.DEPTH", "51"], "MODEL.RESNETS.DEPTH: 51 is not one of"),
        (["MODEL.BACKBONE.NAME", "build_resnet"], "MODEL.BACKBONE.NAME: no backbone is named 'build_resnet'"),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"], "SOLVER.AMP.ENABLED"),
        (["--num-gpus", "3", "MODEL.DEVICE", "cpu"], "IMS_PER_BATCH: 8 can't be shared equally by 3 processes"),
        (["MODEL.WEIGHTS", "/no/such.pth"], "MODEL.WEIGHTS: there is no file /no/such.pth (looked for in /no)"),
        (["--eval-only"], "--eval-only: give the detector's MODEL.WEIGHTS"),
        (["--fuse"], "--fuse: it makes a detector faster for evaluation only; add --eval-only"),
        (["--eval-only", "--resume"], "has no checkpoint to evaluate"),
        (
            ["DATASETS.TRAIN", "('se_toy_trian',)"],
            "data set 'se_toy_trian' is not registered (did you mean se_toy",
        ),
        (["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"], "DATASETS.TRAIN"),
        (["DATASETS.TEST", "('voc_2007_test',)"], "data set 'voc_2007_test' has evaluator_type 'pascal_voc', and coco"),
        (
            ["MODEL.ROI_HEADS.NUM_CLASSES", "5"],
            "5 contradicts data set 'se_toy_train', which has 4 classes",
        ),
        (["MODEL.META_ARCHITECTURE", "Foo"], "this Foo can't be built: KeyError"),
        (["SOLVER.LR_SCHEDULER_NAME", "Foo"], "can't be built: ValueError: Unknown LR scheduler: Foo"),
        (
            ["SOLVER.STEPS", "(1,)", "SOLVER.MAX_ITER", "1"],
            "the schedule of SOLVER.LR_SCHEDULER_NAME, MAX_ITER, STEPS and",
        ),
        (["MODEL.RPN.IN_FEATURES", "['p9']"], "can't be built: KeyError: 'p9'"),
        (["MODEL.RESNETS.NORM", "Foo"], "build_se_resnet_fpn_backbone can't be built: KeyError: 'Foo'"),
        (["MODEL.RESNETS.DEPTH.FOO", "3"], "config overrides"),
        (["INPUT.FORMAT", "XYZ"], "INPUT.FORMAT: 'XYZ' is neither RGB nor BGR"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER: 0 is less than 1"),
        (["SOLVER.BACKBONE_FREEZE_ITERS", "-1"], "SOLVER.BACKBONE_FREEZE_ITERS: -1 is negative"),
        (["SOLVER.BACKBONE_MULTIPLIER", "-0.1"], "SOLVER.BACKBONE_MULTIPLIER: -0.1 is negative"),
        (["MODEL.SE.GATE_BIAS", "4", "MODEL.SE.BIAS", "False"], "MODEL.SE.GATE_BIAS: 4.0 needs biases"),
        (["--num-gpus", "0"], "--num-gpus 0 --num-machines 1"),
        (["--num-machines", "2", "--machine-rank", "5"], "--machine-rank 5"),
        (["OUTPUT_DIR", "/dev/null/run"], "OUTPUT_DIR: /dev/null is not a folder"),
    ],
)
def test_bad_values(tmp_path, arguments, message) -> None:
    assert message in refusal(tmp_path, *arguments)


def test_the_path_of_a_missing_coco_set_is_named(tmp_path) -> None:
    message = refusal(tmp_path, "DATASETS.TRAIN", "('coco_2014_minival',)")
    assert "coco/annotations/instances_minival2014.json does not exist" in message
    assert "DETECTRON2_DATASETS" in message
    assert message.endswith("; the files of 2017 have the same images: docs/COCO.md")


def test_cuda_is_refused_without_a_gpu(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "MODEL.DEVICE: cuda is not available" in refusal(tmp_path, "MODEL.DEVICE", "cuda")
    assert load(tmp_path).MODEL.DEVICE == "cpu"


def test_names_and_classes_of_custom_data(tmp_path, tiny_flags) -> None:
    cfg = load(tmp_path, *tiny_flags, config=model_zoo.get_config_file("COCO-Detection/faster_rcnn_SE_R_50_FPN_1x"))
    assert cfg.DATASETS.TRAIN == ("train_train",)
    assert cfg.DATASETS.TEST == ("val_val",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 4


def test_bad_custom_data_is_refused(tmp_path, tiny, tiny_flags) -> None:
    assert "--val-json and --val-images are missing" in refusal(tmp_path, *tiny_flags[:4])
    assert "--train-json was given 1 times and --train-images 0 times" in refusal(tmp_path, *tiny_flags[:2])
    contradiction = refusal(tmp_path, *tiny_flags, "MODEL.ROI_HEADS.NUM_CLASSES", "80")
    assert "MODEL.ROI_HEADS.NUM_CLASSES: 80 contradicts" in contradiction
    assert "which has 4 categories" in contradiction
    flags = [*tiny_flags[:3], str(tiny / "nowhere"), *tiny_flags[4:]]
    assert "nowhere: not a folder" in refusal(tmp_path, *flags)
    other = tmp_path / "other.json"
    content = json.loads((tiny / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = "disc"
    other.write_text(json.dumps(content))
    flags = [*tiny_flags[:5], str(other), *tiny_flags[6:]]
    assert "give all files the same categories" in refusal(tmp_path, *flags)


def test_overwrite_and_resume_delete_nothing_when_refused(tmp_path) -> None:
    run = tmp_path / "old"
    run.mkdir()
    weights = run / "model_final.pth"
    weights.write_text("weights")
    output = ["OUTPUT_DIR", str(run)]
    assert "give one of them" in refusal(tmp_path, "--resume", "--overwrite", *output)
    assert "is in the run that --overwrite replaces" in refusal(
        tmp_path, "--overwrite", *output, "MODEL.WEIGHTS", str(weights)
    )
    assert "all checkpoints are corrupt (model_final.pth)" in refusal(tmp_path, "--resume", *output)
    assert weights.read_text() == "weights"
    assert "OUTPUT_DIR is empty" in refusal(tmp_path, "OUTPUT_DIR", "")
    (run / "last_checkpoint").write_text("model_final.pth")
    record = {"backbone": "build_resnet_fpn_backbone", "depth": 18}
    (run / "run.json").write_text(json.dumps(record))
    assert "has backbone build_resnet_fpn_backbone, and now it is build_se_resnet_fpn_backbone" in refusal(
        tmp_path, "--resume", *output
    )
    record |= {"backbone": "build_se_resnet_fpn_backbone", "classes": ["a", "b", "c", "d"]}
    (run / "run.json").write_text(json.dumps(record))
    assert "has classes ['a', 'b', 'c', 'd'], and now" in refusal(tmp_path, "--resume", *output)
    for text, message in (("[]", "run.json is not the record of a run"), ("{", "run.json is not valid JSON")):
        (run / "run.json").write_text(text)
        assert message in refusal(tmp_path, "--resume", *output)
    # An evaluation does not change the files of a training.
    load(tmp_path, "--eval-only", *output, "MODEL.WEIGHTS", str(weights))
    assert weights.read_text() == "weights"


def test_other_files_are_not_a_run(tmp_path) -> None:
    run = tmp_path / "old"
    (run / "inference").mkdir(parents=True)
    for name in ("mine.pth", "inference/mine.txt", "inference/log.txt", "inference/config.yaml", "run.json"):
        (run / name).write_text("{}")
    assert load(tmp_path, "OUTPUT_DIR", str(run)).OUTPUT_DIR == str(run)
    assert training_files(run) == result_files(run) == []


def test_several_files_have_different_names(tmp_path, tiny, tiny_flags) -> None:
    again = ["--train-json", str(tiny / "annotations" / "train.json"), "--train-images", str(tiny / "train")]
    cfg = load(tmp_path, *tiny_flags, *again)
    assert cfg.DATASETS.TRAIN == ("train_train_1", "train_train_2")
    assert len(get_detection_dataset_dicts(cfg.DATASETS.TRAIN)) == 16


@pytest.mark.parametrize("leftover", ["last_checkpoint", "metrics.json", "inference/results.json", "model_final.pth"])
def test_a_folder_with_a_run_is_refused(tmp_path, leftover) -> None:
    run = tmp_path / "old"
    (run / leftover).parent.mkdir(parents=True)
    (run / leftover).write_text("kept")
    message = refusal(tmp_path, "OUTPUT_DIR", str(run))
    assert f"{run} holds a run already" in message
    assert (run / leftover).read_text() == "kept"
    assert load(tmp_path, "--overwrite", "OUTPUT_DIR", str(run)).OUTPUT_DIR == str(run)


def test_integers_are_accepted_for_floats(tmp_path) -> None:
    """detectron2 refuses `1` as a learning rate."""
    cfg = load(tmp_path, "SOLVER.BASE_LR", "1", "MODEL.SE.GATE_BIAS", "-2", "SOLVER.MAX_ITER", "7")
    assert (cfg.SOLVER.BASE_LR, cfg.MODEL.SE.GATE_BIAS, cfg.SOLVER.MAX_ITER) == (1.0, -2.0, 7)


def test_files_of_a_failed_start_do_not_prevent_a_new_one(tmp_path) -> None:
    run = tmp_path / "old"
    run.mkdir()
    (run / "config.yaml").write_text("")
    (run / "log.txt").write_text("it stopped")
    assert load(tmp_path, "OUTPUT_DIR", str(run)).OUTPUT_DIR == str(run)


def test_each_test_set_has_a_folder(tmp_path) -> None:
    cfg = load(tmp_path, "DATASETS.TEST", "('se_toy_val', 'se_toy_train')")
    cfg.defrost()
    for name in cfg.DATASETS.TEST:
        get_detection_dataset_dicts([name])
        evaluator = Trainer.build_evaluator(cfg, name)
        assert evaluator._output_dir == f"{cfg.OUTPUT_DIR}/inference/{name}"
    cfg.DATASETS.TEST = ("se_toy_val",)
    assert Trainer.build_evaluator(cfg, "se_toy_val")._output_dir == f"{cfg.OUTPUT_DIR}/inference"


def test_a_user_error_in_a_child_process_is_one_line() -> None:
    text = "\n\n-- Process 1 terminated:\nTraceback ...\nse_detection.errors.UserError: image a.jpg can't be used\n"
    assert user_message(RuntimeError(text)) == "image a.jpg can't be used"
    assert user_message(RuntimeError("out of memory")) is None


def test_a_config_is_found_by_its_name(tmp_path) -> None:
    name = "Toy/faster_rcnn_SE_R_18_FPN"
    assert load(tmp_path, config=name) == load(tmp_path, config=SE)
    assert "no config is named 'Toy/faster'; did you mean" in refusal(tmp_path, config="Toy/faster")
