"""A study's tables and curves, made of its records alone."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from se_detection.compare.intervals import Difference, estimate
from se_detection.errors import UserError
from se_detection.files import write_whole

from .definition import Study
from .run_records import KEPT, read_records, read_times
from .study_plots import draw_curves

EDGE = "†"

Records = Mapping[str, Mapping[int, Mapping[str, Any]]]


def write_study_report(study: Study, results: Path, page: Path | None) -> list[Path]:
    """Draws the curves beside the records, and writes tables and image into a page.

    Args:
        results: the folder of the records.
        page: Markdown with the lines `<!-- NAME begin -->` and `<!-- NAME end -->`; what is between them is replaced.

    Raises:
        UserError: there are no records, or the page has no such lines.
    """
    records = read_records(results, study)
    if not any(records.values()):
        raise UserError(f"{results} has no records of {study.name}; tools/study.py run makes them")
    text = "\n\n".join(tables(study, records, read_times(results, study)))
    image = results / f"{study.name}.png"
    if page is None:
        print(text)
        return [draw_curves(records, image)]
    begin, end = f"<!-- {study.name} begin -->", f"<!-- {study.name} end -->"
    content = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = re.search(rf"{re.escape(begin)}.*{re.escape(end)}", content, flags=re.DOTALL)
    if found is None:
        raise UserError(f"{page} has no lines {begin} and {end} for the tables to stand between")
    draw_curves(records, image)
    link = Path(os.path.relpath(image, page.parent)).as_posix()
    inside = f"{begin}\n\n{text}\n\n![Every run of {study.name}]({link})\n\n{end}"
    changed = content[: found.start()] + inside + content[found.end() :]
    write_whole(page, lambda file: file.write(changed.encode()))
    return [image, page]


def tables(study: Study, records: Records, times: Mapping[str, Any] | None) -> list[str]:
    """The arms, their differences to the baseline, and every run, in Markdown."""
    kept = {name: list(runs.values()) for name, runs in records.items() if runs}
    made, wanted = sum(map(len, kept.values())), len(study.arms) * len(study.seeds)
    found = [f"{made} of {wanted} runs have been made so far."] if made < wanted else []
    found += [
        "Mean and standard deviation over training runs:",
        _arms_table(kept, times),
    ]
    base = kept.get(study.baseline.name)
    others = {name: runs for name, runs in kept.items() if name != study.baseline.name}
    if base and others:
        found += [
            f"Difference to `{study.baseline.name}`, with a 95 % interval; after a single run it is about other "
            "images alone, and says nothing of another training:",
            _differences_table(base, others),
        ]
    found += ["Every run, and the trials of its learning rate (AP on images that are neither trained nor tested on):"]
    found += [_runs_table(kept)]
    if any(_at_edge(run) for runs in kept.values() for run in runs):
        found += [f"{EDGE} The lowest or highest of the rates that were tried: a better one may lie beyond."]
    return found


def _at_edge(run: Mapping[str, Any]) -> bool:
    tried = sorted(float(rate) for rate, ap in run["learning_rate_trials"].items() if ap is not None)
    return run["learning_rate"] in (tried[0], tried[-1])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _arms_table(kept: Mapping[str, list[Mapping[str, Any]]], times: Mapping[str, Any] | None) -> str:
    rows = []
    for name, runs in kept.items():
        row = [f"`{name}`", len(runs), *(_mean_and_std([run[metric] for run in runs]) for metric in KEPT)]
        row += [_mean_and_std([run["backbone"]["top1"] for run in runs])]
        row += [f"{runs[0]['parameters'] / 1e6:.2f}", f"{runs[0]['backbone_gflops']:.2f}"]
        row += [_ratio(times, name, kind) for kind in ("train", "inference")]
        rows.append(row)
    headers = ["arm", "runs", *KEPT, "backbone's top-1", "params (M)", "GFLOPs", "time of a step", "of an image"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _ratio(times: Mapping[str, Any] | None, name: str, kind: str) -> str:
    if times is None or name not in times["ratios"]:
        return ""
    found = times["ratios"][name][kind]
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _mean_and_std(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{np.mean(known):.2f}"
    return f"{mean} ± {np.std(known, ddof=1):.2f}" if len(known) > 1 else mean


def _differences_table(base: list[Mapping[str, Any]], others: Mapping[str, list[Mapping[str, Any]]]) -> str:
    rows = []
    for name, runs in others.items():
        found = [_difference(base, runs, metric) for metric in KEPT]
        about = "images and trainings" if min(len(base), len(runs)) > 1 else "images"
        rows.append([f"`{name}`", about, *map(_signed, found)])
    return tabulate(rows, ["arm", "interval about", *KEPT], tablefmt="github", disable_numparse=True)


def _difference(base: list[Mapping[str, Any]], runs: list[Mapping[str, Any]], metric: str) -> Difference:
    arms = [np.array([run["bootstrap"][metric] for run in arm], dtype=float) for arm in (base, runs)]
    return estimate(arms[0], arms[1], base[0]["images"][metric]).difference()


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
            rows.append([f"`{name}`", run["seed"], *figures, _figure(run["backbone"]["top1"]), rate, shown, commit])
    headers = ["arm", "seed", "AP", "AP50", "AP75", "backbone's top-1", "learning rate", "AP of its trials", "commit"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
