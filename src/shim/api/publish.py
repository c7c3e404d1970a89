"""Events for containerd: what it is sent of each, and which of them are sent once.

Contract: runtime-v2, Events. The keeper queues and sends them; a mark at the process that an
event is about keeps the next front from sending it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from shim._pb import ttrpc_pb2
from shim._pb.containerd.events import task_pb2 as events
from shim._pb.containerd.services.events.ttrpc.v1 import events_pb2
from shim._pb.containerd.types import mount_pb2
from shim.api import anys
from shim.keeper.client import KeeperClient
from shim.model import CreateRequest, Event, EventType
from shim.service.groups import Group

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"

MARKS: Final = {
    EventType.CREATE: 1,
    EventType.START: 2,
    EventType.EXIT: 4,
    EventType.DELETE: 8,
    EventType.EXEC_ADDED: 16,
    EventType.EXEC_STARTED: 32,
    EventType.OOM: 0x8000,  # counted
}
_TOPICS: Final = {
    EventType.EXEC_ADDED: "/tasks/exec-added",
    EventType.EXEC_STARTED: "/tasks/exec-started",
    EventType.PAUSED: "/tasks/paused",
    EventType.RESUMED: "/tasks/resumed",
}


class Publisher:
    """The events of one container, for the containerd of its group."""

    def __init__(self, keeper: KeeperClient, group: Group, now: Callable[[], int]) -> None:
        """now: nanoseconds since the epoch."""
        self._keeper = keeper
        self._group = group
        self._now = now
        self._created = events.TaskCreate()

    def describe(self, request: CreateRequest) -> None:
        """See Teller."""
        self._created = events.TaskCreate(
            bundle=request.bundle,
            rootfs=[
                mount_pb2.Mount(
                    type=mount.type,
                    source=mount.source,
                    target=mount.target,
                    options=mount.options,
                )
                for mount in request.rootfs
            ],
            io=events.TaskIO(
                stdin=request.stdio.stdin,
                stdout=request.stdio.stdout,
                stderr=request.stdio.stderr,
                terminal=request.stdio.terminal,
            ),
            checkpoint=request.checkpoint,
        )

    def knows_created(self, marks: int) -> bool:
        """See Teller."""
        return bool(marks & MARKS[EventType.CREATE])

    def withdraw(self, id: str) -> None:
        """Nothing: it is told last, when the container is there."""

    def tell(self, event: Event, owner: int, number: int = 0) -> None:
        """See Teller."""
        mark = MARKS.get(event.type, 0) if owner else 0
        body = self._request(event)
        self._keeper.publish(self._group.destination, owner, body, mark, number)

    def _request(self, event: Event) -> bytes:
        topic = _TOPICS.get(event.type, f"/tasks/{event.type.value}")
        message = self._message(event)
        envelope = events_pb2.Envelope(
            timestamp=_timestamp(self._now()),
            namespace=self._group.namespace,
            topic=topic,
            event=anys.pack(message, message.DESCRIPTOR.full_name),
        )
        request = ttrpc_pb2.Request(
            service=SERVICE,
            method="Forward",
            payload=events_pb2.ForwardRequest(envelope=envelope).SerializeToString(),
        )
        return request.SerializeToString()

    def _message(self, event: Event) -> Message:
        if event.type is EventType.CREATE:
            created = events.TaskCreate(container_id=event.id, pid=event.pid)
            created.MergeFrom(self._created)
            self._created = events.TaskCreate()  # it is told once
            return created
        return _MESSAGES[event.type](event)


def _timestamp(time: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(time)
    return stamp


def _exit(event: Event) -> Message:
    return events.TaskExit(
        container_id=event.id,
        id=event.exec_id or event.id,
        pid=event.pid,
        exit_status=event.exit_status,
        exited_at=_timestamp(event.exited_at),
    )


def _delete(event: Event) -> Message:
    return events.TaskDelete(
        container_id=event.id,
        pid=event.pid,
        exit_status=event.exit_status,
        exited_at=_timestamp(event.exited_at),
    )


_MESSAGES: Final[dict[EventType, Callable[[Event], Message]]] = {
    EventType.START: lambda event: events.TaskStart(container_id=event.id, pid=event.pid),
    EventType.EXEC_ADDED: lambda event: events.TaskExecAdded(
        container_id=event.id, exec_id=event.exec_id
    ),
    EventType.EXEC_STARTED: lambda event: events.TaskExecStarted(
        container_id=event.id, exec_id=event.exec_id, pid=event.pid
    ),
    EventType.PAUSED: lambda event: events.TaskPaused(container_id=event.id),
    EventType.RESUMED: lambda event: events.TaskResumed(container_id=event.id),
    EventType.OOM: lambda event: events.TaskOOM(container_id=event.id),
    EventType.EXIT: _exit,
    EventType.DELETE: _delete,
}
