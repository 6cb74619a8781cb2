"""A whole study from the command line, with real trainings of two steps; the tool runs in this process."""

import json
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest

from .conftest import REPOSITORY, Folder

VARIANTS = {"plain": "build_resnet_backbone", "se": "build_se_resnet_backbone"}
# Detectors with two of the four stages and no FPN.
TINY = [
    *("MODEL.RESNETS.OUT_FEATURES", "['res3']", "MODEL.RPN.IN_FEATURES", "['res3']"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['res3']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8, 16, 32]]"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
]


class InThisProcess:
    """Stands in for `subprocess.Popen`: importing torch again for each run would take longer than the trainings."""

    def __init__(self, words: list[str], **options: object) -> None:
        before, sys.argv = sys.argv, words[1:]
        runpy.run_path(words[1], run_name="__main__")
        sys.argv = before

    def wait(self) -> int:
        return 0


@pytest.mark.slow
def test_a_study_from_the_command_line(tmp_path, study_images, monkeypatch, run_script, capsys) -> None:
    folder = Folder(tmp_path, study_images)
    for name, backbone in VARIANTS.items():
        base = f"_BASE_: {folder.content['VARIANTS'][name]}"
        (tmp_path / f"{name}.yaml").write_text(f"{base}\nMODEL:\n  BACKBONE:\n    NAME: {backbone}\n")
        folder.content["VARIANTS"][name] = f"{name}.yaml"
    data = folder.content["DATA"]["first"]
    data |= {"SEEDS": [1], "OPTIONS": [*data["OPTIONS"], *TINY]}
    folder.content |= {"BASE_LR": [0.001], "DATA": {"first": data}}
    folder.study()
    output = tmp_path / "output"
    words = ["run", "--study", tmp_path / "study.yaml", "--data", tmp_path]
    words += ["--output", output, "--results", folder.results]
    fake = SimpleNamespace(Popen=InThisProcess, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr("projects.study.runner.subprocess", fake)
    monkeypatch.setattr("projects.study.timing.ROUNDS", 2)
    run_script("study.py", *words)
    for name in VARIANTS:
        record, run = folder.record("first", name, 1), output / "first" / f"{name}-1"
        measured = json.loads((run / "inference" / "results.json").read_text())["bbox"]
        # Without predictions, detectron2 has no results, and AP is 0.
        for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
            assert (record[key] or 0.0) == pytest.approx(measured[key] or 0.0)
        assert set(record["learning_rate_trials"]) == {"0.001"}
        assert "study.py run" in record["command"]
        assert bool(record["commit"]) == (REPOSITORY / ".git").exists()
    times = json.loads((folder.results / "small-times.json").read_text())["ratios"]
    assert times["plain"] == {kind: {"ratio": 1, "low": 1, "high": 1} for kind in ("train", "inference")}
    assert 0.3 < times["se"]["train"]["ratio"] < 3

    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in folder.results.iterdir()}
    run_script("study.py", *words)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"all runs are finished; see tools/study.py report --results {folder.results}" in line
    assert {path: path.stat().st_mtime_ns for path in folder.results.iterdir()} == before
    run_script("study.py", "report", *words[1:3], "--results", folder.results)
    assert "| `se`" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_script("study.py", "report", "--study", tmp_path / "none.yaml")
    assert str(tmp_path / "none.yaml") in capsys.readouterr().err
