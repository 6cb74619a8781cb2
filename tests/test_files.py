import errno
import os

import pytest

from se_detection.files import write_whole


def test_files_are_written_atomically(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    write_whole(path, lambda file: file.write(b"first"))
    assert path.read_bytes() == b"first"
    # First the content under the temporary name, then the folder.
    assert synced == [f"{path}.part", str(tmp_path)]

    def interrupted(file) -> None:
        file.write(b"sec")
        file.flush()
        assert path.read_bytes() == b"first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert path.read_bytes() == b"first"
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
