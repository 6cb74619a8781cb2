import hashlib
import json

import pytest

from se_detection.runs.evaluated_checkpoint import EvaluatedCheckpoint, record_checkpoint


def test_a_file_is_described_by_its_path_and_digest(tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    inside, outside = run / "model_final.pth", tmp_path / "other.pth"
    for path in (inside, outside):
        path.write_bytes(path.name.encode())
    digest = hashlib.sha256(b"model_final.pth").hexdigest()
    assert EvaluatedCheckpoint.describe(inside, 3, run) == EvaluatedCheckpoint("model_final.pth", 3, digest)
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert EvaluatedCheckpoint.describe(tmp_path / "link" / inside.name, "3", run.relative_to(tmp_path)) == (
        EvaluatedCheckpoint("model_final.pth", None, digest)
    )
    assert EvaluatedCheckpoint.describe(outside, None, run).file == str(outside)
    for missing in (None, run / "removed.pth"):
        assert EvaluatedCheckpoint.describe(missing, 3, run) == EvaluatedCheckpoint(None, 3, None)


def test_a_changed_file_is_recognized(tmp_path) -> None:
    path = tmp_path / "model_final.pth"
    path.write_bytes(b"before")
    checkpoint = EvaluatedCheckpoint.describe(path, 3, tmp_path)
    assert not checkpoint.has_changed(tmp_path)
    path.write_bytes(b"after")
    assert checkpoint.has_changed(tmp_path)
    path.unlink()
    assert not checkpoint.has_changed(tmp_path)
    assert not EvaluatedCheckpoint(None, 3, None).has_changed(tmp_path)


def test_the_results_get_the_checkpoint_unless_they_have_one(tmp_path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "none")]
    for folder in folders[:2]:
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps({"bbox": {"AP": 0.1 + 0.2, "AP50": None}, "names": ["Löwe"]}))
    older, newer = EvaluatedCheckpoint("a.pth", 1, "0a"), EvaluatedCheckpoint(None, 2, None)
    record_checkpoint(older, folders[:1])
    record_checkpoint(newer, folders)
    written = [json.loads((folder / "results.json").read_text()) for folder in folders[:2]]
    for content, file, iteration in zip(written, ("a.pth", None), (1, 2), strict=True):
        assert content["bbox"] == {"AP": 0.1 + 0.2, "AP50": None}
        assert content["names"] == ["Löwe"]
        assert (content["checkpoint"]["file"], content["checkpoint"]["iteration"]) == (file, iteration)
    assert [EvaluatedCheckpoint.recorded(content) for content in written] == [older, newer]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, None),
        ({"checkpoint": "model_final.pth"}, None),
        ({"checkpoint": {}}, EvaluatedCheckpoint(None, None, None)),
        ({"checkpoint": {"file": 7, "iteration": "3", "sha256": []}}, EvaluatedCheckpoint(None, None, None)),
    ],
)
def test_other_content_is_not_recorded(content, expected) -> None:
    assert EvaluatedCheckpoint.recorded(content) == expected
