"""A real keeper whose front is the test.

The keeper starts a tiny program as its front, which hands its channel (descriptor 3) over to the
test and then waits to be killed. The test speaks records, synchronously.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from shim.keeper.command import Command, pack, pack_program
from shim.keeper.packet import ROOM, Packet, receive, send
from shim.keeper.records import Flag, Kind, Record
from shim.keeper.start import keeper_program, pack_front

FRONT = """
import os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
socket.send_fds(link, [b"front"], [3])
os.close(3)
link.recv(1)
"""
BOOT = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from shim.keeper.start import become_keeper
if sys.argv[4]:
    soft, hard = map(int, sys.argv[4].split(":"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from shim.keeper.records import Flag
listeners = [tuple(map(int, text.split(":"))) for text in sys.argv[5:]]
become_keeper([sys.executable, "-I", "-S", "-c", sys.argv[2], sys.argv[3]],
              [(descriptor, Flag(flags)) for descriptor, flags in listeners])
"""
# A library for the keeper alone (LD_PRELOAD): scripts/sanitize gives it the sanitizers'.
PRELOAD = os.environ.get("DENSESHIM_TEST_PRELOAD", "")
SOURCE = str(Path(__file__).resolve().parents[2] / "src")
PATIENCE = 20.0


class Front:
    """The channel of one generation of the keeper's front, as a blocking peer.

    What comes while something else is waited for is kept: reports in `reports`, ttrpc requests
    in `packets`.
    """

    def __init__(self, link: socket.socket, channel: socket.socket) -> None:
        self._link = link
        self.channel = channel
        self.channel.setblocking(True)
        self.channel.settimeout(PATIENCE)
        self.reports: list[Record] = []
        self.packets: list[Packet] = []
        self._room = bytearray(ROOM)
        self._serial = 0

    def close(self) -> None:
        """End this generation: the front program exits."""
        self.channel.close()
        self._link.close()

    def receive(self) -> Record:
        """The next record that is no ttrpc request. ConnectionResetError: the channel's end."""
        while _is_request(packet := self._next()):
            self.packets.append(packet)
        return packet.record

    def _next(self) -> Packet:
        packet = receive(self.channel, self._room)
        if packet is None:
            raise ConnectionResetError("the keeper has closed the channel")
        return packet

    def request(self) -> Packet:
        """The next ttrpc request, come or to come."""
        while not self.packets:
            packet = self._next()
            if _is_request(packet):
                return packet
            self.reports.append(packet.record)
        return self.packets.pop(0)

    def respond(self, id: int, body: bytes = b"") -> int:
        """Answer a ttrpc request; the errno."""
        return self.ask(Kind.RESPOND, id=id, payload=body).error

    def tell(self, record: Record, *descriptors: int, payload: bytes = b"") -> None:
        send(self.channel, record, payload, descriptors)

    def ask(self, kind: Kind, *descriptors: int, payload: bytes = b"", **fields: int) -> Record:
        """The reply to a request, whatever its error; reports that come before it are kept."""
        self._serial += 1
        self.tell(Record(kind, serial=self._serial, **fields), *descriptors, payload=payload)
        while True:
            record = self.receive()
            if record.serial == self._serial:
                return record
            self.reports.append(record)

    def report(self, kind: Kind, id: int) -> Record:
        """The report of that kind about that object, come or to come."""
        for record in self.reports:
            if (record.kind, record.id) == (kind, id):
                self.reports.remove(record)
                return record
        while True:
            record = self.receive()
            if (record.kind, record.id) == (kind, id):
                return record
            self.reports.append(record)

    def exited(self, id: int) -> Record:
        """The report of a process's exit, which is then forgotten."""
        record = self.report(Kind.EXITED, id)
        assert self.ask(Kind.FORGET, id=id).error == 0
        return record

    def snapshot(self) -> list[Record]:
        """Everything the keeper holds."""
        kept, self.reports = self.reports, []
        assert self.ask(Kind.SNAPSHOT).error == 0
        told, self.reports = self.reports, kept
        return told

    def spawn(self, id: int, *argv: str, **options: object) -> Record:
        """Start a program; the reply."""
        command = Command(tuple(argv), dict(os.environ), **options)  # type: ignore[arg-type]
        memory = pack(command)
        try:
            return self.ask(Kind.SPAWN, memory, *command.descriptors.values(), id=id)
        finally:
            os.close(memory)

    def relay(
        self, id: int, source: int, sink: int, hold: int | None = None, flags: int = 0
    ) -> Record:
        """Begin a stream; its descriptors are the keeper's afterwards."""
        descriptors = [source, sink] if hold is None else [source, sink, hold]
        reply = self.ask(Kind.RELAY, *descriptors, id=id, flags=flags)
        for descriptor in descriptors:
            os.close(descriptor)
        return reply

    def output(self, id: int, fifo: Path, flags: int = 0) -> int:
        """Relay a new pipe to a client's FIFO as the shim does for stdout; the pipe's write end."""
        source, inner = os.pipe()
        os.set_blocking(source, False)
        hold = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        sink = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        assert self.relay(id, source, sink, hold, Flag.OUTPUT | flags).error == 0
        return inner

    def input(self, id: int, fifo: Path, flags: int = 0) -> int:
        """Relay a client's FIFO to a new pipe as the shim does for stdin; the pipe's read end."""
        inner, sink = os.pipe()
        os.set_blocking(sink, False)
        source = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        hold = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        assert self.relay(id, source, sink, hold, Flag.INPUT | flags).error == 0
        return inner


def _is_request(packet: Packet) -> bool:
    return packet.record.kind == Kind.REQUEST and packet.record.serial == 0


def keeper_environment() -> dict[str, str]:
    """What a process needs that imports the native modules."""
    return {**os.environ, "LD_PRELOAD": PRELOAD} if PRELOAD else dict(os.environ)


class Keeper:
    """A keeper process; `front` is the channel of its present front.

    `files` are the limits of descriptors (soft, hard) that its launcher has.
    """

    def __init__(
        self,
        folder: Path,
        listeners: tuple[tuple[int, Flag], ...] = (),
        files: tuple[int, int] | None = None,
    ) -> None:
        self._rendezvous = socket.socket(socket.AF_UNIX)
        path = str(folder / "front.sock")
        self._rendezvous.bind(path)
        self.command = [sys.executable, "-I", "-S", "-c", FRONT, path]
        self._rendezvous.listen(8)
        self._rendezvous.settimeout(PATIENCE)
        limit = f"{files[0]}:{files[1]}" if files else ""
        arguments = [FRONT, path, limit]
        arguments += [f"{descriptor}:{flags.value}" for descriptor, flags in listeners]
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT, SOURCE, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=[descriptor for descriptor, _ in listeners],
            env=keeper_environment(),
            start_new_session=True,
        )
        self.front = self.next_front()

    @property
    def pid(self) -> int:
        return self.process.pid

    def next_front(self) -> Front:
        """Wait for the keeper's next front."""
        link, _ = self._rendezvous.accept()
        _, descriptors, _, _ = socket.recv_fds(link, 16, 4)
        return Front(link, socket.socket(fileno=descriptors[0]))

    def upgrade(self, program: Sequence[str] = (), front: Sequence[str] = ()) -> Front:
        """Let another version take over: this one again, unless told; its front."""
        memories = [
            pack_program(program or keeper_program()),
            pack_front(front or self.command),
        ]
        self.front.tell(Record(Kind.UPGRADE), *memories)
        for memory in memories:
            os.close(memory)
        self.front.close()
        self.front = self.next_front()
        return self.front

    def replace_front(self, serves: bool = True) -> Front:
        """Let the present front die, and wait for the next one; it says READY if it serves."""
        self.front.close()
        self.front = self.next_front()
        if serves:
            assert self.front.ask(Kind.READY).error == 0
        return self.front

    def stop(self) -> None:
        """Ask it to end, and see that it does."""
        if self.process.poll() is None:
            self.front.tell(Record(Kind.STOP))
            self.process.wait(PATIENCE)
        self.front.close()
        self._rendezvous.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self.front.close()
        self._rendezvous.close()

    def descriptors(self) -> int:
        """How many the keeper has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def children(self) -> set[int]:
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return {int(word) for word in text.split()}


@contextlib.contextmanager
def keeper(*listeners: tuple[int, Flag], files: tuple[int, int] | None = None) -> Iterator[Keeper]:
    """A keeper for the block; it must end in good order when asked to."""
    with tempfile.TemporaryDirectory() as folder:
        made = Keeper(Path(folder), listeners, files)
        try:
            yield made
            made.stop()
            assert made.process.returncode == 0
        finally:
            if made.process.poll() is None:
                made.kill()
            made.front.close()


def wait_until(condition: object, what: str, limit: float = PATIENCE) -> None:
    """Poll a condition that nothing announces. Raises AssertionError at the limit (seconds)."""
    assert callable(condition)
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"waited {limit} s for {what}"
        select.select([], [], [], 0.005)
