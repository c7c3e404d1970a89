"""Where a front's messages go: to stderr, which may be a file that nobody ever looks at."""

from __future__ import annotations

import logging
import os
import stat
from typing import Final, TextIO

# Bytes; /run is memory.
LIMIT: Final = 8 << 20


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream; a regular file, opened to append, begins anew when it has LIMIT bytes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        try:
            _bound(self.stream.fileno())
        except OSError:
            self.handleError(record)
        super().emit(record)


def _bound(descriptor: int) -> None:
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and facts.st_size >= LIMIT:
        os.ftruncate(descriptor, 0)
