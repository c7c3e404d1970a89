"""containerd-shim-dense-v2 against a fake host, and where there is none."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

import shim
from shim._pb import ttrpc_pb2 as ttrpc
from shim._pb.containerd.task.v3 import task_pb2
from shim._pb.denseshim.host.v1 import host_pb2 as host
from tests.fakes.door import HEADER, PATIENCE, REQUEST, Door, Place, answer, frame, refusal

NAME = "containerd-shim-dense-v2"
INSTALLED = Path(sysconfig.get_path("scripts")) / NAME
SOURCE = Path(__file__).resolve().parents[2] / "src/_native/launcher.c"
MOST = 4 << 20
START = ["-namespace", "default", "-address", "/run/c.sock", "-id", "denseshim-x", "start"]
# Says how it was started: arguments, umask, what descriptors 0 and 3 are, and what stdin holds.
FAKE_PYTHON = """#!/bin/sh
for one in python "$@"; do echo "$one"; done
umask
readlink /proc/self/fd/0 || echo none
readlink /proc/self/fd/3 || echo none
[ -t 0 ] || cat
echo from python >&2
exit 7
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


@pytest.fixture
def door(place: Place) -> Iterator[Door]:
    with Door(place) as made:
        yield made


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher in a virtual environment that has a fake Python."""
    folder = tmp_path_factory.mktemp("venv")
    (folder / "pyvenv.cfg").touch()
    (folder / "bin").mkdir()
    fake_python(folder / "bin/python3")
    shutil.copy(INSTALLED, folder / "bin")
    return folder / "bin" / NAME


def fake_python(path: Path) -> None:
    path.write_text(FAKE_PYTHON)
    path.chmod(0o755)


def build(target: Path, python: Path) -> Path:
    """The launcher as if it had been built with that interpreter."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is missing: run `make system`"
    target.parent.mkdir(exist_ok=True)
    facts = ['-DVERSION="test"', f'-DPYTHON="{python}"']
    subprocess.run([compiler, "-std=c11", *facts, "-o", target, SOURCE], check=True)
    return target


def run(place: Place, argv, stdin=b"", before="umask 022", streams="3<&-", cwd=Path("/"), **more):
    """Run it there to its end; stdin is a pipe with these bytes unless it is a descriptor."""
    command = place.command(argv, cwd, before, streams)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    given = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    return subprocess.run(command, timeout=PATIENCE, **given, **pipes)


def run_with_third(place: Place, argv, third: int):
    """Run it with that descriptor as its descriptor 3."""
    return run(place, argv, streams="", close_fds=False, preexec_fn=lambda: os.dup2(third, 3))


def is_refused(done, text: str) -> bool:
    """Whether it ended with 1 and one line, which has `text` in it."""
    line = done.stderr.decode()
    one_line = line.startswith(f"{NAME}: ") and line.endswith("\n") and line.count("\n") == 1
    return done.returncode == 1 and done.stdout == b"" and one_line and text in line


def said_by_python(launcher: Path, stdin=b"", kind="/memfd:stdin (deleted)", mask="0022") -> bytes:
    """What the fake Python prints when the launcher becomes it."""
    lines = ["python", "-I", "-m", "shim.launcher", launcher, *START, mask, kind, "none"]
    return "".join(f"{line}\n" for line in lines).encode() + stdin


# ---- Version and installation ----


def test_it_is_installed_as_a_program_with_its_interpreter_in_it():
    assert stat.S_IMODE(INSTALLED.stat().st_mode) == 0o755
    content = INSTALLED.read_bytes()
    assert content.startswith(b"\x7fELF")
    assert os.fsencode(Path(sys.executable).parent / "python") in content


@pytest.mark.parametrize(
    "arguments", [["-v"], ["-version"], ["--version"], ["-id", "x", "-v"], ["-v", "start"]]
)
def test_the_version_needs_no_host(arguments):
    done = subprocess.run([INSTALLED, *arguments], stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{NAME} {shim.__version__}\n".encode(),
        b"",
    )


def test_a_version_that_cannot_be_printed_is_an_error():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([INSTALLED, "-v"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"cannot write to stdout: No space left" in done.stderr


# ---- The request ----


def test_the_call_is_one_ttrpc_request(place, door):
    door.answers.put(answer())
    assert run(place, [INSTALLED, *START]).returncode == 0
    call = door.call()
    assert (call.stream, call.kind) == (1, REQUEST)
    assert (call.service, call.method) == ("denseshim.host.v1.Host", "Launch")
    assert call.descriptors == ()


@pytest.mark.parametrize("arguments", [START, ["-info"], [], ["-bad", "\udcff", "", "delete"]])
def test_every_argument_arrives_as_it_was(place, door, arguments):
    door.answers.put(answer())
    run(place, [INSTALLED, *arguments])
    assert list(door.call().launch.argv) == [os.fsencode(one) for one in [INSTALLED, *arguments]]


@pytest.mark.parametrize("environment", [[], ["A=1", "B=x=y", b"C=\xff\xfe", "D=", "E=" + 9 * "é"]])
def test_the_environment_arrives_as_it_was(place, door, environment):
    door.answers.put(answer())
    run(place, ["env", "-i", *environment, INSTALLED, "-info"])
    assert list(door.call().launch.env) == [os.fsencode(one) for one in environment]


def test_what_has_been_inherited_arrives(place, door, tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    door.answers.put(answer())
    set_up = (
        "umask 027; ulimit -Sn 77; ulimit -Hn 99; ulimit -c 0; echo 321 >/proc/self/oom_score_adj"
    )
    run(place, [INSTALLED, *START], cwd=folder, before=set_up)
    launch = door.call().launch
    assert launch.cwd == os.fsencode(folder)
    assert launch.umask == 0o027
    assert launch.oom_score_adj == 321
    assert launch.cgroup == Path("/proc/self/cgroup").read_bytes()
    limits = {limit.resource: (limit.soft, limit.hard) for limit in launch.limits}
    assert limits[resource.RLIMIT_NOFILE] == (77, 99)
    assert limits.pop(resource.RLIMIT_CORE) == (0, 0)
    assert len(limits) == 15
    expected = resource.getrlimit(resource.RLIMIT_STACK)
    assert limits[resource.RLIMIT_STACK] == tuple(one % (1 << 64) for one in expected)


def test_a_removed_working_directory_is_none(place, door, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    door.answers.put(answer())
    run(place, [INSTALLED, *START], cwd=folder, before=f"rmdir '{folder}'")
    assert door.call().launch.cwd == b""


@pytest.mark.parametrize("size", [0, 1, 4096, 3 << 20])
def test_stdin_arrives_whole(place, door, size):
    data = os.urandom(size)
    door.answers.put(answer())
    assert run(place, [INSTALLED, *START], stdin=data).returncode == 0
    assert door.call().launch.stdin == data


def test_stdin_may_be_a_file_from_the_middle(place, door, tmp_path):
    (tmp_path / "file").write_bytes(b"skipped, read")
    door.answers.put(answer())
    with open(tmp_path / "file", "rb", buffering=0) as file:
        file.seek(9)
        run(place, [INSTALLED, *START], stdin=file)
    assert door.call().launch.stdin == b"read"


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, "terminal", "closed"])
def test_stdin_may_have_nothing_to_say(place, door, stdin):
    door.answers.put(answer(5))
    with contextlib.ExitStack() as stack:
        if stdin == "terminal":
            for end in (ends := os.openpty()):
                stack.callback(os.close, end)
            done = run(place, [INSTALLED, *START], stdin=ends[1])
        elif stdin == "closed":
            done = run(place, [INSTALLED, *START], streams="<&- 3<&-")
        else:
            done = run(place, [INSTALLED, *START], stdin=stdin)
    assert done.returncode == 5
    assert door.call().launch.stdin == b""


def test_a_stdin_that_does_not_block_is_waited_for(place, door):
    door.answers.put(answer())
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    process = subprocess.Popen(place.command([INSTALLED, *START]), stdin=reader)
    wait_until(lambda: sleeps(process.pid))
    os.write(writer, b"late")
    os.close(writer)
    assert process.wait(PATIENCE) == 0
    os.close(reader)
    assert door.call().launch.stdin == b"late"


@pytest.mark.parametrize("serves", [True, False])
def test_too_long_a_stdin_is_refused(place, lone, serves):
    with Door(place) if serves else contextlib.nullcontext():
        done = run(place, [lone, *START], stdin=bytes(MOST + 1))
    assert is_refused(done, f"stdin has more than {MOST} bytes")


def test_more_than_a_frame_is_refused(place, door):
    done = run(place, [INSTALLED, *START], stdin=bytes(MOST))
    assert is_refused(done, "a call takes 4194304")
    assert door.calls.empty()


def test_a_stdin_that_cannot_be_read_is_an_error(place, door):
    done = run(place, [INSTALLED, *START], streams=">&1 </")
    assert is_refused(done, "cannot read stdin: Is a directory")


def test_it_keeps_its_other_name(place, door, tmp_path):
    other = tmp_path / "containerd-shim-runc-v2"
    other.symlink_to(INSTALLED)
    door.answers.put(answer(stdout=b"fine"))
    assert run(place, [other, *START]).stdout == b"fine"
    assert door.call().launch.argv[0] == os.fsencode(other)


# ---- Descriptor 3 ----


@contextlib.contextmanager
def some_third(kind: str) -> Iterator[int]:
    """A descriptor to be inherited: a listening unix or TCP socket, or something else."""
    family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
    if kind == "file":
        descriptor = os.open("/dev/null", os.O_RDONLY)
        yield descriptor
        os.close(descriptor)
        return
    with socket.socket(family) as made:
        if kind != "idle":
            made.bind(("127.0.0.1", 0) if kind == "tcp" else f"\0denseshim-{os.getpid()}")
            made.listen()
        yield made.fileno()


@pytest.mark.parametrize("kind", ["listening", "idle", "tcp", "file"])
def test_no_descriptor_is_handed_over(place, door, kind):
    """Whatever containerd happens to have open there."""
    door.answers.put(answer())
    with some_third(kind) as third:
        assert run_with_third(place, [INSTALLED, *START], third).returncode == 0
        assert door.call().descriptors == ()


def test_by_the_name_of_2017_it_becomes_python_at_once(place, door, lone):
    """Which finds descriptor 3, stdin and the signals as they were."""
    link = lone.with_name("containerd-shim-dense")
    link.symlink_to(lone)
    with some_third("listening") as third:
        done = run_with_third(place, [link, "--version"], third)
        said = done.stdout.decode().splitlines()
        assert said[:6] == ["python", "-I", "-m", "shim.launcher", str(link), "--version"]
        assert os.readlink(f"/proc/self/fd/{third}") in said
    link.unlink()
    assert door.calls.empty()


# ---- The answer ----


@pytest.mark.parametrize(
    ("status", "seen"), [(0, 0), (1, 1), (255, 255), (256, 255), (1 << 31, 255)]
)
def test_streams_and_status_are_repeated(place, door, status, seen):
    door.answers.put(answer(status, b"out\0\n", b"err\xff"))
    done = run(place, [INSTALLED, *START])
    assert (done.returncode, done.stdout, done.stderr) == (seen, b"out\0\n", b"err\xff")


def test_a_long_answer_arrives_whole_where_it_has_to_wait(place, door):
    text = os.urandom(3 << 20)
    door.answers.put(answer(stdout=text))
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)
    process = subprocess.Popen(
        place.command([INSTALLED, *START]), stdin=subprocess.DEVNULL, stdout=writer
    )
    os.close(writer)
    with open(reader, "rb") as output:
        wait_until(lambda: sleeps(process.pid) and waiting_bytes(reader) == 1 << 16)
        assert output.read() == text
    assert process.wait(PATIENCE) == 0


def test_an_answer_of_the_largest_size_is_taken(place, door):
    rest = MOST - (len(answer(stdout=bytes(MOST - 100))) - HEADER.size)
    whole = answer(stdout=bytes(MOST - 100 + rest))
    assert len(whole) == HEADER.size + MOST
    door.answers.put(whole)
    assert len(run(place, [INSTALLED, *START]).stdout) == MOST - 100 + rest


@pytest.mark.parametrize(
    ("streams", "reason"), [(">/dev/full", "No space left on device"), ("", "Broken pipe")]
)
def test_an_answer_that_nobody_takes_is_an_error(place, door, streams, reason):
    door.answers.put(answer(stdout=b"out"))
    reader, writer = os.pipe()
    os.close(reader)
    done = run(place, [INSTALLED, *START], streams=streams, stdout=writer)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr.decode() == f"{NAME}: cannot write to stdout: {reason}\n"


def test_closed_streams_are_never_taken_for_the_door(place, door):
    door.answers.put(answer(9, b"out", b"err"))
    done = run(place, [INSTALLED, *START], streams="<&- >&- 2>&- 3<&-")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"", b"")
    assert door.call().launch.stdin == b""


@pytest.mark.parametrize(
    ("code", "message", "line"),
    [
        (5, "container not found", "container not found"),
        (14, "two\nlines\tand\x7f", "two lines and "),
        (-1, "", "the host refused the call with status -1"),
        (8, "é" * 5000, "é" * 5000),
    ],
)
def test_a_failed_call_is_one_line_on_stderr(place, door, code, message, line):
    door.answers.put(refusal(code, message))
    done = run(place, [INSTALLED, *START])
    assert is_refused(done, f"{NAME}: {line}\n")


def test_a_status_of_0_is_success(place, door):
    launch = host.LaunchResponse(stdout=b"fine").SerializeToString()
    response = ttrpc.Response(status=ttrpc.Status(), payload=launch)
    door.answers.put(frame(response.SerializeToString()))
    assert run(place, [INSTALLED, *START]).stdout == b"fine"


HOSTILE = {
    "too large": (frame(b"", length=MOST + 1), f"{MOST + 1} bytes"),
    "largest length": (frame(b"", length=(1 << 32) - 1), "4294967295 bytes"),
    "another stream": (frame(b"", stream=3), "type 2 on stream 3"),
    "a request": (frame(b"", kind=REQUEST), "type 1 on stream 1"),
    "no frame": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "bytes"),
    "cut tag": (frame(b"\x80"), "malformed"),
    "cut number": (frame(b"\x08\x80"), "malformed"),
    "cut text": (frame(b"\x12\x05abcd"), "malformed"),
    "cut fixed": (frame(b"\x31\0\0\0\0\0\0\0"), "malformed"),
    "no length": (frame(b"\x12"), "malformed"),
    "enormous text": (frame(b"\x12" + b"\xff" * 9 + b"\x01"), "malformed"),
    "long varint": (frame(b"\x18" + b"\x80" * 10 + b"\0"), "malformed"),
    "large varint": (frame(b"\x18" + b"\xff" * 9 + b"\x02"), "malformed"),
    "field 0": (frame(b"\x00\x00"), "malformed"),
    "large field": (frame(b"\x80\x80\x80\x80\x10\x00"), "malformed"),
    "a group": (frame(b"\x1b\x1c"), "malformed"),
    "type 7": (frame(b"\x1f"), "malformed"),
    "bad status": (frame(b"\x0a\x01\x08"), "malformed"),
    "bad payload": (frame(b"\x12\x01\x08"), "malformed"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_answer_is_a_clear_error(place, door, kind):
    bytes_sent, text = HOSTILE[kind]
    door.answers.put(bytes_sent)
    assert is_refused(run(place, [INSTALLED, *START]), text)


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=60))
def test_no_answer_makes_it_crash(place, lone, body):
    with Door(place) as door:
        door.answers.put(frame(body))
        done = run(place, [lone, *START])
    assert done.returncode >= 0
    if b"malformed" in done.stderr:
        assert is_refused(done, f"the host's answer of {len(body)} bytes is malformed")


def varint(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7)


@st.composite
def messages(draw: st.DrawFn, inner: st.SearchStrategy[bytes]) -> bytes:
    """Any fields in any order, known ones with other types too, and maybe cut short."""
    made = b""
    for _ in range(draw(st.integers(0, 6))):
        number, kind = draw(st.integers(1, 6)), draw(st.sampled_from([0, 1, 2, 2, 2, 5]))
        made += varint(number << 3 | kind)
        if kind == 0:
            made += varint(draw(st.integers(0, (1 << 64) - 1) | st.integers(0, 3)))
        elif kind == 2:
            text = draw(inner)
            made += varint(len(text)) + text
        else:
            made += bytes(8 if kind == 1 else 4)
    return made[: draw(st.integers(0, len(made)))] if draw(st.integers(0, 9)) == 0 else made


def expected(body: bytes, launcher: Path) -> tuple[int, bytes, bytes]:
    """What protobuf's own decoder makes of an answer: status, stdout, stderr."""
    try:
        response = ttrpc.Response.FromString(body)
        code, message = response.status.code, response.status.message.encode()
        launch = host.LaunchResponse() if code else host.LaunchResponse.FromString(response.payload)
    except DecodeError:
        code, message = 1, f"the host's answer of {len(body)} bytes is malformed".encode()
    if code:
        message = message or f"the host refused the call with status {code}".encode()
        return 1, b"", f"{NAME}: ".encode() + message + b"\n"
    if launch.apart:
        return 7, said_by_python(launcher), b"from python\n"
    return min(launch.status, 255), launch.stdout, launch.stderr


# Texts that are messages, too: a status has messages in it that the launcher does not look into.
TEXTS = st.sampled_from(["", " a", "(éa", " a(b"]).map(str.encode)


@settings(max_examples=100, deadline=None)
@given(body=messages(messages(TEXTS)))
def test_it_reads_an_answer_as_protobuf_does(place, lone, body):
    with Door(place) as door:
        door.answers.put(frame(body))
        done = run(place, [lone, *START])
    assert (done.returncode, done.stdout, done.stderr) == expected(body, lone)


# ---- The door ----


def test_a_directory_that_others_may_enter_is_refused(place, door):
    place.state.chmod(0o755)
    done = run(place, [INSTALLED, *START])
    place.state.chmod(0o700)
    assert is_refused(done, f"{place.state.name} is not a directory for root alone; remove it")


def test_a_directory_of_another_user_is_refused(place, door):
    os.chown(place.state, 1, -1)
    done = run(place, [INSTALLED, *START])
    os.chown(place.state, 0, -1)
    assert is_refused(done, "is not a directory for root alone")


def test_a_link_to_a_directory_is_refused(place):
    state = place.make_state()
    state.rmdir()
    state.symlink_to("/run")
    done = run(place, [INSTALLED, *START])
    state.unlink()
    assert is_refused(done, "Not a directory")


def test_a_door_that_another_user_serves_is_refused(place):
    listen = (
        "import os, socket, sys; os.setuid(65534); socket.socket(fileno=int(sys.argv[1])).listen()"
    )
    path = place.make_state() / "door"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        number = listener.fileno()
        subprocess.run([sys.executable, "-c", listen, str(number)], pass_fds=[number], check=True)
        done = run(place, [INSTALLED, *START])
    path.unlink()
    assert is_refused(done, "served by user 65534")


def test_a_caller_who_may_not_enter_is_told(place, door):
    place_of_all = place.run_folder / NAME
    shutil.copy(INSTALLED, place_of_all)
    done = run(place, ["setpriv", "--reuid=65534", "--clear-groups", f"/run/{NAME}", *START])
    place_of_all.unlink()
    assert is_refused(done, "Permission denied")


# ---- Signals ----


@pytest.mark.parametrize("action", ["start", "delete", "-info"])
def test_start_and_delete_are_not_interrupted(place, door, action):
    process = subprocess.Popen(place.command([INSTALLED, action]), stdin=subprocess.DEVNULL)
    door.call()
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    if action == "-info":
        assert process.wait(PATIENCE) == -signal.SIGTERM
        return
    door.answers.put(answer(3))
    assert process.wait(PATIENCE) == 3


# ---- Where no host serves ----


def no_directory_at_all(place: Place) -> None:
    shutil.rmtree(place.run_folder / "denseshim", ignore_errors=True)


def no_directory(place: Place) -> None:
    place.make_state().rmdir()


def no_door(place: Place) -> None:
    place.make_state()


def nobody_listens(place: Place) -> None:
    path = place.make_state() / "door"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as unused:
        unused.bind(os.fspath(path))


@pytest.fixture(params=[no_directory_at_all, no_directory, no_door, nobody_listens])
def without_host(request: pytest.FixtureRequest, place: Place) -> Iterator[None]:
    request.param(place)
    yield
    (place.state / "door").unlink(missing_ok=True)


@pytest.mark.usefixtures("without_host")
@pytest.mark.parametrize("size", [0, 3, MOST])
def test_without_a_host_it_becomes_python(place, lone, size):
    data = os.urandom(size)
    done = run(place, [lone, *START], stdin=data)
    assert (done.returncode, done.stderr) == (7, b"from python\n")
    assert done.stdout == said_by_python(lone, stdin=data)


@pytest.mark.usefixtures("without_host")
@pytest.mark.parametrize(
    "arguments",
    [
        ["-namespace", "delete", "-id", "x", "start"],
        ["-namespace", "n", "-id", "delete", "start"],
        ["--id", "delete", "-unknown", "delete", "start"],
        ["-namespace", "n", "-id", "-v", "start"],
        ["-namespace", "n", "-id", "x", "-debug", "--", "start", "delete"],
        ["-address", "version", "-namespace", "n", "-id=x", "-publish-binary=-v", "start"],
    ],
)
def test_what_a_flag_is_given_is_no_action(place, lone, arguments):
    done = run(place, [lone, *arguments])
    assert (done.returncode, done.stderr) == (7, b"from python\n")


@pytest.mark.parametrize("arguments", [["-namespace", "n", "-id", "x"], ["--id=x", "-debug"]])
@pytest.mark.parametrize("prepare", [no_directory_at_all, no_directory])
def test_where_nobody_has_anything_a_delete_needs_no_python(place, lone, prepare, arguments):
    prepare(place)
    done = run(place, [lone, *arguments, "delete"])
    assert (done.returncode, done.stderr) == (0, b"")
    response = task_pb2.DeleteResponse.FromString(done.stdout)
    assert (response.pid, response.exit_status) == (0, 137)
    assert abs(response.exited_at.seconds - time.time()) < PATIENCE


@pytest.mark.parametrize("when", ["apart", "not read", "read", "cut header", "cut body"])
@pytest.mark.parametrize("size", [7, 1 << 20])  # what is less than a socket holds, and more
def test_where_the_host_does_not_serve_it_becomes_python(place, door, lone, when, size):
    whole = answer(1, b"never seen", b"never seen", apart=when == "apart")
    cut = {"not read": Door.HANG_UP, "read": b"", "cut header": whole[:7], "cut body": whole[:-1]}
    door.answers.put(cut.get(when, whole))
    done = run(place, [lone, *START], stdin=bytes(size), before="umask 031")
    assert (done.returncode, done.stderr) == (7, b"from python\n")
    assert done.stdout == said_by_python(lone, stdin=bytes(size), mask="0031")


def test_python_gets_a_terminal_as_it_was(place, lone):
    no_door(place)
    master, slave = os.openpty()
    done = run(place, [lone, *START], stdin=slave)
    kind = os.ttyname(slave)
    os.close(master)
    os.close(slave)
    assert done.stdout == said_by_python(lone, kind=kind)


def test_python_gets_descriptor_3(place, lone):
    no_door(place)
    with some_third("listening") as third:
        done = run_with_third(place, [lone, *START], third)
        assert f"\n{os.readlink(f'/proc/self/fd/{third}')}\n".encode() in done.stdout


def test_python_starts_with_the_same_signals_ignored(place, tmp_path):
    no_door(place)
    built = build(tmp_path / "alone" / NAME, tmp_path / "show")
    (tmp_path / "show").write_text("#!/bin/sh\ngrep SigIgn /proc/self/status\n")
    (tmp_path / "show").chmod(0o755)
    ignored = int(run(place, [built, "start"]).stdout.split()[1], 16)
    assert all(ignored & 1 << (one - 1) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE))


def test_a_link_finds_the_python_of_the_launcher(place, lone, tmp_path):
    no_door(place)
    link = tmp_path / "containerd-shim-runc-v2"
    link.symlink_to(lone)
    assert run(place, [link, *START]).stdout == said_by_python(link)


def test_copied_alone_it_finds_the_python_of_its_build(place, tmp_path):
    no_door(place)
    fake_python(tmp_path / "of-the-build")
    built = build(tmp_path / "alone" / NAME, tmp_path / "of-the-build")
    assert run(place, [built, *START]).stdout == said_by_python(built)


def test_a_copy_prefers_the_python_of_its_build_to_a_stranger(place, tmp_path):
    no_door(place)
    fake_python(tmp_path / "of-the-build")
    built = build(tmp_path / "usr" / NAME, tmp_path / "of-the-build")
    (built.parent / "python3").write_text("#!/bin/sh\necho a stranger\n")
    (built.parent / "python3").chmod(0o755)
    assert run(place, [built, *START]).stdout == said_by_python(built)


@pytest.mark.parametrize("broken", ["missing", "not executable"])
def test_without_the_python_of_its_build_it_takes_its_neighbour(place, tmp_path, broken):
    no_door(place)
    if broken == "not executable":
        (tmp_path / "of-the-build").touch(0o644)
    built = build(tmp_path / "usr" / NAME, tmp_path / "of-the-build")
    fake_python(built.parent / "python3")
    assert run(place, [built, *START]).stdout == said_by_python(built)


def test_without_any_python_it_names_what_it_tried(place, tmp_path):
    no_door(place)
    built = build(tmp_path / "alone" / NAME, tmp_path / "of-the-build")
    done = run(place, [built, *START])
    assert is_refused(done, f"neither {tmp_path}/of-the-build nor {built.parent}/python3")
    assert is_refused(done, "install denseshim where this program is")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def waiting_bytes(pipe: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


def sleeps(pid: int) -> bool:
    """Whether the process has become the launcher, and waits."""
    name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    return name.endswith(f"({NAME[:15]}") and rest.split()[0] == "S"
