import pytest
import torch
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from se_detection.data.check.boxes import clip, overhang, place, suspected_notation

SIZE = (60, 40)
numbers = st.floats(-100, 100, width=16)
boxes = st.tuples(numbers, numbers, st.floats(0, 200, width=16), st.floats(0, 200, width=16))


@settings(max_examples=60)
@given(boxes)
def test_clipping_and_emptiness_match_detectron2(box) -> None:
    x, y, width, height = box
    theirs = Boxes(torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64))
    whole = theirs.clone()
    theirs.clip((SIZE[1], SIZE[0]))
    ours = clip(box, SIZE)
    corners = torch.tensor([[ours[0], ours[1], ours[0] + ours[2], ours[1] + ours[3]]])
    torch.testing.assert_close(corners, theirs.tensor.to(corners), rtol=0, atol=1e-3)
    seen = bool(theirs.nonempty(1e-5))
    assert (place(box, SIZE) in ("inside", "sticking out")) == (seen and bool(whole.nonempty(1e-5)))
    if place(box, SIZE) == "inside":
        torch.testing.assert_close(whole.tensor, theirs.tensor, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("box", "where", "reach"),
    [
        ([0, 0, 60, 40], "inside", 0),
        ([50.01, 5, 10, 10], "inside", 0.01),
        ([50, 5, 13, 10], "sticking out", 3),
        ([-4, 5, 13, 10], "sticking out", 4),
        ([60, 5, 13, 10], "outside", 13),
        ([5, -30, 13, 30], "outside", 30),
        ([5, 5, 0, 10], "empty", -5),
        ([-1e308, 5, 1e308, 1e308], "outside", 1e308),
    ],
)
def test_places(box, where, reach) -> None:
    assert place(box, SIZE) == where
    assert overhang(box, SIZE) == pytest.approx(reach)


def test_boxes_inside_the_image_are_not_changed() -> None:
    assert clip([0.1, 0.2, 0.7, 39.8], SIZE) == [0.1, 0.2, 0.7, 39.8]


def test_another_notation_needs_evidence() -> None:
    right = [[float(x), 5.0, 20.0, 18.0] for x in range(12)]
    corners = [[x + 30, y, x + 30 + width, y + height] for x, y, width, height in right]
    fractions = [[x / 60, y / 40, width / 60, height / 40] for x, y, width, height in right]
    cases = {"(x1, y1, x2, y2)": corners, "fractions of the image's width and height": fractions, None: right}
    for expected, items in cases.items():
        assert suspected_notation([(box, SIZE) for box in items]) == expected
        assert suspected_notation([(box, SIZE) for box in items[:9]]) is None
        with_exception = [*items * 2, [0, 0, 60, 40]]
        assert suspected_notation([(box, SIZE) for box in with_exception]) == expected
