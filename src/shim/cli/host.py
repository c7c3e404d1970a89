"""The pair that serves every container of the host: host."""

from __future__ import annotations

import grp
import socket
import sys
from typing import Final

import click

from shim import door, pair
from shim._pb.denseshim.host.v1 import host_pb2
from shim.cli.output import show_json
from shim.cli.params import json_option
from shim.cli.report import reported
from shim.detach import CannotStart
from shim.errors import DeadlineExceeded, Unavailable
from shim.host import Place, run

_STATUS_S: Final = 30.0
# By force, all containers are killed and removed meanwhile.
_STOP_S: Final = 120.0


@click.command()
@click.option("--stop", is_flag=True, help="End it; refused while there are containers.")
@click.option("--force", is_flag=True, help="With --stop: kill and delete the containers.")
@click.option("--status", is_flag=True, help="Show its version, processes and containers.")
@click.option("--group", default="", metavar="NAME",
              help="Let its members use containers of images.")  # fmt: skip
@click.option("--debug", is_flag=True, help="Log more, to standard error.")
@json_option
def host(
    stop: bool, force: bool, status: bool, group: str, debug: bool, as_json: bool
) -> None:
    """Serve every container of the host, in the foreground, until --stop or SIGTERM.

    The first container starts it by itself; run it to have it as a service of your own. Who may use
    containers of images is as good as root.
    """
    if (stop and status) or (force and not stop):
        raise click.UsageError("give one of --stop, --stop --force and --status")
    if group and not _is_group(group):
        raise click.UsageError(f"there is no group {group!r}; make it: groupadd {group}")
    with reported(exit_code=1):
        if stop:
            _stop(force)
        elif status:
            _show_status(as_json)
        else:
            _serve(debug, group)


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _serve(debug: bool, group: str) -> None:
    try:
        run(pair.host_directory(), Place(), debug=debug, group=group)
    except CannotStart as error:
        click.echo(f"denseshim: {error}", err=True)
        sys.exit(1)


def _stop(force: bool) -> None:
    """Return when it is gone: its end of the connection is closed by its death alone."""
    with _connected() as opened:
        opened.settimeout(_STOP_S)
        door.call(opened, "Stop", host_pb2.StopRequest(force=force), host_pb2.StopResponse)
        try:
            opened.recv(1)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the shim does not end within {_STOP_S:g} s") from error


def _show_status(as_json: bool) -> None:
    with _connected() as opened:
        opened.settimeout(_STATUS_S)
        found = door.call(opened, "Status", host_pb2.StatusRequest(), host_pb2.StatusResponse)
    values = {
        "version": found.version,
        "keeper_pid": found.keeper_pid,
        "front_pid": found.front_pid,
        "containers": found.containers,
    }
    if as_json:
        show_json(values)
        return
    for name, value in values.items():
        click.echo(f"{f'{name}:'.replace('_', ' '):12} {value}")


def _connected() -> socket.socket:
    directory = pair.host_directory()
    opened = pair.connect(directory)
    if opened is None:
        raise Unavailable(f"no shim serves the host: there is none in {directory}")
    return opened
