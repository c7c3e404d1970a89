"""What a container uses of the machine, read from its cgroups' files and nothing else.

`locate` finds the cgroups while a process of the container is alive; what it returns can be kept
as JSON and is enough for Gauges, of any front. Both read small files of the kernel, whose parts
are a few microseconds each, so that they need no thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message

from shim.cgroup import UNIFIED, locate
from shim.errors import NotFound
from shim.metrics import v1, v2
from shim.metrics.files import Files, OpenFiles

__all__ = ["V1_TYPE", "V2_TYPE", "Gauges", "locate"]

V1_TYPE: Final = "io.containerd.cgroups.v1.Metrics"
V2_TYPE: Final = "io.containerd.cgroups.v2.Metrics"


# Who asks for few containers asks often. Each has some 26 files, and the kernel a page for each.
_KEPT: Final = 16


class Gauges:
    """The metrics of many containers; the files of those that were asked for last stay open.

    An owner is a container, as whoever reads knows it.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[object, OpenFiles] = OrderedDict()

    def read(self, owner: object, paths: Mapping[str, str]) -> tuple[Message, str]:
        """The metrics that the cgroups at `paths` show now, and their type URL.

        Which of the two types it is follows from what `locate` found; a file that the kernel
        lacks leaves its fields unset. Raises NotFound when there is no such cgroup any more,
        OSError when one cannot be read; nothing stays open then.
        """
        files = self._files.setdefault(owner, OpenFiles())
        self._files.move_to_end(owner)
        if len(self._files) > _KEPT:
            self._files.popitem(last=False)[1].close()
        try:
            return _read(files, paths)
        except (NotFound, OSError):
            self.drop(owner)
            raise

    def drop(self, owner: object) -> None:
        """The owner is gone: close its files."""
        files = self._files.pop(owner, None)
        if files is not None:
            files.close()


def _read(files: Files, paths: Mapping[str, str]) -> tuple[Message, str]:
    files.found = False
    message: Message
    if UNIFIED in paths:
        message, url = v2.read(files, paths[UNIFIED]), V2_TYPE
    else:
        message, url = v1.read(files, paths), V1_TYPE
    if not files.found:
        raise NotFound("the container has no cgroup any more")
    return message, url
