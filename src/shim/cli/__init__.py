"""The command line: `denseshim`."""

from __future__ import annotations

from typing import Any

import click

from shim import __version__
from shim.cli.containers import check, events, inspect, label, ps, rm, stop
from shim.cli.host import host
from shim.cli.images import import_, snapshots
from shim.cli.logs import logs
from shim.cli.processes import attach, exec_
from shim.cli.run import run
from shim.cli.shell import completion, man
from shim.cli.shim import group
from shim.cli.streams import open_missing_streams
from shim.cli.top import top
from shim.cli.upgrade import upgrade


class Program(click.Group):
    """The commands, with all three standard streams open."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        open_missing_streams()
        return super().__call__(*args, **kwargs)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="denseshim")
def main() -> None:
    """Run containers, with or without containerd."""


for command in (
    import_,
    run,
    ps,
    inspect,
    label,
    exec_,
    attach,
    logs,
    stop,
    rm,
    snapshots,
    events,
    top,
    check,
    host,
    upgrade,
    group,
    completion,
    man,
):
    main.add_command(command)
