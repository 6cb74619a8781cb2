"""Measures image loading, box evaluation, and the memory of loading workers."""

import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectron2.config import CfgNode

EXAMPLES = """
loader      detectron2's loader, ours, and the training step that waits for the images
evaluation  pycocotools, detectron2's evaluator, and ours
memory      memory that additional loading workers use

Times are CPU time of the process, so that other programs do not count; with a GPU, the loader's are wall-clock time.
Ratios are to the first row.

examples:
  $ tools/benchmark_loop.py loader --train-json train.json --train-images train/
  $ tools/benchmark_loop.py evaluation --images 5000 --rounds 6 --json evaluation.json
  $ tools/benchmark_loop.py memory --images 100000
"""


def add_arguments(parser: ArgumentParser) -> None:
    """The part to measure, its data, and the output."""
    parser.add_argument("part", choices=("loader", "evaluation", "memory"))
    parser.add_argument("--train-json", type=Path, metavar="FILE", help="loader: annotations (default: the toy set)")
    parser.add_argument("--train-images", type=Path, metavar="DIR", help="loader: folder of their images")
    parser.add_argument("--size", type=int, default=800, metavar="PIXELS", help="loader: shorter side (default: 800)")
    parser.add_argument(
        "--images", type=int, default=500, metavar="N", help="evaluation, memory: number of images (default: 500)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        metavar="N",
        help="memory: numbers of them (default: 1 2 4 8)",
    )
    parser.add_argument(
        "--rounds", type=int, default=11, metavar="N", help="loader, evaluation: number of timings (default: 11)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")


def run(args: Namespace) -> None:
    """Measures a part, prints a table, and writes the JSON file."""
    from tabulate import tabulate

    from se_detection.errors import UserError
    from se_detection.files import check_output, write_json

    from .loader_memory import loader_memory
    from .rounds import Ratio

    if (args.train_json is None) != (args.train_images is None):
        raise UserError("data.json_without_images", "--train-json and --train-images: give both or neither")
    if args.json:
        check_output(args.json, overwrite=args.overwrite)
    if args.part == "memory":
        rows = loader_memory(args.images, args.workers)
        headings = ["data set as", "workers", "packed, MB", "growth of workers, MB"]
        print(tabulate([list(row.values()) for row in rows], headings, floatfmt=".0f"))
    else:
        rows = _time_loop(args)
        cells = [[row["arm"], *Ratio(**row["ratio"]).cells()] for row in rows]
        cells[0][1:] = ["1", ""]
        print(
            tabulate(
                cells, ["part", "ratio", "95 % interval"], disable_numparse=True, colalign=("left", "right", "right")
            )
        )
    if args.json:
        write_json(args.json, {"command": shlex.join(sys.argv), "rows": rows}, indent=2)


def _time_loop(args: Namespace) -> list[dict[str, Any]]:
    import torch
    from torch.utils.benchmark import timer

    from .loop import OURS, evaluation_runs, loader_runs, measure_loop, training_step

    if args.part == "evaluation":
        with evaluation_runs(args.images) as evaluations:
            return measure_loop(evaluations, rounds=args.rounds)
    loaders = loader_runs(_loader_config(args))
    device, clock = ("cuda", timer) if torch.cuda.is_available() else ("cpu", time.process_time)
    step = training_step(loaders[OURS](), device)
    return measure_loop({**loaders, "training step": step}, rounds=args.rounds, clock=clock)


def _loader_config(args: Namespace) -> "CfgNode":
    from se_detection import model_zoo
    from se_detection.data.coco_sets import register_coco_json

    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_SE_R_50_FPN_1x")
    cfg.INPUT.MIN_SIZE_TRAIN = (args.size,)
    cfg.DATASETS.TRAIN = ("se_toy_train",)
    cfg.SOLVER.IMS_PER_BATCH = 2
    if args.train_json:
        register_coco_json("benchmark", args.train_json, args.train_images)
        cfg.DATASETS.TRAIN = ("benchmark",)
    return cfg
