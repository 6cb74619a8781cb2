"""What was found of a detector's gates, as one page to send."""

from collections.abc import Sequence
from pathlib import Path

from ..runs.record import read_record
from ..visualization.embedded_images import EmbeddedImage, image_from_file
from ..visualization.page import Page, write_page
from ..visualization.page_blocks import Block, Cell, Code, ImageGrid, Interval, Number, Section, Table, Text
from .ablation import MARGIN, Ablation
from .excitations import Excitations
from .gate_tables import excitations_notes, findings


def write_excitation_page(found: Excitations, paths: Sequence[Path], page: Path, command: str) -> Path:
    """Writes the page, replacing an older one, and returns its path.

    Args:
        paths: of :func:`write_excitations` and :func:`draw_effect`; the images among them are shown.
        command: what made it.

    Raises:
        UserError: an image can't be read.
    """
    trained_by = read_record(found.run.folder).get("command", "")
    commands = [Code(str(line), label) for label, line in (("The run", trained_by), ("This page", command)) if line]
    blocks: list[Block] = [_gates(found)]
    if found.ablation is not None:
        blocks.append(_ablation(found.ablation))
    blocks += [Text(" ".join(note.split())) for note in excitations_notes(found)]
    sections = [
        Section("Blocks", blocks),
        Section("Channels", _images("By block", found, paths, "plots")),
        Section("One image", _images("With and without gates", found, paths, "pictures")),
        Section("Commands", commands),
    ]
    title = f"The SE gates of {found.run.folder.resolve().name}"
    about = f"on {len(found.split.images)} images of {found.split.annotations.name}"
    write_page(Page(title, verdict(found), sections, about=about), page)
    return page


def verdict(found: Excitations) -> str:
    """One line: what the detector could do without; if that was not evaluated, which blocks tell classes apart."""
    named, total = findings(found), len(found.statistics)
    dispensable = named.get("dispensable")
    if dispensable is None:
        return f"{len(named['tell_classes_apart'])} of {total} SE blocks tell classes apart"
    if not dispensable:
        return "No SE block is shown to be one that this detector could do without"
    return f"{len(dispensable)} of {total} SE blocks could go for at most {MARGIN} AP each"


def _gates(found: Excitations) -> Table:
    headings = ["block", "mean gate", "spread over images (%)", "explained by classes (%)", "saturated (%)"]
    rows: list[list[Cell]] = [
        [
            name,
            Number(float(block.mean[-1].mean()), places=3),
            Number(100 * block.relative_spread, places=1),
            Number(None if block.class_share is None else 100 * block.class_share, places=1),
            Number(100 * block.saturated, places=1),
        ]
        for name, block in found.statistics.items()
    ]
    return Table("The gates of each SE block", headings, rows, wide=True)


def _ablation(ablation: Ablation) -> Table:
    found = ablation.rows()
    ends = [end for row in found.values() for end in (row.difference["AP"].low, row.difference["AP"].high) if end]
    reach = max(map(abs, ends), default=1.0)
    headings = ["held at its mean", "AP", "change in AP, 95 % interval", "AP@0.5", "parameters saved", "time saved (%)"]
    unchanged = ablation.unchanged
    rows: list[list[Cell]] = [["none", Number(unchanged["AP"]), "", Number(unchanged["AP50"]), "", ""]]
    for name, row in found.items():
        change = row.difference["AP"]
        rows.append(
            [
                name,
                Number(row.metrics["AP"]),
                Interval(change.value, change.low, change.high, reach),
                Number(row.metrics["AP50"]),
                Number(row.parameters, places=0),
                Number(100 * row.time_share, places=1),
            ]
        )
    return Table("The detector with gates held at their mean", headings, rows, wide=True)


def _images(title: str, found: Excitations, paths: Sequence[Path], folder: str) -> list[ImageGrid]:
    images: list[EmbeddedImage] = [
        image_from_file(path, f"{path.stem.replace('_', ' ')} of {found.run.folder.name}", title=path.stem)
        for path in paths
        if path.parent.name == folder and path.suffix == ".png"
    ]
    return [ImageGrid(title, images, large=True)] if images else []
