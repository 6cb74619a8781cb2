"""Random values and corrupted files end in a one-line error, or in a backbone that is built and trains one step."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.solver import build_optimizer
from hypothesis import given
from hypothesis import strategies as st

from se_detection import model_zoo
from se_detection.config.buildable import check_backbone, check_model
from se_detection.config.defaults import DEFAULTS, flatten
from se_detection.config.read_config import read_config

from ..fuzzing import NUMBERS, TEXTS, Tally, examples

CONFIG = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")
KEYS = sorted(set(flatten(DEFAULTS)) & set(flatten(get_cfg())))
FITTING = [1, 2, 4, 64, 0.5, True, False, "avg", "max", "relu", "pre", "post", "caffe", "deep"]
FITTING += [["res2", "res3", "res4", "res5"], ["res4"], [8, 8, 16, 16], [64]]
scalars = st.one_of(st.none(), st.booleans(), st.sampled_from([*NUMBERS, *TEXTS]), st.integers(), st.floats())
values = st.one_of(
    st.sampled_from(FITTING),
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text("aE{.", max_size=3), inner)
    ),
)


@pytest.mark.slow
def test_values_of_our_keys(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    tally = Tally("config values")

    def load(key: str, value: Any, in_yaml: bool) -> Any:
        if in_yaml:
            content = value
            for name in reversed(key.split(".")):
                content = {name: content}
            # PyYAML can't write halves of surrogate pairs and integers with too many digits.
            try:
                path.write_text(yaml.safe_dump({"_BASE_": CONFIG, **content}, allow_unicode=True), encoding="utf-8")
            except ValueError:
                path.write_text(f"{content!r}", encoding="utf-8", errors="replace")
        words = [] if in_yaml else [key, value if isinstance(value, str) else repr(value)]
        cfg = read_config(str(path) if in_yaml else CONFIG, words)
        check_backbone(cfg)
        check_model(cfg)
        return cfg

    @examples(30)
    @given(st.sampled_from(KEYS), values, st.booleans())
    def check(key: str, value: Any, in_yaml: bool) -> None:
        cfg = tally.refused(load, key, value, in_yaml)
        if cfg is not None:
            backbone = build_backbone(cfg)
            sum(each.mean() for each in backbone(torch.rand(2, 3, 64, 64)).values()).backward()
            build_optimizer(cfg, backbone).step()

    check()
    assert tally.counts["refused"]
    assert tally.counts["read"]


@st.composite
def corrupted(draw: Any, text: str) -> bytes:
    """A file with a random piece removed, inserted or moved."""
    data = bytearray(text.encode())
    begin = draw(st.integers(0, len(data)))
    end = draw(st.integers(begin, min(len(data), begin + 40)))
    marks = [b"", b"\n", b": ", b"- ", b"*a ", b"&a ", b"<<: ", b"!!python/name:os.system ", b"? ", b"%", b"\0"]
    texts = [str(text).encode(errors="replace")[:3000] for text in [*TEXTS, *NUMBERS[:-1]]]
    piece = st.one_of(st.sampled_from(marks + texts), st.binary(max_size=8), st.just(bytes(data[begin:end])))
    data[begin:end] = draw(piece)
    return bytes(data)


def test_corrupted_files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(CONFIG).parent
    text = (folder / "Base-Toy.yaml").read_text().replace("_BASE_: ..", f"_BASE_: {folder.parent}").partition("\n")[2]
    tally = Tally("config files")

    @examples(25)
    @given(corrupted(text))
    def check(data: bytes) -> None:
        Path("config.yaml").write_bytes(data)
        tally.refused(read_config, "config.yaml")

    check()
    assert os.listdir(tmp_path) == ["config.yaml"]
    assert tally.counts["refused"]
    assert tally.counts["read"]
