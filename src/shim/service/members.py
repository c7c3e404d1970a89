"""The processes that the kernel has in a container, and signals for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from shim.cgroup import Cgroup, thaw
from shim.errors import NotFound
from shim.service.host import FILE_LIMIT, Host
from shim.service.record import Facts

# Seconds between two looks at a cgroup that empties itself.
LOOK_AGAIN = 0.01


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

    async def signal_all(self, number: int) -> bool:
        """Signal each, those that begin meanwhile included; whether there was any.

        Raises OSError for a number that is no signal.
        """
        if not self._facts.cgroup:
            return False
        cgroup = Cgroup(self._facts.cgroup)
        what = "signal the container's processes"
        return await self._host.pool.run(what, FILE_LIMIT, _signal_all, cgroup, number)

    async def end_all(self) -> None:
        """SIGKILL until there is none. Nothing tells when a cgroup has emptied itself."""
        while await self.signal_all(signal.SIGKILL):
            await self.thaw()
            await asyncio.sleep(LOOK_AGAIN)

    async def thaw(self) -> None:
        """Let a paused container's processes go on."""
        await self._host.pool.run("thaw the container", FILE_LIMIT, thaw, self._facts.cgroups)

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


def _signal_all(cgroup: Cgroup, number: int) -> bool:
    """Hold each by a pidfd, and look again whether it is still a member: pids are given again."""
    reached: set[int] = set()
    while new := set(cgroup.pids()) - reached:
        held = {pid: descriptor for pid in new if (descriptor := _open(pid)) >= 0}
        members = set(cgroup.pids())
        for pid, descriptor in held.items():
            if pid in members:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
            os.close(descriptor)
        reached |= new
    return bool(reached)


def _open(pid: int) -> int:
    """A pidfd; -1 when the process has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _arguments(pids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    return {pid: _arguments_of(pid) for pid in pids}


def _arguments_of(pid: int) -> tuple[str, ...]:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(text.decode(errors="replace").rstrip("\0").split("\0"))
