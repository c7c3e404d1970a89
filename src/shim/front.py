"""The front: answers calls, and may die at any time; the keeper starts it again.

Run by the keeper as `python -I -m shim.front`, with the channel on descriptor 3: with `--pair DIR`
for all the containers of a pair, with `--state DIR` for a single one of the protocol of 2017.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import shim
from shim import cgroup, places, stacks
from shim import pair as pairs
from shim.api.calls import Calls
from shim.api.host import SERVICE, HostService, Pair
from shim.api.publish import Publisher
from shim.api.shims import Place, ServedShim, Shims
from shim.api.standalone import Standalone
from shim.api.task import SERVICES, TaskService
from shim.api.task_servers import TaskServers
from shim.blocking import BlockingPool
from shim.bootstrap.group import Kind, Scope
from shim.errors import ShimError
from shim.keeper.client import Held, KeeperClient
from shim.keeper.start import CHANNEL, PACKAGE
from shim.log import BoundedHandler
from shim.model import Launcher
from shim.notify import notify_ready
from shim.oom import OomWatcher
from shim.service.container import Container
from shim.service.groups import STANDALONE, Group, Groups
from shim.service.host import Host
from shim.service.inventory import check_records
from shim.service.tasks import Tasks
from shim.service.teller import Teller
from shim.standalone.events import TaskEvents

# The listener that the keeper was started with.
FIRST_LISTENER = 2
# Seconds for the state's directory, which nobody else uses.
REMOVE_LIMIT = 5.0
# Seconds in which a pair apart that nobody uses gets its first container.
UNUSED_LIMIT = 60.0

_log = logging.getLogger(__name__)


async def _begin() -> tuple[Host, Held]:
    stacks.tell_at_signal()
    keeper = KeeperClient(socket.socket(fileno=CHANNEL), _keeper_lost)
    held = await keeper.begin()
    return Host(keeper, BlockingPool(), OomWatcher(_killed), time.time_ns), held


def _killed(container: Any, kills: int) -> None:
    assert isinstance(container, Container)
    container.note_oom(kills)


def _keeper_lost() -> None:
    """Nothing can be served without the keeper; the next one cleans up."""
    os._exit(1)


# -- a single shim of 2017


async def serve_one(state: Path, own_socket: str) -> None:
    """Take over what is there, and serve it until Exit.

    state: the directory of the container's record; own_socket: the listening socket's file when
    it is the shim's to remove.
    """
    host, held = await _begin()
    place = Place(FIRST_LISTENER, "", own_socket, Launcher.handed_down(os.environ, 0o022, {}, ""))
    served = ServedShim(host, state, place)
    await served.begin(held)
    held.release_rest()
    host.keeper.ready()
    asked = asyncio.ensure_future(_end_when_asked(served, host.keeper))
    await served.shim.ended.wait()
    asked.cancel()
    await served.end()
    host.keeper.stop()
    await asyncio.Event().wait()  # the keeper's end is ours


async def _end_when_asked(served: ServedShim, keeper: KeeperClient) -> None:
    """SIGTERM ends a shim that has no container."""
    while True:
        await keeper.asked_to_end.wait()
        keeper.asked_to_end.clear()
        await served.shim.orphan_gone()
        if served.shim.empty:
            served.shim.ended.set()
            return
        _log.warning("asked to end, but there is a container: staying with it")


# -- a pair


async def serve_pair(directory: Path, apart: bool, group: str) -> None:
    """Take over what is there, and serve it until the pair is told to end.

    group: whose members may call the services for containers without containerd.
    """
    host, held = await _begin()
    if FIRST_LISTENER not in held.listeners:
        await _go(host, directory)  # an earlier front has died at the end
    groups = Groups(host.keeper, directory / "groups")
    await groups.recover(held)
    events = TaskEvents(directory / places.EVENTS)

    def teller(of: Group, id: str) -> Teller:
        return events.teller() if of is STANDALONE else Publisher(host.keeper, of, host.now)

    tasks = Tasks(host, groups, directory / "tasks", teller)
    await tasks.recover(held)
    shims = Shims(host, directory / "shims")
    await shims.recover(held)
    serves, elsewhere = _apart(directory) if apart else (_serves_host, _is_elsewhere)
    api = None if apart else Standalone(host, directory, tasks, events, group)
    if api is not None:
        await api.recover(held)
    pair = Pair(host, directory, groups, tasks, shims, serves, elsewhere, asyncio.Event(), api)
    task_service = TaskService(tasks, groups)
    servers = TaskServers(host, directory / "groups", task_service)
    await servers.follow(groups)
    services = {name: task_service.methods() for name in SERVICES}
    Calls(host.keeper, {**services, SERVICE: HostService(pair).methods()})
    held.release_rest()
    for listener in held.listeners.keys() - held.claimed - {FIRST_LISTENER}:
        await host.keeper.unlisten(listener)  # one that was just being opened, or closed
    host.keeper.ready()
    tasks.go_on()
    if api is not None:
        api.go_on()
    notify_ready()
    ends = asyncio.ensure_future(_end_empty(pair, apart))
    await pair.end.wait()
    ends.cancel()
    if api is not None:
        await api.close()
    for opened in list(groups):
        await groups.close(opened)
    await host.keeper.unlisten(FIRST_LISTENER)
    await _go(host, directory)


def _serves_host(scope: Scope) -> bool:
    return scope.kind is Kind.HOST


def _is_elsewhere(keys: Iterable[str]) -> bool:
    return any(pairs.apart_directory(key).exists() for key in keys)


def _apart(directory: Path) -> tuple[Callable[[Scope], bool], Callable[[Iterable[str]], bool]]:
    def serves(scope: Scope) -> bool:
        return scope.kind is not Kind.HOST and pairs.apart_directory(scope.key) == directory

    return serves, lambda keys: False


async def _end_empty(pair: Pair, apart: bool) -> None:
    """SIGTERM ends a pair that has no container; one that is apart ends with its last group."""
    if apart:
        await asyncio.wait((asyncio.ensure_future(pair.groups.changed()),), timeout=UNUSED_LIMIT)
        while not pair.idle or len(pair.groups):
            if await _is_asked(pair) and pair.idle:
                break
        pair.end.set()
        return
    while True:
        await pair.host.keeper.asked_to_end.wait()
        pair.host.keeper.asked_to_end.clear()
        if pair.idle:
            pair.end.set()
            return
        _log.warning("asked to end, but there are containers: staying with them")


async def _is_asked(pair: Pair) -> bool:
    """Return when the groups have changed, or SIGTERM has come: which of them."""
    asked_to_end = pair.host.keeper.asked_to_end
    waits = [
        asyncio.ensure_future(pair.groups.changed()),
        asyncio.ensure_future(asked_to_end.wait()),
    ]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    asked = asked_to_end.is_set()
    asked_to_end.clear()
    return asked


async def _go(host: Host, directory: Path) -> NoReturn:
    """Leave nothing of a pair whose door is closed."""
    keeper = os.getppid()
    await host.pool.run("remove the state", REMOVE_LIMIT, _remove_state, directory, keeper)
    try:
        await host.pool.run("leave the cgroup", REMOVE_LIMIT, _leave_cgroup, keeper)
    except (ShimError, OSError) as error:
        _log.warning("the cgroup %s stays: %s", pairs.CGROUP, error)
    host.keeper.stop()
    while True:
        await asyncio.Event().wait()  # the keeper's end is ours


def _remove_state(directory: Path, keeper: int) -> None:
    """Remove the directory, unless it is the next pair's already."""
    if pairs.is_locked_by(directory, keeper):
        pairs.dissolve(directory)
    pairs.sweep(directory)


def _leave_cgroup(keeper: int) -> None:
    """Were we in it, it could not be removed."""
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    cgroup.leave(pairs.CGROUP, [keeper, *(int(pid) for pid in children)])


async def check(directory: Path) -> None:
    """Say which version this is, once it has read what another one has recorded."""
    check_records(directory)
    print(json.dumps({"version": shim.__version__, "package": str(PACKAGE)}))


def main() -> None:
    """Parse what the launcher has put together, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path)
    parser.add_argument("--own-socket", default="")
    parser.add_argument("--pair", type=Path)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--group", default="", help="may call for containers, beside root")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--check", action="store_true", help="read the pair's records, and end")
    arguments = parser.parse_args()
    if arguments.check:
        asyncio.run(check(arguments.pair))
        return
    logging.raiseExceptions = False  # whoever reads stderr may be gone
    logging.basicConfig(
        handlers=[BoundedHandler(sys.stderr)],
        level=logging.DEBUG if arguments.debug else logging.WARNING,
        format="denseshim[%(process)d]: %(levelname)s: %(name)s: %(message)s",
    )
    if arguments.pair is not None:
        asyncio.run(serve_pair(arguments.pair, arguments.apart, arguments.group))
    else:
        asyncio.run(serve_one(arguments.state, arguments.own_socket))


if __name__ == "__main__":
    main()
