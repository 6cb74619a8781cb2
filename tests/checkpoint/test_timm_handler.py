import hashlib
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from safetensors.torch import save_file

from se_detection import UserError, model_zoo
from se_detection.checkpoint import timm_handler, weights_file
from se_detection.checkpoint.convert import convert_state_dict
from se_detection.checkpoint.convert_input import LOOK_ALIKES, convert_input
from se_detection.checkpoint.timm_handler import source_of
from se_detection.checkpoint.verify import relative_errors, timm_name
from se_detection.config.meta_device import Uninitialized

from ..helpers import raises, randomize_norms


@pytest.fixture
def offline_timm(monkeypatch, tmp_path) -> torch.nn.Module:
    """timm with random weights instead of downloads, and an empty cache."""
    model = timm.create_model("seresnet18", pretrained=False)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model)
    monkeypatch.setattr(timm_handler, "_check_available", lambda name: None)
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(tmp_path))
    return model


def test_detectron2s_checkpointer_loads_the_whole_backbone(offline_timm, monkeypatch) -> None:
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", "timm://seresnet18.ra4_e3600_r224_in1k"
    cfg.MODEL.SE.REDUCTION_PER_STAGE = [8, 16, 16, 16]
    model = model_zoo.build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    expected = convert_state_dict(offline_timm.state_dict(), "timm")
    loaded = {k: v for k, v in model.backbone.bottom_up.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert set(loaded) == set(expected) - {"linear.weight", "linear.bias"}
    for key, tensor in loaded.items():
        assert torch.equal(tensor, expected[key]), key
    # The second time, the cache is used.
    first = PathManager.get_local_path(cfg.MODEL.WEIGHTS)
    monkeypatch.setattr(timm, "create_model", None)
    assert PathManager.get_local_path(cfg.MODEL.WEIGHTS) == first
    assert [path.name for path in Path(first).parent.iterdir()] == ["seresnet18.ra4_e3600_r224_in1k.pth"]


def test_mean_and_std_of_timm_are_kept(offline_timm) -> None:
    offline_timm.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    path = PathManager.get_local_path("timm://seresnet18.a1_in1k")
    assumptions = torch.load(path, weights_only=True)["assumptions"]
    assert assumptions["pixel_mean"] == pytest.approx([127.5, 102, 76.5])
    assert assumptions["pixel_std"] == pytest.approx([51, 51, 51])
    assert (assumptions["channel_order"], assumptions["source"], len(assumptions["sha256"])) == ("RGB", "timm", 64)
    # Other weights have another digest.
    offline_timm.conv1.weight.data[0, 0, 0, 0] += 1
    again = PathManager.get_local_path("timm://seresnet18.a1_in1k", force=True)
    assert torch.load(again, weights_only=True)["assumptions"]["sha256"] != assumptions["sha256"]


def test_files_in_the_hubs_cache_must_have_their_sha256(offline_timm, tmp_path, monkeypatch) -> None:
    """In Hugging Face's cache, a file is a link to a blob whose name is its SHA-256."""
    offline_timm.pretrained_cfg["hf_hub_id"] = "timm/seresnet18.a1_in1k"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--timm--seresnet18.a1_in1k"
    for folder in ("refs", "blobs", "snapshots/1234"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("1234")
    blob = repository / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.write_bytes(b"weights")
    (repository / "snapshots" / "1234" / "model.safetensors").symlink_to(blob)
    timm_handler.fetch("seresnet18.a1_in1k")
    blob.write_bytes(b"others")
    with raises("weights.wrong_sha256", blob.name):
        timm_handler.fetch("seresnet18.a1_in1k")


def test_a_failed_download_is_explained(monkeypatch, tmp_path) -> None:
    def fail(name: str, pretrained: bool) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(timm_handler, "_check_available", lambda name: None)
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(tmp_path))
    with raises("weights.no_download", "timm://resnet50", "no route to the hub", "se-det convert resnet50 --output"):
        PathManager.get_local_path("timm://resnet50")
    assert list(tmp_path.rglob("*")) == []


def test_names_that_timm_does_not_have_are_not_asked_for(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(tmp_path))
    for name, named in (("seresnet50.a9_in1k", "seresnet50.a1_in1k"), ("seresnet34", "another network")):
        with raises("weights.not_found", f"timm://{name}", named):
            PathManager.get_local_path(f"timm://{name}")


def accepted(name: str) -> bool:
    try:
        source_of(name)
    except UserError as error:
        return error.code != "weights.unsupported_network"
    return True


@pytest.mark.slow
def test_timm_names_are_accepted_exactly_if_the_network_fits() -> None:
    """If the network can be converted, and has no difference that its tensors don't show."""
    hidden = {name for names in LOOK_ALIKES.values() for name in names}
    names = ["resnet18*", "resnet26", "resnet34d", "resnet50?", "resnet50", *hidden, "seresnet18", "seresnext26*"]
    for name in timm.list_models(
        [*names, "legacy_seresnet[135][48]", "legacy_seresnext[25]*", "resnext50*", "wide*50*"]
    ):
        with torch.device("meta"), Uninitialized():
            weights = timm.create_model(name).state_dict()
        try:
            source = "timm-legacy" if "legacy" in name else "timm"
            converted = timm_handler.Converted.from_state_dict(weights, source, sha256="")
            fits = name not in hidden
            # Its tensors, or the list of look-alikes, say which network it is.
            assert name == timm_name(converted.assumptions) or name in LOOK_ALIKES[timm_name(converted.assumptions)]
        except UserError:
            fits = False
        assert accepted(name) == fits, name


def test_names() -> None:
    for name in (
        "resnet152",
        "seresnext101_32x4d",
        "wide_resnet101_2.tv_in1k",
        "legacy_seresnet101",
        "legacy_senet154",
    ):
        assert source_of(name) == ("timm-legacy" if name.startswith("legacy") else "timm")
    # A name cannot be a path.
    for name in ("vgg16", "xresnet50", "resnet50./../../x", "resnet50.a/b", "resnet50\n", "resnet50. "):
        assert not accepted(name)


def test_a_file_with_a_hidden_difference_is_refused_by_its_name(tmp_path) -> None:
    path = tmp_path / "resnetaa50_a1h-4cf422b3.pth"
    torch.save({}, path)
    with raises("weights.unsupported_network", path.name):
        convert_input(str(path), "timm")


@pytest.mark.slow
def test_a_network_that_its_tensors_do_not_show_must_be_named(tmp_path) -> None:
    """As on Hugging Face, where each file has the same name."""
    path = tmp_path / "model.safetensors"
    save_file(randomize_norms(timm.create_model("resnetblur18")).state_dict(), path)
    with raises("weights.no_architecture", path, "--architecture resnet18", "resnetblur18"):
        convert_input(str(path), "timm")
    with raises("weights.unsupported_network", "resnetblur18"):
        convert_input(str(path), "timm", architecture="resnetblur18.a1_in1k")
    with raises("weights.other_network", "seresnet18"):
        convert_input(str(path), "timm", architecture="seresnet18")
    # Verification builds the network that was named.
    blurred = replace(convert_input(str(path), "timm", architecture="resnet18"), architecture="resnetblur18")
    assert max(relative_errors(blurred, sizes=[(64, 64)])["res5"]) > 0.01
    save_file(timm.create_model("seresnet18").state_dict(), path)
    assert convert_input(str(path), "timm").assumptions.depth == 18
