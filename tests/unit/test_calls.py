"""Answers to calls over ttrpc."""

from __future__ import annotations

from shim._pb import ttrpc_pb2
from shim.api.calls import failure


def test_an_error_may_have_what_no_message_can_hold() -> None:
    """Half a character of a path, of which Python's file names have some: the caller is told."""
    response = ttrpc_pb2.Response.FromString(failure(3, "cannot read /b\udcff/config.json"))
    assert (response.status.code, response.payload) == (3, b"")
    assert response.status.message == "cannot read /b?/config.json"
