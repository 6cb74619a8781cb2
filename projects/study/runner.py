"""The runs of a study, one by one; whatever is finished is not done again."""

import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from se_detection.engine.loss_guard import REPORT as NON_FINITE
from se_detection.engine.signals import Interrupted, handling
from se_detection.errors import UserError
from se_detection.files import read_json, write_whole
from se_detection.runs.evaluated_run import RESULTS

from .definition import Study, Variant
from .run_records import read_records, times_file, write_record
from .study_data import Data, StudySplit, make_splits
from .timing import measure_times

DEFINITION, FINISHED = "study.txt", "finished"


def run_study(
    study: Study,
    data: Data,
    *,
    tools: Path,
    output: Path,
    results: Path,
    seeds: Collection[int],
    gpus: int,
    command: str,
) -> None:
    """Pre-trains each arm's backbone, tries learning rates with the first seed, and fine-tunes, seed by seed.

    A run that is finished is recorded at once in `results`; what has no record is made, or gone on with where `output`
    has a part of it. On another machine the records are enough to go on.

    Args:
        tools: the folder of pretrain.py and train_net.py.
        output: for runs and weights.
        results: for records.
        seeds: which of the study's; others may be run elsewhere at the same time.
        gpus: for each run; 1 without a GPU means the CPU.
        command: that a record says it was made by.

    Raises:
        UserError: a run can't be made, or `output` holds runs of another definition.
        Interrupted: a signal asked to stop; the present run has saved what it has.
    """
    unknown = sorted(set(seeds) - set(study.seeds))
    if unknown:
        raise UserError(f"--seeds {unknown[0]}: {study.name} has the seeds {', '.join(map(str, study.seeds))}")
    digest = data.digest()
    _claim(output, study, digest)
    records = read_records(results, study)
    known = [record for kept in records.values() for record in kept.values()]
    if known and known[0]["data_digest"] != digest:
        raise UserError(f"{results} has records of other data; name the same, or another --results")
    rates: dict[str, dict[float, float | None]] = {
        name: {float(rate): ap for rate, ap in next(iter(kept.values()))["learning_rate_trials"].items()}
        for name, kept in records.items()
        if kept
    }
    splits = make_splits(study, data, output / "data")
    runner = _Runner(study, data, splits, tools, output, gpus)
    missing = [
        (seed, arm)
        for seed in study.seeds
        for arm in study.arms.values()
        if seed in seeds and seed not in records[arm.name]
    ]
    began = time.monotonic()
    for number, (seed, arm) in enumerate(missing):
        left = (time.monotonic() - began) / number * (len(missing) - number) if number else 0
        about = f", about {left / 3600:.1f} h left" if left else ""
        _say(f"{study.name}: {arm.name}, seed {seed} (run {number + 1} of the {len(missing)} missing{about})")
        backbone = runner.backbone(study.arms[arm.backbone], seed)
        if arm.name not in rates and study.seeds[0] not in seeds:
            raise UserError(
                f"{arm.name}: its learning rate is chosen with seed {study.seeds[0]}, which has no record yet; "
                "run that seed first"
            )
        if arm.name not in rates:
            first = runner.backbone(study.arms[arm.backbone], study.seeds[0])
            rates[arm.name] = {rate: runner.trial(arm, first, rate) for rate in study.base_lr}
        rate = best_rate(arm.name, rates[arm.name])
        run = runner.fine_tune(arm, seed, backbone, rate)
        record = write_record(
            results,
            study,
            arm,
            seed,
            run=run,
            backbone=backbone,
            rates=rates[arm.name],
            rate=rate,
            data_digest=digest,
            command=command,
        )
        _say(f"{arm.name}, seed {seed}: AP {record['AP'] or 0:.2f}, AP50 {record['AP50'] or 0:.2f}")
    if missing and not times_file(results, study).is_file():
        _say("measuring time: the arms in turn")
        measure_times(study, splits["val"], times_file(results, study), command)
    of = (
        ""
        if set(seeds) >= set(study.seeds)
        else f" of seed {', '.join(str(seed) for seed in study.seeds if seed in seeds)}"
    )
    _say(f"{study.name}: no run{of} is missing; tools/study.py report makes the tables of {results}")


def best_rate(arm: str, trials: Mapping[float, float | None]) -> float:
    """The learning rate with the highest AP on the tuning images.

    Raises:
        UserError: all trials diverged.
    """
    known = {rate: ap for rate, ap in trials.items() if ap is not None}
    if not known:
        raise UserError(f"{arm}: training diverged with each BASE_LR of {', '.join(map(str, trials))}; give lower ones")
    return max(known, key=lambda rate: known[rate])


def _claim(output: Path, study: Study, digest: str) -> None:
    path = output / DEFINITION
    content = f"{study.digest} {digest}"
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != content:
        raise UserError(
            f"{output} holds runs of another study, of {study.name} as it was before, or of other data; name another "
            "--output"
        )
    output.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content.encode()))


@dataclass(frozen=True)
class _Runner:
    """Starts the tools, and knows where their runs lie."""

    study: Study
    data: Data
    splits: dict[str, StudySplit]
    tools: Path
    output: Path
    gpus: int

    def backbone(self, arm: Variant, seed: int) -> Path:
        """The folder of a backbone's pre-training, finished; arms whose backbones are of one config share it."""
        folder = self.output / "backbones" / f"{arm.config.stem}-{seed}"
        if not (folder / "backbone.pth").is_file():
            options = ["--config-file", arm.config, "--recipe", self.study.recipe, "--data", self.data.classification]
            self._start("pretrain.py", seed, options, ["SEED", seed, "OUTPUT_DIR", folder])
        return folder

    def trial(self, arm: Variant, backbone: Path, rate: float) -> float | None:
        """AP on the tuning images after a short training; None where it diverged."""
        folder = self.output / "trials" / f"{arm.name}-{rate:g}"
        iterations = self.study.tuning_iters
        overrides = ["SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", f"({iterations * 4 // 5},)"]
        try:
            if not (folder / NON_FINITE).is_file():
                self._train(arm, backbone, folder, "tuning", self.study.seeds[0], rate, overrides)
        except UserError:
            if not (folder / NON_FINITE).is_file():
                raise
        if (folder / NON_FINITE).is_file():
            _say(f"  {arm.name} diverges with BASE_LR {rate:g}")
            return None
        results = read_json(folder / RESULTS)
        try:
            return float(results["bbox"]["AP"] or 0.0)
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{folder / RESULTS} has no AP; remove {folder}, and the trial is made again") from error

    def fine_tune(self, arm: Variant, seed: int, backbone: Path, rate: float) -> Path:
        """The folder of a detector's training, finished and evaluated."""
        folder = self.output / "runs" / f"{arm.name}-{seed}"
        self._train(arm, backbone, folder, "val", seed, rate, [])
        return folder

    def _train(
        self, arm: Variant, backbone: Path, folder: Path, split: str, seed: int, rate: float, overrides: list[object]
    ) -> None:
        if (folder / FINISHED).is_file():
            return
        train, test = self.splits["train"], self.splits[split]
        options: list[object] = ["--config-file", arm.config]
        options += ["--train-json", train.json_file, "--train-images", train.images]
        options += ["--val-json", test.json_file, "--val-images", test.images]
        options += ["--allow-partial-backbone"] * (arm.backbone != arm.name)
        overrides = ["SEED", seed, "SOLVER.BASE_LR", rate, "MODEL.WEIGHTS", backbone / "backbone.pth", *overrides]
        self._start("train_net.py", seed, options, [*overrides, "OUTPUT_DIR", folder])
        # Only now: a run has a last checkpoint, and results of an evaluation along the way, before it is evaluated.
        (folder / FINISHED).touch()

    def _start(self, tool: str, seed: int, options: list[object], overrides: list[object]) -> None:
        command = [sys.executable, self.tools / tool, "--resume", "--num-gpus", self.gpus, *options, *overrides]
        words = list(map(str, command))
        _say(f"  {shlex.join(words[1:])}")
        log = self.output / f"log-{seed}.txt"
        with log.open("ab") as file:
            begin = file.tell()
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
            asked: list[int] = []

            def pass_on(number: int, frame: object) -> None:
                asked.append(number)
                process.send_signal(number)

            with handling(pass_on):
                code = process.wait()
        if asked:
            raise Interrupted(128 + asked[0])
        if code:
            reason = _last_error(log, begin)
            raise UserError(
                f"{tool} ended with exit code {code}: {reason}; see {log}; the same command goes on from there"
            )


def _last_error(log: Path, begin: int) -> str:
    lines = [line.strip() for line in log.read_bytes()[begin:].decode(errors="replace").splitlines() if line.strip()]
    told: Iterator[str] = (line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: "))
    return next(told, lines[-1] if lines else "it said nothing")


def _say(text: str) -> None:
    print(time.strftime("[%H:%M:%S] ") + text, flush=True)
