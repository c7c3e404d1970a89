"""A file system that never answers: whoever looks at it hangs, until it is taken away."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.containerd.machine import Machine

# Mounts, says so, answers nothing (fuse(4)). Its end, when its input ends, aborts what hangs.
_SERVER = """
import ctypes, os, sys
path = os.fsencode(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
device = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % device
if libc.mount(b"denseshim-test", path, b"fuse", 0, options) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
print("mounted", flush=True)
sys.stdin.read()
os.close(device)
libc.umount2(path, 2)  # MNT_DETACH
"""


@contextlib.contextmanager
def hanging(machine: Machine, path: Path) -> Iterator[None]:
    """Such a file system at the directory `path`, in the machine; gone after the block."""
    with subprocess.Popen(
        machine.inside(sys.executable, "-c", _SERVER, str(path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert server.stdout.readline() == b"mounted\n"
        yield
