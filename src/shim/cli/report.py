"""How commands fail: one line on stderr, and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from shim.errors import ShimError

# Of a command whose exit status is otherwise its container's; the number is docker's.
OWN_FAILURE: Final = 125
INTERRUPTED: Final = 128 + signal.SIGINT


@contextmanager
def reported(exit_code: int) -> Iterator[None]:
    """End the program with `denseshim: …` when a shim or the system refuses.

    At Ctrl-C it ends with 130, as what a shell has run; when nobody reads on, silently.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        raise  # click's
    except (ShimError, OSError) as error:
        click.echo(f"denseshim: {' '.join(str(error).split())}", err=True)
        sys.exit(exit_code)
