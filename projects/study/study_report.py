"""The report of a study: tables and plots made from its records."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from se_detection.comparison.intervals import estimate
from se_detection.errors import UserError, counted
from se_detection.files import write_whole

from .definition import Study
from .run_records import BACKBONE, KEPT, Records, read_of_study, read_records, times_file
from .study_plots import draw_curves

Runs = Sequence[Mapping[str, Any]]

EDGE = "†"


def write_study_report(study: Study, results: Path, page: Path | None) -> list[Path]:
    """Writes the plots next to the records, and tables and plots into a page; returns the written files.

    Args:
        results: folder of the records.
        page: a Markdown page; the text between the lines `<!-- NAME begin -->` and `<!-- NAME end -->` is replaced. If
            None, the tables are printed.

    Raises:
        UserError: there are no records, or the page does not have these lines.
    """
    records = read_records(results, study)
    if not any(records.values()):
        raise UserError(
            "study.no_records", f"{results} has no records of {study.name}; make them with tools/study.py run"
        )
    text = "\n\n".join(tables(study, records, read_of_study(times_file(results, study), study)))
    image = results / f"{study.name}.png"
    if page is None:
        print(text)
        return [draw_curves(records, image)]
    begin, end = f"<!-- {study.name} begin -->", f"<!-- {study.name} end -->"
    content = page.read_text(encoding="utf-8") if page.is_file() else ""
    place = re.search(rf"{re.escape(begin)}.*{re.escape(end)}", content, flags=re.DOTALL)
    if place is None:
        raise UserError("study.no_marks", f"{page} has no lines {begin} and {end}; add them where the tables belong")
    draw_curves(records, image)
    link = Path(os.path.relpath(image, page.parent)).as_posix()
    inside = f"{begin}\n\n{text}\n\n![Every run of {study.name}]({link})\n\n{end}"
    changed = content[: place.start()] + inside + content[place.end() :]
    write_whole(page, lambda file: file.write(changed.encode()))
    return [image, page]


def tables(study: Study, records: Records, times: Mapping[str, Any] | None) -> list[str]:
    """The variants, their differences to the baseline, and all runs, in Markdown."""
    kept = {name: list(runs.values()) for name, runs in records.items() if runs}
    finished, total = sum(map(len, kept.values())), len(study.variants) * len(study.seeds)
    parts = [f"{finished} of {counted(total, 'run')} are finished."] if finished < total else []
    headings = ["variant", "runs", *KEPT, "backbone top-1", "params (M)", "GFLOPs", "training step time"]
    rows = [_variant_row(name, runs, times) for name, runs in kept.items()]
    parts += ["Mean and standard deviation over training runs:", _table(rows, [*headings, "inference time"])]
    base = kept.get(study.baseline.name)
    others = {name: runs for name, runs in kept.items() if name != study.baseline.name}
    if base and others:
        parts += [
            f"Difference to `{study.baseline.name}` with a 95 % interval. With a single run, the interval covers the "
            "choice of test images, but not the variation between trainings:",
            _table(
                [_difference_row(name, base, runs) for name, runs in others.items()],
                ["variant", "interval covers", *KEPT],
            ),
        ]
    parts += ["All runs, and the trials of the learning rate (AP on images used neither for training nor for testing):"]
    headings = [
        "variant",
        "seed",
        "AP",
        "AP50",
        "AP75",
        "backbone top-1",
        "learning rate",
        "AP of the trials",
        "commit",
    ]
    parts += [_table([_run_row(name, run) for name, runs in kept.items() for run in runs], headings)]
    if any(_at_edge(run) for runs in kept.values() for run in runs):
        parts += [f"{EDGE} The lowest or highest rate of the trials: a better one may lie beyond."]
    return parts


def _table(rows: list[list[Any]], headings: list[str]) -> str:
    return tabulate(rows, headings, tablefmt="github", disable_numparse=True)


def _variant_row(name: str, runs: Runs, times: Mapping[str, Any] | None) -> list[Any]:
    row = [f"`{name}`", len(runs), *(_mean_and_std([run[metric] for run in runs]) for metric in KEPT)]
    row += [_mean_and_std([run[BACKBONE]["top1"] for run in runs])]
    row += [f"{runs[0]['parameters'] / 1e6:.2f}", f"{runs[0]['backbone_gflops']:.2f}"]
    ratios = (times or {}).get("ratios", {}).get(name, {})
    shown = "{ratio:.2f} ({low:.2f} to {high:.2f})"
    return [*row, *(shown.format(**ratios[kind]) if kind in ratios else "" for kind in ("train", "inference"))]


def _mean_and_std(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    spread = f" ± {np.std(known, ddof=1):.2f}" if len(known) > 1 else ""
    return f"{np.mean(known):.2f}{spread}" if known else "–"


def _difference_row(name: str, base: Runs, runs: Runs) -> list[Any]:
    row = [f"`{name}`", "images and trainings" if min(len(base), len(runs)) > 1 else "images"]
    for metric in KEPT:
        samples = [np.array([run["bootstrap"][metric] for run in group], dtype=float) for group in (base, runs)]
        change = estimate(samples[0], samples[1], base[0]["images"][metric]).difference()
        known = change.value is not None and change.low is not None
        row.append(f"{change.value:+.2f} ({change.low:.2f} to {change.high:.2f})" if known else "–")
    return row


def _run_row(name: str, run: Mapping[str, Any]) -> list[Any]:
    trials = run["learning_rate_trials"]
    shown = ", ".join(f"{rate}: {'diverged' if ap is None else _figure(ap)}" for rate, ap in trials.items())
    figures = [_figure(run[metric]) for metric in ("AP", "AP50", "AP75")]
    commit = run["commit"][:9] + "-dirty" * run["commit"].endswith("-dirty")
    rate = f"{run['learning_rate']}{EDGE * _at_edge(run)}"
    return [f"`{name}`", run["seed"], *figures, _figure(run[BACKBONE]["top1"]), rate, shown, commit]


def _at_edge(run: Mapping[str, Any]) -> bool:
    tried = [float(rate) for rate, ap in run["learning_rate_trials"].items() if ap is not None]
    return run["learning_rate"] in (min(tried), max(tried))


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
