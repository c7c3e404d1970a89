"""A place for one system: cgroups, mounts and /run directories of its own.

What is measured of a system is what happens in its cgroup, which has three parts: `daemon`, with
containerd, its shims and their runtime; `clients`, with what calls them; `containers`. The
product's host makes itself a fourth one. All that runs there is ended by `close`, which leaves
nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.cgroup import Group
from benchmarks.waiting import PATIENCE, NotInTime, until

# Not "denseshim-": the tests look for what begins so, also while a run lasts beside them.
PREFIX: Final = "densebench"
# Where ctr puts containers' cgroups is the name of their namespace in containerd.
CONTAINERS: Final = "containers"
_PARTS: Final = ("daemon", "clients", CONTAINERS)
_HERE: Final = Path(__file__).parent
# PART LOG PROGRAM [ARGUMENT...]: enters a part, and waits for the end of its input.
_ENTER: Final = """
for file in /sys/fs/cgroup/$1/cgroup.procs /sys/fs/cgroup/*/$1/cgroup.procs; do
    [ -e "$file" ] && echo $$ >"$file"
done
log=$2
shift 2
echo ready
read -r line
exec "$@" </dev/null >>"$log" 2>&1
"""
_numbers = itertools.count()

Step = list[str] | dict[str, str]


@dataclass(frozen=True)
class Ended:
    """How a job of the agent's ended; times in seconds."""

    status: int
    wall: float
    cpu: float


class JobFailed(Exception):
    """A command that a workload consists of has failed."""


class Place:
    """Made with the constructor, given up with `close`."""

    def __init__(self, folder: Path) -> None:
        """`folder` must exist; the place has an empty directory in it. Raises OSError."""
        number = next(_numbers)
        self.folder = folder / str(number)
        self.folder.mkdir()
        self.group = Group(f"{PREFIX}-{os.getpid()}-{number}")
        self.containers = self.group.below(CONTAINERS)
        self.group.make()
        for part in _PARTS:
            self.group.below(part).make()
        self._log = self.folder / "agent.log"
        self._turn = threading.Lock()
        self._agent = subprocess.Popen(
            [
                *(_HERE / "place.sh", self.group.name, self.folder),
                *(sys.executable, "-I", "-S", _HERE / "agent.py", self._log, "--end-all"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.agent_pid = self._agent.pid
        try:
            self._read("ready")
            self.group.delegate()
        except BaseException:
            self.close()
            raise

    def _read(self, expected: str = "") -> bytes:
        assert self._agent.stdout is not None
        answer = select.poll()  # select(2) knows no descriptor above 1,023
        answer.register(self._agent.stdout, select.POLLIN)
        if not answer.poll(PATIENCE * 1000):
            raise NotInTime(f"not within {PATIENCE:g} s: an answer of the agent")
        line = self._agent.stdout.readline()
        if not line or (expected and line.decode().strip() != expected):
            raise JobFailed(f"the agent of {self.group.name} has ended")
        return line

    def outside(self, path: Path | str) -> Path:
        """A path in the place, as this process finds it."""
        return Path(f"/proc/{self.agent_pid}/root") / str(path).lstrip("/")

    def run(self, jobs: Sequence[Sequence[Step]], parallel: int = 1) -> list[Ended]:
        """Run jobs to their end (benchmarks/agent.py); threads that call it take turns.

        Raises JobFailed when one fails, NotInTime when they do not end.
        """
        assert self._agent.stdin is not None
        request = {"jobs": [list(job) for job in jobs], "parallel": parallel}
        with self._turn:
            self._agent.stdin.write(json.dumps(request).encode() + b"\n")
            self._agent.stdin.flush()
            rows = json.loads(self._read())
        if failed := [row["status"] for row in rows if row["status"]]:
            log = self.outside(self._log).read_text(errors="replace")
            raise JobFailed(f"{len(failed)} of {len(rows)} failed ({failed[0]}): {log[-500:]}")
        return [Ended(row["status"], row["wall"] / 1e9, row["cpu"] / 1e9) for row in rows]

    def start(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        part: str = "daemon",
    ) -> subprocess.Popen[bytes]:
        """Start a program in a part of the place; what it says is in `log`, a path outside."""
        return go(self.prepare(command, log, environment, part))

    def prepare(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        part: str = "daemon",
    ) -> subprocess.Popen[bytes]:
        """As `start`, but the program itself begins with `go`: entering a cgroup takes its time."""
        process = subprocess.Popen(
            [
                *("nsenter", "--target", str(self.agent_pid), "--mount", "--cgroup"),
                *("sh", "-c", _ENTER, "sh", part, str(log), *command),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def close(self) -> None:
        """Kill all that runs here, and remove the cgroups and the directory."""
        until(self._kill_all, f"the end of all processes in {self.group.name}")
        self._agent.communicate()
        until(self.group.remove, f"the end of the cgroup {self.group.name}")
        shutil.rmtree(self.folder)

    def _kill_all(self) -> bool:
        """Whether nothing was left to be killed."""
        pids = self.group.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._agent.poll()
        return not pids


def go(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Let a prepared program begin."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    return process
