"""The report of a study: tables and a figure made from its records."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from se_detection.comparison.intervals import Difference
from se_detection.errors import UserError, counted
from se_detection.files import read_json, write_whole

from .definition import Study
from .run_records import Record, Records, read_records, times_file
from .study_differences import METRICS, VariantResult, variant_results
from .study_plots import draw_study

EDGE = "†"


def write_study_report(study: Study, results: Path, page: Path | None) -> list[Path]:
    """Writes the figure next to the records, and tables and figure into a page; returns the written files.

    Args:
        study: its definition.
        results: folder of the records.
        page: a Markdown page; the text between the lines `<!-- NAME begin -->` and `<!-- NAME end -->` is replaced. If
            None, the tables are printed.

    Raises:
        UserError: there are no records, or the page does not have these lines.
    """
    records = read_records(results, study)
    if not any(runs for variants in records.values() for runs in variants.values()):
        raise UserError(
            "study.no_records", f"{results} has no records of {study.name}; make them with tools/study.py run"
        )
    found = variant_results(study, records)
    times = times_file(results, study)
    text = "\n\n".join(tables(study, records, found, read_json(times) if times.is_file() else None))
    image = results / f"{study.name}.png"
    if page is None:
        print(text)
        return [draw_study(study, found, image)]
    begin, end = f"<!-- {study.name} begin -->", f"<!-- {study.name} end -->"
    content = page.read_text(encoding="utf-8") if page.is_file() else ""
    place = re.search(rf"{re.escape(begin)}.*{re.escape(end)}", content, flags=re.DOTALL)
    if place is None:
        raise UserError("study.no_marks", f"{page} has no lines {begin} and {end}; add them where the tables belong")
    draw_study(study, found, image)
    link = Path(os.path.relpath(image, page.parent)).as_posix()
    inside = f"{begin}\n\n{text}\n\n![Every run of {study.name}, and the differences]({link})\n\n{end}"
    changed = content[: place.start()] + inside + content[place.end() :]
    write_whole(page, lambda file: file.write(changed.encode()))
    return [image, page]


def tables(
    study: Study, records: Records, found: Sequence[VariantResult], times: Mapping[str, Any] | None
) -> list[str]:
    """The variants with their differences to the baseline, their costs, and all runs, in Markdown."""
    finished = sum(len(runs) for variants in records.values() for runs in variants.values())
    total = len(study.variants) * sum(len(data.seeds) for data in study.data.values())
    parts = [f"{finished} of {counted(total, 'run')} are finished."] if finished < total else []
    headings = ["data", "variant", "runs", *METRICS, *(f"{metric} - `{study.baseline}`" for metric in METRICS)]
    parts += [_table([_result_row(result) for result in found], headings)]
    headings = ["variant", "parameters (M)", "GFLOPs of the backbone", "time of a training step", "time of inference"]
    parts += ["Costs; times are ratios measured in turn, medians with quartiles:"]
    parts += [_table(_cost_rows(study, found, times), headings)]
    parts += ["All runs, and the trials of the learning rate (AP on images used neither for training nor for testing):"]
    headings = ["data", "variant", "AP / AP50 of each seed", "learning rate", "AP of the trials"]
    parts += [_table([_run_row(result) for result in found if result.runs], headings)]
    if any(_at_edge(result.runs[0]) for result in found if result.runs):
        parts += [f"{EDGE} The lowest or highest rate of the trials: a better one may lie beyond."]
    return parts


def _table(rows: list[list[Any]], headings: list[str]) -> str:
    return tabulate(rows, headings, tablefmt="github", disable_numparse=True)


def _result_row(result: VariantResult) -> list[Any]:
    differences = [_shown(result.differences.get(metric)) for metric in METRICS]
    if not result.runs:
        return ["**all**", f"`{result.variant}`", "", "", "", *differences]
    means = [_mean_and_std([run[metric] for run in result.runs]) for metric in METRICS]
    return [result.data, f"`{result.variant}`", len(result.runs), *means, *differences]


def _shown(change: Difference | None) -> str:
    if change is None or change.value is None:
        return ""
    interval = "" if change.low is None else f" ({change.low:.1f} to {change.high:.1f})"
    marks = "**" * change.excludes_zero
    return f"{marks}{change.value:+.1f}{interval}{marks}"


def _mean_and_std(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    spread = f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else ""
    return f"{np.mean(known):.1f}{spread}" if known else "–"


def _cost_rows(study: Study, found: Sequence[VariantResult], times: Mapping[str, Any] | None) -> list[list[Any]]:
    rows = []
    for variant in study.variants:
        run = next((result.runs[0] for result in found if result.variant == variant and result.runs), None)
        if run is not None:
            ratios = (times or {}).get("ratios", {}).get(variant, {})
            shown = "{ratio:.2f} ({low:.2f} to {high:.2f})"
            cells = [shown.format(**ratios[kind]) if kind in ratios else "" for kind in ("train", "inference")]
            rows.append([f"`{variant}`", f"{run['parameters'] / 1e6:.2f}", f"{run['backbone_gflops']:.2f}", *cells])
    return rows


def _run_row(result: VariantResult) -> list[Any]:
    run = result.runs[0]
    trials = ", ".join(
        f"{rate}: {'diverged' if ap is None else f'{ap:.1f}'}" for rate, ap in run["learning_rate_trials"].items()
    )
    scores = ", ".join(f"{_figure(run['AP'])} / {_figure(run['AP50'])}" for run in result.runs)
    return [result.data, f"`{result.variant}`", scores, f"{run['learning_rate']}{EDGE * _at_edge(run)}", trials]


def _at_edge(run: Record) -> bool:
    tried = [float(rate) for rate, ap in run["learning_rate_trials"].items() if ap is not None]
    return run["learning_rate"] in (min(tried), max(tried))


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
