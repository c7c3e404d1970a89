"""Mounts that show the files' owners shifted, for containers with a user namespace.

The kernel takes the mapping from a user namespace, and that only from a process in it.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from shim import syscalls as sc
from shim.errors import InvalidArgument
from shim.stdio import Descriptors


class IdMaps(NamedTuple):
    """The lines of uid_map and of gid_map (user_namespaces(7))."""

    uids: str
    gids: str


def parse_map(text: str) -> str:
    """The lines for INSIDE:OUTSIDE:COUNT, or several with commas between them.

    Raises InvalidArgument.
    """
    if not re.fullmatch(r"\d+:\d+:\d+(,\d+:\d+:\d+)*", text, re.ASCII):
        raise InvalidArgument(f"the id mapping {text!r} is not INSIDE:OUTSIDE:COUNT")
    return "".join(f"{part.replace(':', ' ')}\n" for part in text.split(","))


@contextmanager
def _user_namespace(maps: IdMaps) -> Iterator[int]:
    """A user namespace with these mappings, borrowed for the block. Raises OSError."""
    with Descriptors() as descriptors:
        pid = sc.start_in_user_namespace()
        try:
            Path(f"/proc/{pid}/uid_map").write_text(maps.uids)
            Path(f"/proc/{pid}/gid_map").write_text(maps.gids)
            namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            descriptors.own(namespace)
        finally:
            os.kill(pid, signal.SIGKILL)
            sc.wait_for(pid)
        yield namespace


@contextmanager
def mapped(path: str, maps: IdMaps, recursive: bool, read_only: bool = False) -> Iterator[int]:
    """A copy of the mount at `path`, attached nowhere, whose owners are mapped.

    It is borrowed for the block, and gone afterwards unless it has been attached. Raises
    OSError.
    """
    with Descriptors() as descriptors, _user_namespace(maps) as namespace:
        tree = descriptors.own(sc.clone_mount(path, recursive))
        sc.map_mount(tree, namespace, read_only)
        yield tree


@contextmanager
def mapped_directory(path: str, maps: IdMaps) -> Iterator[str]:
    """Another path for the directory at `path`, read-only, with its owners mapped. Raises OSError.

    For overlay: before Linux 6.15 its layers have to be attached somewhere.
    """
    with mapped(path, maps, recursive=False, read_only=True) as tree, ExitStack() as stack:
        place = tempfile.mkdtemp(prefix="denseshim-", dir="/run")
        stack.callback(os.rmdir, place)
        sc.attach_mount(tree, place)
        stack.callback(sc.umount, place, sc.UMOUNT_NOFOLLOW | sc.MNT_DETACH)
        yield place
