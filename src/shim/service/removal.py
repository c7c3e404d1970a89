"""What a launcher's `delete` frees of a container that no record knows (contract: runtime-v2)."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from shim.errors import NotFound, RuntimeFailed
from shim.model import Launcher, RuntimeOptions
from shim.mounts import unmount_below
from shim.runtime import Runtime, read_pid
from shim.service.host import FILE_LIMIT, Host
from shim.service.tasks import RUNTIME_ROOT


async def remove_unknown(
    host: Host, bundle: Path, namespace: str, id: str, launcher: Launcher
) -> int:
    """Free a container's mounts and runtime state, if any; the pid that its bundle tells, or 0.

    Mostly there is nothing, which costs no process. Raises what the runtime and umount(2) raise.
    """
    root = Path(RUNTIME_ROOT) / namespace
    pid, known = await host.pool.run(f"look at {bundle}", FILE_LIMIT, _look, bundle, root / id)
    if known:
        make = partial(Runtime, RuntimeOptions(root=str(root)), bundle, host.keeper.spawn, launcher)
        runtime = await host.pool.run("find the runtime", FILE_LIMIT, make)
        with contextlib.suppress(NotFound):
            await runtime.delete(id, force=True)
    return pid


def _look(bundle: Path, state: Path) -> tuple[int, bool]:
    unmount_below(bundle / "rootfs")
    try:
        pid = read_pid(bundle / "init.pid")
    except RuntimeFailed:
        pid = 0
    return pid, state.is_dir()
