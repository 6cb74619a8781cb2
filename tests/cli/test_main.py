"""The command line: parsed before torch is imported, with the flags of detectron2's own tools."""

import os
import runpy
import subprocess
import sys
from argparse import ArgumentParser

import pytest
from detectron2.engine import default_argument_parser

from se_detection import model_zoo
from se_detection.checkpoint.convert import SOURCES
from se_detection.export.export_runs import PRECISIONS
from se_detection.export.formats import SUFFIXES
from se_detection_cli import convert_command, export_command, pretrain_command, train_command
from se_detection_cli.main import COMMANDS, command_parser, main

from ..helpers import REPOSITORY, environment

SCRIPTS = {
    "train_net.py": "train",
    "compare.py": "compare",
    "predict.py": "predict",
    "convert_weights.py": "convert",
    "export.py": "export",
    "pretrain.py": "pretrain",
}
# Command lines with a config or a path that does not exist; the code of the error, and what it names.
MISTAKES = [
    (["train", "--config-file", "Toy/fasterrcnn_R_18_FPN"], "config.not_found", "'Toy/faster_rcnn_R_18_FPN'"),
    (["train", "--config-file", ""], "config.not_found", "--config-file is missing"),
    (["train", "--config-file", "faster_rcnn_R_50_FPN_1x", "--train-json", "no.json"], "file.unreadable", "'no.json'"),
    (["train", "--config-file", "retinanet_R_50_FPN_3x", "--val-images", "no"], "data.no_folder", "--val-images 'no'"),
    (["train", "--config-file", "R_50_C4", "MODEL.WEIGHTS", "no.pth"], "config.not_found", "R_50_C4"),
    (["train", "--config-file", "rpn_R_50_C4_1x", "MODEL.WEIGHTS", "no.pth"], "weights.not_found", "'no.pth'"),
    (["quickstart", "--train-json", "no.json"], "file.unreadable", "--train-json 'no.json'"),
    (["pretrain", "--config-file", "Toy/faster_rcnn_R_18_FPN", "--data", "no/"], "data.not_found", "no"),
    (["compare", "--baseline", ".", "nowhere", "--candidate", "."], "run.not_evaluated", "--baseline 'nowhere'"),
    (["compare", "--baseline", ".", "--candidate", ".", "--annotations", "no.json"], "file.unreadable", "no.json"),
    (["predict", "--run", "no\nwhere", "image.jpg"], "run.no_config", r"--run 'no\nwhere'"),
    (["predict", "--run", ".", "*.jpg"], "predict.no_files", "'*.jpg'"),
    (["predict", "--run", ".", "--weights", "no.pth", "."], "weights.not_found", "--weights 'no.pth'"),
    (["export", "--run", "nowhere", "--format", "onnx", "--output", "x"], "run.no_config", "'nowhere'"),
    (["analyze", "excitations", "--run", "nowhere"], "run.no_config", "'nowhere'"),
    (["analyze", "complexity", "--config-file", "nothing"], "config.not_found", "'nothing'"),
    (["check-data", "no.json", "."], "file.unreadable", "no.json"),
    (["sample", "no.json", "--count", "1", "--output", "b.json"], "file.unreadable", "no.json"),
    (["minival", "--val2014", "no.json", "--val2017", "no.json"], "file.unreadable", "no.json"),
]


def arguments(parser: ArgumentParser) -> dict[str, tuple[object, ...]]:
    """Each argument's flags, default, type and number of values, by the name of its attribute."""
    return {
        action.dest: (tuple(action.option_strings), action.default, action.type, action.nargs)
        for action in parser._actions
    }


def run_main(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["se-det", *words])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("command", [train_command, pretrain_command])
def test_flags_and_defaults_are_detectron2s(command) -> None:
    theirs = arguments(default_argument_parser())
    ours = arguments(command_parser(command))
    assert {name: ours[name] for name in theirs} == theirs


def test_choices_are_those_of_the_package() -> None:
    assert set(convert_command.SOURCES) == set(SOURCES)
    assert export_command.FORMATS == tuple(SUFFIXES)
    assert set(export_command.PRECISIONS) == set().union(*PRECISIONS.values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_the_command(script, run_script, monkeypatch) -> None:
    parsed = []
    monkeypatch.setattr("se_detection_cli.main.parse_and_run", parsed.append)
    run_script(script)
    assert arguments(parsed[0]) == arguments(command_parser(COMMANDS[SCRIPTS[script]]))


def test_help_typos_and_wrong_paths_do_not_import_torch(tmp_path) -> None:
    """In one process, also the scripts of tools/."""
    scripts = sorted(path.name for path in (REPOSITORY / "tools").glob("*.py"))
    words = [
        ("se-det", "--help"),
        *((script, "--help") for script in scripts),
        ("se-det", "trian"),
        ("train_net.py", "--config-fiel", "x"),
        ("export.py", "--format", "caffe2"),
        *(("se-det", *mistake) for mistake, _, _ in MISTAKES),
    ]
    code = f"""import runpy, sys
from se_detection_cli.main import main
for script, *words in {words}:
    sys.argv = [script, *words]
    try:
        main() if script == "se-det" else runpy.run_path("{REPOSITORY}/tools/" + script, run_name="__main__")
    except SystemExit as end:
        loaded = {{"torch", "detectron2", "se_detection"}} & set(sys.modules)
        print("code", script, *words[:1], end.code, *loaded)"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, cwd=tmp_path)
    found = [line for line in done.stdout.splitlines() if line.startswith("code ")]
    assert found == [f"code {script} {first} {0 if first == '--help' else 2}" for script, first, *_ in words]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_its_help_with_an_example(name, monkeypatch, capsys) -> None:
    assert run_main(monkeypatch, name, "--help") == 0
    examples = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("$ ")]
    assert any(line.split()[1:3] == ["se-det", name] for line in examples)


def test_the_zoo_lists_names(monkeypatch, capsys) -> None:
    assert run_main(monkeypatch, "zoo", "se_r_50", "FPN_1x") == 0
    shown = capsys.readouterr().out.split()
    assert shown == [name for name in model_zoo.names() if "SE_R_50" in name and "FPN_1x" in name]
    assert "COCO-Detection/faster_rcnn_SE_R_50_FPN_1x" in shown


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        *MISTAKES,
        (["predict", "--run", ".", "--gates", "--fuse", "."], "run.contradicting_flags", "--fuse"),
        (["predict", "--run", ".", "--gates", "--weights", "b.pth", "."], "run.contradicting_flags", "--weights"),
        (["analyze", "complexity"], "config.not_found", "--config-file"),
        (["sample", "b.pth", "--count", "1", "--output", "b.json", "--rest", "b.json"], "output.same_twice", "b.json"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(words, code, named, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.pth").touch()
    assert run_main(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error
    assert f"[{code}]" in error


def test_python_m_is_the_same_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["se_detection", "zoo", "Toy/"])
    runpy.run_module("se_detection", run_name="__main__")
    assert capsys.readouterr().out.split() == [name for name in model_zoo.names() if name.startswith("Toy/")]


def test_a_closed_pipe_is_not_an_error(monkeypatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    # Closing the output writes what is left in its buffer, as Python does at exit.
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert run_main(monkeypatch, "zoo") == 0
