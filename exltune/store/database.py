"""The database behind a probe store: SQLite with a write-ahead log, or PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, Table, create_engine, event, func, inspect, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from exltune.errors import DataError, StorageError, UsageError, without_password
from exltune.store.files import made
from exltune.store.probe_tables import SCHEMA_VERSION, TABLES, version

_PATIENCE_SECONDS = 60
_DRIVER = "pip install 'exltune[postgres]'"
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
#: Names the turn of writers on a server; any number that no other program takes there.
_TURN = 0x65786C74756E65
#: SQLite's words for a file that is damaged or none of its own.
_DAMAGED = ("malformed", "not a database", "file is encrypted")


class Database:
    """A database of probes, made when something is first written into it.

    url: a file, or a URL as SQLAlchemy takes it (`sqlite:///scores.db`, `postgresql://...`).
    Raises: UsageError for a name of neither, DataError for a file that is damaged, another program's or of another
    version, StorageError where the database cannot be reached.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = _parse(url)
        self.name = self.url.render_as_string(hide_password=True) if self.file is None else str(self.file)
        if self.file is not None and self.file.is_dir():
            raise UsageError(
                "a directory is not a probe store",
                where=self.name,
                fix=f"Name a file, such as {self.file / 'scores.db'}",
            )
        if self.exists:
            with self.errors(), self._engine.connect() as connection:
                self._check(connection)

    @property
    def file(self) -> Path | None:
        """The file, if it is one."""
        named = self.url.get_backend_name() == "sqlite" and self.url.database
        return Path(str(self.url.database)) if named else None

    @property
    def exists(self) -> bool:
        """Whether there is anything to read; servers are taken to be there."""
        return self.file is None or self.file.exists()

    @contextmanager
    def reading(self) -> Iterator[Connection | None]:
        """A connection to read with; None while there is nothing."""
        if not self.exists:
            yield None
            return
        with self.errors(), self._engine.connect() as connection:
            yield connection if inspect(connection).has_table(version.name) else None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection to write with; all writes are on the disk when the block ends, or none is."""
        fresh = not self.exists
        with made(self.file.parent if self.file is not None else Path.cwd()):
            try:
                with self.errors(), self._engine.begin() as connection:
                    self._wait_for_turn(connection)
                    self._create(connection)
                    yield connection
            except BaseException:
                if fresh:
                    self._drop_file()
                raise

    def check_writable(self) -> None:
        """Raise StorageError for a file that nothing can be written into, before there is anything to lose."""
        if self.file is None:
            return
        folder = next(path for path in self.file.absolute().parents if path.exists())
        places = [self.file, folder] if self.file.exists() else [folder]
        for place in places:
            if not os.access(place, os.W_OK) or not (place == self.file or place.is_dir()):
                raise StorageError(
                    f"no scores can be kept there: {place} cannot be written",
                    where=self.name,
                    fix="Mend the access, or give another `store`",
                )

    def insert_new(self, connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
        """Insert rows whose key is not there yet; whoever comes second changes nothing."""
        if rows:
            connection.execute(_INSERT[self.url.get_backend_name()](table).on_conflict_do_nothing(), rows)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise StorageError or DataError for the database's errors."""
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            if isinstance(error, DatabaseError) and any(word in reason for word in _DAMAGED):
                raise self._damaged(reason) from error
            raise StorageError(
                f"the probe store cannot be read or written ({reason})",
                where=self.name,
                fix="Make room or mend the access, and run the same command again: it goes on from there",
            ) from error

    @cached_property
    def _engine(self) -> Engine:
        # Each connection is closed after use, so that no write-ahead log lies about and no server waits for us.
        if self.file is None:
            return create_engine(self.url, poolclass=NullPool)
        engine = create_engine(self.url, connect_args={"timeout": _PATIENCE_SECONDS}, poolclass=NullPool)
        event.listen(engine, "connect", _make_durable)
        return engine

    def _wait_for_turn(self, connection: Connection) -> None:
        """One writer at a time, as SQLite has it: on a server two that insert equal rows would lock each other out."""
        if self.file is None:
            connection.execute(select(func.pg_advisory_xact_lock(_TURN)))

    def _create(self, connection: Connection) -> None:
        for table in TABLES:
            connection.execute(CreateTable(table, if_not_exists=True))
        self.insert_new(connection, version, [{"number": SCHEMA_VERSION}])

    def _check(self, connection: Connection) -> None:
        """That it is a probe store of this version, and whole."""
        if self.file is not None:
            found = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
            if found != "ok":
                raise self._damaged(str(found))
        names = inspect(connection).get_table_names()
        if version.name not in names:
            if names:
                raise DataError("it is another program's database", where=self.name, fix="Give another `store`")
            return
        # Nothing yet where another process is making it at this moment.
        number = connection.execute(select(version.c.number)).scalar_one_or_none()
        if number not in (None, SCHEMA_VERSION):
            raise DataError(
                f"the probe store has version {number}, and this exltune reads and writes version {SCHEMA_VERSION}",
                where=self.name,
                fix="Export it with the exltune that made it and merge that file into a new one, or give another "
                "`store` to measure anew",
            )

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"the probe store is damaged ({reason})",
            where=self.name,
            fix="Bring back a copy, or move the file away: its probes are then scored again",
        )

    def _drop_file(self) -> None:
        """Leave nothing where nothing was; another process may have written it meanwhile, though."""
        if self.file is not None and not self._holds_anything():
            for suffix in ("", "-wal", "-shm", "-journal"):
                self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)

    def _holds_anything(self) -> bool:
        try:
            with self._engine.connect() as connection:
                return inspect(connection).has_table(version.name)
        except SQLAlchemyError:
            return False


def _parse(url: str | Path) -> URL:
    written = str(url)
    if "://" not in written:
        return URL.create("sqlite", database=written)
    try:
        parsed = make_url(written)
        dialect = parsed.get_dialect()
        known = parsed.get_backend_name() in _INSERT and (parsed.database or parsed.get_backend_name() != "sqlite")
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        told = without_password(f"{written!r} names no database ({error})")
        raise UsageError(told, fix="For example `store` scores.db") from error
    if not known:
        raise UsageError(
            f"{without_password(written)!r} is not a probe store: they are SQLite files and PostgreSQL databases",
            fix="For example `store` scores.db, or `store` postgresql://user@host/database",
        )
    try:
        dialect.import_dbapi()
    except ImportError as error:
        raise UsageError(f"no driver for this database is installed ({error})", fix=_DRIVER) from error
    return parsed


def _make_durable(connection: Any, _: Any) -> None:
    """Readers and a writer at once, and a commit that returns when it is on the disk."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
