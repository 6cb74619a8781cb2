"""Compares docs/DETECTORS.md with the config files and the tested detectors."""

from pathlib import Path

from .detectors import CHECKS, DETECTORS

ROOT = Path(__file__).parents[2]


def test_the_table_matches_the_files_and_tests() -> None:
    lines = (ROOT / "docs" / "DETECTORS.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| detector |"))
    header = cells(lines[start])
    rows = [dict(zip(header, cells(line), strict=True)) for line in lines[start + 2 : start + 2 + len(DETECTORS)]]
    assert not lines[start + 2 + len(DETECTORS)]
    assert {*header} == {"detector", "config", "yaml", "lazy", *CHECKS}
    for row, (name, detector) in zip(rows, DETECTORS.items(), strict=True):
        files = {"yaml": f"configs/{detector.config}.yaml", "lazy": f"configs/lazy/{detector.config}.py"}
        expected = {
            "detector": detector.title,
            "config": f"`{detector.config}`",
            **{system: tick((ROOT / file).is_file()) for system, file in files.items()},
            **{check: tick(name in covered) for check, covered in CHECKS.items()},
        }
        assert row == expected


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def tick(condition: bool) -> str:
    return "✓" if condition else "–"
