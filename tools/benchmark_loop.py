#!/usr/bin/env python3
"""Measures the rest of a run: loading images, evaluating boxes, the memory of loading processes."""

import shlex
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog

from projects.benchmark.loader_memory import MemoryRow, loader_memory, memory_table
from projects.benchmark.loop import (
    CLASSES,
    OURS,
    LoopRow,
    evaluation_arms,
    loader_arms,
    loop_table,
    measure_loop,
    training_step,
)
from projects.benchmark.rounds import clock_of
from se_detection import model_zoo
from se_detection.data.coco_sets import register_coco_json
from se_detection.errors import UserError, run_tool
from se_detection.files import check_output, write_json

EXAMPLE = """
loader      detectron2's loader, this one, and the training step that waits for its images
evaluation  pycocotools, detectron2's evaluator with it, and this one
memory      what more loading processes add

Times are the processor's, so that other programs' work does not count, or with a GPU the loader's those of the clock;
ratios are to the first arm.

examples:
  $ tools/benchmark_loop.py loader --train-json train.json --train-images train/
  $ tools/benchmark_loop.py evaluation --images 5000 --rounds 6 --json evaluation.json
  $ tools/benchmark_loop.py memory --images 100000
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("loader", "evaluation", "memory"))
    parser.add_argument("--train-json", type=Path, metavar="FILE", help="loader: annotations (default: the toy set)")
    parser.add_argument("--train-images", type=Path, metavar="DIR", help="loader: the folder of their images")
    parser.add_argument("--size", type=int, default=800, metavar="PIXELS", help="loader: shorter side (default: 800)")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="of evaluation or memory (default: 500)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N", help="memory: processes (default: 1 2 4 8)"
    )
    parser.add_argument("--rounds", type=int, default=11, metavar="N", help="of the other two (default: 11)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    args = parser.parse_args()

    numbers = [("workers", value) for value in args.workers]
    for option, value in (*numbers, ("size", args.size), ("images", args.images), ("rounds", args.rounds)):
        if value < 1:
            raise UserError(f"--{option} {value}: give at least 1")
    if (args.train_json is None) != (args.train_images is None):
        raise UserError("--train-json and --train-images: give both or neither")
    if args.json:
        check_output(args.json, overwrite=args.overwrite)
    if args.part == "memory":
        measured = loader_memory(args.images, args.workers)
        print(memory_table(measured))
        if args.json:
            _write(args.json, measured)
        return
    device, clock = "cpu", time.process_time
    with ExitStack() as stack:
        if args.part == "evaluation":
            arms = stack.enter_context(evaluation_arms(args.images))
        else:
            cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_SE_R_50_FPN_1x")
            cfg.INPUT.MIN_SIZE_TRAIN = (args.size,)
            cfg.DATASETS.TRAIN = ("se_toy_train",)
            cfg.SOLVER.IMS_PER_BATCH = 2
            if args.train_json:
                register_coco_json("benchmark", args.train_json, args.train_images)
                cfg.DATASETS.TRAIN = ("benchmark",)
                if (number := len(MetadataCatalog.get("benchmark").thing_classes)) > CLASSES:
                    raise UserError(
                        f"--train-json {args.train_json}: it has {number} categories, and the detector of the training "
                        f"step tells {CLASSES} apart; give data of fewer"
                    )
            arms = loader_arms(cfg)
            if torch.cuda.is_available():
                device, clock = "cuda", clock_of("cuda")
            arms = {**arms, "training step": training_step(arms[OURS](), device)}
        rows = measure_loop(arms, rounds=args.rounds, clock=clock)
    print(loop_table(rows))
    if args.json:
        _write(args.json, rows)


def _write(path: Path, rows: Sequence[LoopRow | MemoryRow]) -> None:
    write_json(path, {"command": shlex.join(sys.argv), "rows": [asdict(row) for row in rows]}, indent=2)


if __name__ == "__main__":
    run_tool(main)
