"""A mount namespace with an empty /run/containerd and /run/denseshim, for one daemon and its shims.

What a daemon leaves behind is then all that is in these directories, whatever else runs on the
machine; and a host of the product, of which there is one in a mount namespace, serves this test
module alone. Mounts are shared inside, as on a host, and not outside.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.containerd.support import command_of

_PRIVATE = ("/run/containerd", "/run/denseshim", "/run/runc")
# Ends when its standard input does: with this process at the latest.
_HOLD = (
    f"mkdir -p -m 0700 {' '.join(_PRIVATE)} && "
    + "".join(f"mount -t tmpfs -o mode=0700 denseshim-test {path} && " for path in _PRIVATE)
    + "mount --make-rshared / && echo ready && exec cat"
)


class Machine:
    """The namespace; a process that does nothing holds it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.root = Path(f"/proc/{self._holder.pid}/root")
        self._number = _namespace_of(self._holder.pid)

    def close(self) -> None:
        """Give the namespace up; it ends with its last process."""
        self._holder.communicate()

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` in the namespace."""
        return ["nsenter", "--target", str(self._holder.pid), "--mount", *command]

    def processes(self) -> dict[int, str]:
        """The command lines of all processes in the namespace but its holder."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self._holder.pid:
                # PermissionError: a process with more capabilities than ours is none of ours.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                    if _namespace_of(int(entry.name)) == self._number:
                        found[int(entry.name)] = command_of(int(entry.name))
        return {pid: command for pid, command in found.items() if command}

    def mounts(self) -> set[str]:
        """The mount points in the namespace."""
        text = Path(f"/proc/{self._holder.pid}/mountinfo").read_text()
        return {line.split()[4] for line in text.splitlines()}

    def files(self, folder: str, depth: int) -> set[str]:
        """What is in the namespace's `folder`, exactly `depth` levels down; paths in it."""
        there = self.root / folder.lstrip("/")
        return {str(path.relative_to(there)) for path in there.glob("/".join("*" * depth))}


def _namespace_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """A machine, given up at the end of the block."""
    made = Machine()
    try:
        yield made
    finally:
        made.close()
