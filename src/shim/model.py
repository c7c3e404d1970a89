"""The values that the shim speaks of, free of protobuf and of the keeper."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


class Status(enum.Enum):
    """The state of a container or of one process (contract: containerd.v1.types.Status)."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class EventType(enum.Enum):
    """What happened (contracts: shim-v1, Event.EventType; runtime-v2, Events)."""

    CREATE = "create"
    START = "start"
    EXEC_ADDED = "exec-added"
    EXEC_STARTED = "exec-started"
    PAUSED = "paused"
    RESUMED = "resumed"
    OOM = "oom"
    EXIT = "exit"
    DELETE = "delete"


@dataclass(frozen=True)
class Event:
    """One thing that happened to a container.

    `exit_status` (0 to 255) and `exited_at` (nanoseconds since the epoch) are set for EXIT and
    DELETE only; `exec_id` names the exec it is about, if that has a name.
    """

    id: str
    type: EventType
    pid: int
    exit_status: int = 0
    exited_at: int = 0
    exec_id: str = ""


@dataclass(frozen=True)
class Exit:
    """How a process ended: status 0 to 255, 128+n for signal n; time in ns since the epoch."""

    status: int
    time: int


@dataclass(frozen=True)
class Mount:
    """One mount as mount(2) takes it; options as in fstab(5)."""

    type: str
    source: str
    target: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stdio:
    """The paths, or URIs, of the client's streams; an empty one means: no such stream."""

    terminal: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True)
class User:
    """The user of a process (OCI runtime specification, process.user)."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProcessInfo:
    """One process as State and Processes report it."""

    pid: int
    status: Status
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: User = field(default_factory=User)
    cwd: str = ""
    terminal: bool = False
    exit_status: int = 0
    exec_id: str = ""


@dataclass(frozen=True)
class ContainerState:
    """The answer to State: the container and every process known of it."""

    id: str
    bundle: str
    pid: int
    status: Status
    processes: tuple[ProcessInfo, ...]


# They tell of descriptors and sockets that are not a runtime's: sd_notify(3), sd_listen_fds(3).
_KEPT_BACK: Final = frozenset({"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"})


@dataclass(frozen=True)
class Launcher:
    """What a container's launcher has handed down, and its runtime's commands get.

    `env`: its environment. `limits`: of setrlimit(2), by number. `cgroup`: its
    /proc/self/cgroup. `oom_score_adj`: of proc(5). Empty limits, cgroup, and no score: the
    keeper's own.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    umask: int = 0o022
    limits: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    cgroup: str = ""
    oom_score_adj: int | None = None

    @classmethod
    def handed_down(
        cls,
        env: Mapping[str, str],
        umask: int,
        limits: Mapping[int, tuple[int, int]],
        cgroup: str,
        oom_score_adj: int | None = None,
    ) -> Launcher:
        """What a launcher has, but for the environment that no runtime gets.

        Those that are alike are one object: each container has one.
        """
        passed_on = tuple(pair for pair in env.items() if pair[0] not in _KEPT_BACK)
        return _shared(passed_on, umask, tuple(limits.items()), cgroup, oom_score_adj)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Launcher:
        """What `dataclasses.asdict` gave, after JSON. Raises TypeError, KeyError, ValueError."""
        limits = {int(number): (soft, hard) for number, (soft, hard) in state["limits"].items()}
        return cls.handed_down(**{**state, "limits": limits})


@functools.lru_cache(maxsize=64)
def _shared(
    env: tuple[tuple[str, str], ...],
    umask: int,
    limits: tuple[tuple[int, tuple[int, int]], ...],
    cgroup: str,
    oom_score_adj: int | None,
) -> Launcher:
    return Launcher(dict(env), umask, dict(limits), cgroup, oom_score_adj)


@dataclass(frozen=True)
class RuntimeOptions:
    """How a container's runtime is called (contract: runtime-v2, Options types).

    `runtime` is a name or a path, empty for runc; `root` the directory of its own state, empty
    for its default; `criu` the program that it is to use, empty for its own choice; `io_uid` and
    `io_gid` own the pipes that the container gets.
    """

    runtime: str = ""
    root: str = ""
    no_pivot: bool = False
    no_new_keyring: bool = False
    systemd_cgroup: bool = False
    io_uid: int = 0
    io_gid: int = 0
    criu: str = ""
    criu_image: str = ""
    criu_work: str = ""


@dataclass(frozen=True)
class CreateRequest:
    """What Create takes (contracts: shim-v1, CreateRequest; runtime-v2, Messages)."""

    id: str
    bundle: str
    stdio: Stdio
    options: RuntimeOptions = field(default_factory=RuntimeOptions)
    rootfs: tuple[Mount, ...] = ()
    checkpoint: str = ""
    parent_checkpoint: str = ""


    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CreateRequest:
        """What `dataclasses.asdict` gave, after JSON. Raises TypeError, KeyError."""
        return cls(
            **{
                **state,
                "stdio": Stdio(**state["stdio"]),
                "options": RuntimeOptions(**state["options"]),
                "rootfs": tuple(
                    Mount(**{**mount, "options": tuple(mount["options"])})
                    for mount in state["rootfs"]
                ),
            }
        )


@dataclass(frozen=True)
class CheckpointRequest:
    """What Checkpoint takes; `image` is the directory that the image is written to.

    `work` is CRIU's work directory; empty: one in the bundle, removed afterwards.
    """

    image: str
    exit: bool = False
    allow_tcp: bool = False
    allow_unix_sockets: bool = False
    allow_terminal: bool = False
    file_locks: bool = False
    empty_namespaces: tuple[str, ...] = ()
    work: str = ""
