"""Which containers share a socket, and which a shim (contract: runtime-v2, Grouping and socket)."""

from __future__ import annotations

import enum
import hashlib
import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shim.bootstrap.options import SHARES, Options, choice
from shim.errors import InvalidArgument

SOCKETS: Final = "/run/containerd/s"
SHARE: Final = "DENSESHIM_SHARE"

_LABELS: Final = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_MAX_SOCKET: Final = 106  # bytes; what sockaddr_un takes, with its NUL
_MAX_OOM_SCORE_ADJ: Final = 1000  # proc(5)


class Kind(enum.Enum):
    """Who shares a shim with a container."""

    HOST = "host"
    POD = "pod"
    CONTAINER = "container"


@dataclass(frozen=True)
class Scope:
    """Who shares a shim with a container: `kind`; `key` names the pair, and is empty for HOST.

    `group` is the group key of the container's socket.
    """

    kind: Kind
    group: str
    key: str = ""


def annotations_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The annotations of an OCI spec; those that are no strings are left out."""
    found = config.get("annotations")
    pairs = found.items() if isinstance(found, Mapping) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}


def group_key(annotations: Mapping[str, str], id: str) -> str:
    """Containers with the same key share a socket; `id` is that of one without annotations."""
    return next((annotations[label] for label in _LABELS if annotations.get(label)), id)


def socket_path(address: str, namespace: str, key: str, directory: str = SOCKETS) -> str:
    """Where the group `key` of the containerd at `address` is served.

    Others compute the same path. Raises InvalidArgument when it cannot be a socket's.
    """
    name = hashlib.sha256(_joined(address, namespace, key)).hexdigest()
    path = f"{directory.rstrip('/')}/{name}"
    if not directory.startswith("/") or len(_encoded(path)) > _MAX_SOCKET:
        raise InvalidArgument(
            f"{path!r} cannot be a socket's path: absolute, and at most {_MAX_SOCKET} bytes"
        )
    return path


def score_of_shims(oom_score_adj: int) -> int:
    """The score of the shims of a containerd with this one (contract: runtime-v2, server process).

    Their runtimes inherit it, and so do containers that have none of their own.
    """
    return min(oom_score_adj + 1, _MAX_OOM_SCORE_ADJ)


def stands_apart(oom_score_adj: int) -> bool:
    """Whether containerd, by its score, is to be killed before the host: so are its shims.

    The host is protected as far as its privileges go; containerd's shims by one less than itself.
    """
    return oom_score_adj > 0


def share(
    options: Options,
    env: Mapping[str, str],
    *,
    address: str,
    namespace: str,
    id: str,
    group: str,
    alone: bool = False,
) -> Scope:
    """Who shares a shim with container `id`, whose `group_key` is `group`.

    env: the launcher's; alone: whether the host's pair cannot be the one, as its oom_score_adj is
    not containerd's. What only a shim of one's own can have, a cgroup, a core scheduling cookie,
    another score, goes before being asked to share. Raises InvalidArgument.
    """
    wanted = options.share or choice(SHARE, env.get(SHARE, ""), SHARES) or "host"
    if wanted == "host":
        if not (alone or options.shim_cgroup or env.get("SCHED_CORE")):
            return Scope(Kind.HOST, group)
        wanted = "container" if group == id else "pod"
    if wanted == "container":
        group = id
    return Scope(Kind(wanted), group, _key(address, namespace, group))


def apart_keys(address: str, namespace: str, id: str, group: str) -> tuple[str, ...]:
    """The keys of the pairs apart that container `id` may be served by, whatever its options.

    Raises InvalidArgument.
    """
    keys = (_key(address, namespace, owner) for owner in (group, id))
    return tuple(dict.fromkeys(keys))


def _key(address: str, namespace: str, group: str) -> str:
    key = "\n".join((address, namespace, group))
    _encoded(key)
    return key


def _joined(*parts: str) -> bytes:
    """As Go's filepath.Join: cleaned, and without a second leading slash."""
    path = _encoded("/".join(part for part in parts if part))
    return posixpath.normpath(b"/" + path.lstrip(b"/") if path.startswith(b"/") else path)


def _encoded(text: str) -> bytes:
    """Raises InvalidArgument for what no file name can hold."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{text!r} cannot be part of a path: {error}") from error
    if b"\0" in data:
        raise InvalidArgument(f"{text!r} cannot be part of a path: it holds NUL")
    return data
