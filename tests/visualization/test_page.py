import re
from types import SimpleNamespace

import pytest

from se_detection.visualization.page import counted, page_template, reach, rounded, write_page

HOSTILE = '<script>alert("1")</script>'
TEMPLATE = """
{% extends "page.html.jinja" %}
{% import "macros.html.jinja" as page %}
{% set title = hostile %}
{% set verdict, about, accent = hostile, hostile, "candidate" %}
{% set sections = [("first", hostile, true), ("empty", "Empty", false), ("last", "Last", true)] %}
{% block first %}{{ page.numbers(1.5, none) }}{{ page.interval(item, 4, significant) }}{{ hostile }}{% endblock %}
{% block empty %}{% endblock %}
{% block last %}{{ page.command(hostile, hostile) }}{{ page.image(image, hostile, hostile, hostile) }}{% endblock %}
"""


@pytest.fixture
def render():
    def render(significant=False, **item):
        values = {
            "hostile": HOSTILE,
            "significant": significant,
            "item": SimpleNamespace(**{"value": 1.0, "low": -1.0, "high": 3.0, **item}),
            "image": SimpleNamespace(source="data:,", width=1, height=2),
            "today": "today",
            "version": "1",
        }
        environment = page_template("se_detection.visualization", "page.html.jinja").environment
        return environment.from_string(TEMPLATE).render(values)

    return render


def test_numbers_are_rounded_and_counted() -> None:
    assert rounded(1.005, 1) == "1.0"
    assert rounded(-0.746) == "−0.75"
    assert rounded(0.004, sign="+") == rounded(-0.004, sign="+") == "+0.00"
    assert rounded(1_234_567, 0) == "1,234,567"
    assert rounded(15_522_399, unit=1e6) == "15.52"
    assert [counted(1, "image"), counted(2000, "image"), counted(2, "class", "classes")] == [
        *("1 image", "2,000 images", "2 classes"),
    ]
    ends = [SimpleNamespace(value=1, low=-3, high=2), SimpleNamespace(value=2.5, low=None, high=None)]
    assert reach(ends) == 3
    assert reach([]) == 0


def test_numbers_are_exact_in_the_source_and_missing_ones_a_dash(render) -> None:
    html = render()
    assert '<data value="1.5">1.50</data>' in html
    assert re.search(r'<td class="number">\s*–\s*</td>', html)


def test_intervals_have_positions_on_a_scale(render) -> None:
    lines = dict(re.findall(r'<line class="(range|dot)" x1="([^"]+)"', render()))
    assert lines == {"range": "-25.0", "dot": "25.0"}
    assert re.search(r'class="range" x1="-25.0" x2="75.0"', render())
    assert 'class="range"' not in render(low=None)
    for value, role in ((-1.0, "baseline"), (1.0, "candidate")):
        assert f'class="interval {role}"' in render(significant=True, value=value)
        assert f'class="interval {role}"' not in render(value=value)


def test_every_text_is_escaped_and_landmarks_are_in_order(render) -> None:
    html = render()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 13
    assert [int(level) for level in re.findall(r"<h(\d)", html)] == [1, 2, 2]
    places = [html.index(tag) for tag in ('class="skip"', "<header", "<h1", "<main", "<nav", "<h2", "<footer")]
    assert places == sorted(places)
    # A section without content has neither heading nor link.
    assert "Empty" not in html
    links = re.findall(r'href="#([^"]+)"', html)
    assert links == ["main", "first", "last"]
    assert all(f'id="{link}"' in html for link in links)
    assert html.lstrip().startswith("<!DOCTYPE html>")


def test_write_page_replaces_an_existing_file(tmp_path) -> None:
    path = tmp_path / "new" / "page.html"
    for title in ("one", "another"):
        values = {"title": title, "verdict": "", "about": "", "accent": "", "sections": []}
        write_page(path, "se_detection.visualization", "page.html.jinja", **values)
    assert "<title>another: </title>" in path.read_text(encoding="utf-8")
    assert [item.name for item in path.parent.iterdir()] == ["page.html"]
