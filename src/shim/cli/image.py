"""A container of an image, on the machine's host: what `run IMAGE` does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote

import click
from google.protobuf.any_pb2 import Any as AnyMessage

from shim import places
from shim.cli.host_call import with_host
from shim.cli.session import Job, Session, interruptible
from shim.cli.tasks import create_task, delete_task, end_task, start_task
from shim.cli.wish import Wish
from shim.client import HostClient, TaskClient, once, steadily
from shim.client.start import undisturbed
from shim.client.steady import RECONNECT_S
from shim.errors import AlreadyExists, NotFound, ShimError, Unavailable
from shim.metadata.values import Container, Kind
from shim.model import Stdio
from shim.oci.spec import spec
from shim.snapshots.image import Defaults

SPEC_TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

_LOG_SIZE: Final = 16 << 20
_LOG_FILES: Final = 5
_HOSTNAME: Final = 64  # characters: sethostname(2)


def run_image(wish: Wish) -> int:
    """Run it attached; its exit status."""
    return asyncio.run(
        interruptible(lambda session: with_host(lambda host: _attached(session, host, wish)))
    )


def run_detached(wish: Wish) -> int:
    """Leave it running, and show its id."""
    asyncio.run(with_host(lambda host: _detached(host, wish)))
    click.echo(wish.id)
    return 0


async def _attached(session: Session, host: HostClient, wish: Wish) -> int:
    task = host.task(wish.id)
    job = Job(
        wish.terminal,
        wish.interactive,
        lambda stdio: create_task(task, stdio),
        lambda: start_task(task),
    )
    async with _made(host, wish):
        status = await session.run(task, job)
        await undisturbed(_leave(host, task, wish.remove))
        return status


async def _detached(host: HostClient, wish: Wish) -> None:
    task = host.task(wish.id)
    async with _made(host, wish):
        await create_task(task, _kept(wish))
        await start_task(task)


async def _leave(host: HostClient, task: TaskClient, remove: bool) -> None:
    """The task is over: delete it and, with `remove`, its container."""
    await delete_task(task)
    if remove:
        await steadily(host, lambda: _forget(host, task.id))


@contextlib.asynccontextmanager
async def _made(host: HostClient, wish: Wish) -> AsyncIterator[None]:
    """Record the container; when the block fails nothing of it is left."""
    try:
        await undisturbed(_record(host, wish))
    except asyncio.CancelledError:
        await _undo(host, wish.id)
        raise
    try:
        yield
    except BaseException as error:
        try:
            await undisturbed(_undo(host, wish.id))
        except ShimError as failure:
            error.add_note(f"while container {wish.id} was removed: {failure!r}")
        raise


async def _undo(host: HostClient, id: str) -> None:
    await end_task(host.task(id))
    await steadily(host, lambda: _forget(host, id))


async def _forget(host: HostClient, id: str) -> None:
    with contextlib.suppress(NotFound):
        await host.delete(id)


# -- the record


async def _record(host: HostClient, wish: Wish) -> None:
    """Make the container and its snapshot, or nothing."""
    config = await _config(host, wish)
    key = f"containers/{wish.id}"
    container = Container(
        id=wish.id,
        labels=wish.labels,
        image=wish.image,
        runtime=wish.runtime,
        spec=AnyMessage(type_url=SPEC_TYPE_URL, value=config).SerializeToString(),
        rootfs=key,
    )
    await _prepare(host, key, wish)
    try:
        await once(host, lambda: host.create(container), lambda: host.get(wish.id))
    except ShimError:
        with contextlib.suppress(ShimError):
            await host.remove(key)
        raise


async def _config(host: HostClient, wish: Wish) -> bytes:
    """The container's OCI configuration, as JSON."""
    try:
        image = await steadily(host, lambda: host.image(wish.image))
    except NotFound as error:
        raise NotFound(
            f"no image {wish.image}; import it: denseshim import {wish.image} PATH"
        ) from error
    defaults = Defaults.from_bytes(image.config)
    plain = spec(wish.id, (), hostname=wish.id[:_HOSTNAME], terminal=wish.terminal)
    return json.dumps(defaults.apply(plain, wish.command)).encode()


async def _prepare(host: HostClient, key: str, wish: Wish) -> None:
    """Make the root file system; one that a `run` which was killed has left gives way."""
    try:
        await host.prepare(key, wish.image)
        return
    except (AlreadyExists, Unavailable):
        await host.ready(RECONNECT_S)
    try:
        await steadily(host, lambda: host.get(wish.id))
    except NotFound:
        await _make_way(host, key)
        await host.prepare(key, wish.image)
        return
    raise AlreadyExists(
        f"there is a container {wish.id} already: denseshim rm {wish.id}, or give another --name"
    )


async def _make_way(host: HostClient, key: str) -> None:
    """Remove what can only be a root file system: an image is somebody's."""
    found = await steadily(host, host.snapshots)
    if any(info.key == key and info.kind is Kind.COMMITTED for info in found):
        raise AlreadyExists(
            f"an image has the name {key}, which the container's root would have: give another "
            f"--name, or denseshim snapshots --remove {key}"
        )
    with contextlib.suppress(NotFound):
        await host.remove(key)


def config_of(container: Container) -> dict[str, Any]:
    """The OCI configuration in a container's record. Raises NotFound without one."""
    try:
        config = json.loads(AnyMessage.FromString(container.spec).value)
    except ValueError:
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("process"), dict):
        raise NotFound(f"container {container.id} has no OCI spec with a process")
    return config


# -- the streams of a container that nobody is attached to


def _kept(wish: Wish) -> Stdio:
    """The output in a log, and a FIFO for stdin if it is wanted. Raises OSError."""
    path = quote(str(places.LOGS / wish.id / "0.log"))
    log = f"log://{path}?max_size={_LOG_SIZE}&max_files={_LOG_FILES}"
    stdin = _make_stdin(wish.id) if wish.interactive else ""
    return Stdio(wish.terminal, stdin, log, "" if wish.terminal else log)


def _make_stdin(id: str) -> str:
    """A FIFO, which the host removes with the task."""
    folder = places.IO / id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fifo = folder / "stdin"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo, 0o600)
    return str(fifo)
