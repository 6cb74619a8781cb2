"""Detects objects in images, videos or a camera with a trained run: drawn boxes, and COCO results."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

EXAMPLES = """
An INPUT is an image, a video, a folder of them, a pattern such as 'photos/**/*.jpg', or a camera, camera:0, which is
recorded until Ctrl-C. A GPU is used if there is one. The same command resumes where it was stopped.

examples:
  $ se-det predict --run output/SE_R --gates photos/
  $ se-det predict --run output/R --compare output/SE_R --output side_by_side street.mp4
  $ se-det predict --run output/SE_R --score 0.3 --output live camera:0
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the inputs, the runs, and the options for drawing."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images or videos")
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="the run folder")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="another checkpoint than RUN's newest")
    parser.add_argument("--compare", type=Path, metavar="RUN2", help="draw this run's boxes next to RUN's")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for pictures/, videos/, coco_instances_results.json and images.json; by default RUN/predictions",
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        metavar="S",
        help="draw boxes with at least this score (default: 0.5); the JSON has all boxes that the run's config keeps",
    )
    parser.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="skip files that can't be read, and list them; by default they are an error",
    )
    parser.add_argument(
        "--gates",
        action="store_true",
        help="also draw the effect of RUN's SE gates on each image, compared with their mean over RUN's test set; the "
        "mean is computed first if se-det analyze excitations has not computed it",
    )
    parser.add_argument("--fuse", action="store_true", help="make the detectors faster; boxes and scores stay the same")
    parser.add_argument("--overwrite", action="store_true", help="replace existing predictions")


def run(args: Namespace) -> None:
    """Detects, and prints the written files."""
    from se_detection.errors import UserError, printable
    from se_detection.gates.excitations import explain
    from se_detection.inference.detector import Detector
    from se_detection.inference.predict import predict

    if args.gates and args.weights:
        raise UserError("--gates: the mean gates are of RUN's own checkpoint; drop --weights")
    if args.gates and args.fuse:
        raise UserError("--gates: a fused detector has no gates to draw; drop --fuse")
    gates = explain(args.run, ablation=False) if args.gates else None
    detectors = [Detector(args.run, args.weights, fuse=args.fuse)]
    if args.compare:
        detectors.append(Detector(args.compare, fuse=args.fuse))
    done = predict(
        args.inputs,
        detectors,
        args.output or args.run / "predictions",
        score=args.score,
        overwrite=args.overwrite,
        skip_bad_images=args.skip_bad_images,
        gates=gates,
    )
    if done.unreadable:
        lines = (printable(f"{path}: {reason}") for path, reason in done.unreadable.items())
        print("Could not be read:", *lines, sep="\n  ")
    print(f"Written ({done.images} images and frames):", *map(printable, map(str, done.written)), sep="\n  ")
