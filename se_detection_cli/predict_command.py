"""Detects objects in images, videos or a camera with a trained run: drawn boxes, and COCO results."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .quick_checks import check_exist, check_inputs

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
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images or videos")
    add("--run", type=Path, required=True, metavar="RUN", help="the run folder")
    add("--weights", type=Path, metavar="FILE", help="another checkpoint than RUN's newest")
    add("--compare", type=Path, metavar="RUN2", help="draw this run's boxes next to RUN's")
    add("--output", type=Path, metavar="FOLDER", help="by default RUN/predictions")
    add("--score", type=float, default=0.5, metavar="S", help="draw boxes with at least this score (default: 0.5)")
    add("--skip-bad-images", action="store_true", help="skip and list files that can't be read")
    add(
        "--gates",
        action="store_true",
        help="also draw the effect of RUN's SE gates, compared with their mean over RUN's test set",
    )
    add("--fuse", action="store_true", help="make the detectors faster; boxes and scores stay the same")
    add("--overwrite", action="store_true", help="replace existing predictions")


def check(args: Namespace) -> None:
    """Checks that the runs and the images exist."""
    check_exist("--run", [args.run], "run.no_config")
    check_exist("--compare", [args.compare], "run.no_config")
    check_exist("--weights", [args.weights], "weights.not_found")
    check_inputs(args.inputs)


def run(args: Namespace) -> None:
    """Detects, and prints the written files."""
    from se_detection.data.image_files import describe_skipped
    from se_detection.errors import UserError, counted, printable
    from se_detection.gates.excitations import explain
    from se_detection.inference.detector import Detector
    from se_detection.inference.predict import IMAGES, predict

    if args.gates and args.weights:
        raise UserError(
            "run.contradicting_flags", "--gates: the mean gates are of RUN's own checkpoint; drop --weights"
        )
    if args.gates and args.fuse:
        raise UserError("run.contradicting_flags", "--gates: a fused detector has no gates to draw; drop --fuse")
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
    if done.skipped:
        print(printable(describe_skipped(done.skipped)))
    print(f"Written ({counted(done.images, *IMAGES)}):", *map(printable, map(str, done.written)), sep="\n  ")
