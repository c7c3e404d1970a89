"""A pair without keeper and front, a program as shim.detach starts one.

Behind its door it says what it is, as JSON, to whoever connects, and ends when it is told "end".
Each start is a line of the file `starts` beside its directory; what the file `fault` there holds it
says instead of being ready, and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
from pathlib import Path

from shim import pair
from shim.detach import READY

PROGRAM = (sys.executable, "-I", os.path.abspath(__file__))


def main() -> None:
    """Be a pair until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--ready", type=int)
    arguments, others = parser.parse_known_args()
    with open(arguments.directory.with_name("starts"), "a") as starts:
        starts.write("start\n")
    fault = arguments.directory.with_name("fault")
    if fault.exists():
        os.write(arguments.ready, fault.read_bytes())
        sys.exit(3)
    pair.take_lock(arguments.directory, 10)
    door = arguments.directory / pair.DOOR
    door.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(door))
        listener.listen()
        os.write(arguments.ready, READY)
        os.close(arguments.ready)
        while serve(listener, others):
            pass
    pair.dissolve(arguments.directory)


def serve(listener: socket.socket, others: list[str]) -> bool:
    """Serve one caller; False when it asked for the end."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(json.dumps(facts(others)).encode() + b"\n")
        return connection.recv(3) != b"end"
    return True


def facts(others: list[str]) -> dict[str, object]:
    """What a pair inherits."""
    numbers = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    ignored = Path("/proc/self/status").read_text().partition("SigIgn:\t")[2].split()[0]
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "arguments": others,
        "env": dict(os.environ),
        "streams": [os.readlink(f"/proc/self/fd/{number}") for number in numbers if number < 3],
        "ignored": int(ignored, 16),
    }


if __name__ == "__main__":
    main()
