import base64
import io

import numpy as np
import pytest
from PIL import Image

from se_detection.visualization.embedded_images import embed_file, embed_image

from ..helpers import raises


def decode(embedded):
    kind, content = embedded.source.removeprefix("data:").split(";base64,")
    return kind, base64.b64decode(content, validate=True)


def test_photographs_are_compressed_with_a_small_error() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (15, 20, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    embedded = embed_image(image)
    kind, content = decode(embedded)
    assert kind == "image/webp"
    assert len(content) < 320 * 240
    shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert shown.shape == (240, 320, 3)
    assert (embedded.width, embedded.height) == (320, 240)
    assert np.abs(shown - np.asarray(image)).mean() < 10


def test_plots_are_lossless_and_reduced_if_too_wide(tmp_path) -> None:
    plot = Image.new("RGBA", (400, 100), (255, 255, 255, 0))
    plot.paste((0, 114, 178, 255), (10, 10, 60, 90))
    plot.save(tmp_path / "plot.png")
    _, content = decode(embed_file(tmp_path / "plot.png"))
    shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    visible = shown[..., 3] > 0
    np.testing.assert_array_equal(visible, np.asarray(plot)[..., 3] > 0)
    np.testing.assert_array_equal(shown[visible], np.asarray(plot)[visible])

    Image.new("RGB", (3200, 50)).save(tmp_path / "wide.png")
    embedded = embed_file(tmp_path / "wide.png")
    assert (embedded.width, embedded.height) == (1600, 25)
    assert Image.open(io.BytesIO(decode(embedded)[1])).size == (1600, 25)


def test_svg_files_are_not_changed(tmp_path) -> None:
    text = (
        '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320.5 99"><path d="M0 0"/></svg>'
    )
    (tmp_path / "plot.svg").write_text(text)
    embedded = embed_file(tmp_path / "plot.svg")
    assert decode(embedded) == ("image/svg+xml", text.encode())
    assert (embedded.width, embedded.height) == (321, 99)


@pytest.mark.parametrize(("name", "content"), [("a.png", b"no image"), ("b.svg", b"<svg/>"), ("c.svg", b"")])
def test_unreadable_plots_are_named_in_the_error(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with raises("page.unreadable_plot", name):
        embed_file(tmp_path / name)
