import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from se_detection import UserError, model_zoo
from se_detection.checkpoint import convert_state_dict, timm_handler


@pytest.fixture
def offline_timm(monkeypatch, tmp_path) -> torch.nn.Module:
    """timm with random weights in place of what it would fetch, and an empty cache."""
    torch.manual_seed(0)
    model = timm.create_model("seresnet50", pretrained=False)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model)
    monkeypatch.setattr(timm_handler, "get_cache_dir", lambda: str(tmp_path))
    return model


def test_detectron2_loads_the_whole_trunk(offline_timm) -> None:
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_SE_R_50_FPN_1x")
    cfg.MODEL.DEVICE = "cpu"
    model = model_zoo.build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    expected = convert_state_dict(offline_timm.state_dict(), "timm")
    loaded = model.backbone.bottom_up.state_dict()
    assert set(loaded) == set(expected) - {"linear.weight", "linear.bias"}
    for key, tensor in loaded.items():
        assert torch.equal(tensor, expected[key]), key


def test_the_cache_is_used_the_second_time(offline_timm, monkeypatch) -> None:
    first = PathManager.get_local_path("timm://seresnet50.a1_in1k")
    monkeypatch.setattr(timm, "create_model", None)
    assert PathManager.get_local_path("timm://seresnet50.a1_in1k") == first


def test_without_network_the_message_says_so(monkeypatch, tmp_path) -> None:
    def fail(name: str, pretrained: bool) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(timm_handler, "get_cache_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"timm://resnet50: timm could not fetch these weights \(no route to the hub\)"):
        PathManager.get_local_path("timm://resnet50")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name", ["resnet50d", "resnetaa50", "seresnext50_32x4d", "vgg16"])
def test_other_layers_are_refused_by_name(name) -> None:
    with pytest.raises(UserError, match=f"timm://{name}: only timm's"):
        PathManager.get_local_path(f"timm://{name}")


@pytest.mark.parametrize("name", ["resnet50d", "seresnet50t", "vgg11"])
def test_a_network_of_other_layers_is_not_converted(name) -> None:
    with pytest.raises(UserError, match="is none of a plain ResNet or SE-ResNet"):
        convert_state_dict(timm.create_model(name).state_dict(), "timm")
