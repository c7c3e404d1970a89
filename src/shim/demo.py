"""Runs containers through the shim, and shows what happens: `python -m shim.demo`.

Needs root, runc and a static busybox. Leaves nothing behind; ends with 1 when anything was not
as it should be.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

from shim.client import ExitWatch, StartedShim, start_shim, steadily
from shim.errors import ShimError
from shim.model import CreateRequest, Status, Stdio
from shim.oci.busybox import make_rootfs
from shim.oci.spec import process, spec

_LIMIT_S: Final = 10.0
_WAITING: Final = "echo ready; until [ -e /go ]; do sleep 0.1; done; echo still here; exit 5"


class Unexpected(Exception):
    """Something was not as it should be."""


def expect(what: str, found: object, wanted: object) -> None:
    """Show a fact. Raises Unexpected when it is not the wanted one."""
    if found != wanted:
        raise Unexpected(f"{what}: {found!r} instead of {wanted!r}")
    print(f"  {what}: {found}")


class Output:
    """A FIFO for one process's output, read to its end."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    async def __aenter__(self) -> Self:
        os.mkfifo(self.path, 0o600)
        self._reader = asyncio.StreamReader()
        end = os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb")
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._reader), end
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()
        os.unlink(self.path)

    async def line(self) -> str:
        """The next line."""
        async with asyncio.timeout(_LIMIT_S):
            return (await self._reader.readline()).decode().strip()

    async def text(self) -> str:
        """All that is left."""
        async with asyncio.timeout(_LIMIT_S):
            return (await self._reader.read()).decode().strip()


class Container:
    """A running container of the demo and all that belongs to it."""

    def __init__(
        self, client: StartedShim, watch: ExitWatch, output: Output, root: Path, pid: int
    ) -> None:
        self.client, self.output, self.root, self.pid = client, output, root, pid
        self._watch = watch

    async def status(self, pid: int) -> int:
        """The exit status of process `pid`, when it has ended."""
        async with asyncio.timeout(_LIMIT_S):
            return await self._watch.status(pid)


@asynccontextmanager
async def running(script: str, terminal: bool = False) -> AsyncIterator[Container]:
    """A container, with a shim of its own, that runs `script`."""
    name = f"denseshim-demo-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="denseshim-demo-") as folder:
        bundle = Path(folder, "bundle")
        make_rootfs(bundle / "rootfs")
        config = spec(name, ["sh", "-c", script], terminal=terminal)
        (bundle / "config.json").write_text(json.dumps(config))
        async with (
            start_shim(bundle) as client,
            ExitWatch(client) as watch,
            Output(Path(folder, "out")) as output,
        ):
            stdio = Stdio(terminal, stdout=output.path)
            pid = await client.create(CreateRequest(name, str(bundle), stdio))
            if terminal:
                await client.pty(pid, 100, 30)
            await client.start()
            yield Container(client, watch, output, bundle / "rootfs", pid)


async def show_run() -> None:
    """A container that runs, writes and ends."""
    async with running("echo hello from $(hostname), pid $$; exit 7") as box:
        expect("output", await box.output.text(), "hello from denseshim, pid 1")
        expect("exit status", await box.status(box.pid), 7)


async def show_terminal() -> None:
    """A container with a terminal."""
    async with running("tty; stty size", terminal=True) as box:
        expect("tty", await box.output.line(), "/dev/pts/0")
        expect("its rows and columns", await box.output.line(), "30 100")
        expect("exit status", await box.status(box.pid), 0)


async def show_exec() -> None:
    """A second process in a running container."""
    async with running("echo ready; sleep 1000") as box:
        await box.output.line()
        async with Output(Path(box.output.path).with_name("exec")) as output:
            command = process(["sh", "-c", "echo also inside; ps | grep -c 'sleep 1000'; exit 3"])
            pid = await box.client.exec(command, Stdio(stdout=output.path))
            expect("output", await output.line(), "also inside")
            expect("exit status", await box.status(pid), 3)
        await box.client.delete(pid)
        expect("the container", (await box.client.state()).status, Status.RUNNING)


async def show_pause() -> None:
    """A container that is frozen and goes on."""
    async with running("sleep 1000") as box:
        await box.client.pause()
        expect("after pause", (await box.client.state()).status, Status.PAUSED)
        await box.client.resume()
        expect("after resume", (await box.client.state()).status, Status.RUNNING)


async def show_kill() -> None:
    """A container that is killed."""
    async with running("echo ready; sleep 1000") as box:
        await box.output.line()
        await box.client.kill(signal.SIGKILL)
        expect("exit status", await box.status(box.pid), 137)
        ended = await box.client.delete()
        expect("exit status by Delete", ended.status, 137)


async def show_events() -> None:
    """The events that a container's life gives."""
    async with running("sleep 1000") as box, box.client.events() as events:
        await box.client.pause()
        await box.client.resume()
        await box.client.kill(signal.SIGKILL)
        async with asyncio.timeout(_LIMIT_S):
            async for event in events:
                print(f"  {event.type.value}: pid {event.pid}, exit status {event.exit_status}")
                if event.pid == box.pid and event.exit_status:
                    break
        expect("the last one's exit status", event.exit_status, 137)


async def show_crash() -> None:
    """The shim's front is killed; the container does not notice."""
    async with running(_WAITING) as box:
        await box.output.line()
        front = _front_of(box.client.pid)
        os.kill(front, signal.SIGKILL)
        print(f"  killed the front, pid {front}")
        state = await steadily(box.client, box.client.state)
        expect("the container", state.status, Status.RUNNING)
        expect("a new front", _front_of(box.client.pid) != front, True)
        box.root.joinpath("go").touch()
        expect("output", await box.output.text(), "still here")
        expect("exit status", await box.status(box.pid), 5)


def _front_of(keeper: int) -> int:
    """The pid of the front among the children of `keeper`. Raises Unexpected if there is none."""
    for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        if b"shim.front" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return int(pid)
    raise Unexpected(f"the shim {keeper} has no front")


_SHOWS: Final = {
    "Run a container": show_run,
    "Give it a terminal": show_terminal,
    "Run a second process in it": show_exec,
    "Pause and resume it": show_pause,
    "Kill it": show_kill,
    "See its events": show_events,
    "Kill the front of its shim": show_crash,
}


async def show() -> None:
    """All of it, in order."""
    for title, part in _SHOWS.items():
        print(title)
        await part()


def main() -> None:
    """The demo as a program."""
    try:
        asyncio.run(show())
    except (Unexpected, ShimError, OSError) as error:
        sys.exit(f"demo: {type(error).__name__}: {error}")
    print("All as it should be.")


if __name__ == "__main__":
    main()
