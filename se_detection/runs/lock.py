"""The lock of a run folder: one process at a time writes a run."""

import json
import logging
import os
import platform
import sys
import threading
import time
import weakref
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from .run_folder import LOCK, unfinished_files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
# Seconds: the owner touches the file this often; one that has not done so for LIMIT is dead.
INTERVAL, LIMIT = 10.0, 60.0
# In this time, what one process writes is seen by the others.
SETTLED = 2.0
# Changes when Linux starts. Containers on one machine share it, and hosts with one name do not.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RunLock:
    """An advisory lock of a run folder for one process.

    A file in the folder names the owner; it is empty when nobody has the lock. On the owner's machine, the file's
    `flock` shows whether the owner lives: the system releases it when the process ends. On other machines, and without
    `flock` (Windows, some network file systems), the owner is dead if it has not touched the file for a minute.

    Args:
        folder: the run folder; it is created when the lock is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self.descriptor: int | None = None
        self._closed = threading.Event()

    def acquire(self) -> None:
        """Takes the lock, and removes the temporary files that a killed run has left.

        Raises:
            UserError: another process has it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="microseconds")
        self.owner = {"host": platform.node(), "process": os.getpid(), "since": now, "machine": _machine()}
        if fcntl is not None:
            # A data loading worker may outlive a killed owner, and would keep its flock.
            os.register_at_fork(after_in_child=partial(_close_in_child, weakref.ref(self)))
        taken = False
        while not taken:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                taken = self._take(self.descriptor)
            finally:
                if not taken:
                    self._close_file()
        threading.Thread(target=self._touch, daemon=True).start()
        for path in unfinished_files(self.path.parent):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Releases the lock, if it was taken."""
        if self.descriptor is not None:
            self._closed.set()
            with suppress(OSError):
                if self._owner() == self.owner:
                    os.ftruncate(self.descriptor, 0)
            self._close_file()

    def _close_file(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _take(self, descriptor: int) -> bool:
        """Writes this process as the owner, if nobody has the lock or its owner is dead; False: to be tried again."""
        has_flock, owner = _flock(descriptor), self._owner()
        if owner and owner.get("machine") == self.owner["machine"] and has_flock is not None:
            if not has_flock:
                raise self._in_use(owner)
        elif owner or has_flock is False:
            touched = os.fstat(descriptor).st_mtime_ns
            if owner:
                logger.warning("%s: waiting up to %d s for a sign of life of %s", self.path, LIMIT, _name(owner))
            deadline = time.monotonic() + LIMIT
            while time.monotonic() < deadline:
                time.sleep(LIMIT / 100)
                if self._owner() != owner or _flock(descriptor) != has_flock:
                    return False
                if os.fstat(descriptor).st_mtime_ns != touched:
                    raise self._in_use(owner)
        if owner:
            logger.warning("%s: %s is dead; this process takes over", self.path, _name(owner))
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(self.owner).encode())
        if not has_flock:
            # Of several processes that write, the last one has it.
            time.sleep(SETTLED)
        return self._owner() == self.owner

    def _owner(self) -> dict[str, Any]:
        # Opened again, so that a network file system looks at its server.
        try:
            with self.path.open("rb") as file:
                content = file.read(1000)
            owner = json.loads(content) if content else {}
        except FileNotFoundError:
            return {}
        except ValueError:
            owner = None
        return owner if isinstance(owner, dict) else {"host": "an unknown host"}

    def _in_use(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            "output.in_use",
            f"OUTPUT_DIR: {_name(owner)} writes into {self.path.parent}; stop it or wait until it ends, or choose "
            "another OUTPUT_DIR (to evaluate a checkpoint there, give it as MODEL.WEIGHTS)",
        )

    def _touch(self) -> None:
        """Shows that the owner lives, and ends it if another process has the folder now."""
        while not self._closed.wait(INTERVAL):
            # A network file system may be away for a while.
            with suppress(OSError):
                owner = self._owner()
                if owner == self.owner:
                    os.utime(self.path)
                elif owner and not self._closed.is_set():
                    print(
                        f"error: {_name(owner)} has taken over {self.path.parent}; this process stops",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)


def _close_in_child(reference: weakref.ref[RunLock]) -> None:
    if (lock := reference()) is not None:
        lock._close_file()


def _flock(descriptor: int) -> bool | None:
    """Whether this process has the system's lock of a file now; None if there is no such lock."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _machine() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.is_file() else platform.node()


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    since = str(owner.get("since"))[:19]
    return printable(f"process {owner.get('process')} on {owner.get('host')} (since {since})")
