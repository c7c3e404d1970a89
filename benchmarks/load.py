"""The load generators: a small static program in the containers, and beside them (pump.c)."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from benchmarks.waiting import PATIENCE

_HERE: Final = Path(__file__).parent
_SOURCES: Final = ("pump.c", "meter.c")
# In a container.
PUMP: Final = "/bin/pump"
_numbers = itertools.count()


def add_pump(rootfs: Path) -> None:
    """Compile the pump into a root file system. Raises CalledProcessError without a compiler."""
    sources = [_HERE / name for name in _SOURCES]
    subprocess.run(["cc", "-O2", "-static", "-o", pump_of(rootfs), *sources], check=True)


def pump_of(rootfs: Path) -> Path:
    """The pump as this process runs it."""
    return rootfs / PUMP.lstrip("/")


class Pump:
    """A pump beside the containers; it is killed at the end of the block that it is used in."""

    def __init__(
        self, rootfs: Path, *arguments: object, descriptors: Sequence[int] = (), **streams: int
    ) -> None:
        """`descriptors` are inherited, and are the last arguments. `streams`: as for Popen."""
        command = [pump_of(rootfs), *map(str, arguments), *map(str, descriptors)]
        options = {"stdout": subprocess.PIPE} | streams
        self.process = subprocess.Popen(command, pass_fds=descriptors, **options)  # type: ignore[call-overload]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def output(self) -> bytes:
        """What it has printed, once it has ended. Raises CalledProcessError, TimeoutExpired."""
        found, _ = self.process.communicate(timeout=PATIENCE)
        if self.process.returncode:
            raise subprocess.CalledProcessError(self.process.returncode, self.process.args)
        return bytes(found or b"")

    def times(self) -> list[float]:
        """The seconds that `receive` or `ask` have found. Raises as `output`."""
        return [value / 1e9 for value in array("Q", self.output())]


class Gate:
    """Where pumps in containers wait: a FIFO in their root, so that no shim has a part in it."""

    def __init__(self, rootfs: Path) -> None:
        self.inside = f"/gate-{next(_numbers)}"
        self._path = rootfs / self.inside.lstrip("/")
        os.mkfifo(self._path)
        self._descriptor = os.open(self._path, os.O_RDWR)

    def admit(self, count: int = 1) -> None:
        """Let so many go on, whether they wait already or come later."""
        os.write(self._descriptor, bytes(count))

    def close(self) -> None:
        """Whoever waits now waits for ever."""
        os.close(self._descriptor)
        self._path.unlink()


@contextlib.contextmanager
def gate(rootfs: Path) -> Iterator[Gate]:
    """A gate for the block."""
    made = Gate(rootfs)
    try:
        yield made
    finally:
        made.close()
