"""Connections: the keeper accepts, the front serves, and neither's trouble is the other's."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.keeper.records import Flag, Kind
from tests.native import harness
from tests.native.harness import PATIENCE, Keeper, wait_until
from tests.native.support import background, cpu_ticks, wake_ups

LISTENER = 2
DATA = random.Random(5).randbytes(8 << 20)


class Server:
    """A keeper with one listening socket; the test is its callers and its front."""

    def __init__(self, keeper: Keeper, folder: Path) -> None:
        self.keeper = keeper
        self.folder = folder
        self.path = str(folder / "shim.sock")
        self.front_socket: socket.socket | None = None

    def serve(self) -> None:
        """What a front does at its start: its socket has no file when the keeper has it."""
        path = self.folder / "front-own.sock"
        self.front_socket = made = socket.socket(socket.AF_UNIX)
        made.bind(str(path))
        made.listen(64)
        made.settimeout(PATIENCE)
        found = os.open(path, os.O_PATH)
        path.unlink()
        assert self.keeper.front.ask(Kind.SERVE, found, id=LISTENER).error == 0
        os.close(found)

    def call(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(PATIENCE)
        caller.connect(self.path)
        return caller

    def accept(self) -> socket.socket:
        assert self.front_socket is not None
        accepted, _ = self.front_socket.accept()
        accepted.settimeout(PATIENCE)
        return accepted

    def drop_front(self) -> None:
        """The front dies: its sockets are closed, and its channel."""
        self.close()
        self.keeper.front.close()
        self.keeper.front = self.keeper.next_front()

    def close(self) -> None:
        if self.front_socket is not None:
            self.front_socket.close()
            self.front_socket = None


@pytest.fixture
def server() -> Iterator[Server]:
    """A keeper that listens, with nobody who serves yet."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        os.chmod(folder, 0o755)
        listening.bind(f"{folder}/shim.sock")
        listening.listen(64)
        with harness.keeper((listening.fileno(), Flag(0))) as keeper:
            made = Server(keeper, Path(folder))
            yield made
            made.close()


def receive(peer: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size and (piece := peer.recv(min(size - len(found), 1 << 20))):
        found += piece
    return bytes(found)


def hung_up(peer: socket.socket) -> bool:
    """Whether the other side is gone, now or soon; what it said before is dropped."""
    with contextlib.suppress(ConnectionResetError):
        while peer.recv(1 << 16):
            pass
    return True


def test_question_and_answer(server: Server) -> None:
    """Bytes go both ways, each at once."""
    server.serve()
    with server.call() as caller, server.accept() as accepted:
        for index in range(100):
            caller.sendall(b"question %d" % index)
            assert accepted.recv(100) == b"question %d" % index
            accepted.sendall(b"answer %d" % index)
            assert caller.recv(100) == b"answer %d" % index


def test_several_callers(server: Server) -> None:
    """Each has a connection of its own."""
    server.serve()
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(20):
            caller = stack.enter_context(server.call())
            pairs.append((caller, stack.enter_context(server.accept())))
        for index, (caller, _) in enumerate(pairs):
            caller.sendall(bytes([index]))
        for index, (_, accepted) in enumerate(pairs):
            assert accepted.recv(10) == bytes([index])


def test_half_close(server: Server) -> None:
    """The end of one direction is passed on; the other stays."""
    server.serve()
    with server.call() as caller, server.accept() as accepted:
        caller.sendall(b"all")
        caller.shutdown(socket.SHUT_WR)
        assert receive(accepted, 10) == b"all"
        accepted.sendall(b"still here")
        assert caller.recv(100) == b"still here"
        accepted.shutdown(socket.SHUT_WR)
        assert caller.recv(100) == b""


def test_much_in_both_directions(server: Server) -> None:
    """8 MiB each way at the same time, exact: neither way waits for the other."""
    server.serve()
    with server.call() as caller, server.accept() as accepted:
        with (
            background(lambda: caller.sendall(DATA)),
            background(lambda: accepted.sendall(DATA[::-1])),
        ):
            received: list[bytes] = []
            with background(lambda: received.append(receive(accepted, len(DATA)))):
                assert receive(caller, len(DATA)) == DATA[::-1]
        assert received == [DATA]


def test_a_caller_that_does_not_read(server: Server) -> None:
    """It is waited for without a busy loop, and others are served."""
    server.serve()
    with server.call() as caller, server.accept() as accepted:
        accepted.setblocking(False)
        sent = 0

        def is_full() -> bool:
            nonlocal sent
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += accepted.send(DATA[: 1 << 16])
            assert server.keeper.front.ask(Kind.PONG).error == 0
            with contextlib.suppress(BlockingIOError):
                sent += accepted.send(DATA[: 1 << 16])
                return False
            return True

        wait_until(is_full, "the connection to be full")
        with server.call() as other, server.accept() as second:
            other.sendall(b"?")
            assert second.recv(1) == b"?"
        accepted.close()
        assert len(receive(caller, sent + 1)) == sent


@pytest.mark.parametrize("who", ["caller", "front"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_peer_that_goes(server: Server, who: str, reset: bool) -> None:
    """Whoever hangs up, with or without unread bytes, the other side and the keeper let go."""
    server.serve()
    front = server.keeper.front
    before = server.keeper.descriptors()
    for _ in range(10):
        caller, accepted = server.call(), server.accept()
        first, other = (caller, accepted) if who == "caller" else (accepted, caller)
        other.sendall(b"to be read")
        if reset:
            wait_until(lambda s=first: len(s.recv(1, socket.MSG_PEEK)) == 1, "the unread byte")
        else:
            assert receive(first, 10) == b"to be read"
        first.close()
        assert hung_up(other)
        other.close()
    assert front.ask(Kind.PONG).error == 0
    wait_until(lambda: server.keeper.descriptors() == before, "the connections to be closed")


def test_a_front_that_dies_hangs_up(server: Server) -> None:
    """At once, so that callers dial again; who dials meanwhile waits for the next front: rule 2."""
    server.serve()
    caller, accepted = server.call(), server.accept()
    caller.sendall(b"?")
    assert accepted.recv(1) == b"?"
    server.close()
    old = server.keeper.front
    old.close()
    assert caller.recv(1) == b""
    caller.close()
    accepted.close()
    waiting = server.call()
    waiting.sendall(b"anybody?")
    server.keeper.front = server.keeper.next_front()
    listeners = [r.id for r in server.keeper.front.snapshot() if r.kind == Kind.LISTENER]
    assert listeners == [LISTENER]
    server.serve()
    with waiting, server.accept() as accepted:
        assert accepted.recv(100) == b"anybody?"
        accepted.sendall(b"yes")
        assert waiting.recv(100) == b"yes"


def test_the_last_answer_of_a_front_arrives(server: Server) -> None:
    """What it had said before it died is delivered, then the end."""
    server.serve()
    with server.call() as caller:
        accepted = server.accept()
        accepted.sendall(DATA[:100_000])
        accepted.close()
        server.drop_front()
        assert receive(caller, 200_000) == DATA[:100_000]


def test_callers_wait_for_the_first_front(server: Server) -> None:
    """Nobody serves yet: they are queued, the keeper does not spin on them."""
    keeper = server.keeper
    with server.call() as caller:
        caller.sendall(b"early")
        before, slept = cpu_ticks(keeper.pid), wake_ups(keeper.pid)
        assert keeper.front.spawn(50, "/bin/sleep", "0.3").error == 0
        assert keeper.front.exited(50).status == 0
        assert cpu_ticks(keeper.pid) - before <= 5
        assert wake_ups(keeper.pid) - slept <= 10
        server.serve()
        with server.accept() as accepted:
            assert accepted.recv(10) == b"early"


def test_serve_needs_a_socket(server: Server) -> None:
    """Without one nobody is accepted, and callers who wait cost nothing."""
    keeper = server.keeper
    assert keeper.front.ask(Kind.SERVE, id=LISTENER).error == errno.EINVAL
    null = os.open("/dev/null", os.O_PATH)
    assert keeper.front.ask(Kind.SERVE, null, id=LISTENER + 1).error == errno.ESRCH
    with server.call() as caller:
        before = cpu_ticks(keeper.pid), wake_ups(keeper.pid)
        assert keeper.front.spawn(50, "/bin/sleep", "0.3").error == 0
        assert keeper.front.exited(50).status == 0
        assert cpu_ticks(keeper.pid) - before[0] <= 5
        assert wake_ups(keeper.pid) - before[1] <= 10
        # A socket that nobody listens on: the caller is hung up on.
        assert keeper.front.ask(Kind.SERVE, null, id=LISTENER).error == 0
        assert hung_up(caller)
    os.close(null)


CALL = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
link = socket.socket(socket.AF_UNIX)
link.settimeout(20)
link.connect(sys.argv[1])
try:
    link.sendall(b"let me in")
    print("answered" if link.recv(10) else "hung up")
except ConnectionError:
    print("hung up")
"""


def test_another_user_is_hung_up_on(server: Server) -> None:
    """Although the file's mode lets it connect: design, keeper, SO_PEERCRED."""
    os.chmod(server.path, 0o777)
    server.serve()
    command = [sys.executable, "-c", CALL, server.path]
    with subprocess.Popen([*command, "65534"], stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.communicate(timeout=PATIENCE)[0] == "hung up\n"
    assert stranger.returncode == 0
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as root:
        with server.accept() as accepted:
            assert accepted.recv(100) == b"let me in"
            accepted.sendall(b"come in")
        assert root.communicate(timeout=PATIENCE)[0] == "answered\n"


def test_who_is_let_in_by_a_file_that_is_for_anybody() -> None:
    """ANYBODY leaves it to the file's mode; a listener that speaks ttrpc cannot have it."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        os.chmod(folder, 0o755)
        listening.bind(f"{folder}/shim.sock")
        listening.listen(64)
        with harness.keeper((listening.fileno(), Flag.ANYBODY)) as keeper:
            made = Server(keeper, Path(folder))
            with contextlib.closing(made):
                made.serve()
                os.chmod(made.path, 0o777)
                command = [sys.executable, "-c", CALL, made.path, "65534"]
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stranger:
                    with made.accept() as accepted:
                        assert accepted.recv(100) == b"let me in"
                        accepted.sendall(b"come in")
                    assert stranger.communicate(timeout=PATIENCE)[0] == "answered\n"
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(f"{folder}/other.sock")
                other.listen(1)
                answer = keeper.front.ask(
                    Kind.LISTEN, other.fileno(), id=7, flags=Flag.ANYBODY | Flag.FRAMES
                )
                assert answer.error == errno.EINVAL


def test_the_front_sees_the_keeper(server: Server) -> None:
    """SO_PEERCRED at the front's own socket is the keeper: nobody else is let in there."""
    server.serve()
    with server.call(), server.accept() as accepted:
        size = struct.calcsize("3i")
        pid, uid, _ = struct.unpack(
            "3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        assert (pid, uid) == (server.keeper.pid, os.geteuid())


def test_stop_delivers_what_was_said(server: Server) -> None:
    """STOP ends the keeper when the last bytes of its connections have gone."""
    server.serve()
    caller, accepted = server.call(), server.accept()
    accepted.sendall(DATA[:300_000])
    accepted.close()
    server.keeper.front.ask(Kind.STOP)
    assert receive(caller, 400_000) == DATA[:300_000]
    caller.close()
    server.keeper.process.wait(PATIENCE)
    assert server.keeper.process.returncode == 0
