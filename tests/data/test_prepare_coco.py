import json

import pytest

from se_detection.data.coco_sets import check_coco


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


@pytest.fixture
def check(data_set, run_tool):
    """Checks the data set from the command line, with more arguments."""

    def run(*arguments):
        data_set.write()
        return run_tool("check", data_set.json_file, data_set.images, *arguments)

    return run


def test_check_and_fix_from_the_command_line(data_set, check) -> None:
    folder = data_set.json_file.parent
    data_set.content["annotations"][0] |= {"bbox": [50, 5, 30, 10], "area": 300}
    data_set.content["annotations"][1]["id"] = 0
    data_set.content["annotations"][2]["category_id"] = 9
    # Without --fix, errors set the exit code.
    assert check()[0] == 1
    before = data_set.json_file.read_bytes()
    code, out, errors = check("--fix", folder / "fixed.json", "--json", folder / "report.json")
    assert (code, errors) == (0, "")
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
        assert finding["examples"][0].split(":")[0].split()[0] in out
    lines = out.splitlines()
    written = lines.index(f"Written: {folder / 'fixed.json'}")
    assert "1  annotations: a new id: annotations[1] (id 0) is now 37" in lines[written + 2]
    assert lines[-1].endswith("fixed.json: fit for training and evaluation; errors: 0, warnings: 0, notes: 0")
    assert check_coco(folder / "fixed.json", folder / "images")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("check none.json images", "file.unreadable"),
        ("check set.json none", "data.no_folder"),
        ("check set.json images --fix set.json --overwrite", "output.is_input"),
        ("check set.json images --json set.json --overwrite", "output.is_input"),
        ("check set.json images --against there.json --fix there.json --overwrite", "output.is_input"),
        ("check set.json images --fix a --json a", "output.is_input"),
        ("check set.json images --fix there.json", "output.exists"),
        ("check set.json images --json there.json", "output.exists"),
        ("check set.json images --against images", "data.no_json"),
        ("check set.json images --config-file none.yaml", "none.yaml"),
        ("sample set.json --count 99 --output a.json", "data.bad_count"),
        ("sample set.json --count 3 --output set.json", "output.is_input"),
        ("sample set.json --count 3 --output a --rest set.json", "output.is_input"),
        ("sample set.json --count 3 --output a --rest a", "--rest a is also --output"),
        ("sample set.json --count 3 --output a --rest there.json", "output.exists"),
        ("sample set.json --count 3 --output a --rest no/b", "output.no_folder"),
        ("sample set.json --count 12 --output a --rest b", "--count 12: set.json has no more"),
        ("minival --val2014 set.json --val2017 set.json", "data.not_coco_val"),
    ],
)
def test_user_errors_are_one_line(data_set, run_tool, monkeypatch, arguments, code) -> None:
    folder = data_set.json_file.parent
    monkeypatch.chdir(folder)
    (folder / "there.json").write_text("mine")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    exit_code, _, errors = run_tool(*arguments.split())
    assert exit_code == 2
    assert errors.startswith("error: ")
    assert code in errors
    assert errors.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_what_cannot_be_fixed_and_warnings(data_set, check) -> None:
    data_set.content["categories"].append({"id": 4, "name": "crab"})
    code, out, _ = check()
    assert code == 0
    assert "classes without a box" in out
    assert "errors: 0, warnings: 1, notes: 0" in out
    data_set.content["categories"][1]["name"] = "mast"
    fixed = data_set.json_file.with_name("fixed.json")
    code, out, errors = check("--fix", fixed)
    assert code == 2
    assert "'mast': 2 times" in out
    assert "[data.repeated_name]" in errors
    assert not fixed.exists()


def test_an_overlap_stays_an_error_after_fixing(data_set, make_data_set, check, tmp_path) -> None:
    other = make_data_set("other")
    fixed = tmp_path / "fixed.json"
    code, out, _ = check("--against", other.json_file, other.images, "--fix", fixed)
    assert code == 1
    assert "nothing was changed" in out
    assert json.loads(fixed.read_bytes()) == data_set.content


def test_the_config_sets_the_anchors(check, tmp_path) -> None:
    config, report = tmp_path / "small.yaml", tmp_path / "report.json"
    config.write_text("_BASE_: detectron2://none\n")
    assert check("--config-file", config)[0] == 2
    config.write_text("MODEL: {ANCHOR_GENERATOR: {SIZES: [[2, 4]]}}\nINPUT: {MIN_SIZE_TEST: 40}\nVERSION: 2\n")
    code, out, _ = check("--config-file", config, "--json", report)
    assert code == 0
    assert "100% have no anchor" in " ".join(out.replace("│", " ").split())
    assert json.loads(report.read_bytes())["anchors"]["too_large"] == 36


def test_a_sample_and_the_rest_are_written(data_set, run_tool, tmp_path) -> None:
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
    assert check_coco(val, data_set.images) == ["mast", "buoy", "gull"]
    before = val.read_bytes(), train.read_bytes()
    val.unlink()
    assert run_tool(*arguments)[0] == 2
    assert not val.exists()
    assert run_tool(*arguments, "--overwrite", "--seed", 1)[0] == 0
    assert val.read_bytes() != before[0]
    assert run_tool(*arguments, "--overwrite")[0] == 0
    assert (val.read_bytes(), train.read_bytes()) == before


@pytest.mark.slow
def test_minival_is_written_next_to_val2014(tmp_path, run_tool) -> None:
    images = [{"id": id_, "file_name": f"COCO_val2014_{id_:012}.jpg"} for id_ in range(40504)]
    categories = [{"id": 1, "name": "person"}]
    val2014, ids, elsewhere = tmp_path / "instances_val2014.json", tmp_path / "ids.txt", tmp_path / "elsewhere"
    val2014.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    ids.write_text("\n".join(map(str, range(0, 40000, 8))))
    code, out, _ = run_tool("minival", "--val2014", val2014, "--val2017", ids)
    assert code == 0
    names = ["instances_minival2014.json", "instances_valminusminival2014.json"]
    assert out.splitlines() == ["Written:", *(f"  {tmp_path / name}" for name in names)]
    assert [len(json.loads((tmp_path / name).read_bytes())["images"]) for name in names] == [5000, 35504]
    elsewhere.mkdir()
    assert run_tool("minival", "--val2014", val2014, "--val2017", ids, "--output", elsewhere)[0] == 0
    assert sorted(path.name for path in elsewhere.iterdir()) == names
