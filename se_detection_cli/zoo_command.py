"""Lists the configs by name, for --config-file."""

from argparse import ArgumentParser, Namespace

EXAMPLES = """
examples:
  $ se-det zoo
  $ se-det zoo SE_R_50 FPN
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the words to search for."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="only names that contain all of these")


def run(args: Namespace) -> None:
    """Prints one name per line."""
    from se_detection import model_zoo

    for name in model_zoo.names():
        if all(word.lower() in name.lower() for word in args.words):
            print(name)
