"""Settings for a data set, and the commands that train a plain and an SE detector with them and compare both."""

import os
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import ceil, sqrt
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from ..config.read_config import read_config
from ..data.coco_sets import check_annotations
from ..errors import UserError, counted
from ..files import file_digest, read_json, write_json
from ..model_zoo import find_config_file
from ..runs.evaluated_run import read_run
from ..runs.run_folder import FINAL
from .user_data import SPLITS, missing_flags, named_files

ON_CPU = ("CPU/faster_rcnn_efficientnet_lite0_FPN", "CPU/faster_rcnn_SE_efficientnet_lite0_FPN")
ON_GPU = ("COCO-Detection/faster_rcnn_R_50_FPN_1x", "COCO-Detection/faster_rcnn_SE_R_50_FPN_1x")
# The folders of the two runs, and the file that says what was started.
RUNS = ("plain", "se")
STARTED = "quickstart.json"

# The shorter side of images on a CPU, in pixels: what is usual and what is possible, and how many pixels the side of a
# small object should have.
USUAL, SMALLEST, LARGEST, SMALL_OBJECT = 320, 160, 640, 16
# Passes over 200 images; n images take passes / sqrt(n / 200), on a GPU at least 12.
CPU_PASSES, GPU_PASSES, LEAST_GPU_PASSES = 24, 60, 12
# Images in a step by GPU memory in GB: the table in docs/YOUR_DATA.md.
BATCHES = {24: 16, 12: 8, 6: 4, 3: 2, 0: 1}
# AdamW's on a CPU, SGD's on a GPU.
CPU_RATE, GPU_RATE = 0.001 / 8, 0.02 / 16
# Seconds for an image of a step on one core of a server of 2021: of the heads, and of maps at the usual size.
HEADS, MAPS = 0.08, 0.19


@dataclass(frozen=True)
class DataSize:
    """What the settings depend on.

    Args:
        images, boxes, classes: to train on; images without objects are not counted, because training skips them.
        evaluated: images to evaluate on.
        short_side: the median of the images' shorter sides, in pixels.
        small: a tenth of the objects has a smaller side (the root of its box's area), as a share of the image's
            shorter side.
    """

    images: int
    boxes: int
    classes: int
    evaluated: int
    short_side: float
    small: float

    def __str__(self) -> str:
        return (
            f"data: {counted(self.images, 'image')} with {counted(self.boxes, 'object')} of "
            f"{counted(self.classes, 'class', 'classes')} to train on, {self.evaluated} to evaluate on"
        )


@dataclass(frozen=True)
class Settings:
    """The configs of the plain and of the SE detector, overrides of both, and a line on each choice."""

    configs: tuple[str, str]
    overrides: dict[str, Any]
    reasons: tuple[str, ...]


def measure_data(args: Namespace) -> DataSize:
    """Counts the images and objects of a command line with the data flags of `se-det train`.

    Raises:
        UserError: a flag or file is missing, or a file is not valid.
    """
    found = {split: [file for _, file, _ in named_files(args, split)] for split in SPLITS}
    if missing := [split for split, files in found.items() if not files]:
        raise UserError("data.no_sets", f"{missing_flags(missing[0])}; give the data")
    evaluated = sum(len(check_annotations(file, evaluated=True)["images"]) for file in found["val"])
    images, classes, short_sides, shares = 0, 0, [], []
    for file in found["train"]:
        content = check_annotations(file, evaluated=False)
        sides = {image["id"]: min(image["width"], image["height"]) for image in content["images"]}
        objects = [each for each in content["annotations"] if not each.get("iscrowd")]
        used = {each["image_id"] for each in objects}
        images, classes = images + len(used), len(content["categories"])
        short_sides += [sides[each] for each in used]
        shares += [sqrt(max(0, each["bbox"][2] * each["bbox"][3])) / sides[each["image_id"]] for each in objects]
    small = quantiles(shares, n=10)[0] if len(shares) > 1 else shares[0]
    return DataSize(images, len(shares), classes, evaluated, median(short_sides), small)


def gpu_memory() -> float | None:
    """Of the first GPU, in GB; None without a GPU."""
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None


def choose_settings(data: DataSize, memory: float | None) -> Settings:
    """Chooses configs, image size, batch, learning rate and steps.

    Args:
        memory: of the GPU, in GB; None without a GPU.
    """
    if memory is None:
        configs, passes, rate, batch = ON_CPU, CPU_PASSES / sqrt(data.images / 200), CPU_RATE, 8
        device = "CPU, because there is no GPU: EfficientNet-Lite0, pre-trained on ImageNet; its first half is frozen"
        side, why = _side(data)
        size = f"{side} pixels (the shorter side), {why}"
        longest = side * 3 // 2
        overrides = {"INPUT.MIN_SIZE_TRAIN": f"({side},)", "INPUT.MAX_SIZE_TRAIN": longest}
        overrides |= {"INPUT.MIN_SIZE_TEST": side, "INPUT.MAX_SIZE_TEST": longest}
        seconds = passes * data.images * (HEADS + MAPS * (side / USUAL) ** 2)
        time = f"roughly {counted(ceil(seconds / 60), 'minute')} for each detector on one core"
    else:
        configs, rate = ON_GPU, GPU_RATE
        passes = max(GPU_PASSES / sqrt(data.images / 200), LEAST_GPU_PASSES)
        batch = next(images for least, images in BATCHES.items() if memory >= least)
        device = f"GPU with {memory:.0f} GB: ResNet-50"
        size = "640 to 800 pixels (the shorter side), as in detectron2's recipes"
        overrides = {}
        time = "the time left is printed in training"
    batch = min(batch, data.images)
    steps = max(100, round(passes * data.images / batch))
    overrides |= {"SOLVER.IMS_PER_BATCH": batch, "SOLVER.BASE_LR": round(rate * batch, 6), "SOLVER.MAX_ITER": steps}
    overrides |= {"SOLVER.WARMUP_ITERS": min(1000, steps // 10)}
    if memory is not None:
        # Any number of steps fits it, also the user's.
        overrides |= {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}
        overrides |= {"SOLVER.CHECKPOINT_PERIOD": 500, "SOLVER.CHECKPOINTS_TO_KEEP": 1}
    seen = counted(round(steps * batch / data.images), "time")
    reasons = (
        f"device: {device}",
        f"size: {size}",
        f"batch: {counted(batch, 'image')}; learning rate {rate * batch:g}, in proportion",
        f"steps: {steps}, so that each image is seen {seen} (fewer images need more passes); {time}",
    )
    return Settings(configs, {**overrides, "SEED": 1}, reasons)


def _side(data: DataSize) -> tuple[int, str]:
    """The images' shorter side on a CPU in pixels, a multiple of 32, and why."""
    needed = SMALL_OBJECT / data.small if data.small else LARGEST
    limit = max(SMALLEST, 32 * ceil(data.short_side / 32))
    if needed > USUAL < limit:
        side = min(32 * ceil(needed / 32), limit, LARGEST)
        return side, f"as a tenth of the objects would be smaller than {SMALL_OBJECT} pixels at {USUAL}"
    if limit < USUAL:
        return limit, "as the images are not larger"
    return USUAL, f"at which nine tenths of the objects have at least {SMALL_OBJECT} pixels"


@dataclass(frozen=True)
class Quickstart:
    """Two trainings and their comparison in a folder.

    Args:
        args: of the command: the data flags, `output`, and overrides of the settings in `opts`.

    Raises:
        UserError: an override is not valid.
    """

    args: Namespace
    settings: Settings

    def __post_init__(self) -> None:
        # The checks of the overrides, also with --dry-run.
        read_config(find_config_file(self.settings.configs[0]), self.args.opts)

    def trainings(self) -> Iterator[tuple[Path, list[str]]]:
        """The folder of each run, and the words of its command after `se-det`."""
        settings = [str(word) for word in chain(*self._overrides().items())]
        data: list[str] = []
        for split in SPLITS:
            if folder := vars(self.args)[f"{split}_data"]:
                data += [f"--{split}-data", folder]
                continue
            for _, file, images in named_files(self.args, split):
                data += [f"--{split}-json", file, f"--{split}-images", images]
        for name, config in zip(RUNS, self.settings.configs, strict=True):
            run = self.args.output / name
            yield run, ["train", "--resume", "--config-file", config, *data, *settings, "OUTPUT_DIR", str(run)]

    def _overrides(self) -> dict[str, Any]:
        """The chosen ones and the user's, without a key twice."""
        opts = self.args.opts
        return {**self.settings.overrides, **dict(zip(opts[::2], opts[1::2], strict=True))}

    def comparison(self) -> list[str]:
        """The words of the command that compares both runs."""
        runs = ["--baseline", str(self.args.output / RUNS[0]), "--candidate", str(self.args.output / RUNS[1])]
        report = ["--html", str(self.args.output / "report.html"), "--pictures", "8", "--overwrite"]
        return ["compare", *runs, "--output", str(self.args.output), *report]

    def commands(self) -> list[str]:
        """All three, to be typed."""
        return [
            shlex.join(["se-det", *words]) for words in (*(words for _, words in self.trainings()), self.comparison())
        ]

    def run(self) -> None:
        """Trains what is not finished, and compares.

        Raises:
            UserError: other data or settings were started in the folder.
            SystemExit: a command failed or was stopped; it has said why.
        """
        self._start()
        for run, words in self.trainings():
            if not _is_finished(run):
                _call(words)
        _call(self.comparison())

    def summary(self) -> str:
        """AP of both, the verdict, and what to do next."""
        compared = read_json(self.args.output / "comparison.json")
        lines = [
            f"{name:6} AP {compared[side]['AP']:.1f}, AP@0.5 {compared[side]['AP50']:.1f}"
            for name, side in (("plain:", "baseline"), ("SE:", "candidate"))
        ]
        _, _, images = next(named_files(self.args, "val"))
        steps = 3 * int(self._overrides()["SOLVER.MAX_ITER"])
        return "\n".join(
            [
                *("", *lines, f"Verdict: {compared['verdict']}.", f"Report: {self.args.output / 'report.html'}", ""),
                "Next:",
                f"  se-det predict --run {shlex.quote(str(self.args.output / RUNS[1]))} {shlex.quote(images)}",
                f"  a higher AP: the same quickstart with --output OTHER, and SOLVER.MAX_ITER {steps} at the end",
                "  a surer verdict: both trainings again with another SEED and OUTPUT_DIR, then all runs in compare",
            ]
        )

    def _start(self) -> None:
        """Writes what is started, or compares it with what was started before."""
        files = [file for split in SPLITS for _, file, _ in named_files(self.args, split)]
        now = {"commands": self.commands(), "data": {file: file_digest(Path(file)) for file in files}}
        path = self.args.output / STARTED
        if path.is_file():
            if read_json(path) != now:
                raise UserError(
                    "output.exists",
                    f"{self.args.output} holds a quickstart with other data or settings; choose another --output",
                )
            return
        if taken := next((run for run, _ in self.trainings() if run.exists()), None):
            raise UserError("output.exists", f"{taken} exists, and is not of a quickstart; choose another --output")
        self.args.output.mkdir(parents=True, exist_ok=True)
        write_json(path, now, indent=2)


def _is_finished(run: Path) -> bool:
    """Whether a run's last checkpoint was evaluated."""
    try:
        checkpoint = read_run(run).checkpoint
    except UserError:
        return False
    return checkpoint is not None and checkpoint.file == FINAL


def _call(words: list[str]) -> None:
    """Runs a command of this package in a process of its own, as each training writes its own log."""
    print(f"\n$ {shlex.join(['se-det', *words])}", flush=True)
    # Spinning threads make a busy machine much slower.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    done = subprocess.run([sys.executable, "-m", "se_detection", *words], env=environment, check=False)
    if done.returncode:
        print("\nNot finished; the same command continues.", file=sys.stderr)
        sys.exit(done.returncode if done.returncode > 0 else 128 - done.returncode)
