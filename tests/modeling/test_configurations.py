"""Combinations of the values of MODEL.SE."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from se_detection import SEConfig
from se_detection.config.se_config import GATES, PLAIN, POSITIONS, SQUEEZES, STAGES

# With zero weights and this bias, each gate is exactly 1 in float32.
OPEN = {"sigmoid": 50.0, "tanh": 50.0, "relu": 1.0, "hardsigmoid": 50.0}

reductions = st.integers(1, 16)
configs = st.builds(
    SEConfig,
    reduction=reductions,
    reduction_per_stage=st.one_of(st.just(()), st.tuples(*[reductions] * 4)),
    position=st.sampled_from(POSITIONS),
    squeeze=st.sampled_from(SQUEEZES),
    gate=st.sampled_from(GATES),
    stages=st.sets(st.sampled_from(STAGES)).map(lambda stages: tuple(sorted(stages))),
    bias=st.booleans(),
)
layouts = st.fixed_dictionaries(
    {
        "stem": st.sampled_from(["basic", "caffe", "deep"]),
        "stride_in_1x1": st.booleans(),
        "num_groups": st.sampled_from([1, 2]),
        "res5_dilation": st.sampled_from([1, 2]),
    }
)


@settings(max_examples=6)
@given(se=configs.filter(lambda se: se.bias), layout=layouts)
def test_with_open_gates_it_is_the_plain_backbone(narrow, se: SEConfig, layout: dict[str, Any]) -> None:
    """A gate of 1 changes nothing in any position: the outputs are those of detectron2's plain blocks."""
    plain = narrow(50, se=PLAIN, norm="BN", **layout).eval()
    model = narrow(50, se=se, norm="BN", **layout).eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing if ".se." in key} == set(se.stages)
    assert all(".se." in key for key in missing)
    for key, parameter in model.named_parameters():
        if ".se.fc2." in key:
            parameter.data.fill_(OPEN[se.gate] if key.endswith("bias") else 0.0)
    x = torch.randn(1, 3, 40, 72)
    with torch.no_grad():
        expected = plain(x)
        for name, feature in model(x).items():
            torch.testing.assert_close(feature, expected[name], rtol=0, atol=0)
