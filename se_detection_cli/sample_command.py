"""Samples images of a COCO-format data set, with the class proportions of the whole set."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .quick_checks import check_exist

EXAMPLES = """
example, a split in two:
  $ se-det sample all.json --count 200 --output val.json --rest train.json
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the data set, the size of the sample and the outputs."""
    add = parser.add_argument
    add("json_file", type=Path, metavar="JSON", help="annotations in COCO's format")
    add("--count", type=int, required=True, metavar="N", help="number of images")
    add("--output", type=Path, required=True, metavar="FILE", help="the sample's annotations")
    add("--rest", type=Path, metavar="FILE", help="also write the annotations of all other images")
    add("--seed", type=int, default=0, metavar="S", help="another seed gives another sample (default: 0)")
    add("--overwrite", action="store_true", help="replace existing files")


def check(args: Namespace) -> None:
    """Checks that the data set exists."""
    check_exist("JSON", [args.json_file], "file.unreadable")


def run(args: Namespace) -> None:
    """Samples, and writes one or two files."""
    from se_detection.data.sample import sample_coco
    from se_detection.errors import UserError, counted
    from se_detection.files import check_output, write_json

    check_output(args.output, inputs=[args.json_file], overwrite=args.overwrite)
    if args.rest:
        check_output(args.rest, inputs=[args.json_file], overwrite=args.overwrite)
        if args.rest.resolve() == args.output.resolve():
            raise UserError(
                "output.same_twice", f"--rest {args.rest} is also --output; choose another name for one of them"
            )
    sample, rest = sample_coco(args.json_file, args.count, args.seed)
    if args.rest and not rest.content["images"]:
        text = f"--count {args.count}: {args.json_file} has no more images for --rest; give a lower number"
        raise UserError("data.bad_count", text)
    for path, part, why in ((args.output, sample, "too few images"), (args.rest, rest, "all are in the sample")):
        if path:
            write_json(path, part.content)
            images, boxes = len(part.content["images"]), len(part.content["annotations"])
            lost = f"without any of ({why}): {', '.join(part.lost)}" if part.lost else "every class"
            print(f"Written: {path} ({counted(images, 'image')}, {counted(boxes, 'annotation')}; {lost})")
