"""The messages are those of the contract, and the generated code is that of the .proto files."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

import shim
from shim._pb.containerd.v1.services.shim import shim_pb2
from shim._pb.containerd.v1.types import types_pb2

ROOT = Path(__file__).resolve().parents[2]
PB = Path(shim.__file__).parent / "_pb"

SHIM = "containerd.v1.services.shim"
TYPES = "containerd.v1.types"
EMPTY = "google.protobuf.Empty"

# Contract: Messages. As NAME=NUMBER TYPE; a * stands for repeated.
FIELDS = {
    "CreateRequest": "id=1 string, bundle=2 string, runtime=3 string, no_pivot=4 bool, "
    "terminal=5 bool, stdin=6 string, stdout=7 string, stderr=8 string, "
    "rootfs=9 *containerd.v1.types.Mount, checkpoint=10 string, parent_checkpoint=11 string",
    "CreateResponse": "pid=1 uint32",
    "StartRequest": "",
    "DeleteRequest": "pid=1 uint32",
    "DeleteResponse": "exit_status=1 uint32, exited_at=2 google.protobuf.Timestamp",
    "StateRequest": "",
    "StateResponse": "id=1 string, bundle=2 string, pid=3 uint32, "
    "status=4 containerd.v1.types.Status, processes=5 *containerd.v1.types.Process",
    "ProcessesRequest": "id=1 string",
    "ProcessesResponse": "processes=1 *containerd.v1.types.Process",
    "PauseRequest": "",
    "ResumeRequest": "",
    "CheckpointRequest": "exit=1 bool, allow_tcp=2 bool, allow_unix_sockets=3 bool, "
    "allow_terminal=4 bool, file_locks=5 bool, empty_namespaces=6 *string, image=7 string",
    "ExitRequest": "",
    "EventsRequest": "",
    "KillRequest": "signal=1 uint32, all=2 bool, pid=3 uint32",
    "ExecRequest": "terminal=1 bool, stdin=2 string, stdout=3 string, stderr=4 string, "
    "spec=5 google.protobuf.Any",
    "ExecResponse": "pid=1 uint32",
    "PtyRequest": "pid=1 uint32, width=2 uint32, height=3 uint32",
    "CloseStdinRequest": "pid=1 uint32",
    "Rlimit": "type=1 string, hard=2 uint64, soft=3 uint64",
    "Mount": "type=1 string, source=2 string, target=3 string, options=4 *string",
    "Process": "pid=1 uint32, args=2 *string, env=3 *string, user=4 containerd.v1.types.User, "
    "cwd=5 string, terminal=6 bool, exit_status=7 uint32, status=8 containerd.v1.types.Status, "
    "runtime_data=9 google.protobuf.Any",
    "User": "uid=1 uint32, gid=2 uint32, additional_gids=3 *uint32",
    "Task": "id=1 string, container_id=2 string, pid=3 uint32, "
    "status=4 containerd.v1.types.Status, spec=5 google.protobuf.Any",
    "Event": "id=1 string, type=2 containerd.v1.types.Event.EventType, pid=3 uint32, "
    "exit_status=4 uint32, exited_at=5 google.protobuf.Timestamp",
}
STATUS = {"UNKNOWN": 0, "CREATED": 1, "RUNNING": 2, "STOPPED": 3, "PAUSED": 4}
EVENT_TYPE = {"EXIT": 0, "OOM": 1, "CREATE": 2, "START": 3, "EXEC_ADDED": 4, "PAUSED": 5}

METHODS = {
    "Create": ("CreateRequest", f"{SHIM}.CreateResponse"),
    "Start": ("StartRequest", EMPTY),
    "Delete": ("DeleteRequest", f"{SHIM}.DeleteResponse"),
    "State": ("StateRequest", f"{SHIM}.StateResponse"),
    "Processes": ("ProcessesRequest", f"{SHIM}.ProcessesResponse"),
    "Pause": ("PauseRequest", EMPTY),
    "Resume": ("ResumeRequest", EMPTY),
    "Checkpoint": ("CheckpointRequest", EMPTY),
    "Exit": ("ExitRequest", EMPTY),
    "Events": ("EventsRequest", f"stream {TYPES}.Event"),
    "Kill": ("KillRequest", EMPTY),
    "Exec": ("ExecRequest", f"{SHIM}.ExecResponse"),
    "Pty": ("PtyRequest", EMPTY),
    "CloseStdin": ("CloseStdinRequest", EMPTY),
}

KINDS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def described(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    kind = named.full_name if named else KINDS[field.type]
    return f"{field.name}={field.number} {'*' if field.is_repeated else ''}{kind}"


def messages() -> dict[str, str]:
    found = {**types_pb2.DESCRIPTOR.message_types_by_name}
    found.update(shim_pb2.DESCRIPTOR.message_types_by_name)
    return {
        name: ", ".join(map(described, sorted(message.fields, key=lambda field: field.number)))
        for name, message in found.items()
    }


def test_the_files_have_these_messages_and_no_others() -> None:
    assert set(messages()) == set(FIELDS)
    assert (shim_pb2.DESCRIPTOR.package, types_pb2.DESCRIPTOR.package) == (SHIM, TYPES)


@pytest.mark.parametrize("name", FIELDS)
def test_a_message_s_fields(name: str) -> None:
    assert messages()[name] == FIELDS[name]


def test_the_enumerations() -> None:
    status = types_pb2.DESCRIPTOR.enum_types_by_name["Status"]
    kinds = types_pb2.Event.DESCRIPTOR.enum_types_by_name["EventType"]
    assert {value.name: value.number for value in status.values} == STATUS
    assert {value.name: value.number for value in kinds.values} == EVENT_TYPE


def test_the_service() -> None:
    [service] = shim_pb2.DESCRIPTOR.services_by_name.values()
    assert service.full_name == f"{SHIM}.Shim"
    found = {
        method.name: (
            method.input_type.name,
            ("stream " if method.server_streaming else "") + method.output_type.full_name,
        )
        for method in service.methods
    }
    assert found == METHODS
    assert not any(method.client_streaming for method in service.methods)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    rows = {str(path.relative_to(folder)): path.read_bytes() for path in found}
    return {name: data for name, data in rows.items() if "__pycache__" not in name}


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    generate = runpy.run_path(str(ROOT / "scripts" / "make_proto.py"))["generate"]
    generate(tmp_path / "_pb")
    assert files(tmp_path / "_pb") == files(PB)
