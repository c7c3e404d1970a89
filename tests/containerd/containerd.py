"""containerd with directories of its own, and what `ctr` does with it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.containerd.daemon import Daemon
from tests.containerd.events import EventLog
from tests.containerd.machine import Machine
from tests.containerd.rootfs import Rootfs
from tests.containerd.support import PATIENCE, RUNTIME, new_id, until
from tests.containerd.terminal import Terminal

# Where ctr makes FIFOs unless it is told otherwise.
FIFOS = "/run/containerd/fifo"

_CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{address}"
"""
Result = subprocess.CompletedProcess[bytes]


def finish(line: Sequence[str], limit: float = PATIENCE) -> Result:
    """Run a program without input to its end, whatever its status, for at most `limit` s."""
    null = subprocess.DEVNULL
    return subprocess.run(line, stdin=null, capture_output=True, timeout=limit)


class Containerd(Daemon):
    """containerd; all containers are in `namespace`."""

    NAME = "containerd"

    def __init__(
        self, machine: Machine, folder: Path, rootfs: Rootfs, path: Sequence[Path] = ()
    ) -> None:
        super().__init__(machine, folder, path)
        self.rootfs = rootfs
        # Holds a folder for each namespace, with one for each container.
        self.bundles = folder / "state/io.containerd.runtime.v2.task"
        self.namespace = new_id()
        self._config = folder / "containerd.toml"
        self._config.write_text(_CONFIG.format(folder=folder, address=self.address))

    def command(self) -> Sequence[str]:
        return ["containerd", "--config", str(self._config)]

    def is_ready(self) -> bool:
        return self.ctr("version").returncode == 0

    def line(self, *args: str) -> list[str]:
        """The command line of a ctr."""
        address = ["--address", str(self.address), "--namespace", self.namespace]
        return self.machine.inside("ctr", *address, *args)

    def ctr(self, *args: str) -> Result:
        """Run ctr to its end, whatever its status."""
        return finish(self.line(*args))

    def do(self, *args: str) -> bytes:
        """What ctr prints; it must succeed."""
        done = self.ctr(*args)
        assert done.returncode == 0, f"ctr {' '.join(args)}: {done.stderr.decode()}"
        return done.stdout

    def run_line(
        self, id: str, *command: str, options: Sequence[str] = (), image: str = ""
    ) -> list[str]:
        """The command line of a `ctr run`; `options` are ctr's.

        The root is the shared directory, or a mount on top of `image`.
        """
        root = [image] if image else ["--rootfs", str(self.rootfs.path)]
        fixed = ["--runtime", RUNTIME, "--env", "PATH=/bin", *options]
        return self.line("run", *fixed, *root, id, *command)

    def run(self, *command: str, options: Sequence[str] = (), id: str = "") -> Result:
        """Run a container to its end, and remove it."""
        line = self.run_line(id or new_id(), *command, options=["--rm", *options])
        return finish(line)

    def start_container(
        self, *command: str, options: Sequence[str] = ("--null-io",), id: str = ""
    ) -> Container:
        """A container in the background."""
        container = Container(self, id or new_id())
        line = self.run_line(container.id, *command, options=["--detach", *options])
        done = finish(line)
        assert done.returncode == 0, done.stderr.decode()
        return container

    @contextlib.contextmanager
    def living(self, *command: str, options: Sequence[str] = ("--null-io",)) -> Iterator[Container]:
        """A container in the background, which is gone after the block."""
        container = self.start_container(*(command or ("sleep", "1000")), options=options)
        try:
            yield container
        finally:
            container.remove()

    def states(self) -> dict[str, str]:
        """RUNNING, STOPPED … of all tasks, by the container's id."""
        return {id: status for id, _, status in self._tasks()}

    def pids(self) -> dict[str, int]:
        """The init processes of all tasks, as the host knows them, by the container's id."""
        return {id: int(pid) for id, pid, _ in self._tasks()}

    def _tasks(self) -> list[list[str]]:
        """The rows of `ctr tasks ls`: id, pid, status; every task is asked for its state."""
        return [row.split() for row in self.do("tasks", "ls").decode().splitlines()[1:]]

    @contextlib.contextmanager
    def events(self) -> Iterator[EventLog]:
        """The events from now on."""

        def mark(text: str) -> None:
            self.do("namespaces", "label", self.namespace, f"mark={text}")

        log = EventLog(self.line("events"), mark)
        try:
            yield log
        finally:
            log.close()

    def shims(self) -> dict[int, str]:
        """The processes that stand behind this containerd, and their command lines."""
        others = ("containerd ", "dockerd ", "ctr ")
        found = self.machine.processes()
        return {pid: line for pid, line in found.items() if not line.startswith(others)}

    def remove_all(self) -> None:
        """Remove the containers that a failed test has left."""
        for id in self.states():
            self.ctr("tasks", "rm", "--force", id)
        for id in self.ids():
            self.ctr("containers", "rm", id)

    def ids(self) -> set[str]:
        """The ids of all containers."""
        return set(self.do("containers", "ls", "--quiet").decode().split())

    def sockets(self) -> set[str]:
        """The names of the shims' sockets."""
        return self.machine.files("/run/containerd/s", 1)


@dataclass(frozen=True)
class Container:
    """A container that `ctr run --detach` has started."""

    daemon: Containerd
    id: str

    @property
    def status(self) -> str:
        """RUNNING, STOPPED …; "" when there is no such task."""
        return self.daemon.states().get(self.id, "")

    @property
    def pid(self) -> int:
        """The init process, as the host knows it."""
        return self.daemon.pids()[self.id]

    def pids(self) -> set[int]:
        """What `ctr tasks ps` shows."""
        rows = self.daemon.do("tasks", "ps", self.id).decode().splitlines()[1:]
        return {int(row.split()[0]) for row in rows}

    def exec_line(self, *command: str, id: str = "", options: Sequence[str] = ()) -> list[str]:
        """The command line of a `ctr tasks exec`."""
        fixed = ["--exec-id", id or new_id(), *options]
        return self.daemon.line("tasks", "exec", *fixed, self.id, *command)

    def exec(self, *command: str, id: str = "", options: Sequence[str] = ()) -> Result:
        """Run a process in the container; to its end without --detach."""
        return finish(self.exec_line(*command, id=id, options=options))

    def exec_on_terminal(self, *command: str) -> Terminal:
        """Run a process in the container on a terminal."""
        return Terminal(self.exec_line(*command, options=["--tty"]))

    def kill(self, signal: str = "KILL", *options: str) -> Result:
        """Send a signal."""
        return self.daemon.ctr("tasks", "kill", "--signal", signal, *options, self.id)

    def wait_stopped(self) -> None:
        """Return when the task has ended."""
        until(lambda: self.status == "STOPPED", f"{self.id} has stopped")

    def metrics(self) -> dict[str, Any]:
        """What `ctr tasks metrics` shows."""
        found = self.daemon.do("tasks", "metrics", "--format", "json", self.id)
        return dict(json.loads(found))

    def remove(self) -> None:
        """Kill and delete it; `ctr tasks attach` has deleted the task itself."""
        done = self.daemon.ctr("tasks", "rm", "--force", self.id)
        assert done.returncode == 0 or b"not found" in done.stderr, done.stderr.decode()
        self.daemon.do("containers", "rm", self.id)
