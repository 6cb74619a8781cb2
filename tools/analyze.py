#!/usr/bin/env python3
"""Counts parameters and GFLOPs, compares backbones with timm's, explains SE gates, and shows what padding changes."""

import shlex
import sys

from projects.paper.formatting import check_new_file, paper_table, parity_table, write_json
from projects.paper.padding_drift import drift_table, padding_drift
from projects.paper.paper_tables import measure
from projects.paper.parity import measure_parity
from se_detection.analysis.arguments import argument_parser
from se_detection.errors import UserError, run_tool
from se_detection.files import check_html_file
from se_detection.gates.excitations import explain
from se_detection.gates.gate_page import write_excitation_page
from se_detection.gates.gate_tables import excitations_table, write_excitations
from se_detection.gates.heat_map import draw_effect
from se_detection.modeling.complexity import detector_complexity
from tools.analyze_config import detector_table, load_detector_config


def main() -> None:
    args = argument_parser().parse_args()
    if args.command == "excitations":
        if args.html:
            check_html_file(args.html, overwrite=args.overwrite)
        found = explain(
            args.run,
            args.output,
            split=args.split,
            images=args.images,
            ablation=not args.no_ablation,
            image=args.picture,
            overwrite=args.overwrite,
        )
        paths = write_excitations(found)
        if args.picture:
            paths += draw_effect(found, args.picture)
        if args.html:
            paths.append(write_excitation_page(found, paths, args.html, shlex.join(sys.argv)))
        print(excitations_table(found))
        print("\nWritten:", *paths, sep="\n  ")
        return
    if args.json:
        check_new_file(args.json)
    if args.command == "parity":
        errors = measure_parity()
        print(parity_table(errors))
        content = {"rows": [error.to_dict() for error in errors]}
    elif args.command == "padding":
        drift = padding_drift(args.run, overrides=args.opts, split=args.split, images=args.images, batch=args.batch)
        print(drift_table(drift))
        content = drift.to_dict()
    elif args.config_file is not None:
        counted = detector_complexity(load_detector_config(args.config_file, args.opts), args.size)
        print(detector_table(counted))
        content = counted.to_dict()
    elif args.size or args.opts:
        raise UserError("--size and KEY VALUE are for a detector: name one by --config-file, before KEY VALUE")
    else:
        rows = measure()
        print(paper_table(rows))
        content = {"rows": [row.to_dict() for row in rows]}
    if args.json:
        write_json(content, args.json)


if __name__ == "__main__":
    run_tool(main)
