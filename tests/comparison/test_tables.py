import json
import re
from pathlib import Path

import pytest

from se_detection.comparison.compare import compare
from se_detection.comparison.compare_runs import compare_runs
from se_detection.comparison.error_types import ERRORS
from se_detection.comparison.tables import comparison_markdown, report_folder, this_command, write_report

from ..helpers import raises

COLUMNS = ["AP50", "AP", "AP75", "APs", "APm", "APl"]


def cells(markdown):
    """The rows of the first table, by their first cell."""
    table = markdown[markdown.index("|") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def section(markdown, title):
    return cells(markdown[markdown.index(f"## {title}\n") :])


def test_the_main_table_has_the_numbers_of_the_comparison(runs) -> None:
    comparison = compare_runs(*runs, n_bootstrap=100)
    content = comparison.to_dict()
    markdown = comparison_markdown(comparison)
    table = cells(markdown)

    headings = ["backbone", "AP@0.5", "AP", "AP75", "APs", "APm", "APl", "params (M)", "GFLOPs"]
    assert table[""] == headings
    for name, role in (("plain", "baseline"), ("se", "candidate")):
        assert table[name][0] == "resnet_fpn 50"
        assert [float(cell) for cell in table[name][1:7]] == [
            pytest.approx(content[role][metric], abs=0.00501) for metric in COLUMNS
        ]
    assert table["plain"][7:] == ["41.70", "80.50"]
    assert table["difference"][7:] == ["+2.50", "+0.10"]
    assert table["95 % interval"][7:] == ["–", "–"]
    for number, metric in enumerate(COLUMNS[:3], start=1):
        ap = content["difference"][metric]
        low, high = map(float, table["95 % interval"][number].split(" to "))
        assert (low, high) == (pytest.approx(ap["low"], abs=0.00501), pytest.approx(ap["high"], abs=0.00501))
        assert float(table["difference"][number]) == pytest.approx(ap["value"], abs=0.00501)
    assert "multiply-adds of the backbone at 480×640" in markdown
    assert content["verdict"] in markdown


def test_the_other_tables_have_the_numbers_of_the_comparison(runs) -> None:
    comparison = compare_runs(*runs, n_bootstrap=100)
    content = json.loads(json.dumps(comparison.to_dict()))
    markdown = comparison_markdown(comparison)

    assert section(markdown, "Average recall")["plain"][1] == f"{content['baseline']['AR1']:.2f}"
    differs = section(markdown, "Differences between the configs")
    assert differs["MODEL.BACKBONE.NAME"][:2] == ["build_resnet_fpn_backbone", "build_se_resnet_fpn_backbone"]
    errors = section(markdown, "Errors")
    for name in ERRORS:
        gain = [content["details"]["error_types"][role][name]["dap"] for role in ("baseline", "candidate")]
        assert errors[name][:3] == [f"{gain[0]:.2f}", f"{gain[1]:.2f}", f"{gain[1] - gain[0]:+.2f}"]
    assert section(markdown, "By IoU threshold")["0.50"][1] == f"{content['candidate']['AP50']:.2f}"
    sizes = content["details"]["ap_by_size"]
    assert section(markdown, "By object size")[f"{sizes['x'][0]:.0f}"][0] == f"{sizes['baseline'][0]:.2f}"
    plate = section(markdown, "By class")["plate"]
    assert plate[0] == str(content["per_class"]["plate"]["images"])
    assert plate[3] == f"{content['per_class']['plate']['difference']['value']:+.2f}"
    assert "## Each run" not in markdown


def test_significant_classes_are_named(annotations, detect) -> None:
    for item in annotations["annotations"]:
        item["category_id"] = 7
    worse, better = (detect(annotations, seed=seed, jitter=jitter) for seed, jitter in ((1, 0.3), (2, 0.01)))
    text = comparison_markdown(compare(worse, better, annotations, n_bootstrap=100))
    assert re.search(r"Classes \(1 in 10 images .*Hochberg\): significant differences in 1: plate \+\d", text)
    equal = comparison_markdown(compare(worse, worse, annotations, n_bootstrap=100))
    assert "Hochberg): no significant difference." in equal


def test_several_runs_have_their_own_rows(annotations, detect) -> None:
    runs = [detect(annotations, seed=seed, jitter=0.1) for seed in range(5)]
    comparison = compare(runs[:2], runs[2:], annotations, n_bootstrap=100)
    markdown = comparison_markdown(comparison)
    spreads = comparison.runs["candidate"]
    assert cells(markdown)["± over 3 runs"][1:3] == [f"{spreads[key].std:.2f}" for key in ("AP50", "AP")]
    each = section(markdown, "Each run")
    assert [each[f"candidate {number}"][0] for number in (1, 2, 3)] == [
        f"{value:.2f}" for value in spreads["AP"].values
    ]
    assert "from 2 and 3 runs" in markdown


def test_undefined_values_are_a_dash(annotations, detect) -> None:
    large = {**annotations, "annotations": [a for a in annotations["annotations"] if a["area"] >= 96**2]}
    table = cells(comparison_markdown(compare([], detect(large, seed=1, jitter=0.1), large, n_bootstrap=100)))
    for row in ("baseline", "candidate", "difference", "95 % interval"):
        assert table[row][4] == "–"
    assert re.search(r"\d", table["difference"][6])
    nothing = compare([], [], {**annotations, "annotations": []}, n_bootstrap=100)
    assert set(cells(comparison_markdown(nothing))["difference"][1:]) == {"–"}


def test_existing_reports_are_not_replaced_without_overwrite(runs, tmp_path) -> None:
    plain, _ = runs
    folder = report_folder(runs, None, overwrite=False)
    assert folder == tmp_path / "output"
    json_file = folder / "comparison.json"
    json_file.write_text("{}")
    with raises("output.exists", json_file):
        report_folder(runs, None, overwrite=False)
    assert report_folder(runs, None, overwrite=True) == folder
    assert report_folder(runs, tmp_path / "new", overwrite=False) == tmp_path / "new"
    elsewhere = tmp_path / "elsewhere" / "se"
    assert report_folder([plain, elsewhere], None, overwrite=False) == elsewhere
    bare = tmp_path / "files" / "theirs.json"
    bare.parent.mkdir()
    bare.write_text("[]")
    assert report_folder([plain, bare], None, overwrite=False) == bare.parent
    with raises("output.is_file", json_file):
        report_folder(runs, json_file, overwrite=True)


def test_the_same_command_replaces_its_own_report(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("se_detection.comparison.tables.draw_plots", lambda comparison, folder: [])
    monkeypatch.setattr("sys.argv", ["se-det", "compare", "--overwrite"])
    command, folder = this_command(), tmp_path / "report"
    assert command == {"line": "se-det compare", "directory": str(Path.cwd())}
    write_report(compare_runs(*runs, n_bootstrap=100), folder, command)
    assert report_folder(runs, folder, overwrite=False, command=command) == folder
    for other in (None, command | {"line": "se-det compare --force"}, command | {"directory": "/"}):
        with raises("output.exists", folder):
            report_folder(runs, folder, overwrite=False, command=other)
    (folder / "comparison.json").write_text("not JSON")
    with raises("output.exists", folder):
        report_folder(runs, folder, overwrite=False, command=command)
