"""The flags of detectron2's training tools, declared without importing detectron2."""

import os
from argparse import REMAINDER, ArgumentParser


def add_detectron2_flags(parser: ArgumentParser) -> None:
    """Adds the flags of detectron2's `default_argument_parser`, with the same names and defaults."""
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="a config: its name (see se-det zoo) or a file")
    add("--resume", action="store_true", help="continue the run in OUTPUT_DIR from its newest checkpoint")
    add("--eval-only", action="store_true", help="evaluate, without training")
    add("--num-gpus", type=int, default=1, metavar="N", help="GPUs (or CPU processes) per machine")
    add("--num-machines", type=int, default=1, metavar="N", help="number of machines")
    add("--machine-rank", type=int, default=0, metavar="N", help="rank of this machine, from 0")
    # The same port each time, so that processes left over from a run before are noticed.
    port = 2**15 + 2**14 + hash(os.getuid() if hasattr(os, "getuid") else 1) % 2**14
    add("--dist-url", default=f"tcp://127.0.0.1:{port}", metavar="URL", help="address of the first machine, for torch")
    add("opts", nargs=REMAINDER, default=None, metavar="KEY VALUE", help="config overrides, after all flags")
