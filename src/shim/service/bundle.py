"""What the shim reads of a bundle, and the ids that it accepts."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shim.errors import InvalidArgument

# A name for a cgroup and for the runtime's state directory: containerd's identifiers, and runc's
# "+" and "_" beside them.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}")
_LARGEST = 16 << 20


def check_id(id: str) -> None:
    """Raise InvalidArgument unless `id` may name a container."""
    if not _ID.fullmatch(id):
        raise InvalidArgument(
            f"the container id {id[:100]!r} is not valid: up to 200 letters, digits, '.', '_', "
            "'+' and '-', the first a letter or digit"
        )


def read_config(bundle: Path) -> dict[str, Any]:
    """The OCI spec in `bundle`, for a container to be made of it. May block on its file system.

    Raises InvalidArgument for a path that is not absolute or not a directory, and for a
    config.json that is missing, too long or not a JSON object.
    """
    if not bundle.is_absolute() or "\0" in str(bundle):
        raise InvalidArgument(f"the bundle {str(bundle)!r} is not an absolute path")
    path = bundle / "config.json"
    try:
        text = _read(path)
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidArgument(f"{path} is not a JSON object")
    return config


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _LARGEST:
            raise InvalidArgument(f"{path} is not a file of at most {_LARGEST} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def has_private_pids(config: Mapping[str, Any]) -> bool:
    """Whether the container's processes die with its init: its pid namespace is made for it.

    An unreadable spec counts as not private (contract: runtime-v2, Events).
    """
    linux = config.get("linux")
    namespaces = linux.get("namespaces") if isinstance(linux, Mapping) else None
    return isinstance(namespaces, list) and any(
        isinstance(entry, Mapping) and entry.get("type") == "pid" and not entry.get("path")
        for entry in namespaces
    )
