"""Calls over ttrpc: from a request that the keeper has taken to the response that it sends.

The framing is the keeper's (contract: runtime-v2, ttrpc); here are the messages in it. A call may
have been given to an earlier front: what a handler does for the same call twice has to be the
same as for once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError, Message

from shim._pb import ttrpc_pb2
from shim.api.codes import code_of
from shim.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    ShimError,
    Unimplemented,
)
from shim.keeper.client import Incoming, KeeperClient

# The longest message of ttrpc, less what a response adds to its payload.
LARGEST = (4 << 20) - 64
# Seconds after which a call that the front has survived so far is not what kills fronts.
PROVEN = 0.5
# What a call that met a defect of ours is answered with: gRPC INTERNAL.
INTERNAL = 13

_log = logging.getLogger(__name__)


@dataclass
class Call:
    """One call. `id` is the keeper's number of it, the same for each front that it is given to.

    `listener` is the socket that it came by; `pid` the caller's. `descriptors` came with it;
    they are closed when it is over, unless they are taken out of the list.
    """

    id: int
    listener: int
    pid: int = 0
    descriptors: list[int] = field(default_factory=list)
    answer: Callable[[Message], None] = lambda _: None


Handler = Callable[[Call, Any], Awaitable[Message]]


@dataclass(frozen=True)
class Method:
    """A method: the class of its requests, and what serves it.

    `parks`: it only waits, so it ends with its caller and may be given to any number of fronts.
    """

    request: type[Message]
    handler: Handler
    parks: bool = False


Services = Mapping[str, Mapping[str, Method]]


class Calls:
    """Serves what the keeper takes, and answers through it."""

    def __init__(self, keeper: KeeperClient, services: Services) -> None:
        self._keeper = keeper
        self._services = services
        self._serving: dict[int, _Serving] = {}
        keeper.on_request = self._take
        keeper.on_cancelled = self._cancelled

    def _take(self, incoming: Incoming) -> None:
        call = Call(incoming.id, incoming.listener, incoming.pid, list(incoming.descriptors))
        serving = _Serving(self._keeper, call)
        try:
            request = ttrpc_pb2.Request.FromString(incoming.body)
            method = self._method(request)
            message = _decode(method.request, request.payload)
        except DecodeError as error:
            serving.refuse(InvalidArgument(f"this is no ttrpc request: {error}"))
        except ShimError as error:
            serving.refuse(error)
        else:
            self._serving[call.id] = serving
            left = _time_left(request.timeout_nano, incoming.time)
            serving.begin(method, request.method, message, left)
            serving.task.add_done_callback(lambda _: self._serving.pop(call.id))
            return
        serving.close()

    def _cancelled(self, id: int) -> None:
        """The caller is gone. What has effects goes on to its end all the same."""
        serving = self._serving.get(id)
        if serving is not None and serving.parks:
            serving.task.cancel()

    def _method(self, request: ttrpc_pb2.Request) -> Method:
        service = self._services.get(request.service)
        if service is None:
            raise Unimplemented(f"unknown service {request.service}")
        method = service.get(request.method)
        if method is None:
            raise Unimplemented(f"method {request.method} of {request.service} is not there")
        return method


class _Serving:
    """One call while it is served. It is answered once: by its handler, or at its deadline."""

    parks = False
    task: asyncio.Task[Message]

    def __init__(self, keeper: KeeperClient, call: Call) -> None:
        self._keeper = keeper
        self._call = call
        self._answered = False
        self._name = ""
        self._timers: list[asyncio.TimerHandle] = []
        call.answer = self._answer

    def begin(self, method: Method, name: str, message: Message, left: float | None) -> None:
        """Have the handler called; `left`: seconds until the caller's deadline, if it has one."""
        loop = asyncio.get_running_loop()
        self.parks, self._name = method.parks, name
        if method.parks:
            # Before anything else: a front that is killed meanwhile did not die of this call.
            self._keeper.replayable(self._call.id)
        else:
            proven = loop.call_later(PROVEN, self._keeper.replayable, self._call.id)
            self._timers.append(proven)
        if left is not None:
            self._timers.append(loop.call_later(left, self._expire))
        self.task = loop.create_task(awaited(method.handler(self._call, message)))
        self.task.add_done_callback(self._ended)

    def refuse(self, error: ShimError) -> None:
        """Answer with an error."""
        _log.info("refused: %s", error)
        self._respond(failure(code_of(error), str(error)))

    def close(self) -> None:
        """It is over."""
        for timer in self._timers:
            timer.cancel()
        for descriptor in self._call.descriptors:
            os.close(descriptor)

    def _answer(self, message: Message) -> None:
        self._respond(success(message))

    def _respond(self, body: bytes) -> None:
        if not self._answered:
            self._answered = True
            self._keeper.respond(self._call.id, body)

    def _expire(self) -> None:
        """Only what waits ends with it; what has effects goes on."""
        self.refuse(DeadlineExceeded(f"{self._name}: the caller's deadline has passed"))
        if self.parks:
            self.task.cancel()

    def _ended(self, task: asyncio.Task[Message]) -> None:
        self.close()
        if task.cancelled():
            return  # nobody waits for the answer
        error = task.exception()
        if error is None:
            self._answer(task.result())
        elif isinstance(error, ShimError):
            self.refuse(error)
        elif isinstance(error, OSError):
            self.refuse(ResourceExhausted(f"{self._name}: {error}"))
        else:
            _log.error("%s failed", self._name, exc_info=error)
            self._respond(failure(INTERNAL, f"a defect in the shim: {error!r}"))


async def awaited(result: Awaitable[Message]) -> Message:
    """A handler's result as a coroutine's, of which a task can be made."""
    return await result


def note_failure(task: asyncio.Future[Any]) -> None:
    """Nobody may be left to take the outcome; a defect must show all the same."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, ShimError):
        _log.info("refused: %s", error)
    elif error is not None:
        _log.error("a call failed", exc_info=error)


def _decode(cls: type[Message], payload: bytes) -> Message:
    try:
        return cls.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument(f"this is no {cls.DESCRIPTOR.name}: {error}") from error


def _time_left(timeout: int, arrived: int) -> float | None:
    """Seconds; deadlines count from a call's first arrival."""
    if timeout <= 0:
        return None
    return max(0.0, (arrived + timeout - time.time_ns()) / 1e9)


def success(message: Message) -> bytes:
    """A ttrpc Response that carries `message`."""
    payload = message.SerializeToString()
    if len(payload) > LARGEST:
        text = f"the answer has {len(payload)} bytes, more than ttrpc carries"
        return failure(code_of(ResourceExhausted("")), text)
    if not payload:
        return b""
    return ttrpc_pb2.Response(payload=payload).SerializeToString()


def failure(code: int, text: str) -> bytes:
    """A ttrpc Response that says what went wrong; a client decodes no payload then."""
    # Half a character of a path or of a runtime's log is nothing that a message can hold.
    status = ttrpc_pb2.Status(code=code, message=text.encode(errors="replace").decode())
    return ttrpc_pb2.Response(status=status).SerializeToString()
