"""One SQLite file: opened, brought up to date, and used by one short transaction at a time."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.errors import ResourceExhausted, Unavailable
from shim.metadata.schema import APPLICATION_ID, MIGRATIONS
from shim.store import CorruptState

_BUSY_SECONDS = 5.0
_WAL_LIMIT = 4 << 20  # bytes that the log may keep once it is written back
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# What SQLite says of a full disk, too: when it cannot make a file beside the database, or let it
# grow.
_PERHAPS_FULL = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
_ROOM = 1 << 16  # bytes, below which a disk is full


class Database:
    """The file at `path`, made (mode 0600) if it is not there, with the newest tables.

    Owns a connection from construction to `close`. Any thread may call; transactions wait for
    each other. Raises CorruptState for what is no database, another program's or of a newer
    version; OSError when the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        _make(path)
        self._path = path
        self._lock = threading.Lock()
        with _answers(path):
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            self._set_up()
        except (sqlite3.Error, CorruptState, ResourceExhausted, Unavailable):
            self._connection.close()
            raise

    def close(self) -> None:
        """Write the log back and close the file. Nothing may be called afterwards."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that changes nothing: all that is read in it is of one moment."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is kept if the block ends without an exception, and on disk then.

        Raises, beside what the block raises, ResourceExhausted for a full disk, CorruptState,
        and Unavailable for all else that keeps the file from being written. Nothing has
        changed then.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def shrink(self) -> None:
        """Write the log back and give its space back, as far as that can be done now."""
        with self._lock, contextlib.suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def check(self) -> list[str]:
        """What is wrong with the file, in SQLite's words; empty when it is sound."""
        problems: list[str] = []
        try:
            with self.reading() as connection:
                problems.extend(_problems(connection))
        except CorruptState as error:
            problems.append(str(error))  # SQLite may stumble over what it has just told
        return problems

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        with self._lock, _answers(self._path):
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                # Some errors, as a full disk, have ended it.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _set_up(self) -> None:
        with _answers(self._path):
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A directory is removed when its record is gone: the record may not come back with
            # the power.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
        while self._migrate():
            pass

    def _migrate(self) -> bool:
        """Take the next step; False when none is left."""
        with self.writing() as connection:
            version = self._version(connection)
            if version == len(MIGRATIONS):
                return False
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
        return True

    def _version(self, connection: sqlite3.Connection) -> int:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if (tables or version) and application != APPLICATION_ID:
            raise CorruptState(f"{self._path} is the database of another program")
        if not 0 <= version <= len(MIGRATIONS):
            raise CorruptState(
                f"{self._path} is of version {version}; this program knows versions up to "
                f"{len(MIGRATIONS)}: use the newer one"
            )
        return int(version)


def _problems(connection: sqlite3.Connection) -> Iterator[str]:
    for (text,) in connection.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield text
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} refers to a row of {parent} that is not there"


def _make(path: Path) -> None:
    """SQLite would make the file open to others, and follow a link."""
    try:
        os.close(os.open(path, _FLAGS, 0o600))
    except FileExistsError:
        # It is not opened here: closing it would drop the locks of a connection beside this one.
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise CorruptState(f"{path} is not a file") from None


@contextmanager
def _answers(path: Path) -> Iterator[None]:
    """SQLite's failures as errors of the shim. Broken constraints and misuse stay what they are."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            raise
        primary = code & 0xFF
        if primary in _CORRUPT:
            raise CorruptState(f"the store {path} is damaged: {error}") from error
        if primary == sqlite3.SQLITE_FULL or (primary in _PERHAPS_FULL and _is_full(path)):
            raise ResourceExhausted(
                f"the disk of the store {path} is full; remove containers or snapshots, or make it "
                "larger"
            ) from error
        raise Unavailable(f"cannot use the store {path}: {error}") from error


def _is_full(path: Path) -> bool:
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize < _ROOM
