"""Delete: the container's processes, its output and all that it holds, in this order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import DeadlineExceeded, NotFound, ShimError
from shim.keeper.client import Child
from shim.model import Event, EventType, Exit, Status
from shim.mounts import unmount_all
from shim.service.host import FILE_LIMIT

if TYPE_CHECKING:
    from shim.service.container import Container

# Seconds for the kernel to end killed processes.
KILL_LIMIT = 10.0

_log = logging.getLogger(__name__)


async def delete(container: Container, answer: Callable[[Exit], None]) -> Exit:
    """See `Container.delete`."""
    async with _last_turn(container):
        facts = container.facts
        if container.deleted:
            raise NotFound(f"container {facts.id} has been deleted")
        facts.deleting = True
        container.save()
        await _end_processes(container)
        await _drain(container)
        runtime = container.runtime.using(container.home.commands.spawn)
        with contextlib.suppress(NotFound):
            await runtime.delete(facts.id)
        await _unmount(container)
        return _forget(container, answer)


def _forget(container: Container, answer: Callable[[Exit], None]) -> Exit:
    """Without a pause: a front that dies before the end finds the record and deletes again."""
    facts, init = container.facts, container.init
    assert init.exit is not None
    ended = init.exit
    event = Event(facts.id, EventType.DELETE, init.pid, ended.status, ended.time)
    container.home.teller.tell(event, init.child_id)
    container.runtime.pid_file.unlink(missing_ok=True)
    container.home.host.oom.unwatch(container)
    container.home.host.gauges.drop(container)
    container.deleted = True
    answer(ended)
    container.home.record.clear(deleted="" if facts.namespace else facts.id)
    for process in (*container.execs.all(), init):
        process.end()
        if process.child is not None:
            process.child.forget()
    return ended


async def kill_child(child: Child) -> None:
    """SIGKILL, unless it has ended."""
    with contextlib.suppress(NotFound):
        await child.signal(signal.SIGKILL)


@contextlib.asynccontextmanager
async def _last_turn(container: Container) -> AsyncIterator[None]:
    """The container's turn; each runtime command that keeps it is killed after KILL_LIMIT."""
    turn = asyncio.ensure_future(container.turn.acquire())
    await asyncio.wait((turn,), timeout=KILL_LIMIT)
    while not turn.done():
        _log.warning("container %s: killing a command that hangs", container.facts.id)
        await container.home.commands.kill()
        await asyncio.wait((turn,), timeout=KILL_LIMIT)
    try:
        yield
    finally:
        container.turn.release()


async def _drain(container: Container) -> None:
    """All at once: each takes its time where nobody reads."""
    drains = [
        process.stdio.drain(f"process {process.pid} of container {container.facts.id}")
        for process in (*container.execs.all(), container.init)
    ]
    await asyncio.gather(*drains)


async def _unmount(container: Container) -> None:
    rootfs = Path(container.facts.bundle) / "rootfs"
    unmount = partial(unmount_all, rootfs, container.facts.mounts)
    await container.home.host.pool.run(f"unmount {rootfs}", FILE_LIMIT, unmount)


async def _end_processes(container: Container) -> None:
    """SIGKILL until the kernel has none left."""
    if container.init.alive and container.init.child is not None:
        await kill_child(container.init.child)
    if container.facts.status is Status.PAUSED:
        with contextlib.suppress(ShimError):  # it may have died meanwhile; the wait tells
            runtime = container.runtime.using(container.home.commands.spawn)
            await runtime.resume(container.facts.id)
        container.facts.status = Status.RUNNING
    try:
        async with asyncio.timeout(KILL_LIMIT):
            await _wait_for_exits(container)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"cannot delete container {container.facts.id}: its processes do not end, though "
            f"killed {KILL_LIMIT:g} s ago; look for one that waits for a device or file system"
        ) from error


async def _wait_for_exits(container: Container) -> None:
    """The init first: once it has ended no exec can begin."""
    if container.init.child is not None:
        await container.init.child.wait()
    await container.home.commands.kill()
    await container.execs.settle()
    await container.members.end_all()
    for process in container.alive():
        if process.child is not None:
            await process.child.wait()
    container.announce_init()
    await asyncio.shield(container.init.over)
