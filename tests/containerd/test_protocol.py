"""Clients of a group's socket that are no containerd: what they get for what they send."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from shim._pb import ttrpc_pb2
from shim._pb.containerd.linux.runc import options_pb2 as linux_pb2
from shim._pb.containerd.runc.v1 import options_pb2 as runc_pb2
from shim._pb.containerd.task.v3 import task_pb2 as pb
from shim._pb.containerd.v2.types import task_pb2 as types_pb2
from shim._pb.runtimeoptions.v1 import options_pb2 as runtime_pb2
from shim.oci.spec import process, spec
from tests.containerd.caller import V2, V3, Answer, TaskCaller
from tests.containerd.containerd import Container, Containerd
from tests.containerd.fuse import hanging
from tests.containerd.gate import Gate
from tests.containerd.host import Host, socket_of
from tests.containerd.support import PATIENCE, client, new_id, until
from tests.native.frames import DATA, HEADER, MOST, REQUEST, Frame, request

INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = 3, 4, 5, 6
RESOURCE_EXHAUSTED, UNKNOWN, UNIMPLEMENTED = 8, 2, 12
# What a caller must not have to wait for, in seconds; and how often it is tried, on a busy machine.
SOON, TRIES = 0.1, 20


@pytest.fixture(scope="module")
def sleeper(containerd: Containerd) -> Iterator[Container]:
    """A container whose group's socket the tests call."""
    with containerd.living() as container:
        yield container


@pytest.fixture
def caller(sleeper: Container) -> Iterator[TaskCaller]:
    with TaskCaller(socket_of(sleeper)) as made:
        yield made


def is_served(caller: TaskCaller, id: str) -> bool:
    """Whether this very connection still works."""
    found = caller.call("State", pb.StateRequest(id=id)).of(pb.StateResponse)
    return bool(found.status == types_pb2.RUNNING)


# -- frames


@pytest.mark.parametrize(
    ("frame", "stream", "code"),
    [
        (request(2), 2, INVALID_ARGUMENT),
        (request(0), 0, INVALID_ARGUMENT),
        (Frame(101, b"data", DATA).pack(), 101, INVALID_ARGUMENT),
        (request(101, b"\xff no protobuf"), 101, INVALID_ARGUMENT),
        (HEADER.pack(MOST + 1, 101, REQUEST, 0) + bytes(MOST + 1), 101, RESOURCE_EXHAUSTED),
    ],
)
def test_a_wrong_frame_is_refused_and_the_connection_stays(
    containerd: Containerd, sleeper: Container, frame: bytes, stream: int, code: int
) -> None:
    with TaskCaller(socket_of(sleeper)) as caller:
        caller.send(frame)
        found = caller.receive()
        assert (found.stream, Answer.read(found).code) == (stream, code)
        body = frame_of(V2, "State", pb.StateRequest(id=sleeper.id))
        caller.send(request(1001, body))
        assert caller.receive().stream == 1001


def frame_of(service: str, method: str, message: Message) -> bytes:
    """A ttrpc Request."""
    payload = message.SerializeToString()
    body = ttrpc_pb2.Request(service=service, method=method, payload=payload)
    return bytes(body.SerializeToString())


def test_a_stream_s_number_is_used_once(caller: TaskCaller, sleeper: Container) -> None:
    """The first request of that number is answered, the second refused."""
    caller.send(request(3, b"") * 2)
    codes = {Answer.read(caller.receive()).code for _ in range(2)}
    assert codes == {INVALID_ARGUMENT, UNIMPLEMENTED}
    caller.send(request(1, b""))
    assert Answer.read(caller.receive()).code == INVALID_ARGUMENT
    caller.send(request(5, frame_of(V2, "State", pb.StateRequest(id=sleeper.id))))
    assert Answer.read(caller.receive()).of(pb.StateResponse).pid == sleeper.pid


@pytest.mark.parametrize("type", [0, 2, 9, 255])
def test_frames_of_other_types_are_passed_over(
    caller: TaskCaller, sleeper: Container, type: int
) -> None:
    for _ in range(100):
        caller.send(Frame(7, b"whatever", type).pack())
    assert is_served(caller, sleeper.id)


def test_a_frame_may_come_byte_by_byte(caller: TaskCaller, sleeper: Container) -> None:
    for byte in request(1, frame_of(V2, "State", pb.StateRequest(id=sleeper.id))):
        caller.send(bytes([byte]))
    assert Answer.read(caller.receive()).of(pb.StateResponse).pid == sleeper.pid


def test_half_a_frame_and_the_end(sleeper: Container) -> None:
    """Clients that hang up anywhere disturb nobody."""
    whole = request(1, frame_of(V2, "State", pb.StateRequest(id=sleeper.id)))
    for size in (0, 1, 9, 10, 11, len(whole) - 1, len(whole)):
        with TaskCaller(socket_of(sleeper)) as caller:
            caller.send(whole[:size])
    with TaskCaller(socket_of(sleeper)) as caller:
        assert is_served(caller, sleeper.id)


def test_a_half_closed_connection_is_ended(caller: TaskCaller, sleeper: Container) -> None:
    """What was answered comes; what would be answered some time does not keep it open."""
    caller.ask("Wait", pb.WaitRequest(id=sleeper.id))
    assert is_served(caller, sleeper.id)
    caller.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError):
        caller.receive()


def test_a_client_that_never_reads(sleeper: Container) -> None:
    """It is not read any more, either; others are served as ever."""
    path = socket_of(sleeper)
    asked = frame_of(V2, "State", pb.StateRequest(id=sleeper.id))
    with TaskCaller(path) as deaf, TaskCaller(path) as other:
        deaf.socket.setblocking(False)
        stream = 1

        def is_full() -> bool:
            nonlocal stream
            try:
                while True:
                    deaf.socket.sendall(request(stream, asked))
                    stream += 2
            except BlockingIOError:
                return is_served(other, sleeper.id) and _stays_full(deaf)

        until(is_full, "the keeper reads no more")
        assert soonest(other, "State", pb.StateRequest(id=sleeper.id)) < SOON


def _stays_full(caller: TaskCaller) -> bool:
    """Whether nothing has been read of what is queued, though another was answered meanwhile."""
    return caller.unread() > 0


def soonest(caller: TaskCaller, method: str, message: Message) -> float:
    """The fastest of several calls."""
    times = []
    for _ in range(TRIES):
        begin = time.monotonic()
        assert caller.call(method, message).code == 0
        times.append(time.monotonic() - begin)
    return min(times)


_STRANGER = """
import socket, sys
caller = socket.socket(socket.AF_UNIX)
caller.settimeout(20)
caller.connect(sys.argv[1])
try:
    caller.sendall(bytes.fromhex(sys.argv[2]))
    print(caller.recv(1))
except ConnectionError:
    print(b"")
"""


@pytest.mark.parametrize(("user", "answer"), [(0, b"b'\\x00'\n"), (65534, b"b''\n")])
def test_strangers_are_refused(sleeper: Container, user: int, answer: bytes) -> None:
    """Though the file's mode let them in."""
    path = socket_of(sleeper)
    before = path.stat().st_mode
    found = os.open(path, os.O_PATH)
    try:
        path.chmod(0o666)
        frame = request(1, frame_of("none", "None", pb.StateRequest()))
        line = ["/usr/bin/python3", "-c", _STRANGER, f"/proc/self/fd/{found}", frame.hex()]
        done = subprocess.run(
            line, pass_fds=[found], user=user, stdout=subprocess.PIPE, timeout=PATIENCE
        )
        assert done.stdout == answer
    finally:
        path.chmod(before)
        os.close(found)


# -- services and methods


def test_both_services_on_one_connection(caller: TaskCaller, sleeper: Container) -> None:
    asked = pb.StateRequest(id=sleeper.id)
    streams = [caller.ask("State", asked, service=name) for name in (V2, V3) * 10]
    found = [caller.answer(stream) for stream in reversed(streams)]
    assert {answer.of(pb.StateResponse).pid for answer in found} == {sleeper.pid}


@pytest.mark.parametrize(
    ("service", "method"),
    [
        ("containerd.task.v4.Task", "State"),
        ("containerd.runtime.sandbox.v1.Sandbox", "CreateSandbox"),
        ("denseshim.host.v1.Host2", "Launch"),
        ("", ""),
        (V2, "state"),
        (V3, "Sleep"),
    ],
)
def test_what_is_not_there_is_unimplemented(
    caller: TaskCaller, sleeper: Container, service: str, method: str
) -> None:
    assert caller.call(method, b"", service=service).code == UNIMPLEMENTED
    assert is_served(caller, sleeper.id)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Start", pb.StartRequest(id="none")),
        ("Delete", pb.DeleteRequest(id="none")),
        ("Exec", pb.ExecProcessRequest(id="none", exec_id="e")),
        ("ResizePty", pb.ResizePtyRequest(id="none")),
        ("State", pb.StateRequest(id="none")),
        ("Pids", pb.PidsRequest(id="none")),
        ("Kill", pb.KillRequest(id="none", signal=9)),
        ("CloseIO", pb.CloseIORequest(id="none", stdin=True)),
        ("Pause", pb.PauseRequest(id="none")),
        ("Resume", pb.ResumeRequest(id="none")),
        ("Checkpoint", pb.CheckpointTaskRequest(id="none", path="/none")),
        ("Update", pb.UpdateTaskRequest(id="none", resources=Any(value=b"{}"))),
        ("Wait", pb.WaitRequest(id="none")),
        ("Stats", pb.StatsRequest(id="none")),
    ],
)
@pytest.mark.parametrize("exec", [False, True])
def test_what_is_unknown_is_not_found(
    caller: TaskCaller, sleeper: Container, method: str, message: Message, exec: bool
) -> None:
    """The container, and, where the method takes one, the exec."""
    asked = type(message)()
    asked.CopyFrom(message)
    if exec:
        if "exec_id" not in asked.DESCRIPTOR.fields_by_name or method == "Exec":
            return
        asked.id, asked.exec_id = sleeper.id, "none"
    found = caller.call(method, asked)
    assert (found.code, "none" in found.text) == (NOT_FOUND, True)


def test_what_answers_for_an_unknown_container(caller: TaskCaller, sleeper: Container) -> None:
    """containerd asks so before there is one, and after it is gone."""
    connect = pb.ConnectRequest(id="none")
    found = caller.call("Connect", connect).of(pb.ConnectResponse)
    assert (found.task_pid, found.shim_pid > 0) == (0, True)
    assert caller.call("Shutdown", pb.ShutdownRequest(id="none")).code == 0
    assert is_served(caller, sleeper.id)


def test_a_payload_that_is_no_message(caller: TaskCaller, sleeper: Container) -> None:
    for method in ("Create", "State", "Kill", "Wait"):
        assert caller.call(method, b"\xff\xff").code == INVALID_ARGUMENT
    assert is_served(caller, sleeper.id)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("CloseIO", pb.CloseIORequest(stdin=True)),
        ("ResizePty", pb.ResizePtyRequest(width=80, height=24)),
        ("ResizePty", pb.ResizePtyRequest(width=1 << 31, height=1 << 20)),
        ("Shutdown", pb.ShutdownRequest()),
        ("Shutdown", pb.ShutdownRequest(now=True)),
        ("Connect", pb.ConnectRequest()),
    ],
)
def test_what_may_be_repeated(
    caller: TaskCaller, sleeper: Container, method: str, message: Message
) -> None:
    message.id = sleeper.id  # type: ignore[attr-defined]
    for _ in range(3):
        assert caller.call(method, message).code == 0
    assert is_served(caller, sleeper.id)


def test_a_wait_ends_at_its_deadline(caller: TaskCaller, sleeper: Container) -> None:
    """One without a deadline, on the same connection, goes on."""
    asked = pb.WaitRequest(id=sleeper.id)
    endless = caller.ask("Wait", asked)
    begin = time.monotonic()
    assert caller.call("Wait", asked, timeout=0.3).code == DEADLINE_EXCEEDED
    assert time.monotonic() - begin >= 0.3
    assert endless not in caller.answered
    assert is_served(caller, sleeper.id)


# -- Create


Create = Callable[..., pb.CreateTaskRequest]


@pytest.fixture
def created(containerd: Containerd, tmp_path: Path) -> Create:
    """Makes a bundle, and a request to create it: `sleep 1000`."""

    def make(**fields: object) -> pb.CreateTaskRequest:
        id = new_id()
        bundle = tmp_path / id
        (bundle / "rootfs").mkdir(parents=True)
        rootfs = "rootfs" if "rootfs" in fields else str(containerd.rootfs.path)
        config = spec(id, ["sleep", "1000"], rootfs=rootfs)
        (bundle / "config.json").write_text(json.dumps(config))
        return pb.CreateTaskRequest(**{"id": id, "bundle": str(bundle), **fields})

    return make


def any_of(message: Message, prefix: str = "") -> Any:
    """As containerd packs it."""
    return Any(type_url=prefix + message.DESCRIPTOR.full_name, value=message.SerializeToString())


TOML = b"BinaryName = 'runc'\nNoNewKeyring = true\nIoUid = 12\n"


@pytest.mark.parametrize(
    "options",
    [
        None,
        Any(),
        any_of(runc_pb2.Options()),
        any_of(runc_pb2.Options(no_new_keyring=True, io_uid=12, binary_name="runc")),
        any_of(runc_pb2.Options(no_new_keyring=True), "type.googleapis.com/"),
        any_of(linux_pb2.CreateOptions(no_new_keyring=True, io_gid=12)),
        any_of(runtime_pb2.Options(config_body=TOML)),
        any_of(runtime_pb2.Options(type_url="any", config_path="{file}")),
        any_of(runtime_pb2.Options()),
    ],
)
def test_options_that_are_taken(
    caller: TaskCaller, created: Create, tmp_path: Path, options: Any | None
) -> None:
    """The container runs, and is gone afterwards."""
    (tmp_path / "options").write_bytes(TOML)
    asked = created()
    if options is not None:
        file = runtime_pb2.Options(type_url="any", config_path=str(tmp_path / "options"))
        asked.options.CopyFrom(any_of(file) if b"{file}" in options.value else options)
    pid = caller.call("Create", asked).of(pb.CreateTaskResponse).pid
    assert caller.call("Start", pb.StartRequest(id=asked.id)).of(pb.StartResponse).pid == pid
    assert caller.call("Create", asked).code == ALREADY_EXISTS
    delete = pb.DeleteRequest(id=asked.id)
    assert caller.call("Delete", delete).code == UNKNOWN
    assert caller.call("Kill", pb.KillRequest(id=asked.id, signal=9)).code == 0
    assert caller.call("Wait", pb.WaitRequest(id=asked.id)).of(pb.WaitResponse).exit_status == 137
    found = caller.call("Delete", delete).of(pb.DeleteResponse)
    assert (found.pid, found.exit_status) == (pid, 137)
    assert caller.call("Delete", delete).code == NOT_FOUND


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Any(type_url="containerd.runc.v9.Options", value=b""), "containerd.runc.v9.Options"),
        (Any(type_url="", value=b"x"), "type ''"),
        (Any(type_url="containerd.runc.v1.Options", value=b"\xff"), "containerd.runc.v1.Options"),
        (any_of(runc_pb2.CheckpointOptions()), "CheckpointOptions"),
        (any_of(runc_pb2.Options(binary_name="no-runc")), '"no-runc"'),
        (any_of(runtime_pb2.Options(config_body=b"no TOML")), "not TOML"),
        (any_of(runtime_pb2.Options(config_body=b"IoUid = -1")), "IoUid"),
        (any_of(runtime_pb2.Options(config_body=b"NoPivotRoot = 1")), "NoPivotRoot"),
        (any_of(runtime_pb2.Options(config_path="/no/such")), "/no/such"),
        (any_of(runtime_pb2.Options(config_path="/dev/zero")), "/dev/zero"),
    ],
)
def test_options_that_are_refused(
    caller: TaskCaller, created: Create, options: Any, says: str
) -> None:
    """With a word, and nothing is left; the same container can be created without them."""
    asked = created(options=options)
    found = caller.call("Create", asked)
    assert (found.code, says in found.text) == (INVALID_ARGUMENT, True), found
    assert caller.call("State", pb.StateRequest(id=asked.id)).code == NOT_FOUND
    asked.ClearField("options")
    assert caller.call("Create", asked).code == 0
    assert caller.call("Delete", pb.DeleteRequest(id=asked.id)).code == 0


@pytest.mark.parametrize("id", ["", "..", "../x", "a/b", "a b", "-a", "a..b", "a" * 77, "a\0", "ä"])
def test_ids_that_are_none(
    caller: TaskCaller, created: Create, sleeper: Container, id: str
) -> None:
    asked = created()
    asked.id = id
    assert caller.call("Create", asked).code == INVALID_ARGUMENT
    exec = pb.ExecProcessRequest(id=sleeper.id, exec_id=id)
    exec.spec.value = json.dumps(process(["true"])).encode()
    assert caller.call("Exec", exec).code == INVALID_ARGUMENT
    assert is_served(caller, sleeper.id)


@pytest.mark.parametrize("value", [b"", b"[]", b"{", b"\xff", b'"text"', b"[" * 100_000])
def test_an_exec_that_is_no_process(caller: TaskCaller, sleeper: Container, value: bytes) -> None:
    exec = pb.ExecProcessRequest(id=sleeper.id, exec_id="broken")
    exec.spec.value = value
    assert caller.call("Exec", exec).code == INVALID_ARGUMENT
    found = caller.call("State", pb.StateRequest(id=sleeper.id, exec_id="broken"))
    assert found.code == NOT_FOUND


# -- what hangs


def others_are_served(host: Host, sleeper: Container) -> None:
    """Whoever hangs keeps nobody else."""
    with host.caller(sleeper) as caller:
        assert soonest(caller, "State", pb.StateRequest(id=sleeper.id)) < SOON
        assert soonest(caller, "Pids", pb.PidsRequest(id=sleeper.id)) < SOON
    assert sleeper.exec("echo", "words").stdout == b"words\n"


def test_a_runtime_that_hangs(containerd: Containerd, sleeper: Container, tmp_path: Path) -> None:
    gate = Gate(tmp_path, "create")
    line = containerd.run_line(new_id(), "true", options=["--rm", *gate.options])
    with client(line) as running:
        gate.reached()
        try:
            others_are_served(Host(containerd), sleeper)
        finally:
            gate.open()
        assert running.wait(PATIENCE) == 0


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_stream_s_file_system_hangs(
    containerd: Containerd, sleeper: Container, tmp_path: Path, stream: str
) -> None:
    """The exec's Start waits; it fails when the file system is gone."""
    (tmp_path / "hangs").mkdir()
    host = Host(containerd)
    exec = pb.ExecProcessRequest(id=sleeper.id, exec_id=f"hangs-{stream}")
    setattr(exec, stream, str(tmp_path / "hangs" / "fifo"))
    exec.spec.value = json.dumps(process(["true"])).encode()
    named = {"id": sleeper.id, "exec_id": exec.exec_id}
    with host.caller(sleeper) as caller:
        with hanging(containerd.machine, tmp_path / "hangs"):
            assert caller.call("Exec", exec).code == 0
            start = caller.ask("Start", pb.StartRequest(**named))
            others_are_served(host, sleeper)
            found = caller.call("State", pb.StateRequest(**named)).of(pb.StateResponse)
            assert found.status == types_pb2.CREATED
        assert caller.answer(start).code == INVALID_ARGUMENT
        assert caller.call("Delete", pb.DeleteRequest(**named)).code == 0


def test_a_root_s_file_system_hangs(
    containerd: Containerd, sleeper: Container, created: Create, tmp_path: Path
) -> None:
    """Create waits for the mount; it fails, and leaves nothing, when the file system is gone."""
    (tmp_path / "hangs").mkdir()
    host = Host(containerd)
    root = {"type": "bind", "source": str(tmp_path / "hangs" / "root"), "options": ["rbind", "ro"]}
    asked = created(rootfs=[root])
    with host.caller(sleeper) as caller:
        with hanging(containerd.machine, tmp_path / "hangs"):
            creating = caller.ask("Create", asked)
            others_are_served(host, sleeper)
            assert caller.call("State", pb.StateRequest(id=asked.id)).code == NOT_FOUND
        assert caller.answer(creating).code == UNKNOWN
        assert caller.call("State", pb.StateRequest(id=asked.id)).code == NOT_FOUND
