"""Records of containers: what is called with a connection is part of the caller's transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shim.errors import AlreadyExists, InvalidArgument, NotFound
from shim.metadata import snapshots
from shim.metadata.values import Container, Kind
from shim.service.bundle import check_id

_LABEL_LIMIT = 4096  # bytes of a label's key and value together
_NAME_LIMIT = 4096  # bytes of the names of an image and of a runtime
_FIELDS = ("labels", "image", "runtime", "spec", "rootfs")
_LABEL = "labels."

_SELECT = """
    SELECT id, image, runtime, spec, coalesce(rootfs, ''), created_at, updated_at FROM containers
"""


def create(connection: sqlite3.Connection, container: Container) -> Container:
    """Raises InvalidArgument, AlreadyExists; NotFound for the snapshot."""
    check_id(container.id)
    _check_fields(connection, container)
    if connection.execute("SELECT 1 FROM containers WHERE id = ?", (container.id,)).fetchone():
        raise AlreadyExists(f"there is a container {container.id!r} already")
    now = time.time_ns()
    connection.execute(
        "INSERT INTO containers (id, image, runtime, spec, rootfs, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (container.id, container.image, container.runtime, container.spec,
         container.rootfs or None, now, now),
    )  # fmt: skip
    _set_labels(connection, container.id, container.labels)
    return get(connection, container.id)


def get(connection: sqlite3.Connection, id: str) -> Container:
    """Raises NotFound."""
    row = connection.execute(f"{_SELECT} WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise NotFound(f"there is no container {id[:100]!r}")
    found = connection.execute(
        "SELECT key, value FROM labels WHERE container = ? ORDER BY key", (id,)
    )
    return _container(row, dict(found.fetchall()))


def list_all(connection: sqlite3.Connection) -> list[Container]:
    """By their ids."""
    labels: dict[str, dict[str, str]] = {}
    for id, key, value in connection.execute("SELECT container, key, value FROM labels"):
        labels.setdefault(id, {})[key] = value
    rows = connection.execute(f"{_SELECT} ORDER BY id")
    return [_container(row, labels.get(row[0], {})) for row in rows]


def update(connection: sqlite3.Connection, container: Container, mask: Sequence[str]) -> Container:
    """Raises InvalidArgument; NotFound for the container and for the snapshot."""
    for path in mask:
        _check_path(path)
    present = get(connection, container.id)
    merged = _merge(present, container, mask or _FIELDS)
    _check_fields(connection, merged)
    connection.execute(
        "UPDATE containers SET image = ?, runtime = ?, spec = ?, rootfs = ?, updated_at = ?"
        " WHERE id = ?",
        (merged.image, merged.runtime, merged.spec, merged.rootfs or None, time.time_ns(),
         merged.id),
    )  # fmt: skip
    snapshots.keep(connection, present.rootfs)
    connection.execute("DELETE FROM labels WHERE container = ?", (merged.id,))
    _set_labels(connection, merged.id, merged.labels)
    return get(connection, merged.id)


def delete(connection: sqlite3.Connection, id: str) -> tuple[int, ...]:
    """The directories that have no record any more. Raises NotFound."""
    container = get(connection, id)
    connection.execute("DELETE FROM containers WHERE id = ?", (id,))
    return snapshots.release(connection, container.rootfs)


def roommates(connection: sqlite3.Connection, container: Container) -> list[str]:
    """The ids of others with the same root, if that is a snapshot that can be written to."""
    root = snapshots.stat(connection, container.rootfs)
    if root.kind is not Kind.ACTIVE or root.readonly:
        return []
    rows = connection.execute(
        "SELECT id FROM containers WHERE rootfs = ? AND id != ?", (container.rootfs, container.id)
    )
    return [id for (id,) in rows]


def _container(
    row: tuple[str, str, str, bytes, str, int, int], labels: Mapping[str, str]
) -> Container:
    id, image, runtime, spec, rootfs, created_at, updated_at = row
    return Container(id, labels, image, runtime, spec, rootfs, created_at, updated_at)


def _set_labels(connection: sqlite3.Connection, id: str, labels: Mapping[str, str]) -> None:
    connection.executemany(
        "INSERT INTO labels (container, key, value) VALUES (?, ?, ?)",
        [(id, key, value) for key, value in labels.items()],
    )


def _check_fields(connection: sqlite3.Connection, container: Container) -> None:
    for key, value in container.labels.items():
        if not key:
            raise InvalidArgument("a label has no key")
        if len(key.encode()) + len(value.encode()) > _LABEL_LIMIT:
            raise InvalidArgument(f"the label {key[:100]!r} has more than {_LABEL_LIMIT} bytes")
    for name in (container.image, container.runtime):
        if len(name.encode()) > _NAME_LIMIT:
            raise InvalidArgument(f"the name {name[:100]!r} has more than {_NAME_LIMIT} bytes")
    if container.rootfs:
        snapshots.stat(connection, container.rootfs)


def _check_path(path: str) -> None:
    if path == "id":
        raise InvalidArgument("a container's id cannot be changed")
    if path not in _FIELDS and not (path.startswith(_LABEL) and path != _LABEL):
        raise InvalidArgument(
            f"a container has no field {path[:100]!r} to update; there are "
            f"{', '.join(_FIELDS)} and {_LABEL}KEY"
        )


def _merge(present: Container, new: Container, mask: Sequence[str]) -> Container:
    """`present` with the fields of `mask` from `new`."""
    changed: dict[str, object] = {path: getattr(new, path) for path in mask if path in _FIELDS}
    if "labels" not in mask:
        keys = [path.removeprefix(_LABEL) for path in mask if path.startswith(_LABEL)]
        others = {key: value for key, value in present.labels.items() if key not in keys}
        changed["labels"] = others | {key: new.labels[key] for key in keys if key in new.labels}
    return replace(present, **changed)  # type: ignore[arg-type]
