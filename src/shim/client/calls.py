"""The calls of the Shim service, in domain values.

Every call raises the class of shim.errors that the shim's status code stands for, with the
shim's message; `timeout` is in seconds (None: no limit, DeadlineExceeded when it passes).
A call under way when the shim's front dies raises Unavailable; the next one dials again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from shim._pb.containerd.v1.services.shim import shim_pb2, shim_pb2_grpc
from shim._pb.containerd.v1.types import types_pb2
from shim.api import convert
from shim.client.channel import Caller, translated
from shim.model import (
    CheckpointRequest,
    ContainerState,
    CreateRequest,
    Event,
    Exit,
    ProcessInfo,
    Stdio,
)


class EventStream:
    """Events, in order: an async iterator, to be left by `async with`.

    It ends when the shim ends it; Unavailable is raised when the front dies.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, types_pb2.Event], socket: Path) -> None:
        self._call, self._socket = call, socket

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        with translated(self._socket):
            message = await self._call.read()
        if not isinstance(message, types_pb2.Event):
            raise StopAsyncIteration
        return convert.event_from_pb(message)

    async def subscribed(self, timeout: float) -> None:
        """Return when the shim has sent its headers, at the first event or before it.

        A shim that sends none within `timeout` seconds has long read the request all the same.
        """
        with contextlib.suppress(TimeoutError), translated(self._socket):
            # Not wait_for: of Python 3.11 it forgets a cancellation that comes with the answer.
            async with asyncio.timeout(timeout):
                await self._call.initial_metadata()


class ShimClient(Caller):
    """One shim, by the path of its socket. An async context manager: calls go inside."""

    def _bind(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = shim_pb2_grpc.ShimStub(channel)  # type: ignore[no-untyped-call]

    async def create(self, request: CreateRequest, *, timeout: float | None = None) -> int:
        """Create the container, not started, and return its init process's pid."""
        message = convert.create_to_pb(request)
        answer: shim_pb2.CreateResponse = await self._answer(self._stub.Create, message, timeout)
        return answer.pid

    async def start(self, *, timeout: float | None = None) -> None:
        """Let the container's init process run."""
        await self._answer(self._stub.Start, shim_pb2.StartRequest(), timeout)

    async def delete(self, pid: int = 0, *, timeout: float | None = None) -> Exit:
        """Delete the container (pid 0 or its init's), or forget the ended exec `pid`."""
        message = shim_pb2.DeleteRequest(pid=pid)
        return convert.exit_from_pb(await self._answer(self._stub.Delete, message, timeout))

    async def state(self, *, timeout: float | None = None) -> ContainerState:
        """The container and every process known of it."""
        message = shim_pb2.StateRequest()
        return convert.state_from_pb(await self._answer(self._stub.State, message, timeout))

    async def processes(
        self, id: str = "", *, timeout: float | None = None
    ) -> tuple[ProcessInfo, ...]:
        """The processes in the container as the kernel sees them."""
        message = shim_pb2.ProcessesRequest(id=id)
        answer = await self._answer(self._stub.Processes, message, timeout)
        return tuple(convert.process_from_pb(process) for process in answer.processes)

    async def pause(self, *, timeout: float | None = None) -> None:
        """Freeze every process of the container."""
        await self._answer(self._stub.Pause, shim_pb2.PauseRequest(), timeout)

    async def resume(self, *, timeout: float | None = None) -> None:
        """Let a paused container go on."""
        await self._answer(self._stub.Resume, shim_pb2.ResumeRequest(), timeout)

    async def checkpoint(self, request: CheckpointRequest, *, timeout: float | None = None) -> None:
        """Write the container's state to a directory, from which Create restores it."""
        await self._answer(self._stub.Checkpoint, convert.checkpoint_to_pb(request), timeout)

    async def exit(self, *, timeout: float | None = None) -> None:
        """End the shim."""
        await self._answer(self._stub.Exit, shim_pb2.ExitRequest(), timeout)

    def events(self, *, timeout: float | None = None) -> EventStream:
        """Subscribe now to the container's events, first those that nobody has read."""
        call = self._stub.Events(shim_pb2.EventsRequest(), timeout=timeout)
        return EventStream(call, self.socket)

    async def kill(
        self, signal: int, *, pid: int = 0, all: bool = False, timeout: float | None = None
    ) -> None:
        """Send `signal` to the init process (pid 0), to `pid`, or to all processes."""
        message = shim_pb2.KillRequest(signal=signal, all=all, pid=pid)
        await self._answer(self._stub.Kill, message, timeout)

    async def exec(
        self, spec: Mapping[str, Any], stdio: Stdio, *, timeout: float | None = None
    ) -> int:
        """Run a further process in the container and return its pid.

        `spec` is an OCI process (runtime specification, config.md); see shim.oci.spec.process.
        """
        message = convert.exec_to_pb(spec, stdio)
        answer: shim_pb2.ExecResponse = await self._answer(self._stub.Exec, message, timeout)
        return answer.pid

    async def pty(self, pid: int, width: int, height: int, *, timeout: float | None = None) -> None:
        """Set the size, in characters, of the terminal of process `pid`."""
        message = shim_pb2.PtyRequest(pid=pid, width=width, height=height)
        await self._answer(self._stub.Pty, message, timeout)

    async def close_stdin(self, pid: int, *, timeout: float | None = None) -> None:
        """End the shim's hold on the stdin of process `pid`."""
        await self._answer(self._stub.CloseStdin, shim_pb2.CloseStdinRequest(pid=pid), timeout)
