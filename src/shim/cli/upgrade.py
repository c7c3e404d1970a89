"""`denseshim upgrade`: let this version take over from the one that serves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from shim import __version__, door, pair
from shim._pb.denseshim.host.v1 import host_pb2
from shim.cli.report import reported
from shim.errors import FailedPrecondition


@click.command()
def upgrade() -> None:
    """Let this version of denseshim take over from the one that serves.

    Every pair of this machine's namespaces is upgraded: the host's and those apart. Containers,
    their output, containerd's connections and its pending calls go on. A version that cannot be
    loaded changes nothing.
    """
    with reported(exit_code=1):
        directories = [path for path in _pairs() if (path / pair.DOOR).exists()]
        if not directories:
            raise FailedPrecondition(f"no shim serves here: there is none in {pair.STATE}")
        for directory in directories:
            _upgrade(directory)


def _pairs() -> list[Path]:
    host = pair.host_directory()
    return [host, *sorted(pair.STATE.glob("apart-*"))]


def _upgrade(directory: Path) -> None:
    opened = pair.connect(directory)
    if opened is None:
        raise FailedPrecondition(f"no shim serves in {directory}, though it has a door")
    with opened:
        request = host_pb2.UpgradeRequest(python=os.fsencode(sys.executable))
        reply = door.call(opened, "Upgrade", request, host_pb2.UpgradeResponse)
    assert reply.version == __version__
    click.echo(f"{directory.name}: {reply.version}")
