#!/usr/bin/env python3
"""A page in the browser to try one or two runs of tools/train_net.py on images: boxes, scores, gates, time."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from projects.serve.detectors import Detectors
from projects.serve.server import serve
from se_detection.errors import run_tool

EXAMPLE = """
Images stay in memory, and go nowhere else. A GPU is used if there is one. Ctrl-C ends it.

examples:
  $ tools/serve.py --run output/SE_R
  $ tools/serve.py --run output/R --compare output/SE_R --port 8080
  $ tools/serve.py --run output/SE_R --host 192.168.1.20    # for a phone in the same network
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="the run folder")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="another checkpoint than RUN's newest")
    parser.add_argument("--compare", type=Path, metavar="RUN2", help="show this run's boxes beside RUN's")
    parser.add_argument(
        "--fuse",
        action="store_true",
        help="make the detectors faster; boxes and scores stay the same, and there are no gates to look at",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="an address of this machine; by default nobody else reaches the page"
    )
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000; 0 takes a free one)")
    args = parser.parse_args()

    runs = [args.run, args.compare] if args.compare else [args.run]
    serve(lambda: Detectors(runs, args.weights, fuse=args.fuse), args.host, args.port)


if __name__ == "__main__":
    run_tool(main)
