#!/usr/bin/env python3
"""Trains or evaluates a detector, with the flags of detectron2's own tools/train_net.py."""

from detectron2.engine import launch

import se_detection.engine as engine
from se_detection.errors import run_tool


def main() -> None:
    args = engine.argument_parser().parse_args()
    cfg = engine.load_config(args)
    launch(engine.run, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(cfg, args))


if __name__ == "__main__":
    run_tool(main)
