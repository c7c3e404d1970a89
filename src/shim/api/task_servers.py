"""The gRPC servers of the groups that speak it, which are few: most speak ttrpc."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shim.api.task import TaskService
from shim.service.groups import Group, Groups
from shim.service.host import Host

if TYPE_CHECKING:
    from shim.api.serving import Server


class TaskServers:
    """A gRPC server for each group that speaks it."""

    def __init__(self, host: Host, directory: Path, service: TaskService) -> None:
        self._host = host
        self._directory = directory
        self._service = service
        self._servers: dict[int, Server] = {}

    async def follow(self, groups: Groups) -> None:
        """Serve the groups that there are, and those that will be opened."""
        for group in groups:
            await self.open(group)
        groups.opened, groups.closed = self.open, self.close

    async def open(self, group: Group) -> None:
        """Serve a group, if it speaks gRPC."""
        if not group.grpc:
            return
        from shim.api.grpc_task import make_server

        server = make_server(group, self._service)
        self._servers[group.id] = server
        await server.serve(self._host, self._directory, group.id)

    async def close(self, group: Group) -> None:
        """Take no more calls; the one that asked for this is answered."""
        server = self._servers.pop(group.id, None)
        if server is not None:
            self._host.later(server.stop())
