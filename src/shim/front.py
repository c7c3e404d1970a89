"""The front: answers calls, and may die at any time; the keeper starts it again.

Run by the keeper as `python -I -m shim.front`, with the channel on descriptor 3.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from shim.api.server import make_server
from shim.blocking import BlockingPool
from shim.keeper.client import KeeperClient
from shim.keeper.start import CHANNEL
from shim.service.host import Host
from shim.service.record import ContainerRecord
from shim.service.recovery import recover, remove_orphan
from shim.service.shim import Shim

# Seconds for calls under way when the shim ends: the answer to Exit among them.
GRACE = 1.0
# Seconds for the socket's file, which may be anywhere.
REMOVE_LIMIT = 5.0

_log = logging.getLogger(__name__)


async def serve(state: Path, own_socket: Path | None) -> None:
    """Take over what is there, and serve it until Exit.

    state: the directory of the container's record; own_socket: the listening socket's file when
    it is the shim's to remove.
    """
    keeper = KeeperClient(socket.socket(fileno=CHANNEL), _keeper_lost)
    held = await keeper.begin()
    host = Host(keeper, BlockingPool(), dict(os.environ))
    record = ContainerRecord(state)
    shim = Shim(host, record, await recover(host, record, held), remove_orphan(host, record))
    server = make_server(shim)
    await _listen(server, keeper, state, list(held.listeners))
    keeper.ready()
    await _until_the_end(shim, keeper)
    await server.stop(GRACE)
    if own_socket is not None:
        remove = partial(own_socket.unlink, missing_ok=True)
        await host.pool.run(f"remove {own_socket}", REMOVE_LIMIT, remove)
    record.destroy()
    keeper.stop()
    await asyncio.Event().wait()  # the keeper's end is ours


async def _listen(
    server: grpc.aio.Server, keeper: KeeperClient, state: Path, listeners: list[int]
) -> None:
    """Bind a socket that only the keeper finds: once it holds it, the file goes."""
    path = state / "front.sock"
    path.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    front = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        path.unlink()
        for listener in listeners:
            await keeper.serve(listener, front)
    finally:
        os.close(front)


async def _until_the_end(shim: Shim, keeper: KeeperClient) -> None:
    """Exit was called; or the keeper was asked to end, and there is no container."""
    waits: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(shim.ended.wait()),
        asyncio.ensure_future(_may_end(shim, keeper)),
    ]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _may_end(shim: Shim, keeper: KeeperClient) -> None:
    while True:
        await keeper.asked_to_end.wait()
        keeper.asked_to_end.clear()
        await shim.orphan_gone()
        if shim.empty:
            return
        _log.warning("asked to end, but there is a container: staying with it")


def _keeper_lost() -> None:
    """Nothing can be served without the keeper; the next shim on this bundle cleans up."""
    os._exit(1)


def main() -> None:
    """Parse what the launcher has put together, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--own-socket", type=Path)
    parser.add_argument("--debug", action="store_true")
    arguments = parser.parse_args()
    logging.raiseExceptions = False  # whoever reads stderr may be gone
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if arguments.debug else logging.WARNING,
        format="containerd-shim-dense[%(process)d]: %(levelname)s: %(name)s: %(message)s",
    )
    asyncio.run(serve(arguments.state, arguments.own_socket))


if __name__ == "__main__":
    main()
