"""The Task service v3 over gRPC, for groups that ask for it (contract: runtime-v2, gRPC tasks).

The connections do not outlive the front, as those of ttrpc do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from shim.api.calls import Call, Method, awaited, note_failure
from shim.api.serving import Context, Server, refuse
from shim.api.task import SERVICES, TaskService
from shim.errors import ShimError
from shim.service.groups import Group


def make_server(group: Group, service: TaskService) -> Server:
    """A server, not yet serving, for the containers of one group."""
    server = Server()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(
            _behaviour(group, method),
            request_deserializer=method.request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for name, method in service.methods().items()
    }
    handler = grpc.method_handlers_generic_handler(SERVICES[1], handlers)
    server.services.add_generic_rpc_handlers((handler,))
    return server


def _behaviour(group: Group, method: Method) -> Callable[[Any, Context], Any]:
    async def serve(request: Any, context: Context) -> Any:
        work = asyncio.ensure_future(awaited(method.handler(Call(0, group.id), request)))
        work.add_done_callback(note_failure)
        try:
            # A caller that hangs up ends its waiting, but cuts nothing else in half.
            return await (work if method.parks else asyncio.shield(work))
        except ShimError as error:
            await refuse(context, error)

    return serve
