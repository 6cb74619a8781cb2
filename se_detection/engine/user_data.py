"""Your own data, given on the command line: folders (--train-data, --val-data), or COCO JSON files with image folders.

A folder becomes a COCO JSON in `converted/`, next to the output folder.
"""

import hashlib
import json
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

from detectron2.config import CfgNode

from ..data.check.annotated_folder import AnnotatedFolder, decode_images
from ..data.check.fix import fix_annotations
from ..data.coco_format import Content, encoding
from ..data.coco_sets import check_annotations, check_images, common_categories, find_bad_images, register_coco_json
from ..data.data_folder import DataFolder, FolderPart
from ..data.masks_and_keypoints import check_keypoints, check_masks, has_run_length_codes
from ..data.read_folder import find_data
from ..errors import UserError, counted
from ..files import write_whole

# The folder of converted data.
CONVERTED = "converted"
SPLITS = {"train": "TRAIN", "val": "TEST"}
NEEDS_STUFF = ("PanopticFPN", "SemanticSegmentor")


def register_user_data(args: Namespace) -> None:
    """Registers the files of the command line with detectron2, under the same names as :func:`use_user_data`."""
    for split in SPLITS:
        for name, json_file, image_root in named_files(args, split):
            register_coco_json(name, json_file, image_root)


def read_data_folders(args: Namespace, cache: Path, splits: Iterable[str] = SPLITS) -> list[str]:
    """Reads the folders of the command line: `args` then have their JSON files and image folders.

    Without --val-data, the folder of --train-data is used, if it is divided.

    Args:
        cache: the folder for converted data. A JSON is named by its content, so that none is replaced.
        splits: those that are needed.

    Returns:
        A line on each folder.

    Raises:
        UserError: a folder can't be read, or is not divided and --val-data is missing; or there are two sources.
    """
    given = {split: args.__dict__[f"{split}_data"] for split in SPLITS if args.__dict__[f"{split}_data"]}
    for split in given:
        if args.__dict__[f"{split}_json"] or args.__dict__[f"{split}_images"]:
            raise UserError("run.contradicting_flags", f"--{split}-data and --{split}-json: give one of them")
    folders = {path: find_data(Path(path)) for path in given.values()}
    if "train" in given and "val" not in given and not args.val_json:
        if not folders[given["train"]].is_divided:
            raise UserError(
                "data.not_divided",
                f"--val-data is missing, and --train-data {given['train']} is not divided into train and val; give "
                "another folder, or divide it with se-det check-data --fix and se-det sample (docs/YOUR_DATA.md)",
            )
        given["val"] = args.val_data = given["train"]
    lines = []
    for split in (split for split in splits if split in given):
        folder = folders[given[split]]
        part = folder.read(split)
        json_file, how = _usable_json(part, folder, split, cache)
        args.__dict__[f"{split}_json"], args.__dict__[f"{split}_images"] = [str(json_file)], [str(part.image_root)]
        lines.append(f"{split}: {folder.kind} from {part.source}, {how}")
    return lines


def _usable_json(part: FolderPart, folder: DataFolder, split: str, cache: Path) -> tuple[Path, str]:
    """The JSON of a part, and how it was made. Faults of a COCO export that lose nothing are corrected in a copy."""
    content, how = part.content, "converted"
    if folder.kind == "COCO":
        content, how = _corrected(part, evaluated=split == "val")
        if not how:
            return part.source, "as it is"
    data = json.dumps(content).encode()
    name = re.sub(r"[^\w-]", "_", folder.folder.resolve().name)
    file = cache / f"{name}_{split}_{hashlib.sha256(data).hexdigest()[:8]}.json"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda target: target.write(data))
    return file, f"{how}: {file}"


def _corrected(part: FolderPart, *, evaluated: bool) -> tuple[Content, str]:
    """The content of a COCO file that can be used, and the corrections; none if it needs none, or would lose entries.

    The checks that follow say what is wrong with the latter.
    """
    try:
        check_annotations(part.source, evaluated=evaluated)
    except UserError:
        pass
    else:
        names = (image["file_name"] for image in part.content["images"])
        if all((part.image_root / name).is_file() for name in names):
            return part.content, ""
    annotated = AnnotatedFolder(part.source, part.image_root, part.content, encoding(part.source))
    try:
        fixed, changes = fix_annotations(annotated, decode_images(annotated))
    except UserError:
        return part.content, ""
    if any("removed" in what and not what.startswith("categories") for what in changes):
        return part.content, ""
    return fixed.content, "; ".join(f"{what} ({len(where)})" for what, where in changes.items())


def use_user_data(cfg: CfgNode, args: Namespace) -> None:
    """Checks the files of the command line, and sets the config's data sets and numbers of classes and keypoints.

    Masks in run-length codes set `INPUT.MASK_FORMAT` to bitmask. `args.data_lines` says how folders were read;
    `args.bad_images` becomes the list of training images to skip with --skip-bad-images, and None without.

    Raises:
        UserError: a file is missing, invalid or not supported by this detector.
    """
    if args.skip_bad_images and args.eval_only:
        raise UserError(
            "run.contradicting_flags",
            "--skip-bad-images: it is for training only; omit it, AP on fewer images is not comparable",
        )
    args.bad_images = [] if args.skip_bad_images else None
    needed = ["val"] if args.eval_only else list(SPLITS)
    args.data_lines = read_data_folders(args, Path(cfg.OUTPUT_DIR).parent / CONVERTED, needed)
    given = [split for split in SPLITS if args.__dict__[f"{split}_json"] or args.__dict__[f"{split}_images"]]
    if not given:
        return
    files = {split: list(named_files(args, split)) for split in given}
    for split in needed:
        if split not in given:
            purpose = "an evaluation needs them" if args.eval_only else "a training needs both train and val"
            raise UserError("data.no_sets", f"{missing_flags(split)}; {purpose}")
    if cfg.MODEL.META_ARCHITECTURE in NEEDS_STUFF:
        raise UserError(
            "data.no_stuff",
            f"--{given[0]}-json: a {cfg.MODEL.META_ARCHITECTURE} also learns from stuff, which COCO instances lack; "
            "register your data with detectron2's register_coco_panoptic_separated, and name it by DATASETS",
        )
    keypoints: dict[str, list[str]] = {}
    # Only the categories are kept: the content of COCO's files takes gigabytes.
    categories: dict[str, Content] = {}
    for split in given:
        for _, json_file, image_root in files[split]:
            content = check_annotations(json_file, evaluated=split == "val")
            categories[json_file] = {"categories": content["categories"]}
            if cfg.MODEL.MASK_ON:
                _use_masks(cfg, args, json_file, content, evaluated=split == "val")
            if cfg.MODEL.KEYPOINT_ON:
                keypoints[json_file] = check_keypoints(json_file, content, evaluated=split == "val")
            longest = _longest_side(cfg, split)
            if args.skip_bad_images and split == "train":
                args.bad_images += find_bad_images(json_file, content, image_root, longest=longest)
            else:
                check_images(json_file, content["images"], image_root, skippable=split == "train", longest=longest)
    num_classes = len(common_categories(categories))
    for split in given:
        for name, json_file, image_root in files[split]:
            register_coco_json(name, json_file, image_root, categories[json_file])
        cfg.DATASETS[SPLITS[split]] = tuple(name for name, _, _ in files[split])
    numbers = dict.fromkeys(("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"), num_classes)
    if keypoints:
        numbers["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] = len(_common_keypoints(keypoints))
    # Overrides are checked with the data sets of a config.
    for key, number in numbers.items():
        if key not in args.opts:
            cfg.merge_from_list([key, number])


def _longest_side(cfg: CfgNode, split: str) -> int | None:
    """The longest side of a resized image in pixels; None if images are not resized."""
    if split == "train":
        jitter = cfg.INPUT.LARGE_SCALE_JITTER
        if jitter.ENABLED:
            # At the smallest factor, where a side may become 0.
            return int(jitter.MIN_SCALE * min(jitter.SIZE))
        return cfg.INPUT.MAX_SIZE_TRAIN if any(cfg.INPUT.MIN_SIZE_TRAIN) else None
    return cfg.INPUT.MAX_SIZE_TEST if cfg.INPUT.MIN_SIZE_TEST else None


def _use_masks(cfg: CfgNode, args: Namespace, json_file: str, content: Content, *, evaluated: bool) -> None:
    check_masks(json_file, content, evaluated=evaluated)
    if cfg.INPUT.MASK_FORMAT == "polygon" and not evaluated and has_run_length_codes(content):
        if "INPUT.MASK_FORMAT" in args.opts:
            raise UserError(
                "config.contradicts_data",
                f"INPUT.MASK_FORMAT: polygon contradicts {json_file}, which has run-length codes; omit it",
            )
        cfg.INPUT.MASK_FORMAT = "bitmask"


def _common_keypoints(keypoints: dict[str, list[str]]) -> list[str]:
    """The names of the keypoints, which must be the same in all files."""
    (json_file, names), *others = keypoints.items()
    for other, other_names in others:
        if other_names != names:
            raise UserError(
                "data.other_keypoints",
                f"{other} has other 'keypoints' than {json_file}, or in another order; make them the same",
            )
    return names


def missing_flags(split: str) -> str:
    """What a message says about a split that the command line lacks."""
    return f"--{split}-json and --{split}-images are missing, or --{split}-data"


def named_files(args: Namespace, split: str) -> Iterator[tuple[str, str, str]]:
    """The name, the annotations and the image folder of each data set of a split (`train` or `val`).

    Raises:
        UserError: there are not as many folders as files.
    """
    json_files, image_roots = args.__dict__[f"{split}_json"], args.__dict__[f"{split}_images"]
    if len(json_files) != len(image_roots):
        raise UserError(
            "data.json_without_images",
            f"--{split}-json was given {counted(len(json_files), 'time')} and --{split}-images "
            f"{counted(len(image_roots), 'time')}; give one folder for each file",
        )
    for number, (json_file, image_root) in enumerate(zip(json_files, image_roots, strict=True)):
        stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(json_file).stem)
        suffix = f"_{number + 1}" if len(json_files) > 1 else ""
        yield f"{split}_{stem}{suffix}", json_file, image_root
