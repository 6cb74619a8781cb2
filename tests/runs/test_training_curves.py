import json

from se_detection.runs.metrics import read_training_curve


def test_loss_and_ap_are_read_by_iteration(tmp_path) -> None:
    lines = [
        {"iteration": 19, "total_loss": 2.5, "lr": 0.1},
        {"iteration": 39, "total_loss": 1.5, "bbox/AP": 10.25},
        # Repeated after resuming.
        {"iteration": 39, "total_loss": 1.25},
        {"iteration": 40, "bbox/AP": 20.5, "bbox/AP50": 40},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 59, "total_lo'
    (tmp_path / "metrics.json").write_text(text)
    curve = read_training_curve(tmp_path)
    assert curve == {"loss": {19: 2.5, 39: 1.25}, "ap": {39: 10.25, 40: 20.5}}
    assert read_training_curve(tmp_path / "nowhere") == {"loss": {}, "ap": {}}
