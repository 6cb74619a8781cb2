"""Trains a plain and an SE detector on your own data and compares them, with settings that fit the data."""

from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

from .train_command import add_data_flags, check_data_paths

EXAMPLES = """
It chooses device, image size, batch, learning rate and steps, and prints them with the commands that it runs. The same
command continues where it was stopped.

examples:
  $ se-det quickstart --train-data my_data/
  $ se-det quickstart --train-json train.json --train-images train/ --val-json val.json --val-images val/
  $ se-det quickstart --train-json train.json --train-images train/ --val-json val.json --val-images val/ --dry-run
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the data, the output, and overrides of the chosen settings."""
    add_data_flags(parser.add_argument_group("your own data"))
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/quickstart"), metavar="FOLDER", help="(default: output/quickstart)")
    add("--dry-run", action="store_true", help="only print the settings and the commands")
    add("opts", nargs=REMAINDER, metavar="KEY VALUE", help="overrides of the chosen settings, after all flags")


def check(args: Namespace) -> None:
    """Checks that the data exist."""
    check_data_paths(args)


def run(args: Namespace) -> None:
    """Chooses the settings, trains, compares, and prints the results."""
    from se_detection.engine.quickstart import Quickstart, choose_settings, gpu_memory, measure_data
    from se_detection.engine.user_data import CONVERTED, read_data_folders

    with TemporaryDirectory() as unused:
        # As the trainings do.
        lines = read_data_folders(args, Path(unused) if args.dry_run else args.output / CONVERTED)
        data = measure_data(args)
    settings = choose_settings(data, gpu_memory())
    overridden = [f"overridden: {' '.join(args.opts)}"] if args.opts else []
    print(*([] if args.dry_run else lines), data, *settings.reasons, *overridden, sep="\n", flush=True)
    quickstart = Quickstart(args, settings)
    if args.dry_run:
        print("\nIt would run:", *quickstart.commands(), sep="\n  ")
        return
    quickstart.run()
    print(quickstart.summary())
