"""Runs command lines inside a place, and tells how long each took.

A program of its own (`python -I -S agent.py LOG`): it reads a request from each line of its input,
and answers with a line. A request is {"jobs": [JOB, ...], "parallel": N}. A job is a list of steps,
done one after the other, until one fails; at most N jobs are under way at once. A step is a
command line, or {"reap": FILE}: wait for the end of the process whose pid FILE holds, which a
command of the job has left behind. The answer has a row for each job: {"status", "wall", "cpu"}:
the first status that is not 0, nanoseconds from the first step to the last, and the CPU time, in
nanoseconds, of the commands and all that they have waited for.

With --end-all it kills, at the end of its input, all other processes below the root of the cgroups
that it sees: of its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections import deque

PR_SET_CHILD_SUBREAPER = 36


class Job:
    """One job under way."""

    def __init__(self, number: int, steps: list[list[str] | dict[str, str]]) -> None:
        self.number = number
        self.steps = deque(steps)
        self.status = 0
        self.cpu = 0
        self.began = time.monotonic_ns()

    def row(self) -> dict[str, int]:
        wall = time.monotonic_ns() - self.began
        return {"status": self.status, "wall": wall, "cpu": self.cpu}


class Agent:
    """Runs jobs, and reaps whatever they leave."""

    def __init__(self, log: str) -> None:
        self._log = log
        self._waiting: dict[int, Job] = {}  # by the pid that the job waits for
        self._reaped: set[int] = set()

    def run(self, jobs: list[list[list[str] | dict[str, str]]], parallel: int) -> list[object]:
        """All jobs' rows, in the jobs' order."""
        rows: list[object] = [None] * len(jobs)
        left = deque(enumerate(jobs))
        self._reaped.clear()
        while left or self._waiting:
            while left and len(self._waiting) < parallel:
                self._go_on(Job(*left.popleft()), rows)
            if self._waiting:
                self._reap(rows)
        return rows

    def _go_on(self, job: Job, rows: list[object]) -> None:
        """Do the job's next step, or note that it has ended."""
        while job.steps and not job.status:
            pid = self._begin(job.steps.popleft())
            if pid not in self._reaped:
                self._waiting[pid] = job
                return
        rows[job.number] = job.row()

    def _begin(self, step: list[str] | dict[str, str]) -> int:
        """The pid to wait for."""
        if isinstance(step, dict):
            with open(step["reap"]) as file:
                return int(file.read())
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, self._log, append, 0o600),
        ]
        return os.posix_spawnp(step[0], step, os.environ, file_actions=actions)

    def _reap(self, rows: list[object]) -> None:
        pid, status, usage = os.wait4(-1, 0)
        job = self._waiting.pop(pid, None)
        if job is None:
            self._reaped.add(pid)
            return
        job.status = os.waitstatus_to_exitcode(status)
        job.cpu += int((usage.ru_utime + usage.ru_stime) * 1e9)
        self._go_on(job, rows)


def end_all() -> None:
    """Kill all others in the place: who has made it died, and did not close it."""
    while pids := others():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def others() -> set[int]:
    """The other processes of the place, which sees its own cgroup as the root."""
    found: set[int] = set()
    for folder, _, files in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in files:
            with contextlib.suppress(FileNotFoundError), open(f"{folder}/cgroup.procs") as file:
                found.update(map(int, file.read().split()))
    return found - {os.getpid()}


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit(os.strerror(ctypes.get_errno()))
    agent = Agent(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(agent.run(request["jobs"], request["parallel"])), flush=True)
    if "--end-all" in sys.argv:
        end_all()


if __name__ == "__main__":
    main()
