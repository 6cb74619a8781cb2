"""The blocks of a page and the cells of its tables. All texts are plain text; the templates escape them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from .embedded_images import EmbeddedImage


@dataclass(frozen=True)
class Number:
    """A rounded number, with the exact value in the page's source; a dash if it is None or NaN.

    `role` (`baseline` or `candidate`) adds that model's mark.
    """

    value: float | None
    unit: float = 1
    places: int = 2
    signed: bool = False
    role: str = ""
    kind: ClassVar[str] = "number"

    @property
    def text(self) -> str:
        """The rounded value divided by `unit`, with a true minus sign; empty if it is None or NaN."""
        if self.value is None or not math.isfinite(self.value):
            return ""
        return f"{self.value / self.unit:{'+' if self.signed else ''}z,.{self.places}f}".replace("-", "−")


@dataclass(frozen=True)
class Interval:
    """A difference and its 95 % interval, drawn on a scale from `-reach` to `reach`.

    A `significant` difference has the better model's colour.
    """

    value: float | None
    low: float | None
    high: float | None
    reach: float
    significant: bool = False
    kind: ClassVar[str] = "interval"

    @property
    def better(self) -> str:
        """The role of the better model; empty if the difference is not significant."""
        if not self.significant or self.value is None:
            return ""
        return "candidate" if self.value > 0 else "baseline"

    @property
    def numbers(self) -> tuple[Number, Number, Number]:
        """The difference and the two ends of the interval."""
        return Number(self.value, signed=True), Number(self.low), Number(self.high)

    def percent(self, value: float) -> float:
        """The position of a value on the scale, from -100 to 100."""
        return round(100 * value / self.reach, 2) if self.reach else 0.0


@dataclass(frozen=True)
class Bars:
    """The values of both models as two bars, on a scale from 0 to 100."""

    baseline: Number
    candidate: Number
    kind: ClassVar[str] = "bars"


@dataclass(frozen=True)
class Name:
    """The name of a row, and a note."""

    text: str
    note: str
    kind: ClassVar[str] = "name"


@dataclass(frozen=True)
class ModelHeading:
    """A heading with a model's mark, its role (visible if `named`, otherwise for screen readers only) and a text."""

    role: str
    text: str = ""
    named: bool = False
    kind: ClassVar[str] = "model"


Cell = str | Number | Interval | Bars | Name | ModelHeading


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is the row's heading.

    With a `summary`, the table is folded under it; a `wide` table scrolls inside the page.
    """

    caption: str
    headings: Sequence[str | ModelHeading]
    rows: Sequence[Sequence[Cell]]
    summary: str = ""
    wide: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Chart:
    """A chart from :func:`inline_svg`, with a caption and a folded table of its numbers."""

    title: str
    svg: Markup
    caption: str
    table: Table | None = None


@dataclass(frozen=True)
class Charts:
    """Charts, side by side where there is room."""

    items: Sequence[Chart]
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class ImageGrid:
    """Images under one title, side by side where there is room, or each as wide as the page if `large`."""

    title: str
    items: Sequence[EmbeddedImage]
    large: bool = False
    kind: ClassVar[str] = "images"


@dataclass(frozen=True)
class Code:
    """A command, or other text whose line breaks are kept."""

    text: str
    label: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class KeyFigure:
    """An important number: its name, its values and their difference."""

    name: str
    values: Sequence[Number]
    difference: Number | None = None


@dataclass(frozen=True)
class KeyFigures:
    """Important numbers, large and in a row."""

    items: Sequence[KeyFigure]
    kind: ClassVar[str] = "key_figures"


@dataclass(frozen=True)
class Scale:
    """A large interval, with a label for it and one for each side."""

    interval: Interval
    left: str
    right: str
    label: str
    kind: ClassVar[str] = "scale"


Block = Text | Table | Charts | ImageGrid | Code | KeyFigures | Scale


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading; a section without blocks is skipped."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The id for links to the section."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())
