"""The command line: parsed before torch is imported, with the flags of detectron2's own tools."""

import runpy
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from se_detection import model_zoo
from se_detection.checkpoint.convert import SOURCES
from se_detection.export.exporter import PRECISIONS
from se_detection.export.formats import SUFFIXES
from se_detection_cli import convert_command, export_command, pretrain_command, train_command
from se_detection_cli.main import COMMANDS, command_parser, main

TOOLS = Path(__file__).parents[2] / "tools"
SCRIPTS = {
    "train_net.py": "train",
    "compare.py": "compare",
    "predict.py": "predict",
    "convert_weights.py": "convert",
    "export.py": "export",
    "pretrain.py": "pretrain",
}


def arguments(parser: ArgumentParser) -> dict[str, tuple[object, ...]]:
    """Each argument's flags, default, type and number of values, by the name of its attribute."""
    return {
        action.dest: (tuple(action.option_strings), action.default, action.type, action.nargs)
        for action in parser._actions
    }


@pytest.mark.parametrize("command", [train_command, pretrain_command])
def test_flags_and_defaults_are_detectron2s(command) -> None:
    theirs = arguments(default_argument_parser())
    ours = arguments(command_parser(command))
    assert {name: ours[name] for name in theirs} == theirs


def test_choices_are_those_of_the_package() -> None:
    assert set(convert_command.SOURCES) == set(SOURCES)
    assert export_command.FORMATS == tuple(SUFFIXES)
    assert export_command.PRECISIONS == PRECISIONS


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_the_command(script, monkeypatch) -> None:
    parsed = {}
    script_main = runpy.run_path(str(TOOLS / script), run_name="tool")["main"]
    monkeypatch.setitem(script_main.__globals__, "parse_and_run", lambda parser: parsed.update(arguments(parser)))
    script_main()
    assert parsed == arguments(command_parser(COMMANDS[SCRIPTS[script]]))


@pytest.mark.parametrize(
    "words", [["--help"], ["trian"], ["train", "--config-fiel", "x"], ["export", "--format", "caffe2"]]
)
def test_help_and_typos_do_not_import_torch(words) -> None:
    code = (
        "import sys\nfrom se_detection_cli.main import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, 'se_detection' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if words == ["--help"] else 2)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_its_help_with_an_example(name, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["se-det", name, "--help"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    examples = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("$ ")]
    assert any(line.split()[1:3] == ["se-det", name] for line in examples)


def test_the_zoo_lists_names(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["se-det", "zoo", "se_r_50", "FPN_1x"])
    main()
    shown = capsys.readouterr().out.split()
    assert shown == [name for name in model_zoo.names() if "SE_R_50" in name and "FPN_1x" in name]
    assert "COCO-Detection/faster_rcnn_SE_R_50_FPN_1x" in shown


def test_a_users_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["se-det", "predict", "--run", "nowhere", "image.jpg"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "nowhere" in error


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "se_detection", "zoo", "Toy/"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [name for name in model_zoo.names() if name.startswith("Toy/")]


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m se_detection_cli zoo | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
