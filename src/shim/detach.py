"""Starts a program that outlives whoever starts it: as a unit of systemd's, or on its own."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# What a program that `spawn` starts writes to its descriptor --ready when it is.
READY: Final = b"ready"

# As packaging/denseshim.service has them: a stop of the unit ends no container, and neither does
# another one that is killed for memory.
PROPERTIES: Final = (
    "Type=notify",
    "NotifyAccess=all",
    "KillMode=process",
    "SendSIGKILL=no",
    "Delegate=yes",
    "OOMPolicy=continue",
    "TasksMax=infinity",
    "LimitNOFILE=infinity",
)

_NAMESPACES: Final = ("mnt", "pid", "user")
_SYSTEMD: Final = Path("/run/systemd/system")
_READY_S: Final = 30.0
_UNIT_S: Final = 90.0
# Of a launcher's environment, all else is about its own container, or its own starter.
_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "TZ")


class CannotStart(Exception):
    """Why a shim cannot be started, in one line."""


def namespaces(process: int | str) -> str:
    """The namespaces that a shim and its containerd have in common, by their inode numbers.

    Raises OSError when the process is gone.
    """
    found = (os.stat(f"/proc/{process}/ns/{kind}").st_ino for kind in _NAMESPACES)
    return "-".join(str(inode) for inode in found)


def has_systemd() -> bool:
    """Whether systemd runs here, and its units are in our namespaces."""
    if not _SYSTEMD.is_dir() or not (shutil.which("systemctl") and shutil.which("systemd-run")):
        return False
    try:
        return namespaces(1) == namespaces("self")
    except OSError:
        return False  # out of our sight


def start_unit(name: str, oom_score_adj: int, command: Sequence[str]) -> None:
    """Have systemd start its unit `name`, or, if that is not installed, a new one with `command`.

    Waits until it has said that it is ready. Raises CannotStart.
    """
    service = f"{name}.service"
    if _run("systemctl", "show", "--property=LoadState", "--value", service) == "loaded":
        _run("systemctl", "start", service)
        return
    settings = [f"--property={text}" for text in PROPERTIES]
    settings.append(f"--property=OOMScoreAdjust={oom_score_adj}")
    _run("systemd-run", "--quiet", "--collect", f"--unit={name}", *settings, "--", *command)


def _run(*command: str) -> str:
    """What `command` prints, on one line."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_UNIT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotStart(f"{' '.join(command)}: no end within {_UNIT_S:g} s") from error
    text = " ".join(done.stdout.decode(errors="replace").split())
    if done.returncode != 0:
        raise CannotStart(f"{' '.join(command)}: {text or f'status {done.returncode}'}")
    return text


def spawn(command: Sequence[str], log: Path | None) -> None:
    """Start `command` in a session of its own, and wait until it is ready.

    Its output goes to the end of `log`, or nowhere; `--ready=N` is added to it. Raises
    CannotStart, with what else it writes to N, when it ends or is not ready within 30 s; OSError.
    """
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"):
        try:
            os.set_inheritable(writer, True)
            pid = _spawn([*command, f"--ready={writer}"], os.fspath(log or os.devnull))
        finally:
            os.close(writer)
        text = _read_until_end(reader)
    if text != READY:
        raise CannotStart(_failure(pid, text))


def _spawn(command: list[str], log: str) -> int:
    """Start `command` with nothing of ours but the inheritable descriptors; its pid."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        command[0],
        command,
        {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _read_until_end(reader: int) -> bytes:
    """What comes until the other end is closed; what has come, when that takes too long."""
    text, poll = b"", select.poll()
    poll.register(reader, select.POLLIN)
    while poll.poll(_READY_S * 1000) and (chunk := os.read(reader, 4096)):
        text += chunk
    return text


def _failure(pid: int, text: bytes) -> str:
    """End a program that is not ready, and say why it is not."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return text.decode(errors="replace") or f"the program ended before it was ready: {status}"
