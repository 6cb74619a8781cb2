"""The page itself: head, verdict, contents, sections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ..files import write_whole
from .page_blocks import Block, Section


@dataclass(frozen=True)
class Page:
    """What a page says.

    `verdict` is its one sentence, `about` what that sentence covers; `accent` is the arm that it favours, `baseline`,
    `candidate` or empty. `arms` says in words what these are, and `introduction` what was looked at. `warnings` are
    what a reader must know before anything else, and `lead` stands before the contents. `footer` ends the page.
    """

    title: str
    verdict: str
    sections: Sequence[Section]
    about: str = ""
    introduction: str = ""
    accent: str = ""
    arms: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = field(default_factory=list)
    lead: Sequence[Block] = field(default_factory=list)
    footer: str = ""


def page_template(package: str, name: str) -> Template:
    """A template of a package's `templates/`; what is put into it is escaped, and must be there."""
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render_page(page: Page) -> str:
    """One HTML file without scripts, that fetches nothing; all texts are escaped."""
    return page_template("se_detection.visualization", "page.html.jinja").render(page=page)


def write_page(page: Page, path: Path) -> None:
    """Writes the file, whole or not at all, replacing an older one.

    Raises:
        OSError: it can't be written, as on a full disk.
    """
    content = render_page(page).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))
