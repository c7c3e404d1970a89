"""denseshim host, in a namespace where a fake pair, or none, serves the host."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim._pb import ttrpc_pb2 as ttrpc
from shim._pb.denseshim.host.v1 import host_pb2
from tests.fakes.door import PATIENCE, Door, Place, frame, refusal

PROGRAM = Path(sys.executable).with_name("denseshim")
STATUS = host_pb2.StatusResponse(version="1.2", keeper_pid=7, front_pid=8, containers=3)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


@pytest.fixture
def door(place: Place) -> Iterator[Door]:
    with Door(place) as made:
        yield made


def run(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = place.command([PROGRAM, "host", *arguments])
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def answered(reply: host_pb2.StatusResponse | host_pb2.StopResponse) -> bytes:
    return frame(ttrpc.Response(payload=reply.SerializeToString()).SerializeToString())


def test_the_status_for_people(place: Place, door: Door) -> None:
    door.answers.put(answered(STATUS))
    done = run(place, "--status")
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["version:", "1.2"],
        ["keeper", "pid:", "7"],
        ["front", "pid:", "8"],
        ["containers:", "3"],
    ]
    assert door.call().method == "Status"


def test_the_status_for_programs(place: Place, door: Door) -> None:
    door.answers.put(answered(STATUS))
    assert json.loads(run(place, "--status", "--json").stdout) == {
        "version": "1.2",
        "keeper_pid": 7,
        "front_pid": 8,
        "containers": 3,
    }


@pytest.mark.parametrize("force", [False, True])
def test_stop(place: Place, door: Door, force: bool) -> None:
    door.answers.put(answered(host_pb2.StopResponse()))
    done = run(place, "--stop", *(["--force"] if force else []))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    call = door.call()
    assert call.method == "Stop"
    # The fake door takes every call for Launch; protobuf keeps what it does not know.
    assert host_pb2.StopRequest.FromString(call.launch.SerializeToString()).force is force


def test_a_stop_that_is_refused(place: Place, door: Door) -> None:
    door.answers.put(refusal(9, "there are 3 containers"))
    done = run(place, "--stop")
    assert (done.returncode, done.stderr) == (1, "denseshim: there are 3 containers\n")


@pytest.mark.parametrize("option", ["--stop", "--status"])
def test_there_is_no_host(place: Place, option: str) -> None:
    done = run(place, option)
    assert done.returncode == 1
    assert done.stderr.startswith("denseshim: no shim serves the host: ")


@pytest.mark.parametrize("options", [["--stop", "--status"], ["--force"], ["--force", "--status"]])
def test_options_that_do_not_go_together(place: Place, options: list[str]) -> None:
    done = run(place, *options)
    assert done.returncode == 2
    assert "give one of --stop, --stop --force and --status" in done.stderr


@pytest.fixture
def host(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A real pair that serves the place in the foreground; killed if it is there in the end."""
    with subprocess.Popen(place.command([PROGRAM, "host"]), stderr=subprocess.PIPE) as process:
        end = time.monotonic() + PATIENCE
        while not (place.state / "door").exists():
            assert time.monotonic() < end, "it does not listen"
            assert process.poll() is None, process.stderr
            time.sleep(0.01)
        yield process
        process.kill()


def test_a_host_in_the_foreground_until_it_is_stopped(
    place: Place, host: subprocess.Popen[str]
) -> None:
    found = json.loads(run(place, "--status", "--json").stdout)
    assert (found["keeper_pid"], found["containers"]) == (host.pid, 0)
    another = run(place)
    assert another.returncode == 1
    assert "alive" in another.stderr
    assert run(place, "--stop").returncode == 0
    assert host.wait(PATIENCE) == 0
    assert not place.state.exists()


def test_a_host_in_the_foreground_ends_by_sigterm(
    place: Place, host: subprocess.Popen[str]
) -> None:
    assert run(place, "--status").returncode == 0
    host.terminate()
    assert host.wait(PATIENCE) == 0
    assert not place.state.exists()
