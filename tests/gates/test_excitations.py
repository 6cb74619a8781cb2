import json
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch

from se_detection import UserError
from se_detection.data.toy import make_toy_dataset
from se_detection.engine.signals import Interrupted
from se_detection.gates.ablation import detections
from se_detection.gates.excitations import explain

from .conftest import SOME


@pytest.fixture
def run_tool(run_script):
    return partial(run_script, "analyze.py", "excitations")


@pytest.mark.parametrize(("stop_after", "images", "evaluations"), [(3, 3, 0), (2 * SOME + 1, SOME, 1)])
def test_a_stopped_analysis_reports_its_progress_and_resumes(
    se_run, some_explained, tmp_path, monkeypatch, capsys, stop_after, images, evaluations
) -> None:
    """Stopped while gates are recorded, or in the second evaluation."""
    seen = []

    def watched(run, images, step):
        for item in detections(run, images, step):
            seen.append(item)
            if len(seen) == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    monkeypatch.setattr("se_detection.gates.excitations.detections", watched)
    monkeypatch.setattr("se_detection.gates.ablation.detections", watched)
    with pytest.raises(Interrupted) as stopped:
        explain(se_run, tmp_path, images=SOME)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert len(seen) == stop_after
    progress = f"the gates of {images} of {SOME} images and {evaluations} evaluations"
    assert f"stopped: {tmp_path} has {progress}; run the same command to resume" in capsys.readouterr().err

    resumed = explain(se_run, tmp_path, images=SOME)
    assert f"resumes after {progress}" in capsys.readouterr().err
    # One pass for the gates and one for each of six evaluations; the one that was stopped starts again.
    assert len(seen) == 7 * SOME + stop_after - images - evaluations * SOME
    rows = [json.loads((folder / "state.json").read_text())["rows"] for folder in (tmp_path, some_explained.folder)]
    # Gates that are read from a file may differ in the last digit.
    for label in rows[0] | rows[1]:
        np.testing.assert_allclose(rows[0][label]["AP"], rows[1][label]["AP"], rtol=1e-2)
    for name, block in some_explained.statistics.items():
        for field, array in block.to_arrays().items():
            np.testing.assert_allclose(resumed.statistics[name].to_arrays()[field], array, rtol=1e-9, atol=1e-12)


def test_evaluations_can_be_skipped_and_added_later(se_run, some_explained, tmp_path) -> None:
    options = {"images": SOME, "ablation": False}
    assert explain(se_run, tmp_path, **options).ablation is None
    assert json.loads((tmp_path / "state.json").read_text())["rows"] == {}
    ablation = explain(se_run, tmp_path, images=SOME).ablation
    assert ablation.unchanged == some_explained.ablation.unchanged
    # Earlier evaluations are kept.
    assert explain(se_run, tmp_path, **options).ablation == ablation


def test_memory_does_not_grow_with_the_number_of_images(explained) -> None:
    for name, block in explained.statistics.items():
        size = sum(array.size for array in block.to_arrays().values())
        channels = explained.gates[name].fc2.out_channels
        assert size == 5 + 2 * 5 * channels + 4 * 4 + 2 * channels


def test_other_data_on_the_command_line(se_run, tmp_path) -> None:
    json_file = make_toy_dataset(tmp_path, split="other", count=2)
    analysis = explain(se_run, tmp_path / "out", split=[json_file, tmp_path / "other"], ablation=False)
    assert analysis.data.annotations == json_file
    assert {block.images[-1] for block in analysis.statistics.values()} == {2}
    content = json.loads(json_file.read_text())
    content["categories"][1]["name"] = "blob"
    json_file = tmp_path / "renamed.json"
    json_file.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"renamed.json: its 4 categories \(circle, blob, triangle, ...\) are not the 4"
    ):
        explain(se_run, tmp_path / "out", split=[json_file, tmp_path / "other"])


def test_a_folder_keeps_one_analysis(se_run, tmp_path) -> None:
    explain(se_run, tmp_path, images=1, ablation=False)
    before = (tmp_path / "excitations.npz").read_bytes()
    with pytest.raises(UserError, match=r"excitations.npz already exists and is for other images; choose another"):
        explain(se_run, tmp_path, images=2, ablation=False)
    assert (tmp_path / "excitations.npz").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    explain(se_run, tmp_path, images=2, ablation=False, overwrite=True)
    assert (tmp_path / "excitations.npz").read_bytes() != before
    assert (tmp_path / "notes.txt").read_text() == "mine"
    # Without state.json the analysis is unknown, and not replaced either.
    (tmp_path / "state.json").unlink()
    with pytest.raises(UserError, match="already exists and is for other weights, config, annotations, images"):
        explain(se_run, tmp_path, images=2, ablation=False)


def test_a_run_without_se_is_rejected(make_run, run_tool, capsys) -> None:
    run = make_run("R_18_FPN")
    with pytest.raises(SystemExit) as caught:
        run_tool("--run", run)
    assert caught.value.code == 2
    expected = f"error: {run}: its detector (build_resnet_fpn_backbone) has no SE gates; give a run with SE\n"
    assert capsys.readouterr().err == expected
    assert not (run / "excitations").exists()


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (
            lambda run: (run / "config.yaml").unlink(),
            [],
            "{run}: no config.yaml; give the output folder of se-det",
        ),
        (lambda run: (run / "run.json").unlink(), [], "data set 'old-images' is not registered"),
        (lambda run: drop_checkpoint(run), [], "{run} has no checkpoint; train the run first"),
        (lambda run: None, [], "{run}/run.json: /nowhere/val.json is gone; restore it, or name the data by --split"),
        (lambda run: None, ["--images", "0"], "--images 0: give at least 1"),
        (lambda run: None, ["--picture", "none.jpg"], "image none.jpg can't be used"),
        (lambda run: None, ["--split", "none.json", "none"], "none.json"),
        (lambda run: two_sets(run), [], "{run} has 2 test sets; name one by --split JSON IMAGES"),
    ],
)
def test_errors_are_one_line(se_run, tmp_path, run_tool, capsys, damage, arguments, message):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "run.json", "model_final.pth", "last_checkpoint"):
        (run / name).write_bytes((se_run / name).read_bytes())
    config = (run / "config.yaml").read_text().replace("- images", "- old-images")
    (run / "config.yaml").write_text(config)
    record = {"data": {"old-images": {"json": "/nowhere/val.json", "images": "/nowhere"}}}
    (run / "run.json").write_text(json.dumps(record))
    damage(run)
    with pytest.raises(SystemExit) as caught:
        run_tool("--run", run, *arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(run=run)}")
    assert error.count("\n") == 1


def drop_checkpoint(run) -> None:
    for name in ("model_final.pth", "last_checkpoint"):
        (run / name).unlink()


def two_sets(run) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("- old-images", "- old-images\n  - more"))


def test_the_newest_checkpoint_is_used(se_run, make_run) -> None:
    run = make_run("SE_R_18_FPN")
    (run / "model_final.pth").rename(run / "model_0000099.pth")
    (run / "last_checkpoint").write_text("model_0000099.pth")
    analysis = explain(run, images=2, ablation=False)
    assert analysis.run.weights == run / "model_0000099.pth"
    assert analysis.folder == run / "excitations"
    assert not analysis.run.model.training
    saved = torch.load(se_run / "model_final.pth", weights_only=True)["model"]
    for key, tensor in analysis.run.model.state_dict().items():
        assert key.startswith("pixel_") or torch.equal(tensor, saved[key])
