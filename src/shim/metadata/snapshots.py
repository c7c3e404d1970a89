"""Records of snapshots: what is called with a connection is part of the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence

from shim.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from shim.metadata.values import Kind, Layer, Orphans, Snapshot

_KEY_LIMIT = 512  # characters
# Of the layers of images, whose names are what they hold: nobody else may say what that is.
_DIGESTS = ("sha256:", "sha512:")

_SELECT = """
    SELECT own.key, coalesce(parent.key, ''), own.kind, own.readonly, own.directory
    FROM snapshots AS own LEFT JOIN snapshots AS parent ON own.parent = parent.directory
"""

_IS_UNUSED = """
    NOT EXISTS (SELECT * FROM snapshots AS child WHERE child.parent = snapshots.directory)
    AND NOT EXISTS (SELECT * FROM containers WHERE containers.rootfs = snapshots.key)
"""

_CHAIN = """
    WITH RECURSIVE chain (directory, parent, depth) AS (
        SELECT directory, parent, 0 FROM snapshots WHERE key = ?
        UNION ALL
        SELECT above.directory, above.parent, chain.depth + 1
        FROM snapshots AS above JOIN chain ON above.directory = chain.parent
    )
"""


def check_key(key: str) -> None:
    """Raise InvalidArgument unless `key` may name a snapshot."""
    if not 0 < len(key) <= _KEY_LIMIT or not key.isprintable():
        raise InvalidArgument(
            f"the snapshot key {key[:100]!r} is not valid: up to {_KEY_LIMIT} printable characters"
        )


def check_name(name: str) -> None:
    """Raise InvalidArgument unless `name` may be chosen for a snapshot."""
    check_key(name)
    if name.startswith(_DIGESTS):
        raise InvalidArgument(
            f"the name {name[:100]!r} is that of an image's layer, which imports alone make: "
            "choose one that is no digest"
        )


def allocate(connection: sqlite3.Connection) -> int:
    """A directory number that was never given before."""
    statement = "UPDATE directory_counter SET last = last + 1 RETURNING last"
    ((number,),) = connection.execute(statement).fetchall()
    return int(number)


def last_allocated(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("SELECT last FROM directory_counter").fetchone()
    return int(number)


def stat(connection: sqlite3.Connection, key: str) -> Snapshot:
    """Raises NotFound."""
    row = connection.execute(f"{_SELECT} WHERE own.key = ?", (key,)).fetchone()
    if row is None:
        raise NotFound(f"there is no snapshot {key[:100]!r}")
    return _snapshot(row)


def list_all(connection: sqlite3.Connection) -> list[Snapshot]:
    """In the order in which their directories were made."""
    return [_snapshot(row) for row in connection.execute(f"{_SELECT} ORDER BY own.directory")]


def chain(connection: sqlite3.Connection, key: str) -> tuple[int, ...]:
    """The directories from the snapshot's own to its last ancestor's. Raises NotFound."""
    stat(connection, key)
    found = connection.execute(f"{_CHAIN} SELECT directory FROM chain ORDER BY depth", (key,))
    return tuple(directory for (directory,) in found)


def image_config(connection: sqlite3.Connection, key: str) -> bytes:
    """The config of the snapshot or else of its nearest ancestor that has one; empty if none.

    Raises NotFound.
    """
    stat(connection, key)
    row = connection.execute(
        f"""{_CHAIN} SELECT config FROM chain JOIN image_configs ON snapshot = directory
        ORDER BY depth LIMIT 1""",
        (key,),
    ).fetchone()
    return b"" if row is None else bytes(row[0])


def prepare(
    connection: sqlite3.Connection, key: str, parent: str, readonly: bool, directory: int
) -> Snapshot:
    """Raises InvalidArgument, AlreadyExists; NotFound, FailedPrecondition for the parent."""
    check_name(key)
    _check_new(connection, key)
    above = _committed(connection, parent) if parent else None
    _insert(connection, Layer(key, directory), above, Kind.ACTIVE, readonly, held=True)
    return stat(connection, key)


def commit(connection: sqlite3.Connection, name: str, key: str) -> Snapshot:
    """Raises InvalidArgument, AlreadyExists, NotFound, FailedPrecondition."""
    active = stat(connection, key)
    if active.kind is not Kind.ACTIVE or active.readonly:
        raise FailedPrecondition(f"the snapshot {key!r} cannot be committed: it is read-only")
    user = _container_of(connection, key)
    if user is not None:
        raise FailedPrecondition(
            f"the snapshot {key!r} cannot be committed: it is the root of container {user!r}; "
            "give that another one or none first"
        )
    check_name(name)
    _check_new(connection, name)
    connection.execute(
        "UPDATE snapshots SET key = ?, kind = ?, readonly = 1 WHERE key = ?",
        (name, Kind.COMMITTED.value, key),
    )
    return stat(connection, name)


def add_image(
    connection: sqlite3.Connection, layers: Sequence[Layer], config: bytes
) -> tuple[int, ...]:
    """Raises InvalidArgument, AlreadyExists, FailedPrecondition."""
    unused: list[int] = []
    above: int | None = None
    for layer in layers[:-1]:
        check_key(layer.key)
        shared = _shared(connection, layer.key, above)
        if shared is None:
            _check_new(connection, layer.key)
            _insert(connection, layer, above, Kind.COMMITTED, True, held=False)
            above = layer.directory
        else:
            unused.append(layer.directory)
            above = shared
    top = layers[-1]
    check_name(top.key)
    _check_new(connection, top.key)
    _insert(connection, top, above, Kind.COMMITTED, True, held=True)
    if config:
        connection.execute("INSERT INTO image_configs VALUES (?, ?)", (top.directory, config))
    return tuple(unused)


def remove(connection: sqlite3.Connection, key: str) -> tuple[int, ...]:
    """The directories that have no record any more. Raises NotFound, FailedPrecondition."""
    snapshot = stat(connection, key)
    child = connection.execute(
        "SELECT key FROM snapshots WHERE parent = ? LIMIT 1", (snapshot.directory,)
    ).fetchone()
    if child is not None:
        raise FailedPrecondition(
            f"the snapshot {key!r} is in use: {child[0]!r} is made from it; remove that first"
        )
    user = _container_of(connection, key)
    if user is not None:
        raise FailedPrecondition(
            f"the snapshot {key!r} is in use by container {user!r}; delete that first"
        )
    return _free(connection, snapshot.directory)


def release(connection: sqlite3.Connection, key: str) -> tuple[int, ...]:
    """Free the snapshot that a container which is gone had as its root, if that was its last use.

    What is committed and held by its name stays: more containers may be made from it.
    """
    row = connection.execute(
        f"""SELECT directory FROM snapshots
        WHERE key = ? AND (kind = 'active' OR NOT held) AND {_IS_UNUSED}""",
        (key,),
    ).fetchone()
    return () if row is None else _free(connection, row[0])


def keep(connection: sqlite3.Connection, key: str) -> None:
    """Hold the snapshot that a container had as its root, if that was its last use."""
    connection.execute(f"UPDATE snapshots SET held = 1 WHERE key = ? AND {_IS_UNUSED}", (key,))


def free_orphans(connection: sqlite3.Connection, present: Collection[int], newest: int) -> Orphans:
    """Forget the records that have no directory in `present`, up to the number `newest`.

    A directory whose number has not been given away is an orphan, too: a disk that had not
    written what it said it had.
    """
    last = last_allocated(connection)
    known = {snapshot.directory: snapshot.key for snapshot in list_all(connection)}
    missing = {number for number in known if number <= newest and number not in present}
    freed: list[int] = []
    # What goes may have been the last to use another one that is missing.
    while unused := [n for n in missing.difference(freed) if _is_unused(connection, n)]:
        for number in unused:
            freed += _free(connection, number)
    kept = known.keys() - set(freed)
    return Orphans(
        directories=tuple(
            sorted(n for n in present if n not in kept and (n <= newest or n > last))
        ),
        forgotten=tuple(known[number] for number in freed),
        damaged=tuple(known[number] for number in sorted(missing & kept)),
    )


def _snapshot(row: tuple[str, str, str, int, int]) -> Snapshot:
    key, parent, kind, readonly, directory = row
    return Snapshot(key, parent, Kind(kind), bool(readonly), directory)


def _check_new(connection: sqlite3.Connection, key: str) -> None:
    check_key(key)
    if connection.execute("SELECT 1 FROM snapshots WHERE key = ?", (key,)).fetchone():
        raise AlreadyExists(f"there is a snapshot {key!r} already")


def _committed(connection: sqlite3.Connection, name: str) -> int:
    found = stat(connection, name)
    if found.kind is not Kind.COMMITTED:
        raise FailedPrecondition(f"the snapshot {name!r} cannot be a parent: it is not committed")
    return found.directory


def _shared(connection: sqlite3.Connection, key: str, parent: int | None) -> int | None:
    """The directory of a committed layer of that name on that parent, if there is one."""
    row = connection.execute(
        "SELECT directory FROM snapshots WHERE key = ? AND kind = 'committed' AND parent IS ?",
        (key, parent),
    ).fetchone()
    return None if row is None else int(row[0])


def _insert(
    connection: sqlite3.Connection,
    layer: Layer,
    parent: int | None,
    kind: Kind,
    readonly: bool,
    held: bool,
) -> None:
    connection.execute(
        "INSERT INTO snapshots (directory, key, parent, kind, readonly, held)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (layer.directory, layer.key, parent, kind.value, readonly, held),
    )


def _container_of(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute("SELECT id FROM containers WHERE rootfs = ? LIMIT 1", (key,))
    found = row.fetchone()
    return None if found is None else str(found[0])


def _is_unused(connection: sqlite3.Connection, directory: int) -> bool:
    statement = f"SELECT 1 FROM snapshots WHERE directory = ? AND {_IS_UNUSED}"
    return connection.execute(statement, (directory,)).fetchone() is not None


def _free(connection: sqlite3.Connection, directory: int) -> tuple[int, ...]:
    """Forget a snapshot that nothing uses, and the ancestors that only it has kept."""
    freed: list[int] = []
    row: tuple[int] | None = (directory,)
    while row is not None:
        freed.append(row[0])
        ((parent,),) = connection.execute(
            "DELETE FROM snapshots WHERE directory = ? RETURNING parent", row
        ).fetchall()
        row = connection.execute(
            f"SELECT directory FROM snapshots WHERE directory = ? AND NOT held AND {_IS_UNUSED}",
            (parent,),
        ).fetchone()
    return tuple(freed)
