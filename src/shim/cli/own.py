"""A container with a shim of its own: what `run` does without an image."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from pathlib import Path

from shim.cli.bundle import made_bundle, users_bundle
from shim.cli.session import Job, Session, interruptible
from shim.cli.wish import Wish
from shim.client import ShimClient, once, start_shim, steadily
from shim.client.steady import RECONNECT_S
from shim.errors import Unavailable
from shim.model import CreateRequest, RuntimeOptions, Status, Stdio


def run_with_own_shim(wish: Wish, bundle: Path | None, rootfs: Path | None) -> int:
    """Run it in `bundle`, else in `rootfs`, else in a busybox root; its exit status."""
    place = (
        users_bundle(bundle, wish.command, wish.terminal)
        if bundle
        else made_bundle(wish.id, wish.command, rootfs, wish.terminal, keep=not wish.remove)
    )
    return asyncio.run(interruptible(lambda session: _run(session, place, wish)))


async def _run(session: Session, place: AbstractContextManager[Path], wish: Wish) -> int:
    with place as bundle:
        async with start_shim(bundle) as client:
            job = Job(
                wish.terminal,
                wish.interactive,
                lambda stdio: _create(client, bundle, wish, stdio),
                lambda: _start(client),
            )
            return await session.run(client, job)


async def _create(client: ShimClient, bundle: Path, wish: Wish, stdio: Stdio) -> int:
    """Create, also when the front dies under it: its successor knows what became of it."""
    request = CreateRequest(wish.id, str(bundle), stdio, RuntimeOptions(wish.runtime))
    return await once(client, lambda: client.create(request), lambda: _pid(client))


async def _pid(client: ShimClient) -> int:
    return (await client.state()).pid


async def _start(client: ShimClient) -> None:
    """Start, also when the front dies under it."""
    try:
        await client.start()
        return
    except Unavailable:
        await client.ready(RECONNECT_S)
    state = await steadily(client, client.state)
    if state.status is Status.CREATED:
        await client.start()
