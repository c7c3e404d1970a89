"""containerd-shim-dense: a drop-in for the containerd-shim of May 2017.

The working directory is the bundle; the daemon's listening socket is descriptor 3 (contract:
How the daemon launches a shim). The process becomes the keeper.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import shim
from shim.keeper.records import Flag
from shim.keeper.start import become_keeper
from shim.mounts import make_slave_root

STATE = Path("/run/denseshim")
INHERITED = 3


class CannotStart(Exception):
    """What is missing, in one line."""


def main() -> None:
    """The command's entry point. Ends with 1 and one line when the shim cannot start."""
    arguments = _parser().parse_args()
    try:
        launch(arguments.socket, arguments.debug)
    except (CannotStart, OSError) as error:
        sys.exit(f"containerd-shim-dense: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="containerd-shim-dense",
        description="Serve one container: the bundle is the working directory, the listening "
        "socket is descriptor 3 unless --socket makes one.",
    )
    parser.add_argument("--debug", action="store_true", help="log more, to standard error")
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="listen on PATH, and remove it at the end"
    )
    parser.add_argument("--version", action="version", version=shim.__version__)
    return parser


def launch(own_socket: Path | None, debug: bool) -> None:
    """Become the keeper of the container in the working directory.

    Raises CannotStart, OSError.
    """
    bundle = Path.cwd()
    if os.geteuid() != 0:
        raise CannotStart("must run as root")
    if not (own_socket or _is_listening(INHERITED)):
        raise CannotStart("descriptor 3 is no listening unix socket; or give --socket PATH")
    # From here on there is state to remove: a SIGTERM waits, over execve(2), for the keeper.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    state = _locked_state(bundle)
    try:
        if _has_own_mounts():
            make_slave_root()
        listener = INHERITED if own_socket is None else _listen(own_socket)
    except (CannotStart, OSError):
        _give_back(state)
        raise
    _disown(state)
    _detach_stdin()
    become_keeper(_front(state, own_socket, debug), [(listener, Flag(0))])


def _give_back(state: Path) -> None:
    """Remove the directory with the lock that we hold, unless a dead keeper's record is in it."""
    if os.listdir(state) == ["lock"]:
        (state / "lock").unlink()
        state.rmdir()


def _disown(state: Path) -> None:
    """A container that is recorded before there is a keeper was a dead one's: to be removed.

    Its events would be taken for those of the next one.
    """
    with contextlib.suppress(FileNotFoundError):
        (state / "container.json").rename(state / "orphan.json")
        (state / "events").unlink()


def state_directory(bundle: Path) -> Path:
    """Where the state of a bundle's shim is: short, for the sockets in it, and gone at reboot.

    Made with its parent, both for root alone. Raises CannotStart, OSError.
    """
    key = hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()[:16]
    for directory in (STATE, STATE / key):
        directory.mkdir(mode=0o700, exist_ok=True)
        facts = directory.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != 0 or facts.st_mode & 0o077:
            raise CannotStart(f"{directory} is not a directory for root alone; remove it")
    return STATE / key


def _locked_state(bundle: Path) -> Path:
    """One shim per bundle: the keeper holds a lock, by a descriptor that it never closes.

    A shim that ends removes its directory, maybe between our looks: then there is a new one.
    """
    while True:
        state = state_directory(bundle)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            _acquire(lock, bundle)
            if os.path.samestat(os.fstat(lock), os.stat(state / "lock")):
                os.set_inheritable(lock, True)
                return state
            os.close(lock)


def _acquire(lock: int, bundle: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CannotStart(f"a shim is alive on bundle {bundle}; call it, or kill it") from error


def _is_listening(descriptor: int) -> bool:
    try:
        found = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return False
    with found:
        accepts = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return found.family == socket.AF_UNIX and accepts == 1


def _has_own_mounts() -> bool:
    """Whether whoever started this process made a mount namespace for it, as the daemon does."""
    try:
        return os.readlink("/proc/self/ns/mnt") != os.readlink(f"/proc/{os.getppid()}/ns/mnt")
    except FileNotFoundError:
        return False  # the parent has ended, or is out of sight


def _listen(path: Path) -> int:
    """A new listening socket at `path`, for root alone; a dead shim's file gives way."""
    if os.path.lexists(path):
        _make_way(path)
    listener = socket.socket(socket.AF_UNIX)
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(os.fspath(path))
    listener.listen(128)
    return listener.detach()


def _make_way(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise CannotStart(f"{path} is there, and is no socket; name another path")
    if _is_alive(path):
        raise CannotStart(f"somebody listens on {path} already")
    path.unlink()


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _detach_stdin() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)


def _front(state: Path, own_socket: Path | None, debug: bool) -> list[str]:
    front = [sys.executable, "-I", "-m", "shim.front", "--state", str(state)]
    if own_socket is not None:
        front += ["--own-socket", str(own_socket.absolute())]
    return front + (["--debug"] if debug else [])
