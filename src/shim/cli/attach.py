"""FIFOs for one process, relayed to and from this program's own stdio."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ParamSpec, Self

from shim.cli.relay import InputRelay, OutputRelay, Relay
from shim.model import Stdio

P = ParamSpec("P")


class Attachment:
    """A private directory with the FIFOs of `stdio`, made when entered and removed when left.

    Outputs are relayed from the beginning; stdin, when `interactive`, from `open_stdin` on.
    `lost` is called with the reason when our own stdout or stderr takes no more.
    """

    def __init__(
        self, terminal: bool, interactive: bool, lost: Callable[[OSError], None]
    ) -> None:
        self._terminal, self._interactive = terminal, interactive
        self._lost = lost
        self._outputs: list[Relay] = []
        self._ends: list[asyncio.Future[None]] = []
        self._input: Relay | None = None
        self.stdio = Stdio(terminal)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="denseshim-"))
            self.stdio = self._make_fifos(Path(folder))
            self._relay_output(self.stdio.stdout, 1)
            if self.stdio.stderr:
                self._relay_output(self.stdio.stderr, 2)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        for relay in self._relays():
            relay.close()
        self._stack.close()

    def open_stdin(self, ended: Callable[[], None]) -> None:
        """Begin to relay our stdin, once the shim has the FIFO open; `ended` tells of its end."""
        if not self._interactive:
            return
        try:
            fifo = os.open(self.stdio.stdin, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # no reader: the process has ended already
            raise
        self._input = InputRelay(0, fifo, self._in_loop(ended))
        self._input.start()

    async def finish(self) -> None:
        """The process has ended: wait for the rest of its output."""
        for relay in self._outputs:
            relay.finish()
        await asyncio.wait(self._ends)

    def cut(self) -> None:
        """End all relays now; output that is not yet written is lost."""
        for relay in self._relays():
            relay.stop()

    def _relays(self) -> list[Relay]:
        return [*self._outputs, *([self._input] if self._input else [])]

    def _make_fifos(self, folder: Path) -> Stdio:
        names = [name for name, wanted in self._streams() if wanted]
        for name in names:
            os.mkfifo(folder / name, 0o600)
        return Stdio(self._terminal, **{name: str(folder / name) for name in names})

    def _streams(self) -> Iterator[tuple[str, bool]]:
        yield "stdin", self._interactive
        yield "stdout", True
        yield "stderr", not self._terminal

    def _relay_output(self, path: str, target: int) -> None:
        # Without O_NONBLOCK the open would wait for the shim's end. poll(2) tells no end of file
        # before the first writer has come.
        fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        end = self._loop.create_future()
        ended = self._in_loop(functools.partial(end.set_result, None))
        relay = OutputRelay(fifo, target, ended, self._in_loop(self._lost))
        self._ends.append(end)
        self._outputs.append(relay)
        relay.start()

    def _in_loop(self, function: Callable[P, object]) -> Callable[P, None]:
        """A form of `function` for the relays' threads."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            self._loop.call_soon_threadsafe(functools.partial(function, *args, **kwargs))

        return call
