"""Measures time and memory of detectors with different backbones, as ratios to detectron2's plain ResNet.

The models take turns, so that other load on the machine affects all alike. Ctrl-C ends it; the results so far are
printed and written.
"""

import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

# Written out, because importing what defines them takes seconds.
PARTS = ("backbone", "backbone+fpn", "detector")
MODES = ("inference", "train")
DTYPES = ("float32", "bfloat16", "float16")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
DESCRIPTIONS = {
    "stock": "detectron2's plain ResNet, unchanged: the reference of all ratios",
    "stock-fused": "the same after fuse_for_inference",
    "stock-compiled": "the same after fuse_for_inference and torch.compile",
    "timm-legacy": "timm's legacy_seresnet as the backbone",
    "timm": "timm's seresnet as the backbone",
    "eager": "our SE-ResNet as it is trained",
    "fused": "the same after fuse_for_inference",
    "compiled": "the same after fuse_for_inference and torch.compile",
    "bound": "a lower bound of our time, from bytes and operations",
    "onnxruntime": "our whole detector, exported without fusing",
    "onnxruntime-fused": "the same, exported with --fuse",
    "onnxruntime-int8": "the same in 8 bits",
    "openvino": "our whole detector, exported with --fuse, in OpenVINO",
    "openvino-bf16": "the same in bfloat16",
    "openvino-int8": "the same in 8 bits",
}
MODEL_LIST = "\n".join(f"  {name:<17}  {text}" for name, text in DESCRIPTIONS.items())
EXAMPLES = f"""
models:
{MODEL_LIST}

With --run, the detector, the images and their size are those of the run, and stock is its detector, unchanged.

examples:
  $ tools/benchmark.py --quick
  $ tools/benchmark.py --part detector --mode inference --size 480x640 --arms fused onnxruntime-fused openvino
  $ tools/benchmark.py --part detector --mode inference --run output/SE_R --evaluate
  $ tools/benchmark.py --arms eager fused compiled bound --json benchmark.json
  $ tools/benchmark.py --mode inference --size 256 512 768 1024 --plot sizes.png
  $ tools/benchmark.py --device cuda --part detector --dtype float32 bfloat16 --size 800 --batch 1 2 4 8
"""


def add_arguments(parser: ArgumentParser) -> None:
    """The models, the cases, and the output."""
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="MODEL",
        help="models to time in addition to stock (default: all; with --quick, all that are not compiled)",
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=["backbone+fpn"], help="default: backbone+fpn")
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=MODES,
        default=MODES,
        help="default: both; fused models are for inference only; in training, compiled is compiled but not fused",
    )
    parser.add_argument("--depth", type=int, choices=(18, 50, 101), default=50, help="of the ResNet (default: 50)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], help="default: float32; others use autocast"
    )
    parser.add_argument(
        "--size", type=_size, nargs="+", metavar="PIXELS", help="or HEIGHTxWIDTH (default: 512; with --quick, 256)"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="images per batch (default: 1)")
    parser.add_argument("--rounds", type=int, metavar="N", help="timings of each case (default: 21; with --quick, 6)")
    parser.add_argument("--run", type=Path, metavar="RUN", help="time the detector of a run")
    parser.add_argument("--evaluate", action="store_true", help="with --run: measure the AP of each detector as well")
    parser.add_argument("--compile", choices=COMPILE_MODES, default="default", help="mode of torch.compile")
    parser.add_argument("--seed", type=int, default=0, help="for the order of models in each round (default: 0)")
    parser.add_argument("--quick", action="store_true", help="less than a minute on two CPU cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot as PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(args: Namespace) -> None:
    """Measures, prints the tables, and writes the files."""
    from se_detection.files import check_output, write_json

    from .benchmark_plots import draw_benchmark
    from .benchmark_report import benchmark_table
    from .choices import choose_cases, choose_models
    from .run import run_benchmark

    cases, models = choose_cases(args), choose_models(args)
    for path in filter(None, (args.json, args.plot)):
        check_output(path, overwrite=args.overwrite)
    rounds = args.rounds or (6 if args.quick else 21)
    benchmark = run_benchmark(
        cases,
        models,
        rounds=rounds,
        compile_mode=args.compile,
        seed=args.seed,
        run=args.run,
        evaluate=args.evaluate,
    )
    print(benchmark_table(benchmark), flush=True)
    if args.json:
        write_json(args.json, {"command": shlex.join(sys.argv), **benchmark}, indent=2)
    if args.plot and benchmark["rows"]:
        draw_benchmark(benchmark["rows"], args.plot)
    if benchmark["interrupted"]:
        sys.exit(130)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)
