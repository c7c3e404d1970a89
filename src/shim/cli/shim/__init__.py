"""`denseshim shim`: one container's shim of 2017, spoken with by its socket."""

from __future__ import annotations

import click

from shim.cli.shim.create import create, restore
from shim.cli.shim.exec import exec_
from shim.cli.shim.inspect import events, ps, state
from shim.cli.shim.tasks import (
    checkpoint,
    close_stdin,
    delete,
    exit_,
    kill,
    pause,
    pty,
    resume,
    start,
)


@click.group("shim")
def group() -> None:
    """Speak with the shim of one container, by its socket."""


for command in (
    create,
    start,
    exec_,
    kill,
    pause,
    resume,
    state,
    ps,
    events,
    delete,
    checkpoint,
    restore,
    pty,
    close_stdin,
    exit_,
):
    group.add_command(command)
