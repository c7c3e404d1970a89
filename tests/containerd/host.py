"""The product's processes behind a containerd, and how they are made to die."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shim._pb.denseshim.host.v1 import host_pb2
from tests.containerd.caller import TaskCaller
from tests.containerd.containerd import Container, Containerd
from tests.containerd.support import is_alive, until

_HOST: Final = "denseshim.host.v1.Host"
_FRONT: Final = "-m shim.front"
_SPAWNER: Final = "dense-spawner\n"


class Host:
    """The keeper, its spawner and its front; the daemon must have started them."""

    def __init__(self, daemon: Containerd) -> None:
        self._daemon = daemon
        found = (pid for pid, line in daemon.shims().items() if _FRONT in line)
        self.keeper = _parent(next(found))

    @property
    def front(self) -> int:
        """The present front, or the next one as soon as it is there."""
        return until(lambda: self._child(_is_front), "the keeper starts a front")

    @property
    def spawner(self) -> int:
        """As `front`."""
        return until(lambda: self._child(_is_spawner), "the keeper starts a spawner")

    def _child(self, is_it: Callable[[int], bool]) -> int:
        path = Path(f"/proc/{self.keeper}/task/{self.keeper}/children")
        return next((pid for pid in map(int, path.read_text().split()) if is_it(pid)), 0)

    def family(self) -> set[int]:
        """All three of them."""
        return {self.keeper, self.spawner, self.front}

    def kill_front(self) -> None:
        """SIGKILL the front, and return when it has ended."""
        kill(self.front)

    def wait_served(self) -> None:
        """Return when the present front serves."""
        root = self._daemon.machine.root
        (door,) = root.glob("run/denseshim/host-*/door")
        with TaskCaller(door) as caller:
            assert caller.call("Status", host_pb2.StatusRequest(), service=_HOST).code == 0

    def hold_front(self) -> int:
        """Stop the front, whose pid this is, before it gets another request."""
        front = self.front
        os.kill(front, signal.SIGSTOP)
        until(lambda: _state(front) == "T", "the front stops")
        return front

    def replace_front(self) -> None:
        """Kill the front, and return when the next one serves."""
        self.kill_front()
        self.wait_served()

    def caller(self, container: Container) -> TaskCaller:
        """A connection to the socket that containerd calls for the container."""
        return TaskCaller(socket_of(container))


def kill(pid: int) -> None:
    """SIGKILL a process, and return when it has ended."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), f"the end of {pid}")


def socket_of(container: Container) -> Path:
    """The socket that containerd calls for the container, as this process finds it."""
    containerd = container.daemon
    bundle = containerd.bundles / containerd.namespace / container.id
    path = (bundle / "address").read_text().removeprefix("unix://")
    return containerd.machine.root / path.lstrip("/")


def _is_front(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return _FRONT in line and is_alive(pid)
    return False


def _is_spawner(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text() == _SPAWNER and is_alive(pid)
    return False


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _state(pid: int) -> str:
    return _stat(pid)[0]


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])
