import re
import subprocess
import sys

import pytest

from se_detection.visualization.page import Page, render_page, write_page
from se_detection.visualization.page_blocks import (
    Code,
    Interval,
    KeyFigure,
    KeyFigures,
    Name,
    Number,
    Section,
    Table,
    Text,
)

HOSTILE = '<script>alert("1")</script>'


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Number(1.005, places=1), "1.0"),
        (Number(-0.746), "−0.75"),
        (Number(0.004, signed=True), "+0.00"),
        (Number(-0.004, signed=True), "+0.00"),
        (Number(1_234_567, places=0), "1,234,567"),
        (Number(15_522_399, 1e6), "15.52"),
        (Number(None), ""),
        (Number(float("nan")), ""),
    ],
)
def test_numbers_are_rounded(number, text) -> None:
    assert number.text == text


def test_intervals_have_positions_on_a_scale() -> None:
    interval = Interval(1.0, -1.0, 3.0, 4.0)
    assert [interval.percent(value) for value in (-4.0, 0.0, 3.0)] == [-100, 0, 75]
    assert Interval(0.0, 0.0, 0.0, 0.0).percent(0.0) == 0
    significant = [Interval(value, value, value, 1.0, significant=True) for value in (-1.0, 1.0)]
    assert [item.better for item in significant] == ["baseline", "candidate"]
    assert interval.better == ""


def page(**changes):
    table = Table(
        f"caption {HOSTILE}", ["a", f"b {HOSTILE}"], [[Name(HOSTILE, HOSTILE), Number(1.5)], ["x", Number(None)]]
    )
    blocks = [Text(HOSTILE), table, Code(f"{HOSTILE} && ls", HOSTILE)]
    sections = [Section("First part", blocks), Section("Empty"), Section("Last & least", [Text("end")])]
    values = {"title": HOSTILE, "verdict": f"nothing {HOSTILE}", "sections": sections, "footer": HOSTILE}
    figures = KeyFigures([KeyFigure(HOSTILE, [Number(2.0)])])
    return Page(**{**values, "about": HOSTILE, "warnings": [HOSTILE], "lead": [figures], **changes})


def test_every_text_is_escaped() -> None:
    html = render_page(page())
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 15


def test_headings_and_landmarks_are_in_order() -> None:
    html = render_page(page())
    assert [int(level) for level in re.findall(r"<h(\d)", html)] == [1, 2, 2]
    places = [html.index(tag) for tag in ('class="skip"', "<header", "<h1", "<main", "<nav", "<h2", "<footer")]
    assert places == sorted(places)
    # A section without content has neither heading nor link.
    assert "Empty" not in html
    links = re.findall(r'href="#([^"]+)"', html)
    assert links == ["main", "first-part", "last-least"]
    assert all(f'id="{link}"' in html for link in links)
    assert html.lstrip().startswith("<!DOCTYPE html>")


def test_numbers_are_exact_in_the_source_and_missing_ones_a_dash() -> None:
    html = render_page(page())
    assert '<data value="1.5">1.50</data>' in html
    assert re.search(r'<td class="number">\s*–\s*</td>', html)


def test_parts_that_are_not_given_are_omitted() -> None:
    html = render_page(Page("t", "v", [Section("s", [Text("x")])]))
    for part in ('class="warnings"', 'class="lead"', "<footer", 'class="about"', 'class="introduction"'):
        assert part not in html


def test_write_page_replaces_an_existing_file(tmp_path) -> None:
    path = tmp_path / "new" / "page.html"
    write_page(page(), path)
    write_page(page(title="another"), path)
    assert path.read_text(encoding="utf-8") == render_page(page(title="another"))
    assert [item.name for item in path.parent.iterdir()] == ["page.html"]


def test_without_jinja2_only_pages_are_missing() -> None:
    code = """
import sys
sys.modules["jinja2"] = sys.modules["markupsafe"] = None
import se_detection.comparison.tables, se_detection.gates.gate_tables
try:
    import se_detection.visualization.page
except se_detection.UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("pip install 'se_detection[report]'")
