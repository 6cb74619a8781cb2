"""The models and cases that a command line chooses."""

from argparse import Namespace
from itertools import product

import torch

from se_detection.errors import UserError

from .networks import Case
from .timed_models import EXPORTED, MODEL_NAMES, MODELS, RUN_MODELS, models_for

# The stride of res5: FPN upsamples its map to the size of res4's.
SIZE_DIVISOR = 32


def choose_models(args: Namespace) -> list[str]:
    """The models of a command line.

    Raises:
        UserError: a model is unknown or not available in the mode.
    """
    if args.arms is None:
        names = RUN_MODELS if args.run else tuple(name for name in MODEL_NAMES if name not in EXPORTED)
        return [name for name in names if not (args.quick and name in MODELS and MODELS[name].compiled)]
    for name in args.arms:
        if name not in MODEL_NAMES:
            raise UserError("benchmark.unknown_model", f"--arms {name}: choose from {', '.join(MODEL_NAMES)}")
        if not any(name in models_for(mode, args.arms) for mode in args.mode):
            raise UserError(
                "benchmark.inference_only", f"--arms {name}: it is for inference only; add --mode inference"
            )
        whole = args.part == ["detector"] and args.device != "cuda" and args.dtype == ["float32"] and args.batch == [1]
        if (name in EXPORTED or args.run) and not (whole and list(args.mode) == ["inference"]):
            raise UserError(
                "benchmark.detector_only",
                f"--arms {name}: use --part detector --mode inference, without --device cuda, --dtype and --batch",
            )
        if args.run and name not in RUN_MODELS:
            raise UserError(
                "benchmark.unknown_model", f"--arms {name}: with --run, choose from {', '.join(RUN_MODELS)}"
            )
    return list(args.arms)


def choose_cases(args: Namespace) -> list[Case]:
    """The cases of a command line; those of a part, mode and precision are sorted by size and batch.

    Raises:
        UserError: there is no GPU, or FPN can't work with a size.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("benchmark.no_gpu", "--device cuda: PyTorch finds no GPU here; omit --device to use the CPU")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = sorted(args.size or [(256, 256) if args.quick else (512, 512)])
    for size in sizes:
        if min(size) < SIZE_DIVISOR or any(side % SIZE_DIVISOR for side in size):
            given = "x".join(map(str, size))
            raise UserError("benchmark.size", f"--size {given}: FPN needs a multiple of {SIZE_DIVISOR}")
    return [
        Case(part=part, mode=mode, device=device, dtype=dtype, size=height, width=width, batch=batch, depth=args.depth)
        for part, mode, dtype, (height, width), batch in product(
            args.part, args.mode, args.dtype, sizes, sorted(args.batch)
        )
    ]
