import os
from pathlib import Path

import pytest

from se_detection.inference.inputs import find_camera, find_files, unreadable

from ..data.hostile_images import broken, images, write_all
from ..helpers import raises


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """Images, a video and other files, in folders."""
    for name in (
        "a/2.JPG",
        "a/10.png",
        "a/notes.txt",
        "a/b/1.webp",
        "c/x[1].png",
        "c/street.mp4",
        "out/pictures/1.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a"], ["a/10.png", "a/2.JPG", "a/b/1.webp"]),
        (["c", "a/2.JPG"], ["c/street.mp4", "c/x[1].png", "a/2.JPG"]),
        (["a/**/*.webp", "a/*.png"], ["a/b/1.webp", "a/10.png"]),
        # An existing name is not a pattern; a file that is given by itself may have any extension.
        (["c/x[1].png", "a/notes.txt"], ["c/x[1].png", "a/notes.txt"]),
        (["a/2.JPG", "a", "a/../a/2.JPG"], ["a/2.JPG", "a/10.png", "a/b/1.webp"]),
        (["."], ["a/10.png", "a/2.JPG", "a/b/1.webp", "c/street.mp4", "c/x[1].png"]),
    ],
)
def test_files_folders_and_patterns(tree, inputs, expected) -> None:
    found = find_files(inputs, outside=tree / "out")
    assert [path.relative_to(tree).as_posix() for path in found] == expected


def test_missing_inputs_are_rejected(tree) -> None:
    with raises("predict.no_files", "a/3.png"):
        find_files(["a", "a/3.png"], outside=tree / "out")
    with raises("predict.no_files", "out"):
        find_files(["out"], outside=tree / "out")


def test_cameras() -> None:
    assert find_camera(["camera:2"]) == 2
    assert find_camera(["a", "b.jpg"]) is None
    for inputs in (["camera:front"], ["camera:0", "a"], ["a", "camera:0"]):
        with raises("predict.camera", next(name for name in inputs if name.startswith("camera"))):
            find_camera(inputs)


def test_each_unreadable_file_has_a_reason(photos, clip, tmp_path) -> None:
    good = [*write_all(tmp_path / "good", images), clip, photos / "0.png"]
    bad = [*write_all(tmp_path / "bad", broken), *(photos / name for name in ("empty.mp4", "cut.avi"))]
    gone = [photos / name for name in ("gone.png", "pipe.mp4", "pipe.png")]
    bad[-2].touch()
    bad[-1].write_bytes(clip.read_bytes()[:200])
    for path in gone[1:]:
        os.mkfifo(path)
    reasons = unreadable([*good, *bad, *gone])
    assert list(reasons) == [*bad, *gone]
    assert all(reason and reason.isprintable() for reason in reasons.values())
    assert [reasons[path] for path in gone] == ["no such file"] * 3
