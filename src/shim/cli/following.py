"""What `attach` does: a log that is followed, a FIFO that is written, a terminal that is set."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import click

from shim.cli import terminal
from shim.cli.relay import KeyRelay
from shim.client import ExitWatch, TaskClient, steadily
from shim.client.task import TaskFacts
from shim.errors import FailedPrecondition, NotFound
from shim.logs import STDERR, LogReader, LogWatch, Record

# How long to wait for more of a log until it is asked whether there will be any.
_LOOK_S: Final = 0.1
_LEAVING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Following:
    """Follows one container from when it is entered; `run` may be called once."""

    def __init__(self, task: TaskClient, facts: TaskFacts) -> None:
        self._task, self._facts = task, facts
        self._loop = asyncio.get_running_loop()
        self._left = asyncio.Event()
        self._resized = asyncio.Event()

    async def run(self) -> int:
        """The container's exit status, or 0 when we have left it. Raises ShimError, OSError."""
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            directory, name = _log_of(self._facts.stdio.stdout)
            stack.callback(os.close, directory)
            reader = stack.enter_context(LogReader(directory, name, tail=0))
            watch = stack.enter_context(LogWatch(directory))
            list(reader.read())  # what was written before is for `logs`
            self._relay_input(stack)
            async with ExitWatch(self._task) as exits:
                return await self._until_end(exits, reader, watch)

    async def _until_end(self, exits: ExitWatch, reader: LogReader, watch: LogWatch) -> int:
        """Show what comes until the container has ended, or we leave."""
        ended = asyncio.create_task(exits.status(self._facts.pid))
        left = asyncio.create_task(self._left.wait())
        work: list[asyncio.Task[None]] = [
            asyncio.create_task(self._show(reader, watch)),
            asyncio.create_task(self._follow_size()),
        ]
        everything: list[asyncio.Task[Any]] = [ended, left, *work]
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            for failed in (task for task in work if task.done()):
                failed.result()
            if not ended.done():
                return 0
        finally:
            for task in everything:
                task.cancel()
            await asyncio.wait(everything)
        await self._show_rest(reader, watch)
        return ended.result()

    async def _show(self, reader: LogReader, watch: LogWatch) -> None:
        while True:
            _write(reader.read())
            await watch.grown()

    async def _show_rest(self, reader: LogReader, watch: LogWatch) -> None:
        """What the container had written before it ended."""
        while await self._is_written():
            _write(reader.read())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await watch.grown()
        _write(reader.read())
        _write(reader.rest())

    async def _is_written(self) -> bool:
        try:
            return (await steadily(self._task, self._task.facts)).output_open
        except NotFound:
            return False  # it was removed meanwhile

    # -- the terminal, keys and signals

    async def _follow_size(self) -> None:
        """Keep the container's terminal as large as ours."""
        while self._facts.stdio.terminal:
            size = terminal.size()
            if size is not None:
                with contextlib.suppress(NotFound, FailedPrecondition):
                    await self._set_size(*size)
            await self._resized.wait()
            self._resized.clear()
        await self._left.wait()

    async def _set_size(self, width: int, height: int) -> None:
        await steadily(self._task, lambda: self._task.pty(self._facts.pid, width, height))

    def _relay_input(self, stack: ExitStack) -> None:
        path = self._facts.stdio.stdin
        if not path:
            return
        fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if self._facts.stdio.terminal:
            stack.enter_context(terminal.raw(0))
        keys = KeyRelay(0, fifo, self._in_loop(self._left.set), self._facts.stdio.terminal)
        stack.callback(keys.close)
        stack.callback(keys.stop)
        keys.start()

    def _in_loop(self, function: Callable[[], object]) -> Callable[[], None]:
        """A form of `function` for the relay's thread."""

        def call() -> None:
            self._loop.call_soon_threadsafe(function)

        return call

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        for number in _LEAVING:
            self._loop.add_signal_handler(number, self._left.set)
        self._loop.add_signal_handler(signal.SIGWINCH, self._resized.set)
        try:
            yield
        finally:
            for number in (*_LEAVING, signal.SIGWINCH):
                self._loop.remove_signal_handler(number)


def follow(task: TaskClient, facts: TaskFacts) -> Coroutine[Any, Any, int]:
    """Follow the container until its end, or until we leave; the status to end with."""
    return Following(task, facts).run()


def _log_of(place: str) -> tuple[int, str]:
    """The directory, open, and the name of the log log://PATH. Raises OSError."""
    directory, _, name = unquote(urlsplit(place).path).rpartition("/")
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), name


def _write(records: Iterator[Record]) -> None:
    for record in records:
        end = b"\n" if record.whole else b""
        click.echo(record.text + end, nl=False, err=record.stream == STDERR)
