"""A gRPC channel to a socket whose front may die and come again."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import grpc
import grpc.aio

from shim.api.codes import error_of
from shim.client.probe import is_listening
from shim.errors import Unavailable

# The back-off is short: the shim's socket outlives its front. grpc.min_reconnect_backoff_ms
# is left at its 20 s: in grpc's core it bounds one attempt to connect, and an attempt lasts as
# long as a new front takes to start.
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)


class Caller(ABC):
    """Calls services on the socket `socket`. An async context manager: calls go inside."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def __aenter__(self) -> Self:
        target = "unix:" + quote(str(self.socket.absolute()))
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._bind(self._channel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    @abstractmethod
    def _bind(self, channel: grpc.aio.Channel) -> None:
        """Make the stubs."""

    async def ready(self, timeout: float) -> None:
        """Return when the shim answers. Raises Unavailable if it does not within `timeout` s."""
        try:
            async with asyncio.timeout(timeout):
                await self._channel.channel_ready()
        except TimeoutError:
            raise Unavailable(
                f"no shim answers on {self.socket} in {timeout:g} s: is it still running?"
            ) from None

    async def _answer(self, method: Any, request: Any, timeout: float | None) -> Any:
        with translated(self.socket):
            return await method(request, timeout=timeout)


@contextlib.contextmanager
def translated(socket: Path) -> Iterator[None]:
    """Turn grpc's error into the shim's own."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        failure = error_of(error.code().value[0], error.details() or error.code().name)
        if isinstance(failure, Unavailable) and not is_listening(socket):
            failure = Unavailable(f"no shim answers on {socket}")
        raise failure from error
