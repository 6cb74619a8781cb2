"""Reports of the records of a study."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from se_detection import UserError
from se_detection.comparison.compare import compare
from tests.helpers import raises

from ..run_records import KEPT
from ..study_report import write_study_report


@pytest.mark.slow
def test_intervals_equal_those_of_compare(folder, tmp_path) -> None:
    folder.run(seeds=[1])
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- small begin -->\nold\n<!-- small end -->\nafter\n")
    image, _ = write_study_report(folder.study(), folder.results, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- small begin -->")
    assert text.endswith("<!-- small end -->\nafter\n")
    assert "old" not in text
    runs = [
        folder.path / "output" / "runs" / f"{name}-1" / "inference" / "coco_instances_results.json"
        for name in ("plain", "se-on-plain")
    ]
    theirs = compare(*runs, folder.val, n_bootstrap=100)
    for name, metrics in (("plain", theirs.baseline), ("se-on-plain", theirs.candidate)):
        assert {key: folder.record(name, 1)[key] for key in KEPT} == pytest.approx({key: metrics[key] for key in KEPT})
    row = next(
        line for line in text.splitlines() if line.startswith("| `se-on-plain`") and " to " in line.split("|")[3]
    )
    # With single runs.
    assert row.split("|")[2].strip() == "images"
    known = 0
    for cell, metric in zip(row.split("|")[3:], KEPT, strict=False):
        change = theirs.difference[metric]
        if change.low is None:
            assert cell.strip() == "–"
            continue
        known += 1
        found = [float(number) for number in re.findall(r"[+-]?\d+\.\d+", cell)]
        # The records keep two decimals.
        assert found == pytest.approx([change.value, change.low, change.high], abs=0.03)
    assert known >= 3
    assert np.asarray(Image.open(image).convert("L")).std() > 10


@pytest.mark.slow
def test_the_report_shows_missing_runs_diverged_trials_rates_at_the_edge_and_times(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr("projects.study.study_report.draw_curves", lambda records, path: path)
    folder.run(seeds=[1])
    write_study_report(folder.study(), folder.results, None)
    text = capsys.readouterr().out
    assert "2 of 4 runs are finished." in text
    assert "±" not in text
    folder.run()
    ratio = {"ratio": 1.25, "low": 1.2, "high": 1.5}
    times = {"definition": folder.study().digest, "ratios": {"se-on-plain": {"train": ratio, "inference": ratio}}}
    (folder.results / "small-times.json").write_text(json.dumps(times))
    write_study_report(folder.study(), folder.results, None)
    text = capsys.readouterr().out
    assert "of 4 runs" not in text
    assert "0.04: diverged" in text
    assert "0.02†" not in text
    assert text.count("1.25 (1.20 to 1.50)") == 2
    assert "| images and trainings" in text
    scores = [folder.record("plain", seed)["AP"] for seed in (1, 2)]
    assert f"{np.mean(scores):.2f} ± {abs(scores[0] - scores[1]) / 2**0.5:.2f}" in text
    for path in folder.results.glob("small-*-?.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "learning_rate": 0.08}))
    write_study_report(folder.study(), folder.results, None)
    text = capsys.readouterr().out
    assert "0.08†" in text
    assert "† The lowest or highest rate of the trials" in text


@pytest.mark.slow
def test_what_cannot_be_reported(folder, tmp_path) -> None:
    with raises("study.no_records", folder.results):
        write_study_report(folder.study(), folder.results, None)
    folder.run(seeds=[1])
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with raises("study.no_marks", "<!-- small begin -->"):
        write_study_report(folder.study(), folder.results, page)
    assert page.read_text() == "nothing"
    path = folder.results / "small-se-on-plain-1.json"
    for key in ("data_digest", "device"):
        path.write_text(json.dumps({**folder.record("plain", 1), key: "other"}))
        with raises("study.mixed_records", key, "other"):
            write_study_report(folder.study(), folder.results, None)
    path.write_text("{")
    with pytest.raises(UserError, match=str(path)):
        write_study_report(folder.study(), folder.results, None)
    path.unlink()
    folder.content["TUNING_ITERS"] = 2
    with raises("study.other_definition", folder.results / "small-plain-1.json"):
        write_study_report(folder.study(), folder.results, None)
