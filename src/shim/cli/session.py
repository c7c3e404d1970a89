"""One process, attached to our own stdio and signals until it has ended."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from shim.cli import terminal
from shim.cli.attach import Attachment
from shim.client import ExitWatch, steadily
from shim.client.exits import Watched
from shim.errors import FailedPrecondition, NotFound
from shim.model import Stdio

FORWARDED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_GONE: Final = (errno.EPIPE, errno.EIO)

_Work = Callable[[], Coroutine[Any, Any, None]]


class Container(Watched, Protocol):
    """The client of a process's container: a shim of 2017, or a host's task."""

    async def kill(self, signal: int, *, pid: int = 0) -> None:
        """Send `signal` to process `pid`."""

    async def pty(self, pid: int, width: int, height: int) -> None:
        """Set the size of the terminal of process `pid`."""

    async def close_stdin(self, pid: int) -> None:
        """End the hold on the stdin of process `pid`."""


@dataclass(frozen=True)
class Job:
    """What a session runs: `begin` makes the process and gives its pid, `start` lets it run."""

    terminal: bool
    interactive: bool
    begin: Callable[[Stdio], Awaitable[int]]
    start: Callable[[], Awaitable[None]]


async def already() -> None:
    """The start of what runs from its beginning."""


class Session:
    """Catches signals from when it is entered; `run` may be called once.

    While the process runs a signal is sent on to it; before, as soon as it runs. A second one
    before that, and one before `run`, cancels the task that entered. A signal after the
    process's end cuts the wait for the rest of its output.
    """

    def __init__(self) -> None:
        self.interrupted = 0
        self._pid = 0
        self._early: list[_Work] = []
        self._early_signal = False
        self._running = False
        self._ended = False
        self._lost: OSError | None = None
        self._attachment: Attachment | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for number in FORWARDED:
            self._loop.add_signal_handler(number, self._on_signal, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in FORWARDED:
            self._loop.remove_signal_handler(number)

    async def run(self, client: Container, job: Job) -> int:
        """Run `job` in the container of `client`: the exit status of its process.

        When our stdout or stderr is closed by its reader the process is killed, and the status
        is that of SIGPIPE. Raises OSError when they fail otherwise, and the shim's errors.
        """
        try:
            async with asyncio.TaskGroup() as self._background, ExitWatch(client) as watch:
                self._client = client
                status = await self._attached(watch, job)
        except BaseExceptionGroup as group:
            # The first is what went wrong; the group cancelled the others for it.
            raise group.exceptions[0] from None
        return status if self._lost is None else _status_of_loss(self._lost)

    async def _attached(self, watch: ExitWatch, job: Job) -> int:
        attachment = Attachment(job.terminal, job.interactive, self._on_lost)
        with ExitStack() as stack:
            self._attachment = stack.enter_context(attachment)
            if job.terminal and job.interactive:
                stack.enter_context(terminal.raw(0))
            self._pid = await job.begin(attachment.stdio)
            attachment.open_stdin(lambda: self._spawn(self._close_stdin))
            if job.terminal:
                stack.callback(self._loop.remove_signal_handler, signal.SIGWINCH)
                self._loop.add_signal_handler(signal.SIGWINCH, self._spawn, self._resize)
                await self._resize()
            await job.start()
            self._catch_up()
            status = await watch.status(self._pid)
            self._ended = True
            await attachment.finish()
            return status

    def _spawn(self, work: _Work) -> None:
        """Do `work` beside the wait for the exit, as soon as the process runs, while it does."""
        if not self._running:
            self._early.append(work)
        elif not self._ended:
            self._background.create_task(work())

    def _catch_up(self) -> None:
        """The process runs: do what came before."""
        self._running = True
        for work in self._early:
            self._spawn(work)

    def _on_signal(self, number: int) -> None:
        if self._ended and self._attachment is not None:
            self._attachment.cut()
        elif self._running or (self._attachment is not None and not self._early_signal):
            self._early_signal = True
            self._spawn(lambda: self._kill(number))
        elif self._task is not None:
            self.interrupted = number
            self._task.cancel()

    def _on_lost(self, error: OSError) -> None:
        self._lost = error
        self._spawn(lambda: self._kill(signal.SIGKILL))

    async def _close_stdin(self) -> None:
        await self._if_alive(lambda: self._client.close_stdin(self._pid))

    async def _kill(self, number: int) -> None:
        await self._if_alive(lambda: self._client.kill(number, pid=self._pid))

    async def _resize(self) -> None:
        size = terminal.size()
        if size is not None:
            await self._if_alive(lambda: self._client.pty(self._pid, *size))

    async def _if_alive(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await steadily(self._client, call)
        except (NotFound, FailedPrecondition):
            return  # the process has ended meanwhile, which the watch will tell


async def interruptible(work: Callable[[Session], Awaitable[int]]) -> int:
    """What `work` gives with a session; 128+n when signal n came before its process was there."""
    with Session() as session:
        try:
            return await work(session)
        except asyncio.CancelledError:
            if session.interrupted:
                return 128 + session.interrupted
            raise


def _status_of_loss(error: OSError) -> int:
    if error.errno in _GONE:
        return 128 + signal.SIGPIPE
    raise error
