"""Two detectors on the same images: their AP, the differences, and what the images allow to say about them.

The intervals are those of a paired bootstrap over images (Efron and Tibshirani, *An Introduction to the Bootstrap*,
1993, chapter 13: the percentile interval): images are drawn with replacement, the same for both detectors.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from ..errors import UserError
from .average_precision import METRICS, Array, average_precision, load_coco, match_boxes

Entry = dict[str, Any]

CONFIDENCE = 0.95
SEED = 0
# With fewer, the ends of the interval are chance.
MIN_BOOTSTRAP = 100
# With fewer, what is drawn from them says little about other images.
MIN_IMAGES = 10


@dataclass(frozen=True)
class Difference:
    """Candidate minus baseline, with its 95 % interval; None where it is undefined or where there is no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Arm:
    """What a table calls a detector; `backbone_input` is the (height, width) that its GFLOPs were counted at."""

    name: str
    backbone: str = ""
    backbone_input: tuple[int, int] | None = None


@dataclass(frozen=True)
class Comparison:
    """AP, AP50, AP75, APs, APm and APl of two detectors in percent (None where undefined), and their differences.

    Run folders have `parameters` and `gflops` besides.
    """

    baseline: dict[str, float | None]
    candidate: dict[str, float | None]
    difference: dict[str, Difference]
    verdict: str
    arms: tuple[Arm, Arm] = (Arm("baseline"), Arm("candidate"))

    def to_dict(self) -> dict[str, Any]:
        """The content of `comparison.json`."""
        content = asdict(self)
        del content["arms"]
        return content


def compare(
    baseline: list[Entry] | Path | str,
    candidate: list[Entry] | Path | str,
    annotations: Entry | Path | str,
    n_bootstrap: int = 1000,
) -> Comparison:
    """Compares two detectors' boxes.

    AP is pycocotools'. The interval of a difference leaves out the samples in which the metric is undefined; it covers
    the choice of images, not the chance of training.

    Args:
        baseline: COCO's results (`image_id`, `category_id`, `bbox`, `score`), as a list or a JSON file; may be empty.
        candidate: the same.
        annotations: COCO's instances, as a dictionary or a JSON file.
        n_bootstrap: how often images are drawn.

    Raises:
        UserError: a file that can't be read, results of other images or categories, too small an `n_bootstrap`.
    """
    if n_bootstrap < MIN_BOOTSTRAP:
        raise UserError(f"{n_bootstrap} bootstrap samples are too few for an interval; take {MIN_BOOTSTRAP} or more")
    coco = load_annotations(annotations)
    results = [load_results(arm, coco, name) for arm, name in ((baseline, "baseline"), (candidate, "candidate"))]
    weights = np.vstack([np.ones(len(coco.imgs)), draw_images(len(coco.imgs), n_bootstrap)])
    first, second = (average_precision(match_boxes(coco, arm), weights) for arm in results)
    difference = {metric: _difference(100 * (second[metric] - first[metric]), len(coco.imgs)) for metric in METRICS}
    return Comparison(_percent(first), _percent(second), difference, _verdict(difference["AP"], len(coco.imgs)))


def draw_images(images: int, n_bootstrap: int) -> Array:
    """How often each image is drawn in each bootstrap sample: (samples, images); the same with every call."""
    drawn = np.random.default_rng(SEED).multinomial(images, np.full(images, 1 / images), size=n_bootstrap)
    return drawn.astype(np.float64)


def load_annotations(source: Entry | Path | str) -> COCO:
    """pycocotools' index of annotations that can be evaluated; the source stays as it is.

    Raises:
        UserError: no such file, or no COCO instances.
    """
    content, name = (source, "annotations") if isinstance(source, dict) else (read_json(Path(source)), str(source))
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise UserError(f"{name}: no COCO annotations; they have lists of images, annotations and categories")
    if not content["images"]:
        raise UserError(f"{name}: no images to evaluate on")
    # pycocotools writes into the annotations.
    annotations = [dict(annotation) for annotation in content["annotations"]]
    for annotation in annotations:
        for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd"):
            if annotation.get(key) is None:
                raise UserError(f"{name}: annotation {annotation.get('id')} has no {key}; evaluation needs it")
    return load_coco({**content, "annotations": annotations})


def load_results(source: list[Entry] | Path | str, coco: COCO, name: str) -> list[Entry]:
    """A detector's boxes, checked against the annotations; without keys that box AP has no use for.

    Raises:
        UserError: no such file, no COCO results, or results of other images or categories.
    """
    content = source if isinstance(source, list) else read_json(Path(source))
    name = name if isinstance(source, list) else str(source)
    if not isinstance(content, list):
        raise UserError(f"{name}: no COCO results; they are a list of detections")
    results = []
    for number, item in enumerate(content):
        where = f"{name}: detection {number}"
        if not isinstance(item, dict) or not _is_box(item):
            raise UserError(f"{where} is none; it needs image_id, category_id, bbox ([x, y, width, height]) and score")
        for key, known in (("image_id", coco.imgs), ("category_id", coco.cats)):
            if item[key] not in known:
                raise UserError(
                    f"{where} has {key} {item[key]!r}, which is not in the annotations; are they another set's?"
                )
        results.append({key: item[key] for key in ("image_id", "category_id", "bbox", "score")})
    return results


def _is_box(item: Entry) -> bool:
    box, score = item.get("bbox"), item.get("score")
    ids = (item.get("image_id"), item.get("category_id"))
    if not all(isinstance(key, int | str) for key in ids) or not isinstance(box, list) or len(box) != 4:
        return False
    numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in (*box, score))
    return numbers and min(box[2:]) >= 0


def read_json(path: Path) -> Any:
    """A file's content.

    Raises:
        UserError: there is no such file, or it holds no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON ({error})") from error


def _percent(ap: dict[str, Array]) -> dict[str, float | None]:
    return {metric: None if np.isnan(values[0]) else 100 * float(values[0]) for metric, values in ap.items()}


def _difference(percent: Array, images: int) -> Difference:
    """From the difference on the images themselves, which comes first, and on those drawn."""
    value, drawn = percent[0], percent[1:]
    if np.isnan(value):
        return Difference(None)
    if images < MIN_IMAGES:
        return Difference(float(value))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Difference(float(value), float(low), float(high))


def _verdict(ap: Difference, images: int) -> str:
    if ap.value is None:
        return "no difference in AP can be told (AP is undefined: the annotations have no boxes)"
    if ap.low is None or ap.high is None:
        return f"no difference in AP can be told ({images} images are too few for an interval)"
    if ap.low <= 0 <= ap.high:
        return f"no difference in AP can be told (95 % interval {ap.low:.2f} to {ap.high:.2f}, over images)"
    word = "better" if ap.low > 0 else "worse"
    low, high = sorted((abs(ap.low), abs(ap.high)))
    return f"candidate is {word} by {low:.2f} to {high:.2f} AP (95 % interval over images; not over repeated training)"
