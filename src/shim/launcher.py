"""A launcher: `python -I -m shim.launcher ARGV0 ARGUMENTS…`, for what the native one leaves to it.

containerd takes all that comes on descriptors 1 and 2 for the answer, and waits until nobody has
them open. So they lead nowhere while the work is done, a warning at an import included.
"""

from __future__ import annotations

import os
import sys
from traceback import format_exception
from typing import IO, Final

NAME_OF_2017: Final = "containerd-shim-dense"


def main() -> None:
    """Do what the command line says, print the answer, and exit with its status."""
    del sys.argv[0]
    if os.path.basename(sys.argv[0]) == NAME_OF_2017:
        from shim.launch import main as launch

        launch()
    else:
        _answer()


def _answer() -> None:
    stdout, stderr = _take(1), _take(2)
    sys.excepthook = lambda _, error, __: _write(
        stderr, "".join(format_exception(error)).encode(errors="replace")
    )
    from shim.launching import answer_to

    outcome = answer_to([os.fsencode(word) for word in sys.argv])
    _write(stderr, outcome.stderr)
    _write(stdout, outcome.stdout)
    sys.exit(outcome.status)


def _take(descriptor: int) -> IO[bytes]:
    """The stream on `descriptor`, which leads nowhere from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    stream = os.fdopen(os.dup(descriptor), "wb")
    os.dup2(null, descriptor, inheritable=False)
    os.close(null)
    return stream


def _write(stream: IO[bytes], text: bytes) -> None:
    stream.write(text)
    stream.flush()


if __name__ == "__main__":
    main()
