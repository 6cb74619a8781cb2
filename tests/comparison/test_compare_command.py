import json
import re

import pytest


@pytest.mark.slow
def test_the_tool_prints_and_writes_the_comparison(run_script, runs, tmp_path, capsys, monkeypatch) -> None:
    arguments = ["compare.py", "--baseline", runs[0], "--candidate", runs[1], "--pictures", 2, "--bootstrap", 100]
    page, folder = tmp_path / "report.html", tmp_path / "report"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    run_script(*arguments, "--output", folder, "--html", page)
    shown = capsys.readouterr().out
    # Paths are relative to the working directory.
    assert "\nWritten to report: comparison.json, comparison.md, plots, " in shown
    assert shown.endswith("\nopen report.html\n")
    content = json.loads((folder / "comparison.json").read_text())
    assert content["verdict"] in shown
    assert f"{content['candidate']['AP']:.2f}" in shown
    written = [page, *folder.rglob("*.*")]
    assert len(written) == 12
    links = re.findall(r"!\[.*\]\((.*)\)", (folder / "comparison.md").read_text())
    assert sorted(folder / link for link in links) == sorted(folder.glob("plots/*"))
    assert f"--html {page}" in page.read_text()
    # pycocotools' messages are not shown.
    assert "Accumulating" not in shown
    assert "index created" not in shown

    monkeypatch.chdir(tmp_path / "other")
    for options in (["--output", folder, "--html", page], ["--output", tmp_path / "new", "--html", page]):
        with pytest.raises(SystemExit) as caught:
            run_script(*arguments, *options)
        assert caught.value.code == 2
        assert "[output.exists]" in capsys.readouterr().err
    # The error comes before any work.
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("few_charts")
def test_several_results_files_are_compared_and_replace_an_older_comparison(run_script, runs, tmp_path, capsys) -> None:
    files = [tmp_path / f"{name}.json" for name in "abc"]
    for file, run in zip(files, (runs[0], runs[1], runs[0]), strict=True):
        found = json.loads((run / "inference" / "coco_instances_results.json").read_text())
        file.write_text(json.dumps(found[file.stem == "c" :]))
    (tmp_path / "comparison.json").write_text("an older one")
    arguments = ["--baseline", files[0], files[2], "--candidate", files[1], "--bootstrap", 100, "--overwrite"]
    with pytest.raises(SystemExit):
        run_script("compare.py", *arguments)
    assert "[run.no_annotations]" in capsys.readouterr().err
    run_script("compare.py", *arguments, "--annotations", tmp_path / "val.json")
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert len(content["runs"]["baseline"]["AP"]["values"]) == 2
    assert content["names"]["candidate"] == [str(files[1])]


@pytest.mark.slow
@pytest.mark.usefixtures("few_charts")
def test_force_compares_different_recipes(run_script, runs, tmp_path, capsys) -> None:
    config = runs[1] / "config.yaml"
    config.write_text(config.read_text().replace("MAX_ITER: 40000", "MAX_ITER: 5"))
    arguments = ["compare.py", "--baseline", runs[0], "--candidate", runs[1], "--bootstrap", 100]
    with pytest.raises(SystemExit):
        run_script(*arguments)
    assert "[compare.not_comparable]" in capsys.readouterr().err
    assert not (tmp_path / "output" / "comparison.json").exists()
    run_script(*arguments, "--force")
    assert "SOLVER.MAX_ITER" in (tmp_path / "output" / "comparison.md").read_text()
