"""Calls over a pair's door, against answers that wait in the socket already."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from shim import door
from shim._pb import ttrpc_pb2 as ttrpc
from shim._pb.denseshim.host.v1.host_pb2 import LaunchRequest, LaunchResponse
from shim.api.codes import CODES
from shim.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    RuntimeFailed,
    ShimError,
    Unavailable,
)
from tests.fakes.door import HEADER, REQUEST, answer, frame, refusal

ASKED = LaunchRequest(argv=[b"a"], stdin=b"\xff")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def launch(ours: socket.socket, *descriptors: int) -> LaunchResponse:
    return door.call(ours, "Launch", ASKED, LaunchResponse, descriptors)


def test_a_call_and_its_answer(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(answer(7, b"out", b"err"))
    assert launch(ours) == LaunchResponse(status=7, stdout=b"out", stderr=b"err")
    data = theirs.recv(1 << 16)
    length, stream, kind, flags = HEADER.unpack_from(data)
    assert (length, stream, kind, flags) == (len(data) - HEADER.size, 1, REQUEST, 0)
    request = ttrpc.Request.FromString(data[HEADER.size :])
    assert (request.service, request.method) == ("denseshim.host.v1.Host", "Launch")
    assert LaunchRequest.FromString(request.payload) == ASKED


def test_descriptors_go_with_the_call(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(answer())
    launch(ours, theirs.fileno())
    _, descriptors, _, _ = socket.recv_fds(theirs, 1 << 16, 4)
    [passed] = descriptors
    assert os.path.sameopenfile(passed, theirs.fileno())
    os.close(passed)


def test_no_body_is_an_empty_answer(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(frame(b""))
    assert launch(ours) == LaunchResponse()


@pytest.mark.parametrize(
    ("code", "error"), [(3, InvalidArgument), (5, NotFound), (14, Unavailable), (13, RuntimeFailed)]
)
def test_a_status_is_an_error(
    ends: tuple[socket.socket, socket.socket], code: int, error: type[ShimError]
) -> None:
    ours, theirs = ends
    theirs.sendall(refusal(code, "the reason"))
    with pytest.raises(error, match=r"^the reason$") as caught:
        launch(ours)
    assert not isinstance(caught.value, door.HungUp)


def test_the_errors_are_those_of_grpc() -> None:
    for error, code in CODES.items():
        if code in door.ERRORS:
            assert door.ERRORS[code] is error


@pytest.mark.parametrize("part", [b"", answer()[:4], answer(7)[:-1]])
def test_a_pair_that_goes_without_an_answer(
    ends: tuple[socket.socket, socket.socket], part: bytes
) -> None:
    ours, theirs = ends
    theirs.sendall(part)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(door.HungUp):
        launch(ours)


def test_a_pair_that_has_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(door.HungUp, match="Broken pipe"):
        launch(ours)


@pytest.mark.parametrize(
    "data",
    [frame(b"", stream=3), frame(b"", kind=REQUEST), frame(b"", length=(4 << 20) + 1), b"x" * 20],
)
def test_what_is_no_answer(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    ours, theirs = ends
    theirs.sendall(data)
    with pytest.raises(RuntimeFailed, match="not ttrpc"):
        launch(ours)


@pytest.mark.parametrize("body", [b"\xff", ttrpc.Response(payload=b"\xff").SerializeToString()])
def test_an_answer_that_cannot_be_read(
    ends: tuple[socket.socket, socket.socket], body: bytes
) -> None:
    ours, theirs = ends
    theirs.sendall(frame(body))
    with pytest.raises(RuntimeFailed, match="answer to Launch"):
        launch(ours)


def test_no_answer_in_time(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = ends
    ours.settimeout(0.01)
    with pytest.raises(DeadlineExceeded, match=r"no answer to Launch within 0\.01 s"):
        launch(ours)


def test_a_request_that_no_frame_holds(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = ends
    with pytest.raises(InvalidArgument, match="longer than 4194304"):
        door.call(ours, "Launch", LaunchRequest(stdin=bytes(4 << 20)), LaunchResponse)
