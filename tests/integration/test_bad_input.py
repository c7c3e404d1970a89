"""What a broken or hostile caller sends: a clear error, nothing leaked, and the shim serves on.

Demand 4 (nothing leaked), and the contract's error codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from shim._pb.containerd.v1.services.shim import shim_pb2
from shim.api.codes import CODES
from shim.api.convert import create_to_pb
from shim.client import ShimClient
from shim.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RuntimeFailed,
    ShimError,
)
from shim.model import CreateRequest, Mount, Stdio
from tests.fakes.daemon import WRAPPER, Launched, launched, living
from tests.integration.support import Bundle, exec_spec, front_of, until

# None yet, or the last one deleted.
NO_CONTAINER = (FailedPrecondition, NotFound)
SERVICE = "/containerd.v1.services.shim.Shim"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Launched]:
    """One shim for the tests of this file."""
    with launched(tmp_path_factory.mktemp("shim")) as shim:
        bundle = Bundle.make(tmp_path_factory.mktemp("first") / "bundle", rootfs, ["true"])
        asyncio.run(serve_one(shim, bundle))  # what is made once is there from now on
        yield shim


@contextlib.asynccontextmanager
async def unharmed(
    daemon: Launched, make_bundle: Callable[..., Bundle], traceback: bool = False
) -> AsyncIterator[ShimClient]:
    """A client for bad calls, after which the same front serves and nothing is left of them.

    No descriptor, no mount; and nothing unexpected has happened, unless a `traceback` is due.
    """
    front, mounts, logged = front_of(daemon.process.pid), daemon.mounts(), len(daemon.log())
    await idle(daemon)
    async with ShimClient(daemon.socket) as shim:
        yield shim
    await serve_one(daemon, make_bundle("true"))
    await idle(daemon)
    assert (front_of(daemon.process.pid), daemon.mounts()) == (front, mounts)
    assert ("Traceback" in daemon.log()[logged:]) == traceback


async def serve_one(daemon: Launched, bundle: Bundle) -> None:
    async with living(daemon.socket, bundle.request()) as container:
        assert (await container.events.exit(container.pid)).status == 0


# By shim: what it has open when it has served, but for its callers' connections.
_idle: dict[int, int] = {}


async def idle(daemon: Launched) -> None:
    """Return when the shim has nothing open that it had not when it first was idle."""
    wanted = _idle.setdefault(daemon.process.pid, len(opened(daemon)))
    await until(lambda: len(opened(daemon)) <= wanted, "all is closed", 4)


def opened(daemon: Launched) -> list[str]:
    return [link for link in daemon.descriptors() if "socket:" not in link]


def connections(daemon: Launched) -> int:
    return len(daemon.descriptors()) - len(opened(daemon))


BUNDLES: dict[str, tuple[Callable[[Bundle], Any], str]] = {
    "missing": (lambda b: replace(b.request(), bundle="/no/such"), "/no/such"),
    "relative": (lambda b: replace(b.request(), bundle="bundle"), "absolute"),
    "empty": (lambda b: replace(b.request(), bundle=""), "absolute"),
    "NUL": (lambda b: replace(b.request(), bundle="/tmp\0"), "absolute"),
    "too long": (lambda b: replace(b.request(), bundle="/" + "x" * 5000), "too long"),
    "a file": (lambda b: replace(b.request(), bundle="/etc/passwd"), "Not a directory"),
}


@pytest.mark.parametrize("name", BUNDLES)
async def test_a_bundle_that_is_none(
    name: str, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    make, text = BUNDLES[name]
    async with unharmed(daemon, make_bundle) as shim:
        with pytest.raises(InvalidArgument, match=text):
            await shim.create(make(make_bundle("true")))


def remove(path: Path) -> None:
    path.unlink()


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 30)


CONFIGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (remove, "No such file"),
    "a FIFO": (make_fifo, "not a file"),
    "a directory": (make_directory, "is not a file"),
    "huge": (make_huge, "not a file of at most"),
    "empty": (lambda path: path.write_text(""), "not JSON"),
    "broken": (lambda path: path.write_text('{"process"'), "not JSON"),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "not JSON"),
    "a list": (lambda path: path.write_text("[]"), "not a JSON object"),
    "deep": (lambda path: path.write_text("[" * 200_000), "not JSON"),
    "a long number": (lambda path: path.write_text("1" * 10_000), "not JSON"),
}


@pytest.mark.parametrize("name", CONFIGS)
async def test_a_config_that_is_none(
    name: str, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    spoil, text = CONFIGS[name]
    bundle = make_bundle("true")
    spoil(bundle.path / "config.json")
    async with unharmed(daemon, make_bundle) as shim:
        with pytest.raises(InvalidArgument, match=f"config.json.*{text}"):
            await shim.create(bundle.request())


async def test_a_config_whose_parts_are_of_wrong_types(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """They are the runtime's to judge, and it is the runtime that is quoted."""
    bundle = make_bundle("true")
    config = json.loads((bundle.path / "config.json").read_text())
    async with unharmed(daemon, make_bundle) as shim:
        for process in ("text", {"args": "true"}, {"user": 7}, {"user": {"uid": "x"}}):
            (bundle.path / "config.json").write_text(json.dumps({**config, "process": process}))
            with pytest.raises(RuntimeFailed, match=r"create failed: .* cannot unmarshal"):
                await shim.create(bundle.request())


IDS = ["", "a/b", "..", ".", "a/../b", "nul\0", "x" * 300, "-rf", "--help", "a b", "é", "a\n"]


@pytest.mark.parametrize("id", IDS, ids=ascii)
async def test_an_id_that_is_none(
    id: str, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with ShimClient(daemon.socket) as shim:
        with pytest.raises(InvalidArgument, match=r"the container id .* is not valid"):
            await shim.create(replace(make_bundle("true").request(), id=id))
        with pytest.raises(NO_CONTAINER):
            await shim.state()


PATHS: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda path: str(path / "none"), "No such file"),
    "relative": (lambda path: "stdout", "not an absolute path"),
    "NUL": (lambda path: "/tmp/a\0b", "not an absolute path"),
    "a file": (lambda path: str(path / "config.json"), "is not a FIFO"),
    "a directory": (lambda path: str(path), "is not a FIFO"),
    "a device": (lambda path: "/dev/null", "is not a FIFO"),
    "a symbolic link": (lambda path: str(link_to_fifo(path)), "is not a FIFO"),
    "too long": (lambda path: "/" + "x" * 5000, "too long"),
}


def link_to_fifo(path: Path) -> Path:
    os.mkfifo(path / "target")
    (path / "link").symlink_to(path / "target")
    return path / "link"


@pytest.mark.parametrize("name", PATHS)
async def test_a_stdio_path_that_is_no_fifo(
    name: str, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """In Create and in Exec, for each stream; the streams before it are closed again."""
    make, text = PATHS[name]
    bundle = make_bundle("sleep", "1000")
    path = make(bundle.path)
    async with unharmed(daemon, make_bundle) as shim:
        for stdio in streams(bundle, path):
            with pytest.raises(InvalidArgument, match=text):
                await shim.create(replace(bundle.request(), stdio=stdio))
        async with living(daemon.socket, bundle.request()) as container:
            for stdio in streams(bundle, path):
                with pytest.raises(InvalidArgument, match=text):
                    await container.shim.exec(exec_spec("true"), stdio)
            assert len((await container.shim.state()).processes) == 1


def streams(bundle: Bundle, bad: str) -> list[Stdio]:
    good = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}
    return [
        *(Stdio(False, **{**good, name: bad}) for name in good),
        Stdio(True, good["stdin"], bad),
    ]


RUNTIMES: dict[str, tuple[str, type[ShimError], str]] = {
    "exit 1": ("exit 1", RuntimeFailed, "logging nothing"),
    "garbage in its log": (
        'head -c 100000 /dev/urandom >>"$log_file"; exit 3', RuntimeFailed, "exit status 3",
    ),
    "a message": ("log 'it is broken'; exit 1", RuntimeFailed, "it is broken"),
    "no pid file": ("exit 0", RuntimeFailed, "no pid file"),
    "a bad pid file": ('echo x >"$bundle/init.pid"; exit 0', RuntimeFailed, "is no pid"),
    "a foreign pid": ('echo 1 >"$bundle/init.pid"; exit 0', ShimError, "following pid 1"),
    "killed": ("kill -9 $$", RuntimeFailed, "signal 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNTIMES)
async def test_a_runtime_that_fails(
    name: str, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """The caller learns why Create failed, whatever then becomes of taking it back."""
    behaviour, kind, text = RUNTIMES[name]
    bundle = make_bundle("true")
    for command in ("create", "state"):
        (bundle.path / f"behaviour.{command}").write_text(behaviour)
    async with unharmed(daemon, make_bundle) as shim:
        with pytest.raises(kind, match=text):
            await shim.create(bundle.request(stdout=True, runtime=str(WRAPPER)))


@pytest.mark.parametrize(
    "runtime", ["/no/such/runtime", "no-such-runtime", "/etc/passwd", "/tmp", "a\0b"], ids=ascii
)
async def test_a_runtime_that_is_none(
    runtime: str, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with unharmed(daemon, make_bundle) as shim:
        with pytest.raises(InvalidArgument, match="runtime"):
            await shim.create(make_bundle("true").request(runtime=runtime))


async def test_a_runtime_that_hangs(daemon: Launched, make_bundle: Callable[..., Bundle]) -> None:
    """Demand 8: the other calls are answered meanwhile."""
    bundle = make_bundle("sleep", "1000")
    (bundle.path / "behaviour.exec").write_text('echo $$ >"$bundle/hung"; exec sleep 1000')
    async with (
        unharmed(daemon, make_bundle),
        living(daemon.socket, bundle.request(runtime=str(WRAPPER))) as container,
    ):
        shim = container.shim
        hanging = asyncio.create_task(shim.exec(exec_spec("true"), Stdio()))
        hung = bundle.path / "hung"
        await until(lambda: hung.exists() and hung.read_text().endswith("\n"), "it hangs")
        assert len((await shim.state(timeout=2)).processes) == 1
        assert [row.pid for row in await shim.processes(timeout=2)] == [container.pid]
        await shim.pause(timeout=5)
        await shim.resume(timeout=5)
        assert not hanging.done()
        os.kill(int(hung.read_text()), signal.SIGKILL)
        with pytest.raises(RuntimeFailed, match="signal 9"):
            await hanging


SPECS: dict[str, tuple[bytes, type[ShimError], str]] = {
    "nothing": (b"", InvalidArgument, "not JSON"),
    "binary": (bytes(range(256)), InvalidArgument, "not JSON"),
    "a list": (b"[]", InvalidArgument, "list, not an object"),
    "deep": (b"[" * 200_000, InvalidArgument, "not JSON"),
    "deep inside": (b'{"a":' * 100_000, InvalidArgument, "not JSON"),
    "a long number": (b"1" * 10_000, InvalidArgument, "not JSON"),
    "empty": (b"{}", InvalidArgument, "args"),
    "no list": (b'{"args": "true", "cwd": "/"}', InvalidArgument, "args"),
    "no directory": (b'{"args": ["true"]}', InvalidArgument, "cwd"),
    "wrong types": (b'{"args": ["true"], "cwd": "/", "user": 3}', RuntimeFailed, "unmarshal"),
}


@pytest.mark.parametrize("name", SPECS)
async def test_an_exec_spec_that_is_none(
    name: str, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    value, kind, text = SPECS[name]
    async with (
        unharmed(daemon, make_bundle),
        living(daemon.socket, make_bundle("sleep", "1000").request()) as container,
    ):
        request = shim_pb2.ExecRequest(spec={"value": value}).SerializeToString()
        code, message = await raw(daemon, "Exec", request)
        assert code.value[0] == CODES[kind]
        assert text in str(message)
        assert len((await container.shim.state()).processes) == 1


async def raw(
    daemon: Launched, method: str, request: bytes
) -> tuple[grpc.StatusCode, bytes | str | None]:
    """A call without shim.client: its code, and the answer or the message."""
    async with grpc.aio.insecure_channel(f"unix:{daemon.socket}") as channel:
        call = channel.unary_unary(f"{SERVICE}/{method}", bytes, bytes)(request)
        try:
            return grpc.StatusCode.OK, await call
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details()


async def test_an_exec_of_200_000_arguments(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """They fit into a message and into the kernel's limit, and State tells them all."""
    async with (
        unharmed(daemon, make_bundle),
        living(daemon.socket, make_bundle("sleep", "1000").request()) as container,
    ):
        args = ["true", *["x"] * 200_000]
        pid = await container.shim.exec(exec_spec(*args), Stdio())
        assert (await container.events.exit(pid)).status == 0
        state = await container.shim.state()
        assert len(state.processes[1].args) == len(args)


async def test_text_that_is_no_text(daemon: Launched, make_bundle: Callable[..., Bundle]) -> None:
    """JSON may hold half a character, a command line any byte: State and Processes answer."""
    async with (
        unharmed(daemon, make_bundle),
        living(daemon.socket, make_bundle("sleep", "1000").request()) as container,
    ):
        shim = container.shim
        pid = await shim.exec(exec_spec("sh", "-c", "exit 4", "\ud800"), Stdio())
        assert (await container.events.exit(pid)).status == 4
        assert (await shim.state()).processes[1].args[3] == "\ufffd"
        script = "sh -c \"$(printf 'sleep 1000; : \\377')\" & wait"
        await shim.exec(exec_spec("sh", "-c", script), Stdio())
        await until_listed(shim, ("sh", "-c", "sleep 1000; : \ufffd"))


async def until_listed(shim: ShimClient, args: tuple[str, ...]) -> None:
    """Return when a process with these arguments is in the container."""
    async with asyncio.timeout(5):
        while not any(row.args == args for row in await shim.processes()):
            pass


async def test_a_request_that_is_too_large(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with unharmed(daemon, make_bundle) as shim:
        request = make_bundle("true").request(runtime="x" * (5 << 20))
        with pytest.raises(ResourceExhausted, match="larger than max"):
            await shim.create(request)
        with pytest.raises(ResourceExhausted):
            await shim.exec(exec_spec("x" * (5 << 20)), Stdio())


async def test_a_method_that_is_unknown(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with unharmed(daemon, make_bundle):
        for method in ("Nothing", "", "x" * 1000):
            assert (await raw(daemon, method, b""))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_that_is_no_message(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with unharmed(daemon, make_bundle, traceback=True):
        code, message = await raw(daemon, "Create", b"\xff" * 100)
        assert code is grpc.StatusCode.UNKNOWN
        assert "Error parsing message" in str(message)


async def test_fields_that_are_unknown(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """A later client may send more than we know."""
    request = create_to_pb(make_bundle("true").request()).SerializeToString()
    unknown = b"\xfa\x7f\x05later" + b"\xf0\x7f\x2a"  # fields 2047 (text) and 2046 (number)
    async with unharmed(daemon, make_bundle) as shim:
        code, answer = await raw(daemon, "Create", request + unknown)
        assert (code, type(answer)) == (grpc.StatusCode.OK, bytes)
        assert shim_pb2.CreateResponse.FromString(answer).pid == (await shim.state()).pid
        await shim.delete()


async def test_signals_and_sizes_out_of_range(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with (
        unharmed(daemon, make_bundle),
        living(daemon.socket, make_bundle("sleep", "1000").request()) as container,
    ):
        for number in (0, 65, 1000, (1 << 32) - 1):
            for options in ({}, {"all": True}, {"pid": container.pid}):
                with pytest.raises(InvalidArgument, match="not a signal"):
                    await container.shim.kill(number, **options)
        for size in ((1 << 16, 1), (1, 1 << 16), ((1 << 32) - 1, (1 << 32) - 1)):
            with pytest.raises(InvalidArgument, match="too large"):
                await container.shim.pty(container.pid, *size)


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    bytes(range(256)) * 300,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"",
]


async def test_garbage_on_the_socket(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """What is no HTTP/2 is hung up on, or waits for its end."""
    async with unharmed(daemon, make_bundle) as shim:
        for data in GARBAGE:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(daemon.socket))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(data)
            with pytest.raises(NO_CONTAINER):
                await shim.state()


async def test_300_connections_that_say_nothing(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """Calls of others are answered; when the silent ones go, so do their descriptors."""
    async with unharmed(daemon, make_bundle) as shim:
        before = connections(daemon)
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                await connected(client, daemon.socket)
            with pytest.raises(NO_CONTAINER):
                await shim.state(timeout=5)
            async with ShimClient(daemon.socket) as another:
                with pytest.raises(NO_CONTAINER):
                    await another.state(timeout=5)
            assert connections(daemon) >= before + 300
        await until(lambda: connections(daemon) < before + 50, "they are closed", 10)


async def connected(client: socket.socket, path: Path) -> None:
    """Connect; a full queue of the listener is waited for."""
    await until(lambda: client.connect_ex(str(path)) == 0, "the queue has room")


async def test_clients_that_go_in_mid_call(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """The calls are carried out all the same, and the next client finds what they did."""
    bundle = make_bundle("sleep", "1000")
    (bundle.path / "behaviour.create").write_text(
        ': >"$bundle/reached"; until [ -e "$bundle/gate" ]; do sleep 0.01; done'
    )
    async with unharmed(daemon, make_bundle) as shim:
        await hang_up_on(daemon, bundle.request(runtime=str(WRAPPER)), bundle.path / "reached")
        with pytest.raises(FailedPrecondition, match="being created"):
            await shim.state()
        (bundle.path / "gate").touch()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(FailedPrecondition):
                    await shim.delete()
                    return


async def hang_up_on(daemon: Launched, request: CreateRequest, reached: Path) -> None:
    async with ShimClient(daemon.socket) as client:
        creating = asyncio.create_task(client.create(request))
        await until(reached.exists, "the runtime creates")
        creating.cancel()
        await asyncio.wait([creating])


async def test_a_mount_that_is_none(
    daemon: Launched, make_bundle: Callable[..., Bundle], rootfs: Path
) -> None:
    good = Mount("bind", str(rootfs), "", ("rbind",))
    bad = [
        Mount("no-such-type", "x", ""),
        Mount("bind", "/no/such", "", ("bind",)),
        Mount("bind", "nul\0", "", ("bind",)),
        Mount("overlay", "overlay", "", ("lowerdir=" + "x" * 5000,)),
        Mount("", "", ""),
    ]
    async with unharmed(daemon, make_bundle) as shim:
        for mount in bad:
            with pytest.raises(InvalidArgument, match="mount"):
                await shim.create(make_bundle("true").request(rootfs=[good, mount]))
