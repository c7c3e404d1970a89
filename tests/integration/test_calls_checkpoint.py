"""Checkpoint and restore: the runtime's command line, and what is left of CRIU's work.

CRIU does not run on every kernel, so the runtime stops before it would be called; where
`criu check` passes, the real thing is tried as well.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.client import ShimClient
from shim.errors import FailedPrecondition, InvalidArgument, RuntimeFailed
from shim.model import CheckpointRequest, EventType, Status
from tests.fakes.daemon import WRAPPER, Launched, launched, living
from tests.integration.support import Bundle


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """One shim for the tests of this file."""
    with launched(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


FLAGS = [
    (CheckpointRequest("/image"), ["--leave-running"]),
    (CheckpointRequest("/image", exit=True), []),
    (CheckpointRequest("/image", True, allow_tcp=True), ["--tcp-established"]),
    (CheckpointRequest("/image", True, allow_unix_sockets=True), ["--ext-unix-sk"]),
    (CheckpointRequest("/image", True, allow_terminal=True), ["--shell-job"]),
    (CheckpointRequest("/image", True, file_locks=True), ["--file-locks"]),
    (
        CheckpointRequest("/image", True, empty_namespaces=("network", "ipc")),
        ["--empty-ns", "network", "--empty-ns", "ipc"],
    ),
]


async def test_the_flags(daemon: Launched, make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("sleep", "1000")
    (bundle.path / "behaviour.checkpoint").write_text('mkdir "$bundle/work"; exit 0')
    async with living(daemon.socket, bundle.request(runtime=str(WRAPPER))) as container:
        for request, flags in FLAGS:
            await container.shim.checkpoint(request)
            words = (bundle.path / "argv.checkpoint").read_text().splitlines()[4:]
            paths = ["--image-path", "/image", "--work-path", f"{bundle.path}/work"]
            assert words == ["checkpoint", *paths, *flags, bundle.id]
            assert not (bundle.path / "work").exists()
        with pytest.raises(InvalidArgument, match="absolute"):
            await container.shim.checkpoint(CheckpointRequest("image"))


async def test_a_failure_keeps_criu_s_log_and_names_it(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("sleep", "1000")
    (bundle.path / "behaviour.checkpoint").write_text(
        'mkdir "$bundle/work"; echo why >"$bundle/work/dump.log"; log "criu failed"; exit 1'
    )
    async with living(daemon.socket, bundle.request(runtime=str(WRAPPER))) as container:
        kept = bundle.path / "criu-dump.log"
        with pytest.raises(RuntimeFailed, match=rf"criu failed; CRIU's log: {kept}"):
            await container.shim.checkpoint(CheckpointRequest("/image"))
        assert kept.read_text() == "why\n"
        assert not (bundle.path / "work").exists()
        assert (await container.shim.state()).status is Status.RUNNING


RESTORE = """
for id; do :; done
runc create --bundle "$bundle" --pid-file "$bundle/init.pid" "$id" && exec runc start "$id"
"""


async def test_a_restore(daemon: Launched, make_bundle: Callable[..., Bundle]) -> None:
    """The container runs from Create on; Start is called all the same, and once."""
    bundle = make_bundle("sleep", "1000")
    (bundle.path / "behaviour.restore").write_text(RESTORE)
    request = bundle.request(runtime=str(WRAPPER), checkpoint="/image", parent_checkpoint="/old")
    async with living(daemon.socket, request, start=False) as container:
        path = str(bundle.path)
        assert (bundle.path / "argv.restore").read_text().splitlines()[4:] == [
            *("restore", "--image-path", "/image", "--work-path", f"{path}/work", "--detach"),
            *("--bundle", path, "--pid-file", f"{path}/init.pid", bundle.id),
        ]
        assert (await container.shim.state()).status is Status.RUNNING
        await container.shim.start()
        with pytest.raises(FailedPrecondition):
            await container.shim.start()
        await container.shim.kill(9)
        await container.events.exit(container.pid)
        kinds = container.events.of(container.pid)
        assert kinds == [EventType.CREATE, EventType.START, EventType.EXIT]


async def test_a_restored_container_that_has_ended_is_not_started(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """No START after the EXIT."""
    bundle = make_bundle("true")
    (bundle.path / "behaviour.restore").write_text(RESTORE)
    request = bundle.request(runtime=str(WRAPPER), checkpoint="/image")
    async with living(daemon.socket, request, start=False) as container:
        await container.events.exit(container.pid)
        with pytest.raises(FailedPrecondition, match="stopped"):
            await container.shim.start()
        assert container.events.of(container.pid) == [EventType.CREATE, EventType.EXIT]


async def test_a_checkpoint_path_that_is_relative(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with ShimClient(daemon.socket) as shim:
        for paths in ({"checkpoint": "image"}, {"checkpoint": "/i", "parent_checkpoint": "p"}):
            with pytest.raises(InvalidArgument, match="absolute"):
                await shim.create(make_bundle("true").request(**paths))


def criu_works() -> bool:
    criu = shutil.which("criu")
    return criu is not None and subprocess.run([criu, "check"], check=False).returncode == 0


async def test_a_real_checkpoint_and_restore(
    daemon: Launched, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    if not criu_works():
        pytest.skip("`criu check` fails: CRIU does not run on this kernel")
    bundle, image = make_bundle("sleep", "1000"), tmp_path / "image"
    async with living(daemon.socket, bundle.request()) as container:
        await container.shim.checkpoint(CheckpointRequest(str(image), exit=True))
        await container.events.exit(container.pid)
    async with living(daemon.socket, bundle.request(checkpoint=str(image))) as container:
        assert (await container.shim.state()).status is Status.RUNNING
