"""Loop devices: files that are mounted like disks (loop(4))."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shim import syscalls as sc
from shim.stdio import Descriptors

CONTROL = Path("/dev/loop-control")
# Between learning of a free device and taking it, another process may take it.
ATTEMPTS = 100


@contextmanager
def attached(path: str, read_only: bool) -> Iterator[str]:
    """Show the file at `path` as a block device while the block runs; the device's path.

    What has been mounted from it meanwhile keeps it; with its last user the device is free
    again. May block: the file may be anywhere. Raises OSError, EINVAL before Linux 5.8.
    """
    with Descriptors() as descriptors:
        mode = os.O_RDONLY if read_only else os.O_RDWR
        file = descriptors.own(os.open(path, mode | os.O_CLOEXEC))
        control = descriptors.own(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))
        for attempt in range(1, ATTEMPTS + 1):
            device = f"/dev/loop{sc.loop_get_free(control)}"
            opened = descriptors.own(os.open(device, mode | os.O_CLOEXEC))
            try:
                sc.loop_configure(opened, file, path, read_only)
            except OSError as error:
                if error.errno != errno.EBUSY or attempt == ATTEMPTS:
                    raise
                os.close(descriptors.take(opened))
            else:
                break
        yield device
