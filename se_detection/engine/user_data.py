"""A person's own data, as given to tools/train_net.py by --train-json and its like."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode

from ..data.coco import check_annotations, check_coco, find_bad_images, load_categories, register_coco_json
from ..errors import UserError

SPLITS = {"train": "TRAIN", "val": "TEST"}


def register_user_data(args: Namespace) -> None:
    """Registers the files of the command line with detectron2 under the names that :func:`use_user_data` gives."""
    for split in SPLITS:
        for name, json_file, image_root in _named_files(args, split):
            register_coco_json(name, json_file, image_root)


def use_user_data(cfg: CfgNode, args: Namespace) -> None:
    """Checks the files of the command line and points the config at them, with their number of classes.

    With --skip-bad-images, `args.bad_images` becomes the list of what is to be left out; otherwise it is None.

    Raises:
        UserError: files that can't be used, a split without its other half, or a NUM_CLASSES override that
            contradicts them.
    """
    if args.skip_bad_images and args.eval_only:
        raise UserError("--skip-bad-images: it is for training; AP of fewer images would be that of another test set")
    args.bad_images = [] if args.skip_bad_images else None
    needed = ["val"] if args.eval_only else list(SPLITS)
    given = [split for split in SPLITS if args.__dict__[f"{split}_json"] or args.__dict__[f"{split}_images"]]
    if not given:
        return
    files = {split: list(_named_files(args, split)) for split in given}
    for split in needed:
        if split not in given:
            purpose = "evaluation needs val" if args.eval_only else "training needs both train and val"
            raise UserError(f"--{split}-json and --{split}-images are missing; {purpose}")
    for split in given:
        for _, json_file, image_root in files[split]:
            if args.skip_bad_images and split == "train":
                content = check_annotations(json_file, evaluated=False)
                args.bad_images += find_bad_images(json_file, content, image_root)
            else:
                check_coco(json_file, image_root, evaluated=split == "val")
    json_files = [json_file for split in given for _, json_file, _ in files[split]]
    num_classes = len(load_categories(json_files))
    register_user_data(args)
    for split in given:
        cfg.DATASETS[SPLITS[split]] = tuple(name for name, _, _ in files[split])
    for key in ("ROI_HEADS", "RETINANET"):
        override = f"MODEL.{key}.NUM_CLASSES"
        if override in args.opts and cfg.MODEL[key].NUM_CLASSES != num_classes:
            raise UserError(
                f"{override}: {cfg.MODEL[key].NUM_CLASSES} contradicts {json_files[0]}, which has {num_classes} "
                "categories; leave it out"
            )
        cfg.MODEL[key].NUM_CLASSES = num_classes


def _named_files(args: Namespace, split: str) -> Iterator[tuple[str, str, str]]:
    json_files, image_roots = args.__dict__[f"{split}_json"], args.__dict__[f"{split}_images"]
    if len(json_files) != len(image_roots):
        raise UserError(
            f"--{split}-json was given {len(json_files)} times and --{split}-images {len(image_roots)} times; "
            "give one folder for each file"
        )
    for number, (json_file, image_root) in enumerate(zip(json_files, image_roots, strict=True)):
        stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(json_file).stem)
        suffix = f"_{number + 1}" if len(json_files) > 1 else ""
        yield f"{split}_{stem}{suffix}", json_file, image_root
