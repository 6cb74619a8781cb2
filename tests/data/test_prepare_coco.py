import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from se_detection.data.coco_sets import check_coco

TOOL = Path(__file__).parents[2] / "tools" / "prepare_coco.py"


@pytest.fixture
def run_tool(run_script, capsys):
    """Runs the tool in this process; returns exit code, output and errors."""

    def run(*arguments):
        code = 0
        try:
            run_script("prepare_coco.py", *arguments)
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def run_process(*arguments, cwd):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_check_and_fix_from_the_command_line(data_set, run_tool) -> None:
    folder = data_set.json_file.parent
    data_set.content["annotations"][0]["bbox"] = [50, 5, 30, 10]
    data_set.content["annotations"][1]["id"] = 0
    data_set.content["annotations"][2]["category_id"] = 9
    data_set.write()
    before = data_set.json_file.read_bytes()
    checked = run_process("check", "set.json", "images", "--fix", "fixed.json", "--json", "report.json", cwd=folder)
    assert checked.returncode == 0, checked.stderr
    assert checked.stderr == ""
    assert data_set.json_file.read_bytes() == before
    report = json.loads((folder / "report.json").read_text())
    assert {finding["key"]: finding["count"] for finding in report["findings"]} == {
        "annotations-wrong-id": 1,
        "annotations-unknown-category": 1,
        "boxes-sticking-out": 1,
    }
    assert (report["errors"], report["warnings"]) == (2, 1)
    for finding in report["findings"]:
        # The table has it too, wrapped in narrow columns.
        assert finding["examples"][0].split(":")[0].split()[0] in checked.stdout
    lines = checked.stdout.splitlines()
    written = lines.index("Written: fixed.json")
    assert "1  annotations: a new id: annotations[1] (id 0) is now 37" in lines[written + 2]
    assert lines[-1] == "fixed.json: fit for training and evaluation; errors: 0, warnings: 0, notes: 0"
    assert check_coco(folder / "fixed.json", folder / "images")

    # Without --fix, errors set the exit code.
    assert run_tool("check", data_set.json_file, data_set.images)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["check", "none.json", "images"], "none.json: cannot be read (No such file or directory)"),
        (["check", "set.json", "none"], "none: not a folder"),
        (["check", "set.json", "images", "--fix", "set.json", "--overwrite"], "set.json is both read and written"),
        (["check", "set.json", "images", "--json", "set.json", "--overwrite"], "set.json is both read and written"),
        (
            ["check", "set.json", "images", "--against", "b.json", "--fix", "b.json", "--overwrite"],
            "b.json is both read and written",
        ),
        (["check", "set.json", "images", "--fix", "a", "--json", "a"], "a is both read and written"),
        (["check", "set.json", "images", "--fix", "there.json"], "there.json already exists"),
        (["check", "set.json", "images", "--json", "there.json"], "there.json already exists"),
        (["check", "set.json", "images", "--against", "images"], "images: a folder; give it after"),
        (["check", "set.json", "images", "--config-file", "none.yaml"], "no config is named 'none.yaml'"),
        (["sample", "set.json", "--count", "99", "--output", "a.json"], "--count 99: set.json has 12 images"),
        (["sample", "set.json", "--count", "3", "--output", "set.json"], "set.json is both read and written"),
        (["sample", "set.json", "--count", "3", "--output", "a", "--rest", "set.json"], "set.json is both read and"),
        (["sample", "set.json", "--count", "3", "--output", "a", "--rest", "a"], "--rest a is also --output"),
        (
            ["sample", "set.json", "--count", "3", "--output", "a", "--rest", "there.json"],
            "there.json already exists",
        ),
        (["sample", "set.json", "--count", "3", "--output", "a", "--rest", "no/b"], "no/b: there is no folder no"),
        (["sample", "set.json", "--count", "12", "--output", "a", "--rest", "b"], "--count 12: set.json has no more"),
        (["minival", "--val2014", "set.json", "--val2017", "set.json"], "set.json: 12 images instead of val2017's"),
    ],
)
def test_user_errors_are_one_line(data_set, run_tool, monkeypatch, arguments, expected) -> None:
    folder = data_set.json_file.parent
    monkeypatch.chdir(folder)
    (folder / "there.json").write_text("mine")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, _, errors = run_tool(*arguments)
    assert code == 2
    assert errors.startswith(f"error: {expected}")
    assert errors.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_problems_that_cannot_be_fixed_are_reported(data_set, run_tool) -> None:
    data_set.content["categories"][1]["name"] = "mast"
    data_set.write()
    fixed = data_set.json_file.with_name("fixed.json")
    code, out, errors = run_tool("check", data_set.json_file, data_set.images, "--fix", fixed)
    assert code == 2
    assert "'mast': 2 times" in out
    assert "several categories are named 'mast'" in errors
    assert not fixed.exists()


def test_warnings_do_not_fail(data_set, run_tool) -> None:
    data_set.content["categories"].append({"id": 4, "name": "crab"})
    data_set.write()
    code, out, _ = run_tool("check", data_set.json_file, data_set.images)
    assert code == 0
    assert "classes without a box" in out
    assert "errors: 0, warnings: 1, notes: 0" in out


def test_an_overlap_stays_an_error_after_fixing(data_set, make_data_set, run_tool, tmp_path) -> None:
    other = make_data_set("other")
    fixed = tmp_path / "fixed.json"
    arguments = ["check", data_set.json_file, data_set.images, "--against", other.json_file, other.images]
    code, out, _ = run_tool(*arguments, "--fix", fixed)
    assert code == 1
    assert "nothing was changed" in out
    assert json.loads(fixed.read_bytes()) == data_set.content
    assert run_tool(*arguments[:3])[0] == 0


def test_the_config_sets_the_anchors(data_set, run_tool, tmp_path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("_BASE_: detectron2://none\n")
    assert run_tool("check", data_set.json_file, data_set.images, "--config-file", config)[0] == 2
    report = tmp_path / "report.json"
    config.write_text("MODEL: {ANCHOR_GENERATOR: {SIZES: [[2, 4]]}}\nINPUT: {MIN_SIZE_TEST: 40}\nVERSION: 2\n")
    code, out, _ = run_tool("check", data_set.json_file, data_set.images, "--config-file", config, "--json", report)
    assert code == 0
    assert "100% have no anchor" in " ".join(out.replace("│", " ").split())
    assert json.loads(report.read_bytes())["anchors"]["too_large"] == 36


def test_progress_is_shown_for_many_images(data_set, run_tool) -> None:
    image = data_set.content["images"][0]
    data_set.content["images"] += [dict(image, id=1000 + index, file_name=f"{index}.png") for index in range(2000)]
    data_set.write()
    code, _, errors = run_tool("check", data_set.json_file, data_set.images)
    assert code == 1
    assert "2012/2012" in errors


def test_sample_writes_the_requested_images(data_set, run_tool, tmp_path) -> None:
    output = tmp_path / "sample.json"
    arguments = ["sample", data_set.json_file, "--count", 4, "--output", output]
    code, out, _ = run_tool(*arguments)
    assert code == 0
    assert out == f"Written: {output} (4 images, 12 annotations; every class)\n"
    first = output.read_bytes()
    assert check_coco(output, data_set.images) == ["mast", "buoy", "gull"]
    assert run_tool(*arguments)[0] == 2
    assert run_tool(*arguments, "--overwrite", "--seed", 1)[0] == 0
    assert output.read_bytes() != first
    assert run_tool(*arguments, "--overwrite")[0] == 0
    assert output.read_bytes() == first
    for index, annotation in enumerate(data_set.content["annotations"]):
        annotation["category_id"] = 1 + index // 12
    data_set.write()
    code, out, _ = run_tool("sample", data_set.json_file, "--count", 2, "--output", tmp_path / "two.json")
    assert "2 images, 6 annotations; without any of (too few images): " in out


def test_a_sample_and_the_rest_are_disjoint(data_set, run_tool, tmp_path) -> None:
    for index, annotation in enumerate(data_set.content["annotations"]):
        annotation["category_id"] = 1 + (index > 5) + (index > 32)
    data_set.write()
    val, train = tmp_path / "val.json", tmp_path / "train.json"
    arguments = ["sample", data_set.json_file, "--count", 4, "--output", val, "--rest", train]
    code, out, _ = run_tool(*arguments)
    assert code == 0
    assert out.splitlines() == [
        f"Written: {val} (4 images, 12 annotations; every class)",
        f"Written: {train} (8 images, 24 annotations; without any of (all are in the sample): gull)",
    ]
    images = {file: {image["id"] for image in json.loads(file.read_bytes())["images"]} for file in (val, train)}
    assert images[val].isdisjoint(images[train])
    assert images[val] | images[train] == {image["id"] for image in data_set.content["images"]}
    before = val.read_bytes(), train.read_bytes()
    val.unlink()
    assert run_tool(*arguments)[0] == 2
    assert not val.exists()
    assert run_tool(*arguments, "--overwrite")[0] == 0
    assert (val.read_bytes(), train.read_bytes()) == before


def test_minival_is_written_next_to_val2014(tmp_path, run_tool) -> None:
    images = [{"id": id_, "file_name": f"COCO_val2014_{id_:012}.jpg"} for id_ in range(40504)]
    val2014 = tmp_path / "instances_val2014.json"
    val2014.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(map(str, range(0, 40000, 8))))
    code, out, _ = run_tool("minival", "--val2014", val2014, "--val2017", ids)
    assert code == 0
    names = ["instances_minival2014.json", "instances_valminusminival2014.json"]
    assert out.splitlines() == ["Written:", *(f"  {tmp_path / name}" for name in names)]
    assert [len(json.loads((tmp_path / name).read_bytes())["images"]) for name in names] == [5000, 35504]
    (tmp_path / "elsewhere").mkdir()
    assert run_tool("minival", "--val2014", val2014, "--val2017", ids)[0] == 2
    assert run_tool("minival", "--val2014", val2014, "--val2017", ids, "--output", tmp_path / "elsewhere")[0] == 0


@pytest.mark.parametrize(("command", "name"), [("minival", "minival"), ("check", "check-data"), ("sample", "sample")])
def test_help_ends_with_an_example(run_tool, command, name) -> None:
    code, out, _ = run_tool(command, "--help")
    assert code == 0
    assert out.rstrip().splitlines()[-1].lstrip().startswith(f"$ se-det {name} ")
    assert f"se-det {name}" in " ".join(run_tool("--help")[1].split())
