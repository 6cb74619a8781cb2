"""A page with a verdict, contents and sections, and its rendering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..files import write_whole

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined, Template
except ModuleNotFoundError as error:
    # Before the blocks, which need it too.
    raise UserError("HTML pages need the package jinja2: pip install 'se_detection[report]'") from error

from .page_blocks import Block, Section


@dataclass(frozen=True)
class Page:
    """The content of a page.

    `verdict` is the main sentence, and `about` says what it covers; `accent` is the better model, `baseline`,
    `candidate` or empty. `models` describes these two, and `introduction` the data. `warnings` come before everything
    else, and `lead` comes before the contents.
    """

    title: str
    verdict: str
    sections: Sequence[Section]
    about: str = ""
    introduction: str = ""
    accent: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = field(default_factory=list)
    lead: Sequence[Block] = field(default_factory=list)
    footer: str = ""


def page_template(package: str, name: str) -> Template:
    """A template from a package's `templates/`; values are escaped, and an undefined one is an error."""
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render_page(page: Page) -> str:
    """The page as one HTML file without scripts, which fetches nothing; all texts are escaped."""
    return page_template("se_detection.visualization", "page.html.jinja").render(page=page)


def write_page(page: Page, path: Path) -> None:
    """Writes the whole file or nothing, replacing an existing one.

    Raises:
        OSError: the file can't be written, for example because the disk is full.
    """
    content = render_page(page).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))
