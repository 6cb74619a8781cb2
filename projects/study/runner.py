"""Makes the runs of a study one by one; finished runs are skipped."""

import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from se_detection.engine.signals import Interrupted, handling
from se_detection.errors import UserError
from se_detection.files import read_json, write_whole
from se_detection.runs.run_folder import BACKBONE_FILE, INFERENCE, NON_FINITE, RESULTS

from .definition import Study, Variant
from .run_records import read_records, times_file, write_record
from .study_data import StudyData, StudySplit, make_splits
from .timing import measure_times

DEFINITION, FINISHED = "study.txt", "finished"


def run_study(
    study: Study,
    data: StudyData,
    *,
    tools: Path,
    output: Path,
    results: Path,
    seeds: Collection[int],
    gpus: int,
    command: str,
) -> None:
    """Pre-trains the backbones, tries learning rates with the first seed, and fine-tunes, seed by seed.

    Each finished run is recorded at once in `results`. Runs without a record are made, or resumed from `output`.
    Another machine only needs the records to continue the study.

    Args:
        tools: folder of pretrain.py and train_net.py.
        output: folder for runs and weights.
        results: folder for records.
        seeds: some of the study's seeds; others may be run elsewhere at the same time.
        gpus: GPUs per run; without a GPU, 1 means the CPU.
        command: the command line, for the records.

    Raises:
        UserError: a run fails, or `output` holds runs of another definition.
        Interrupted: a signal asked to stop; the current run has saved a checkpoint.
    """
    unknown = sorted(set(seeds) - set(study.seeds))
    if unknown:
        raise UserError(f"--seeds {unknown[0]}: {study.name} has the seeds {', '.join(map(str, study.seeds))}")
    digest = data.digest()
    _claim(output, study, digest)
    records = read_records(results, study)
    known = [record for kept in records.values() for record in kept.values()]
    if known and known[0]["data_digest"] != digest:
        raise UserError(f"{results} has records of other data; use the same data, or another --results")
    rates: dict[str, dict[float, float | None]] = {
        name: {float(rate): ap for rate, ap in next(iter(kept.values()))["learning_rate_trials"].items()}
        for name, kept in records.items()
        if kept
    }
    splits = make_splits(study, data, output / "data")
    runner = _Runner(study, data, splits, tools, output, gpus)
    missing = [
        (seed, variant)
        for seed in study.seeds
        for variant in study.variants.values()
        if seed in seeds and seed not in records[variant.name]
    ]
    began = time.monotonic()
    for number, (seed, variant) in enumerate(missing):
        left = (time.monotonic() - began) / number * (len(missing) - number) if number else 0
        eta = f", about {left / 3600:.1f} h left" if left else ""
        _log(f"{study.name}: {variant.name}, seed {seed} (run {number + 1} of {len(missing)}{eta})")
        backbone = runner.backbone(study.variants[variant.backbone], seed)
        if variant.name not in rates and study.seeds[0] not in seeds:
            raise UserError(
                f"{variant.name}: the learning rate is chosen with seed {study.seeds[0]}, which has no record yet; run "
                "that seed first"
            )
        if variant.name not in rates:
            first = runner.backbone(study.variants[variant.backbone], study.seeds[0])
            rates[variant.name] = {rate: runner.trial(variant, first, rate) for rate in study.base_lr}
        rate = best_rate(variant.name, rates[variant.name])
        run = runner.fine_tune(variant, seed, backbone, rate)
        record = write_record(
            results,
            study,
            variant,
            seed,
            run=run,
            backbone=backbone,
            rates=rates[variant.name],
            rate=rate,
            data_digest=digest,
            command=command,
        )
        _log(f"{variant.name}, seed {seed}: AP {record['AP'] or 0:.2f}, AP50 {record['AP50'] or 0:.2f}")
    if missing and not times_file(results, study).is_file():
        _log("measuring times")
        measure_times(study, splits["val"], times_file(results, study), command)
    chosen = [str(seed) for seed in study.seeds if seed in seeds]
    scope = "" if len(chosen) == len(study.seeds) else f" of seed {', '.join(chosen)}"
    _log(f"{study.name}: all runs{scope} are finished; for the tables, use tools/study.py report --results {results}")


def best_rate(variant: str, trials: Mapping[float, float | None]) -> float:
    """The learning rate with the highest AP on the tuning images.

    Raises:
        UserError: all trials diverged.
    """
    known = {rate: ap for rate, ap in trials.items() if ap is not None}
    if not known:
        raise UserError(
            f"{variant}: training diverged with each BASE_LR: {', '.join(map(str, trials))}; give lower ones"
        )
    return max(known, key=lambda rate: known[rate])


def _claim(output: Path, study: Study, digest: str) -> None:
    path = output / DEFINITION
    content = f"{study.digest} {digest}"
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != content:
        raise UserError(
            f"{output} holds runs of another study, of an earlier definition of {study.name}, or of other data; choose "
            "another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content.encode()))


@dataclass(frozen=True)
class _Runner:
    """Starts the tools, each in its own folder below `output`."""

    study: Study
    data: StudyData
    splits: dict[str, StudySplit]
    tools: Path
    output: Path
    gpus: int

    def backbone(self, variant: Variant, seed: int) -> Path:
        """Pre-trains a backbone and returns its folder; variants with the same config share it."""
        folder = self.output / "backbones" / f"{variant.config.stem}-{seed}"
        if not (folder / BACKBONE_FILE).is_file():
            options: list[object] = ["--config-file", variant.config, "--recipe", self.study.recipe]
            options += ["--data", self.data.classification]
            self._start("pretrain.py", seed, options, ["SEED", seed, "OUTPUT_DIR", folder])
        return folder

    def trial(self, variant: Variant, backbone: Path, rate: float) -> float | None:
        """AP on the tuning images after a short training; None if it diverged."""
        folder = self.output / "trials" / f"{variant.name}-{rate:g}"
        iterations = self.study.tuning_iters
        overrides = ["SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", f"({iterations * 4 // 5},)"]
        try:
            if not (folder / NON_FINITE).is_file():
                self._train(variant, backbone, folder, "tuning", self.study.seeds[0], rate, overrides)
        except UserError:
            if not (folder / NON_FINITE).is_file():
                raise
        if (folder / NON_FINITE).is_file():
            _log(f"  {variant.name} diverges with BASE_LR {rate:g}")
            return None
        results_file = folder / INFERENCE / RESULTS
        results = read_json(results_file)
        try:
            return float(results["bbox"]["AP"] or 0.0)
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{results_file} has no AP; remove {folder} to repeat the trial") from error

    def fine_tune(self, variant: Variant, seed: int, backbone: Path, rate: float) -> Path:
        """Trains and evaluates a detector, and returns its folder."""
        folder = self.output / "runs" / f"{variant.name}-{seed}"
        self._train(variant, backbone, folder, "val", seed, rate, [])
        return folder

    def _train(
        self,
        variant: Variant,
        backbone: Path,
        folder: Path,
        split: str,
        seed: int,
        rate: float,
        overrides: list[object],
    ) -> None:
        if (folder / FINISHED).is_file():
            return
        train, test = self.splits["train"], self.splits[split]
        options: list[object] = ["--config-file", variant.config]
        options += ["--train-json", train.json_file, "--train-images", train.images]
        options += ["--val-json", test.json_file, "--val-images", test.images]
        options += ["--allow-partial-backbone"] * (variant.backbone != variant.name)
        overrides = ["SEED", seed, "SOLVER.BASE_LR", rate, "MODEL.WEIGHTS", backbone / BACKBONE_FILE, *overrides]
        self._start("train_net.py", seed, options, [*overrides, "OUTPUT_DIR", folder])
        # A final checkpoint and results are not enough: they exist before the final evaluation ends.
        (folder / FINISHED).touch()

    def _start(self, tool: str, seed: int, options: list[object], overrides: list[object]) -> None:
        command = [sys.executable, self.tools / tool, "--resume", "--num-gpus", self.gpus, *options, *overrides]
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
            reason = _last_error(log, begin)
            raise UserError(
                f"{tool} ended with exit code {code}: {reason}; see {log}; run the same command again to resume"
            )


def _last_error(log: Path, begin: int) -> str:
    lines = [line.strip() for line in log.read_bytes()[begin:].decode(errors="replace").splitlines() if line.strip()]
    errors: Iterator[str] = (line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: "))
    return next(errors, lines[-1] if lines else "no output")


def _log(text: str) -> None:
    print(time.strftime("[%H:%M:%S] ") + text, flush=True)
