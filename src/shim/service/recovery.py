"""A new front finds what the one before it has left: state files, and the keeper's memory.

For each container there are four cases: nothing; one whose keeper is dead, too: it cannot be
served any more and is removed; one that was still being created: it is taken back, for nobody
has been told of it; and one to go on with, after learning how a command that was under way has
ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shim.cgroup import Cgroup, remove_empty
from shim.errors import InvalidArgument, NotFound, RuntimeFailed, ShimError
from shim.keeper.client import Held, Spawn
from shim.model import EventType, Status
from shim.runtime import Runtime, read_pid
from shim.service.bundle import read_config
from shim.service.container import FILE_LIMIT, Container
from shim.service.create import undo
from shim.service.host import Host
from shim.service.process import Process
from shim.service.record import ContainerRecord, Facts
from shim.service.stdio import ProcessStdio

# Seconds for a runtime command, begun by an earlier front, to end by itself.
COMMAND_LIMIT = 30.0

_STATUS = {
    "created": Status.CREATED,
    "running": Status.RUNNING,
    "paused": Status.PAUSED,
    "stopped": Status.RUNNING,  # its program has run; that it ended is learned from its exit
}

_log = logging.getLogger(__name__)


async def recover(host: Host, record: ContainerRecord, held: Held) -> Container | None:
    """The container to go on with, if there is one; what was half made is taken back.

    Raises CorruptState.
    """
    for socket in record.directory.glob("*.tty"):  # its listener was the dead front
        socket.unlink()
    state = record.load()
    if state is None:
        _drop_unknown(held, set())
        return None
    facts = Facts.from_state(state["facts"])
    init = _process(state["init"], held)
    runtime = await _runtime(host, facts)
    if facts.created:
        return await _go_on(host, record, facts, runtime, init, held)
    _log.warning("container %s was left half made; removing it", facts.id)
    await _finish_command(facts.intent.get("spawn", 0), held)
    record.events.withdraw(facts.id, EventType.CREATE)
    await _remove(host, record, facts, runtime, init)
    _drop_unknown(held, set())
    return None


async def remove_orphan(host: Host, record: ContainerRecord) -> None:
    """Remove the container of a dead keeper, if there is one. Raises what `undo` raises.

    It may take seconds, so a front serves meanwhile.
    """
    state = record.load_orphan()
    if state is None:
        return
    facts = Facts.from_state(state["facts"])
    _log.warning("container %s was left by a dead keeper; removing it", facts.id)
    await _remove(host, record, facts, await _runtime(host, facts), _process(state["init"], Held()))


async def _runtime(host: Host, facts: Facts) -> Runtime:
    make = partial(
        Runtime, facts.runtime, Path(facts.bundle), host.keeper.spawn, host.env, expected=True
    )
    return await host.pool.run("find the runtime", FILE_LIMIT, make)


def _process(state: Mapping[str, Any], held: Held) -> Process:
    stdio = ProcessStdio(state["streams"], state["terminal"])
    stdio.adopt(held)
    return Process.from_state(state, stdio)


async def _finish_command(spawn: int, held: Held) -> Spawn | None:
    """Wait for a command of an earlier front; kill it when it takes too long."""
    child = held.children.get(spawn)
    if child is None:
        return None
    try:
        await asyncio.wait_for(asyncio.shield(child.exited), COMMAND_LIMIT)
    except TimeoutError:
        with contextlib.suppress(NotFound):
            await child.signal(signal.SIGKILL)
        await child.exited
    return child


async def _go_on(
    host: Host,
    record: ContainerRecord,
    facts: Facts,
    runtime: Runtime,
    init: Process,
    held: Held,
) -> Container:
    container = Container(host, record, facts, runtime, init)
    if facts.intent:
        await _settle_intent(container, runtime, held)
    if init.child_id in held.children:
        container.adopt_init(held.children[init.child_id])
    kept = {init.child_id}
    for state in record.load_execs():
        process = _process(state["process"], held)
        kept.add(process.child_id)
        await _recover_exec(container, record, process, state["spawn"], host, held)
    _drop_unknown(held, kept)
    return container


async def _settle_intent(container: Container, runtime: Runtime, held: Held) -> None:
    """Take the state from the runtime after a command that an earlier front had begun."""
    facts = container.facts
    spawn = await _finish_command(facts.intent["spawn"], held)
    before = facts.status
    try:
        found = await runtime.state(facts.id)
        facts.status = _STATUS.get(str(found.get("status")), before)
    except (NotFound, RuntimeFailed) as error:
        _log.warning("container %s: its state is not known: %s", facts.id, error)
    command, facts.intent = facts.intent["command"], {}
    if spawn is not None:
        spawn.release()
    if command == "start" and facts.status is not Status.CREATED:
        container.started()
    elif command == "pause" and facts.status is Status.PAUSED:
        container.paused()
    else:
        container.commit()


async def _recover_exec(
    container: Container,
    record: ContainerRecord,
    process: Process,
    spawn: int,
    host: Host,
    held: Held,
) -> None:
    """Go on with an exec; one that was being started is completed, if the runtime has done it."""
    process.child = held.children.get(process.child_id)
    if not spawn:
        container.execs.adopt(process)
        return
    command = await _finish_command(spawn, held)
    pid_file = record.directory / f"exec-{process.child_id}.pid"
    try:
        if command is None or (await command.wait()).status != 0:
            raise RuntimeFailed("its command did not succeed")
        process.pid = process.pid or read_pid(pid_file)
        child = process.child or await host.keeper.track(process.pid, command, process.child_id)
        container.execs.announce(process, child)
    except (ShimError, OSError) as error:
        _log.warning("an exec in container %s did not come to be: %s", container.facts.id, error)
        process.stdio.cut()
        record.remove_exec(process)
    if command is not None:
        command.release()
    pid_file.with_suffix(".spec").unlink(missing_ok=True)
    pid_file.unlink(missing_ok=True)


def _drop_unknown(held: Held, kept: set[int]) -> None:
    """Commands that nobody waits for any more: let them end, and forget them."""
    for id, child in held.children.items():
        if id not in kept:
            child.release()


async def _remove(
    host: Host, record: ContainerRecord, facts: Facts, runtime: Runtime, init: Process
) -> None:
    """Kill whatever is left in the container and free everything."""
    init.stdio.cut()
    facts.intent = facts.intent or {"command": "delete", "spawn": 0}
    await undo(host, record, facts, runtime, killed=True)
    if not facts.created:
        await host.pool.run("remove the cgroup", FILE_LIMIT, _remove_cgroup, facts)
    for pid in Cgroup(facts.cgroup).pids() if facts.cgroup else ():
        _log.error("process %d of container %s is still there", pid, facts.id)


def _remove_cgroup(facts: Facts) -> None:
    """A runtime that was killed while it created the container knows nothing of its cgroup."""
    try:
        path = read_config(Path(facts.bundle))["linux"]["cgroupsPath"]
    except (InvalidArgument, KeyError, TypeError):
        return
    if isinstance(path, str) and path.startswith("/"):
        remove_empty(path)
