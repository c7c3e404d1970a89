"""The benchmarks' load generators."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.calls import ask, write_frames
from benchmarks.load import Pump, add_pump, gate
from shim._pb import ttrpc_pb2
from shim._pb.containerd.task.v3 import task_pb2

HEADER = struct.Struct(">IIBB")
RESPONSE = 2


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load")
    (folder / "bin").mkdir()
    add_pump(folder)
    return folder


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_discard_tells_what_came(rootfs: Path) -> None:
    fifo = rootfs / "discarded"
    os.mkfifo(fifo)
    with Pump(rootfs, "discard", fifo) as reader:
        with open(fifo, "wb") as writer, Pump(rootfs, "write", 7, 1000, stdout=writer) as load:
            load.output()
        assert int(reader.output()) == 7000


def test_nothing_passes_a_gate_before_it_is_told(rootfs: Path) -> None:
    with gate(rootfs) as turn:
        path = rootfs / turn.inside.lstrip("/")
        with Pump(rootfs, "after", path, "echo", "went") as waiting:
            turn.admit()
            assert waiting.output() == b"went\n"
        with Pump(rootfs, "after", path, "echo", "went") as waiting:
            assert waiting.process.poll() is None
    assert not path.exists()


def test_lines_have_an_age(rootfs: Path, pipe: tuple[int, int]) -> None:
    """Each round of lines has its own token of the gate."""
    source, sink = pipe
    with gate(rootfs) as turn:
        path = rootfs / turn.inside.lstrip("/")
        with Pump(rootfs, "lines", path, 20, 1000, 5, stdout=sink):
            for _ in range(2):
                with Pump(rootfs, "receive", 20, descriptors=[source]) as reader:
                    turn.admit()
                    ages = reader.times()
                assert len(ages) == 20
                assert all(0 < age < 60 for age in ages)


def test_what_stands_before_a_line_is_passed_over(rootfs: Path, pipe: tuple[int, int]) -> None:
    source, sink = pipe
    with Pump(rootfs, "receive", 2, descriptors=[source]) as reader:
        os.write(sink, b"2026-01-01T00:00:00.5Z stdout F @1000000000  \n2026 stdout F @20")
        os.write(sink, b"00000000  \n")
        first, second = reader.times()
    assert 0.5 < first - second < 60  # the first was a second older, and read before


def test_a_flood_is_drained(rootfs: Path) -> None:
    """More than the pipes hold, in pieces that do not divide it."""
    pipes = [os.pipe() for _ in range(3)]
    sources, sinks = zip(*pipes, strict=True)
    size = (1 << 20) + 1
    with (
        Pump(rootfs, "drain", size, descriptors=sources) as reader,
        Pump(rootfs, "flood", size, 60_000, descriptors=sinks) as writer,
    ):
        writer.output()
        reader.output()
    for end in (*sources, *sinks):
        os.close(end)


def answer(listener: socket.socket, body: bytes, seen: list[str]) -> None:
    """Answer all calls of one client with the same body, in two pieces, until it hangs up."""
    connection, _ = listener.accept()
    hang_up = contextlib.suppress(ConnectionError)
    with hang_up, connection, connection.makefile("rb") as stream:
        while head := stream.read(HEADER.size):
            length, number, *_ = HEADER.unpack(head)
            seen.append(ttrpc_pb2.Request.FromString(stream.read(length)).method)
            frame = HEADER.pack(len(body), number, RESPONSE, 0) + body
            connection.sendall(frame[:5])
            connection.sendall(frame[5:])


def calls_to(rootfs: Path, folder: Path, times: int, body: bytes) -> tuple[list[float], list[str]]:
    """Two clients call State and Wait in turn; the times, and the methods that were called."""
    write_frames(
        folder / "frames",
        "containerd.task.v2.Task",
        [("State", task_pb2.StateRequest(id="a")), ("Wait", task_pb2.WaitRequest(id="a"))],
    )
    seen: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        servers = [threading.Thread(target=answer, args=(listener, body, seen)) for _ in range(2)]
        for server in servers:
            server.start()
        try:
            found = ask(rootfs, times, [(folder / "frames", folder / "socket")] * 2)
        finally:
            for server in servers:
                server.join()
    return found, seen


def test_each_time_is_all_of_the_requests(rootfs: Path, tmp_path: Path) -> None:
    body = ttrpc_pb2.Response(payload=b"\x0a\x01a").SerializeToString()
    found, seen = calls_to(rootfs, tmp_path, 5, body)
    assert len(found) == 2 * 5
    assert all(0 < took < 60 for took in found)
    assert sorted(seen) == ["State"] * 10 + ["Wait"] * 10


def test_an_error_is_no_answer(rootfs: Path, tmp_path: Path) -> None:
    refused = ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=5, message="not found"))
    with pytest.raises(subprocess.CalledProcessError):
        calls_to(rootfs, tmp_path, 1, refused.SerializeToString())
