"""What a container uses of the machine, read from its cgroups' files and nothing else.

`locate` finds the cgroups while a process of the container is alive; what it returns can be kept
as JSON and is enough for `read`, by any front. Both read small files of the kernel, whose parts
are a few microseconds each, so that they need no thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message

from shim.cgroup import UNIFIED, locate
from shim.errors import NotFound
from shim.metrics import v1, v2
from shim.metrics.files import Files

__all__ = ["V1_TYPE", "V2_TYPE", "locate", "read"]

V1_TYPE: Final = "io.containerd.cgroups.v1.Metrics"
V2_TYPE: Final = "io.containerd.cgroups.v2.Metrics"


def read(paths: Mapping[str, str]) -> tuple[Message, str]:
    """The metrics that the cgroups at `paths` show now, and their type URL.

    Which of the two types it is follows from what `locate` found; a file that the kernel lacks
    leaves its fields unset. Raises NotFound when there is no such cgroup any more, OSError when
    one cannot be read.
    """
    files = Files()
    message: Message
    if UNIFIED in paths:
        message, url = v2.read(files, paths[UNIFIED]), V2_TYPE
    else:
        message, url = v1.read(files, paths), V1_TYPE
    if not files.found:
        raise NotFound("the container has no cgroup any more")
    return message, url
