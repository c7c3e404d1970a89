"""What tasks use of the machine, as the kernel and the keeper count it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shim.cgroup import UNIFIED
from shim.metrics.files import NO_LIMIT, Files
from shim.service.container import Container as Task

_MICROSECOND: Final = 1000  # nanoseconds
# What v1 shows where there is no limit: the largest number, less the rest of a page.
_MOST_V1: Final = 2**63 - 2**20


@dataclass(frozen=True)
class Usage:
    """Of one task. `cpu`: nanoseconds; `memory` and `memory_limit`: bytes, 0: no limit; `output`:
    bytes that its processes have written so far, those excepted whose output has ended.
    """

    id: str
    cpu: int = 0
    memory: int = 0
    memory_limit: int = 0
    pids: int = 0
    output: int = 0


async def usage(tasks: Sequence[Task]) -> list[Usage]:
    """What each of the tasks uses now; zeros for what the kernel does not count.

    Raises OSError when a cgroup's file cannot be read.
    """
    return list(await asyncio.gather(*map(_usage, tasks)))


async def _usage(task: Task) -> Usage:
    processes = [task.init, *task.execs.all()]
    output = sum([await process.stdio.written() for process in processes])
    paths = task.facts.cgroups
    cpu, memory, limit, pids = _unified(paths[UNIFIED]) if UNIFIED in paths else _v1(paths)
    return Usage(task.facts.id, cpu, memory, limit, pids, output)


def _unified(path: str) -> tuple[int, int, int, int]:
    files = Files()
    limit = files.number(f"{path}/memory.max") or 0
    return (
        files.counters(f"{path}/cpu.stat").get("usage_usec", 0) * _MICROSECOND,
        files.number(f"{path}/memory.current") or 0,
        0 if limit == NO_LIMIT else limit,
        files.number(f"{path}/pids.current") or 0,
    )


def _v1(paths: Mapping[str, str]) -> tuple[int, int, int, int]:
    files = Files()

    def number(controller: str, name: str) -> int:
        if controller not in paths:
            return 0
        return files.number(f"{paths[controller]}/{name}") or 0

    limit = number("memory", "memory.limit_in_bytes")
    return (
        number("cpuacct", "cpuacct.usage"),
        number("memory", "memory.usage_in_bytes"),
        limit if limit < _MOST_V1 else 0,
        number("pids", "pids.current"),
    )
