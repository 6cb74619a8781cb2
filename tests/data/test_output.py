import json
import os

import pytest

from se_detection.errors import UserError
from se_detection.files import check_folder, check_output, write_json


def test_invalid_outputs_are_refused(tmp_path) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    check_output(path, inputs=[other])
    path.write_text("mine")
    check_output(path, inputs=[other], overwrite=True)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    for output, inputs, overwrite, expected in [
        (path, [], False, r"already exists; .*--overwrite"),
        (path, [], None, r"already exists; .*remove it"),
        (path, [other, path], True, "both read and written"),
        (link, [path], True, "both read and written"),
        (tmp_path, [], True, "is a folder"),
        (tmp_path / "none" / "a.json", [], True, "there is no folder"),
    ]:
        with pytest.raises(UserError, match=expected):
            check_output(output, inputs=inputs, overwrite=overwrite)

    check_folder(tmp_path / "new" / "folder")
    for folder in (path, path / "folder"):
        with pytest.raises(UserError, match=r"a\.json is a file"):
            check_folder(folder)


def test_files_are_written_completely_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "möwe \ud800"})
    assert json.loads(path.read_bytes()) == {"name": "möwe \ud800"}
    before = path.read_bytes()

    def fail(_) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"a\.json can't be written \(Read-only file system\)"):
        write_json(path, {"name": "other"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
