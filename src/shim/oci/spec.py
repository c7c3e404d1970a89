"""The default OCI configuration of a container, and the process of an exec.

The defaults are those of `runc spec` (opencontainers/runc, libcontainer/specconv/example.go),
but for a writable root, and without the cgroup mount, which costs ten mounts on v1 hosts.
The form is that of the OCI runtime specification 1.0, config.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shim.model import User

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CAPABILITIES: Final = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_NAMESPACES: Final = ("pid", "network", "ipc", "uts", "mount")
_CLOSED: Final = ("nosuid", "noexec", "nodev")

_MOUNTS: Final = (
    ("/proc", "proc", "proc", ()),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/dev/shm", "tmpfs", "shm", (*_CLOSED, "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", _CLOSED),
    ("/sys", "sysfs", "sysfs", (*_CLOSED, "ro")),
)

_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
)
_READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def process(
    args: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    terminal: bool = False,
    user: User | None = None,
) -> dict[str, Any]:
    """The OCI process that runs `args`; `env` is added to PATH (and TERM on a terminal)."""
    variables = {"PATH": PATH} | ({"TERM": "xterm"} if terminal else {}) | dict(env or {})
    capabilities = ("bounding", "effective", "permitted", "ambient")
    return {
        "terminal": terminal,
        "user": _user(user or User()),
        "args": list(args),
        "env": [f"{name}={value}" for name, value in variables.items()],
        "cwd": cwd,
        "capabilities": {kind: list(_CAPABILITIES) for kind in capabilities},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def spec(
    id: str,
    args: Sequence[str],
    *,
    rootfs: str = "rootfs",
    hostname: str = "denseshim",
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    terminal: bool = False,
) -> dict[str, Any]:
    """The config.json of container `id` that runs `args` in namespaces of its own.

    `rootfs` is the path of the root file system, relative ones below the bundle.
    """
    return {
        "ociVersion": "1.0.2",
        "process": process(args, env=env, cwd=cwd, terminal=terminal),
        "root": {"path": rootfs, "readonly": False},
        "hostname": hostname,
        "mounts": [_mount(*row) for row in _MOUNTS],
        "linux": _linux(id),
    }


def _linux(id: str) -> dict[str, Any]:
    return {
        "cgroupsPath": f"/denseshim-{id}",
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in _NAMESPACES],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READONLY),
    }


def _mount(target: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    row = {"destination": target, "type": kind, "source": source}
    return {**row, "options": list(options)} if options else row


def _user(user: User) -> dict[str, Any]:
    groups = list(user.additional_gids)
    return {"uid": user.uid, "gid": user.gid, "additionalGids": groups}
