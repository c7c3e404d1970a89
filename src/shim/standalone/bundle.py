"""The bundle of a task: made from its container's record, and gone with it. Everything blocks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from shim import places
from shim.errors import FailedPrecondition, ResourceExhausted
from shim.metadata.values import Container


def make_bundle(bundle: Path, container: Container, terminal: bool, mounted: bool) -> None:
    """Make the directory `bundle` for a task of the container; one that is there gives way.

    mounted: its root file system will be mounted there; otherwise the spec has to name one.
    Raises FailedPrecondition for a spec that nothing can be made of, ResourceExhausted.
    """
    config = _config(container, terminal, mounted)
    remove_bundle(bundle)
    try:
        bundle.mkdir(mode=0o700, parents=True)
        (bundle / "rootfs").mkdir(mode=0o755)
        (bundle / "config.json").write_text(json.dumps(config))
    except OSError as error:
        raise ResourceExhausted(f"cannot make {bundle}: {error}") from error


def remove_bundle(bundle: Path) -> None:
    """Remove it, if it is there, unless something is still mounted in it.

    Raises FailedPrecondition.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(bundle / "rootfs")  # never what is below a mount
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(bundle)
    except OSError as error:
        raise FailedPrecondition(f"cannot remove {bundle}: {error}") from error


def remove_io(id: str) -> None:
    """Remove the FIFOs that were made for the container. Raises FailedPrecondition."""
    try:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(places.IO / id)
    except OSError as error:
        raise FailedPrecondition(f"cannot remove {places.IO / id}: {error}") from error


def _config(container: Container, terminal: bool, mounted: bool) -> dict[str, Any]:
    try:
        config = json.loads(AnyMessage.FromString(container.spec).value)
    except (ValueError, RecursionError) as error:
        raise FailedPrecondition(
            f"the spec of container {container.id} is not JSON: {error}; update it"
        ) from error
    if not isinstance(config, dict):
        raise FailedPrecondition(f"the spec of container {container.id} is no JSON object")
    process, root = config.get("process"), config.get("root")
    if isinstance(process, dict):
        config["process"] = {**process, "terminal": terminal}
    root = root if isinstance(root, dict) else {}
    if mounted:
        config["root"] = {**root, "path": "rootfs"}
    elif not str(root.get("path", "")).startswith("/"):
        raise FailedPrecondition(
            f"container {container.id} has no root file system: give it a snapshot, or name an "
            "absolute root.path in its spec"
        )
    return config
