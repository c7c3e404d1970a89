"""Starts a shim of one's own, and leaves nothing of it behind."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

from shim.client.calls import ShimClient
from shim.client.exits import ExitWatch
from shim.client.steady import steadily
from shim.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from shim.model import ContainerState, Status

PROGRAM: Final = "containerd-shim-dense"

_START_S: Final = 10.0
_EXIT_S: Final = 5.0
_POLL_S: Final = 0.005


class StartedShim(ShimClient):
    """A client of a shim that this program started; `pid` is the shim's."""

    def __init__(self, socket: Path, pid: int) -> None:
        super().__init__(socket)
        self.pid = pid


@asynccontextmanager
async def start_shim(
    bundle: Path,
    *,
    debug: bool = False,
    socket: Path | None = None,
    executable: Path | None = None,
) -> AsyncIterator[StartedShim]:
    """Start a shim on `bundle`, and give a client of it as soon as it answers.

    The socket is `socket`, else one in a private directory. `executable` is found beside the
    running Python, else on PATH. With `debug` the shim logs more, to this program's stderr.
    At the end the container is killed and deleted, and the shim is gone.
    Raises Unavailable, with what the shim wrote to stderr, when it ends early or does not
    answer within 10 s; FailedPrecondition when there is no such program.
    """
    program = executable or _find()
    with (
        tempfile.TemporaryDirectory(prefix="denseshim-") as folder,
        tempfile.TemporaryFile() as log,
    ):
        path = (socket or Path(folder, "shim.sock")).absolute()
        process = await _spawn(program, bundle, path, debug, log)
        try:
            async with StartedShim(path, process.pid) as client:
                await _answers(client, process, log)
                try:
                    yield client
                finally:
                    await _retire(client, process)
        finally:
            await _end(process)
            path.unlink(missing_ok=True)


def _find() -> Path:
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if beside.exists() else shutil.which(PROGRAM)
    if found is None:
        raise FailedPrecondition(f"no {PROGRAM} beside {sys.executable} nor on PATH: install it")
    return Path(found)


async def _spawn(
    program: Path, bundle: Path, socket: Path, debug: bool, log: IO[bytes]
) -> asyncio.subprocess.Process:
    # Its own process group: signals of our terminal are not for the shim.
    return await asyncio.create_subprocess_exec(
        program,
        *(["--debug"] if debug else []),
        "--socket",
        socket,
        cwd=bundle,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=None if debug else log,
        process_group=0,
    )


async def _answers(
    client: StartedShim, process: asyncio.subprocess.Process, log: IO[bytes]
) -> None:
    """Wait until the shim answers; Unavailable with its stderr if it ends or takes too long."""
    ready = asyncio.create_task(_ready(client))
    ended = asyncio.create_task(process.wait())
    try:
        await asyncio.wait([ready, ended], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise Unavailable(f"the shim ended at once, status {ended.result()}: {_text(log)}")
        ready.result()
    except TimeoutError:
        raise Unavailable(
            f"the shim does not answer on {client.socket} in {_START_S:g} s: {_text(log)}"
        ) from None
    finally:
        ready.cancel()
        ended.cancel()


async def _ready(client: StartedShim) -> None:
    async with asyncio.timeout(_START_S):
        # Dialling before the socket is there would only begin with a back-off.
        while not client.socket.exists():  # noqa: ASYNC110 - it is another process's doing
            await asyncio.sleep(_POLL_S)
        await client.ready(_START_S)


def _text(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip() or "it wrote nothing to stderr"


async def _retire(client: StartedShim, process: asyncio.subprocess.Process) -> None:
    """Delete the container, then ask the shim to go."""
    if process.returncode is not None:
        return
    try:
        await _remove(client)
    finally:
        await _exit(client)


async def _exit(client: ShimClient) -> None:
    try:
        await client.exit(timeout=_EXIT_S)
    except (Unavailable, DeadlineExceeded):
        return  # it went before its answer did, or _end() makes it go


async def _remove(client: ShimClient) -> None:
    """Kill and delete the container, if there is one."""
    try:
        state = await steadily(client, client.state)
        if state.status is not Status.STOPPED:
            await _kill(client, state)
        await steadily(client, client.delete)
    except (FailedPrecondition, NotFound):
        return  # no container, or it has been deleted meanwhile


async def _kill(client: ShimClient, state: ContainerState) -> None:
    async with ExitWatch(client) as watch:
        await steadily(client, lambda: client.kill(signal.SIGKILL, all=True))
        if state.status is Status.PAUSED:
            await steadily(client, client.resume)  # the frozen do not even die
        await watch.status(state.pid)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Wait for the shim to go, and make it after 5 s."""
    try:
        await asyncio.wait_for(process.wait(), _EXIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
