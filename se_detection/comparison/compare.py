"""Compares the AP of two detectors on the same images, with intervals from a paired bootstrap over images.

Images are sampled with replacement, in the same way for all runs (Efron and Tibshirani, *An Introduction to the
Bootstrap*, 1993); `intervals.py` computes the intervals from these samples.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from tqdm import tqdm

from ..data.coco_files import load_annotations, load_results
from ..data.coco_format import Entry
from ..errors import UserError, counted
from .details import Curve, calibration, mean_errors, precision_recall, size_ranges
from .intervals import Difference, Estimate, benjamini_hochberg, estimate, without_nan
from .matching import COCO_AREAS, THRESHOLDS, Area, Array
from .result import HEADLINE, ROLES, ClassDifference, Comparison, Details, Spread
from .scores import METRICS, Scores, score_run

Results = list[Entry] | Path | str

SEED = 0
# With fewer samples, the standard error is too often wrong by more than 10 %.
MIN_BOOTSTRAP = 100
# A note is made if a run has no detections in a larger share of the images with objects.
MAX_EMPTY_SHARE = 0.05
# A note is made if AP@0.5 of both models is lower, in percent.
MIN_AP50 = 1


def compare(
    baseline: Results | Sequence[Results],
    candidate: Results | Sequence[Results],
    annotations: Entry | Path | str,
    n_bootstrap: int = 1000,
) -> Comparison:
    """Compares the boxes of two detectors, with the same AP as pycocotools.

    With two or more training runs of each detector, the intervals cover the choice of images and the randomness of
    training; otherwise only the choice of images.

    Args:
        baseline: COCO results (`image_id`, `category_id`, `bbox`, `score`), as a list or a JSON file; may be empty.
            With several training runs, a list of these.
        candidate: as `baseline`.
        annotations: COCO instances, as a dictionary or a JSON file.
        n_bootstrap: the number of bootstrap samples.

    Raises:
        UserError: a file can't be read, the results are for other images or categories, a run is given twice, or
            `n_bootstrap` is too small.
    """
    if n_bootstrap < MIN_BOOTSTRAP:
        message = f"n_bootstrap: {n_bootstrap} is too few for an interval; use {MIN_BOOTSTRAP} or more"
        raise UserError("compare.few_samples", message)
    coco = load_annotations(annotations)
    results = [_load_runs(source, coco, name) for source, name in zip((baseline, candidate), ROLES, strict=True)]
    images = len(coco.imgs)
    weights = image_weights(images, n_bootstrap)
    sizes = size_ranges(coco)
    steps = len(coco.cats) * sum(map(len, results))
    with tqdm(total=steps, desc="bootstrap", unit="category", disable=None, leave=False) as progress:
        models = [[score_run(coco, run, weights, sizes, progress.update) for run in runs] for runs in results]
    return _make_comparison(coco, models, sizes, _notes_on_empty_images(coco, results))


def image_weights(images: int, n_bootstrap: int) -> Array:
    """The weights for :func:`score_run`: (images, 1 + samples), first the original images, then the samples.

    A weight is the number of times an image is in a bootstrap sample; the samples come from a fixed seed.
    """
    counts = np.random.default_rng(SEED).multinomial(images, np.full(images, 1 / images), size=n_bootstrap)
    return np.column_stack([np.ones(images), counts.T])


def _load_runs(source: Results | Sequence[Results], coco: COCO, name: str) -> list[list[Entry]]:
    several = not isinstance(source, str | Path) and len(source) > 0 and not isinstance(source[0], dict)
    runs: Any = source if several else [source]
    names = [f"{name}, run {number}" for number in range(1, len(runs) + 1)] if several else [name]
    loaded = [load_results(run, coco, where) for run, where in zip(runs, names, strict=True)]
    for number, run in enumerate(loaded):
        if run and run in loaded[:number]:
            same = loaded.index(run) + 1
            message = f"{name}: runs {same} and {number + 1} have the same detections; give each run once"
            raise UserError("compare.same_run", message)
    return loaded


def _notes_on_empty_images(coco: COCO, results: list[list[list[Entry]]]) -> list[str]:
    """A note on each run without detections in many images: its results may cover only a part of the data set."""
    with_objects = {item["image_id"] for item in _objects(coco)}
    notes = []
    for role, runs in zip(ROLES, results, strict=True):
        for number, run in enumerate(runs, start=1):
            empty = with_objects - {item["image_id"] for item in run}
            if len(empty) > MAX_EMPTY_SHARE * len(with_objects):
                which = f"{role}, run {number}" if len(runs) > 1 else role
                images = counted(len(with_objects), "image")
                notes.append(f"{which}: no detections in {len(empty)} of {images} with objects")
    return notes


def _objects(coco: COCO) -> list[Entry]:
    return [item for item in coco.anns.values() if not item["iscrowd"]]


def images_by_size(coco: COCO) -> list[int]:
    """The number of images with objects of any size, then with small, medium and large objects."""
    objects = _objects(coco)
    return [_count_images(objects, *area) for area in COCO_AREAS]


def _count_images(objects: list[Entry], low: float, high: float) -> int:
    """The number of images with objects in this range of areas."""
    return len({item["image_id"] for item in objects if low <= item["area"] <= high})


def _make_comparison(coco: COCO, models: list[list[Scores]], sizes: list[Area], notes: list[str]) -> Comparison:
    objects = _objects(coco)
    images = images_by_size(coco)
    metrics = _compared(models, lambda run: list(run.metrics.values()), [images[area] for area in METRICS.values()])
    by_iou = _compared(models, lambda run: run.by_iou, [images[0]] * len(THRESHOLDS))
    by_size = _compared(models, lambda run: run.by_size, [_count_images(objects, *area) for area in sizes])
    described = {role: [run.details for run in model] for role, model in zip(ROLES, models, strict=True)}
    differences = {name: row.estimate.difference() for name, row in zip(METRICS, metrics, strict=True)}
    run_counts = [len(model) for model in models]
    covers = "" if differences["AP"].low is None else "images and training runs" if min(run_counts) > 1 else "images"
    baseline, candidate = (
        {name: _mean(getattr(row, role)) for name, row in zip(METRICS, metrics, strict=True)} for role in ROLES
    )
    if all(model["AP50"] is not None and model["AP50"] < MIN_AP50 for model in (baseline, candidate)):
        untrained = f"AP@0.5 of both is below {MIN_AP50}: train longer before you compare, and check classes and data"
        notes = [*notes, untrained]
    return Comparison(
        baseline,
        candidate,
        differences,
        _verdict(differences, covers, run_counts, images[0]),
        covers,
        {
            role: {name: _spread(getattr(row, role)) for name, row in zip(METRICS, metrics, strict=True)}
            for role in ROLES
        },
        _per_class(coco, models),
        Details(
            {role: mean_errors(runs) for role, runs in described.items()},
            precision_recall(*described.values()),
            _curve([float(iou) for iou in THRESHOLDS], by_iou),
            _curve([high**0.5 for _, high in sizes], by_size),
            {role: calibration(runs) for role, runs in described.items()},
        ),
        notes,
    )


class _Compared(NamedTuple):
    """A value of each run, as (runs, sets of weights), and the difference between the models."""

    baseline: Array
    candidate: Array
    estimate: Estimate


def _compared(
    models: list[list[Scores]], get_values: Callable[[Scores], list[Array]], images: list[int]
) -> list[_Compared]:
    """Compares each value of the scores; `images` are the numbers of images that the values depend on."""
    baseline, candidate = ([np.array(runs) for runs in zip(*map(get_values, model), strict=True)] for model in models)
    triples = zip(baseline, candidate, images, strict=True)
    return [_Compared(first, second, estimate(first, second, count)) for first, second, count in triples]


def _mean(runs: Array) -> float | None:
    """The mean over runs on the original images, whose weights come first."""
    return without_nan(runs[:, :1].mean(axis=0))[0]


def _spread(runs: Array) -> Spread:
    values = without_nan(runs[:, 0])
    return Spread(values, float(runs[:, 0].std(ddof=1)) if len(runs) > 1 and None not in values else None)


def _curve(x: list[float], rows: list[_Compared]) -> Curve:
    baseline, candidate = ([_mean(getattr(row, role)) for row in rows] for role in ROLES)
    return Curve(x, baseline, candidate, [row.estimate.difference() for row in rows])


def _per_class(coco: COCO, models: list[list[Scores]]) -> dict[str, ClassDifference]:
    categories = sorted(coco.cats)
    names = [coco.cats[category]["name"] for category in categories]
    labels = [f"{name} ({key})" if names.count(name) > 1 else name for key, name in zip(categories, names, strict=True)]
    pairs = {(item["category_id"], item["image_id"]) for item in _objects(coco)}
    images = Counter(category for category, _ in pairs)
    counts = [images[category] for category in categories]
    rows = _compared(models, lambda run: run.by_class, counts)
    adjusted = benjamini_hochberg([row.estimate.p_value() for row in rows])
    return {
        label: ClassDifference(count, _mean(row.baseline), _mean(row.candidate), row.estimate.difference(), p)
        for label, count, row, p in zip(labels, counts, rows, adjusted, strict=True)
    }


def _verdict(differences: dict[str, Difference], covers: str, runs: list[int], images: int) -> str:
    """A sentence on AP and AP50, and in parentheses their intervals and what these cover."""
    own = {name: differences[key] for key, name in HEADLINE.items()}
    same = " or ".join(name for name, item in own.items() if not item.excludes_zero)
    if any(item.value is None for item in own.values()):
        return f"no significant difference in {same} (undefined: the annotations have no boxes)"
    known = [(name, i.low, i.high) for name, i in own.items() if i.low is not None and i.high is not None]
    if not known:
        return f"no significant difference in {same} (too few images with objects for an interval: {images})"
    changes: dict[str, list[str]] = {"better": [], "worse": []}
    for name, low, high in known:
        if low > 0:
            changes["better"].append(f"{low:.2f} to {high:.2f} {name}")
        elif high < 0:
            changes["worse"].append(f"{-high:.2f} to {-low:.2f} {name}")
    intervals = ", ".join(f"{name} {low:.2f} to {high:.2f}" for name, low, high in known)
    parts = [f"{word} by {' and '.join(amounts)}" for word, amounts in changes.items() if amounts]
    sentence = f"no significant difference in {same}"
    if parts:
        sentence = f"candidate is {', but '.join(parts)}" + (f", with {sentence}" if same else "")
    scope = "images; not over repeated training"
    if covers != "images":
        scope = f"images and training runs, {runs[0]} and {runs[1]}"
    return f"{sentence} (two tests, each with its own 95 % interval: {intervals}; over {scope})"
