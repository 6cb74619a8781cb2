#!/usr/bin/env python3
"""Trains or evaluates a detector, with the flags of detectron2's own tools/train_net.py."""

from se_detection.engine.arguments import argument_parser
from se_detection.engine.checks import load_config
from se_detection.engine.launch import use_torchrun
from se_detection.engine.train_and_evaluate import launch_run
from se_detection.errors import run_tool


def main() -> None:
    args = argument_parser().parse_args()
    torchrun = use_torchrun(args)
    launch_run(load_config(args), args, torchrun=torchrun)


if __name__ == "__main__":
    run_tool(main)
