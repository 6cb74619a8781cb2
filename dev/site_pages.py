#!/usr/bin/env python3
"""Collects the pages of the documentation site in build/pages, from which `make docs` builds it.

The pages keep their paths, so a link from page to page is the same here and on GitHub. Notebooks become Markdown. A
link to any other file of the repository leads to REPOSITORY_URL if that is set, or else to a copy.
"""

import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
# Of the pages, in the order of the navigation.
SOURCES = ("*.md", "docs/*.md", "examples/*.ipynb")
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
FENCES = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def rewritten(text: str, page: Path, repository: str) -> str:
    """The text of a page with its links to other files of the repository; these are copied if it has no address."""

    def target(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(page.parent / match[1]))
        if not path.exists():
            sys.exit(f"error: {page.relative_to(ROOT)}: there is no {match[1]}")
        if path.suffix in {".md", ".ipynb"}:
            return str(PurePosixPath(match[1]).with_suffix(".md"))
        if path.suffix in {".png", ".jpg"} or not repository:
            copy = PAGES / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            return match[1]
        return f"{repository}/blob/main/{path.relative_to(ROOT).as_posix()}"

    # Code stays as it is: a[1](x) is no link.
    return "".join(part if part.startswith("```") else LINK.sub(target, part) for part in FENCES.split(text))


def notebook_page(path: Path, repository: str) -> str:
    """A notebook in Markdown; its figures are written next to the page."""
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = rewritten(cell.source, path, repository)
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": path.stem})
    for name, content in resources["outputs"].items():
        (PAGES / path.parent.relative_to(ROOT) / name).write_bytes(content)
    return text.replace("```bash\n%%bash\n", "```bash\n")


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")
    for page in (path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))):
        copy = (PAGES / page.relative_to(ROOT)).with_suffix(".md")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".ipynb":
            text = notebook_page(page, repository)
        else:
            text = rewritten(page.read_text(encoding="utf-8"), page, repository)
        copy.write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "docs" / "site.css", PAGES / "docs")


if __name__ == "__main__":
    main()
