from pathlib import Path

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from se_detection import UserError, model_zoo
from se_detection.checkpoint import timm_handler
from se_detection.checkpoint.convert import convert_state_dict
from se_detection.checkpoint.convert_input import convert_input
from se_detection.checkpoint.timm_handler import source_of


@pytest.fixture
def offline_timm(monkeypatch, tmp_path) -> torch.nn.Module:
    """timm with random weights instead of downloads, and an empty cache."""
    torch.manual_seed(0)
    model = timm.create_model("seresnet50", pretrained=False)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model)
    monkeypatch.setattr(timm_handler, "get_cache_dir", lambda: str(tmp_path))
    return model


def test_detectron2s_checkpointer_loads_the_whole_backbone(offline_timm) -> None:
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_SE_R_50_FPN_1x")
    cfg.MODEL.DEVICE = "cpu"
    model = model_zoo.build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    expected = convert_state_dict(offline_timm.state_dict(), "timm")
    loaded = model.backbone.bottom_up.state_dict()
    assert set(loaded) == set(expected) - {"linear.weight", "linear.bias"}
    for key, tensor in loaded.items():
        assert torch.equal(tensor, expected[key]), key


def test_the_second_time_the_cache_is_used(offline_timm, monkeypatch) -> None:
    first = PathManager.get_local_path("timm://seresnet50.a1_in1k")
    monkeypatch.setattr(timm, "create_model", None)
    assert PathManager.get_local_path("timm://seresnet50.a1_in1k") == first
    assert [path.name for path in Path(first).parent.iterdir()] == ["seresnet50.a1_in1k.pth"]


def test_mean_and_std_of_timm_are_kept(offline_timm) -> None:
    offline_timm.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    path = PathManager.get_local_path("timm://seresnet50.a1_in1k")
    assumptions = torch.load(path, weights_only=True)["assumptions"]
    assert assumptions["pixel_mean"] == pytest.approx([127.5, 102, 76.5])
    assert assumptions["pixel_std"] == pytest.approx([51, 51, 51])
    assert (assumptions["channel_order"], assumptions["source"], len(assumptions["sha256"])) == ("RGB", "timm", 64)


def test_a_failed_download_is_explained(monkeypatch, tmp_path) -> None:
    def fail(name: str, pretrained: bool) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(timm_handler, "get_cache_dir", lambda: str(tmp_path))
    with pytest.raises(
        UserError, match=r"timm://resnet50: timm could not download .* \(no route to the hub\)"
    ) as caught:
        PathManager.get_local_path("timm://resnet50")
    assert "se-det convert resnet50 --output FILE.pth" in str(caught.value)
    assert list(tmp_path.rglob("*")) == []


def test_timm_names_are_accepted_exactly_if_the_network_fits() -> None:
    """If the network can be converted, and has no difference that its tensors don't show."""
    hidden = {"resnetaa50", "resnetblur18", "resnetblur50"}
    families = ["resnet*", "resnext*", "seres*", "legacy_*", "wide_*"]
    # Large versions of networks in the list, and families with very different layers.
    excluded = ["resnetv2*", "resnetrs[1-9]??", "*_clip*", "*2??d", "*201d*", "resnet200", "*x16d", "*x32d"]
    for name in timm.list_models(families, exclude_filters=excluded):
        with torch.device("meta"):
            weights = timm.create_model(name).state_dict()
        try:
            source_of(name)
            accepted = True
        except UserError:
            accepted = False
        source = "timm-legacy" if name.startswith("legacy") else "timm"
        try:
            converted = timm_handler.Converted.from_state_dict(weights, source, sha256="")
        except UserError:
            converted = None
        assert accepted == (converted is not None and name not in hidden), name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet50d", r"it has a deep stem and average-pooled shortcuts \(ResNet-D\)"),
        ("seresnext26d_32x4d.bt_in1k", "it has a deep stem and average-pooled shortcuts"),
        ("seresnext26t_32x4d", "it has a deep stem"),
        ("resnetaa50", "its strides are anti-aliased"),
        ("seresnextaa101d_32x8d", "its strides are anti-aliased"),
        ("resnetblur50.bt_in1k", "its strides are anti-aliased"),
        ("resnetrs50", "it has a deep stem"),
        ("legacy_seresnet18.in1k", "it has a ReLU before each SE block"),
        ("legacy_seresnet34", "it has a ReLU before each SE block"),
        ("legacy_seresnext26_32x4d", "this depth is not supported"),
        ("resnet26", "this depth is not supported"),
        ("vgg16", "its layers differ; supported are timm's"),
    ],
)
def test_unsupported_names_are_refused_with_the_reason(name, reason) -> None:
    with pytest.raises(UserError, match=f"^timm://{name}: {reason}"):
        PathManager.get_local_path(f"timm://{name}")


def test_a_file_with_a_hidden_difference_is_refused_by_its_name(tmp_path) -> None:
    path = tmp_path / "resnetaa50_a1h-4cf422b3.pth"
    torch.save({}, path)
    with pytest.raises(UserError, match="its strides are anti-aliased, which is not supported"):
        convert_input(str(path), "timm")
