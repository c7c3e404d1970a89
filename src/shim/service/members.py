"""The processes that the kernel has in a container, and signals for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from shim.cgroup import Cgroup
from shim.errors import NotFound
from shim.service.host import FILE_LIMIT, Host
from shim.service.record import Facts


class Members:
    """A container's processes as its cgroup has them."""

    def __init__(self, host: Host, facts: Facts) -> None:
        self._host = host
        self._facts = facts

    async def pids(self) -> list[int]:
        """All of them; [] for a container that has no cgroup of its own."""
        if not self._facts.cgroup:
            return []
        look = Cgroup(self._facts.cgroup).pids
        return await self._host.pool.run("list the container's processes", FILE_LIMIT, look)

    async def arguments(self, pids: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """The arguments of processes; () for one that has ended.

        Reading them waits for a process that holds its memory map's lock (proc_pid_cmdline(5)).
        """
        return await self._host.pool.run(
            "read the processes' arguments", FILE_LIMIT, _arguments, pids
        )

    async def signal(self, pid: int, number: int) -> None:
        """Signal a process that the shim did not start: look, hold it, look again, signal it.

        Raises NotFound when it is none of the container's.
        """
        missing = NotFound(f"no process {pid} in container {self._facts.id}")
        if pid not in await self.pids():
            raise missing
        try:
            held = os.pidfd_open(pid)
        except OSError as error:
            raise missing from error
        try:
            if pid not in await self.pids():
                raise missing
            signal.pidfd_send_signal(held, number)
        except ProcessLookupError as error:
            raise missing from error
        finally:
            os.close(held)


def _arguments(pids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    return {pid: _arguments_of(pid) for pid in pids}


def _arguments_of(pid: int) -> tuple[str, ...]:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(text.decode(errors="replace").rstrip("\0").split("\0"))
