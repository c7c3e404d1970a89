"""What a stack of overlay's layers shows at a path, without mounting it.

A layer hides a file below it by a character device 0:0 of that name, and all of a directory by
trusted.overlay.opaque (kernel: Documentation/filesystems/overlayfs.rst). Links are not followed:
to overlay they are files.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

OPAQUE: Final = "trusted.overlay.opaque"

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Nothing(enum.Enum):
    """Why a layer has no file at a path."""

    BELOW = enum.auto()  # the layers below decide
    HIDDEN = enum.auto()  # nor is anything of the layers below to be seen there


class Shown(NamedTuple):
    """A file, in the layer (a descriptor) that it is of."""

    layer: int
    facts: os.stat_result


def is_whiteout(facts: os.stat_result) -> bool:
    """Whether a file hides those of its name in the layers below."""
    return stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0


def look(layer: int, parts: Sequence[str]) -> os.stat_result | Nothing:
    """What one layer has at a path. Borrows `layer`. Raises OSError."""
    here = os.open(".", _DIRECTORY, dir_fd=layer)
    try:
        facts = os.fstat(here)
        opaque = False
        for depth, name in enumerate(parts):
            found = _lstat(here, name)
            if found is None:
                return Nothing.HIDDEN if opaque else Nothing.BELOW
            facts = found
            if is_whiteout(facts):
                return Nothing.HIDDEN
            if depth == len(parts) - 1:
                break
            if not stat.S_ISDIR(facts.st_mode):
                return Nothing.HIDDEN
            below = os.open(name, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
            opaque = opaque or is_opaque(here)
        return facts
    finally:
        os.close(here)


def find(layers: Sequence[int], parts: Sequence[str]) -> Shown | None:
    """What the layers, the uppermost first, show at a path; None for nothing. As above."""
    for layer in layers:
        found = look(layer, parts)
        if found is Nothing.HIDDEN:
            return None
        if isinstance(found, os.stat_result):
            return Shown(layer, found)
    return None


def _lstat(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_opaque(directory: int) -> bool:
    """Whether a directory hides what the layers below have in it. Borrows it. Raises OSError."""
    try:
        return OPAQUE in os.listxattr(directory)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return False
        raise
