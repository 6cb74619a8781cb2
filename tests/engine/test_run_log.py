"""What a run logs on the screen and into log.txt."""

import logging
import warnings

from termcolor import colored

from se_detection.engine import run_log as log
from se_detection.engine.run_log import run_log, without_warnings

LOGGERS = [logging.getLogger(name) for name in ("se_detection", "detectron2", "fvcore", *log.TORCH, log.PYTHON)]


def test_the_screen_is_short_and_the_file_complete(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    before = [(logger.handlers, logger.filters, logger.level, logger.propagate) for logger in LOGGERS]
    ours, theirs, fvcore, *_ = LOGGERS
    with run_log(tmp_path / "run"):
        ours.getChild("engine").info("device    cpu")
        ours.debug("the environment")
        theirs.getChild("engine.defaults").info("Model:\nGeneralizedRCNN(\n)")
        for _ in range(2):
            fvcore.warning("Some parameters are not found:\n%s\n%s", colored("roi_heads", "blue"), "rpn\n" * 100)
        theirs.warning("\nCategory ids in annotations are not in [1, #categories]! We'll apply a mapping for you.\n")
        theirs.error("%s", colored("disk", "red", attrs=["bold"]))
    shown = capsys.readouterr().out.splitlines()
    missing = "Some parameters are not found: roi_heads" + " rpn" * 100
    assert shown == [
        "device    cpu",
        f"warning: {missing[:200]}... (the rest is in log.txt)",
        "error: disk",
    ]
    text = (tmp_path / "run" / "log.txt").read_text()
    for part in ("se_detection DEBUG: the environment", "\nGeneralizedRCNN(\n", "\nroi_heads\nrpn\n", "Category ids"):
        assert part in text
    assert "\x1b" not in text
    # What other code had set up is back.
    assert [(logger.handlers, logger.filters, logger.level, logger.propagate) for logger in LOGGERS] == before


def test_pythons_warnings_are_one_line_and_known_ones_are_dropped(tmp_path, capfd) -> None:
    torch_logger = logging.getLogger("torch.utils.cpp_extension")
    known = "torch.meshgrid: in an upcoming release, it will be required to pass the indexing argument."
    before = warnings.showwarning
    with run_log(tmp_path):
        for text in (known, "something else", "This DataLoader will create 8 workers. " * 10, "something else"):
            warnings.warn(text, stacklevel=1)
        for text in ("No CUDA runtime is found, using CUDA_HOME='/usr'", "no compiler"):
            record = torch_logger.makeRecord("", logging.WARNING, "", 0, text, (), None)
            assert bool(torch_logger.filter(record)) == (text == "no compiler")
    assert warnings.showwarning is before
    out, err = capfd.readouterr()
    assert err == ""
    first, second = out.splitlines()
    assert first == "warning: something else"
    assert second.startswith("warning: This DataLoader will create 8 workers. This")
    assert second.endswith("... (the rest is in log.txt)")
    assert len(second) < 250
    text = (tmp_path / "log.txt").read_text()
    assert f"{__file__}:" in text
    assert "This DataLoader will create 8 workers. " * 10 in text


def test_an_evaluation_shows_its_progress(tmp_path, capsys, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    evaluator = logging.getLogger("detectron2.evaluation.evaluator")
    with run_log(tmp_path):
        evaluator.info("Start inference on 500 batches")
        for done in range(11, 501):
            now[0] += 1
            # detectron2's words.
            evaluator.info(
                f"Inference done {done}/500. Dataloading: 0.0003 s/iter. Inference: 1.0 s/iter. Eval: 0.0 s/iter. "
                f"Total: 1.0 s/iter. ETA=0:0{(500 - done) // 60}:{(500 - done) % 60:02}"
            )
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["evaluating: 30/500, ETA 0:07:50", "evaluating: 50/500, ETA 0:07:30"]
    # Every 20 seconds up to 100, then after a fifth of the time.
    assert 10 < len(shown) < 20


def test_the_file_of_another_process_has_its_number(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(log.comm, "get_rank", lambda: 2)
    with run_log(tmp_path):
        LOGGERS[0].warning("here")
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt.rank2"]
    assert capsys.readouterr().out == ""


def test_a_closed_pipe_does_not_end_a_training(tmp_path, monkeypatch) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with run_log(tmp_path):
        LOGGERS[0].info("step 1")
    assert "step 1" in (tmp_path / "log.txt").read_text()


def test_warnings_of_a_trial_are_dropped(capfd) -> None:
    solver = logging.getLogger("detectron2.solver.build")
    with without_warnings():
        solver.warning("SOLVER.STEPS contains values larger than SOLVER.MAX_ITER")
    assert capfd.readouterr().err == ""
    assert solver.isEnabledFor(logging.WARNING)
