"""The tables, as the steps that lead to them."""

from __future__ import annotations

# Each step is the statements that lead from one version to the next, in one transaction. A step
# that has been released is never changed.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # The last directory number given away. A number is never used twice.
        "CREATE TABLE directory_counter (last INTEGER NOT NULL)",
        "INSERT INTO directory_counter VALUES (0)",
        # A snapshot that is held stays when nothing uses it. The inner layers of an image are not.
        """
        CREATE TABLE snapshots (
            directory INTEGER PRIMARY KEY,
            key TEXT NOT NULL UNIQUE CHECK (key != ''),
            parent INTEGER REFERENCES snapshots (directory),
            kind TEXT NOT NULL CHECK (kind IN ('active', 'committed')),
            readonly INTEGER NOT NULL CHECK (readonly IN (0, 1)),
            held INTEGER NOT NULL CHECK (held IN (0, 1)),
            CHECK (readonly OR kind = 'active')
        )
        """,
        "CREATE INDEX snapshots_by_parent ON snapshots (parent)",
        """
        CREATE TABLE image_configs (
            snapshot INTEGER PRIMARY KEY REFERENCES snapshots (directory) ON DELETE CASCADE,
            config BLOB NOT NULL
        )
        """,
        """
        CREATE TABLE containers (
            id TEXT PRIMARY KEY,
            image TEXT NOT NULL,
            runtime TEXT NOT NULL,
            spec BLOB NOT NULL,
            rootfs TEXT REFERENCES snapshots (key),
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        )
        """,
        "CREATE INDEX containers_by_rootfs ON containers (rootfs)",
        """
        CREATE TABLE labels (
            container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
            key TEXT NOT NULL CHECK (key != ''),
            value TEXT NOT NULL,
            PRIMARY KEY (container, key)
        ) WITHOUT ROWID
        """,
    ),
)

# "dnse": tells this database from another program's (PRAGMA application_id).
APPLICATION_ID = 0x646E7365
