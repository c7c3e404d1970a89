"""What a system under test is, and what it can do."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmarks.daemon import path_with

if TYPE_CHECKING:
    from benchmarks.place import Step
    from benchmarks.session import Session


class Can(enum.Flag):
    """What a workload may ask of a system."""

    OUTPUT = enum.auto()  # containers that run, with FIFOs for their streams: `Session.run`
    TASKS = enum.auto()  # the same by containerd's API: `Session.container`, `Session.api`
    LIFE = enum.auto()  # a whole container's life, as commands
    BARE = enum.auto()  # the runtime's part of it alone
    CROWD = enum.auto()  # a thousand containers


class Running(Protocol):
    """A container that has been started."""

    def kill(self, signal: int = 9) -> None:
        """Send a signal to its init process."""

    def finish(self) -> int:
        """Wait for its end, and delete it; the exit status."""

    def remove(self) -> None:
        """End it, and delete it."""


class System:
    """One way to run containers. A workload runs on every system that can do what it needs."""

    name: str  # in results, claims and --system
    title: str  # in tables and plots
    can: Can
    runtime: str = ""  # containerd's name for it; "": containerd runs, and nothing is run by it
    most: int = 1_000_000  # more containers than this it is not asked for
    slow: int = 1  # it is asked for so many times fewer lives
    programs: Sequence[str] = ()  # what has to be on the PATH
    containerd = "containerd"  # the program
    folders: Sequence[Path] = ()  # first in its containerd's PATH

    def prepare(self, folder: Path) -> None:
        """Make what it needs, below the run's folder, which exists. Raises CalledProcessError."""

    def environment(self) -> dict[str, str]:
        """Its containerd's environment."""
        return path_with(*self.folders)

    def run(
        self, session: Session, args: tuple[str, ...], terminal: bool, **streams: str
    ) -> Running:
        """Start a container that runs `args`; `streams`: stdin, stdout, stderr, paths of FIFOs."""
        container = session.container(*args, terminal=terminal)
        container.create(terminal=terminal, **streams)
        container.start()
        return container

    def keeper(self, session: Session) -> set[int]:
        """The one process that no container can do without; empty: the system has none such."""
        return set()

    def life(self, session: Session) -> list[Step]:
        """The commands of one container's life, from nothing to nothing."""
        address = ["--address", str(session.daemon.address), "--namespace", "containers"]
        options = ["--rm", "--runtime", self.runtime, "--rootfs", "--env", "PATH=/bin"]
        command = [str(session.rootfs), session.new_id(), "true"]
        return [["ctr", *address, "run", *options, *command]]
