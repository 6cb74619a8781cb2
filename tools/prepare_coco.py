#!/usr/bin/env python3
"""Prepares COCO-format data: minival from val2014, a health check before training, a sample or a split."""

import sys

from se_detection.config.buildable import check_backbone
from se_detection.config.read_config import read_config
from se_detection.data.arguments import argument_parser
from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder, read_annotated_folders
from se_detection.data.check.fix import fix_split
from se_detection.data.check.health import check_health
from se_detection.data.check.health_report import changes_text, health_dict, health_tables, summary
from se_detection.data.minival import make_minival
from se_detection.data.sample import sample_coco
from se_detection.errors import UserError, run_tool
from se_detection.files import check_output, write_json


def main() -> None:
    args = argument_parser().parse_args()
    if args.command == "minival":
        folder = args.output or args.val2014.parent
        written = make_minival(args.val2014, args.val2017, folder, overwrite=args.overwrite)
        print("Written:", *written, sep="\n  ")
    elif args.command == "sample":
        check_output(args.output, inputs=[args.json_file], overwrite=args.overwrite)
        if args.rest:
            check_output(args.rest, inputs=[args.json_file], overwrite=args.overwrite)
            if args.rest.resolve() == args.output.resolve():
                raise UserError(f"--rest {args.rest} is --output too; choose another name for one of them")
        sample, rest = sample_coco(args.json_file, args.count, args.seed)
        if args.rest and not rest.content["images"]:
            raise UserError(
                f"--count {args.count}: {args.json_file} has no more, so --rest is empty; give a lower number"
            )
        for path, part, why in ((args.output, sample, "too few images"), (args.rest, rest, "all are in the sample")):
            if path:
                write_json(path, part.content)
                images, boxes = len(part.content["images"]), len(part.content["annotations"])
                lost = f"without any of ({why}): {', '.join(part.lost)}" if part.lost else "every class"
                print(f"Written: {path} ({images} images, {boxes} annotations; {lost})")
    else:
        read = [args.json_file, *args.against]
        if args.fix:
            check_output(args.fix, inputs=read, overwrite=args.overwrite)
            read.append(args.fix)
        if args.json:
            check_output(args.json, inputs=read, overwrite=args.overwrite)
        cfg = read_config(args.config_file)
        check_backbone(cfg)
        split, others = read_annotated_folder(args.json_file, args.images), read_annotated_folders(args.against)
        decoded = decode_images(split)
        health = check_health(split, decoded, others, cfg)
        print(health_tables(health))
        if args.json:
            write_json(args.json, health_dict(health), indent=2)
        if args.fix:
            fixed, changes = fix_split(split, decoded)
            health = check_health(fixed._replace(json_file=args.fix), decoded, others, cfg)
            write_json(args.fix, fixed.content)
            print(f"\nWritten: {args.fix}", changes_text(changes) or "nothing was changed", summary(health), sep="\n")
        sys.exit(1 if health.count("error") else 0)


if __name__ == "__main__":
    run_tool(main)
