"""Two machines with their own addresses: connected network namespaces, or this machine twice on the loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Seconds of the longest wait: four processes that start on two busy cores.
PATIENCE = 240


class Job:
    """A command that runs on a machine, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def said_last(self) -> str:
        return self.said[-3000:]

    def errors(self) -> list[str]:
        """The error messages."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]

    def wait(self, seconds: float = PATIENCE) -> int:
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {seconds:.0f} seconds; it said:\n{self.said_last}") from None


class Machine:
    """Starts commands, and finds all their processes by a mark in the environment."""

    def __init__(self, folder: Path, address: str, namespace: str | None, interface: str) -> None:
        self.folder = folder
        self.address = address
        self.namespace = namespace
        self.interface = interface
        self.mark = f"TEST_MACHINE={uuid.uuid4()}"
        self.started: list[subprocess.Popen[bytes]] = []
        folder.mkdir()

    def start(self, *command: object, **environment: object) -> Job:
        """Starts Python with these arguments, in its own process group."""
        log = self.folder / f"log{len(self.started)}.txt"
        name, mark = self.mark.split("=")
        enter = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        process = subprocess.Popen(
            [*enter, sys.executable, *map(str, command)],
            cwd=self.folder,
            env={
                **{
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "HOME": str(self.folder),
                    "GLOO_SOCKET_IFNAME": self.interface,
                },
                **{"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", name: mark},
                **{key: str(value) for key, value in environment.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(process)
        return Job(process, log)

    def processes(self) -> list[int]:
        """The started processes that still run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if self.mark.encode() in environment:
                found.append(int(folder.name))
        return found

    def vanish(self) -> None:
        """Disconnects the machine silently; without namespaces, freezes its processes."""
        if self.namespace:
            _ip("-n", self.namespace, "link", "set", self.interface, "down")
        else:
            self._signal(signal.SIGSTOP)

    def come_back(self) -> None:
        if self.namespace:
            _ip("-n", self.namespace, "link", "set", self.interface, "up")
        else:
            self._signal(signal.SIGCONT)

    def clear(self) -> None:
        while self.processes():
            self._signal(signal.SIGKILL)
            for process in self.started:
                process.poll()
            time.sleep(0.05)

    def _signal(self, number: int) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


@contextmanager
def two_machines(folder: Path) -> Iterator[tuple[list[Machine], str]]:
    """Yields two machines, and the reason if they are not namespaces; ends their processes afterwards."""
    reason = ""
    made: list[str] = []
    names = [f"se{os.getpid()}x{uuid.uuid4().hex[:4]}{end}" for end in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
                made.append(name)
            _ip("-n", names[0], "link", "add", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
            for name, address in zip(names, addresses, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", name)
                for interface in ("lo", name):
                    _ip("-n", name, "link", "set", interface, "up")
            machines = [
                Machine(folder / address, address, name, name) for name, address in zip(names, addresses, strict=True)
            ]
        except (OSError, subprocess.CalledProcessError) as error:
            reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
            machines = [Machine(folder / name, "127.0.0.1", None, "lo") for name in ("first", "second")]
        try:
            yield machines, reason
        finally:
            for machine in machines:
                machine.clear()
    finally:
        for name in made:
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], jobs: list[Job], seconds: float = PATIENCE) -> None:
    """Waits for something that the running jobs cause."""
    deadline = time.monotonic() + seconds
    while not condition():
        logs = "\n\n".join(job.said_last for job in jobs)
        assert all(job.process.poll() is None for job in jobs), f"ended before its time; it said:\n{logs}"
        assert time.monotonic() < deadline, f"nothing for {seconds:.0f} seconds; it said:\n{logs}"
        time.sleep(0.02)
