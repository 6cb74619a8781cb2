import json

import pytest

from se_detection import UserError
from se_detection.evaluation import Difference, compare, compare_runs


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_runs_are_compared_by_their_files(runs) -> None:
    arms = [run / "inference" / "coco_instances_results.json" for run in runs]
    expected = compare(*arms, runs[0].parents[1] / "val.json", n_bootstrap=100).to_dict()
    comparison = compare_runs(*runs, n_bootstrap=100)
    content = comparison.to_dict()

    assert content["verdict"] == expected["verdict"]
    assert content["difference"]["AP"] == expected["difference"]["AP"]
    assert content["baseline"] == {**expected["baseline"], "parameters": 41_700_000, "gflops": 80.5}
    assert content["candidate"] == {**expected["candidate"], "parameters": 44_200_000, "gflops": 80.6}
    assert content["difference"]["parameters"] == {"value": 2_500_000, "low": None, "high": None}
    assert content["difference"]["gflops"]["value"] == pytest.approx(0.1)
    assert [arm.name for arm in comparison.arms] == ["plain", "se"]
    assert comparison.arms[0].backbone_input == (480, 640)


def test_a_run_without_a_record_has_no_costs(runs) -> None:
    (runs[0] / "run.json").unlink()
    comparison = compare_runs(*runs, n_bootstrap=100)
    assert comparison.baseline["parameters"] is None
    assert comparison.candidate["parameters"] == 44_200_000
    assert comparison.difference["parameters"] == Difference(None)


def test_copies_of_the_same_annotations_are_the_same_data(runs, tmp_path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes((tmp_path / "val.json").read_bytes())
    change(runs[1] / "inference" / "results.json", annotations=str(copy))
    assert compare_runs(*runs, n_bootstrap=100).difference["AP"].value > 0


def test_what_cannot_be_compared_is_refused(runs, tmp_path, annotations) -> None:
    baseline, candidate = runs

    def refuse(message, first=baseline):
        with pytest.raises(UserError, match=message):
            compare_runs(first, candidate, n_bootstrap=100)

    refuse("nowhere: no inference/results.json; is it a run folder", tmp_path / "nowhere")
    results = candidate / "inference" / "results.json"
    change(results, categories=["cup", "plate"])
    refuse("different categories")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**annotations, "images": annotations["images"][:-1]}))
    change(results, categories=["cup", "plate", "fork"], annotations=str(other))
    refuse(r"val\.json and .* on .*other\.json; compare runs on the same data")
    other.unlink()
    refuse(r"other\.json are gone")
    results.write_text("[]")
    refuse("evaluate the run again")
    (candidate / "inference" / "set_a").mkdir()
    results.rename(candidate / "inference" / "set_a" / "results.json")
    refuse(r"several data sets \(set_a\)")
