"""torchrun, which forks the processes of a script instead of starting Python for each."""

import runpy
import sys

from torch.distributed.launcher import elastic_launch
from torch.distributed.run import config_from_args, parse_args


def run_script(*words: str) -> None:
    """Stands in for a command line of Python: `-u SCRIPT ARGUMENTS`."""
    sys.argv = list(words[1:])
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    config, _, words = config_from_args(parse_args(sys.argv[1:]))
    config.start_method = "fork"
    elastic_launch(config, run_script)(*words)
