"""The file of a store: an SQLite database, how it is opened and written, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from layersurgery.errors import StoreError

VERSION = 1
"""Of the tables below; a store of a newer one is refused."""

PATIENCE = 30.0
"""Seconds to wait for another process that is writing."""

SECONDS_TO_DISK = 10.0
"""How much work a power cut may cost. What is committed is safe from a killed process at once."""


class StoreFile:
    """One file, opened when it is first used, once for each process and thread.

    Args:
        path: where it is or is to be.

    Raises:
        StoreError: if that cannot be a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike) or str(path) in ("", ":memory:"):
            raise StoreError(f"store={path!r}: give the name of a file, such as 'runs.db', or leave store= out")
        self.path = Path(path).absolute()
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        self._inode: int | None = None
        self._on_disk = time.monotonic()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to a store that exists.

        Raises:
            StoreError: if there is none, or it cannot be read.
        """
        with self._explained():
            yield self._connection(create=False)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection, and all that is done with it as one transaction: after it, or not at all. Makes a new store.

        Raises:
            StoreError: if it cannot be written; then nothing was.
        """
        with self._explained():
            connection = self._connection(create=True)
            with _transaction(connection):
                yield connection
            if time.monotonic() - self._on_disk > SECONDS_TO_DISK:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # flushes what was committed
                self._on_disk = time.monotonic()

    def check(self) -> None:
        """Find out now whether it can be written.

        Raises:
            StoreError: if it cannot.
        """
        with self.writing() as connection:  # a transaction alone is none: SQLite begins one on a read-only file, too
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Give the file back; the next use opens it again."""
        mine = [key for key in self._connections if key[0] == os.getpid()]  # a parent's are the parent's to close
        for key in mine:
            self._connections.pop(key).close()

    def __del__(self) -> None:
        with suppress(sqlite3.Error, AttributeError):
            self.close()

    def _connection(self, *, create: bool) -> sqlite3.Connection:
        key = os.getpid(), threading.get_ident()
        if key not in self._connections:
            self._check_place(create)
            self._connections[key] = _opened(self.path)
            self._inode = self.path.stat().st_ino
        try:
            there = self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            there = False
        if not there:
            self.close()
            raise StoreError(
                f"the store {self.path} was moved or deleted while it was in use. What it held is where it was moved; "
                "put it back, or run again with another file"
            )
        return self._connections[key]

    def _check_place(self, create: bool) -> None:
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder; give the store a file name, such as {self.path / 'runs.db'}")
        if not self.path.parent.is_dir():
            raise StoreError(f"there is no folder {self.path.parent} for the store {self.path.name}; make it first")
        if not create and not self.path.exists():
            raise StoreError(f"there is no store {self.path}; a sweep with store= makes one. Check the name")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(_explanation(self.path, error)) from error


def _opened(path: Path) -> sqlite3.Connection:
    """A connection to a sound store of this version; the tables are made where the file is new."""
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        if _is_new(connection, path):  # asked before anything is written: it may be a file of something else
            _until_free(connection, "PRAGMA journal_mode = WAL")
            with _transaction(connection):
                if _is_new(connection, path):  # another process may have been faster
                    for statement in _TABLES:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
        mode = _until_free(connection, "PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise StoreError(f"the file system of {path} cannot do what a store needs ({mode}); take a local disk")
        # What is committed survives the process. A power cut takes what was not on the disk, and never damages the
        # rest; waiting for the disk after each micro-batch would cost more than all else that is done here.
        connection.execute("PRAGMA synchronous = NORMAL")
        damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(f"malformed: {damage}")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether there is nothing in the file yet.

    Raises:
        StoreError: if there is something else than a store of this version.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == _APPLICATION:
        if version > VERSION:
            raise StoreError(
                f"the store {path} is of version {version}, written by a newer layersurgery; this one reads up to "
                f"{VERSION}. Upgrade layersurgery, or give another file"
            )
        return False
    if application or version or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise StoreError(f"{path} is a database of something else, and was not touched; give the store another name")
    return True


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        _until_free(connection, "BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:  # an interrupt too
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # the first error is the one to tell
                connection.execute("ROLLBACK")
        raise


def _until_free(connection: sqlite3.Connection, statement: str) -> str:
    """Do it, waiting for other processes where SQLite itself does not: as the journal is changed or recovered."""
    last = time.monotonic() + PATIENCE
    while True:
        try:
            row = connection.execute(statement).fetchone()
        except sqlite3.OperationalError as error:
            if not _says(error, "locked", "busy") or time.monotonic() > last:
                raise
            time.sleep(0.02)
        else:
            return "" if row is None else str(row[0])


def _explanation(path: Path, error: sqlite3.Error | OSError) -> str:
    for words, meaning in _MEANINGS.items():
        if _says(error, *words):
            return f"the store {path} {meaning.format(path=path)} ({error})"
    return f"the store {path} failed: {error}. What was stored before is still there; run again to go on from it"


def _says(error: Exception, *words: str) -> bool:
    return any(word in str(error).lower() for word in words)


_APPLICATION = 0x6C737267  # "lsrg", by which the file is known

_MEANINGS = {
    ("locked", "busy"): f"was kept locked by another program for {PATIENCE:.0f} s. What was stored before is still "
    "there; close that program and run again to go on from it",
    ("disk is full", "no space"): "has no room left on its disk. What was stored before is still there; free some "
    "space and run again to go on from it",
    ("readonly", "read-only", "unable to open", "permission"): "cannot be written. Nothing of it was changed; make the "
    "file and its folder writable for you, or copy it to a place that is",
    ("not a database", "file is encrypted"): "is no store: something else is in that file. It was not touched; give "
    "the store another name",
    ("malformed", "corrupt"): "is damaged. Nothing of it was changed; save what can be read with the command "
    "`sqlite3 {path} .recover | sqlite3 recovered.db`, or give another file",
    ("i/o error",): "could not be read from or written to its disk. What was stored before is still there; look for "
    "a full or failing disk and run again to go on from it",
}

# Columns of scores have no type, so that numbers come back bit by bit: a typed one would turn -0.0 into 0.
_TABLES = (
    "CREATE TABLE models (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, name)",
    "CREATE TABLE scorers (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, name)",
    """CREATE TABLE surgeries (
        id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, site, layer, intervention, seed
    )""",
    "CREATE TABLE samples (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, name, benchmark, task)",
    """CREATE TABLE cells (
        scorer INTEGER REFERENCES scorers, model INTEGER REFERENCES models, surgery INTEGER REFERENCES surgeries,
        sample INTEGER REFERENCES samples, correct NOT NULL, margin, answered, text, best,
        PRIMARY KEY (scorer, model, surgery, sample)
    ) WITHOUT ROWID""",
    """CREATE TABLE totals (
        scorer INTEGER REFERENCES scorers, model INTEGER REFERENCES models, surgery INTEGER REFERENCES surgeries,
        samples TEXT, count INTEGER NOT NULL, correct NOT NULL,
        PRIMARY KEY (scorer, model, surgery, samples)
    ) WITHOUT ROWID""",
)
