"""Serves a web page to try one or two detectors on images: boxes, scores, gates, time."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

EXAMPLES = """
Images are deleted after an hour, and when the server stops. Nothing is sent elsewhere. A GPU is used if there is one.
Ctrl-C stops the server.

examples:
  $ tools/serve.py --run output/SE_R
  $ tools/serve.py --run output/R --compare output/SE_R --port 8080
  $ tools/serve.py --run output/SE_R --host 192.168.1.20    # for a phone in the same network
"""


def add_arguments(parser: ArgumentParser) -> None:
    """The detectors, and the address."""
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="the run folder")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint (default: the newest of RUN)")
    parser.add_argument("--compare", type=Path, metavar="RUN2", help="show the boxes of this run next to those of RUN")
    parser.add_argument(
        "--fuse",
        action="store_true",
        help="make the detectors faster; boxes and scores stay the same, but gates are not available",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="an address of this machine (default: 127.0.0.1, which other machines can't reach)",
    )
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 selects a free port")


def run(args: Namespace) -> None:
    """Serves the page until Ctrl-C."""
    from se_detection.errors import UserError

    # Read when Gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from .demo import serve
    except ModuleNotFoundError as error:
        raise UserError(
            "demo.no_gradio", f"the page needs the package {error.name}: pip install 'se_detection[demo]'"
        ) from error
    from .served_detector import ServedDetector

    def load() -> list[ServedDetector]:
        others = [ServedDetector(args.compare, fuse=args.fuse)] if args.compare else []
        return [ServedDetector(args.run, args.weights, fuse=args.fuse), *others]

    serve(load, args.host, args.port)
