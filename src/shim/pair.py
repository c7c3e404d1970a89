"""A pair, a keeper and its front: where its state is, how it is found, and how it is started.

A pair listens on its *door*, a socket in its state directory, whose calls are the Host service's.
It keeps a lock on the file `lock` there as long as it lives. Whoever starts a pair, or removes
the directory of one that ends, has a lock on the file `starting` meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from shim.detach import CannotStart, has_systemd, namespaces, spawn, start_unit

STATE: Final = Path("/run/denseshim")
DOOR: Final = "door"
LOG: Final = "log"
# What pairs are in that nobody has given a cgroup.
CGROUP: Final = "/denseshim"
PROGRAM: Final = (sys.executable, "-I", "-m", "shim.host")
# containerd protects its own shims by -998 or so: the host's has more to lose.
HOST_OOM_SCORE_ADJ: Final = -999

_CONNECT_S: Final = 10


@dataclass(frozen=True)
class Settings:
    """What a pair is started with.

    `apart`: it ends when its last container is gone. `cgroup`: of the keeper, below each
    hierarchy's root, and there; empty: one of its own. `sched_core`: with a core scheduling
    cookie of its own.
    """

    apart: bool = False
    debug: bool = False
    oom_score_adj: int = HOST_OOM_SCORE_ADJ
    cgroup: str = ""
    sched_core: bool = False


def host_directory(process: int | str = "self") -> Path:
    """The state directory of the pair that serves all containers of a process's namespaces.

    Raises OSError when the process is gone.
    """
    return STATE / f"host-{namespaces(process)}"


def apart_directory(key: str) -> Path:
    """The state directory of the pair that `key`, of a Scope, names in our namespaces."""
    text = f"{namespaces('self')}\n{key}"
    return STATE / f"apart-{hashlib.sha256(os.fsencode(text)).hexdigest()[:16]}"


def make_private(directory: Path) -> None:
    """Make `directory` and its parent, for root alone; they may be there.

    Raises CannotStart for what anybody else could enter; OSError.
    """
    for path in (directory.parent, directory):
        path.mkdir(mode=0o700, exist_ok=True)
        facts = path.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != 0 or facts.st_mode & 0o077:
            raise CannotStart(f"{path} is not a directory for root alone; remove it")


def take_lock(directory: Path, patience: float = 0) -> int:
    """Lock `directory`, made if it is not there, for a pair; wait `patience` s for its last one.

    The lock is held until the last copy of the descriptor returned is closed; it is inherited.
    Raises CannotStart when there is a live pair; OSError.
    """
    while True:
        make_private(directory)
        try:
            lock = _locked(directory, "lock", patience)
        except TimeoutError as error:
            raise CannotStart(f"a shim is alive in {directory}; call it, or kill it") from error
        if lock is not None:
            os.set_inheritable(lock, True)
            return lock


def connect(directory: Path) -> socket.socket | None:
    """The door of the pair in `directory`; None when there is none.

    Raises OSError, also when the pair does not accept for 10 s.
    """
    door = socket.socket(socket.AF_UNIX)
    # connect(2) on a blocking socket waits for a place in the queue; Python's timeout would not.
    door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@2l", _CONNECT_S, 0))
    try:
        door.connect(os.fspath(directory / DOOR))
    except (FileNotFoundError, ConnectionRefusedError):
        door.close()
        return None
    except OSError:
        door.close()
        raise
    return door


def ensure(directory: Path, settings: Settings, program: Sequence[str] = PROGRAM) -> socket.socket:
    """The door of the pair in `directory`, which is started by `program` if there is none.

    Of any number of callers at once, one starts it. Raises CannotStart, OSError.
    """
    while True:
        make_private(directory)
        door = connect(directory)
        if door is not None:
            return door
        with _starting(directory) as ours:
            if ours:
                return connect(directory) or _start(directory, settings, program)


def dissolve(directory: Path) -> bool:
    """Remove the directory of a pair that ends, unless another is being started in it.

    Called by the pair itself, its door closed, while it holds its lock. Raises OSError.
    """
    with _starting(directory, patience=0) as ours:
        if ours:
            _remove(directory)
        return ours


def sweep(directory: Path) -> None:
    """Remove what is left of a pair's directory by one who died while removing it."""
    for gone in directory.parent.glob(f".{directory.name}-*"):
        shutil.rmtree(gone, ignore_errors=True)  # another may be at it, too


def is_locked_by(directory: Path, pid: int) -> bool:
    """Whether `pid` has this very directory's lock. Raises OSError when it is gone."""
    try:
        lock = os.stat(directory / "lock")
    except FileNotFoundError:
        return False
    return any(_is_open(path, lock) for path in Path(f"/proc/{pid}/fd").iterdir())


def _is_open(descriptor: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(descriptor.stat(), file)
    except FileNotFoundError:
        return False  # it was closed meanwhile, or its file has no name


@contextlib.contextmanager
def _starting(directory: Path, patience: float | None = None) -> Iterator[bool]:
    """Be the only one who starts or removes a pair; False when somebody has removed, or does."""
    try:
        lock = _locked(directory, "starting", patience)
    except TimeoutError:
        lock = None
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _locked(directory: Path, name: str, patience: float | None) -> int | None:
    """The file `name`, locked; None when it was removed before it was.

    Raises TimeoutError when somebody else has it for `patience` s (None: waits); OSError.
    """
    path = directory / name
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        _flock(lock, patience)
        if os.path.samestat(os.fstat(lock), os.stat(path)):
            return lock
    except FileNotFoundError:
        pass
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _flock(lock: int, patience: float | None) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if patience is None else fcntl.LOCK_NB))
    except BlockingIOError as error:
        if not patience:
            raise TimeoutError("somebody else has the lock") from error
        with _alarm(patience):
            fcntl.flock(lock, fcntl.LOCK_EX)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block, in the main thread, after `seconds`."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still waiting after {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _remove(directory: Path) -> None:
    """Remove `directory`; whoever makes it anew meanwhile has one that is whole."""
    gone = directory.with_name(f".{directory.name}-{os.getpid()}")
    directory.rename(gone)
    shutil.rmtree(gone)


def _start(directory: Path, settings: Settings, program: Sequence[str]) -> socket.socket:
    """Start a pair while we hold `starting`; leave nothing of one that does not come up."""
    command = [*program, *_arguments(directory, settings)]
    try:
        if has_systemd() and not settings.cgroup:
            start_unit(_unit(directory, settings), settings.oom_score_adj, command)
        else:
            cgroup = [f"--cgroup={settings.cgroup}"] if settings.cgroup else ["--own-cgroup"]
            spawn([*command, *cgroup], directory / LOG if settings.debug else None)
        door = connect(directory)
        if door is None:
            raise CannotStart(f"the pair in {directory} ended at once")
    except (CannotStart, OSError):
        _give_back(directory)
        raise
    return door


def _unit(directory: Path, settings: Settings) -> str:
    return f"denseshim-{directory.name}" if settings.apart else "denseshim"


def _arguments(directory: Path, settings: Settings) -> list[str]:
    found = ["--directory", os.fspath(directory), f"--oom-score-adj={settings.oom_score_adj}"]
    for name in ("apart", "debug", "sched_core"):
        if getattr(settings, name):
            found.append(f"--{name.replace('_', '-')}")
    return found


def _give_back(directory: Path) -> None:
    """Remove a directory in which no pair has ever been, or is about to be."""
    if not {"lock", "starting", DOOR, LOG} >= set(os.listdir(directory)):
        return
    with contextlib.suppress(TimeoutError):
        lock = _locked(directory, "lock", 0)
        if lock is not None:
            _remove(directory)
            os.close(lock)
