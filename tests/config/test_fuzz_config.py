"""Random configs end in a one-line error, or in a detector that is built and trains one step."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation import verify_results
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.solver import build_lr_scheduler
from detectron2.structures import Boxes
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from projects.study.definition import read_study
from se_detection import UserError, model_zoo, pretrain
from se_detection.config.defaults import flatten
from se_detection.config.read_config import read_config
from se_detection.config.values import LOSSES
from se_detection.config.yaml_file import read_yaml
from se_detection.engine.checks import load_config
from se_detection.engine.trainer import Trainer
from se_detection.pretrain.image_mapper import ImageMapper
from se_detection.pretrain.pretrain_config import config_base
from se_detection_cli import pretrain_command, train_command
from se_detection_cli.main import command_parser

from ..fuzzing import NUMBERS, TEXTS, Tally, examples

CONFIGS = Path(__file__).parents[2] / "configs"
READ = ("MODEL.SE.", "MODEL.RESNETS.", "MODEL.FPN.", "MODEL.BACKBONE.", "MODEL.PIXEL", "SOLVER.", "INPUT.", "SEED")
KEYS = sorted(key for key in flatten(get_cfg()) if key.startswith(READ))
# With most of these values a detector can be built.
FITTING = [1, 2, 4, 64, 0.5, True, False, "BN", "GN", "avg", "max", "relu", "pre", "post", "caffe", "deep", "sum"]
FITTING += [["res2", "res3", "res4", "res5"], ["res4"], [8, 8, 16, 16], [64], [1, 1, 1], "WarmupCosineLR", "choice"]
scalars = st.one_of(st.none(), st.booleans(), st.sampled_from([*NUMBERS, *TEXTS]), st.integers(), st.floats())
values = st.one_of(
    st.sampled_from(FITTING),
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text("aE{.", max_size=3), inner)
    ),
)


@pytest.fixture
def tally(request) -> Iterator[Tally]:
    found = Tally(request.param)
    yield found
    print(f"\n{found}")
    assert found.counts["refused"]
    assert found.counts["read"]


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    # PyYAML can't write halves of surrogate pairs and integers with too many digits.
    try:
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    except ValueError:
        path.write_text(f"{content!r}", encoding="utf-8", errors="replace")
    return str(path)


def step(cfg: CfgNode) -> None:
    """Builds the detector and trains its backbone for one step."""
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    maps = model.backbone(torch.rand(2, 3, 64, 64))
    sum(each.mean() for each in maps.values()).backward()
    optimizer.step()
    scheduler.step()


def printed(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


@pytest.mark.parametrize("tally", ["config values"], indirect=True)
def test_values_of_a_detector(tally, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"_BASE_": model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN"), "MODEL": {"FPN": {"OUT_CHANNELS": 16}}}
    (tmp_path / "base").mkdir()
    below = write(tmp_path / "base", base)

    @examples(60)
    @given(st.sampled_from(KEYS), values, st.booleans())
    def check(key: str, value: Any, in_yaml: bool) -> None:
        config = write(tmp_path, {"_BASE_": below, **nested(key, value)}) if in_yaml else below
        words = ["OUTPUT_DIR", str(tmp_path / "run"), *([] if in_yaml else [key, printed(value)])]
        cfg = tally.refused(load_config, command_parser(train_command).parse_args(["--config-file", config, *words]))
        if cfg is not None:
            step(cfg)

    check()
    assert sorted(os.listdir(tmp_path)) == ["base", "config.yaml"]


@pytest.mark.parametrize("tally", ["values of a pre-training"], indirect=True)
def test_values_of_a_pre_training(tally, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "data" / name / "1.png")
    config = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")
    flags = ["--config-file", config, "--data", "data", "--recipe", "modern"]
    small = ["PRETRAIN.TRAIN_SIZE", "32", "PRETRAIN.TEST_SIZE", "32", "SOLVER.IMS_PER_BATCH", "2"]

    @examples(30)
    @given(st.sampled_from(sorted(config_base().PRETRAIN)), values)
    def check(key: str, value: Any) -> None:
        words = [*small, f"PRETRAIN.{key}", printed(value), "OUTPUT_DIR", "run"]
        args = command_parser(pretrain_command).parse_args([*flags, *words])
        cfg = tally.refused(pretrain.load_pretrain_config, args)
        if cfg is not None:
            for is_train in (True, False):
                ImageMapper.from_cfg(cfg, is_train=is_train)(
                    {"file_name": str(tmp_path / "data" / "train" / "a" / "1.png")}
                )

    check()
    assert os.listdir(tmp_path) == ["data"]


@st.composite
def corrupted(draw: Any, text: str) -> bytes:
    """A file with a random piece removed, inserted or moved."""
    data = bytearray(text.encode())
    begin = draw(st.integers(0, len(data)))
    end = draw(st.integers(begin, min(len(data), begin + 40)))
    piece = st.one_of(
        st.sampled_from(
            [b"", b"\n", b": ", b"- ", b"*a ", b"&a ", b"<<: ", b"!!python/name:os.system ", b"? ", b"%", b"\0"]
        ),
        st.binary(max_size=8),
        st.just(bytes(data[begin:end])),
        st.sampled_from([str(text).encode(errors="replace")[:3000] for text in [*TEXTS, *NUMBERS[:-1]]]),
    )
    data[begin:end] = draw(piece)
    return bytes(data)


@pytest.mark.parametrize("tally", ["config files"], indirect=True)
def test_files(tally, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (CONFIGS / "Toy" / "Base-Toy.yaml").read_text()
    text = text.replace("_BASE_: ..", f"_BASE_: {CONFIGS}").partition("\n")[2]
    path = tmp_path / "config.yaml"

    @examples(60)
    @given(corrupted(text))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        tally.refused(read_config, str(path))

    check()
    assert os.listdir(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize("tally", ["study definitions"], indirect=True)
def test_studies(tally, tmp_path) -> None:
    path = CONFIGS / "Study" / "Study-cpu.yaml"
    content = yaml.safe_load(path.read_text())
    content["RECIPE"] = str(path.parent / content["RECIPE"])
    content["VARIANTS"] = {"plain": {"CONFIG": str(path.parent / "faster_rcnn_R_18_FPN.yaml")}}
    texts = st.sampled_from(["../out", "", ".hidden", "a/b", "$(touch made)", "ok", "a" * 300])
    fitting = st.sampled_from([1, [1, 2], [0.5, 0.25], "ok", content["RECIPE"], content["VARIANTS"]])

    @examples(25)
    # Only one in twenty random examples is accepted.
    @example("NAME", "ok")
    @given(st.sampled_from([*content, "OTHER"]), st.one_of(fitting, values, texts, st.dictionaries(texts, values)))
    def check(key: str, value: Any) -> None:
        study = tally.refused(read_study, Path(write(tmp_path, {**content, key: value})))
        if study is not None:
            assert all("/" not in name and name not in ("", "..") for name in (study.name, *study.variants))

    check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.mkdir [made]", "no code is run from a config"),
        ("!!python/object/new:os.system ['mkdir made']", "no code is run from a config"),
        ("!!python/name:os.mkdir ''", "no code is run from a config"),
        ("!!python/module:antigravity ''", "no code is run from a config"),
        ("!!python/tuple [1, 2]", "no code is run from a config"),
        ("{a: &a [*a]}", "values after its aliases are expanded"),
        (
            "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]),
            "aliases",
        ),
        ("[" * 500, "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 2020-13-45", "not valid YAML"),
        ("? {a: b}\n: c", "no code is run from a config"),
        ("a" * 300_000, "more than 262144 bytes"),
        ("\0", "not valid YAML"),
    ],
)
def test_yaml_with_more_than_values_is_refused(tmp_path, monkeypatch, text, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    for read in (read_yaml, read_config):
        with pytest.raises(UserError, match=message) as caught:
            read("config.yaml")
        assert len(str(caught.value)) < 600
    assert os.listdir() == ["config.yaml"]


def test_detectron2_runs_code_from_a_config(tmp_path, monkeypatch) -> None:
    """The danger: without `allow_unsafe=False`, detectron2 runs the code of a config."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("SEED: !!python/object/apply:os.mkdir [made]")
    get_cfg().merge_from_file("config.yaml")
    assert Path("made").is_dir()


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ({"a.yaml": "a.yaml"}, "a.yaml is this file, or a file whose base is this file"),
        ({"a.yaml": "b.yaml", "b.yaml": "sub/../a.yaml"}, "is this file, or a file whose base is this file"),
        ({"a.yaml": "none.yaml"}, "none.yaml: there is no such file"),
        ({"a.yaml": "pipe"}, "pipe: there is no such file"),
        ({"a.yaml": "loop"}, "loop: there is no such file"),
        ({"a.yaml": "."}, "there is no such file"),
        ({"a.yaml": 5}, "5 is not the path of a config"),
        ({"a.yaml": [["b.yaml"]]}, "is not the path of a config"),
        (
            {f"{chr(97 + n)}.yaml": [f"{chr(98 + n)}.yaml"] * 2 for n in range(20)} | {"u.yaml": []},
            "more than 100 files",
        ),
    ],
)
def test_bad_bases_are_refused(tmp_path, bases, message) -> None:
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, base in bases.items():
        (tmp_path / name).write_text(yaml.safe_dump({"_BASE_": base}))
    with pytest.raises(UserError, match=message):
        read_config(str(tmp_path / "a.yaml"))


def test_several_bases_in_other_folders(tmp_path) -> None:
    """As in detectron2: relative to the config, and later ones override earlier ones."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.yaml").write_text("SEED: 1\nVIS_PERIOD: 1")
    (tmp_path / "two.yaml").write_text("SEED: 2")
    path = tmp_path / "sub" / "config.yaml"
    path.write_text(f"_BASE_: [../one.yaml, {tmp_path}/two.yaml]\nMODEL: {{SE: &se {{REDUCTION: 8}}}}")
    cfg = read_config(str(path))
    assert (cfg.SEED, cfg.VIS_PERIOD, cfg.MODEL.SE.REDUCTION) == (2, 1, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL.SE.REDUCTION"], "not pairs of KEY and VALUE"),
        (["MODEL.SE.REDUCTION", "8", "SEED"], "not pairs of KEY and VALUE"),
        (["SEED", "1", "--resume"], "--resume: put flags before the first KEY VALUE"),
        (["SEED", "1", "--num-gpus", "2"], "--num-gpus: put flags before the first KEY VALUE"),
        (["MODEL.SE.REDUCTION", "-" * 100_000 + "1"], "MODEL.SE.REDUCTION"),
        (["MODEL.WEIGHTS.x", "1"], "config overrides: MODEL.WEIGHTS.x '1'"),
        (["MODEL", "1"], "config overrides: MODEL '1'"),
        (["_BASE_", "a.yaml"], "config overrides: _BASE_"),
        (["x" * 100_000, "1"], "unknown config key"),
        (["MODEL.SE.REDUCTION", "None"], "MODEL.SE.REDUCTION: it has no value; its default is 16"),
        (["MODEL.SE.GATE_BIAS", "1e999"], "MODEL.SE.GATE_BIAS: inf is out of range"),
        (["SEED", "9" * 30], "SEED: a whole number of 100 bits is out of range"),
        (["OUTPUT_DIR", "a\nb"], "OUTPUT_DIR: 'a\\\\nb' has characters that can't be printed"),
        (["MODEL.WEIGHTS", "w" * 5000], "MODEL.WEIGHTS: 'www.* has 5000 characters"),
        (["SOLVER.WEIGHT_DECAY_BIAS", "(1,)"], r"SOLVER.WEIGHT_DECAY_BIAS: \[1\] is not a number"),
        (["MODEL.FPN.OUT_CHANNELS", "0"], "MODEL.FPN.OUT_CHANNELS: 0 is less than 1"),
        (["MODEL.RPN.PRE_NMS_TOPK_TEST", "-1"], "MODEL.RPN.PRE_NMS_TOPK_TEST: -1 is less than 1"),
        (["MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"], r"MODEL.PIXEL_STD: 0.0 is less than 0.001"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [0]]"], r"MODEL.ANCHOR_GENERATOR.SIZES: 0 is less than 0.001"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], []]"], r"MODEL.ANCHOR_GENERATOR.SIZES: \[\[8\], \[\]\] has no values"),
        (
            ["MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0, 1.0)"],
            r"MODEL.RPN.BBOX_REG_WEIGHTS: \[1.0, 1.0\] has 2 values; give 4",
        ),
        (["TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 'x']"], "TEST.KEYPOINT_OKS_SIGMAS: 'x' is not a number"),
        (
            ["TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 30]]"],
            r"\['bbox', 'AP', 30\] is not \[task, metric, value, toler",
        ),
        (["TEST.EXPECTED_RESULTS", "[5]"], "TEST.EXPECTED_RESULTS: 5 is not"),
        (["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()"], "TEST.AUG.MIN_SIZES: it is empty"),
        (["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "iou"], "'iou' is not one of smooth_l1, giou, diou, ciou"),
    ],
)
def test_bad_overrides_are_refused(words, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_config(model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN"), words)
    assert len(str(caught.value)) < 1000


def test_expected_results_work_in_detectron2() -> None:
    words = ["TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 30, 0.5], ['bbox', 'AP50', 51.5, 1]]"]
    cfg = read_config(model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN"), words)
    assert verify_results(cfg, {"bbox": {"AP": 30.4, "AP50": 51.0}})


def test_box_losses_and_weights_are_those_of_detectron2() -> None:
    anchors, deltas = [Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))], [torch.zeros(1, 1, 4)]

    def loss(name: str, weights: tuple[float, ...]) -> torch.Tensor:
        boxes, found = [anchors[0].tensor], torch.ones(1, 1, dtype=torch.bool)
        transform = Box2BoxTransform(weights)
        return _dense_box_regression_loss(anchors, transform, deltas, boxes, found, box_reg_loss_type=name)

    for name in LOSSES:
        assert loss(name, (1.0,) * 4) == pytest.approx(0, abs=1e-6)
    for name, weights in (("iou", (1.0,) * 4), (LOSSES[0], (1.0, 1.0))):
        with pytest.raises(ValueError, match=r"Invalid dense box|not enough values"):
            loss(name, weights)


@pytest.mark.parametrize(
    ("key", "value"),
    [("FPN.OUT_CHANNELS", 2**25), ("ROI_BOX_HEAD.FC_DIM", 2**30), ("RESNETS.STEM_OUT_CHANNELS", 2**30)],
)
def test_a_detector_larger_than_the_memory_is_refused(tmp_path, key, value) -> None:
    words = [f"MODEL.{key}", str(value), "OUTPUT_DIR", str(tmp_path / "run")]
    config = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")
    with pytest.raises(UserError, match=rf"need \d+ GiB, and the machine has \d+ GiB of memory; .*{value}"):
        load_config(command_parser(train_command).parse_args(["--config-file", config, *words]))
