#!/usr/bin/env python3
"""Trains a plain and an SE detector on the built-in toy set, both at once on a core each, and compares them.

This is `make demo`: minutes on two CPU cores. It runs the commands that it prints, in the current folder.
"""

import os
import shlex
import subprocess
import sys
import tempfile

FOLDER = "output/demo"
TRAIN = "se-det train --overwrite --config-file Toy/faster_rcnn_{}_18_FPN OUTPUT_DIR " + FOLDER
PLAIN, SE = f"{TRAIN.format('R')}/plain", f"{TRAIN.format('SE_R')}/se"
COMPARE = f"se-det compare --overwrite --baseline {FOLDER}/plain --candidate {FOLDER}/se --html {FOLDER}/report.html"
NEXT = "se-det quickstart --train-data FOLDER"
# The lines of a training that are shown.
SHOWN = ("model", "schedule", "step", "result")


def start(command: str, stdout: int) -> "subprocess.Popen[str]":
    """Starts a `se-det` command in one thread: two trainings that share the cores would slow each other down."""
    _, *words = shlex.split(command)
    # Threads that spin while they wait would take the other training's core.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "se_detection", *words],
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def main() -> int:
    """Runs the commands; the exit code is that of the one that fails."""
    with tempfile.TemporaryFile("w+") as of_se:
        print(f"$ {PLAIN}\n$ {SE}    # at the same time", flush=True)
        se, plain = start(SE, of_se.fileno()), start(PLAIN, subprocess.PIPE)
        lines = []
        for line in plain.stdout or ():
            lines.append(line)
            if line.startswith(SHOWN):
                print(line, end="", flush=True)
        if code := plain.wait():
            print(*lines[-20:], sep="", end="", file=sys.stderr)
        if not code and (code := se.wait()):
            of_se.seek(0)
            print(*of_se.readlines()[-20:], sep="", end="", file=sys.stderr)
        if code:
            se.terminate()
            return code
    print(f"\n$ {COMPARE}", flush=True)
    if code := start(COMPARE, sys.stdout.fileno()).wait():
        return code
    print(f"next, your own data: {NEXT}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # The commands have received it, too.
        sys.exit(130)
