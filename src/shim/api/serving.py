"""What all gRPC servers of a front share.

gRPC is loaded with this module, 9 MB of it. containerd's callers of today speak ttrpc: who needs
a server imports this, and what is built on it, when it makes one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import grpc

from shim.api.calls import note_failure
from shim.api.codes import code_of
from shim.errors import ShimError
from shim.service.host import Host

# Seconds for calls under way when it ends: the answer to Exit among them.
_GRACE: Final = 1.0

# A daemon may ping an idle connection as often as it likes: it would lose its Events.
_OPTIONS: Final = [("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0)]
_STATUSES: Final = {status.value[0]: status for status in grpc.StatusCode}

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Response = TypeVar("Response")


class Server:
    """A gRPC server, behind one of the keeper's listeners. `services` is to be filled first."""

    def __init__(self) -> None:
        self.services = grpc.aio.server(options=_OPTIONS)

    async def serve(self, host: Host, directory: Path, listener: int) -> None:
        """Answer the listener's callers, on a socket in `directory` that only the keeper finds.

        Once the keeper holds it, its file goes.
        """
        path = directory / "front.sock"
        path.unlink(missing_ok=True)
        self.services.add_insecure_port(f"unix:{path}")
        await self.services.start()
        front = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            path.unlink()
            await host.keeper.serve(listener, front)
        finally:
            os.close(front)

    async def stop(self) -> None:
        """Take no more calls, and answer those under way."""
        await self.services.stop(_GRACE)


async def refuse(context: Context, error: ShimError) -> NoReturn:
    """End a call with the error's status."""
    await context.abort(_STATUSES[code_of(error)], str(error))
    raise AssertionError("abort raises")


def answers(
    method: Callable[[Any, Request], Awaitable[Response]],
) -> Callable[[Any, Request, Context], Awaitable[Response]]:
    """Serve a call in a task of its own: a caller that hangs up does not cut it in half."""

    async def serve(self: Any, request: Request, context: Context) -> Response:
        task = asyncio.ensure_future(method(self, request))
        task.add_done_callback(note_failure)
        try:
            return await asyncio.shield(task)
        except ShimError as error:
            await refuse(context, error)

    return serve
