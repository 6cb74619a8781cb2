import re

import pytest

from se_detection.gates import gate_page
from se_detection.gates.gate_page import write_excitation_page
from se_detection.gates.gate_tables import to_dict


@pytest.mark.slow
def test_the_page_has_numbers_and_plots(explained, written, tmp_path) -> None:
    paths = written
    page = write_excitation_page(explained, paths, tmp_path / "gates.html", "se-det analyze excitations --run run")
    text = page.read_text()
    plots = [path for path in paths if path.parent.name == "plots"]
    assert plots
    assert len(re.findall(r"<img [^>]*data:image/", text)) == len(plots)
    content = to_dict(explained)
    for block in content["blocks"].values():
        assert f"{block['mean']:.3f}" in text
    for row in content["ablation"]["rows"].values():
        assert f"{row['metrics']['AP']:.2f}" in text
        assert f"{row['parameters']:,}" in text
    assert "Too few images for a conclusion: 12" in text
    assert "Dispensable SE blocks" not in text
    assert "How to read this" in text
    assert "se-det analyze excitations" in text
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", text)


def test_only_enough_images_and_a_trained_detector_get_a_headline(explained, monkeypatch) -> None:
    monkeypatch.setattr(gate_page, "MIN_IMAGES", 12)
    assert "barely trained" in gate_page._headline(explained)
    monkeypatch.setattr(gate_page, "MIN_AP", 0.0)
    content = to_dict(explained)
    dispensable, total = len(content["findings"]["dispensable"]), len(content["blocks"])
    verdict = f"Dispensable SE blocks: {dispensable} of {total}" if dispensable else "No SE block is shown"
    assert gate_page._headline(explained).startswith(verdict)


def test_an_existing_page_is_not_replaced(run_script, tmp_path, capsys) -> None:
    (tmp_path / "gates.html").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        run_script("analyze.py", "excitations", "--run", tmp_path, "--html", tmp_path / "gates.html")
    assert caught.value.code == 2
    assert "[output.exists]" in capsys.readouterr().err
    assert (tmp_path / "gates.html").read_text() == "mine"
