"""docs/RESULTS.md matches the records."""

import shutil
from pathlib import Path

import pytest
import yaml

from ..definition import read_study
from ..study_report import write_study_report

REPOSITORY = Path(__file__).parents[3]
PAGE = REPOSITORY / "docs" / "RESULTS.md"
STUDIES = [
    path
    for path in sorted((REPOSITORY / "configs" / "Study").glob("Study-*.yaml"))
    if list((PAGE.parent / "results").glob(f"{yaml.safe_load(path.read_text())['NAME']}-*.json"))
]


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_page_is_made_from_the_records(path, tmp_path) -> None:
    shutil.copytree(PAGE.parent / "results", tmp_path / "results")
    page = Path(shutil.copy(PAGE, tmp_path))
    study = read_study(path)
    write_study_report(study, tmp_path / "results", page)
    assert page.read_text() == PAGE.read_text()
    tables = page.read_text().split(f"<!-- {study.name} begin -->")[1]
    assert "| `plain`" in tables
