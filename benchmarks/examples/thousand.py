"""A thousand containers, driven through shim.client: percentiles of each call.

    python -m benchmarks.examples.thousand [--containers N] [--at-once N]

As root. Shows what another benchmark needs: a root file system and bundles (shim.oci), the load
generator in it (benchmarks.load), containers that the host serves, a client for each, their exits,
and percentiles (benchmarks.statistics). Each container waits until all are there, writes its lines
to one FIFO, which is read here, and ends. Nothing is left of them; the host stays, as it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Final, TypeVar

import click

from benchmarks.load import PUMP, add_pump
from benchmarks.statistics import percentile
from shim.client import ExitWatch, ShimClient
from shim.model import CreateRequest, Stdio
from shim.oci.busybox import make_rootfs
from shim.oci.spec import spec

LINES: Final = 100
LINE: Final = 100  # bytes
_LAUNCHER: Final = Path(sys.executable).with_name("containerd-shim-dense")
_ANSWERS_S: Final = 30.0
_T = TypeVar("_T")


class Latencies:
    """How long calls have taken, by name."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = defaultdict(list)

    async def of(self, name: str, call: Awaitable[_T]) -> _T:
        """Wait for a call, and remember how long it took."""
        began = time.monotonic()
        result = await call
        self._found[name].append((time.monotonic() - began) * 1e3)
        return result

    def show(self) -> None:
        print(f"{'ms':8} {'count':>6} {'p50':>9} {'p90':>9} {'p99':>9} {'most':>9}")
        for name, values in self._found.items():
            row = " ".join(f"{percentile(values, at):9.2f}" for at in (50, 90, 99, 100))
            print(f"{name:8} {len(values):6} {row}")


class Fifo:
    """Reads what all containers write, and counts it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        os.mkfifo(path)
        # For reading and writing: it has no end while containers come and go.
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._end, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.count += len(os.read(self._end, 1 << 20))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)


@contextlib.asynccontextmanager
async def served(bundle: Path) -> AsyncIterator[ShimClient]:
    """A client of a shim that the host serves; its container is gone after the block."""
    socket = bundle / "shim.sock"
    launcher = await asyncio.create_subprocess_exec(_LAUNCHER, "--socket", socket, cwd=bundle)
    if await launcher.wait() != 0:
        raise click.ClickException("no shim was started")
    async with ShimClient(socket) as client:
        await client.ready(_ANSWERS_S)
        try:
            yield client
        finally:
            await client.exit()


def make_bundle(folder: Path, number: int, rootfs: Path, go: Path) -> tuple[str, Path]:
    """A container's id, and its bundle."""
    id = f"denseshim-thousand-{os.getpid()}-{number}"
    script = f"until [ -e /{go.name} ]; do sleep 1; done; exec {PUMP} write {LINES} {LINE}"
    config = spec(id, ["sh", "-c", script], rootfs=str(rootfs))
    bundle = folder / id
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(config))
    return id, bundle


class Thousand:
    """The containers' lives; `at_once` of them do the same at once."""

    def __init__(self, folder: Path, count: int, at_once: int) -> None:
        self._folder = folder
        self._rootfs = folder / "rootfs"
        self._go = self._rootfs / "go"
        self._all_there = asyncio.Barrier(count + 1)
        self._count = count
        self._turns = asyncio.Semaphore(at_once)
        self.latencies = Latencies()

    async def run(self) -> int:
        """From the first to the last; the number of bytes that have come."""
        make_rootfs(self._rootfs)
        add_pump(self._rootfs)
        fifo = Fifo(self._folder / "fifo")
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._count):
                    group.create_task(self._life(number, fifo.path))
                await self._all_there.wait()
                self._go.touch()
        finally:
            fifo.close()
        return fifo.count

    async def _life(self, number: int, fifo: Path) -> None:
        id, bundle = make_bundle(self._folder, number, self._rootfs, self._go)
        async with contextlib.AsyncExitStack() as stack:
            client = await self._in_turn("launch", stack.enter_async_context(served(bundle)))
            watch = await stack.enter_async_context(ExitWatch(client))
            request = CreateRequest(id, str(bundle), Stdio(stdout=str(fifo)))
            pid = await self._in_turn("create", client.create(request))
            await self._in_turn("start", client.start())
            await self._in_turn("state", client.state())
            await self._all_there.wait()
            if await watch.status(pid) != 0:
                raise click.ClickException(f"{id} has failed")
            await self._in_turn("delete", client.delete())

    async def _in_turn(self, name: str, call: Awaitable[_T]) -> _T:
        """Make a call when it is its turn: the wait for it does not count."""
        async with self._turns:
            return await self.latencies.of(name, call)


@click.command()
@click.option("--containers", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--at-once", type=click.IntRange(1), default=8, show_default=True)
def main(containers: int, at_once: int) -> None:
    """Drive containers through shim.client, and print percentiles."""
    if os.geteuid() != 0:
        raise click.ClickException("containers need root: run this with sudo")
    # Each client has a connection.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="denseshim-thousand-") as name:
        thousand = Thousand(Path(name), containers, at_once)
        count = asyncio.run(thousand.run())
    thousand.latencies.show()
    wanted = containers * LINES * LINE
    print(f"{count} of {wanted} bytes of output")
    sys.exit(0 if count == wanted else 1)


if __name__ == "__main__":
    main()
