"""Runs a JSON list from standard input in one process: strings are Python code, lists are command lines."""

import json
import runpy
import sys

from se_detection_cli.main import main

for typed in json.load(sys.stdin):
    if isinstance(typed, str):
        exec(compile(typed, "typed", "exec"), {"__name__": "typed"})
        continue
    sys.argv = typed
    try:
        if typed[0] == "se-det":
            main()
        else:
            runpy.run_path(typed[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
