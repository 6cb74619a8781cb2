"""Reports of the records of a study."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from se_detection import UserError
from se_detection.comparison.compare import compare
from tests.helpers import raises

from ..run_records import read_records
from ..study_differences import variant_results
from ..study_report import write_study_report


@pytest.mark.slow
def test_intervals_equal_those_of_compare(folder, tmp_path) -> None:
    folder.content["DATA"] = {"first": folder.content["DATA"]["first"]}
    folder.run()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- small begin -->\nold\n<!-- small end -->\nafter\n")
    image, _ = write_study_report(folder.study(), folder.results, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- small begin -->")
    assert text.endswith("<!-- small end -->\nafter\n")
    assert "old" not in text
    detections = "inference/coco_instances_results.json"
    runs = [[folder.path / f"output/first/{name}-{seed}/{detections}" for seed in (1, 2)] for name in ("plain", "se")]
    theirs = compare(*runs, folder.val, n_bootstrap=100)
    for name, metrics in (("plain", theirs.baseline), ("se", theirs.candidate)):
        values = {key: np.mean([folder.record("first", name, seed)[key] for seed in (1, 2)]) for key in ("AP", "AP50")}
        assert values == pytest.approx({key: metrics[key] for key in values})
    row = next(line for line in text.splitlines() if line.startswith("| first") and "`se`" in line)
    for cell, metric in zip(row.split("|")[6:8], ("AP", "AP50"), strict=True):
        change = theirs.difference[metric]
        found = [float(number) for number in re.findall(r"[+-]?\d+\.\d+", cell)]
        # The page has one decimal.
        assert found == pytest.approx([change.value, change.low, change.high], abs=0.08)
    assert np.asarray(Image.open(image).convert("L")).std() > 10


@pytest.mark.slow
def test_intervals_of_several_variants_and_over_data_sets(folder) -> None:
    """Bonferroni's intervals for two variants, and Student's t over the data sets, computed by scipy."""
    folder.content["VARIANTS"]["se2"] = folder.content["VARIANTS"]["se"]
    folder.run()
    study = folder.study()
    results = variant_results(study, read_records(folder.results, study))
    assert [(result.data, result.variant) for result in results[-2:]] == [("", "se"), ("", "se2")]
    changes = {(result.data, result.variant): result.differences.get("AP") for result in results}
    values = [changes[name, "se"].value for name in study.data]
    overall = changes["", "se"]
    expected = stats.t.interval(0.975, 1, np.mean(values), stats.sem(values))
    assert (overall.low, overall.high) == pytest.approx(expected)
    assert overall.value == pytest.approx(np.mean(values))
    # A single run of each on `second`: the interval over 12 images, from the bootstrap's standard deviation.
    single = changes["second", "se"]
    samples = [np.array(folder.record("second", name, 3)["bootstrap"]["AP"]) for name in ("plain", "se")]
    error = np.std(samples[1][1:] - samples[0][1:], ddof=1) * (12 / 11) ** 0.5
    expected = stats.t.interval(0.975, 11, samples[1][0] - samples[0][0], error)
    assert (single.low, single.high) == pytest.approx(expected)


@pytest.mark.slow
def test_the_report_shows_missing_runs_diverged_trials_rates_at_the_edge_and_times(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr("projects.study.study_report.draw_study", lambda study, found, path: path)
    folder.run(seeds=[1])
    write_study_report(folder.study(), folder.results, None)
    text = capsys.readouterr().out
    assert "2 of 6 runs are finished." in text
    assert "±" not in text
    assert "**all**" not in text
    folder.run()
    ratio = {"ratio": 1.25, "low": 1.2, "high": 1.5}
    times = {"ratios": {"se": {"train": ratio, "inference": ratio}}}
    (folder.results / "small-times.json").write_text(json.dumps(times))
    write_study_report(folder.study(), folder.results, None)
    text = capsys.readouterr().out
    assert "of 6 runs" not in text
    assert "| **all** | `se`" in text
    assert "0.04: diverged" in text
    assert "0.02†" not in text
    assert text.count("1.25 (1.20 to 1.50)") == 2
    scores = [folder.record("first", "plain", seed)["AP"] for seed in (1, 2)]
    assert f"{np.mean(scores):.1f} ± {abs(scores[0] - scores[1]) / 2**0.5:.1f}" in text
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
    path = folder.results / "small-first-se-1.json"
    for key in ("data_digest", "device"):
        path.write_text(json.dumps({**folder.record("first", "plain", 1), key: "other"}))
        with raises("study.mixed_records", key, "other"):
            write_study_report(folder.study(), folder.results, None)
    path.write_text("{")
    with pytest.raises(UserError, match=str(path)):
        write_study_report(folder.study(), folder.results, None)
    path.unlink()
    folder.content["DATA"]["first"]["TUNING_IMAGES"] = 3
    with raises("study.other_definition", folder.results / "small-first-plain-1.json"):
        write_study_report(folder.study(), folder.results, None)
