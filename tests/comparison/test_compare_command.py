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
    assert len(written) == 11
    assert all(str(path) in shown for path in written)
    # pycocotools' messages are not shown.
    assert "Accumulating" not in shown
    assert "index created" not in shown

    with pytest.raises(SystemExit) as caught:
        run_tool(*arguments, "--output", tmp_path / "report")
    assert caught.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    run_tool(*arguments, "--output", tmp_path / "report", "--overwrite")


def test_a_folder_that_is_not_a_run_is_refused(run_tool, runs, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        run_tool("--baseline", tmp_path, "--candidate", runs[1])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no inference/results.json")


def test_results_files_and_several_runs_are_compared(run_tool, runs, tmp_path, capsys) -> None:
    files = []
    for name, run in (("a", runs[0]), ("b", runs[1]), ("c", runs[0])):
        found = json.loads((run / "inference" / "coco_instances_results.json").read_text())
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(found if name != "c" else found[1:]))
    arguments = ["--baseline", files[0], files[2], "--candidate", files[1], "--bootstrap", 100]
    with pytest.raises(SystemExit):
        run_tool(*arguments, "--output", tmp_path / "report")
    assert "--annotations" in capsys.readouterr().err
    run_tool(*arguments, "--output", tmp_path / "report", "--annotations", tmp_path / "val.json")
    content = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert len(content["runs"]["baseline"]["AP"]["values"]) == 2
    assert content["names"]["candidate"] == [str(files[1])]


def test_force_compares_different_recipes(run_tool, runs, tmp_path, capsys) -> None:
    config = runs[1] / "config.yaml"
    config.write_text(config.read_text().replace("MAX_ITER: 40000", "MAX_ITER: 5"))
    arguments = ["--baseline", runs[0], "--candidate", runs[1], "--bootstrap", 100]
    with pytest.raises(SystemExit):
        run_tool(*arguments)
    assert "SOLVER.MAX_ITER (40000 and 5); --force" in capsys.readouterr().err
    assert not (tmp_path / "output" / "comparison.json").exists()
    run_tool(*arguments, "--force")
    assert "SOLVER.MAX_ITER" in (tmp_path / "output" / "comparison.md").read_text()


def test_help_ends_with_an_example(run_tool, capsys) -> None:
    with pytest.raises(SystemExit):
        run_tool("--help")
    assert capsys.readouterr().out.rstrip().splitlines()[-1].lstrip().startswith("$ se-det compare --baseline")
