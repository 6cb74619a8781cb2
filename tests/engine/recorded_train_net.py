"""tools/train_net.py with a record of what each process does, in the folder $RECORD.

`<rank>.jsonl` has a line for each step and each evaluated image; `gradients<rank>.pth` has the gradients of the first
step. Each line takes $SECONDS longer. With $FORK, `launch` forks the processes instead of starting Python for each.
"""

import hashlib
import json
import os
import time
from functools import partial
from pathlib import Path

import torch
from detectron2.utils import comm
from torch.multiprocessing.spawn import start_processes

from se_detection.engine import launch
from se_detection.engine.checks import load_config
from se_detection.engine.launch import use_torchrun
from se_detection.engine.train_and_evaluate import launch_run
from se_detection.engine.trainer import Trainer
from se_detection.errors import run_tool
from se_detection_cli import train_command
from se_detection_cli.main import command_parser


class RecordedTrainer(Trainer):
    def run_step(self) -> None:
        super().run_step()
        model = self.checkpointer.model
        if self.iter == 0:
            gradients = {name: item.grad for name, item in model.named_parameters() if item.grad is not None}
            torch.save(gradients, folder() / f"gradients{comm.get_rank()}.pth")
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        files = [Path(file).name for file in self.batches.files]
        record(pid=os.getpid(), iteration=self.iter, files=files, weights=digest.hexdigest())

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        evaluator = super().build_evaluator(cfg, dataset_name)
        process = evaluator.process

        def slowly(inputs, outputs) -> None:
            record(pid=os.getpid(), evaluated=Path(inputs[0]["file_name"]).name)
            process(inputs, outputs)

        evaluator.process = slowly
        return evaluator


def folder() -> Path:
    return Path(os.environ["RECORD"])


def record(**content: object) -> None:
    with (folder() / f"{comm.get_rank()}.jsonl").open("a") as file:
        file.write(json.dumps(content) + "\n")
    time.sleep(float(os.environ.get("SECONDS", "0")))


def main() -> None:
    if "FORK" in os.environ:
        launch.start_processes = partial(start_processes, start_method="fork")
    args = command_parser(train_command).parse_args()
    torchrun = use_torchrun(args)
    launch_run(load_config(args), args, torchrun=torchrun, trainer_class=RecordedTrainer)


if __name__ == "__main__":
    run_tool(main)
