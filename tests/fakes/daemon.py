"""The daemon of 2017, as far as a shim sees it: it launches shims and leads containers' lives."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from shim.client import ShimClient
from shim.errors import FailedPrecondition, NotFound
from shim.model import CreateRequest
from tests.integration.support import PATIENCE, Events, front_of, until

SHIM = Path(sys.executable).with_name("containerd-shim-dense")
WRAPPER = Path(__file__).with_name("wrapper")


class Launched:
    """A shim launched as the daemon of 2017 does it (contract: How the daemon launches a shim).

    The listening socket is ours and descriptor 3 there; its mounts are its own.
    """

    def __init__(self, bundle: Path, *args: str) -> None:
        self.bundle = bundle
        self.socket = bundle / "shim.sock"
        self._log = bundle / "shim.log"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen(128)
        number = self._listener.fileno()
        own_mounts = ["unshare", "--mount", "--propagation", "unchanged"]
        command = [*own_mounts, str(SHIM), "--dedicated", *args]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", f'exec 3<&{number}-; exec "$@"', "launch", *command],
                cwd=bundle, pass_fds=[number], process_group=0,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def wait_for_front(self) -> None:
        """Return when the shim is all there: keeper, spawner and front."""
        end = time.monotonic() + PATIENCE
        while not front_of(self.process.pid):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, "the front does not start"
            time.sleep(0.005)

    def log(self) -> str:
        """What the shim has written to standard error, and should not have."""
        return self._log.read_text()

    def mounts(self) -> list[str]:
        """Where something is mounted in the shim's namespace."""
        text = Path(f"/proc/{self.process.pid}/mountinfo").read_text()
        return [line.split()[4] for line in text.splitlines()]

    def descriptors(self) -> list[str]:
        """What the keeper and its front have open."""
        pids = [self.process.pid, front_of(self.process.pid)]
        return [link for pid in pids for link in _links(pid)]

    def close(self) -> None:
        """Kill the shim, if it is still there."""
        self._listener.close()
        self.process.kill()
        self.process.wait()


def _links(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(f"{pid} {os.readlink(path)}")
    return found


@contextlib.contextmanager
def launched(bundle: Path, *args: str) -> Iterator[Launched]:
    """A shim for many containers, one after the other; at the end it has none and goes."""
    bundle.mkdir(exist_ok=True)
    shim = Launched(bundle, *args)
    try:
        shim.wait_for_front()
        yield shim
        shim.process.terminate()
        assert shim.process.wait(PATIENCE) == 0, shim.log()
    finally:
        shim.close()


@dataclass
class Living:
    """A container in a shim, a client of it and its events."""

    shim: ShimClient
    events: Events
    pid: int


@contextlib.asynccontextmanager
async def living(
    socket: Path, request: CreateRequest, *, start: bool = True
) -> AsyncIterator[Living]:
    """Create the container, start it, and delete it at the end unless that has been done."""
    async with ShimClient(socket) as shim:
        events = Events(shim)
        try:
            pid = await shim.create(request)
            try:
                if start:
                    await shim.start()
                yield Living(shim, events, pid)
            finally:
                with contextlib.suppress(NotFound, FailedPrecondition):
                    await shim.delete()
        finally:
            await events.close()


class Output:
    """A client's end of an output FIFO; a context manager."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.text = b""

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def _more(self) -> bytes | None:
        """What there is; b"" at the end, None when nothing has come yet."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._file, 65536)
            self.text += data
            return data
        return None

    async def expect(self, text: bytes) -> None:
        """Wait until `text` has come."""
        await until(lambda: self._has(text), f"{text!r} comes")

    def _has(self, text: bytes) -> bool:
        self._more()
        return text in self.text

    async def to_end(self) -> bytes:
        """Everything, once its writers have closed. Call it after Create or Exec."""
        await until(lambda: self._more() == b"", "the output ends")
        return self.text
