"""A new front finds what the one before it has left: state files, and the keeper's memory.

For each container there are four cases: nothing; one whose keeper is dead, too: it cannot be
served any more and is removed; one that was still being created; and one to go on with, after
learning how a command that was under way has ended. What takes time is left for later, so that
one runtime that hangs delays no other container.

Nobody has been told yet of what was being created. Where the call comes again, it is completed,
if its runtime has succeeded; otherwise it is taken back.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim.cgroup import Cgroup, remove_empty
from shim.errors import InvalidArgument, ShimError
from shim.keeper.client import Held
from shim.model import CreateRequest
from shim.service.bundle import read_config
from shim.service.commands import finish_command, has_succeeded
from shim.service.container import Container
from shim.service.create import complete, undo
from shim.service.host import FILE_LIMIT, Home
from shim.service.process import Process
from shim.service.record import Facts
from shim.service.transitions import Operation
from shim.store import MISSHAPEN

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovered:
    """What a record has led to: a container to go on with, or what is to be done about the rest.

    `rest` gives the container, if there is to be one after all; the streams of one that has
    been taken back are `init`'s, and not cut.
    """

    facts: Facts
    init: Process
    container: Container | None = None
    rest: Coroutine[Any, Any, Container | None] | None = None


async def recover(home: Home, held: Held) -> Recovered | None:
    """What is to become of the record in `home`; None when it has no container.

    Processes of this container are taken out of `held.children`. Raises CorruptState.
    """
    for socket in home.record.directory.glob("*.tty"):  # its listener was the dead front
        socket.unlink()
    state = home.record.load()
    if state is None:
        return None
    facts = Facts.from_state(state["facts"])
    init = Process.from_state(state["init"], held)
    child = held.claim(init.child_id)
    if not facts.created and child is not None and home.teller.knows_created(child.marks):
        facts.created, facts.request = True, facts.intent.get("request", 0)
        facts.intent = {}
    if facts.created:
        return Recovered(facts, init, await _go_on(home, facts, init, held))
    home.teller.withdraw(facts.id)
    held.claim(facts.intent.get("spawn", 0))
    return Recovered(facts, init, rest=_finish_creation(home, facts, init, held))


async def remove_orphan(home: Home) -> None:
    """Remove the container of a dead keeper, if there is one. Raises what `undo` raises.

    It may take seconds, so a front serves meanwhile.
    """
    state = home.record.load_orphan()
    if state is None:
        return
    facts = Facts.from_state(state["facts"])
    _log.warning("container %s was left by a dead keeper; removing it", facts.id)
    await remove_left(home, facts)


async def _go_on(home: Home, facts: Facts, init: Process, held: Held) -> Container:
    runtime = await home.runtime(facts, home.commands.spawn, expected=True)
    container = Container(home, facts, runtime, init)
    for state in home.record.load_execs():
        try:
            process, spawn = Process.from_state(state["process"], held), state["spawn"]
        except MISSHAPEN as error:
            _log.error("an exec in container %s is not known: %r", facts.id, error)
        else:
            container.execs.recover(process, spawn, held)
    if facts.intent:
        held.claim(facts.intent["spawn"])
        await container.turn.acquire()
        init.announced = facts.intent["command"] != Operation.START.value
        home.host.later(_settle(container, held))
    init.stdio.settle()
    child = held.claim(init.child_id)
    if child is not None:
        container.adopt_init(child)
    return container


async def _settle(container: Container, held: Held) -> None:
    try:
        await container.settle(held)
    finally:
        container.turn.release()


async def _finish_creation(
    home: Home, facts: Facts, init: Process, held: Held
) -> Container | None:
    """Complete what the runtime has done, where that is all it takes; or take it back."""
    command = await finish_command(facts.intent.get("spawn", 0), held)
    succeeded = await has_succeeded(command)
    known = held.claim(init.child_id)
    if command and succeeded and facts.namespace and init.stdio.is_whole() and known is None:
        runtime = await home.runtime(facts, home.commands.spawn, expected=True)
        request = CreateRequest.from_state(facts.intent["asked"])
        try:
            return await complete(home, facts, runtime, init, command, request)
        except ShimError as error:
            _log.warning("container %s cannot be completed: %s", facts.id, error)
            command = None  # released
    _log.warning("container %s was left half made; removing it", facts.id)
    await remove_left(home, facts)
    for child in (command, known):
        if child is not None:
            child.release()
    return None


async def remove_left(home: Home, facts: Facts) -> None:
    """Kill whatever is left in the container and free everything."""
    facts.intent = facts.intent or {"command": "delete", "spawn": 0}
    runtime = await home.runtime(facts, home.commands.spawn, expected=True)
    runtime = runtime.logging_to(home.record.directory / "log.json")  # the bundle may be gone
    await undo(home, facts, runtime, killed=True)
    if not facts.created:
        await home.host.pool.run("remove the cgroup", FILE_LIMIT, _remove_cgroup, facts)
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
