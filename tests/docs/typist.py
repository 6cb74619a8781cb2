"""Does what it is told on standard input, a JSON list of Python (text) and of command lines (lists), in one process."""

import json
import runpy
import sys

for typed in json.load(sys.stdin):
    if isinstance(typed, str):
        exec(compile(typed, "typed", "exec"), {"__name__": "typed"})
        continue
    sys.argv = typed
    try:
        runpy.run_path(typed[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
