"""Become a keeper."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import shim
from shim.keeper.command import Command, pack
from shim.keeper.records import Flag

PACKAGE = Path(shim.__file__).resolve().parent
PIPE_LIMIT = Path("/proc/sys/fs/pipe-user-pages-soft")

# The front finds its channel here.
CHANNEL = 3


def pipe_budget() -> int:
    """Bytes by which the keeper's pipes may grow: a quarter of what the user may have in all.

    pipe(7), pipe-user-pages-soft: beyond it every new pipe of the user's gets two pages.
    """
    pages = int(PIPE_LIMIT.read_text())
    return pages * os.sysconf("SC_PAGE_SIZE") // 4


def keeper_program() -> list[str]:
    """The argv of this version's keeper, without what it is to do: see `shim.boot`."""
    return [sys.executable, "-I", "-S", str(PACKAGE / "boot.py"), str(PACKAGE.parent)]


def pack_front(front: Sequence[str]) -> int:
    """The command of a front with this argv (absolute), in a memfd that the caller owns."""
    # A front that hangs would not notice the keeper's death by itself.
    return pack(
        Command(tuple(front), os.environ, descriptors={CHANNEL: -1}, death_signal=signal.SIGKILL)
    )


def become_keeper(front: Sequence[str], listeners: Sequence[tuple[int, Flag]]) -> NoReturn:
    """Replace this process by a keeper that runs `front` and holds the listening sockets.

    front: argv of the front, absolute; it finds its channel on descriptor 3.
    listeners: descriptors, each with the flags of LISTEN; the first becomes listener 2.
    """
    command = pack_front(front)
    for descriptor in (command, *(descriptor for descriptor, _ in listeners)):
        os.set_inheritable(descriptor, True)
    held = [f"{descriptor}:{flags.value}" for descriptor, flags in listeners]
    boot = [*keeper_program(), str(pipe_budget()), str(command), *held]
    os.execv(sys.executable, boot)
