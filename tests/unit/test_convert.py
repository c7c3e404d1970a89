"""Every domain value survives its way over the wire."""

from __future__ import annotations

import json

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from shim import errors
from shim._pb.containerd.v1.services.shim import shim_pb2
from shim._pb.containerd.v1.types import types_pb2
from shim.api import convert
from shim.api.codes import CODES, code_of, error_of
from shim.errors import InvalidArgument, RuntimeFailed, ShimError
from shim.model import (
    CheckpointRequest,
    ContainerState,
    CreateRequest,
    Event,
    EventType,
    Exit,
    Mount,
    ProcessInfo,
    RuntimeOptions,
    Status,
    Stdio,
    User,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
U32 = st.integers(0, 2**32 - 1)
TIME = st.integers(0, 4_000_000_000 * 10**9)
BOOL = st.booleans()
STATUS = st.sampled_from(Status)

MOUNTS = st.builds(Mount, TEXT, TEXT, TEXT, TEXTS)
USERS = st.builds(User, U32, U32, st.lists(U32, max_size=3).map(tuple))
PROCESSES = st.builds(ProcessInfo, U32, STATUS, TEXTS, TEXTS, USERS, TEXT, BOOL, U32)
STDIO = st.builds(Stdio, BOOL, TEXT, TEXT, TEXT)
STATES = st.builds(
    ContainerState, TEXT, TEXT, U32, STATUS, st.lists(PROCESSES, max_size=2).map(tuple)
)
CREATES = st.builds(
    CreateRequest,
    TEXT,
    TEXT,
    STDIO,
    st.builds(RuntimeOptions, runtime=TEXT, no_pivot=BOOL),
    st.lists(MOUNTS, max_size=2).map(tuple),
    TEXT,
    TEXT,
)
CHECKPOINTS = st.builds(CheckpointRequest, TEXT, BOOL, BOOL, BOOL, BOOL, BOOL, TEXTS)


@given(MOUNTS)
def test_mount(value: Mount) -> None:
    assert convert.mount_from_pb(convert.mount_to_pb(value)) == value


@given(USERS)
def test_user(value: User) -> None:
    assert convert.user_from_pb(convert.user_to_pb(value)) == value


@given(PROCESSES)
def test_process(value: ProcessInfo) -> None:
    assert convert.process_from_pb(convert.process_to_pb(value)) == value


@given(STATES)
def test_state(value: ContainerState) -> None:
    assert convert.state_from_pb(convert.state_to_pb(value)) == value


@given(CREATES)
def test_create(value: CreateRequest) -> None:
    assert convert.create_from_pb(convert.create_to_pb(value)) == value


@given(CHECKPOINTS)
def test_checkpoint(value: CheckpointRequest) -> None:
    assert convert.checkpoint_from_pb(convert.checkpoint_to_pb(value)) == value


@given(TEXT, U32, U32, TIME)
def test_exit_event(id: str, pid: int, status: int, time: int) -> None:
    event = Event(id, EventType.EXIT, pid, status, time)
    assert convert.event_from_pb(convert.event_to_pb(event)) == event


# The service of 2017 has no number for these.
LATER = {EventType.EXEC_STARTED, EventType.RESUMED, EventType.DELETE}


@pytest.mark.parametrize("kind", [kind for kind in EventType if kind not in LATER])
def test_every_event_of_the_time_has_its_number(kind: EventType) -> None:
    number = convert.event_to_pb(Event("box", kind, 7)).type
    assert types_pb2.Event.EventType.Name(number) == kind.name


@pytest.mark.parametrize("kind", [k for k in EventType if k not in LATER | {EventType.EXIT}])
def test_other_events_carry_no_time(kind: EventType) -> None:
    message = convert.event_to_pb(Event("box", kind, 7))
    assert not message.HasField("exited_at")
    assert convert.event_from_pb(message) == Event("box", kind, 7)


@given(U32, TIME)
def test_exit(status: int, time: int) -> None:
    assert convert.exit_from_pb(convert.exit_to_pb(Exit(status, time))) == Exit(status, time)


def test_a_timestamp_is_exact_to_the_nanosecond() -> None:
    expected = Timestamp(seconds=1_500_000_000, nanos=1)
    assert convert.timestamp_to_pb(1_500_000_000_000_000_001) == expected


@given(st.dictionaries(TEXT, TEXT), STDIO)
def test_exec(spec: dict[str, str], stdio: Stdio) -> None:
    assert convert.exec_from_pb(convert.exec_to_pb(spec, stdio)) == (spec, stdio)


def test_exec_spec_is_json_of_the_type_that_containerd_names() -> None:
    spec = convert.exec_to_pb({"args": ["sh"]}, Stdio()).spec
    assert spec.type_url == "types.containerd.io/opencontainers/runtime-spec/1/Process"
    assert json.loads(spec.value) == {"args": ["sh"]}


@pytest.mark.parametrize("value", [b"", b"{", b"[1]", b"\xff"])
def test_exec_spec_that_is_no_object(value: bytes) -> None:
    message = shim_pb2.ExecRequest()
    message.spec.value = value
    with pytest.raises(InvalidArgument, match="exec's spec"):
        convert.exec_from_pb(message)


@pytest.mark.parametrize("number", [0, 99])
def test_a_status_that_says_nothing(number: int) -> None:
    with pytest.raises(InvalidArgument, match=str(number)):
        convert.status_from_pb(number)


def test_an_event_type_without_domain_value() -> None:
    message = types_pb2.Event(id="box", type=99)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="event type 99 of container box"):
        convert.event_from_pb(message)


def _is_direct(kind: object) -> bool:
    """Whether it is an error of its own; one that derives from such a one travels as that."""
    return isinstance(kind, type) and kind.__base__ is ShimError


def test_every_error_has_its_own_code() -> None:
    assert {kind.__name__ for kind in CODES} == {
        name for name, kind in vars(errors).items() if _is_direct(kind)
    }
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("kind", CODES)
def test_codes_translate_back(kind: type[ShimError]) -> None:
    error = error_of(code_of(kind("why")), "why")
    assert (type(error), str(error)) == (kind, "why")


def test_a_subclass_of_an_error_travels_as_it() -> None:
    class NoCgroup(RuntimeFailed):
        """A finer kind that somebody may add."""

    assert code_of(NoCgroup("x")) == CODES[RuntimeFailed]
