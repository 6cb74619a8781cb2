"""The analysis of a detector's gates as one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from ..runs.record import read_record
from ..visualization.embedded_images import EmbeddedImage, embed_file
from ..visualization.page import Page, write_page
from ..visualization.page_blocks import Block, Cell, Code, ImageGrid, Interval, Number, Section, Table, Text
from .ablation import MARGIN, Ablation
from .excitations import Excitations
from .gate_tables import excitations_notes, findings


def write_excitation_page(analysis: Excitations, paths: Sequence[Path], page: Path, command: str) -> Path:
    """Writes the page, replaces an older one, and returns its path.

    Args:
        paths: from :func:`write_excitations` and :func:`draw_effect`; the page shows the images among them.
        command: the command line of the analysis.

    Raises:
        UserError: an image can't be read.
    """
    training = read_record(analysis.run.folder).get("command", "")
    commands = [Code(str(line), label) for label, line in (("Training", training), ("This page", command)) if line]
    blocks: list[Block] = [_gates(analysis)]
    if analysis.ablation is not None:
        blocks.append(_ablation(analysis.ablation))
    blocks += [Text(" ".join(note.split())) for note in excitations_notes(analysis)]
    sections = [
        Section("Blocks", blocks),
        Section("Channels", _images("By block", analysis, paths, "plots")),
        Section("One image", _images("With and without gates", analysis, paths, "pictures")),
        Section("Commands", commands),
    ]
    title = f"The SE gates of {analysis.run.folder.resolve().name}"
    about = f"on {len(analysis.data.images)} images of {analysis.data.annotations.name}"
    write_page(Page(title, verdict(analysis), sections, about=about), page)
    return page


def verdict(analysis: Excitations) -> str:
    """The result in one line: how many blocks are dispensable.

    Without an ablation, it is how many blocks have gates that depend on the class.
    """
    lists, total = findings(analysis), len(analysis.statistics)
    dispensable = lists.get("dispensable")
    if dispensable is None:
        return f"The gates of {len(lists['tell_classes_apart'])} of {total} SE blocks depend on the class"
    if not dispensable:
        return "No SE block is shown to be dispensable"
    return f"{len(dispensable)} of {total} SE blocks are dispensable: without each, AP drops by at most {MARGIN}"


def _gates(analysis: Excitations) -> Table:
    headings = ["block", "mean gate", "spread over images (%)", "explained by classes (%)", "saturated (%)"]
    rows: list[list[Cell]] = [
        [
            name,
            Number(float(block.mean[-1].mean()), places=3),
            Number(100 * block.relative_spread, places=1),
            Number(None if block.class_share is None else 100 * block.class_share, places=1),
            Number(100 * block.saturated, places=1),
        ]
        for name, block in analysis.statistics.items()
    ]
    return Table("The gates of each SE block", headings, rows, wide=True)


def _ablation(ablation: Ablation) -> Table:
    ablated = ablation.rows()
    ends = [end for row in ablated.values() for end in (row.difference["AP"].low, row.difference["AP"].high) if end]
    reach = max(map(abs, ends), default=1.0)
    headings = ["held at its mean", "AP", "change in AP, 95 % interval", "AP@0.5", "parameters saved", "time saved (%)"]
    unchanged = ablation.unchanged
    rows: list[list[Cell]] = [["none", Number(unchanged["AP"]), "", Number(unchanged["AP50"]), "", ""]]
    for name, row in ablated.items():
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


def _images(title: str, analysis: Excitations, paths: Sequence[Path], folder: str) -> list[ImageGrid]:
    images: list[EmbeddedImage] = [
        embed_file(path, f"{path.stem.replace('_', ' ')} of {analysis.run.folder.name}", title=path.stem)
        for path in paths
        if path.parent.name == folder and path.suffix == ".png"
    ]
    return [ImageGrid(title, images, large=True)] if images else []
