"""The report of a study: tables and plots made from its records."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from se_detection.comparison.intervals import Difference, estimate
from se_detection.errors import UserError
from se_detection.files import write_whole

from .definition import Study
from .run_records import BACKBONE, KEPT, read_records, read_times
from .study_plots import draw_curves

EDGE = "†"

Records = Mapping[str, Mapping[int, Mapping[str, Any]]]


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
        raise UserError(f"{results} has no records of {study.name}; make them with tools/study.py run")
    text = "\n\n".join(tables(study, records, read_times(results, study)))
    image = results / f"{study.name}.png"
    if page is None:
        print(text)
        return [draw_curves(records, image)]
    begin, end = f"<!-- {study.name} begin -->", f"<!-- {study.name} end -->"
    content = page.read_text(encoding="utf-8") if page.is_file() else ""
    place = re.search(rf"{re.escape(begin)}.*{re.escape(end)}", content, flags=re.DOTALL)
    if place is None:
        raise UserError(f"{page} has no lines {begin} and {end}; add them where the tables belong")
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
    parts = [f"{finished} of {total} runs are finished."] if finished < total else []
    parts += [
        "Mean and standard deviation over training runs:",
        _variants_table(kept, times),
    ]
    base = kept.get(study.baseline.name)
    others = {name: runs for name, runs in kept.items() if name != study.baseline.name}
    if base and others:
        parts += [
            f"Difference to `{study.baseline.name}` with a 95 % interval. With a single run, the interval covers the "
            "choice of test images, but not the variation between trainings:",
            _differences_table(base, others),
        ]
    parts += ["All runs, and the trials of the learning rate (AP on images used neither for training nor for testing):"]
    parts += [_runs_table(kept)]
    if any(_at_edge(run) for runs in kept.values() for run in runs):
        parts += [f"{EDGE} The lowest or highest rate of the trials: a better one may lie beyond."]
    return parts


def _at_edge(run: Mapping[str, Any]) -> bool:
    tried = sorted(float(rate) for rate, ap in run["learning_rate_trials"].items() if ap is not None)
    return run["learning_rate"] in (tried[0], tried[-1])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _variants_table(kept: Mapping[str, list[Mapping[str, Any]]], times: Mapping[str, Any] | None) -> str:
    rows = []
    for name, runs in kept.items():
        row = [f"`{name}`", len(runs), *(_mean_and_std([run[metric] for run in runs]) for metric in KEPT)]
        row += [_mean_and_std([run[BACKBONE]["top1"] for run in runs])]
        row += [f"{runs[0]['parameters'] / 1e6:.2f}", f"{runs[0]['backbone_gflops']:.2f}"]
        row += [_ratio(times, name, kind) for kind in ("train", "inference")]
        rows.append(row)
    headers = [
        "variant",
        "runs",
        *KEPT,
        "backbone top-1",
        "params (M)",
        "GFLOPs",
        "training step time",
        "inference time",
    ]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _ratio(times: Mapping[str, Any] | None, name: str, kind: str) -> str:
    if times is None or name not in times["ratios"]:
        return ""
    ratio = times["ratios"][name][kind]
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _mean_and_std(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{np.mean(known):.2f}"
    return f"{mean} ± {np.std(known, ddof=1):.2f}" if len(known) > 1 else mean


def _differences_table(base: list[Mapping[str, Any]], others: Mapping[str, list[Mapping[str, Any]]]) -> str:
    rows = []
    for name, runs in others.items():
        differences = [_difference(base, runs, metric) for metric in KEPT]
        covers = "images and trainings" if min(len(base), len(runs)) > 1 else "images"
        rows.append([f"`{name}`", covers, *map(_signed, differences)])
    return tabulate(rows, ["variant", "interval covers", *KEPT], tablefmt="github", disable_numparse=True)


def _difference(base: list[Mapping[str, Any]], runs: list[Mapping[str, Any]], metric: str) -> Difference:
    samples = [np.array([run["bootstrap"][metric] for run in group], dtype=float) for group in (base, runs)]
    return estimate(samples[0], samples[1], base[0]["images"][metric]).difference()


def _signed(difference: Difference) -> str:
    if difference.value is None or difference.low is None:
        return "–"
    return f"{difference.value:+.2f} ({difference.low:.2f} to {difference.high:.2f})"


def _runs_table(kept: Mapping[str, list[Mapping[str, Any]]]) -> str:
    rows = []
    for name, runs in kept.items():
        for run in runs:
            trials = run["learning_rate_trials"]
            shown = ", ".join(f"{rate}: {_figure(ap) if ap is not None else 'diverged'}" for rate, ap in trials.items())
            rate = f"{run['learning_rate']}{EDGE * _at_edge(run)}"
            figures = [_figure(run[metric]) for metric in ("AP", "AP50", "AP75")]
            commit = run["commit"][:9] + "-dirty" * run["commit"].endswith("-dirty")
            rows.append([f"`{name}`", run["seed"], *figures, _figure(run[BACKBONE]["top1"]), rate, shown, commit])
    headers = ["variant", "seed", "AP", "AP50", "AP75", "backbone top-1", "learning rate", "AP of the trials", "commit"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
