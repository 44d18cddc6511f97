"""Every mix that a search scored, in an Optuna storage: durable at once, shared by workers, seen by dashboards."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import create_trial
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from exltune.errors import StorageError, UsageError
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE
from exltune.schema.search import ScoredMix

_ATTRIBUTE = "exltune"
_PATIENCE_SECONDS = 60

#: What a mix is known by.
MixKey = tuple[str, ...]


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
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise UsageError(f"{url!r} names no storage ({error})", fix="For example sqlite:///search.db") from error
        except RuntimeError as error:
            raise StorageError(f"another Optuna has made this storage ({error})", where=url) from error


def _made_by_one(url: str) -> AbstractContextManager[object]:
    """Workers of one machine in turn: Optuna's tables are not made in one step, and two that make them fail."""
    database = make_url(url).database
    if not url.startswith("sqlite") or not database:
        return nullcontext()
    name = hashlib.sha256(str(Path(database).resolve()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"exltune-{name}.lock", timeout=_PATIENCE_SECONDS)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Raise StorageError for what the database behind a storage raises."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise StorageError(f"the search's storage fails ({reason})", where=url) from error


def knob_study(storage: BaseStorage, key: str, sampler: BaseSampler, *, objectives: int) -> optuna.Study:
    """The study whose sampler turns the knobs. key: names what the search is of."""
    directions = [StudyDirection.MINIMIZE] * objectives
    return optuna.create_study(
        storage=storage, study_name=f"exltune {key} knobs", sampler=sampler, directions=directions, load_if_exists=True
    )


class History:
    """Scored mixes of one search, its workers' included, by content: the longest score of every mix.

    A mix has as many rows as were scored, counted from the first of the search set.
    """

    def __init__(self, storage: BaseStorage, key: str) -> None:
        self._study = optuna.create_study(storage=storage, study_name=f"exltune {key} mixes", load_if_exists=True)
        self.mixes: dict[MixKey, ScoredMix] = {}
        self._seen: set[int] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take in what other workers have scored since."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.number not in self._seen and _ATTRIBUTE in trial.user_attrs:
                self._seen.add(trial.number)
                self._keep(ScoredMix.model_validate_json(trial.user_attrs[_ATTRIBUTE]))

    def add(self, scored: Sequence[ScoredMix]) -> None:
        """Keep scored mixes; on return they are in the storage."""
        for mix in scored:
            self._study.add_trial(
                create_trial(
                    value=sum(mix.kld_rows) / len(mix.kld_rows),
                    user_attrs={
                        _ATTRIBUTE: mix.model_dump_json(),
                        "source": mix.source,
                        "size_bytes": mix.size_bytes,
                        "bits": json.dumps(mix.choices),
                    },
                )
            )
            self._keep(mix)

    def get(self, choices: Mapping[str, str]) -> ScoredMix | None:
        """The longest score of a mix."""
        return self.mixes.get(mix_key(choices))

    def whole(self, choices: Mapping[str, str], rows: int) -> bool:
        """Whether a mix was scored on all rows."""
        found = self.get(choices)
        return found is not None and len(found.kld_rows) >= rows

    def passes(self, rows: int) -> float:
        """What all mixes but the seeds cost, in passes over `rows` rows."""
        return sum(len(mix.kld_rows) for mix in self.mixes.values() if not mix.source.startswith(OF_BASELINE)) / rows

    def _keep(self, mix: ScoredMix) -> None:
        key = mix_key(mix.choices)
        known = self.mixes.get(key)
        if known is None or len(known.kld_rows) < len(mix.kld_rows):
            self.mixes[key] = mix


#: Begin of the source of mixes that come from the methods that the search is compared with.
OF_BASELINE = "baseline "


def mix_key(choices: Mapping[str, str]) -> MixKey:
    """A mix by its content; an unquantized cache is no key of it."""
    return tuple(
        f"{key}={choice}"
        for key, choice in sorted(choices.items())
        if key not in (CACHE_K, CACHE_V) or choice != REFERENCE
    )
