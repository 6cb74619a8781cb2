import errno
import json
import os
import sys
from fnmatch import fnmatch

import pytest

from se_detection.files import (
    TEMPORARY,
    check_folder,
    check_output,
    file_digest,
    parse_json,
    read_json,
    write_json,
    write_whole,
)

from .helpers import raises


def test_files_are_written_atomically(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    write_whole(path, lambda file: file.write(b"first"))
    assert path.read_bytes() == b"first"
    assert len(synced) == 1
    assert fnmatch(synced[0], f"{path}{TEMPORARY}")

    def interrupted(file) -> None:
        file.write(b"sec")
        file.flush()
        assert path.read_bytes() == b"first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_a_file_do_not_mix(tmp_path) -> None:
    # The longest name of a file on Linux.
    path = tmp_path / ("ö" * 120 + "x" * 15)

    def write(file) -> None:
        file.write(b"first ")
        write_whole(path, lambda other: other.write(b"second"))
        assert path.read_bytes() == b"second"
        file.write(b"writer")

    write_whole(path, write)
    assert path.read_bytes() == b"first writer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_reported_behind_other_exceptions(tmp_path) -> None:
    def write(file) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 as torch.save does

    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "file", write)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_written_are_refused(tmp_path) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    check_output(path, inputs=[other])
    path.write_text("mine")
    check_output(path, inputs=[other], overwrite=True)
    check_output(tmp_path / "new" / "folder" / "a.html", creates_folder=True)
    (tmp_path / "link.json").symlink_to(path)
    for code, output, inputs, overwrite, named in (
        ("output.exists", path, [], False, "--overwrite"),
        ("output.exists", path, [], None, "remove it"),
        ("output.is_input", path, [other, path], True, path),
        ("output.is_input", tmp_path / "link.json", [path], True, "link.json"),
        ("output.is_folder", tmp_path, [], True, tmp_path),
        ("output.no_folder", tmp_path / "none" / "a.json", [], True, "none"),
    ):
        with raises(code, named):
            check_output(output, inputs=inputs, overwrite=overwrite)
    for folder in (path, path / "folder"):
        with raises("output.is_file", path):
            check_folder(folder)
    with raises("output.is_file", path):
        check_output(path / "a.html", creates_folder=True)


def test_json(tmp_path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "möwe \ud800"})
    assert json.loads(path.read_bytes()) == read_json(path) == {"name": "möwe \ud800"}
    with raises("file.unreadable", tmp_path / "b.json"):
        read_json(tmp_path / "b.json")
    path.write_bytes(b"\xff")
    with raises("file.not_json", path):
        read_json(path)
    # Code that walks through the content must not fail either. (From Python 3.12 on, it may be deeper than 900.)
    depths = {500: True, 100_000: False} | ({950: False} if sys.version_info < (3, 12) else {})
    for depth, valid in depths.items():
        text = b"[" * depth + b"]" * depth
        if valid:
            assert json.dumps(parse_json(text), indent=1)
        else:
            with pytest.raises(ValueError, match="nested too deeply"):
                parse_json(text)


def test_the_digest_of_a_file(tmp_path) -> None:
    """FIPS 180-2, Appendix B.1."""
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
