"""Checkpoint: the runtime's command, with CRIU's work directory around it."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from shim.blocking import BlockingPool
from shim.errors import InvalidArgument, RuntimeFailed
from shim.model import CheckpointRequest
from shim.runtime import Runtime
from shim.service.record import Facts

FILE_LIMIT = 60.0


async def write(
    pool: BlockingPool, runtime: Runtime, facts: Facts, request: CheckpointRequest
) -> None:
    """Write the image to `request.image`, an absolute path.

    On failure CRIU's log stays as BUNDLE/criu-dump.log, and the error names it. The work
    directory goes in any case, unless it is the caller's. Raises InvalidArgument, RuntimeFailed.
    """
    if not request.image.startswith("/") or "\0" in request.image:
        raise InvalidArgument(f"the image directory {request.image!r} is not an absolute path")
    work = Path(request.work) if request.work else runtime.work
    try:
        await runtime.checkpoint(facts.id, request)
    except RuntimeFailed as error:
        log = await pool.run("keep CRIU's log", FILE_LIMIT, _keep_log, work, facts.bundle)
        raise RuntimeFailed(f"{error}; CRIU's log: {log}" if log else str(error)) from error
    finally:
        if not request.work:
            await pool.run("remove CRIU's work", FILE_LIMIT, _remove, work)


def _keep_log(work: Path, bundle: str) -> str:
    """Move CRIU's log out of the work directory; "" when it wrote none."""
    kept = Path(bundle) / "criu-dump.log"
    try:
        (work / "dump.log").replace(kept)
    except FileNotFoundError:
        return ""
    return str(kept)


def _remove(work: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(work)
