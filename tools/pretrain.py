#!/usr/bin/env python3
"""Pre-trains the backbone of any config, SE or plain, as an image classifier, for tools/train_net.py's MODEL.WEIGHTS."""

from se_detection.engine.launch import use_torchrun
from se_detection.engine.train_and_evaluate import launch_run
from se_detection.errors import run_tool
from se_detection.pretrain.pretrain_config import argument_parser, load_pretrain_config
from se_detection.pretrain.pretrainer import Pretrainer


def main() -> None:
    args = argument_parser().parse_args()
    torchrun = use_torchrun(args)
    launch_run(load_pretrain_config(args), args, torchrun=torchrun, trainer_class=Pretrainer)


if __name__ == "__main__":
    run_tool(main)
