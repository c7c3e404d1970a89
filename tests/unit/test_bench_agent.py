"""The agent runs jobs, and measures them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import benchmarks

AGENT = Path(benchmarks.__file__ or "").parent / "agent.py"
Rows = list[dict[str, int]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def ask(log: Path, jobs: Sequence[Any], parallel: int = 1) -> Rows:
    """Start an agent, and have it run the jobs."""
    request = json.dumps({"jobs": jobs, "parallel": parallel}) + "\n"
    line = [sys.executable, "-I", "-S", AGENT, log]
    done = subprocess.run(line, input=request, capture_output=True, text=True, timeout=30)
    ready, answer = done.stdout.splitlines()
    assert (ready, done.returncode, done.stderr) == ("ready", 0, "")
    rows: Rows = json.loads(answer)
    return rows


def test_each_job_has_a_row_in_its_place(log: Path) -> None:
    jobs = [[["sh", "-c", f"exit {number}"]] for number in (3, 0, 5)]
    assert [row["status"] for row in ask(log, jobs, parallel=3)] == [3, 0, 5]


def test_after_a_step_that_fails_come_no_others(log: Path, tmp_path: Path) -> None:
    touch = ["touch", str(tmp_path / "after")]
    assert [row["status"] for row in ask(log, [[["false"], touch], [["true"]]])] == [1, 0]
    assert not (tmp_path / "after").exists()


def test_steps_are_done_one_after_the_other(log: Path, tmp_path: Path) -> None:
    steps = [["sh", "-c", f"echo {n} >> {tmp_path}/order"] for n in range(5)]
    ask(log, [steps], parallel=5)
    assert (tmp_path / "order").read_text().split() == ["0", "1", "2", "3", "4"]


def test_so_many_run_at_once_and_no_more(log: Path, tmp_path: Path) -> None:
    """Two meet at a FIFO, in which one alone would wait for ever; three would find two there."""
    fifo = tmp_path / "fifo"
    subprocess.run(["mkfifo", fifo], check=True)
    meet = [["sh", "-c", f"echo > {fifo}"]], [["sh", "-c", f"read x < {fifo}"]]
    assert [row["status"] for row in ask(log, meet, parallel=2)] == [0, 0]
    alone = f"mkdir {tmp_path}/alone && rmdir {tmp_path}/alone"
    rows = ask(log, [[["sh", "-c", alone]] for _ in range(20)], parallel=1)
    assert not any(row["status"] for row in rows)


def test_what_a_command_leaves_behind_is_waited_for(log: Path, tmp_path: Path) -> None:
    """In the order in which it ends, before or after the job asks for it."""
    left, pid = tmp_path / "left", tmp_path / "pid"
    script = f"(sleep 0.2; touch {left}) & echo $! > {pid}"
    steps = [["sh", "-c", script], {"reap": str(pid)}, ["test", "-e", str(left)]]
    assert ask(log, [steps])[0]["status"] == 0
    early = [["sh", "-c", f"true & echo $! > {pid}"], ["sleep", "0.2"], {"reap": str(pid)}]
    assert ask(log, [early])[0]["status"] == 0


def test_times_are_of_the_whole_job(log: Path) -> None:
    (row,) = ask(
        log, [[["sleep", "0.1"], ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"]]]
    )
    assert row["wall"] > 100_000_000
    assert 0 < row["cpu"] < row["wall"]


def test_what_commands_complain_of_is_in_the_log(log: Path) -> None:
    ask(log, [[["sh", "-c", "echo trouble >&2; exit 1"]]])
    assert log.read_text() == "trouble\n"
