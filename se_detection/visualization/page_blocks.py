"""What a page is made of. Texts are plain: the templates escape them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from .embedded_images import EmbeddedImage


@dataclass(frozen=True)
class Number:
    """A number as people read it, with the exact one in the page's source; a dash where it is None or NaN.

    `arm` is `baseline` or `candidate` where the number is to have that arm's mark.
    """

    value: float | None
    unit: float = 1
    places: int = 2
    signed: bool = False
    arm: str = ""
    kind: ClassVar[str] = "number"

    @property
    def text(self) -> str:
        """Rounded, in `unit`s, with a true minus sign; empty where there is none."""
        if self.value is None or not math.isfinite(self.value):
            return ""
        return f"{self.value / self.unit:{'+' if self.signed else ''}z,.{self.places}f}".replace("-", "−")


@dataclass(frozen=True)
class Interval:
    """A difference and its 95 % interval, drawn on a scale from `-reach` to `reach`.

    `told` says that zero is outside, or that a test says so; such an interval has the better arm's colour.
    """

    value: float | None
    low: float | None
    high: float | None
    reach: float
    told: bool = False
    kind: ClassVar[str] = "interval"

    @property
    def arm(self) -> str:
        """The better arm, where there is one."""
        if not self.told or self.value is None:
            return ""
        return "candidate" if self.value > 0 else "baseline"

    @property
    def numbers(self) -> tuple[Number, Number, Number]:
        """The difference and both ends of the interval."""
        return Number(self.value, signed=True), Number(self.low), Number(self.high)

    def percent(self, value: float) -> float:
        """A place on the scale, from -100 to 100."""
        return round(100 * value / self.reach, 2) if self.reach else 0.0


@dataclass(frozen=True)
class Bars:
    """Both arms' values as two bars; the whole width is 100."""

    baseline: Number
    candidate: Number
    kind: ClassVar[str] = "bars"


@dataclass(frozen=True)
class Name:
    """What a row is about, and a note on it."""

    text: str
    note: str
    kind: ClassVar[str] = "name"


@dataclass(frozen=True)
class ArmHeading:
    """An arm's mark and, for all to see if `named` and otherwise for a screen reader, its role; then a text."""

    arm: str
    text: str = ""
    named: bool = False
    kind: ClassVar[str] = "arm"


Cell = str | Number | Interval | Bars | Name | ArmHeading


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row is its heading.

    `summary` folds it under that line; `wide` lets it scroll inside the page.
    """

    caption: str
    headings: Sequence[str | ArmHeading]
    rows: Sequence[Sequence[Cell]]
    summary: str = ""
    wide: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Chart:
    """A chart of :func:`inline_svg`, what it shows in words, and its numbers, folded."""

    title: str
    svg: Markup
    caption: str
    table: Table | None = None


@dataclass(frozen=True)
class Charts:
    """Side by side where there is room."""

    items: Sequence[Chart]
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class ImageGrid:
    """ImageGrid that belong together, side by side where there is room, or each as wide as the page if `large`."""

    title: str
    items: Sequence[EmbeddedImage]
    large: bool = False
    kind: ClassVar[str] = "images"


@dataclass(frozen=True)
class Code:
    """A command, or another text whose lines stay as they are."""

    text: str
    label: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class KeyFigure:
    """A figure that is read first: its name, its values and what else there is to say."""

    name: str
    values: Sequence[Number]
    difference: Number | None = None


@dataclass(frozen=True)
class KeyFigures:
    """Large, in a row."""

    items: Sequence[KeyFigure]
    kind: ClassVar[str] = "key_figures"


@dataclass(frozen=True)
class Scale:
    """An interval, drawn large, with what its two sides and it mean."""

    interval: Interval
    left: str
    right: str
    label: str
    kind: ClassVar[str] = "scale"


Block = Text | Table | Charts | ImageGrid | Code | KeyFigures | Scale


@dataclass(frozen=True)
class Section:
    """A part of a page under its heading; without blocks it is left out."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)

    @property
    def key(self) -> str:
        """For links to it."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())
