"""The machine's containers: records, their tasks, and what they are made of."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shim import places
from shim.errors import NotFound, ShimError
from shim.metadata.values import Container
from shim.service.bundle import check_id
from shim.service.container import Container as Task
from shim.snapshots.imports import Wishes
from shim.standalone.imports import Step, importing
from shim.standalone.library import Library
from shim.standalone.tasks import MachineTasks

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """A committed snapshot, and what its image asks of containers: see Defaults.to_bytes.

    `lost`: extended attributes that the file system did not take.
    """

    name: str
    config: bytes
    lost: int = 0


class Machine:
    """What the services are about. Raises FailedPrecondition, too, for a damaged store."""

    def __init__(self, library: Library, tasks: MachineTasks) -> None:
        self.library = library
        self.tasks = tasks
        self._store = library.store

    async def recover(self) -> None:
        """Go on after an earlier front."""
        await self.tasks.recover()

    async def clean(self) -> None:
        """The start-up pass, which takes time: nothing stays that no record refers to."""
        try:
            await self.library.files("look for what is left", self.library.snapshots.clean)
            # In this order: a container has a record before it has a log.
            logs = set(await self.library.files("look at the logs", os.listdir, places.LOGS))
            known = {container.id for container in await self.containers()}
            await self.library.files("remove old logs", _remove_all_logs, logs - known)
        except ShimError as error:
            _log.error("what dead processes have left may stay: %s", error)

    # -- containers

    async def container(self, id: str) -> Container:
        """Raises NotFound."""
        return await self.library.record("read the container", self._store.get_container, id)

    async def containers(self, filter: str = "") -> list[Container]:
        """Those that match. Raises InvalidArgument for the filter, ResourceExhausted."""
        return await self.library.record(
            "list the containers", self._store.list_containers, filter
        )

    async def create_container(self, container: Container) -> Container:
        """Raises InvalidArgument, AlreadyExists, NotFound for the snapshot."""
        return await self.library.record(
            "record the container", self._store.create_container, container
        )

    async def update_container(self, container: Container, mask: Sequence[str]) -> Container:
        """Raises InvalidArgument; NotFound for the container, for its snapshot.

        FailedPrecondition for the root file system of a task.
        """
        update = self._store.update_container
        return await self.library.record(
            "change the container", update, container, mask, self.tasks.has_task
        )

    async def delete_container(self, id: str) -> None:
        """Forget a container with what only it used, its logs among it.

        Raises NotFound; FailedPrecondition when it has a task.
        """
        check_id(id)
        delete = self._store.delete_container
        freed = await self.library.record("forget the container", delete, id, self.tasks.has_task)
        await self.library.files("remove the snapshot", self.library.snapshots.discard, freed)
        await self.library.files("remove the logs", _remove_logs, places.LOGS / id)
        await self.library.files("keep space for removing more", self._store.make_reserve)

    async def inspect(self, id: str) -> tuple[Container, Task | None]:
        """The container, and its task if it has one. Raises NotFound."""
        container = await self.container(id)
        try:
            return container, self.tasks.find(id)
        except NotFound:
            return container, None

    # -- images

    async def image(self, name: str) -> Image:
        """What a committed snapshot was imported with. Raises NotFound."""
        config = self._store.image_config
        return Image(name, await self.library.record("find the image", config, name))

    def import_path(self, name: str, path: Path, wishes: Wishes) -> AsyncGenerator[Step]:
        """Make the committed snapshot `name`; see `importing`."""
        return importing(self.library, name, path, wishes)

    async def check(self) -> list[str]:
        """What is wrong with the store's file; empty when it is sound."""
        return await self.library.files("check the store", self._store.check)


def _remove_logs(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _remove_all_logs(names: set[str]) -> None:
    for name in names:
        _remove_logs(places.LOGS / name)
