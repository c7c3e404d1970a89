"""The Task service v3 over gRPC, for groups that ask for it (contract: runtime-v2, gRPC tasks).

The connections do not outlive the front, as those of ttrpc do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from shim.api.calls import Call, Method, awaited, note_failure
from shim.api.codes import code_of
from shim.api.server import OPTIONS
from shim.api.shims import GRACE, serve_behind
from shim.api.task import SERVICES, TaskService
from shim.errors import ShimError
from shim.service.groups import Group, Groups
from shim.service.host import Host

Context = grpc.aio.ServicerContext[Any, Any]


class TaskServers:
    """A gRPC server for each group that speaks it."""

    def __init__(self, host: Host, directory: Path, service: TaskService) -> None:
        self._host = host
        self._directory = directory
        self._service = service
        self._servers: dict[int, grpc.aio.Server] = {}

    async def follow(self, groups: Groups) -> None:
        """Serve the groups that there are, and those that will be opened."""
        for group in groups:
            await self.open(group)
        groups.opened, groups.closed = self.open, self.close

    async def open(self, group: Group) -> None:
        """Serve a group, if it speaks gRPC."""
        if not group.grpc:
            return
        server = grpc.aio.server(options=OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                _behaviour(group, method),
                request_deserializer=method.request.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, method in self._service.methods().items()
        }
        handler = grpc.method_handlers_generic_handler(SERVICES[1], handlers)
        server.add_generic_rpc_handlers((handler,))
        self._servers[group.id] = server
        await serve_behind(server, self._host, self._directory, group.id)

    async def close(self, group: Group) -> None:
        """Take no more calls; the one that asked for this is answered."""
        server = self._servers.pop(group.id, None)
        if server is not None:
            self._host.later(server.stop(GRACE))


def _behaviour(group: Group, method: Method) -> Callable[[Any, Context], Any]:
    async def serve(request: Any, context: Context) -> Any:
        work = asyncio.ensure_future(awaited(method.handler(Call(0, group.id), request)))
        work.add_done_callback(note_failure)
        try:
            # A caller that hangs up ends its waiting, but cuts nothing else in half.
            return await (work if method.parks else asyncio.shield(work))
        except ShimError as error:
            await context.abort(code_of(error), str(error))

    return serve
