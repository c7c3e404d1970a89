"""Copies bytes between this program's own stdio and FIFOs, in a thread per stream.

Threads, because our own stdio may block: it is shared with other programs, so that its
descriptors cannot be made non-blocking.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable
from typing import Final

_CHUNK: Final = 1 << 16
# How long an output must be silent after its process's exit to be given up: a grandchild may
# hold it open for ever.
_QUIET_MS: Final = 1000
# A relay that is told to stop and is still there after this hangs in a write.
_STOP_S: Final = 1.0

DETACH_KEYS: Final = b"\x10\x11"  # Ctrl-P Ctrl-Q


class Relay(threading.Thread):
    """Copies `source` to `target` until the end of `source`, or `stop`. Borrows both.

    `ended` is called in the relay's thread when it is over.
    """

    def __init__(self, source: int, target: int, ended: Callable[[], None]) -> None:
        # daemon: a write to our own stdout can block for ever; the program may end all the same.
        super().__init__(daemon=True)
        self._source, self._target, self._ended = source, target, ended
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = False
        self._timeout: int | None = None

    def finish(self) -> None:
        """The process has ended: copy what is there, and end when nothing more comes."""
        self._timeout = _QUIET_MS
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """End now; what has not been copied is lost."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> bool:
        """Free the relay's descriptors after `stop`; False if it hangs, and needs them still."""
        self.join(_STOP_S)
        if self.is_alive():
            return False
        os.close(self._wake)
        return True

    def run(self) -> None:
        """Copy (in the relay's thread)."""
        try:
            while self._wait(self._source, select.POLLIN) and (data := self._read()):
                self._write(data)
        finally:
            self._ended()

    def _read(self) -> bytes:
        try:
            return os.read(self._source, _CHUNK)
        except OSError as error:
            if error.errno == errno.EIO:
                return b""  # our terminal hung up
            raise

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._stopped:
            try:
                view = view[os.write(self._target, view) :]
            except BlockingIOError:
                self._wait(self._target, select.POLLOUT)

    def _wait(self, descriptor: int, event: int) -> bool:
        """True when `descriptor` is ready; False when the relay is to end."""
        poll = select.poll()
        poll.register(descriptor, event)
        poll.register(self._wake, select.POLLIN)
        while not self._stopped:
            ready = dict(poll.poll(self._timeout))
            if descriptor in ready or not ready:
                return bool(ready)
            os.eventfd_read(self._wake)
        return False


class OutputRelay(Relay):
    """Copies a FIFO, which it takes, to our stdout or stderr.

    When that takes no more, `lost` is called with the reason, and the rest is read and dropped.
    """

    def __init__(
        self,
        fifo: int,
        target: int,
        ended: Callable[[], None],
        lost: Callable[[OSError], None],
    ) -> None:
        super().__init__(fifo, target, ended)
        self._lost = lost
        self._dropping = False

    def close(self) -> bool:
        """As Relay's; the FIFO too."""
        over = super().close()
        if over:
            os.close(self._source)
        return over

    def _write(self, data: bytes) -> None:
        if self._dropping:
            return
        try:
            super()._write(data)
        except OSError as error:
            self._dropping = True
            self._lost(error)


class InputRelay(Relay):
    """Copies our stdin to the write end of a FIFO, which it takes, and closes at the end.

    `ended` is called afterwards: the process reads EOF when nobody holds an end.
    """

    def __init__(self, source: int, fifo: int, ended: Callable[[], None]) -> None:
        super().__init__(source, fifo, self._close_fifo)
        self._told = ended

    def _close_fifo(self) -> None:
        os.close(self._target)
        self._told()

    def _write(self, data: bytes) -> None:
        try:
            super()._write(data)
        except BrokenPipeError:
            self.stop()  # the process reads no more


class KeyRelay(Relay):
    """Copies our stdin to the write end of a FIFO, which it takes.

    With `keys` Ctrl-P Ctrl-Q is not copied, but ends it, and `left` is called; a Ctrl-P waits for
    the next key. The end of our stdin ends it only.
    """

    def __init__(self, source: int, fifo: int, left: Callable[[], None], keys: bool) -> None:
        super().__init__(source, fifo, lambda: os.close(fifo))
        self._left, self._keys = left, keys
        self._held = b""

    def _write(self, data: bytes) -> None:
        if self._keys:
            data, self._held = self._held + data, b""
            before, keys, _ = data.partition(DETACH_KEYS)
            if before.endswith(DETACH_KEYS[:1]) and not keys:
                before, self._held = before[:-1], DETACH_KEYS[:1]
            self._copy(before)
            if keys:
                self._left()
                self.stop()
        else:
            self._copy(data)

    def _copy(self, data: bytes) -> None:
        try:
            super()._write(data)
        except BrokenPipeError:
            self.stop()  # the process reads no more
