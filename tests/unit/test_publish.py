"""Events as containerd gets them, and the marks by which each is told once."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from shim._pb import ttrpc_pb2
from shim._pb.containerd.events import task_pb2 as events
from shim._pb.containerd.services.events.ttrpc.v1.events_pb2 import ForwardRequest
from shim.api.publish import MARKS, Publisher
from shim.model import CreateRequest, Event, EventType, Launcher, Mount, RuntimeOptions, Stdio
from shim.service.groups import Group

NOW = 1_500_000_000_123_456_789
ENDED = 1_400_000_000_000_000_001
GROUP = Group(9, "/c.sock", "/c.sock.ttrpc", "space", "/s/group", Launcher())


class Keeper:
    """What it is to publish."""

    def __init__(self) -> None:
        self.published: list[tuple[int, int, bytes, int, int]] = []

    def publish(self, *arguments: Any) -> None:
        self.published.append(arguments)


def told(
    event: Event, owner: int = 5, number: int = 0, request: CreateRequest | None = None
) -> Any:
    """The envelope, and the event's mark and number."""
    keeper = Keeper()
    publisher = Publisher(keeper, GROUP, lambda: NOW)  # type: ignore[arg-type]
    if request is not None:
        publisher.describe(request)
    publisher.tell(event, owner, number)
    [(destination, about, body, mark, count)] = keeper.published
    assert (destination, about) == (GROUP.destination, owner)
    call = ttrpc_pb2.Request.FromString(body)
    assert (call.service, call.method) == ("containerd.services.events.ttrpc.v1.Events", "Forward")
    return ForwardRequest.FromString(call.payload).envelope, mark, count


def event(type: EventType, exec_id: str = "") -> Event:
    return Event("box", type, 42, 7, ENDED, exec_id)


@pytest.mark.parametrize(
    ("type", "topic", "kind", "fields"),
    [
        (EventType.CREATE, "create", events.TaskCreate, {"pid": 42}),
        (EventType.START, "start", events.TaskStart, {"pid": 42}),
        (EventType.EXEC_ADDED, "exec-added", events.TaskExecAdded, {"exec_id": "e"}),
        (EventType.EXEC_STARTED, "exec-started", events.TaskExecStarted, {"exec_id": "e"}),
        (EventType.PAUSED, "paused", events.TaskPaused, {}),
        (EventType.RESUMED, "resumed", events.TaskResumed, {}),
        (EventType.OOM, "oom", events.TaskOOM, {}),
        (EventType.EXIT, "exit", events.TaskExit, {"id": "e", "pid": 42, "exit_status": 7}),
        (EventType.DELETE, "delete", events.TaskDelete, {"id": "", "pid": 42, "exit_status": 7}),
    ],
)
def test_each_event_has_its_topic_and_message(
    type: EventType, topic: str, kind: type[Message], fields: dict[str, object]
) -> None:
    """The type's URL is its bare name: containerd compares it as text."""
    envelope, _, _ = told(event(type, "e"))
    assert envelope.topic == f"/tasks/{topic}"
    assert envelope.namespace == "space"
    assert envelope.timestamp.ToNanoseconds() == NOW
    assert envelope.event.type_url == kind.DESCRIPTOR.full_name
    message: Any = kind.FromString(envelope.event.value)
    assert message.container_id == "box"
    assert {name: getattr(message, name) for name in fields} == fields
    if "exited_at" in kind.DESCRIPTOR.fields_by_name:
        assert message.exited_at.ToNanoseconds() == ENDED


def test_the_exit_of_the_init_process_has_the_container_s_id() -> None:
    envelope, _, _ = told(event(EventType.EXIT))
    assert events.TaskExit.FromString(envelope.event.value).id == "box"


def test_create_tells_what_was_asked_for() -> None:
    request = CreateRequest(
        "box",
        "/bundle",
        Stdio(True, "/in", "/out", ""),
        RuntimeOptions(),
        rootfs=(Mount("bind", "/source", "/target", ("ro", "rbind")),),
        checkpoint="/image",
    )
    envelope, _, _ = told(event(EventType.CREATE), request=request)
    found = events.TaskCreate.FromString(envelope.event.value)
    assert (found.container_id, found.pid) == ("box", 42)
    assert (found.bundle, found.checkpoint) == ("/bundle", "/image")
    assert (found.io.stdin, found.io.stdout, found.io.stderr) == ("/in", "/out", "")
    assert found.io.terminal
    [mount] = found.rootfs
    assert (mount.type, mount.source, mount.target) == ("bind", "/source", "/target")
    assert list(mount.options) == ["ro", "rbind"]


def test_marks_tell_the_events_of_a_process_apart() -> None:
    """What comes again and again has none, or a count."""
    assert len(set(MARKS.values())) == len(MARKS)
    assert all(mark.bit_count() == 1 and mark < 1 << 16 for mark in MARKS.values())
    assert {type for type in EventType if type not in MARKS} == {
        EventType.PAUSED,
        EventType.RESUMED,
    }
    assert told(event(EventType.EXIT))[1:] == (MARKS[EventType.EXIT], 0)
    assert told(event(EventType.OOM), number=3)[1:] == (0x8000, 3)
    assert told(event(EventType.PAUSED))[1:] == (0, 0)


def test_what_is_about_no_process_has_no_mark() -> None:
    """An exec that was only added: the keeper knows nothing to mark."""
    assert told(event(EventType.EXEC_ADDED, "e"), owner=0)[1:] == (0, 0)


def test_a_container_is_known_once_its_creation_was_told() -> None:
    publisher = Publisher(Keeper(), GROUP, lambda: NOW)  # type: ignore[arg-type]
    assert publisher.knows_created(MARKS[EventType.CREATE] | MARKS[EventType.START])
    assert not publisher.knows_created(MARKS[EventType.START])


def test_groups_of_one_containerd_have_one_destination() -> None:
    other = Group(10, "/c.sock", "/c.sock.ttrpc", "other", "/s/other", Launcher())
    elsewhere = Group(11, "/c.sock", "/d.sock.ttrpc", "space", "/s/group", Launcher())
    assert GROUP.destination == other.destination != elsewhere.destination
    assert 0 < GROUP.destination < 1 << 64
