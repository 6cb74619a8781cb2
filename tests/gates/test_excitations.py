import json
import os
import signal

import numpy as np
import pytest
import torch

from se_detection import UserError
from se_detection.data.toy import make_toy_dataset
from se_detection.engine.signals import Interrupted
from se_detection.errors import counted
from se_detection.gates.ablation import detections
from se_detection.gates.excitations import explain
from se_detection.gates.statistics import FIELDS

from ..helpers import raises
from .conftest import SOME


@pytest.fixture
def loaded(se_run, explained, monkeypatch):
    """The run; its detector is not loaded again."""
    monkeypatch.setattr("se_detection.gates.excitations.load_trained_run", lambda folder, cfg: explained.run)
    return se_run


@pytest.mark.slow
@pytest.mark.parametrize(("stop_after", "images", "evaluations"), [(3, 3, 0), (2 * SOME + 1, SOME, 1)])
def test_a_stopped_analysis_reports_its_progress_and_resumes(
    loaded, some_explained, tmp_path, monkeypatch, capsys, stop_after, images, evaluations
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
        explain(loaded, tmp_path, images=SOME)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert len(seen) == stop_after
    progress = f"the gates of {images} of {SOME} images and {counted(evaluations, 'evaluation')}"
    assert f"stopped: {tmp_path} has {progress}; run the same command to resume" in capsys.readouterr().err

    resumed = explain(loaded, tmp_path, images=SOME)
    assert f"resumes after {progress}" in capsys.readouterr().err
    # One pass for the gates and one for each of six evaluations; the one that was stopped starts again.
    assert len(seen) == 7 * SOME + stop_after - images - evaluations * SOME
    rows = [json.loads((folder / "state.json").read_text())["rows"] for folder in (tmp_path, some_explained.folder)]
    # Gates that are read from a file may differ in the last digit.
    for label in rows[0] | rows[1]:
        np.testing.assert_allclose(rows[0][label]["AP"], rows[1][label]["AP"], rtol=1e-2)
    for name, block in some_explained.statistics.items():
        for field in FIELDS:
            again, once = getattr(resumed.statistics[name], field), getattr(block, field)
            np.testing.assert_allclose(again, once, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_evaluations_can_be_skipped_and_added_later(loaded, some_explained, tmp_path) -> None:
    options = {"images": SOME, "ablation": False}
    assert explain(loaded, tmp_path, **options).ablation is None
    assert json.loads((tmp_path / "state.json").read_text())["rows"] == {}
    ablation = explain(loaded, tmp_path, images=SOME).ablation
    assert ablation.unchanged == some_explained.ablation.unchanged
    # Earlier evaluations are kept.
    assert explain(loaded, tmp_path, **options).ablation == ablation


@pytest.mark.slow
def test_other_data_on_the_command_line(loaded, tmp_path) -> None:
    json_file = make_toy_dataset(tmp_path, split="other", count=2)
    analysis = explain(loaded, tmp_path / "out", split=[json_file, tmp_path / "other"], ablation=False)
    assert analysis.data.annotations == json_file
    assert {block.images[-1] for block in analysis.statistics.values()} == {2}
    content = json.loads(json_file.read_text())
    content["categories"][1]["name"] = "blob"
    json_file = tmp_path / "renamed.json"
    json_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"renamed\.json"):
        explain(loaded, tmp_path / "out", split=[json_file, tmp_path / "other"])


@pytest.mark.slow
def test_a_folder_keeps_one_analysis(loaded, tmp_path) -> None:
    explain(loaded, tmp_path, images=1, ablation=False)
    before = (tmp_path / "excitations.npz").read_bytes()
    with raises("output.exists", "excitations.npz already exists and is for other images;"):
        explain(loaded, tmp_path, images=2, ablation=False)
    assert (tmp_path / "excitations.npz").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    explain(loaded, tmp_path, images=2, ablation=False, overwrite=True)
    assert (tmp_path / "excitations.npz").read_bytes() != before
    assert (tmp_path / "notes.txt").read_text() == "mine"
    # Without state.json the analysis is unknown, and not replaced either.
    (tmp_path / "state.json").unlink()
    with raises("output.exists", "for other weights, config, annotations, images"):
        explain(loaded, tmp_path, images=2, ablation=False)


@pytest.mark.slow
def test_a_run_without_se_is_rejected(make_run) -> None:
    run = make_run("R_18_FPN")
    with raises("gates.none", run, "build_resnet_fpn_backbone"):
        explain(run)
    assert not (run / "excitations").exists()


def test_an_image_that_cannot_be_read_is_reported_before_anything_is_written(se_run, tmp_path, run_script, capsys):
    with pytest.raises(SystemExit) as caught:
        run_script("analyze.py", "excitations", "--run", se_run, "--output", tmp_path / "a", "--picture", "none.jpg")
    assert caught.value.code == 2
    assert "none.jpg" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
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
