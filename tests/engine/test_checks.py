"""The checks before a run, which write nothing."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

from se_detection import UserError, model_zoo
from se_detection.engine.checks import load_config
from se_detection.engine.train_and_evaluate import launch_run
from se_detection.engine.trainer import Trainer
from se_detection.errors import user_message
from se_detection.runs.lock import RunLock
from se_detection.runs.run_folder import LOCK, result_files, training_files
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

from ..helpers import raises
from .conftest import CONFIG


def load(tmp_path: Path, *words: str, config: str = CONFIG) -> CfgNode:
    output = [] if "OUTPUT_DIR" in words else ["OUTPUT_DIR", str(tmp_path / "run")]
    return load_config(command_parser(train_command).parse_args(["--config-file", config, *words, *output]))


def refusal(tmp_path: Path, *words: str, config: str = CONFIG) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, *words, config=config)
    assert not (tmp_path / "run").exists()
    assert caught.value.code
    return str(caught.value)


def test_a_config_is_found_by_its_name_or_path(tmp_path) -> None:
    assert load(tmp_path) == load(tmp_path, config=model_zoo.get_config_file(CONFIG))
    for config in ("Toy/faster", "", str(tmp_path), f"{tmp_path}/no.yaml"):
        message = refusal(tmp_path, config=config)
        assert f"--config-file {config}".strip() in message
        assert "[config.not_found]" in message


@pytest.mark.parametrize(
    ("words", "named", "code"),
    [
        ("MODEL.BACKBONE.NAME build_resnet", "MODEL.BACKBONE.NAME", "config.unknown_backbone"),
        ("MODEL.META_ARCHITECTURE Foo", "Foo", "config.not_buildable"),
        ("SOLVER.AMP.ENABLED True MODEL.DEVICE cpu", "SOLVER.AMP.ENABLED", "run.no_gpu"),
        ("--num-gpus 3 MODEL.DEVICE cpu", "SOLVER.IMS_PER_BATCH", "config.batch_size"),
        ("--num-gpus 0", "--num-gpus 0 --num-machines 1", "run.bad_processes"),
        ("--num-machines 2 --machine-rank 5", "--machine-rank 5", "run.bad_processes"),
        ("--num-machines 2 --dist-url auto", "--dist-url", "run.no_address"),
        ("--num-machines 2", "--dist-url tcp://127.0.0.1", "run.no_address"),
        ("SOLVER.CHECKPOINT_PERIOD -1", "SOLVER.CHECKPOINT_PERIOD", "config.bad_value"),
        ("MODEL.RESNETS.NORM SyncBN MODEL.DEVICE cpu", "SyncBN", "run.no_gpu"),
        ("MODEL.WEIGHTS /no/such.pth", "/no/such.pth", "weights.not_found"),
        ("MODEL.WEIGHTS http://127.0.0.1:9/a.pth", "http://127.0.0.1:9/a.pth", "weights.no_download"),
        ("MODEL.WEIGHTS timm://vgg16", "timm://vgg16", "weights.unsupported_network"),
        ("--eval-only", "--eval-only", "weights.none"),
        ("--eval-only --resume", "no checkpoint", "weights.none"),
        ("--fuse", "--fuse", "run.contradicting_flags"),
        ("DATASETS.TRAIN ('se_toy_trian',)", "did you mean se_toy", "data.unknown_set"),
        ("DATASETS.TRAIN () DATASETS.TEST ()", "DATASETS.TRAIN", "data.no_sets"),
        ("DATASETS.TRAIN ('coco_2014_minival',)", "instances_minival2014.json does not exist", "data.missing_files"),
        ("DATASETS.TEST ('voc_2007_test',)", "'pascal_voc'", "data.no_evaluator"),
        ("MODEL.ROI_HEADS.NUM_CLASSES 5", "which has 4 classes; set it to 4", "config.contradicts_data"),
        ("SOLVER.EMA_DECAY 1.0", "SOLVER.EMA_DECAY: 1.0", "config.bad_value"),
        ("OUTPUT_DIR /dev/null/run", "/dev/null", "output.is_file"),
    ],
)
def test_bad_command_lines(tmp_path, words, named, code) -> None:
    message = refusal(tmp_path, *words.split(" ") if "()" not in words else words.split())
    assert named in message
    assert f"[{code}]" in message


def test_cuda_is_refused_without_a_gpu(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "MODEL.DEVICE: cuda" in refusal(tmp_path, "MODEL.DEVICE", "cuda")
    assert load(tmp_path).MODEL.DEVICE == "cpu"


def test_names_and_classes_of_custom_data(tmp_path, tiny, tiny_flags) -> None:
    coco = "COCO-Detection/faster_rcnn_SE_R_50_FPN_1x"
    cfg = load(tmp_path, *tiny_flags, "MODEL.WEIGHTS", "", config=coco)
    assert cfg.DATASETS.TRAIN == ("train_train",)
    assert cfg.DATASETS.TEST == ("val_val",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 4
    again = ["--train-json", str(tiny / "annotations" / "train.json"), "--train-images", str(tiny / "train")]
    cfg = load(tmp_path, *tiny_flags, *again)
    assert cfg.DATASETS.TRAIN == ("train_train_1", "train_train_2")
    assert len(get_detection_dataset_dicts(cfg.DATASETS.TRAIN)) == 16


def test_bad_custom_data_is_refused(tmp_path, tiny, tiny_flags) -> None:
    assert "--val-json and --val-images are missing" in refusal(tmp_path, *tiny_flags[:4])
    assert "[data.json_without_images]" in refusal(tmp_path, *tiny_flags[:2])
    contradiction = refusal(tmp_path, *tiny_flags, "MODEL.ROI_HEADS.NUM_CLASSES", "80")
    assert "MODEL.ROI_HEADS.NUM_CLASSES: 80 contradicts" in contradiction
    flags = [*tiny_flags[:3], str(tiny / "nowhere"), *tiny_flags[4:]]
    assert "[data.no_folder]" in refusal(tmp_path, *flags)
    other = tmp_path / "other.json"
    content = json.loads((tiny / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = "disc"
    other.write_text(json.dumps(content))
    flags = [*tiny_flags[:5], str(other), *tiny_flags[6:]]
    assert "[data.other_categories]" in refusal(tmp_path, *flags)


def test_overwrite_and_resume_delete_nothing_when_refused(tmp_path) -> None:
    run = tmp_path / "old"
    run.mkdir()
    weights = run / "model_final.pth"
    weights.write_text("weights")
    output = ["OUTPUT_DIR", str(run)]
    assert "[run.contradicting_flags]" in refusal(tmp_path, "--resume", "--overwrite", *output)
    assert "[output.is_input]" in refusal(tmp_path, "--overwrite", *output, "MODEL.WEIGHTS", str(weights))
    assert "(model_final.pth)" in refusal(tmp_path, "--resume", *output)
    assert weights.read_text() == "weights"
    assert "OUTPUT_DIR is empty" in refusal(tmp_path, "OUTPUT_DIR", "")
    (run / "last_checkpoint").write_text("model_final.pth")
    record = {"backbone": "build_resnet_fpn_backbone", "depth": 18}
    for change, named in (
        ({}, "has backbone build_resnet_fpn_backbone, and now it is build_se_resnet_fpn_backbone"),
        ({"backbone": "build_se_resnet_fpn_backbone", "classes": ["a", "b", "c", "d"]}, "has classes ['a', 'b'"),
    ):
        (run / "run.json").write_text(json.dumps(record | change))
        message = refusal(tmp_path, "--resume", *output)
        assert named in message
        assert "[run.other_config]" in message
    for text, code in (("[]", "run.bad_record"), ("{", "file.not_json")):
        (run / "run.json").write_text(text)
        assert f"[{code}]" in refusal(tmp_path, "--resume", *output)
    # An evaluation does not change the files of a training.
    load(tmp_path, "--eval-only", *output, "MODEL.WEIGHTS", str(weights))
    assert weights.read_text() == "weights"


@pytest.mark.parametrize("leftover", ["last_checkpoint", "run.json", "inference/results.json", "model_final.pth"])
def test_a_folder_with_a_run_is_refused(tmp_path, leftover) -> None:
    run = tmp_path / "old"
    (run / leftover).parent.mkdir(parents=True)
    (run / leftover).write_text("kept")
    assert f"{run} holds a run already" in refusal(tmp_path, "OUTPUT_DIR", str(run))
    assert (run / leftover).read_text() == "kept"
    assert load(tmp_path, "--overwrite", "OUTPUT_DIR", str(run)).OUTPUT_DIR == str(run)


def test_other_files_are_not_a_run(tmp_path) -> None:
    run = tmp_path / "old"
    (run / "inference").mkdir(parents=True)
    names = ("mine.pth", "inference/mine.txt", "inference/log.txt", "inference/config.yaml", "log.txt")
    for name in (*names, "config.yaml", "film.mp4.part"):
        (run / name).write_text("{}")
    assert load(tmp_path, "OUTPUT_DIR", str(run)).OUTPUT_DIR == str(run)
    assert training_files(run) == result_files(run) == []


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--overwrite",), ("--eval-only",)])
def test_a_folder_in_use_is_refused_before_anything_is_written(tmp_path, flags) -> None:
    (tmp_path / "weights.pth").write_text("weights")
    words = ["--config-file", CONFIG, *flags, "MODEL.WEIGHTS", tmp_path / "weights.pth", "OUTPUT_DIR", tmp_path / "run"]
    args = command_parser(train_command).parse_args(list(map(str, words)))
    cfg = load_config(args)
    with closing(RunLock(tmp_path / "run")) as lock:
        lock.acquire()
        with raises("output.in_use", tmp_path / "run"):
            launch_run(cfg, args)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_each_test_set_has_a_folder(tmp_path, tiny, tiny_flags) -> None:
    again = ["--val-json", str(tiny / "annotations" / "train.json"), "--val-images", str(tiny / "train")]
    for flags in ([], again):
        cfg = load(tmp_path, *tiny_flags, *flags)
        for name in cfg.DATASETS.TEST:
            folder = Path(cfg.OUTPUT_DIR, "inference", name if flags else "")
            assert Path(Trainer.build_evaluator(cfg, name)._output_dir) == folder


def test_a_user_error_in_a_child_process_is_one_line() -> None:
    line = "image a.jpg can't be used [data.bad_image]"
    text = f"\n\n-- Process 1 terminated:\nTraceback ...\nse_detection.errors.UserError: {line}\n"
    assert user_message(RuntimeError(text)) == line
    # What torch makes of an error of a loader's worker.
    rebuilt = UserError(f"Caught UserError in DataLoader worker process 0.{text}")
    assert (rebuilt.code, str(rebuilt)) == ("data.bad_image", line)
    assert user_message(RuntimeError("out of memory")) is None
