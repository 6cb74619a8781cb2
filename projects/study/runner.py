"""Makes the runs of a study one by one; finished runs are skipped."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from se_detection.engine.signals import Interrupted, handling
from se_detection.errors import UserError
from se_detection.files import read_json, write_json, write_whole
from se_detection.runs.run_folder import INFERENCE, NON_FINITE, RESULTS

from .definition import DataSet, Study
from .run_records import Records, read_records, record_file, scores_of_run, times_file
from .study_data import Split, data_digest, make_splits
from .timing import measure_times

DEFINITION, FINISHED = "study.txt", "finished"

# AP on the tuning images by learning rate; None if the training diverged.
Trials = dict[float, float | None]


class Run(NamedTuple):
    """A run of a study."""

    data: str
    variant: str
    seed: int


@dataclass(kw_only=True)
class StudyRunner:
    """Tries learning rates with the first seed of each data set, trains, and evaluates.

    The trials have the whole schedule. The best of them is also the run of the first seed.

    Each finished run is recorded at once in `results`. Runs without a record are made, or resumed from `output`.
    Another machine only needs the records to continue the study.

    Args:
        study: its definition.
        root: the folder that the paths of its data sets are relative to.
        tools: folder of train_net.py.
        output: folder for runs and weights.
        results: folder for records.
        gpus: GPUs per run; without a GPU, 1 means the CPU.
        command: the command line, for the records.
    """

    study: Study
    root: Path
    tools: Path
    output: Path
    results: Path
    gpus: int
    command: str
    splits: dict[str, dict[str, Split]] = field(init=False)

    def run(self, names: Collection[str] = (), seeds: Collection[int] = (), variants: Collection[str] = ()) -> None:
        """Makes the missing runs: the first seed of every data set and variant, then the second, ...

        Args:
            names: only these data sets; others may be run by another process at the same time.
            seeds: only these seeds, likewise.
            variants: only these variants, likewise.

        Raises:
            UserError: a run fails, or `output` holds runs of another definition.
            Interrupted: a signal asked to stop; the current run has saved a checkpoint.
        """
        chosen = self._choose(names, seeds, variants)
        digests = {data.name: data_digest(data, self.root) for data in chosen}
        records = read_records(self.results, self.study)
        for data in chosen:
            self._claim(data, digests[data.name])
            kept = [record for runs in records[data.name].values() for record in runs.values()]
            if any(record["data_digest"] != digests[data.name] for record in kept):
                raise UserError(
                    "study.other_data",
                    f"{self.results} has records of other data than {data.name} in {self.root}; use the same data, or "
                    "another --results",
                )
        self.splits = {data.name: make_splits(data, self.root, self.output / "data") for data in chosen}
        order = self._order(chosen, seeds, variants)
        missing = [run for run in order if run.seed not in records[run.data][run.variant]]
        began = time.monotonic()
        for done, run in enumerate(missing):
            left = (time.monotonic() - began) / done * (len(missing) - done) if done else 0
            eta = f", about {left / 3600:.1f} h left" if left else ""
            _log(f"{run.data}: {run.variant}, seed {run.seed} (run {done + 1} of {len(missing)}{eta})")
            self._make(run, digests[run.data])
        times = times_file(self.results, self.study)
        data = next(iter(self.study.data.values()))
        if data.name in self.splits and not times.is_file():
            _log("measuring times")
            measure_times(self.study, data, self.splits[data.name]["val"], times, self.command)
        scope = " asked for" if names or seeds or variants else ""
        _log(f"{self.study.name}: all runs{scope} are finished; see tools/study.py report --results {self.results}")

    def _choose(self, names: Collection[str], seeds: Collection[int], variants: Collection[str]) -> list[DataSet]:
        known = self.study.data
        if unknown := sorted(set(names) - set(known)):
            use = ", ".join(known)
            raise UserError("study.unknown_data", f"--only {unknown[0]}: use those of {self.study.name}, {use}")
        all_seeds = {seed for data in known.values() for seed in data.seeds}
        if other := sorted(set(seeds) - all_seeds):
            use = ", ".join(map(str, sorted(all_seeds)))
            raise UserError("study.unknown_seed", f"--seeds {other[0]}: use those of {self.study.name}, {use}")
        if strange := sorted(set(variants) - set(self.study.variants)):
            use = ", ".join(self.study.variants)
            raise UserError("study.unknown_variant", f"--variants {strange[0]}: use those of {self.study.name}, {use}")
        return [data for name, data in known.items() if not names or name in names]

    def _order(self, chosen: list[DataSet], seeds: Collection[int], variants: Collection[str]) -> list[Run]:
        """The runs, seed by seed, so that a study that was stopped has equal numbers of each variant."""
        rounds = zip_longest(*(data.seeds for data in chosen))
        return [
            Run(data.name, variant, seed)
            for turn in rounds
            for data, seed in zip(chosen, turn, strict=True)
            if seed is not None and (not seeds or seed in seeds)
            for variant in self.study.variants
            if not variants or variant in variants
        ]

    def _claim(self, data: DataSet, digest: str) -> None:
        path = self.output / data.name / DEFINITION
        content = f"{data.digest} {digest}"
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != content:
            raise UserError(
                "study.other_output",
                f"{path.parent} holds runs of another study, of an earlier definition of {self.study.name}, or of "
                "other data; choose another --output",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(content.encode()))

    def _make(self, run: Run, digest: str) -> None:
        """Makes a run, with the trials of its learning rate before the first seed, and records it."""
        trials = self._trials(run)
        rate = best_rate(f"{run.data}, {run.variant}", trials)
        folder = self.output / run.data / f"{run.variant}-{run.seed}"
        trial = self._trial_folder(run, rate)
        if run.seed == self._first_seed(run) and trial.is_dir() and not folder.is_dir():
            # This run was trained already: it only has to be evaluated on the test images.
            copy = folder.with_name(f"{folder.name}.part")
            shutil.copytree(trial, copy, ignore=shutil.ignore_patterns(INFERENCE, FINISHED), dirs_exist_ok=True)
            copy.replace(folder)
        self._train(run, folder, "val", rate)
        scores = scores_of_run(folder)
        record = {
            "study": self.study.name,
            "definition": self.study.data[run.data].digest,
            "data": run.data,
            "arm": run.variant,
            "seed": run.seed,
            "data_digest": digest,
            **scores,
            "learning_rate": rate,
            "learning_rate_trials": trials,
            "command": self.command,
        }
        self.results.mkdir(parents=True, exist_ok=True)
        write_json(record_file(self.results, self.study, *run), record)
        _log(f"{run.data}: {run.variant}, seed {run.seed}: AP {scores['AP'] or 0:.2f}, AP50 {scores['AP50'] or 0:.2f}")

    def _trials(self, run: Run) -> Trials:
        """The trials of a variant on a data set: those of a record, or new ones."""
        recorded: Records = read_records(self.results, self.study)
        if kept := recorded[run.data][run.variant]:
            trials = next(iter(kept.values()))["learning_rate_trials"]
            return {float(rate): ap for rate, ap in trials.items()}
        first = self._first_seed(run)
        if run.seed != first:
            raise UserError(
                "study.no_learning_rate",
                f"{run.data}, {run.variant}: the learning rate is chosen with seed {first}, which has no record yet; "
                "run that seed first",
            )
        return {rate: self._trial(run, rate) for rate in self.study.base_lr}

    def _trial(self, run: Run, rate: float) -> float | None:
        """AP on the tuning images; None if the training diverged."""
        folder = self._trial_folder(run, rate)
        try:
            if not (folder / NON_FINITE).is_file():
                self._train(run, folder, "tuning", rate)
        except UserError:
            if not (folder / NON_FINITE).is_file():
                raise
        if (folder / NON_FINITE).is_file():
            _log(f"  {run.variant} diverges with BASE_LR {rate:g}")
            return None
        # Without detections there is no AP.
        return float(read_json(folder / INFERENCE / RESULTS)["bbox"]["AP"] or 0.0)

    def _trial_folder(self, run: Run, rate: float) -> Path:
        return self.output / run.data / f"{run.variant}-rate-{rate:g}"

    def _first_seed(self, run: Run) -> int:
        return self.study.data[run.data].seeds[0]

    def _train(self, run: Run, folder: Path, split: str, rate: float) -> None:
        """Trains and evaluates a detector."""
        if (folder / FINISHED).is_file():
            return
        data, splits = self.study.data[run.data], self.splits[run.data]
        options: list[object] = ["--config-file", self.study.variants[run.variant]]
        for name, part in (("train", splits["train"]), ("val", splits[split])):
            options += [f"--{name}-json", part.json_file, f"--{name}-images", part.images]
        self._start(run, [*options, *data.options, "SOLVER.BASE_LR", rate, "SEED", run.seed, "OUTPUT_DIR", folder])
        # A final checkpoint and results are not enough: they exist before the final evaluation ends.
        (folder / FINISHED).touch()

    def _start(self, run: Run, arguments: list[object]) -> None:
        tool = "train_net.py"
        words = [sys.executable, str(self.tools / tool), "--resume", "--num-gpus", str(self.gpus), *map(str, arguments)]
        _log(f"  {shlex.join(words[1:])}")
        log = self.output / run.data / f"log-{run.variant}-{run.seed}.txt"
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


def best_rate(what: str, trials: Mapping[float, float | None]) -> float:
    """The learning rate with the highest AP on the tuning images.

    Raises:
        UserError: all trials diverged.
    """
    known = {rate: ap for rate, ap in trials.items() if ap is not None}
    if not known:
        rates = ", ".join(map(str, trials))
        raise UserError("study.diverged", f"{what}: training diverged with each BASE_LR: {rates}; give lower ones")
    return max(known, key=lambda rate: known[rate])


def _log(text: str) -> None:
    print(time.strftime("[%H:%M:%S] ") + text, flush=True)
