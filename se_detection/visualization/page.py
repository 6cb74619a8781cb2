"""Pages as one HTML file without scripts, from Jinja templates on the base `templates/page.html.jinja`."""

from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from ..errors import counted
from ..files import write_whole


def page_template(package: str, name: str) -> Template:
    """A template from a package's `templates/`, which may use those of this package; values are escaped."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("se_detection.visualization")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rounded": rounded, "counted": counted, "reach": reach}
    return environment.get_template(name)


def write_page(path: Path, package: str, name: str, **values: Any) -> None:
    """Renders a template, and writes the whole file or nothing, replacing an existing one.

    Raises:
        OSError: the file can't be written, for example because the disk is full.
    """
    made = {"today": date.today().isoformat(), "version": version("se_detection")}
    content = page_template(package, name).render(values | made).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))


def rounded(value: float, places: int = 2, *, unit: float = 1, sign: str = "") -> str:
    """A number divided by `unit`, with grouped thousands and a true minus sign; a `sign` of `+` shows plus, too."""
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(float(value / unit), places) + 0.0:{sign},.{places}f}".replace("-", "−")


def reach(differences: Iterable[Any]) -> float:
    """The reach of a scale that shows all these differences (`value`) and their intervals (`low`, `high`)."""
    ends = (end for item in differences for end in (item.value, item.low, item.high))
    return max((abs(end) for end in ends if end is not None), default=0.0)
