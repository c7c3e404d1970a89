"""The Snapshot service over gRPC: root file systems (contract: containerd.v1.snapshot)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.empty_pb2 import Empty

from shim._pb.containerd.v1.snapshot import snapshot_pb2 as pb
from shim._pb.containerd.v1.snapshot.snapshot_pb2_grpc import SnapshotServicer
from shim.api.convert import mount_to_pb
from shim.api.serving import Context, answers, refuse
from shim.errors import ShimError
from shim.metadata.values import Kind, Snapshot
from shim.model import Mount
from shim.standalone.library import Library

_KIND: Final = {Kind.ACTIVE: pb.ACTIVE, Kind.COMMITTED: pb.COMMITTED}
# Of a stream's message: far below what gRPC takes.
_MOST_AT_ONCE: Final = 1000


class SnapshotService(SnapshotServicer):
    """containerd.v1.snapshot.Snapshot, as the generated code wants it."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._snapshots = library.snapshots

    @answers
    async def Prepare(self, request: pb.PrepareRequest) -> pb.MountsResponse:
        what = "prepare a snapshot"
        prepare = self._snapshots.prepare
        return _mounts(await self._library.files(what, prepare, request.key, request.parent))

    @answers
    async def View(self, request: pb.PrepareRequest) -> pb.MountsResponse:
        what = "make a view of a snapshot"
        view = self._snapshots.view
        return _mounts(await self._library.files(what, view, request.key, request.parent))

    @answers
    async def Mounts(self, request: pb.MountsRequest) -> pb.MountsResponse:
        what = "find the snapshot"
        return _mounts(await self._library.record(what, self._snapshots.mounts, request.key))

    @answers
    async def Commit(self, request: pb.CommitRequest) -> Empty:
        commit = self._snapshots.commit
        await self._library.files("commit a snapshot", commit, request.name, request.key)
        return Empty()

    @answers
    async def Remove(self, request: pb.RemoveRequest) -> Empty:
        await self._library.files("remove a snapshot", self._snapshots.remove, request.key)
        return Empty()

    @answers
    async def Stat(self, request: pb.StatRequest) -> pb.StatResponse:
        stat = self._library.store.stat
        found = await self._library.record("find the snapshot", stat, request.key)
        return pb.StatResponse(info=_info(found))

    async def List(
        self, request: pb.ListRequest, context: Context
    ) -> AsyncIterator[pb.ListResponse]:
        """At least one message, of all snapshots of one moment."""
        try:
            store = self._library.store
            found = await self._library.record("list the snapshots", store.list_snapshots)
        except ShimError as error:
            await refuse(context, error)
        for first in range(0, len(found) or 1, _MOST_AT_ONCE):
            yield pb.ListResponse(info=map(_info, found[first : first + _MOST_AT_ONCE]))

    @answers
    async def Usage(self, request: pb.UsageRequest) -> pb.UsageResponse:
        usage = self._snapshots.usage
        found = await self._library.files("measure a snapshot", usage, request.key)
        return pb.UsageResponse(size=found.size, inodes=found.inodes)


def _mounts(mounts: tuple[Mount, ...]) -> pb.MountsResponse:
    return pb.MountsResponse(mounts=map(mount_to_pb, mounts))


def _info(snapshot: Snapshot) -> pb.Info:
    return pb.Info(
        name=snapshot.key,
        parent=snapshot.parent,
        kind=_KIND[snapshot.kind],
        readonly=snapshot.readonly,
    )
