import json
from functools import partial

import pytest


@pytest.fixture
def run_tool(run_script):
    return partial(run_script, "compare.py")


def test_the_tool_prints_and_writes_the_comparison(run_tool, runs, tmp_path, capsys) -> None:
    arguments = ["--baseline", runs[0], "--candidate", runs[1], "--pictures", 2, "--bootstrap", 100]
    run_tool(*arguments, "--output", tmp_path / "report")
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert content["verdict"] in shown
    assert f"{content['candidate']['AP']:.2f}" in shown
    written = sorted(path for path in (tmp_path / "report").rglob("*.*"))
    assert len(written) == 4
    assert all(str(path) in shown for path in written)
    # Nothing but the table and the paths; pycocotools' own messages are not shown.
    assert "Accumulating" not in shown
    assert "index created" not in shown

    with pytest.raises(SystemExit) as caught:
        run_tool(*arguments, "--output", tmp_path / "report")
    assert caught.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    run_tool(*arguments, "--output", tmp_path / "report", "--overwrite")


def test_a_folder_that_is_no_run_is_refused(run_tool, runs, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        run_tool("--baseline", tmp_path, "--candidate", runs[1])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no inference/results.json")


def test_help_ends_with_an_example(run_tool, capsys) -> None:
    with pytest.raises(SystemExit):
        run_tool("--help")
    assert capsys.readouterr().out.rstrip().splitlines()[-1].lstrip().startswith("$ tools/compare.py --baseline")
