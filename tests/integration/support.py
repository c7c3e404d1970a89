"""Containers of busybox on a real shim and a real runtime."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from shim.client import ShimClient, StartedShim, start_shim
from shim.errors import Unavailable
from shim.model import CreateRequest, Event, EventType, Exit, Mount, RuntimeOptions, Stdio
from shim.oci.spec import process, spec

PATIENCE = 30.0
_numbers = itertools.count()


@dataclass
class Bundle:
    """A bundle with FIFOs for stdio; `command` runs in it."""

    path: Path
    id: str = field(default_factory=lambda: f"denseshim-test-{os.getpid()}-{next(_numbers)}")

    @classmethod
    def make(
        cls, path: Path, rootfs: Path, command: Sequence[str], terminal: bool = False
    ) -> Bundle:
        """A bundle at `path` whose root is the shared `rootfs`."""
        bundle = cls(path)
        path.mkdir()
        (path / "rootfs").mkdir()
        config = spec(bundle.id, command, rootfs=str(rootfs), terminal=terminal)
        (path / "config.json").write_text(json.dumps(config))
        return bundle

    def bind(self, source: Path, target: str) -> None:
        """Show the directory `source` at `target` in the container."""
        path = self.path / "config.json"
        config = json.loads(path.read_text())
        mount = {"destination": target, "type": "bind", "source": str(source)}
        config["mounts"].append({**mount, "options": ["rbind", "rw"]})
        path.write_text(json.dumps(config))

    def stdio(self, name: str, *streams: str, terminal: bool = False) -> Stdio:
        """FIFOs for an exec, called NAME-STREAM in the bundle."""
        paths = {stream: self.fifo(f"{name}-{stream}") for stream in streams}
        return Stdio(terminal, **paths)

    def fifo(self, name: str) -> str:
        """A FIFO of that name in the bundle, made when it is not there."""
        path = self.path / name
        if not path.exists():
            os.mkfifo(path)
        return str(path)

    def request(
        self,
        *,
        stdin: bool = False,
        stdout: bool = False,
        stderr: bool = False,
        terminal: bool = False,
        runtime: str = "",
        no_pivot: bool = False,
        rootfs: Sequence[Mount] = (),
        **others: Any,
    ) -> CreateRequest:
        """What to call Create with; the wanted streams get FIFOs."""
        stdio = Stdio(
            terminal,
            self.fifo("stdin") if stdin else "",
            self.fifo("stdout") if stdout else "",
            self.fifo("stderr") if stderr else "",
        )
        return CreateRequest(
            self.id,
            str(self.path),
            stdio,
            RuntimeOptions(runtime=runtime, no_pivot=no_pivot),
            rootfs=tuple(rootfs),
            **others,
        )


class Events:
    """Collects the events of a shim, across the deaths of its front."""

    def __init__(self, client: ShimClient) -> None:
        self.seen: list[Event] = []
        self._client = client
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        while True:
            try:
                async with self._client.events() as stream:
                    async for event in stream:
                        async with self._changed:
                            self.seen.append(event)
                            self._changed.notify_all()
            except Unavailable:
                await asyncio.sleep(0.01)

    async def wait_for(self, type: EventType, pid: int | None = None) -> Event:
        """The first event of that type (and pid), seen or to come."""
        async with asyncio.timeout(PATIENCE), self._changed:
            while True:
                for event in self.seen:
                    if event.type is type and pid in (None, event.pid):
                        return event
                await self._changed.wait()

    async def exit(self, pid: int) -> Exit:
        """How the process ended, once it has."""
        event = await self.wait_for(EventType.EXIT, pid)
        return Exit(event.exit_status, event.exited_at)

    def of(self, pid: int) -> list[EventType]:
        """The types of this process's events so far, in order."""
        return [event.type for event in self.seen if event.pid == pid]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(
    bundle: Bundle, *, debug: bool = False
) -> AsyncIterator[tuple[StartedShim, Events]]:
    """A shim on the bundle and its events; the container and the shim are gone afterwards.

    With `debug` it logs to this process's stderr.
    """
    async with start_shim(bundle.path, debug=debug) as shim:
        events = Events(shim)
        try:
            yield shim, events
        finally:
            await events.close()


async def until(condition: Callable[[], Any], what: str, limit: float = PATIENCE) -> Any:
    """The first true value of a condition that nothing announces."""
    async with asyncio.timeout(limit):
        while not (value := condition()):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)
        return value


def children_of(pid: int) -> list[int]:
    """The processes whose parent is the main thread of `pid`."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def front_of(keeper: int) -> int:
    """The pid of the keeper's present front; 0 when none runs."""
    for pid in children_of(keeper):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"shim.front" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return 0


def exec_spec(*args: str, **options: Any) -> dict[str, Any]:
    """An OCI process for Exec."""
    return process(args, **options)


class FifoEnd:
    """A client's end of a FIFO, non-blocking, closed by `with`."""

    FLAGS = os.O_RDONLY

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, self.FLAGS | os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Reader(FifoEnd):
    """Reads a stream; may be opened before anybody writes."""

    async def read(self, most: int = 1 << 20) -> bytes:
        """What comes next; b"" at the end. Asks poll(2) first: no writer yet is no end."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.descriptor, ready.set)
        try:
            async with asyncio.timeout(PATIENCE):
                await ready.wait()
        finally:
            loop.remove_reader(self.descriptor)
        return os.read(self.descriptor, most)

    async def until(self, text: bytes) -> bytes:
        """Everything up to the first `text`, byte for byte."""
        found = b""
        while not found.endswith(text):
            byte = await self.read(1)
            assert byte, f"the end came before {text!r}: {found[-200:]!r}"
            found += byte
        return found

    async def rest(self) -> bytes:
        """Everything up to the end."""
        found = bytearray()
        while data := await self.read():
            found += data
        return bytes(found)

    async def digest(self) -> tuple[int, str]:
        """The length and the hash of everything up to the end."""
        size, hash = 0, hashlib.sha256()
        while data := await self.read():
            size += len(data)
            hash.update(data)
        return size, hash.hexdigest()


class Writer(FifoEnd):
    """Writes to a stream that the shim has open."""

    FLAGS = os.O_WRONLY

    async def write(self, data: bytes | memoryview) -> None:
        """All of `data`."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        view = memoryview(data)
        loop.add_writer(self.descriptor, ready.set)
        try:
            while view:
                async with asyncio.timeout(PATIENCE):
                    await ready.wait()
                ready.clear()
                view = view[self._write(view) :]
        finally:
            loop.remove_writer(self.descriptor)

    def _write(self, view: memoryview) -> int:
        try:
            return os.write(self.descriptor, view)
        except BlockingIOError:
            return 0


class Gate:
    """A runtime that is runc, but stops once: before its command `command`, or after it.

    then: what is done in the place of going on, if that is not to happen.
    """

    def __init__(
        self, folder: Path, command: str, moment: str = "before", then: str = ""
    ) -> None:
        self.path = folder / "runtime"
        self._armed, self._reached, self._opened = (
            folder / f"runtime.{name}" for name in ("armed", "reached", "opened")
        )
        self._armed.touch()
        stop = (
            f"rm {self._armed}; : > {self._reached}; "
            f"until [ -e {self._opened} ]; do sleep 0.01; done; {then or ':'}"
        )
        before, after = (stop, "") if moment == "before" else ("", stop)
        self.path.write_text(
            '#!/bin/sh\ncommand=$5\n[ "$1" != --root ] || command=$7\n'
            f'if [ "$command" = {command} ] && [ -e {self._armed} ]; then\n{before}\n'
            f'runc "$@"\nstatus=$?\n{after}\nexit $status\nfi\nexec runc "$@"\n'
        )
        self.path.chmod(0o755)

    async def reached(self) -> None:
        """Return when the command has stopped."""
        await until(self._reached.exists, "the runtime's command")

    def open(self) -> None:
        """Let it go on."""
        self._opened.touch()


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def kill_front(keeper: int) -> None:
    """SIGKILL the keeper's front, and return when it has ended."""
    front = front_of(keeper)
    assert front, "there is no front to kill"
    os.kill(front, signal.SIGKILL)
    await until(lambda: not is_alive(front), "the front's end")
