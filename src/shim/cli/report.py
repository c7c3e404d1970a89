"""How commands fail: one line on stderr, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from shim.errors import ShimError

# Of a command whose exit status is otherwise its container's; the number is docker's.
OWN_FAILURE: Final = 125


@contextmanager
def reported(exit_code: int) -> Iterator[None]:
    """End the program with `denseshim: …` when a shim or the system refuses."""
    try:
        yield
    except (ShimError, OSError) as error:
        click.echo(f"denseshim: {' '.join(str(error).split())}", err=True)
        sys.exit(exit_code)
