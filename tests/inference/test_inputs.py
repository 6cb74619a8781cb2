import contextlib
import os
from pathlib import Path

import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from se_detection.data.image_files import describe_skipped
from se_detection.inference.inputs import find_camera, find_files, unreadable

from ..data.hostile_images import broken, images, noise, saved, write_all
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
    found, _ = find_files(inputs, outside=tree / "out")
    assert [path.relative_to(tree).as_posix() for path in found] == expected


def test_missing_inputs_are_rejected(tree) -> None:
    with raises("predict.no_files", "a/3.png"):
        find_files(["a", "a/3.png"], outside=tree / "out")
    with raises("predict.no_files", "out"):
        find_files(["out"], outside=tree / "out")


def test_a_folder_gives_what_pillow_reads(tmp_path) -> None:
    """Each extension that Pillow can write, also PDF and PostScript; detectron2 tells which files are images."""
    folder, image = tmp_path / "photos", noise((32, 32))
    folder.mkdir()
    for extension, kind in Image.registered_extensions().items():
        if extension == ".icns":  # which takes Pillow two seconds to write
            continue
        for mode in ("RGB", "L", "1"):
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
                content = saved(image.convert(mode), kind)
                (folder / f"image{extension}").write_bytes(content)
                break
    for name, kind in (("jpeg", "JPEG"), ("upper.JFIF", "JPEG"), ("program", "EPS")):
        (folder / name).write_bytes(saved(image, kind))
    for name in ("README", "labels.txt", "photo.heic", "clip.mp4"):
        (folder / name).write_text("0 0.5 0.5 0.1 0.1")
    expected = {folder / "clip.mp4"}
    for path in folder.iterdir():
        if path.suffix not in (".eps", ".ps") and path.name != "program":
            with contextlib.suppress(Exception):
                expected |= {path} if read_image(path, "BGR").ndim == 3 else set()
    found, skipped = find_files([str(folder)], outside=tmp_path / "out")
    assert set(found) == expected
    for extension in (".jfif", ".jpe", ".avif", ".jp2", ".tga", ".png"):
        assert folder / f"image{extension}" in found
    assert set(skipped) == set(folder.iterdir()) - expected
    assert {path.name for path in skipped} >= {
        "README",
        "labels.txt",
        "photo.heic",
        "image.eps",
        "image.pdf",
        "program",
    }
    assert unreadable([path for path in found if path.suffix != ".mp4"]) == {}


def test_skipped_files_are_counted_in_one_line(tree) -> None:
    for name in ("a/b/LICENSE", "a/b/more.TXT", "only/1.heic"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("text")
    _, skipped = find_files(["a", "."], outside=tree / "only")
    assert skipped == [tree / "a" / "b" / "LICENSE", tree / "a" / "b" / "more.TXT", tree / "a" / "notes.txt"]
    assert describe_skipped(skipped) == "files skipped because of their extension: 3 (.txt 2, none 1)"
    assert find_files(["a", "a/notes.txt"], outside=tree / "out")[1] == skipped[:2]
    with raises("predict.no_files", "only", ".heic 1"):
        find_files(["only"], outside=tree / "out")


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
