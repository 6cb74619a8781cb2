"""The analysis of a detector's gates as one HTML page; its text is in `templates/gates.html.jinja`."""

from collections.abc import Sequence
from pathlib import Path

from ..runs.metrics import read_training_curve
from ..runs.record import read_record
from ..visualization.embedded_images import EmbeddedImage, embed_file
from ..visualization.page import write_page
from .ablation import MARGIN
from .excitations import Excitations
from .gate_tables import excitations_notes, findings
from .statistics import CLASS_DEPENDENT, NEARLY_CONSTANT, SATURATED

# With fewer images, or for a detector with a lower AP, the page has no headline.
MIN_IMAGES, MIN_AP = 100, 5.0


def write_excitation_page(analysis: Excitations, paths: Sequence[Path], page: Path, command: str) -> Path:
    """Writes the page, replaces an older one, and returns its path.

    Args:
        paths: from :func:`write_excitations` and :func:`draw_effect`; the page shows the images among them.
        command: the command line of the analysis.

    Raises:
        UserError: an image can't be read.
    """
    run = analysis.run.folder
    write_page(
        page,
        "se_detection.gates",
        "gates.html.jinja",
        title=f"The SE gates of {run.resolve().name}",
        verdict=_headline(analysis),
        run=run.name,
        data=analysis.data,
        statistics=analysis.statistics,
        ablation=analysis.ablation,
        notes=excitations_notes(analysis),
        thresholds={"class": CLASS_DEPENDENT, "saturated": SATURATED, "constant": NEARLY_CONSTANT, "ap": MARGIN},
        plots=_images(paths, "plots"),
        effect=_images(paths, "pictures"),
        training=read_record(run).get("command"),
        command=command,
    )
    return page


def _headline(analysis: Excitations) -> str:
    """How many blocks are dispensable or, without an ablation, have gates that depend on the class.

    With few images, or for a barely trained detector, it says only that.
    """
    images = len(analysis.data.images)
    if images < MIN_IMAGES:
        return f"Too few images for a conclusion: {images}, and {MIN_IMAGES} are needed"
    known = list(read_training_curve(analysis.run.folder)["ap"].values())
    ap = analysis.ablation.unchanged["AP"] if analysis.ablation else known[-1] if known else None
    if ap is not None and ap < MIN_AP:
        return f"The detector is barely trained (AP {ap:.1f}), too little for a conclusion on its gates"
    lists, total = findings(analysis), len(analysis.statistics)
    dispensable = lists.get("dispensable")
    if dispensable is None:
        return f"The gates of {len(lists['tell_classes_apart'])} of {total} SE blocks depend on the class"
    if not dispensable:
        return "No SE block is shown to be dispensable"
    return f"Dispensable SE blocks: {len(dispensable)} of {total}; without each, AP drops by at most {MARGIN}"


def _images(paths: Sequence[Path], folder: str) -> dict[str, EmbeddedImage]:
    return {path.stem: embed_file(path) for path in paths if path.parent.name == folder and path.suffix == ".png"}
