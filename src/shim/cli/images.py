"""Commands about images and snapshots: import, snapshots."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click

from shim.cli.host_call import complete_snapshot, host_command
from shim.cli.output import show_json, show_table
from shim.cli.params import json_option
from shim.client import HostClient, once, steadily
from shim.client.host import Image, ImportStep, SnapshotInfo, SnapshotUsage
from shim.errors import NotFound, Unavailable


@click.command("import")
@click.option("--platform", default="", help="OS/ARCHITECTURE of an OCI layout (this machine's).")
@click.option("--reference", default="", help="The image of a layout that has several.")
@click.option("--no-devices", is_flag=True, help="Refuse device nodes.")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True, resolve_path=True))
@host_command
async def import_(
    host: HostClient, name: str, path: str, platform: str, reference: str, no_devices: bool
) -> None:
    """Make the image NAME of what is at PATH.

    A directory is copied, a tar, also a compressed one, unpacked. Of an OCI image layout, which may
    be in a tar, the layers are applied, and what the image says about running it is kept.
    """
    wishes = {"platform": platform, "reference": reference, "devices": not no_devices}
    try:
        made = await once(
            host, lambda: _import(host, name, path, wishes), lambda: host.image(name)
        )
    except asyncio.CancelledError:
        click.echo(f"denseshim: interrupted: nothing is left of {name}", err=True)
        raise
    if made.lost:
        click.echo(
            f"denseshim: {made.lost} extended attributes are lost: the file system does not "
            "take them",
            err=True,
        )
    click.echo(name)


async def _import(host: HostClient, name: str, path: str, wishes: Mapping[str, Any]) -> Image:
    """Raises Unavailable when the host's front dies meanwhile: nothing, or all, is there then."""
    made: Image | None = None
    async with aclosing(host.import_path(name, path, **wishes)) as steps:
        with _Progress(name) as progress:
            async for step in steps:
                progress.show(step)
                made = step.imported or made
    if made is None:
        raise Unavailable(f"the import of {path} ended without a result; do it again")
    return made


class _Progress:
    """A bar on a terminal; nothing elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        if os.isatty(sys.stderr.fileno()):
            # Loaded here alone: it takes a while.
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TransferSpeedColumn,
            )

            text = TextColumn("{task.description}", markup=False)
            self._bar = Progress(
                text, BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
            self._line = self._bar.add_task(self._name, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: ImportStep) -> None:
        """Show how far it is."""
        if self._bar is not None and step.imported is None:
            what = f"{self._name}: {Path(step.what).name}" if step.what else self._name
            self._bar.update(
                self._line, description=what, completed=step.done, total=step.total or None
            )


@click.command()
@click.option("--remove", metavar="NAME", shell_complete=complete_snapshot,
              help="Remove this one, which nothing uses.")  # fmt: skip
@json_option
@host_command
async def snapshots(host: HostClient, remove: str | None, as_json: bool) -> None:
    """Show images, and the root file systems of containers, with what each takes on disk.

    The layers below an image are snapshots, too; they go when the last image that has them does.
    """
    if remove is not None:
        await host.remove(remove)
        return
    found = [(info, await _usage(host, info)) for info in await steadily(host, host.snapshots)]
    if as_json:
        show_json([_summary(*pair) for pair in found])
    else:
        rows = [_row(info, usage) for info, usage in found]
        show_table(("NAME", "KIND", "SIZE", "FILES", "PARENT"), rows)


async def _usage(host: HostClient, info: SnapshotInfo) -> SnapshotUsage:
    try:
        return await steadily(host, lambda: host.snapshot_usage(info.key))
    except NotFound:
        return SnapshotUsage(0, 0)  # it was removed meanwhile


def _summary(info: SnapshotInfo, usage: SnapshotUsage) -> dict[str, Any]:
    return {
        "name": info.key,
        "parent": info.parent,
        "kind": info.kind.value,
        "readonly": info.readonly,
        "size": usage.size,
        "files": usage.inodes,
    }


def _row(info: SnapshotInfo, usage: SnapshotUsage) -> tuple[str, ...]:
    return info.key, info.kind.value, _size(usage.size), str(usage.inodes), info.parent


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
