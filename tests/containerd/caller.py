"""Calls on a group's socket, past containerd: several at once, and frames that are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from google.protobuf.message import Message

from shim._pb import ttrpc_pb2
from tests.native.frames import Caller, Frame, request

V2: Final = "containerd.task.v2.Task"
V3: Final = "containerd.task.v3.Task"

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True)
class Answer:
    """A response: its status, or its payload."""

    code: int
    text: str
    payload: bytes

    @classmethod
    def read(cls, frame: Frame) -> Answer:
        """From a frame, which must be a Response."""
        assert frame.type == 2
        response = ttrpc_pb2.Response.FromString(frame.body)
        assert not (response.status.code and response.payload)
        return cls(response.status.code, response.status.message, response.payload)

    def of(self, cls: type[_M]) -> _M:
        """The message, of an answer that is no error."""
        assert self.code == 0, self
        return cls.FromString(self.payload)


class TaskCaller(Caller):
    """A connection to a socket of the shim's; `answered` are those that were not asked for yet."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._last = -1
        self.answered: dict[int, Answer] = {}

    def __enter__(self) -> Self:
        return self

    def ask(
        self, method: str, message: Message | bytes, *, service: str = V2, timeout: float = 0
    ) -> int:
        """Send a request, and do not wait; the stream's number. timeout: seconds; 0: none."""
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        body = ttrpc_pb2.Request(
            service=service, method=method, payload=payload, timeout_nano=int(timeout * 1e9)
        )
        self._last += 2
        self.send(request(self._last, body.SerializeToString()))
        return self._last

    def answer(self, stream: int) -> Answer:
        """The answer on a stream; others that come before it are kept."""
        while stream not in self.answered:
            frame = self.receive()
            assert frame.stream not in self.answered, "a second answer"
            self.answered[frame.stream] = Answer.read(frame)
        return self.answered.pop(stream)

    def call(
        self, method: str, message: Message | bytes, *, service: str = V2, timeout: float = 0
    ) -> Answer:
        """Send a request and wait for its answer."""
        return self.answer(self.ask(method, message, service=service, timeout=timeout))
