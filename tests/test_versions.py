import re
from importlib.metadata import version
from pathlib import Path

import pytest

from se_detection.versions import OLDEST_PYTHON, OLDEST_TORCH, check_versions

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("torch", ["2.8.0", "2.11.0+cu130", "2.13.0a0+git1234567", "3.0", "10.1.0.dev20300101"])
def test_supported_versions(torch) -> None:
    check_versions((3, 11, 7, "final", 0), torch)


@pytest.mark.parametrize(
    ("python", "torch", "message"),
    [
        ((3, 10, 13), "2.11.0", r"Python 3\.11 or newer, and this is 3\.10; see docs/COMPATIBILITY\.md$"),
        ((3, 12, 0), "2.7.1+cpu", r"torch 2\.8 or newer, and this is 2\.7;"),
        ((3, 12, 0), "1.13.1", r"torch 2\.8 or newer, and this is 1\.13;"),
    ],
)
def test_old_versions_are_refused(python, torch, message) -> None:
    with pytest.raises(ImportError, match=message):
        check_versions(python, torch)


def test_project_and_documentation_state_the_same_versions() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    matrix = (REPOSITORY / "docs" / "COMPATIBILITY.md").read_text()
    python, torch = (".".join(map(str, oldest)) for oldest in (OLDEST_PYTHON, OLDEST_TORCH))
    assert f'requires-python = ">={python}"' in project
    assert re.search(rf"^\| {re.escape(torch)}\.\d \|", matrix, flags=re.MULTILINE)
    # The pinned version, which all other tests use.
    assert re.search(rf"^\| {re.escape(version('torch').partition('+')[0])} \|", matrix, flags=re.MULTILINE)
