import re
from pathlib import Path

import pytest

from se_detection.versions import OLDEST_PYTHON, OLDEST_TORCH, check_versions

REPOSITORY = Path(__file__).parents[1]


PYTHON, TORCH = (".".join(map(str, oldest)) for oldest in (OLDEST_PYTHON, OLDEST_TORCH))
# Where the project states the oldest versions: all change together.
STATED = {
    "pyproject.toml": [f'requires-python = ">={PYTHON}"', f'"Programming Language :: Python :: {PYTHON}"'],
    "docs/COMPATIBILITY.md": [f"Python {PYTHON} or newer", f"torch {TORCH} or newer"],
    "docs/INSTALL.md": [f"Linux, Python {PYTHON} ", f"torch {TORCH} or newer", f"needs Python {PYTHON} or newer"],
}


@pytest.mark.parametrize("torch", [f"{TORCH}.0", "2.11.0+cu130", "2.13.0a0+git1234567", "3.0", "10.1.0.dev20300101"])
def test_supported_versions(torch) -> None:
    check_versions((*OLDEST_PYTHON, 7, "final", 0), torch)


@pytest.mark.parametrize(
    ("python", "torch", "message"),
    [
        ((3, 9, 13), "2.11.0", rf"Python {re.escape(PYTHON)} or newer, and this is 3\.9; see docs/COMPATIBILITY\.md$"),
        ((3, 12, 0), "2.5.1+cpu", rf"torch {re.escape(TORCH)} or newer, and this is 2\.5;"),
        ((3, 12, 0), "1.13.1", rf"torch {re.escape(TORCH)} or newer, and this is 1\.13;"),
    ],
)
def test_old_versions_are_refused(python, torch, message) -> None:
    with pytest.raises(ImportError, match=message):
        check_versions(python, torch)


@pytest.mark.parametrize("file", STATED)
def test_project_and_documentation_state_the_same_versions(file) -> None:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    assert [words for words in STATED[file] if words not in text] == []


def test_the_table_has_the_oldest_and_the_pinned_torch() -> None:
    matrix = (REPOSITORY / "docs" / "COMPATIBILITY.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| {re.escape(TORCH)}\.\d \|", matrix, flags=re.MULTILINE)
    # The pinned version, which all other tests use.
    assert re.search(r"^\| " + re.escape(pinned("torch")) + r" \|", matrix, flags=re.MULTILINE)


def pinned(package: str) -> str:
    requirements = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    return re.search(rf"^{package}==(.+)$", requirements, flags=re.MULTILINE)[1]
