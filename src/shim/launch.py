"""containerd-shim-dense: a drop-in for the containerd-shim of May 2017.

The working directory is the bundle; the daemon's listening socket is descriptor 3 (contract:
How the daemon launches a shim). The process hands both over to the host and ends; with
`--dedicated` it becomes the keeper of this container alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import shim
from shim import pair, syscalls
from shim.detach import CannotStart
from shim.errors import ShimError
from shim.keeper.records import Flag
from shim.keeper.start import become_keeper
from shim.launching import ask, make_request
from shim.mounts import make_slave_root
from shim.orphans import disown_container

NAME = "containerd-shim-dense"
INHERITED = 3


def main() -> None:
    """The command's entry point. Ends with 1 and one line when the shim cannot start."""
    arguments = _parser().parse_args()
    try:
        launch(arguments.socket, arguments.debug, arguments.dedicated)
    except (CannotStart, ShimError, OSError) as error:
        sys.exit(f"{NAME}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Serve one container: the bundle is the working directory, the listening "
        "socket is descriptor 3 unless --socket makes one.",
    )
    parser.add_argument("--debug", action="store_true", help="log more, to standard error")
    parser.add_argument(
        "--dedicated",
        action="store_true",
        help="be a shim for this container alone, instead of one that the host serves",
    )
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="listen on PATH, and remove it at the end"
    )
    parser.add_argument("--version", action="version", version=shim.__version__)
    return parser


def launch(own_socket: Path | None, debug: bool, dedicated: bool) -> None:
    """Have the container in the working directory served.

    Raises CannotStart, ShimError, OSError.
    """
    if os.geteuid() != 0:
        raise CannotStart("must run as root")
    if not (own_socket or _is_listening(INHERITED)):
        raise CannotStart("descriptor 3 is no listening unix socket; or give --socket PATH")
    if dedicated:
        _become_dedicated(own_socket, debug)
    else:
        _join_host(own_socket, debug)


# -- served by the host


def _join_host(own_socket: Path | None, debug: bool) -> None:
    """Hand over to the host of the daemon's namespaces: what it makes for a shim ends with us."""
    path = own_socket.absolute() if own_socket else None
    listener = INHERITED if path is None else _listen(path)
    argv = [os.fsencode(NAME), *([os.fsencode(path)] if path else [])]
    request = make_request(argv)
    if _has_own_mounts():
        # So that a host which we start, and the mounts that it makes, are the daemon's.
        syscalls.enter_mounts(os.getppid())
    try:
        ask(pair.host_directory(), pair.Settings(debug=debug), request, [listener])
    except (CannotStart, ShimError, OSError):
        if path is not None:
            path.unlink(missing_ok=True)
        raise


# -- a shim of its own


def _become_dedicated(own_socket: Path | None, debug: bool) -> None:
    """Become the keeper of the container in the working directory."""
    bundle = Path.cwd()
    # From here on there is state to remove: a SIGTERM waits, over execve(2), for the keeper.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    state = state_directory(bundle)
    pair.take_lock(state)
    try:
        if _has_own_mounts():
            make_slave_root()
        listener = INHERITED if own_socket is None else _listen(own_socket)
    except (CannotStart, OSError):
        _give_back(state)
        raise
    disown_container(state)
    _detach_stdin()
    become_keeper(_front(state, own_socket, debug), [(listener, Flag(0))])


def state_directory(bundle: Path) -> Path:
    """Where the state of a bundle's own shim is: short, for the sockets in it."""
    return pair.STATE / hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()[:16]


def _give_back(state: Path) -> None:
    """Remove the directory with the lock that we hold, unless a dead keeper's record is in it."""
    if os.listdir(state) == ["lock"]:
        (state / "lock").unlink()
        state.rmdir()


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
    except (FileNotFoundError, PermissionError):
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
