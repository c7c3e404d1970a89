"""The Shim service over gRPC: messages to values and back, errors to status codes."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from shim._pb.containerd.v1.services.shim import shim_pb2
from shim._pb.containerd.v1.services.shim.shim_pb2_grpc import (
    ShimServicer,
    add_ShimServicer_to_server,
)
from shim.api import convert
from shim.api.serving import Context, Server, answers, refuse
from shim.errors import ShimError
from shim.events import Subscription
from shim.service.shim import Shim


def make_server(shim: Shim) -> Server:
    """A server, not yet serving, for one shim."""
    server = Server()
    add_ShimServicer_to_server(Service(shim), server.services)  # type: ignore[no-untyped-call]
    return server


class Service(ShimServicer):
    """containerd.v1.services.shim.Shim, as the generated code wants it."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim

    @answers
    async def Create(self, request: shim_pb2.CreateRequest) -> shim_pb2.CreateResponse:
        return shim_pb2.CreateResponse(
            pid=await self._shim.create(convert.create_from_pb(request))
        )

    @answers
    async def Start(self, request: shim_pb2.StartRequest) -> Empty:
        await self._shim.start()
        return Empty()

    @answers
    async def Delete(self, request: shim_pb2.DeleteRequest) -> shim_pb2.DeleteResponse:
        return convert.exit_to_pb(await self._shim.delete(request.pid))

    @answers
    async def State(self, request: shim_pb2.StateRequest) -> shim_pb2.StateResponse:
        return convert.state_to_pb(self._shim.state())

    @answers
    async def Processes(self, request: shim_pb2.ProcessesRequest) -> shim_pb2.ProcessesResponse:
        found = await self._shim.processes(request.id)
        return shim_pb2.ProcessesResponse(processes=map(convert.process_to_pb, found))

    @answers
    async def Pause(self, request: shim_pb2.PauseRequest) -> Empty:
        await self._shim.pause()
        return Empty()

    @answers
    async def Resume(self, request: shim_pb2.ResumeRequest) -> Empty:
        await self._shim.resume()
        return Empty()

    @answers
    async def Checkpoint(self, request: shim_pb2.CheckpointRequest) -> Empty:
        await self._shim.checkpoint(convert.checkpoint_from_pb(request))
        return Empty()

    @answers
    async def Exit(self, request: shim_pb2.ExitRequest) -> Empty:
        await self._shim.exit()
        return Empty()

    @answers
    async def Kill(self, request: shim_pb2.KillRequest) -> Empty:
        await self._shim.kill(request.signal, request.all, request.pid)
        return Empty()

    @answers
    async def Exec(self, request: shim_pb2.ExecRequest) -> shim_pb2.ExecResponse:
        spec, stdio = convert.exec_from_pb(request)
        return shim_pb2.ExecResponse(pid=await self._shim.exec(spec, stdio))

    @answers
    async def Pty(self, request: shim_pb2.PtyRequest) -> Empty:
        await self._shim.pty(request.pid, request.width, request.height)
        return Empty()

    @answers
    async def CloseStdin(self, request: shim_pb2.CloseStdinRequest) -> Empty:
        await self._shim.close_stdin(request.pid)
        return Empty()

    async def Events(self, request: shim_pb2.EventsRequest, context: Context) -> None:
        await stream_events(self._shim.events(), context)


async def stream_events(subscription: Subscription, context: Context) -> None:
    """Send events until the caller leaves; one counts as delivered when its write has ended.

    Closes the subscription.
    """
    try:
        # The headers tell the caller that from now on nothing is missed.
        await context.send_initial_metadata(())
        async for event in subscription:
            await context.write(convert.event_to_pb(event))
            subscription.delivered(event)
    except ShimError as error:
        await refuse(context, error)
    finally:
        subscription.close()
