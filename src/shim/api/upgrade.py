"""Upgrade in place: another version takes over the keeper's process, its descriptors and its state.

The keeper replaces itself by execve(2), and starts the new version's front. Before that the new
version has to show that it can be loaded and reads this keeper's state (design: rule 9); should its
front not come to serve all the same, the keeper goes back. So the call is answered by the front
that serves in the end: it gets the call again, and finds written down what was asked for.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shim
from shim import _keeper
from shim._pb.denseshim.host.v1 import host_pb2
from shim.api.calls import Call
from shim.errors import FailedPrecondition, InvalidArgument
from shim.keeper.command import Command
from shim.keeper.start import PACKAGE, pack_front
from shim.service.host import Host
from shim.store import Store

# The state file of the upgrade that was last asked for.
_ASKED = "upgrade"
# Bytes of what a version prints that are looked at.
_MOST_PRINTED = 64 << 10


@dataclass(frozen=True)
class Version:
    """An installed version: its interpreter, its package's directory and its number."""

    python: str
    package: Path
    number: str

    @property
    def keeper(self) -> list[str]:
        """The argv of its keeper; see `shim.keeper.start.keeper_program`."""
        return [self.python, "-I", "-S", str(self.package / "boot.py"), str(self.package.parent)]


async def upgrade(
    host: Host, directory: Path, call: Call, request: host_pb2.UpgradeRequest
) -> host_pb2.UpgradeResponse:
    """Have the version of an interpreter take over; the front that serves then answers.

    directory: the pair's. Raises InvalidArgument, FailedPrecondition with what the new version
    says (this one goes on then), and OSError.
    """
    store = Store(directory)
    asked = store.read(_ASKED)
    if asked is not None and asked["call"] == call.id:
        return _outcome(asked)
    version = await _look_at(host, os.fsdecode(request.python))
    wanted = {"call": call.id, "version": version.number, "package": str(version.package)}
    store.write(_ASKED, wanted)
    host.keeper.replayable(call.id)
    front = pack_front([version.python, "-I", "-m", "shim.front", *sys.argv[1:]])
    try:
        await host.keeper.upgrade(version.keeper, front)
    finally:
        os.close(front)
    return _outcome(wanted)


def _outcome(asked: dict[str, Any]) -> host_pb2.UpgradeResponse:
    """Whether this is the version that was to take over. Raises FailedPrecondition."""
    if (asked["version"], asked["package"]) != (shim.__version__, str(PACKAGE)):
        raise FailedPrecondition(
            f"version {asked['version']} in {asked['package']} did not come to serve, so version "
            f"{shim.__version__} in {PACKAGE} goes on; the log says why"
        )
    return host_pb2.UpgradeResponse(version=shim.__version__)


async def _look_at(host: Host, python: str) -> Version:
    """Load the whole of a version, its front and its keeper, in processes of their own.

    The front reads all records; the keeper says whether it reads the state of this one.
    """
    if not python.startswith("/") or "\0" in python:
        raise InvalidArgument(f"{python!r} is not the absolute path of an interpreter")
    front = [python, "-I", "-m", "shim.front", "--check", *sys.argv[1:]]
    found = _facts(await _run(host, front))
    version = Version(python, Path(str(found.get("package"))), str(found.get("version")))
    await _run(host, [*version.keeper, "--check", str(_keeper.STATE)])
    return version


def _facts(printed: bytes) -> dict[str, Any]:
    try:
        found = json.loads(printed)
    except ValueError as error:
        raise FailedPrecondition(f"the new version does not say what it is: {error}") from error
    if not isinstance(found, dict):
        raise FailedPrecondition("the new version does not say what it is")
    return found


async def _run(host: Host, argv: list[str]) -> bytes:
    """What a program prints. Raises FailedPrecondition with its stderr when it fails."""
    descriptors = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    try:
        descriptors += [os.memfd_create("stdout"), os.memfd_create("stderr")]
        command = Command(tuple(argv), {}, descriptors=dict(enumerate(descriptors)))
        child = await host.keeper.spawn(command)
        child.release()
        ended = await child.wait()
        out, err = (os.pread(descriptor, _MOST_PRINTED, 0) for descriptor in descriptors[1:])
    except OSError as error:
        raise FailedPrecondition(f"cannot run {argv[0]}: {error.strerror}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    if ended.status:
        text = err.decode(errors="replace").strip().splitlines()
        raise FailedPrecondition(
            f"{' '.join(argv)} ends with status {ended.status}, so the running version stays: "
            f"{text[-1] if text else 'it prints nothing'}"
        )
    return out
