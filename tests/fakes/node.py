"""A machine of its own for a host: a mount namespace in which no other host is met.

Its launchers are started as containerd and the daemon of 2017 do it. /sys/fs/cgroup is the
machine's, and so is /denseshim there: another host may be in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shim.pair import CGROUP
from tests.fakes.door import Argument, Place

PATIENCE = 60.0
BIN = Path(sys.executable).parent
LAUNCHER = BIN / "containerd-shim-dense-v2"
LAUNCHER_OF_2017 = BIN / "containerd-shim-dense"
PROGRAM = BIN / "denseshim"
# The daemon of 2017 makes a mount namespace for each shim, and waits for its end.
AS_THE_DAEMON = 'unshare --mount --propagation unchanged "$@" <&0 & wait $!'


class Node(Place):
    """A mount namespace with a /run of its own. Closing it fails if anything is left in it."""

    def __init__(self) -> None:
        super().__init__()
        self._mounts = self.mounts()

    def run(self, *argv: Argument, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a program there, to its end."""
        command = self.command(argv, more.pop("cwd", Path("/")), more.pop("before", ""))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.run(command, timeout=PATIENCE, **{**pipes, **more})

    def host(self, *options: str) -> subprocess.CompletedProcess[bytes]:
        """`denseshim host` with these options."""
        return self.run(PROGRAM, "host", *options)

    def status(self) -> dict[str, Any]:
        """What the host says of itself."""
        done = self.host("--status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def stop(self) -> None:
        """End the host, with its containers."""
        done = self.host("--stop", "--force")
        assert done.returncode == 0, done.stderr

    @property
    def keeper(self) -> int:
        """The pid of the host's keeper."""
        return int(self.status()["keeper_pid"])

    def launch_2017(
        self, bundle: Path, *options: Argument, listener: socket.socket | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Begin to launch a shim as the daemon of 2017 does: in mounts of its own.

        listener: descriptor 3 there.
        """
        before = more.pop("before", "")
        shell = ["sh", "-c", AS_THE_DAEMON, "daemon", LAUNCHER_OF_2017, *options]
        command = self.command(shell, bundle, before)
        given = [] if listener is None else [listener.fileno()]
        if listener is not None:
            take = f'exec 3<&{listener.fileno()}-; exec "$@"'
            command = ["bash", "-c", take, "daemon", *command]
        pipes = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, pass_fds=given, **{**pipes, **more})

    def launch(self, bundle: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """Run the launcher as containerd does."""
        return self.run(LAUNCHER, *words, cwd=bundle, **more)

    def mounts(self) -> list[str]:
        """Where something is mounted."""
        lines = (self._proc / "mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines]

    @property
    def mount_namespace(self) -> int:
        """Its number."""
        return (self._proc / "ns/mnt").stat().st_ino

    def processes(self) -> set[int]:
        """Who lives in the namespace, beside the shell that holds it."""
        ours = self.mount_namespace
        return {pid for pid in pids() if mount_namespace(pid) == ours} - {self._holder.pid}

    def left(self) -> dict[str, object]:
        """What should not be there when no host is."""
        run = self.run_folder
        found: dict[str, object] = {
            "processes": {pid: command_of(pid) for pid in self.processes()},
            "mounts": [path for path in self.mounts() if path not in self._mounts],
            "state": names(run / "denseshim"),
            "runtime": names(run / "runc") + names(run / "containerd/runc/ns"),
            "sockets": names(run / "containerd/s"),
            "cgroups": empty_cgroups(),
        }
        return {what: there for what, there in found.items() if there}

    def settled(self) -> None:
        """Return when nothing is left."""
        wait_until(lambda: not self.left(), lambda: f"left behind: {self.left()}")

    def close(self) -> None:
        """End a host that is there, with its containers; then nothing may be left."""
        try:
            if (self.state / "door").exists():
                self.stop()
            self.settled()
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            super().close()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def mount_namespace(pid: int) -> int:
    """0 when the process is gone, or when it is none of ours to look at."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def command_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def cgroups() -> list[Path]:
    """The cgroup of hosts in each hierarchy that has it."""
    folder = Path("/sys/fs/cgroup")
    found = (path / CGROUP.lstrip("/") for path in (folder, *folder.iterdir()))
    return [path for path in found if path.exists()]


def members(cgroup: Path) -> set[int]:
    """The processes in a cgroup; none when it has gone."""
    with contextlib.suppress(OSError):
        return {int(line) for line in (cgroup / "cgroup.procs").read_text().split()}
    return set()


def empty_cgroups() -> list[Path]:
    """Those in which no other host is: the last one should have removed them."""
    return [path for path in cgroups() if not members(path)]


def wait_until(condition: Callable[[], object], what: Callable[[], str]) -> None:
    """Return when the condition, which nothing announces, is true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.01)


def wait_for_end(pid: int) -> None:
    """Return when a process, which need not be a child, has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], PATIENCE)[0], f"{pid} does not end"
    finally:
        os.close(process)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """The daemon's socket for a shim."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(128)
        yield listener


def outcome(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """How a launcher has ended, and what it has said."""
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors.decode()
