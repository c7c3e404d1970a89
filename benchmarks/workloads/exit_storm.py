"""Many containers that end at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import grpc

from benchmarks._pb import containerd_pb2 as pb
from benchmarks.claims import Claim, Kind
from benchmarks.systems.base import Can
from benchmarks.waiting import until
from benchmarks.workloads.base import Figure, Workload
from shim._pb.containerd.events import task_pb2

if TYPE_CHECKING:
    from benchmarks.session import Session

_TOPIC: Final = "/tasks/exit"
# No event has come for so long: the rest is lost.
_SILENCE_S: Final = 15.0


class ExitStorm(Workload):
    """SIGKILL to all init processes in one go, by the harness and not through the shims."""

    name = "exit_storm"
    title = "Exit storm"
    needs = Can.TASKS | Can.CROWD
    stage = "crowd"
    order = 90
    full = {"rounds": 3, "containers": 500}
    quick = {"rounds": 1, "containers": 30}

    def figures(self) -> Sequence[Figure]:
        return [
            Figure("last", "from the first kill to the last exit event", "ms"),
            Figure("lost", "exit events lost", ""),
            Figure("cpu", "CPU time of the shims", "ms"),
        ]

    def claims(self) -> Sequence[Claim]:
        return [
            Claim("no exit event is lost", "lost", 0),
            Claim("the last exit event: after at most half of their time", "last", 0.5, Kind.RATIO),
        ]

    def run(self, session: Session) -> Mapping[str, float]:
        doomed = session.crowd.take(self.sizes["containers"])
        with session.api.events(_TOPIC) as stream:
            exits = Exits(stream)
            # Who subscribes is not told when it is in force: the first event tells.
            until(lambda: bool(session.run("true").finish() == 0 and exits.seen), "an exit event")
            cpu = session.shim_cpu()
            began = time.monotonic()
            for each in doomed:
                os.kill(each.pid, signal.SIGKILL)
            lost = exits.wait_for({each.id for each in doomed})
            found = {
                "last": (exits.last - began) * 1e3,
                "lost": lost,
                "cpu": (session.shim_cpu() - cpu) * 1e3,
            }
        exits.join()
        session.crowd.bury(doomed)
        return found


class Exits:
    """Collects the exit events of containers, until the stream is cancelled."""

    def __init__(self, stream: Iterator[pb.Envelope]) -> None:
        self._stream = stream
        self._changed = threading.Condition()
        self.seen: set[str] = set()
        self.last = 0.0  # when the last one came, by the monotonic clock
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for envelope in self._stream:
                event = task_pb2.TaskExit.FromString(envelope.event.value)
                with self._changed:
                    self.seen.add(event.container_id)
                    self.last = time.monotonic()
                    self._changed.notify()

    def wait_for(self, ids: set[str]) -> int:
        """Return when all have been seen, or none has come for a while: how many are missing."""
        with self._changed:
            while missing := len(ids - self.seen):
                if not self._changed.wait(_SILENCE_S):
                    return missing
        return 0

    def join(self) -> None:
        """Return when the stream has ended."""
        self._thread.join()
