"""The documentation site: its navigation and its page of Python names. `make docs` builds it, and checks every link."""

import re
from typing import Any

import yaml

import se_detection

from .pages import PAGES, ROOT


class WithTags(yaml.SafeLoader):
    """For mkdocs.yml, which takes values from the environment."""


WithTags.add_multi_constructor("", lambda loader, suffix, node: None)


def pages_of(entry: Any) -> list[str]:
    """The files below an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in pages_of(value)]


def test_the_navigation_has_each_page_once() -> None:
    navigation = pages_of(yaml.load((ROOT / "mkdocs.yml").read_text(), WithTags)["nav"])
    pages = {*PAGES, *ROOT.glob("*.md"), *ROOT.glob("examples/*.ipynb")}
    expected = {str(page.relative_to(ROOT)).replace(".ipynb", ".md") for page in pages}
    assert sorted(navigation) == sorted(expected)


def test_the_page_of_names_has_every_public_name() -> None:
    names = re.findall(r"^::: se_detection\.(\w+)$", (ROOT / "docs" / "API.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(se_detection.__all__)
