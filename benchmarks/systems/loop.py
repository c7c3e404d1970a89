"""The plainest that can stand between a process and a reader: read(2) and write(2), in C."""

from __future__ import annotations

import signal as signals
import subprocess
from typing import TYPE_CHECKING

from benchmarks.load import PUMP
from benchmarks.place import CONTAINERS
from benchmarks.systems.base import Can, Running, System
from benchmarks.waiting import PATIENCE

if TYPE_CHECKING:
    from benchmarks.session import Session


class Loop(System):
    """`pump copy`, a process for each output; no containers, but programs in the same root."""

    name = "loop"
    title = "read/write loop"
    can = Can.OUTPUT
    programs = ("containerd", "chroot")

    def run(
        self, session: Session, args: tuple[str, ...], terminal: bool, **streams: str
    ) -> Running:
        assert not terminal
        place, environment = session.place, self.environment()
        client = place.outside(streams.get("stdout", "/dev/null"))
        pipe = session.fifo()
        # Both ends are opened by whoever is started: neither start returns before it has begun.
        copy = place.start(
            ["sh", "-c", 'exec "$0" copy <"$1"', str(session.rootfs) + PUMP, str(pipe)],
            client,
            environment,
        )
        program = place.start(
            ["chroot", str(session.rootfs), *args], place.outside(pipe), environment, CONTAINERS
        )
        return LoopedProgram(program, copy)


class LoopedProgram:
    """A program, and the loop that its output goes through."""

    def __init__(self, program: subprocess.Popen[bytes], copy: subprocess.Popen[bytes]) -> None:
        self._program = program
        self._copy = copy

    def kill(self, signal: int = signals.SIGKILL) -> None:
        self._program.send_signal(signal)

    def finish(self) -> int:
        """Raises TimeoutExpired."""
        self._copy.wait(PATIENCE)
        return self._program.wait(PATIENCE)

    def remove(self) -> None:
        self.kill()
        self.finish()
