"""The bundle that `run` runs: one of the user's, or one made for it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import click

from shim.errors import InvalidArgument
from shim.oci.busybox import make_rootfs
from shim.oci.spec import spec


@contextmanager
def own_bundle(config: dict[str, Any], keep: bool) -> Iterator[Path]:
    """A new directory with `config` as config.json, and a busybox root if that asks for one.

    It is removed at the end, or, with `keep` and when all went well, named on stderr.
    """
    bundle = Path(tempfile.mkdtemp(prefix="denseshim-bundle-"))
    try:
        (bundle / "config.json").write_text(json.dumps(config))
        if not Path(config["root"]["path"]).is_absolute():
            make_rootfs(bundle / config["root"]["path"])
        yield bundle
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            shutil.rmtree(bundle)
    if keep:
        click.echo(f"denseshim: the bundle is kept: {bundle}", err=True)


@contextmanager
def users_bundle(bundle: Path, args: Sequence[str], terminal: bool) -> Iterator[Path]:
    """`bundle`, or a temporary one on the same root that differs in the command or the terminal."""
    config = read_config(bundle)
    process = config["process"]
    changed = process | {"terminal": terminal} | ({"args": list(args)} if args else {})
    if changed == {"terminal": False} | process:
        yield bundle
        return
    root = config["root"] | {"path": str(bundle / config["root"]["path"])}
    with own_bundle(config | {"process": changed, "root": root}, keep=False) as own:
        yield own


def made_bundle(
    id: str, args: Sequence[str], rootfs: Path | None, terminal: bool, keep: bool
) -> AbstractContextManager[Path]:
    """A bundle that runs `args` (a shell) in `rootfs`, or in a busybox root of its own."""
    root = "rootfs" if rootfs is None else str(rootfs)
    return own_bundle(spec(id, args or ["sh"], rootfs=root, terminal=terminal), keep)


def read_config(bundle: Path) -> dict[str, Any]:
    """The config.json of `bundle`. Raises InvalidArgument when it says not what to run."""
    path = bundle / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidArgument(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or not {"process", "root"} <= config.keys():
        raise InvalidArgument(f"{path} has no process or no root (OCI runtime specification)")
    return config
