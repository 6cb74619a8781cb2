import json
import os

from se_detection.runs.evaluated_run import read_run

from ..helpers import raises


def test_a_run_is_read(runs, tmp_path) -> None:
    run = read_run(runs[1])
    assert (run.name, run.record["backbone_input"]) == ("se", [480, 640])
    assert run.annotations == tmp_path / "val.json"
    assert run.recipe["MODEL.BACKBONE.NAME"] == "build_se_resnet_fpn_backbone"
    assert run.unfinished == ""
    (runs[1] / "last_checkpoint").write_text("model_0000199.pth")
    assert read_run(runs[1]).unfinished == "model_0000199.pth"
    (runs[1] / "last_checkpoint").unlink()
    assert read_run(runs[1]).unfinished == ""


def test_a_bare_file_is_named_after_itself_or_its_run(runs, tmp_path) -> None:
    file = tmp_path / "theirs.json"
    file.write_text("[]")
    run = read_run(file, tmp_path / "val.json")
    assert (run.name, run.detections, run.recipe) == ("theirs", file, None)
    of_run = runs[0] / "inference" / "coco_instances_results.json"
    assert read_run(of_run, tmp_path / "val.json").name == "plain"
    with raises("run.no_annotations", file):
        read_run(file)


def test_a_bad_run_is_refused(runs, tmp_path) -> None:
    with raises("run.not_evaluated", tmp_path / "nowhere"):
        read_run(tmp_path / "nowhere")
    results = runs[0] / "inference" / "results.json"
    content = json.loads(results.read_text())
    gone = tmp_path / "gone.json"
    results.write_text(json.dumps({**content, "annotations": str(gone)}))
    with raises("run.no_annotations", gone):
        read_run(runs[0])
    assert read_run(runs[0], tmp_path / "val.json").annotations == tmp_path / "val.json"
    for content in ([], {"annotations": "a.json"}):
        results.write_text(json.dumps(content))
        with raises("run.not_evaluated", runs[0]):
            read_run(runs[0])
    (runs[0] / "inference" / "set_a").mkdir()
    results.rename(runs[0] / "inference" / "set_a" / "results.json")
    with raises("run.several_sets", "set_a"):
        read_run(runs[0])
    # The later evaluation on one set counts.
    own = {"annotations": str(tmp_path / "val.json"), "categories": []}
    results.write_text(json.dumps(own))
    os.utime(runs[0] / "inference" / "set_a" / "results.json", (1, 1))
    assert read_run(runs[0]).results == own
