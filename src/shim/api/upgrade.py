"""Upgrade in place: another version takes over the keeper's process, its descriptors and its state.

The keeper replaces itself by execve(2), and starts the new version's front. Before that the new
version has to show that it can be loaded and reads this keeper's state (design: rule 9).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import _keeper
from shim._pb.denseshim.host.v1 import host_pb2
from shim.api.calls import Call, success
from shim.errors import FailedPrecondition, InvalidArgument
from shim.keeper.command import Command
from shim.keeper.start import pack_front
from shim.service.host import Host

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
    host: Host, call: Call, request: host_pb2.UpgradeRequest
) -> host_pb2.UpgradeResponse:
    """Have the version of an interpreter take over; the keeper then answers the call.

    Raises InvalidArgument, and FailedPrecondition with what the new version says: this one goes
    on then.
    """
    version = await _look_at(host, os.fsdecode(request.python))
    answer = host_pb2.UpgradeResponse(version=version.number)
    host.keeper.begun(call.id, success(answer))
    front = pack_front([version.python, "-I", "-m", "shim.front", *sys.argv[1:]])
    try:
        await host.keeper.upgrade(version.keeper, front)
    finally:
        os.close(front)
    return answer


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
