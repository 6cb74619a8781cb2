import io
import shutil
import tarfile

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from torchvision.datasets import ImageFolder

from se_detection import UserError
from se_detection.pretrain.images import TRAIN, VAL, find_image_folder, register_image_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("name", "split"), [(TRAIN, "train"), (VAL, "val")])
def test_it_is_torchvisions_image_folder(pictures, name, split) -> None:
    register_image_folder(find_image_folder(pictures))
    theirs = ImageFolder(pictures / split)
    assert [(item["file_name"], item["label"]) for item in DatasetCatalog.get(name)] == theirs.samples
    assert MetadataCatalog.get(name).thing_classes == theirs.classes


@pytest.mark.parametrize("top", ["", "set"])
def test_an_archive_is_unpacked_once(pictures, cache, tmp_path, top) -> None:
    archive = tmp_path / "pictures.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(pictures, arcname=top)
    folder = find_image_folder(archive)
    assert sorted(p.relative_to(folder) for p in folder.rglob("*.png")) == sorted(
        p.relative_to(pictures) for p in pictures.rglob("*.png")
    )
    first = next(folder.rglob("*.png"))
    before = first.stat().st_mtime_ns
    first.write_bytes(b"mark")
    assert find_image_folder(archive) == folder
    assert first.read_bytes() == b"mark"
    assert before
    assert len(list((cache / "se_detection" / "images").iterdir())) == 1


def test_an_archive_can_not_write_elsewhere(cache, tmp_path) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo("../../../../evil.txt")
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match="can't be unpacked"):
        find_image_folder(archive)
    assert not list(tmp_path.rglob("evil.txt"))
    assert not list((cache / "se_detection" / "images").iterdir())


def test_a_cut_archive_leaves_nothing(pictures, cache, tmp_path) -> None:
    archive = tmp_path / "cut.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(pictures, arcname="")
    archive.write_bytes(archive.read_bytes()[:20000])
    with pytest.raises(UserError, match="can't be unpacked"):
        find_image_folder(archive)
    assert not list((cache / "se_detection" / "images").iterdir())


def test_what_is_missing_is_named(pictures, tmp_path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_image_folder(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"no train/ and val/"):
        find_image_folder(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    shutil.rmtree(other / "val" / "red")
    with pytest.raises(UserError, match="different classes: red"):
        register_image_folder(other)
    shutil.copytree(pictures / "val" / "red", other / "val" / "red", ignore=lambda folder, names: names)
    register_image_folder(other)
    with pytest.raises(UserError, match="red"):
        DatasetCatalog.get(VAL)
