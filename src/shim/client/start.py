"""Starts a shim of one's own, and leaves nothing of it behind."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Final

from shim.client.calls import ShimClient
from shim.client.steady import steadily
from shim.errors import DeadlineExceeded, FailedPrecondition, ShimError, Unavailable

PROGRAM: Final = "containerd-shim-dense"

_START_S: Final = 10.0
# The container is killed and its output delivered meanwhile; a front may die.
_EXIT_S: Final = 30.0
_GONE_S: Final = 5.0
_POLL_S: Final = 0.005


class StartedShim(ShimClient):
    """A client of a shim that this program started; `pid` is the shim's."""

    def __init__(self, socket: Path, pid: int) -> None:
        super().__init__(socket)
        self.pid = pid
        self.told_to_exit = False

    async def exit(self, *, timeout: float | None = None) -> None:
        """As ShimClient's."""
        await super().exit(timeout=timeout)
        self.told_to_exit = True


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
    At the end, also when cancelled, the container is killed and deleted, and the shim is gone.
    Raises Unavailable, with what the shim wrote to stderr, when it ends early or does not
    answer within 10 s; FailedPrecondition when there is no such program. Unless the inside
    raised, raises why the shim could not delete its container.
    """
    program = executable or _find()
    with (
        tempfile.TemporaryDirectory(prefix="denseshim-") as folder,
        tempfile.TemporaryFile() as log,
    ):
        path = (socket or Path(folder, "shim.sock")).absolute()
        process = await _spawn(program, bundle, path, debug, log)
        client = StartedShim(path, process.pid)
        try:
            async with client:
                await _answers(client, process, log)
                async with _retired(client, process):
                    yield client
        finally:
            try:
                await undisturbed(_end(client, process))
            finally:
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
        "--dedicated",
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


@asynccontextmanager
async def _retired(client: StartedShim, process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """At the end the container is deleted and the shim about to go.

    What ended the inside goes before what goes wrong here, which becomes a note of it.
    """
    try:
        yield
    except BaseException as error:
        try:
            await undisturbed(_retire(client, process))
        except (ShimError, asyncio.CancelledError) as failure:
            error.add_note(f"while the shim was ended: {failure!r}")
        raise
    await undisturbed(_retire(client, process))


async def undisturbed(work: Coroutine[Any, Any, None]) -> None:
    """Do `work` to its end, also when we are cancelled meanwhile: that is raised afterwards."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


async def _retire(client: StartedShim, process: asyncio.subprocess.Process) -> None:
    """Have the shim delete its container, and go.

    Raises DeadlineExceeded when that takes more than 30 s, and what Exit does.
    """
    exiting = asyncio.create_task(steadily(client, client.exit))
    ended = asyncio.create_task(process.wait())
    try:
        done, _ = await asyncio.wait(
            [exiting, ended], timeout=_EXIT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            raise DeadlineExceeded(f"the shim on {client.socket} does not end in {_EXIT_S:g} s")
        if not ended.done():
            exiting.result()
    finally:
        exiting.cancel()
        ended.cancel()
        await asyncio.gather(exiting, ended, return_exceptions=True)


async def _end(client: StartedShim, process: asyncio.subprocess.Process) -> None:
    """Wait for the shim to go; ask it by SIGTERM if nobody has, and kill it after 5 s."""
    if not client.told_to_exit and process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _GONE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
