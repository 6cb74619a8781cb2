import re
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from se_detection.visualization.inline_charts import BASELINE, CANDIDATE, PAGE_COLOURS, WIDTH, chart_style, inline_svg


def draw():
    figure = Figure(figsize=(WIDTH / 72, 3))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=BASELINE, marker="o", label="$x_1$ <b>&amp;")
    axes.bar([0, 1], [1, 2], color=CANDIDATE, hatch="///", edgecolor="white")
    axes.set_xlim(0.2, 0.8)
    axes.legend()
    return figure


@pytest.fixture
def svg():
    with chart_style():
        return inline_svg(draw(), "one")


def test_text_stays_text_with_a_size_of_12_pixels(svg) -> None:
    root = ElementTree.fromstring(svg)
    texts = list(root.iter("text"))
    assert "$x_1$ <b>&amp;" in ["".join(text.itertext()) for text in texts]
    sizes = {float(size) for size in re.findall(r"font(?:-size)?: ?([\d.]+)px", svg)}
    assert sizes == {12.0}
    assert root.attrib["viewBox"].split()[2:] == ["320", "216"]


def test_colours_are_the_css_variables_of_the_page(svg) -> None:
    for colour in (BASELINE, CANDIDATE):
        assert colour.lower() not in svg.lower()
        assert PAGE_COLOURS[colour.lower()] in svg
    assert "#000000" not in svg
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-labelledby"] == "one-caption"
    assert root.attrib["role"] == "img"


def test_ids_are_unique_to_a_chart_and_references_resolve(svg) -> None:
    other = inline_svg(draw(), "two")
    ids = [set(re.findall(r'\bid="([^"]+)"', chart)) for chart in (svg, other)]
    assert ids[0].isdisjoint(ids[1])
    used = set(re.findall(r'url\(#([^)"]+)\)', svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    assert any("clip-path" in line for line in svg.splitlines())
    # At least a clip path, a hatch and a marker.
    assert len(used) >= 3
    assert used <= ids[0]
