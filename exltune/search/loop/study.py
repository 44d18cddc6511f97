"""The Optuna study that turns a search's knobs, in a storage that dashboards can watch."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from exltune.errors import StorageError, UsageError, without_password

_PATIENCE_SECONDS = 60


def open_storage(url: str | None) -> BaseStorage:
    """The storage of a URL (`sqlite:///search.db`, `postgresql://...`), or memory without one.

    Raises: UsageError for a URL that names no database, StorageError where it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None:
        return InMemoryStorage()
    # Workers that share a file wait for each other.
    patience = {"connect_args": {"timeout": _PATIENCE_SECONDS}} if url.startswith("sqlite") else {}
    with storage_errors(url):
        try:
            with _made_by_one(url):
                return RDBStorage(url, engine_kwargs=patience)
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
            told = without_password(f"{url!r} names no storage ({error})")
            raise UsageError(told, fix="For example sqlite:///search.db") from error
        except RuntimeError as error:
            raise StorageError(f"another Optuna has made this storage ({error})", where=_shown(url)) from error


def _made_by_one(url: str) -> AbstractContextManager[object]:
    """Workers of one machine in turn: Optuna's tables are not made in one step, and two that make them fail."""
    database = make_url(url).database
    if not url.startswith("sqlite") or not database:
        return nullcontext()
    name = hashlib.sha256(str(Path(database).resolve()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"exltune-{name}.lock", timeout=_PATIENCE_SECONDS)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Raise StorageError for errors of the database behind a storage."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise StorageError(f"the search's storage fails ({reason})", where=_shown(url)) from error


def _shown(url: str) -> str:
    """A URL without its password."""
    return make_url(url).render_as_string(hide_password=True) if "://" in url else url


def knob_study(storage: BaseStorage, key: str, sampler: BaseSampler, *, objectives: int) -> optuna.Study:
    """A fresh study whose sampler turns the knobs. key: names the search and its output.

    One that an earlier run of the same search left is replaced: a search that is taken up again asks everything again,
    and finds the scores where it left them, so that it ends as it would have ended.
    """
    name = f"exltune {key} knobs"
    if name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    directions = [StudyDirection.MINIMIZE] * objectives
    return optuna.create_study(storage=storage, study_name=name, sampler=sampler, directions=directions)
