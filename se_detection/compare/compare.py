"""Two detectors on the same images: their AP, the differences, and what the images and runs allow to say about them.

Images are drawn with replacement, the same for all runs (Efron and Tibshirani, *An Introduction to the Bootstrap*,
1993); `intervals.py` has what becomes of that.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from tqdm import tqdm

from ..data.coco_files import load_annotations, load_results
from ..data.coco_format import Entry
from ..errors import UserError
from .comparison import ClassDifference, Comparison, Details, Spread
from .details import Curve, calibration, mean_errors, precision_recall, size_ranges
from .intervals import Difference, Estimate, benjamini_hochberg, estimate
from .matching import COCO_AREAS, THRESHOLDS, Area, Array
from .scores import METRICS, Scores, score_run

Results = list[Entry] | Path | str

SEED = 0
# With fewer, a standard error is off by more than a tenth too often.
MIN_BOOTSTRAP = 100
SIDES = ("baseline", "candidate")
# A detector with nothing in a larger part of the images that hold objects is worth a note.
SILENT_PART = 0.05


def compare(
    baseline: Results | Sequence[Results],
    candidate: Results | Sequence[Results],
    annotations: Entry | Path | str,
    n_bootstrap: int = 1000,
) -> Comparison:
    """Compares two detectors' boxes.

    AP is pycocotools'. With two or more training runs of each detector, the intervals cover the choice of images and
    the chance of training; otherwise the choice of images alone.

    Args:
        baseline: COCO's results (`image_id`, `category_id`, `bbox`, `score`), as a list or a JSON file; may be empty.
            Or a list of such, one for each training run.
        candidate: the same.
        annotations: COCO's instances, as a dictionary or a JSON file.
        n_bootstrap: how often images are drawn.

    Raises:
        UserError: a file that can't be read, results of other images or categories, a run given twice, too small an
            `n_bootstrap`.
    """
    if n_bootstrap < MIN_BOOTSTRAP:
        raise UserError(f"{n_bootstrap} bootstrap samples are too few for an interval; take {MIN_BOOTSTRAP} or more")
    coco = load_annotations(annotations)
    results = [_load_runs(source, coco, name) for source, name in ((baseline, SIDES[0]), (candidate, SIDES[1]))]
    images = len(coco.imgs)
    weights = image_weights(images, n_bootstrap)
    sizes = size_ranges(coco)
    steps = len(coco.cats) * sum(map(len, results))
    with tqdm(total=steps, desc="bootstrap", unit="category", disable=None, leave=False) as progress:
        arms = [[score_run(coco, run, weights, sizes, progress.update) for run in runs] for runs in results]
    return _conclude(coco, arms, sizes, _silent_runs(coco, results))


def draw_images(images: int, n_bootstrap: int) -> Array:
    """How often each image is drawn in each bootstrap sample: (samples, images); the same with every call."""
    drawn = np.random.default_rng(SEED).multinomial(images, np.full(images, 1 / images), size=n_bootstrap)
    return drawn.astype(np.float64)


def image_weights(images: int, n_bootstrap: int) -> Array:
    """For :func:`score_run`: (images, 1 + samples), the images themselves and then each bootstrap sample."""
    return np.column_stack([np.ones(images), draw_images(images, n_bootstrap).T])


def _load_runs(source: Results | Sequence[Results], coco: COCO, name: str) -> list[list[Entry]]:
    several = not isinstance(source, str | Path) and len(source) > 0 and not isinstance(source[0], dict)
    runs: Any = source if several else [source]
    names = [f"{name}, run {number}" for number in range(1, len(runs) + 1)] if several else [name]
    loaded = [load_results(run, coco, where) for run, where in zip(runs, names, strict=True)]
    for number, run in enumerate(loaded):
        if run and run in loaded[:number]:
            same = loaded.index(run) + 1
            raise UserError(f"{name}: runs {same} and {number + 1} have the same detections; give each run once")
    return loaded


def _silent_runs(coco: COCO, results: list[list[list[Entry]]]) -> list[str]:
    """A note on each run that has found nothing at all in many images: its results may be of a part of them."""
    objects = {item["image_id"] for item in _objects(coco)}
    notes = []
    for name, arm in zip(SIDES, results, strict=True):
        for number, run in enumerate(arm, start=1):
            silent = objects - {item["image_id"] for item in run}
            if len(silent) > SILENT_PART * len(objects):
                which = f"{name}, run {number}" if len(arm) > 1 else name
                notes.append(f"{which}: no detections in {len(silent)} of {len(objects)} images with objects")
    return notes


def _objects(coco: COCO) -> list[Entry]:
    return [item for item in coco.anns.values() if not item["iscrowd"]]


def images_by_size(coco: COCO) -> list[int]:
    """How many images hold objects of any size, and of each of COCO's."""
    objects = _objects(coco)
    return [_images(objects, *area) for area in COCO_AREAS]


def _images(objects: list[Entry], low: float, high: float) -> int:
    """How many images hold objects of these areas."""
    return len({item["image_id"] for item in objects if low <= item["area"] <= high})


def _conclude(coco: COCO, arms: list[list[Scores]], sizes: list[Area], notes: list[str]) -> Comparison:
    objects = _objects(coco)
    images = images_by_size(coco)
    metrics = _rows(arms, lambda run: list(run.metrics.values()))
    estimates = _estimates(metrics, [images[area] for area in METRICS.values()])
    differences = {name: item.difference() for name, item in zip(METRICS, estimates, strict=True)}
    runs = {
        name: {metric: _spread(values) for metric, values in zip(METRICS, rows, strict=True)}
        for name, rows in zip(SIDES, metrics, strict=True)
    }
    covers = _covers(differences["AP"], [len(arm) for arm in arms])
    by_iou, by_size = _rows(arms, lambda run: run.by_iou), _rows(arms, lambda run: run.by_size)
    described = [[run.details for run in arm] for arm in arms]
    details = Details(
        {name: mean_errors(arm) for name, arm in zip(SIDES, described, strict=True)},
        precision_recall(*described),
        _curve([float(iou) for iou in THRESHOLDS], by_iou, [images[0]] * len(THRESHOLDS)),
        _curve([high**0.5 for _, high in sizes], by_size, [_images(objects, *area) for area in sizes]),
        {name: calibration(arm) for name, arm in zip(SIDES, described, strict=True)},
    )
    means = [{metric: _mean(values) for metric, values in zip(METRICS, rows, strict=True)} for rows in metrics]
    per_class = _per_class(coco, _rows(arms, lambda run: run.by_class))
    verdict = _verdict(differences["AP"], covers, [len(arm) for arm in arms], images[0])
    return Comparison(means[0], means[1], differences, verdict, covers, runs, per_class, details, notes)


def _rows(arms: list[list[Scores]], figures: Callable[[Scores], list[Array]]) -> list[list[Array]]:
    """Of each arm, each figure's (runs, sets of weights)."""
    return [[np.array(runs) for runs in zip(*map(figures, arm), strict=True)] for arm in arms]


def _estimates(rows: list[list[Array]], images: list[int]) -> list[Estimate]:
    baseline, candidate = rows
    return [estimate(*figures) for figures in zip(baseline, candidate, images, strict=True)]


def _mean(runs: Array) -> float | None:
    """On the images themselves, whose weights come first."""
    value = float(runs[:, 0].mean())
    return None if np.isnan(value) else value


def _spread(runs: Array) -> Spread:
    values = [None if np.isnan(value) else float(value) for value in runs[:, 0]]
    return Spread(values, float(runs[:, 0].std(ddof=1)) if len(runs) > 1 and None not in values else None)


def _curve(x: list[float], rows: list[list[Array]], images: list[int]) -> Curve:
    baseline, candidate = ([_mean(runs) for runs in arm] for arm in rows)
    return Curve(x, baseline, candidate, [item.difference() for item in _estimates(rows, images)])


def _per_class(coco: COCO, rows: list[list[Array]]) -> dict[str, ClassDifference]:
    categories = sorted(coco.cats)
    names = [str(coco.cats[category].get("name", category)) for category in categories]
    labels = [f"{name} ({key})" if names.count(name) > 1 else name for key, name in zip(categories, names, strict=True)]
    images: dict[Any, set[Any]] = {category: set() for category in categories}
    for item in _objects(coco):
        images[item["category_id"]].add(item["image_id"])
    counts = [len(images[category]) for category in categories]
    estimates = _estimates(rows, counts)
    adjusted = benjamini_hochberg([item.p_value() for item in estimates])
    columns = zip(labels, counts, *rows, estimates, adjusted, strict=True)
    return {
        label: ClassDifference(count, _mean(first), _mean(second), item.difference(), p)
        for label, count, first, second, item, p in columns
    }


def _covers(ap: Difference, runs: list[int]) -> str:
    if ap.low is None:
        return ""
    return "images and training runs" if min(runs) > 1 else "images"


def _verdict(ap: Difference, covers: str, runs: list[int], images: int) -> str:
    if ap.value is None:
        return "no difference in AP can be told (AP is undefined: the annotations have no boxes)"
    if ap.low is None or ap.high is None:
        return f"no difference in AP can be told ({images} images with objects are too few for an interval)"
    if covers == "images":
        about = "over images; not over repeated training"
    else:
        about = f"over images and training runs, {runs[0]} and {runs[1]}"
    if ap.low <= 0 <= ap.high:
        return f"no difference in AP can be told (95 % interval {ap.low:.2f} to {ap.high:.2f}, {about})"
    word = "better" if ap.low > 0 else "worse"
    low, high = sorted((abs(ap.low), abs(ap.high)))
    return f"candidate is {word} by {low:.2f} to {high:.2f} AP (95 % interval {about})"
