"""The values that the store takes and gives."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Container:
    """What is needed to run a container (contract: shim-v1, containerd.v1.Container).

    `spec` is a serialized google.protobuf.Any, `rootfs` the key of a snapshot or empty. The
    times are nanoseconds since the epoch; the store sets them.
    """

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    runtime: str = ""
    spec: bytes = b""
    rootfs: str = ""
    created_at: int = 0
    updated_at: int = 0


class Kind(enum.Enum):
    """What may be done to a snapshot (contract: containerd.v1.snapshot.Kind)."""

    ACTIVE = "active"  # it may be mounted, and committed unless it is read-only
    COMMITTED = "committed"  # it never changes, and may be a parent


@dataclass(frozen=True)
class Snapshot:
    """What is known of a snapshot; its files are in the directory of that number.

    `key` is its name once it is committed. `parent` is the name of a committed snapshot or
    empty. `readonly` is set for views and for what is committed.
    """

    key: str
    parent: str
    kind: Kind
    readonly: bool
    directory: int


@dataclass(frozen=True)
class Layer:
    """A layer of an image to be: the name that it gets, and the directory with its files."""

    key: str
    directory: int


@dataclass(frozen=True)
class Orphans:
    """What dead processes have left, as a start-up pass finds it.

    `directories`: nothing refers to them; they may be removed. `forgotten`: the keys whose
    directory was not there and that nothing used, and what was kept for them alone; their
    records are gone. `damaged`: the keys whose directory is not there although something uses
    them.
    """

    directories: tuple[int, ...]
    forgotten: tuple[str, ...]
    damaged: tuple[str, ...]
