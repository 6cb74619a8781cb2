"""Finds problems of a data set that stop or spoil training."""

import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path

from .quick_checks import QuickError, check_config, check_exist
from .train_command import add_folder_flags

EXAMPLES = """
exit code: 0 without errors (of the corrected copy, with --fix), 1 with errors, 2 if the check could not be made

examples:
  $ se-det check-data --train-data my_data/ --fix train_fixed.json
  $ se-det check-data train.json train/ --against val.json val/ --fix train_fixed.json
  $ se-det check-data train.json train/ --config-file output/se/config.yaml --opts INPUT.MIN_SIZE_TEST 448
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the data set, and the data and config to compare it with."""
    add = parser.add_argument
    add("json_file", nargs="?", type=Path, metavar="JSON", help="annotations in COCO's format")
    add("images", nargs="?", type=Path, metavar="IMAGES", help="the folder of their images")
    group = parser.add_argument_group(
        "instead of JSON and IMAGES",
        "--train-data checks the part to train on, against the other part or --val-data; --val-data alone checks that",
    )
    add_folder_flags(group)
    add(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="OTHER",
        help="annotations of other splits, which must not share images; each may be followed by its image folder",
    )
    add("--fix", type=Path, metavar="FILE", help="write a corrected copy and list the changes")
    add("--json", type=Path, metavar="FILE", help="also write all findings as JSON")
    add(
        "--config-file",
        metavar="FILE",
        default="COCO-Detection/faster_rcnn_R_50_FPN_1x",
        help="compare boxes with anchors and size of the config to be trained (default: Faster R-CNN R50-FPN)",
    )
    add("--overwrite", action="store_true", help="replace existing files")
    add("--opts", nargs=REMAINDER, default=[], metavar="KEY VALUE", help="overrides of the config, after all flags")


def check(args: Namespace) -> None:
    """Checks that the files exist."""
    folders = [args.train_data, args.val_data]
    if (args.json_file and args.images) is None and not any(folders):
        raise QuickError("data.no_sets", "JSON and IMAGES, or --train-data, are missing; give the data to check")
    if args.json_file and any(folders):
        raise QuickError("run.contradicting_flags", "JSON and --train-data or --val-data: give one of them")
    check_exist("--train-data and --val-data", folders, "data.no_folder")
    check_exist("JSON", [args.json_file], "file.unreadable")
    check_exist("IMAGES", [args.images], "data.no_folder")
    check_exist("--against", args.against, "file.unreadable")
    check_config(args.config_file)


def run(args: Namespace) -> None:
    """Checks, prints the findings, and writes the corrected copy."""
    from se_detection.config.buildable import check_backbone
    from se_detection.config.read_config import read_config
    from se_detection.data.check.annotated_folder import decode_images, read_annotated
    from se_detection.data.check.fix import fix_annotations
    from se_detection.data.check.health import check_health
    from se_detection.data.check.health_report import changes_text, health_tables, summary
    from se_detection.files import check_output, write_json
    from se_detection.model_zoo import find_config_file

    read = [*filter(None, [args.json_file]), *args.against]
    if args.fix:
        check_output(args.fix, inputs=read, overwrite=args.overwrite)
        read.append(args.fix)
    if args.json:
        check_output(args.json, inputs=read, overwrite=args.overwrite)
    cfg = read_config(find_config_file(args.config_file), args.opts)
    check_backbone(cfg)
    annotated, others = read_annotated(args)
    decoded = decode_images(annotated)
    health = check_health(annotated, decoded, others, cfg)
    print(health_tables(health))
    if args.train_data and not others:
        print(f"\n{args.train_data} is not divided into train and val; docs/YOUR_DATA.md says how to split it")
    if args.json:
        write_json(args.json, health, indent=2)
    if args.fix:
        fixed, changes = fix_annotations(annotated, decoded)
        health = check_health(fixed._replace(json_file=args.fix), decoded, others, cfg)
        write_json(args.fix, fixed.content)
        images = "" if args.json_file else f" (its images are in {annotated.image_root})"
        print(
            f"\nWritten: {args.fix}{images}", changes_text(changes) or "nothing was changed", summary(health), sep="\n"
        )
    sys.exit(1 if health["errors"] else 0)
