"""A spawner without a keeper: children of the test itself, by asyncio's subprocesses."""

from __future__ import annotations

import asyncio
import time

from shim.keeper.command import Command
from shim.model import Exit


class Spawned:
    """What the keeper's client would return; counts its releases."""

    def __init__(self, id: int, process: asyncio.subprocess.Process | OSError) -> None:
        self.id = id
        self.pid = 0 if isinstance(process, OSError) else process.pid
        self.releases = 0
        self._process = process

    async def wait(self) -> Exit:
        if isinstance(self._process, OSError):
            raise self._process
        code = await self._process.wait()
        return Exit(code if code >= 0 else 128 - code, time.time_ns())

    def release(self) -> None:
        self.releases += 1


class Spawner:
    """Starts commands and remembers them, in order."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.children: list[Spawned] = []

    async def __call__(self, command: Command) -> Spawned:
        self.commands.append(command)
        child = Spawned(len(self.children), await _start(command))
        self.children.append(child)
        return child


async def _start(command: Command) -> asyncio.subprocess.Process | OSError:
    stdin, stdout, stderr = (command.descriptors[number] for number in range(3))
    try:
        return await asyncio.create_subprocess_exec(
            *command.argv, env=dict(command.env), cwd=command.cwd,
            stdin=stdin, stdout=stdout, stderr=stderr,
        )  # fmt: skip
    except OSError as error:
        return error
