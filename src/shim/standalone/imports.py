"""An import while it runs, in a thread of its own: it may take as long as a disk is slow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path

from shim.errors import ShimError, Unavailable
from shim.snapshots.imports import Imported, Wishes, import_path
from shim.standalone.library import Library


@dataclass(frozen=True)
class Step:
    """How far an import is, in bytes; `total` is 0 while nobody knows. The last has `imported`."""

    what: str = ""
    done: int = 0
    total: int = 0
    imported: Imported | None = None


async def importing(
    library: Library, name: str, path: Path, wishes: Wishes
) -> AsyncGenerator[Step]:
    """Make the committed snapshot `name`, and tell how far it is: each time what is newest.

    An iterator that is closed before its end ends the import, and nothing is left of it. Raises
    what shim.snapshots.imports.import_path raises.
    """
    progress = _Progress()
    wishes = replace(wishes, progress=progress)
    what = f"import {path}"
    work = asyncio.ensure_future(
        library.import_in_thread(what, import_path, library.snapshots, name, path, wishes)
    )
    work.add_done_callback(lambda _: progress.changed.set())
    try:
        while not work.done():
            if progress.newest is not None:
                step, progress.newest = progress.newest, None
                yield step
            await progress.changed.wait()
            progress.changed.clear()
        yield Step(imported=work.result())
    finally:
        progress.cut = True
        with contextlib.suppress(ShimError):  # it has been raised, or nobody hears it
            await asyncio.shield(work)


class _Progress:
    """What the import's thread has told last; it fails there once `cut` is set."""

    def __init__(self) -> None:
        self.newest: Step | None = None
        self.changed = asyncio.Event()
        self.cut = False
        self._loop = asyncio.get_running_loop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.cut:
            raise Unavailable("the import was ended: nobody waits for it any more")
        self._loop.call_soon_threadsafe(self._take, Step(what, done, total))

    def _take(self, step: Step) -> None:
        self.newest = step
        self.changed.set()
