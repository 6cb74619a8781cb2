import errno
import os

import pytest

from se_detection.files import write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    write_whole(path, lambda file: file.write(b"first"))
    assert path.read_bytes() == b"first"
    # The content before the name that it gets, and then the folder that has the name.
    assert synced == [f"{path}.part", str(tmp_path)]

    def broken_off(file) -> None:
        file.write(b"sec")
        file.flush()
        assert path.read_bytes() == b"first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, broken_off)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_however_the_writer_puts_it(tmp_path) -> None:
    def write(file) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 as torch.save does

    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "file", write)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    assert not list(tmp_path.iterdir())
