"""What several commands do with a container's task, also while fronts die."""

from __future__ import annotations

import os
import signal
from typing import Any

from shim.client import ExitWatch, TaskClient, once, steadily
from shim.client.steady import RECONNECT_S
from shim.errors import FailedPrecondition, NotFound, Unavailable
from shim.model import Status, Stdio


async def create_task(task: TaskClient, stdio: Stdio) -> int:
    """Create the task; its pid."""

    async def find() -> int:
        return (await task.state()).pid

    return await once(task, lambda: task.create(stdio), find)


async def start_task(task: TaskClient) -> None:
    """Start the created task."""
    try:
        await task.start()
        return
    except Unavailable:
        await task.ready(RECONNECT_S)
    state = await steadily(task, task.state)
    if state.status is Status.CREATED:
        await task.start()


async def end_task(task: TaskClient) -> None:
    """Kill what runs of the task and delete it; nothing happens if there is none."""
    try:
        if await _delete_ended(task):
            return
        async with ExitWatch(task) as watch:
            pid = (await steadily(task, task.state)).pid
            await _kill_all(task)
            await watch.status(pid)
        await _delete_ended(task)
    except NotFound:
        return


async def delete_task(task: TaskClient) -> None:
    """Delete the task, if there is one. Raises FailedPrecondition when it runs."""
    try:
        await steadily(task, task.delete)
    except NotFound:
        return


async def _delete_ended(task: TaskClient) -> bool:
    try:
        await delete_task(task)
    except FailedPrecondition:
        return False
    return True


async def _kill_all(task: TaskClient) -> None:
    try:
        await steadily(task, lambda: task.kill(signal.SIGKILL, all=True))
    except (NotFound, FailedPrecondition):
        return  # it has ended by itself


def process_of(config: dict[str, Any], command: tuple[str, ...], terminal: bool) -> dict[str, Any]:
    """The OCI process that runs `command` as the container's own is run: an exec."""
    process: dict[str, Any] = config["process"]
    env = list(process.get("env", ()))
    if terminal and not any(entry.startswith("TERM=") for entry in env):
        env.append(f"TERM={os.environ.get('TERM', 'xterm')}")
    return {**process, "args": list(command), "terminal": terminal, "env": env}
