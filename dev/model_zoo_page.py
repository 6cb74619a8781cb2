"""MODEL_ZOO.md: of each config, what is trained, what it costs, what it begins with and what it should reach."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from projects.study.definition import read_study
from projects.study.run_records import read_records
from se_detection import model_zoo
from se_detection.errors import UserError
from se_detection.modeling.complexity import count_parameters, image_size, padded_size

MADE = "<!-- Made by tools/model_zoo.py; what is written here by hand is lost. -->"
LAZY_FOLDER = "lazy/"
# The order of the page's sections; folders that are not named come last.
SECTIONS = (
    *("COCO-Detection", "COCO-InstanceSegmentation", "COCO-Keypoints", "COCO-PanopticSegmentation", "Misc"),
    *("Paper", "Ablations", "Study", "Toy"),
)

ZOO = "https://github.com/facebookresearch/detectron2/blob/02b5c4e2/MODEL_ZOO.md"
MSRA = "detectron2://ImageNetPretrained/MSRA/"
# From ZOO: AP of boxes, and of masks or keypoints, or of masks and PQ.
DETECTRON2 = {
    "COCO-Detection/faster_rcnn_R_50_C4_1x": (35.7,),
    "COCO-Detection/faster_rcnn_R_50_DC5_1x": (37.3,),
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": (37.9,),
    "COCO-Detection/faster_rcnn_R_50_C4_3x": (38.4,),
    "COCO-Detection/faster_rcnn_R_50_DC5_3x": (39.0,),
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": (40.2,),
    "COCO-Detection/faster_rcnn_R_101_C4_3x": (41.1,),
    "COCO-Detection/faster_rcnn_R_101_DC5_3x": (40.6,),
    "COCO-Detection/faster_rcnn_R_101_FPN_3x": (42.0,),
    "COCO-Detection/retinanet_R_50_FPN_1x": (37.4,),
    "COCO-Detection/retinanet_R_50_FPN_3x": (38.7,),
    "COCO-Detection/retinanet_R_101_FPN_3x": (40.4,),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": (36.8, 32.2),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x": (38.3, 34.2),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": (38.6, 35.2),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x": (39.8, 34.4),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x": (40.0, 35.9),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": (41.0, 37.2),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x": (42.6, 36.7),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x": (41.9, 37.3),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x": (42.9, 38.6),
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x": (53.6, 64.0),
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x": (55.4, 65.5),
    "COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x": (56.4, 66.1),
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x": (37.6, 34.7, 39.4),
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x": (40.0, 36.5, 41.5),
    "COCO-PanopticSegmentation/panoptic_fpn_R_101_3x": (42.4, 38.5, 43.0),
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": (42.1, 36.4),
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": (44.3, 38.5),
}
# Table 7 of the paper: AP and AP@0.5 of boxes. Its backbones were trained by its authors; those with SE are released.
PAPER = {
    "Paper/faster_rcnn_R_50_FPN_2x": (38.0, 57.9),
    "Paper/faster_rcnn_SE_R_50_FPN_2x": (40.4, 61.0),
    "Paper/faster_rcnn_R_101_FPN_2x": (39.9, 60.1),
    "Paper/faster_rcnn_SE_R_101_FPN_2x": (41.9, 62.7),
}
NOTE = f"""\
`se_detection.model_zoo.get_config(NAME)` takes the path below `configs/` without `.yaml`:
`COCO-Detection/faster_rcnn_SE_R_50_FPN_1x`. Behind *lazy* is the same detector and recipe as a lazy config, whose name
ends with `.py`: `lazy/COCO-Detection/faster_rcnn_SE_R_50_FPN_1x.py`. No trained detector is published.

- **steps × images**: of the optimizer, and in each.
- **params**: of the whole detector with its config's number of classes, in millions; frozen ones too.
- **image**: height × width in pixels of a 4:3 image as the config tests it, padded as detectron2 does.
- **GFLOPs**: 10⁹ multiply-adds of the convolutions and linear layers of backbone and FPN for such an image, as in the
  paper. Proposals and heads are not in it: `tools/analyze.py complexity --config-file F` has those of the usual
  detectors. A C4 detector's backbone ends with res4, as its res5 is a head.
- **begins with**: the pre-trained backbone.
- **published**: what others measured with this recipe, AP in percent on COCO's 5,000 images, and nothing where nobody
  has. *d2*: [detectron2's own]({ZOO}) detectors, which begin with MSRA's backbones; ≈ where the config begins with another
  one, so that the number is only near. *paper*: Table 7 of [the paper](https://arxiv.org/abs/1709.01507v4); ≈ where its
  backbone was not released.
- **measured**: by this project, mean ± standard deviation over training runs, on the small data of
  [docs/RESULTS.md](docs/RESULTS.md): not to be set beside numbers of COCO."""


@dataclass(frozen=True)
class NetworkSize:
    """What a network holds and computes.

    Args:
        parameters: of the whole detector.
        image: height and width, padded.
        gflops: billions of multiply-adds of backbone and FPN for it.
    """

    parameters: int
    image: tuple[int, int]
    gflops: float


@dataclass(frozen=True)
class ZooRow:
    """A config, and its lazy twin if there is one.

    Args:
        name: of the config, or of the lazy one where there is no yaml.
        twin: the name of the same as a lazy config.
        steps, images: of a training, and in a step.
        size: see above.
        weights: `MODEL.WEIGHTS`.
        published, measured: what is known of its AP; empty for nothing.
    """

    name: str
    twin: str | None
    steps: int
    images: int
    size: NetworkSize
    weights: str
    published: str
    measured: str

    @property
    def section(self) -> str:
        """The folder of the config, without that of lazy ones."""
        return self.name.removeprefix(LAZY_FOLDER).partition("/")[0]


def zoo_rows(names: Sequence[str], results: Path) -> Iterator[ZooRow]:
    """A row for each config, with a progress bar; networks that several configs share are counted once.

    Args:
        names: of :func:`se_detection.model_zoo.names`; a lazy one has no row if its yaml is there.
        results: the folder of a study's records.

    Raises:
        UserError: a record is broken, or of another definition of its study.
    """
    measured = measured_in_studies(results)
    sizes: dict[str, NetworkSize] = {}
    twins = {twin for name in names if (twin := _twin(name)) in names}
    for name in tqdm([name for name in names if name not in twins], "counting", unit="config"):
        cfg = model_zoo.get_config(name)
        key = _network(cfg)
        if key not in sizes:
            sizes[key] = _count(cfg)
        if isinstance(cfg, DictConfig):
            recipe = cfg.train.max_iter, cfg.dataloader.train.total_batch_size, cfg.train.init_checkpoint
        else:
            recipe = cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.WEIGHTS
        steps, images, weights = recipe
        twin = _twin(name)
        yield ZooRow(
            name=name,
            twin=twin if twin in twins else None,
            steps=steps,
            images=images,
            size=sizes[key],
            weights=weights,
            published=published_scores(name, weights),
            measured="; ".join(measured[name]),
        )


def published_scores(name: str, weights: str) -> str:
    """What others measured with a config's recipe, in words; empty where nobody has.

    Args:
        name: of the config.
        weights: `MODEL.WEIGHTS`.
    """
    if name in PAPER:
        ap, ap50 = PAPER[name]
        return f"{'' if '_SE_' in name else '≈ '}box {ap} (AP@0.5 {ap50}), paper"
    if name not in DETECTRON2:
        return ""
    second = "keypoints" if "keypoint" in name else "mask"
    scores = [f"{what} {score}" for what, score in zip(("box", second, "PQ"), DETECTRON2[name], strict=False)]
    return f"{'' if weights.startswith(MSRA) else '≈ '}{', '.join(scores)}, d2"


def measured_in_studies(results: Path) -> dict[str, list[str]]:
    """What this project's studies measured with each config, in words, by the config's name.

    Raises:
        UserError: a record is broken, or of another definition of its study.
    """
    names = {model_zoo.get_config_file(name): name for name in model_zoo.names() if name.startswith("Study/")}
    found = defaultdict(list)
    for file in sorted({path for config in names for path in Path(config).parent.glob("Study-*.yaml")}):
        study = read_study(file)
        for arm, runs in read_records(results, study).items():
            if scores := [record["AP"] for record in runs.values()]:
                spread = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
                runs_of = f"{len(scores)} run{'s' * (len(scores) > 1)} of `{arm}` in {study.name}"
                found[names[str(study.arms[arm].config)]].append(f"AP {mean(scores):.2f}{spread} ({runs_of})")
    return found


def zoo_page(rows: Sequence[ZooRow]) -> str:
    """The page, in Markdown: a table for each folder of configs."""
    headings = ["config", "lazy", "steps × images", "params (M)", "image", "GFLOPs", "begins with"]
    headings += ["published", "measured"]
    sections: dict[str, list[list[str]]] = {name: [] for name in SECTIONS}
    for row in rows:
        sections.setdefault(row.section, []).append(_cells(row))
    tables = []
    for section, cells in sections.items():
        if cells:
            # A column in which nothing is said would say nothing.
            columns = [
                place for place, name in enumerate(headings) if name == "config" or any(row[place] for row in cells)
            ]
            table = tabulate(
                [[row[place] for place in columns] for row in cells],
                [headings[place] for place in columns],
                tablefmt="github",
                disable_numparse=True,
            )
            tables.append(f"## {section}\n\n{table}")
    return "\n\n".join([MADE, "# Configs", NOTE, *tables]) + "\n"


def check_page(path: Path) -> None:
    """Makes sure that a page can be written without loss.

    Raises:
        UserError: there is another file of that name, or no such folder.
    """
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(MADE.encode())):
        raise UserError(f"--output {path} is there already, and is no page of this tool; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}")


def _twin(name: str) -> str:
    return f"{LAZY_FOLDER}{name}{model_zoo.LAZY}"


def _network(cfg: Any) -> str:
    """What a config says of its network and of the images that it is tested on."""
    if isinstance(cfg, DictConfig):
        return f"{cfg.model}{cfg.dataloader.test.mapper.augmentations}"
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "", [], []
    return f"{cfg.MODEL}{image_size(cfg)}"


def _count(cfg: Any) -> NetworkSize:
    # There is neither memory for it nor arithmetic.
    with torch.device("meta"):
        if isinstance(cfg, DictConfig):
            resize = cfg.dataloader.test.mapper.augmentations[0]
            height = resize.short_edge_length
            image = height, min(round(height * 4 / 3), resize.max_size)
            model = instantiate(cfg.model)
        else:
            image = image_size(cfg)
            cfg = cfg.clone()
            cfg.MODEL.DEVICE = "meta"
            model = build_model(cfg)
        image = padded_size(model.backbone, *image)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval().backbone(torch.zeros(1, 3, *image))
    # Of torch's, two are a multiply-add.
    return NetworkSize(count_parameters(model), image, counter.get_total_flops() / 2e9)


def _cells(row: ZooRow) -> list[str]:
    size = row.size
    return [
        _link(row.name, Path(row.name).stem),
        _link(row.twin, "lazy") if row.twin else "",
        f"{row.steps:,} × {row.images}",
        f"{size.parameters / 1e6:.2f}",
        f"{size.image[0]} × {size.image[1]}",
        f"{size.gflops:.2f}",
        _weights(row.weights),
        row.published,
        row.measured,
    ]


def _link(name: str, text: str) -> str:
    ending = "" if name.endswith(model_zoo.LAZY) else model_zoo.YAML
    return f"[{text}](configs/{name}{ending})"


def _weights(weights: str) -> str:
    source, _, name = weights.partition("://")
    if source == "timm":
        return f"timm's [{name}](https://huggingface.co/timm/{name})"
    if source == "detectron2":
        return f"detectron2's [{'/'.join(Path(name).parts[-2:])}](https://dl.fbaipublicfiles.com/detectron2/{name})"
    return "a backbone to be pre-trained" if weights else "nothing"
