"""The logging program of a process (contract: runtime-v2, Logging binary).

It reads the process's own pipes, without the relay between them, and is the keeper's child: it
goes on when the front or containerd is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import NamedTuple

from shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from shim.keeper.client import KeeperClient, Spawn
from shim.keeper.command import Command
from shim.stdio import Descriptors, Place, Scheme, pipe_between_children

# Seconds for a program to say that it is ready.
READY_LIMIT = 10.0
# Seconds, once its streams have ended, to end by itself; then, after SIGTERM, before SIGKILL.
END_PAUSE = 2.0
TERM_LIMIT = 12.0

# Set in the flags of /proc/PID/stat from when a process begins to end: before its descriptors
# are closed (include/linux/sched.h; kernel/exit.c, do_exit).
_PF_EXITING = 0x4

_log = logging.getLogger(__name__)


class LogNames(NamedTuple):
    """What a logging program is told: whose output it gets, and the containerd namespace."""

    container: str
    namespace: str


class Identity(NamedTuple):
    """A process for ever: its pid, and when it began, in ticks since the machine did; or zeros."""

    pid: int = 0
    began: int = 0


class Logger:
    """A logging program that is running, or has ended."""

    def __init__(self, child: Spawn) -> None:
        self._child = child
        self.identity = Identity(child.pid, _began(child.pid))
        self._killing: asyncio.Task[None] | None = None
        child.release()

    @property
    def pid(self) -> int:
        """The program's pid, which may be another's once it has ended."""
        return self._child.pid

    def kill(self) -> None:
        """SIGKILL, without waiting for anything."""
        self._killing = asyncio.ensure_future(self._signal(signal.SIGKILL))

    async def end(self) -> None:
        """Its streams have been closed: see that it ends.

        First it may read what is left: SIGTERM at once would cost the last lines.
        """
        if await self._ends_within(END_PAUSE):
            return
        await self._signal(signal.SIGTERM)
        if not await self._ends_within(TERM_LIMIT):
            _log.warning("killing the logging program %d, which ignores SIGTERM", self.pid)
            await self._signal(signal.SIGKILL)

    async def ready(self, told: int, place: Place) -> None:
        """Wait for a byte, or the end, on the pipe `told`, which is borrowed and non-blocking.

        The end counts as readiness, too, with Scheme.BINARY and unless the program has failed.
        Raises InvalidArgument when it could not be executed, FailedPrecondition,
        DeadlineExceeded.
        """
        try:
            async with asyncio.timeout(READY_LIMIT):
                if await _read_byte(told):
                    return
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the logging program {place.path!r} was not ready within {READY_LIMIT:g} s: it "
                "has to write to descriptor 5, or close it"
            ) from error
        if _is_ending(self.pid):
            await self._check_end(place)
        if place.scheme is Scheme.BINARY_V2:
            raise FailedPrecondition(
                f"the logging program {place.path!r} closed descriptor 5 without writing to it"
            )

    async def _check_end(self, place: Place) -> None:
        try:
            ended = await self._child.wait()
        except OSError as error:
            raise InvalidArgument(
                f"cannot execute the logging program {place.path!r}: {error.strerror}"
            ) from error
        if ended.status:
            raise FailedPrecondition(
                f"the logging program {place.path!r} ended with status {ended.status} before it "
                "was ready"
            )

    async def _ends_within(self, limit: float) -> bool:
        await asyncio.wait((self._child.exited,), timeout=limit)
        return self._child.exited.done()

    async def _signal(self, number: int) -> None:
        with contextlib.suppress(NotFound, Unavailable):  # it has ended; the keeper has
            await self._child.signal(number)


async def start_logger(
    keeper: KeeperClient, id: int, place: Place, names: LogNames, streams: tuple[int, int]
) -> Logger:
    """Start the program at `place` and wait until it is ready.

    streams: the read ends of stdout and stderr; borrowed. Raises InvalidArgument,
    FailedPrecondition, DeadlineExceeded, ResourceExhausted; then it has been killed.
    """
    with Descriptors() as descriptors:
        reading, told = (descriptors.own(end) for end in pipe_between_children())
        os.set_blocking(reading, False)
        null = descriptors.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        command = Command(
            argv=(place.path, *place.arguments),
            env={"CONTAINER_ID": names.container, "CONTAINER_NAMESPACE": names.namespace},
            descriptors={0: null, 1: null, 2: null, 3: streams[0], 4: streams[1], 5: told},
        )
        logger = Logger(await keeper.spawn(command, id))
        os.close(descriptors.take(told))
        try:
            await logger.ready(reading, place)
        except BaseException:
            logger.kill()
            raise
    return logger


async def end_left(left: Identity) -> None:
    """See that the logging program of a dead keeper ends, once what it reads from has.

    Returns when it has ended, or has been killed; at once where it is not there any more.
    """
    if not left.pid:
        return
    try:
        process = os.pidfd_open(left.pid)
    except ProcessLookupError:
        return
    try:
        if _began(left.pid) != left.began:  # looked at while it is held: pids are given again
            return
        for limit, number in ((END_PAUSE, signal.SIGTERM), (TERM_LIMIT, signal.SIGKILL)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await _readable(process)
                return
            _log.warning("the logging program %d goes on without its keeper", left.pid)
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                signal.pidfd_send_signal(process, number)
    finally:
        os.close(process)


async def _read_byte(descriptor: int) -> bytes:
    """One byte, or none at the end."""
    await _readable(descriptor)
    return os.read(descriptor, 1)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _is_ending(pid: int) -> bool:
    """Whether the child is on its way out, or gone: proc(5), /proc/PID/stat, field 9."""
    found = _stat(pid)
    return not found or bool(int(found[6]) & _PF_EXITING)


def _began(pid: int) -> int:
    """Field 22; 0 for one that is gone."""
    found = _stat(pid)
    return int(found[19]) if found else 0


def _stat(pid: int) -> list[str]:
    """The fields from the third on; [] for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
