"""Where a front's messages go."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from shim import log
from shim.log import BoundedHandler


def tell(handler: logging.Handler, text: str) -> None:
    handler.emit(logging.LogRecord("x", logging.ERROR, "", 0, text, None, None))


def test_a_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LIMIT", 30)
    path = tmp_path / "log"
    with path.open("a") as file:
        handler = BoundedHandler(file)
        for number in range(3):
            tell(handler, f"message {number}")
        assert path.read_text() == "message 0\nmessage 1\nmessage 2\n"
        tell(handler, "next")
        assert path.read_text() == "next\n"


def test_a_pipe_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LIMIT", 0)
    reader, writer = os.pipe()
    with os.fdopen(reader) as ours, os.fdopen(writer, "w") as theirs:
        handler = BoundedHandler(theirs)
        tell(handler, "one")
        tell(handler, "two")
        assert (ours.readline(), ours.readline()) == ("one\n", "two\n")
