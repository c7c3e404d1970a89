"""Becomes a pair, in the foreground: `python -I -m shim.host`, `denseshim host`.

What is started so is detached already, by a unit of systemd's or by `shim.detach`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from shim import pair, syscalls
from shim.detach import READY, CannotStart
from shim.keeper.records import Flag
from shim.keeper.start import become_keeper
from shim.orphans import disown

_CGROUPS: Final = Path("/sys/fs/cgroup")
_BACKLOG: Final = 1024
# The last pair in the same directory may be about to end.
_PATIENCE_S: Final = 10.0


@dataclass(frozen=True)
class Place:
    """Where among the host's processes a pair runs, as `shim.pair.Settings` says it."""

    oom_score_adj: int = pair.HOST_OOM_SCORE_ADJ
    cgroup: str = ""
    own_cgroup: bool = False
    sched_core: bool = False


def main() -> None:
    """The program's entry point. Ends with 1 and one line when the pair cannot start."""
    arguments = _parser().parse_args()
    place = Place(
        arguments.oom_score_adj, arguments.cgroup, arguments.own_cgroup, arguments.sched_core
    )
    try:
        run(
            arguments.directory or pair.host_directory(),
            place,
            apart=arguments.apart,
            debug=arguments.debug,
            group=arguments.group,
            ready=arguments.ready,
        )
    except (CannotStart, OSError) as error:
        if arguments.ready is not None:
            # A starter that has died meanwhile is such an error: the next one starts another pair.
            with contextlib.suppress(BrokenPipeError):
                os.write(arguments.ready, str(error).encode(errors="replace"))
        sys.exit(f"denseshim host: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shim.host", allow_abbrev=False)
    parser.add_argument("--directory", type=Path, help="of the pair's state")
    parser.add_argument("--apart", action="store_true", help="end with the last container")
    parser.add_argument("--group", default="", help="may call for containers, beside root")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--oom-score-adj", type=int, default=pair.HOST_OOM_SCORE_ADJ)
    parser.add_argument("--cgroup", default="", help="to be in, and there already")
    parser.add_argument("--own-cgroup", action="store_true", help="be in /denseshim, made for it")
    parser.add_argument("--sched-core", action="store_true")
    parser.add_argument("--ready", type=int, metavar="FD", help="write there when calls can come")
    return parser


def run(
    directory: Path,
    place: Place,
    *,
    apart: bool = False,
    debug: bool = False,
    group: str = "",
    ready: int | None = None,
) -> NoReturn:
    """Become the pair of `directory`, where it locks the state and listens on the door.

    group: whose members may call for containers without containerd; empty: root alone.
    Raises CannotStart, also when there is a live pair; OSError.
    """
    if os.geteuid() != 0:
        raise CannotStart("must run as root")
    _refuse_beside_another(directory)
    _close_all_but(ready)
    os.chdir("/")
    os.umask(0o022)
    take_place(place)
    # From here on there is state to remove: a SIGTERM waits, over execve(2), for the keeper.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pair.take_lock(directory, _PATIENCE_S)
    disown(directory)
    door = _listen(directory / pair.DOOR)
    _detach_stdin()
    if ready is not None:
        os.write(ready, READY)
        os.close(ready)
    become_keeper(_front(directory, apart, debug, group), [(door, Flag.FRAMES | Flag.DOOR)])


def take_place(place: Place) -> None:
    """Take a place among the host's processes.

    A cgroup and a cookie that were asked for must be had; a score that we may not have, and a
    cgroup that we cannot make, are done without. Raises CannotStart, OSError.
    """
    if place.cgroup:
        _join(place.cgroup)
    elif place.own_cgroup:
        _make_and_join(pair.CGROUP)
    with contextlib.suppress(PermissionError):
        Path("/proc/self/oom_score_adj").write_text(str(place.oom_score_adj))
    if place.sched_core:
        _make_cookie()


def _join(cgroup: str) -> None:
    """Move to a cgroup that is there, in each hierarchy that has it."""
    if ".." in cgroup.split("/"):
        raise CannotStart(f"the cgroup {cgroup!r} is no path below a hierarchy's root")
    found = [path for root in _hierarchies() if (path := root / cgroup.lstrip("/")).is_dir()]
    if not found:
        raise CannotStart(f"there is no cgroup {cgroup!r} for the shim to be in; make it")
    for path in found:
        _enter(path)


def _make_and_join(name: str) -> None:
    """Move to a cgroup below the root of each hierarchy: away from containerd's, whose end or
    limits are not ours. A hierarchy that does not let us leaves us where we are.
    """
    for root in _hierarchies():
        with contextlib.suppress(OSError):
            while not _make_and_enter(root, root / name.lstrip("/")):
                pass


def _make_and_enter(root: Path, path: Path) -> bool:
    """False: another pair that is in it no more has removed it meanwhile. Raises OSError."""
    path.mkdir(exist_ok=True)
    try:
        _inherit_cpuset(root, path)
        _enter(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise
    return True


def _inherit_cpuset(parent: Path, path: Path) -> None:
    """A new cgroup of v1's cpuset has no processor, and takes no process (cpuset(7))."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (parent / name).exists() and (path / name).exists():
            (path / name).write_text((parent / name).read_text())


def _enter(path: Path) -> None:
    (path / "cgroup.procs").write_text("0")


def _hierarchies() -> list[Path]:
    """The mounted hierarchies: v2's alone, or v1's, maybe with v2's beside them."""
    if (_CGROUPS / "cgroup.procs").exists():
        return [_CGROUPS]
    found = (path.resolve() for path in _CGROUPS.iterdir() if (path / "cgroup.procs").exists())
    return sorted(set(found))


def _make_cookie() -> None:
    try:
        syscalls.make_core_cookie()
    except OSError as error:
        raise CannotStart(f"SCHED_CORE is set, but {error.strerror}") from error


def _refuse_beside_another(directory: Path) -> None:
    """A pair whose door is open is not about to end: the lock need not be waited for."""
    door = pair.connect(directory)
    if door is not None:
        door.close()
        raise CannotStart(f"a shim is alive in {directory}; call it, or stop it")


def _close_all_but(ready: int | None) -> None:
    """Close what a launcher had inherited: a descriptor kept here would never be closed."""
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) > 2 and int(entry) != ready:
            with contextlib.suppress(OSError):
                os.close(int(entry))


def _listen(path: Path) -> int:
    """A new listening socket at `path`, for root alone; a dead pair's file gives way."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(os.fspath(path))
    listener.listen(_BACKLOG)
    return listener.detach()


def _detach_stdin() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)


def _front(directory: Path, apart: bool, debug: bool, group: str) -> list[str]:
    front = [sys.executable, "-I", "-m", "shim.front", "--pair", os.fspath(directory)]
    front += [f"--group={group}"] if group else []
    return front + (["--apart"] if apart else []) + (["--debug"] if debug else [])


if __name__ == "__main__":
    main()
