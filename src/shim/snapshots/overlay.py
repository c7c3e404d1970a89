"""Overlay: whether it works here, and the mounts that show snapshots.

Kernel: Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from shim import syscalls as sc
from shim.errors import FailedPrecondition
from shim.model import Mount
from shim.snapshots.layers import OPAQUE

# OVL_MAX_STACK; one more is the container's own.
LAYERS_LIMIT: Final = 500

_INDEX: Final = Path("/sys/module/overlay/parameters/index")


class Unusable(Exception):
    """Overlay does not work here, for this reason."""


def why_not(directory: Path) -> str:
    """Try overlay on the file system of `directory`; empty when it works, else the reason.

    The mount is in a mount namespace of a thread's own, so that it ends with that, whatever
    happens. Raises nothing that the file system says.
    """
    place = directory / "probe"
    outcome: list[str] = []

    def attempt() -> None:
        try:
            shutil.rmtree(place, ignore_errors=True)
            _attempt(place)
            outcome.append("")
        except (OSError, Unusable) as error:
            outcome.append(str(error))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    thread = threading.Thread(target=attempt, name="overlay-probe")
    thread.start()
    thread.join()
    return outcome[0] if outcome else "the attempt broke off"


def _attempt(place: Path) -> None:
    """Raises OSError, Unusable."""
    lower, upper, work, merged = (place / name for name in ("lower", "upper", "work", "merged"))
    for path in (lower / "full", upper / "full", work, merged):
        path.mkdir(parents=True)
    (lower / "full" / "hidden").touch()
    (lower / "gone").touch()
    (lower / "kept").touch()
    os.mknod(upper / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(upper / "full", OPAQUE, b"y")
    sc.unshare_mounts()
    sc.mount("", "/", "", sc.MS_SLAVE | sc.MS_REC)
    sc.mount("overlay", str(merged), "overlay", 0, ",".join(_options([lower], upper, work)))
    with ExitStack() as stack:
        stack.callback(sc.umount, str(merged), sc.UMOUNT_NOFOLLOW | sc.MNT_DETACH)
        if sorted(os.listdir(merged)) != ["full", "kept"] or os.listdir(merged / "full"):
            raise Unusable("whiteouts have no effect")
        (merged / "kept").unlink()
        if not stat.S_ISCHR((upper / "kept").lstat().st_mode):
            raise Unusable("what is removed leaves no whiteout")


def mounts(lowers: Sequence[Path], upper: Path | None, work: Path | None) -> tuple[Mount, ...]:
    """What shows the layers, the uppermost first; without `upper` it cannot be changed.

    Raises FailedPrecondition for more layers than overlay takes.
    """
    if len(lowers) > LAYERS_LIMIT:
        raise FailedPrecondition(
            f"there are {len(lowers)} snapshots below, and overlay takes {LAYERS_LIMIT}; import "
            "what is mounted as one"
        )
    if upper is None and len(lowers) == 1:
        return (bind(lowers[0], read_only=True),)
    if upper is not None and not lowers:
        return (bind(upper, read_only=False),)
    return (Mount("overlay", "overlay", "", tuple(_options(lowers, upper, work))),)


def bind(directory: Path, read_only: bool) -> Mount:
    """The directory itself."""
    return Mount("bind", str(directory), "", ("rbind", "ro" if read_only else "rw"))


def _options(lowers: Sequence[Path], upper: Path | None, work: Path | None) -> list[str]:
    options = []
    if _INDEX.exists():
        # With it, layers could not be used by two mounts.
        options.append("index=off")
    if upper is not None:
        options += [f"upperdir={upper}", f"workdir={work}"]
    return [*options, f"lowerdir={':'.join(map(str, lowers))}"]
