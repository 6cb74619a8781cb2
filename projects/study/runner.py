"""Makes the runs of a study one by one; finished runs are skipped."""

import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from se_detection.engine.signals import Interrupted, handling
from se_detection.errors import UserError
from se_detection.files import read_json, write_json, write_whole
from se_detection.runs.run_folder import BACKBONE_FILE, INFERENCE, NON_FINITE, RESULTS

from .definition import Study, Variant
from .run_records import BACKBONE, read_records, record_file, scores_of_backbone, scores_of_run, times_file
from .study_data import StudyData, StudySplit, make_splits
from .timing import measure_times

DEFINITION, FINISHED = "study.txt", "finished"

# AP on the tuning images by learning rate; None if the training diverged.
Trials = dict[float, float | None]


@dataclass(kw_only=True)
class StudyRunner:
    """Pre-trains the backbones, tries learning rates with the first seed, and fine-tunes, seed by seed.

    Each finished run is recorded at once in `results`. Runs without a record are made, or resumed from `output`.
    Another machine only needs the records to continue the study.

    Args:
        study: its definition.
        data: its data.
        tools: folder of pretrain.py and train_net.py.
        output: folder for runs and weights.
        results: folder for records.
        gpus: GPUs per run; without a GPU, 1 means the CPU.
        command: the command line, for the records.
    """

    study: Study
    data: StudyData
    tools: Path
    output: Path
    results: Path
    gpus: int
    command: str
    splits: dict[str, StudySplit] = field(init=False)

    def run(self, seeds: Collection[int]) -> None:
        """Makes the missing runs of some of the study's seeds; others may be run elsewhere at the same time.

        Raises:
            UserError: a run fails, or `output` holds runs of another definition.
            Interrupted: a signal asked to stop; the current run has saved a checkpoint.
        """
        study, first_seed = self.study, self.study.seeds[0]
        if unknown := sorted(set(seeds) - set(study.seeds)):
            known = ", ".join(map(str, study.seeds))
            raise UserError("study.unknown_seed", f"--seeds {unknown[0]}: use those of {study.name}, {known}")
        digest = self.data.digest()
        self._claim(digest)
        records = read_records(self.results, study)
        if any(record["data_digest"] != digest for kept in records.values() for record in kept.values()):
            raise UserError(
                "study.other_data",
                f"{self.results} has records of other data; use the same data, or another --results",
            )
        trials: dict[str, Trials] = {
            name: {float(rate): ap for rate, ap in next(iter(kept.values()))["learning_rate_trials"].items()}
            for name, kept in records.items()
            if kept
        }
        self.splits = make_splits(study, self.data, self.output / "data")
        missing = [
            (seed, variant)
            for seed in study.seeds
            for variant in study.variants.values()
            if seed in seeds and seed not in records[variant.name]
        ]
        began = time.monotonic()
        for done, (seed, variant) in enumerate(missing):
            left = (time.monotonic() - began) / done * (len(missing) - done) if done else 0
            eta = f", about {left / 3600:.1f} h left" if left else ""
            _log(f"{study.name}: {variant.name}, seed {seed} (run {done + 1} of {len(missing)}{eta})")
            backbone = self._backbone(study.variants[variant.backbone], seed)
            if variant.name not in trials:
                if first_seed not in seeds:
                    raise UserError(
                        "study.no_learning_rate",
                        f"{variant.name}: the learning rate is chosen with seed {first_seed}, which has no record yet; "
                        "run that seed first",
                    )
                first = self._backbone(study.variants[variant.backbone], first_seed)
                trials[variant.name] = {rate: self._trial(variant, first, rate) for rate in study.base_lr}
            rate = best_rate(variant.name, trials[variant.name])
            folder = self.output / "runs" / f"{variant.name}-{seed}"
            self._train(variant, backbone, folder, "val", seed, ["SOLVER.BASE_LR", rate])
            scores = scores_of_run(folder)
            record = {
                "study": study.name,
                "definition": study.digest,
                "arm": variant.name,
                "seed": seed,
                "data_digest": digest,
                **scores,
                "learning_rate": rate,
                "learning_rate_trials": trials[variant.name],
                BACKBONE: {"arm": variant.backbone, **scores_of_backbone(backbone)},
                "command": self.command,
            }
            self.results.mkdir(parents=True, exist_ok=True)
            write_json(record_file(self.results, study, variant.name, seed), record)
            _log(f"{variant.name}, seed {seed}: AP {scores['AP'] or 0:.2f}, AP50 {scores['AP50'] or 0:.2f}")
        times = times_file(self.results, study)
        if missing and not times.is_file():
            _log("measuring times")
            measure_times(study, self.splits["val"], times, self.command)
        scope = "" if len(set(seeds)) == len(study.seeds) else f" of seed {', '.join(map(str, sorted(seeds)))}"
        _log(f"{study.name}: all runs{scope} are finished; see tools/study.py report --results {self.results}")

    def _claim(self, digest: str) -> None:
        path = self.output / DEFINITION
        content = f"{self.study.digest} {digest}"
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != content:
            raise UserError(
                "study.other_output",
                f"{self.output} holds runs of another study, of an earlier definition of {self.study.name}, or of "
                "other data; choose another --output",
            )
        self.output.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(content.encode()))

    def _backbone(self, variant: Variant, seed: int) -> Path:
        """Pre-trains a backbone and returns its folder; variants with the same config share it."""
        folder = self.output / "backbones" / f"{variant.config.stem}-{seed}"
        if not (folder / BACKBONE_FILE).is_file():
            options: list[object] = ["--config-file", variant.config, "--recipe", self.study.recipe]
            options += ["--data", self.data.classification]
            self._start("pretrain.py", seed, [*options, "OUTPUT_DIR", folder])
        return folder

    def _trial(self, variant: Variant, backbone: Path, rate: float) -> float | None:
        """AP on the tuning images after a short training; None if it diverged."""
        folder = self.output / "trials" / f"{variant.name}-{rate:g}"
        iterations = self.study.tuning_iters
        overrides = ["SOLVER.BASE_LR", rate, "SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", f"({iterations * 4 // 5},)"]
        try:
            if not (folder / NON_FINITE).is_file():
                self._train(variant, backbone, folder, "tuning", self.study.seeds[0], overrides)
        except UserError:
            if not (folder / NON_FINITE).is_file():
                raise
        if (folder / NON_FINITE).is_file():
            _log(f"  {variant.name} diverges with BASE_LR {rate:g}")
            return None
        # Without detections there is no AP.
        return float(read_json(folder / INFERENCE / RESULTS)["bbox"]["AP"] or 0.0)

    def _train(
        self, variant: Variant, backbone: Path, folder: Path, split: str, seed: int, overrides: list[object]
    ) -> None:
        """Trains and evaluates a detector."""
        if (folder / FINISHED).is_file():
            return
        options: list[object] = ["--config-file", variant.config]
        for name, part in (("train", self.splits["train"]), ("val", self.splits[split])):
            options += [f"--{name}-json", part.json_file, f"--{name}-images", part.images]
        options += ["--allow-partial-backbone"] * (variant.backbone != variant.name)
        options += [*overrides, "MODEL.WEIGHTS", backbone / BACKBONE_FILE, "OUTPUT_DIR", folder]
        self._start("train_net.py", seed, options)
        # A final checkpoint and results are not enough: they exist before the final evaluation ends.
        (folder / FINISHED).touch()

    def _start(self, tool: str, seed: int, arguments: list[object]) -> None:
        command = [sys.executable, self.tools / tool, "--resume", "--num-gpus", self.gpus, *arguments, "SEED", seed]
        words = list(map(str, command))
        _log(f"  {shlex.join(words[1:])}")
        log = self.output / f"log-{seed}.txt"
        with log.open("ab") as file:
            begin = file.tell()
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
            received: list[int] = []

            def forward(number: int, frame: object) -> None:
                received.append(number)
                process.send_signal(number)

            with handling(forward):
                code = process.wait()
        if received:
            raise Interrupted(128 + received[0])
        if code:
            lines = log.read_bytes()[begin:].decode(errors="replace").split("\n")
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
            raise UserError(
                "study.failed_run",
                f"{tool} ended with exit code {code}: {errors[-1].strip()}; see {log}; run the same command again to "
                "resume",
            )


def best_rate(variant: str, trials: Mapping[float, float | None]) -> float:
    """The learning rate with the highest AP on the tuning images.

    Raises:
        UserError: all trials diverged.
    """
    known = {rate: ap for rate, ap in trials.items() if ap is not None}
    if not known:
        rates = ", ".join(map(str, trials))
        raise UserError("study.diverged", f"{variant}: training diverged with each BASE_LR: {rates}; give lower ones")
    return max(known, key=lambda rate: known[rate])


def _log(text: str) -> None:
    print(time.strftime("[%H:%M:%S] ") + text, flush=True)
