"""A launcher: `python -I -m shim.launcher ARGV0 ARGUMENTS…`, for what the native one leaves to it.

containerd takes all that comes on descriptors 1 and 2 for the answer, and waits until nobody has
them open. So they lead nowhere while the work is done, a warning at an import included.
"""

from __future__ import annotations

import os
import sys
import traceback
from functools import partial
from typing import IO


def main() -> None:
    """Do what the command line says, print the answer, and exit with its status."""
    stdout, stderr = _take(1), _take(2)
    sys.excepthook = partial(traceback.print_exception, file=os.fdopen(stderr.fileno(), "w"))
    from shim.launching import answer_to

    outcome = answer_to([os.fsencode(word) for word in sys.argv[1:]])
    for stream, text in ((stdout, outcome.stdout), (stderr, outcome.stderr)):
        stream.write(text)
        stream.flush()
    sys.exit(outcome.status)


def _take(descriptor: int) -> IO[bytes]:
    """The stream on `descriptor`, which leads nowhere from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    stream = os.fdopen(os.dup(descriptor), "wb")
    os.dup2(null, descriptor, inheritable=False)
    os.close(null)
    return stream


if __name__ == "__main__":
    main()
