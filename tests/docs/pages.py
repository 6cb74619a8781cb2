"""The pages of the documentation, the notebooks, and their code blocks."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, or a cell of a notebook, whose number is its line."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks of these languages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for fence in FENCE.finditer(text):
            found.append(Block(page, text[: fence.start()].count("\n") + 1, fence[1], fence[2]))
    for notebook in NOTEBOOKS:
        for number, cell in enumerate(json.loads(notebook.read_text())["cells"], 1):
            text = "".join(cell["source"])
            if cell["cell_type"] == "code":
                language = "bash" if text.startswith("%%bash\n") else "python"
                found.append(Block(notebook, number, language, text.removeprefix("%%bash\n")))
    return [block for block in found if block.language in languages]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", page.read_text())


def inline_code(page: Path) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def braces(word: str) -> Iterator[str]:
    """`{a,b}c` as the shell expands it."""
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^{}]*\})", word)]
    return map("".join, product(*parts))


def commands(script: str) -> list[str]:
    """A shell script's commands, with its `for` loops unrolled; comments and unknown variables are kept."""
    lines = [line.strip() for line in script.replace("\\\n", " ").splitlines()]
    return list(_unrolled([line for line in lines if line and not line.startswith("#")]))


def _unrolled(lines: list[str]) -> Iterator[str]:
    lines = list(lines)
    while lines:
        line = lines.pop(0)
        loop = re.fullmatch(r"for (\w+) in (.*); do", line)
        if loop is None:
            yield line
            continue
        body, depth = [], 1
        while depth:
            body.append(lines.pop(0))
            depth += body[-1].startswith("for ") - (body[-1] == "done")
        for value in loop[2].split():
            yield from _unrolled([re.sub(rf"\$({loop[1]}\b|{{{loop[1]}}})", value, inner) for inner in body[:-1]])
