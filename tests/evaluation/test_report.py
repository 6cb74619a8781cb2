import json
import re

import pytest

from se_detection import UserError
from se_detection.evaluation import compare, compare_runs, comparison_markdown, report_folder, write_report

COLUMNS = ["AP50", "AP", "AP75", "APs", "APm", "APl"]


def cells(markdown):
    """The table's rows by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def test_the_table_holds_the_numbers(runs) -> None:
    comparison = compare_runs(*runs, n_bootstrap=100)
    content = comparison.to_dict()
    markdown = comparison_markdown(comparison)
    table = cells(markdown)

    headings = ["backbone", "AP@0.5", "AP", "AP75", "APs", "APm", "APl", "params (M)", "GFLOPs"]
    assert table[""] == headings
    for name, arm in (("plain", "baseline"), ("se", "candidate")):
        assert table[name][0] == "resnet_fpn 50"
        assert [float(cell) for cell in table[name][1:7]] == [
            pytest.approx(content[arm][metric], abs=0.00501) for metric in COLUMNS
        ]
    assert table["plain"][7:] == ["41.70", "80.50"]
    assert table["difference"][7:] == ["+2.50", "+0.10"]
    assert table["95 % interval"][7:] == ["–", "–"]
    for number, metric in enumerate(COLUMNS, start=1):
        ap = content["difference"][metric]
        low, high = map(float, table["95 % interval"][number].split(" to "))
        assert (low, high) == (pytest.approx(ap["low"], abs=0.00501), pytest.approx(ap["high"], abs=0.00501))
        assert float(table["difference"][number]) == pytest.approx(ap["value"], abs=0.00501)
    assert "multiply-adds of the backbone at 480×640" in markdown
    assert content["verdict"] in markdown


def test_what_is_unknown_is_a_dash(annotations, detect) -> None:
    large = {**annotations, "annotations": [a for a in annotations["annotations"] if a["area"] >= 96**2]}
    table = cells(comparison_markdown(compare([], detect(large, seed=1, jitter=0.1), large, n_bootstrap=100)))
    for row in ("baseline", "candidate", "difference", "95 % interval"):
        assert table[row][4] == "–"
        assert re.search(r"\d", table[row][6])


def test_the_files_are_written_and_not_replaced_unasked(runs, tmp_path) -> None:
    plain, se = runs
    folder = report_folder(plain, se, None, overwrite=False)
    assert folder == tmp_path / "output"
    comparison = compare_runs(plain, se, n_bootstrap=100)
    json_file, markdown = write_report(comparison, folder)
    assert json.loads(json_file.read_text()) == comparison.to_dict()
    assert markdown.read_text() == comparison_markdown(comparison)

    with pytest.raises(UserError, match=r"comparison\.json is there already"):
        report_folder(plain, se, None, overwrite=False)
    assert report_folder(plain, se, None, overwrite=True) == folder
    assert report_folder(plain, se, tmp_path / "new", overwrite=False) == tmp_path / "new"
    elsewhere = tmp_path / "elsewhere" / "se"
    assert report_folder(plain, elsewhere, None, overwrite=False) == elsewhere
    with pytest.raises(UserError, match="is a file"):
        report_folder(plain, se, json_file, overwrite=True)
