"""The Host service, behind a pair's door: launchers' command lines, and the pair itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import shim
from shim._pb.denseshim.host.v1 import host_pb2
from shim.api.calls import Call, Method
from shim.api.shims import Shims
from shim.api.standalone import Standalone
from shim.api.upgrade import upgrade
from shim.bootstrap import answer
from shim.bootstrap.arguments import Action, Invocation, parse
from shim.bootstrap.group import (
    Kind,
    Scope,
    annotations_of,
    apart_keys,
    group_key,
    score_of_shims,
    share,
    socket_path,
    stands_apart,
)
from shim.bootstrap.options import Options, decode
from shim.bootstrap.stdin import Start, read_options, read_start
from shim.errors import (
    FailedPrecondition,
    InvalidArgument,
    RuntimeFailed,
    ShimError,
    Unavailable,
)
from shim.model import Launcher
from shim.runtime import Runtime
from shim.service.bundle import read_config
from shim.service.groups import Group, Groups, TakenElsewhere
from shim.service.host import FILE_LIMIT, Host
from shim.service.removal import remove_unknown
from shim.service.tasks import Tasks

SERVICE: Final = "denseshim.host.v1.Host"

_LAUNCHER_OF_2017: Final = b"containerd-shim-dense"


@dataclass(frozen=True)
class Pair:
    """What a front serves, and where.

    `serves` tells whether a container of that scope belongs here; `is_elsewhere` whether a pair
    apart of one of those keys is, or was, there. `end` is set when the pair is to end. `api`
    serves containers without containerd, which a pair apart does not. `launches` are the calls
    of launchers that are under way.
    """

    host: Host
    directory: Path
    groups: Groups
    tasks: Tasks
    shims: Shims
    serves: Callable[[Scope], bool]
    is_elsewhere: Callable[[Iterable[str]], bool]
    end: asyncio.Event
    api: Standalone | None = None
    launches: set[int] = field(default_factory=set)

    @property
    def containers(self) -> int:
        """How many there are, of either protocol."""
        return len(self.tasks) + len(self.shims)

    @property
    def idle(self) -> bool:
        """Whether there is no container, nor a launcher that may be about to make one."""
        return not (self.containers or self.launches)


class HostService:
    """The methods of one pair's front."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._opening = asyncio.Lock()
        self._features: dict[tuple[str, int], bytes] = {}

    def methods(self) -> Mapping[str, Method]:
        """By name."""
        return {
            "Launch": Method(host_pb2.LaunchRequest, self.launch),
            "Stop": Method(host_pb2.StopRequest, self.stop),
            "Status": Method(host_pb2.StatusRequest, self.status),
            "Upgrade": Method(host_pb2.UpgradeRequest, self.upgrade),
            "Api": Method(host_pb2.ApiRequest, self.api),
        }

    # -- launchers

    async def launch(
        self, call: Call, request: host_pb2.LaunchRequest
    ) -> host_pb2.LaunchResponse:
        """Do what a launcher's command line asks for.

        A pair that ends does not answer: the launcher then starts the next one.
        """
        if self._pair.end.is_set():
            await asyncio.Event().wait()
        self._pair.launches.add(call.id)
        try:
            return await self._launch(call, request)
        finally:
            self._pair.launches.discard(call.id)
            self._pair.groups.look()

    async def _launch(
        self, call: Call, request: host_pb2.LaunchRequest
    ) -> host_pb2.LaunchResponse:
        if request.argv[:1] == [_LAUNCHER_OF_2017]:
            return await self._join(call, request)
        invocation = parse(request.argv)
        if invocation.action is Action.START:
            return await self._start(request, invocation)
        if invocation.action is Action.DELETE:
            return await self._delete(request, invocation)
        if invocation.action is Action.INFO:
            return await self._info(request)
        text = f"containerd-shim-dense-v2 {shim.__version__}\n"
        return host_pb2.LaunchResponse(stdout=text.encode())

    async def _join(
        self, call: Call, request: host_pb2.LaunchRequest
    ) -> host_pb2.LaunchResponse:
        """A shim of 2017: its socket comes along, and it is called by that from now on.

        The only argument is the socket's path, when its file is the shim's to remove.
        """
        if len(call.descriptors) != 1 or len(request.argv) > 2:
            raise InvalidArgument("a launcher of 2017 hands over one socket, and maybe its path")
        own_socket = os.fsdecode(request.argv[1]) if len(request.argv) > 1 else ""
        bundle = os.fsdecode(request.cwd)
        await self._pair.shims.join(
            bundle, call.descriptors[0], own_socket, _launcher(request), call.id
        )
        return host_pb2.LaunchResponse()

    async def _start(
        self, request: host_pb2.LaunchRequest, invocation: Invocation
    ) -> host_pb2.LaunchResponse:
        start = read_start(request.stdin, invocation.id, invocation.namespace)
        options = decode(start.options)
        launcher = _launcher(request)
        bundle = Path(os.fsdecode(request.cwd))
        ttrpc = start.params.containerd_ttrpc_address if start.params else ""
        ttrpc = (ttrpc or launcher.env.get("TTRPC_ADDRESS", "")).removeprefix("unix://")
        _check_containerd(ttrpc)

        def scope_of(config: Mapping[str, Any]) -> Scope:
            return share(
                options,
                launcher.env,
                address=invocation.address,
                namespace=invocation.namespace,
                id=invocation.id,
                group=group_key(annotations_of(config), invocation.id),
                alone=stands_apart(request.oom_score_adj),
            )

        def make_known() -> tuple[str, bytes]:
            """The path of the group's socket, written to the bundle, and the answer.

            Empty: not ours.
            """
            scope = scope_of(read_config(bundle))
            if not self._pair.serves(scope):
                return "", b""
            path = _path_of(invocation, start, scope)
            alone = scope.kind is Kind.CONTAINER
            stdout = answer.started(path, start.params, options.task_api, alone)
            _write_address(bundle, answer.address(path))
            return path, stdout

        what = f"look at {bundle}"
        path, stdout = await self._pair.host.pool.run(what, FILE_LIMIT, make_known)
        if not path:
            return host_pb2.LaunchResponse(apart=True)
        await self._open(path, invocation, ttrpc, launcher, options.task_api == "grpc")
        return host_pb2.LaunchResponse(stdout=stdout)

    async def _open(
        self, path: str, invocation: Invocation, ttrpc: str, launcher: Launcher, grpc: bool
    ) -> None:
        """Serve the group at `path`, unless somebody does."""
        async with self._opening:
            if self._pair.groups.at(path) is not None:
                return
            id = self._pair.host.keeper.new_id()
            where = (invocation.address, ttrpc, invocation.namespace, path)
            with contextlib.suppress(TakenElsewhere):
                await self._pair.groups.open(Group(id, *where, launcher, grpc))

    async def _delete(
        self, request: host_pb2.LaunchRequest, invocation: Invocation
    ) -> host_pb2.LaunchResponse:
        """Free whatever is left of a container; mostly there is nothing."""
        cwd = Path(os.fsdecode(request.cwd))
        bundle = Path(invocation.bundle) if invocation.bundle else cwd.parent / invocation.id
        pid = await self._pair.tasks.remove(
            invocation.address, invocation.namespace, invocation.id
        )
        key = await self._group_key(bundle, invocation.id)
        if pid is None and self._pair.is_elsewhere(
            apart_keys(invocation.address, invocation.namespace, invocation.id, key)
        ):
            return host_pb2.LaunchResponse(apart=True)
        if pid is None:
            pid = await remove_unknown(
                self._pair.host, bundle, invocation.namespace, invocation.id, _launcher(request)
            )
        await self._close_unused(socket_path(invocation.address, invocation.namespace, key))
        now = self._pair.host.now()
        return host_pb2.LaunchResponse(stdout=answer.deleted(pid, answer.KILLED, now))

    async def _group_key(self, bundle: Path, id: str) -> str:
        """Of a container whose bundle may be gone."""
        read = partial(read_config, bundle)
        try:
            config = await self._pair.host.pool.run(f"read {bundle}", FILE_LIMIT, read)
        except ShimError:
            return id
        return group_key(annotations_of(config), id)

    async def _close_unused(self, path: str) -> None:
        """The group of a container that was started and never created has no use.

        It may be in another directory than `path`, which containerd named then and not now.
        """
        name = Path(path).name
        for group in list(self._pair.groups):
            if Path(group.path).name == name and not self._pair.tasks.uses(group):
                await self._pair.groups.close(group)

    async def _info(self, request: host_pb2.LaunchRequest) -> host_pb2.LaunchResponse:
        options = read_options(request.stdin)
        features = await self._features_of(decode(options), _launcher(request))
        return host_pb2.LaunchResponse(stdout=answer.info(shim.__version__, options, features))

    async def _features_of(self, options: Options, launcher: Launcher) -> bytes:
        """What the runtime can do; asked once for each version of its file."""
        host = self._pair.host
        make = partial(
            Runtime, options.runtime, self._pair.directory, host.keeper.spawn, launcher
        )
        runtime = await host.pool.run("find the runtime", FILE_LIMIT, make)
        changed = await host.pool.run("look at the runtime", FILE_LIMIT, os.stat, runtime.program)
        key = (runtime.program, changed.st_mtime_ns)
        if key not in self._features:
            try:
                self._features[key] = await runtime.features()
            except RuntimeFailed:
                return b""  # it is older than the command
        return self._features[key]

    # -- the pair

    async def stop(self, call: Call, request: host_pb2.StopRequest) -> host_pb2.StopResponse:
        """End the pair; with force, after deleting every container."""
        if not (self._pair.idle or request.force):
            raise FailedPrecondition(
                f"{self._pair.containers} containers live here, {len(self._pair.launches)} are "
                "being launched; delete them first, or use --force"
            )
        for container in list(self._pair.tasks):
            facts = container.facts
            await self._pair.tasks.remove(facts.address, facts.namespace, facts.id)
        await self._pair.shims.exit()
        call.answer(host_pb2.StopResponse())
        self._pair.end.set()
        return host_pb2.StopResponse()

    async def upgrade(
        self, call: Call, request: host_pb2.UpgradeRequest
    ) -> host_pb2.UpgradeResponse:
        """Have another version take over."""
        return await upgrade(self._pair.host, self._pair.directory, call, request)

    async def api(self, call: Call, request: host_pb2.ApiRequest) -> host_pb2.ApiResponse:
        """Serve containers without containerd, from now on and in every front to come."""
        if self._pair.api is None:
            raise FailedPrecondition("this pair serves some of containerd's containers alone")
        return host_pb2.ApiResponse(socket=await self._pair.api.open())

    async def status(
        self, call: Call, request: host_pb2.StatusRequest
    ) -> host_pb2.StatusResponse:
        """What runs here."""
        return host_pb2.StatusResponse(
            version=shim.__version__,
            keeper_pid=os.getppid(),
            front_pid=os.getpid(),
            containers=self._pair.containers,
        )


def _environment(request: host_pb2.LaunchRequest) -> dict[str, str]:
    pairs = (os.fsdecode(entry).partition("=") for entry in request.env)
    return {name: value for name, _, value in pairs}


def _launcher(request: host_pb2.LaunchRequest) -> Launcher:
    """What the commands of its container's runtime get.

    The daemon of 2017 has given the launcher its shim's oom_score_adj.
    """
    score = request.oom_score_adj
    if request.argv[:1] != [_LAUNCHER_OF_2017]:
        score = score_of_shims(score)
    return Launcher.handed_down(
        env=_environment(request),
        umask=request.umask,
        limits={limit.resource: (limit.soft, limit.hard) for limit in request.limits},
        cgroup=os.fsdecode(request.cgroup),
        oom_score_adj=score,
    )


def _path_of(invocation: Invocation, start: Start, scope: Scope) -> str:
    arguments = (invocation.address, invocation.namespace, scope.group)
    directory = start.params.socket_dir if start.params else ""
    return socket_path(*arguments, directory) if directory else socket_path(*arguments)


def _check_containerd(address: str) -> None:
    """Nothing is to be made for a containerd that nobody can send events to."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except BlockingIOError:
            return  # it has much to do
        except OSError as error:
            raise Unavailable(f"TTRPC_ADDRESS {address!r} cannot be reached: {error}") from error


def _write_address(bundle: Path, address: str) -> None:
    """As containerd 1.6 reads it when it starts again: a whole file or none."""
    new = bundle / ".address"
    try:
        new.write_text(address)
        new.rename(bundle / "address")
    except OSError as error:
        raise FailedPrecondition(f"cannot write to {bundle}: {error.strerror}") from error
