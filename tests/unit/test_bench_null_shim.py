"""The shim that does nothing, as containerd would meet it, and what else is of direct calls."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf.message import Message

from benchmarks.calls import write_frames
from benchmarks.direct import program_of
from benchmarks.systems.null_shim import NullShim
from shim._pb import ttrpc_pb2
from shim._pb.containerd.task.v3 import task_pb2

ID = f"denseshim-null-{os.getpid()}"
SERVICE = "containerd.task.v2.Task"
STOPPED = 3


@pytest.mark.parametrize(
    ("runtime", "wanted"),
    [
        ("io.containerd.dense.v2", "containerd-shim-dense-v2"),
        ("null.v2", "containerd-shim-null-v2"),
    ],
)
def test_a_shim_is_named_by_the_last_parts_of_its_runtime(runtime: str, wanted: str) -> None:
    assert program_of(runtime) == wanted


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0 or not shutil.which("cc"):
        pytest.skip("needs root, for /run/containerd, and a C compiler")
    system = NullShim()
    system.prepare(tmp_path_factory.mktemp("null"))
    found = shutil.which(program_of(system.runtime), path=system.environment()["PATH"])
    assert found is not None
    return Path(found)


class Client:
    """A connection to it."""

    def __init__(self, address: str, folder: Path) -> None:
        self._frames = folder / "frames"
        self._stream = 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(address)

    def send(self, method: str, request: Message) -> int:
        """The stream that the answer will be on."""
        self._stream += 2
        write_frames(self._frames, SERVICE, [(method, request)])
        frame = bytearray(self._frames.read_bytes())
        frame[4:8] = (self._stream - 1).to_bytes(4)
        self.socket.sendall(frame)
        return self._stream - 1

    def read(self) -> tuple[int, bytes]:
        """Stream and payload of an answer that is no error."""
        head = self.socket.recv(10, socket.MSG_WAITALL)
        size, stream, kind, _ = struct.unpack(">IIBB", head)
        assert kind == 2
        body = self.socket.recv(size, socket.MSG_WAITALL) if size else b""
        response = ttrpc_pb2.Response.FromString(body)
        assert not response.HasField("status")
        return stream, response.payload

    def call(self, method: str, request: Message) -> bytes:
        stream = self.send(method, request)
        answered, payload = self.read()
        assert answered == stream
        return payload


@contextmanager
def started(program: Path, folder: Path) -> Iterator[Client]:
    """A client of a shim that has been started, and is told to end in the end."""
    Path("/run/containerd").mkdir(exist_ok=True)
    line = [program, "-namespace", "denseshim-test", "-address", "/nowhere"]
    line += ["-publish-binary", "/nowhere", "-id", ID, "start"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == (folder / "address").read_text()
    path = done.stdout.removeprefix("unix://")
    client = Client(path, folder)
    try:
        yield client
    finally:
        client.call("Shutdown", task_pb2.ShutdownRequest(id=ID))
        assert client.socket.recv(1) == b""
        client.socket.close()
        assert not Path(path).exists()


def test_a_life_is_answered(program: Path, tmp_path: Path) -> None:
    with started(program, tmp_path) as client:
        created = client.call("Create", task_pb2.CreateTaskRequest(id=ID, bundle=str(tmp_path)))
        pid = task_pb2.CreateTaskResponse.FromString(created).pid
        assert Path(f"/proc/{pid}/exe").readlink() == program
        connected = client.call("Connect", task_pb2.ConnectRequest(id=ID))
        assert task_pb2.ConnectResponse.FromString(connected).task_pid == pid
        pids = task_pb2.PidsResponse.FromString(client.call("Pids", task_pb2.PidsRequest(id=ID)))
        assert [row.pid for row in pids.processes] == [pid]
        client.call("Start", task_pb2.StartRequest(id=ID))
        state = client.call("State", task_pb2.StateRequest(id=ID))
        found = task_pb2.StateResponse.FromString(state)
        assert (found.pid, found.status, found.exited_at.seconds) == (pid, STOPPED, 1)
        assert client.call("Kill", task_pb2.KillRequest(id=ID, signal=9)) == b""
        deleted = client.call("Delete", task_pb2.DeleteRequest(id=ID))
        gone = task_pb2.DeleteResponse.FromString(deleted)
        assert (gone.pid, gone.exit_status, gone.exited_at.seconds) == (pid, 0, 1)


def test_wait_is_answered_by_start(program: Path, tmp_path: Path) -> None:
    """State comes in between: it would be the second answer if Wait were not held back."""
    with started(program, tmp_path) as client:
        wait = client.send("Wait", task_pb2.WaitRequest(id=ID))
        state = client.send("State", task_pb2.StateRequest(id=ID))
        assert client.read()[0] == state
        start = client.send("Start", task_pb2.StartRequest(id=ID))
        assert client.read()[0] == start
        answered, payload = client.read()
        assert answered == wait
        assert task_pb2.WaitResponse.FromString(payload).exited_at.seconds == 1


def test_delete_prints_how_it_ended(program: Path) -> None:
    line = [program, "-namespace", "denseshim-test", "-id", ID, "-bundle", "/nowhere", "delete"]
    done = subprocess.run(line, capture_output=True, timeout=30, check=True)
    found = task_pb2.DeleteResponse.FromString(done.stdout)
    assert (found.exit_status, found.exited_at.seconds) == (0, 1)
