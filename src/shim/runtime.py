"""The OCI runtime's command line: one method per command (contract: What each call does).

The runtime is started through a spawner that is given; nothing here forks. Arguments follow
runc's manual pages (runc-create(8), …); crun takes the same ones.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
import signal
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeFailed,
    ShimError,
)
from shim.keeper.command import Command
from shim.model import CheckpointRequest, Exit, Launcher, RuntimeOptions
from shim.stdio import Descriptors

_TAIL = 64 << 10  # bytes read of a log
_PRINTED_LIMIT = 4 << 20  # bytes read of what a command prints: `state` has the annotations
_MESSAGE_LIMIT = 2048  # characters: a gRPC status travels in headers of at most 8 KiB
_PID_MAX = 1 << 22  # proc_sys_kernel(5), pid_max
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+,.-]*")
_NOT_EXECUTABLE = frozenset(
    {errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP, errno.EISDIR}
)

_CRIU = ("checkpoint", "restore")
_FAILURES = {"delete": "failed to delete task", "kill": "OCI runtime killall failed"}

# The ends of messages: what a client chose may stand elsewhere in them.
_MEANINGS: tuple[tuple[re.Pattern[str], type[ShimError]], ...] = (
    (re.compile(r"container (\S+ )?does not exist$|not found container$"), NotFound),
    (re.compile(r"/crun/[^/]+(/status)?['`]: No such file or directory$"), NotFound),
    (re.compile(r"container .*already exists$"), AlreadyExists),
    (re.compile(r"container .*not (running|paused)$"), FailedPrecondition),
    (re.compile(r"container that has stopped$|stopped container$"), FailedPrecondition),
    (re.compile(r"already running container$"), FailedPrecondition),
    (re.compile(r"paused container \(use --ignore-paused to override\)$"), FailedPrecondition),
    (re.compile(r"container .*(that is not stopped: \w+|not in .* state)$"), FailedPrecondition),
    (re.compile(r"container [^ ]+ is paused$"), FailedPrecondition),
    (re.compile(r"process already finished$"), FailedPrecondition),
)


class Spawned(Protocol):
    """A child of the keeper, which the front follows by `id`."""

    id: int
    pid: int

    async def wait(self) -> Exit:
        """Wait for its end. Raises OSError if its program could not be executed."""

    def release(self) -> None:
        """End the time in which early exits of unknown children are kept; call exactly once."""


Spawn = Callable[[Command], Awaitable[Spawned]]
Stdio = Mapping[int, int]


class Runtime:
    """One runtime for the container in `bundle`, with its log in BUNDLE/log.json.

    `options.runtime` is the absolute path of the runtime, one relative to the bundle, or a name
    that is searched in the launcher's PATH; empty means runc. `bundle` is absolute. Its commands
    get what the launcher has handed down; `joins` are the cgroup.procs files that say where
    they belong. Looks at the file system: make it in a BlockingPool if a path may hang. Raises
    InvalidArgument when there is no such program, unless it is `expected` to come back: then
    the commands do, as long as it is away.

    The commands wait for the runtime, which dies with the keeper. They raise what `spawn` raises,
    InvalidArgument or FailedPrecondition when the runtime cannot be executed, and NotFound,
    AlreadyExists, FailedPrecondition or RuntimeFailed with the runtime's own last message.

    create, restore and exec return the runtime's process after its success, not yet released:
    the caller first pairs the pid file with an exit that may have come already. Their `stdio`
    maps 0, 1 and 2 to descriptors, which are borrowed.
    """

    def __init__(
        self,
        options: RuntimeOptions,
        bundle: Path,
        spawn: Spawn,
        launcher: Launcher,
        joins: tuple[str, ...] = (),
        expected: bool = False,
    ) -> None:
        path = launcher.env.get("PATH", os.defpath)
        self.program = _resolve(options.runtime or "runc", bundle, path, expected)
        self._options = options
        self._launcher = launcher
        self._joins = joins
        self._bundle = bundle
        self._log = bundle / "log.json"
        self._spawn = spawn
        self.pid_file = bundle / "init.pid"  # of create and restore
        self.work = _work(bundle)  # CRIU's work directory, of restore and checkpoint

    def using(self, spawn: Spawn) -> Runtime:
        """The same runtime, started through another spawner."""
        other = copy.copy(self)
        other._spawn = spawn
        return other

    def logging_to(self, log: Path) -> Runtime:
        """The same runtime with another log: its bundle may be gone."""
        other = copy.copy(self)
        other._log = log
        return other

    async def create(
        self, id: str, stdio: Stdio, console_socket: Path | None = None
    ) -> Spawned:
        """Create the container `id`; its init waits for `start`, and is in `pid_file`."""
        options = self._init_options(console_socket)
        return await self._complete("create", options, id, stdio)

    async def restore(
        self,
        id: str,
        image: Path,
        stdio: Stdio,
        console_socket: Path | None = None,
    ) -> Spawned:
        """Make the container `id` from a checkpoint, running; its init is in `pid_file`.

        A parent image is found by CRIU through the link `parent` in `image`: the runtimes'
        restore has no option for it.
        """
        options = ["--image-path", str(image), "--work-path", str(self.work), "--detach"]
        options += self._init_options(console_socket)
        return await self._complete("restore", options, id, stdio)

    async def exec(
        self,
        id: str,
        process: Path,
        pid_file: Path,
        stdio: Stdio,
        console_socket: Path | None = None,
    ) -> Spawned:
        """Start the process that the file `process` describes (OCI process JSON)."""
        options = ["--detach", "--process", str(process), "--pid-file", str(pid_file)]
        options += _console(console_socket)
        return await self._complete("exec", options, id, stdio)

    async def start(self, id: str) -> None:
        """Let the init of a created container run its program."""
        await self._run("start", [], id)

    async def kill(self, id: str, signal: int, all: bool = False) -> None:
        """Send `signal`, a number, to the init or to all processes."""
        await self._run("kill", ["--all"] if all else [], id, str(signal))

    async def delete(self, id: str, force: bool = False) -> None:
        """Free what the container has; `force` kills it first, and accepts that it is gone."""
        await self._run("delete", ["--force"] if force else [], id)

    async def pause(self, id: str) -> None:
        """Suspend all processes of the container."""
        await self._run("pause", [], id)

    async def resume(self, id: str) -> None:
        """Let all processes of the container go on."""
        await self._run("resume", [], id)

    async def update(self, id: str, resources: bytes) -> None:
        """Set the container's resources (OCI runtime specification, LinuxResources, JSON)."""
        with Descriptors() as owned:
            given = owned.own(os.memfd_create("resources"))
            os.write(given, resources)
            os.lseek(given, 0, os.SEEK_SET)
            await self._run("update", ["--resources", "-"], id, stdin=given)

    async def features(self) -> bytes:
        """What the runtime says that it can do, as JSON (OCI runtime specification, features)."""
        return await self._run("features", [], None)

    async def checkpoint(self, id: str, request: CheckpointRequest) -> None:
        """Write the container's image to `request.image`; CRIU logs to the directory `work`."""
        work = request.work or str(self.work)
        options = ["--image-path", request.image, "--work-path", work]
        await self._run("checkpoint", options + _checkpoint_flags(request), id)

    async def state(self, id: str) -> dict[str, Any]:
        """The container's state as the runtime sees it (OCI runtime specification, State)."""
        text = await self._run("state", [], id)
        try:
            state = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RuntimeFailed(f"{self.program} state of {id}: not JSON: {error}") from error
        if not isinstance(state, dict):
            raise RuntimeFailed(f"{self.program} state of {id}: not a JSON object")
        return state

    def _init_options(self, console_socket: Path | None) -> list[str]:
        options = ["--bundle", str(self._bundle), "--pid-file", str(self.pid_file)]
        options += _console(console_socket)
        options += ["--no-pivot"] if self._options.no_pivot else []
        return options + (["--no-new-keyring"] if self._options.no_new_keyring else [])

    async def _run(
        self, command: str, options: list[str], id: str | None, *rest: str, stdin: int | None = None
    ) -> bytes:
        """Run a command without stdio of its own, release it, and return what it printed."""
        with Descriptors() as owned:
            null = owned.own(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            out, err = (owned.own(os.memfd_create(command)) for _ in range(2))
            stdio = {0: null if stdin is None else stdin, 1: out, 2: err}
            child = await self._complete(command, options, id, stdio, *rest)
            child.release()
            return _tail(out, 0, _PRINTED_LIMIT)

    async def _complete(
        self, command: str, options: list[str], id: str | None, stdio: Stdio, *rest: str
    ) -> Spawned:
        """Run a command to its end; if that is not success, release it and raise."""
        about = [] if id is None else [_checked(id)]
        request = self._request(command, [*options, *about, *rest], stdio)
        logged = self._log_size()
        child = await self._spawn(request)
        with ExitStack() as stack:
            stack.callback(child.release)
            status = await self._status(child)
            if status:
                raise self._failure(command, status, logged, stdio[2])
            stack.pop_all()
        return child

    def _request(self, command: str, arguments: list[str], stdio: Stdio) -> Command:
        argv = (self.program, *self._global_options(command), command, *arguments)
        if any("\0" in argument for argument in argv):
            raise InvalidArgument(f"an argument of {command} for {self._bundle} holds NUL")
        return Command(
            argv,
            self._launcher.env,
            descriptors=stdio,
            umask=self._launcher.umask,
            limits=self._launcher.limits,
            death_signal=signal.SIGKILL,
            joins=self._joins,
            oom_score_adj=self._launcher.oom_score_adj,
        )

    def _global_options(self, command: str) -> list[str]:
        options = ["--root", self._options.root] if self._options.root else []
        options += ["--log", str(self._log), "--log-format", "json"]
        if self._options.criu and command in _CRIU:  # not every runtime has the option
            options += ["--criu", self._options.criu]
        return options + (["--systemd-cgroup"] if self._options.systemd_cgroup else [])

    async def _status(self, child: Spawned) -> int:
        try:
            return (await child.wait()).status
        except OSError as error:
            text = f"cannot execute the runtime {self.program}: {error.strerror}"
            if error.errno in _NOT_EXECUTABLE:
                raise InvalidArgument(text) from error
            raise FailedPrecondition(text) from error

    def _log_size(self) -> int:
        try:
            return self._log.stat().st_size
        except FileNotFoundError:
            return 0

    def _failure(self, command: str, status: int, logged: int, stderr: int) -> ShimError:
        """The error for a command that ended with `status`, from what it logged since.

        Clients know the wording (contract: runtime-v2, Error codes).
        """
        message = self._last_error(logged)
        kind = _meaning(message)
        text = message or _printed(stderr)
        if not text:
            text = f"{os.path.basename(self.program)} ended with {_ending(status)}, logging nothing"
        what = _FAILURES.get(command, f"OCI runtime {command} failed")
        return kind(f"{what}: {text[:_MESSAGE_LIMIT]}")

    def _last_error(self, logged: int) -> str:
        """The last error in the log after its first `logged` bytes, or "".

        Another command of the same container may log meanwhile: the last message is a guess.
        """
        try:
            log = _read_file(self._log, logged)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"its log {self._log} cannot be read: {error.strerror}"
        return next(filter(None, map(_error_message, reversed(log.splitlines()))), "")


def _work(bundle: Path) -> Path:
    """Containerd has a link to a directory of its own there (contract: runtime-v2, 1.5, 3.4)."""
    work = bundle / "work"
    return work / "criu-work" if work.is_symlink() else work


def read_pid(path: Path) -> int:
    """Read the pid that a runtime wrote to `path`. Raises RuntimeFailed if there is none."""
    try:
        text = _read_file(path, 0)
    except OSError as error:
        raise RuntimeFailed(f"no pid file {path} from the runtime: {error.strerror}") from error
    if not re.fullmatch(rb"[0-9]{1,7}\n?", text) or not 1 <= int(text) <= _PID_MAX:
        raise RuntimeFailed(f"{text[:40]!r}, in the runtime's pid file {path}, is no pid")
    return int(text)


def _resolve(command: str, bundle: Path, path: str, expected: bool) -> str:
    """The absolute path of the runtime."""
    if "\0" in command:
        raise InvalidArgument(f"the runtime {command!r} holds NUL")
    if expected and "/" in command:
        return os.path.abspath(bundle / command)  # without a look: its file system may hang
    # shutil.which takes what has a slash as it is, without PATH.
    found = shutil.which(str(bundle / command) if "/" in command else command, path=path)
    if found is None:
        raise InvalidArgument(
            f'no runtime "{command}" that can be executed (PATH={path}); install it, or give its '
            "absolute path"
        )
    return os.path.abspath(found)


def _checked(id: str) -> str:
    # Above all, it must not be taken for an option.
    if not _ID.fullmatch(id):
        raise InvalidArgument(f"{id[:100]!r} cannot be a container's id")
    return id


def _console(socket: Path | None) -> list[str]:
    return [] if socket is None else ["--console-socket", str(socket)]


def _checkpoint_flags(request: CheckpointRequest) -> list[str]:
    flags = {
        "--leave-running": not request.exit,
        "--tcp-established": request.allow_tcp,
        "--ext-unix-sk": request.allow_unix_sockets,
        "--shell-job": request.allow_terminal,
        "--file-locks": request.file_locks,
    }
    namespaces = [text for name in request.empty_namespaces for text in ("--empty-ns", name)]
    return [flag for flag, wanted in flags.items() if wanted] + namespaces


def _meaning(message: str) -> type[ShimError]:
    return next((kind for text, kind in _MEANINGS if text.search(message)), RuntimeFailed)


def _ending(status: int) -> str:
    """The status in words: 128+n stands for signal n, unless the runtime said so itself."""
    number = status - 128
    if number in signal.valid_signals():
        return f"exit status {status}, as by signal {number}, {signal.strsignal(number)}"
    return f"exit status {status}"


def _error_message(line: bytes) -> str:
    """The message of one line of a log, if it is an error's; "" for anything else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(entry, dict) or entry.get("level") not in ("error", "fatal"):
        return ""
    message = entry.get("msg")
    return message.strip() if isinstance(message, str) else ""


def _printed(stderr: int) -> str:
    """What a command without an error in its log has written to its stderr, if that was ours."""
    if not stat.S_ISREG(os.fstat(stderr).st_mode):
        return ""
    return _tail(stderr, 0, _TAIL).decode(errors="replace").strip()


def _read_file(path: Path, start: int) -> bytes:
    """The end of a regular file, at most _TAIL bytes, from `start` at the earliest."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return _tail(descriptor, start, _TAIL)
    finally:
        os.close(descriptor)


def _tail(descriptor: int, start: int, limit: int) -> bytes:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, limit, max(start, size - limit))
