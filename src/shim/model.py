"""The values that the shim speaks of, free of protobuf and of the keeper."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Status(enum.Enum):
    """The state of a container or of one process (contract: containerd.v1.types.Status)."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class EventType(enum.Enum):
    """What happened (contract: containerd.v1.types.Event.EventType)."""

    CREATE = "create"
    START = "start"
    EXEC_ADDED = "exec-added"
    PAUSED = "paused"
    EXIT = "exit"


@dataclass(frozen=True)
class Event:
    """One thing that happened to a container.

    `exit_status` (0 to 255) and `exited_at` (nanoseconds since the epoch) are set for EXIT only.
    """

    id: str
    type: EventType
    pid: int
    exit_status: int = 0
    exited_at: int = 0


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
    """The paths of the client's FIFOs; an empty path means: no such stream."""

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


@dataclass(frozen=True)
class ContainerState:
    """The answer to State: the container and every process known of it."""

    id: str
    bundle: str
    pid: int
    status: Status
    processes: tuple[ProcessInfo, ...]


@dataclass(frozen=True)
class CreateRequest:
    """What Create takes (contract: CreateRequest). `runtime` is a name or a path."""

    id: str
    bundle: str
    runtime: str
    stdio: Stdio
    no_pivot: bool = False
    rootfs: tuple[Mount, ...] = ()
    checkpoint: str = ""
    parent_checkpoint: str = ""


@dataclass(frozen=True)
class CheckpointRequest:
    """What Checkpoint takes; `image` is the directory that the image is written to."""

    image: str
    exit: bool = False
    allow_tcp: bool = False
    allow_unix_sockets: bool = False
    allow_terminal: bool = False
    file_locks: bool = False
    empty_namespaces: tuple[str, ...] = ()
