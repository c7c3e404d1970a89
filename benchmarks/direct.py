"""A shim without containerd: started and called as containerd would, over its own socket."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Final, Self

from benchmarks.calls import Request, TaskService, ask, socket_of, write_frames
from benchmarks.place import CONTAINERS, go
from benchmarks.waiting import PATIENCE
from shim._pb.containerd.task.v3 import task_pb2

if TYPE_CHECKING:
    from benchmarks.session import Session

_SERVICE: Final = TaskService()


class DirectShim:
    """A container's bundle, and the shim that serves it, for a block: start, live, end."""

    def __init__(self, session: Session, *args: str) -> None:
        """The bundle is where containerd would have it; the container will run `args`."""
        self.id = session.new_id()
        self._session = session
        self._bundle = session.daemon.state / _SERVICE.folder / CONTAINERS / self.id
        self._outside = session.place.outside(self._bundle)
        (self._outside / "rootfs").mkdir(parents=True)
        (self._outside / "config.json").write_text(json.dumps(session.spec(self.id, *args)))
        os.mkfifo(self._outside / "log")
        # A shim's log goes to containerd, which has its FIFO open.
        self._log = os.open(self._outside / "log", os.O_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._log)

    def start(self) -> float:
        """Run the shim's `start`; seconds. Raises ChildProcessError, TimeoutExpired."""
        session = self._session
        address = str(session.daemon.address)
        environment = session.system.environment()
        environment |= {"TTRPC_ADDRESS": f"{address}.ttrpc", "GOMAXPROCS": "2"}
        command = ["env", "--chdir", str(self._bundle), program_of(session.system.runtime)]
        command += ["-namespace", CONTAINERS, "-address", address]
        command += ["-publish-binary", session.system.containerd, "-id", self.id, "start"]
        output = self._outside / "start.log"
        process = session.place.prepare(command, output, environment)
        began = time.monotonic()
        status = go(process).wait(PATIENCE)
        took = time.monotonic() - began
        if status:
            text = output.read_text(errors="replace")[-500:]
            raise ChildProcessError(f"the shim's start has failed ({status}): {text}")
        return took

    def live(self) -> float:
        """Create, Start, Wait, Delete, each when the one before is answered; seconds.

        Raises as `ask`.
        """
        requests: list[Request] = [
            ("Create", task_pb2.CreateTaskRequest(id=self.id, bundle=str(self._bundle))),
            ("Start", task_pb2.StartRequest(id=self.id)),
            ("Wait", task_pb2.WaitRequest(id=self.id)),
            ("Delete", task_pb2.DeleteRequest(id=self.id)),
        ]
        frames = self._outside / "life.frames"
        write_frames(frames, _SERVICE.service, requests)
        address = socket_of(self._session, _SERVICE, self.id)
        (took,) = ask(self._session.rootfs, 1, [(frames, address)])
        return took

    def end(self) -> None:
        """Let the shim end. Raises OSError."""
        frames = self._outside / "shutdown.frames"
        shutdown = task_pb2.ShutdownRequest(id=self.id)
        write_frames(frames, _SERVICE.service, [("Shutdown", shutdown)])
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(socket_of(self._session, _SERVICE, self.id)))
            client.sendall(frames.read_bytes())
            client.recv(1)  # an answer, or the connection's end: it may be faster


def program_of(runtime: str) -> str:
    """The program that containerd makes of a runtime's name: of its last two parts."""
    return "-".join(["containerd", "shim", *runtime.split(".")[-2:]])
