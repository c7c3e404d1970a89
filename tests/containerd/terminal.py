"""A program on a terminal whose other end the test holds."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from typing import Self

from tests.containerd.support import PATIENCE


class Terminal:
    """Runs a command with a terminal of its own as its controlling terminal."""

    def __init__(self, command: Sequence[str], rows: int = 24, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        self._unread = b""
        try:
            self.resize(rows, columns)
            _translate_nothing(slave)
            self._process = subprocess.Popen(
                ["setsid", "--ctty", *command], stdin=slave, stdout=slave, stderr=slave
            )
        finally:
            os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal a size; its foreground processes get SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def resize_until(self, rows: int, columns: int, text: bytes) -> None:
        """Give it a size until `text` is shown: ctr misses a SIGWINCH that comes too early."""
        self.resize(rows, columns)
        end = time.monotonic() + PATIENCE
        while text not in self._unread:
            assert time.monotonic() < end, f"{text!r} is not shown: {self._unread[-500:]!r}"
            if select.select([self._master], [], [], 0.05)[0]:
                self._unread += self._read()
            else:
                self._process.send_signal(signal.SIGWINCH)
        self.until(text)

    def write(self, data: bytes) -> None:
        """Type `data`, which must be short."""
        assert os.write(self._master, data) == len(data)

    def until(self, text: bytes) -> bytes:
        """What is shown up to the next `text`, with it."""
        while text not in self._unread:
            more = self._read()
            assert more, f"the end came before {text!r}: {self._unread[-500:]!r}"
            self._unread += more
        found, text, self._unread = self._unread.partition(text)
        return found + text

    def rest(self) -> bytes:
        """What is shown up to the end."""
        found, self._unread = [self._unread], b""
        while data := self._read():
            found.append(data)
        return b"".join(found)

    def _read(self) -> bytes:
        """What comes next; b"" when nobody has the terminal open any more."""
        ready, _, _ = select.select([self._master], [], [], PATIENCE)
        assert ready, f"nothing more is shown after {self._unread[-500:]!r}"
        try:
            return os.read(self._master, 1 << 16)
        except OSError:
            return b""

    def interrupt(self) -> None:
        """End the program without notice, as when its window is closed by force."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """The program's exit status."""
        return self._process.wait(PATIENCE)


def _translate_nothing(terminal: int) -> None:
    """Show the bytes as they are written; clients keep this when they make a terminal raw."""
    settings = termios.tcgetattr(terminal)
    settings[1] &= ~termios.ONLCR
    termios.tcsetattr(terminal, termios.TCSANOW, settings)
