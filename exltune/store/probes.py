"""Finished probes, durable at once and known by content, so that whatever asks for the same again finds them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import select

from exltune.errors import DataError
from exltune.schema.probe import ProbeContext, ProbedMix
from exltune.schema.score import Score
from exltune.store.database import Database
from exltune.store.probe_tables import contexts, mixes, scores, timings, token_rows
from exltune.store.records import canonical

#: Sums of rows, (8, rows) ordered as PositionMetrics.stacked.
Sums = npt.NDArray[np.float64]

#: sha256 of a row's tokens.
RowId = bytes

SUMS = 8
_ROW_BYTES = 32
#: Databases limit the values of one statement.
_AT_ONCE = 500


def context_key(context: ProbeContext) -> str:
    """sha256 (hex) of all that a context is."""
    return _sha256(context.model_dump_json().encode())


def content_key(mix: ProbedMix) -> str:
    """sha256 (hex) of a mix's content; neither its name nor those of its choices count."""
    content = {unit: swap.sha256 or swap.choice for unit, swap in mix.swaps.items()}
    return _sha256(canonical(content).encode())


def row_ids(tokens: npt.NDArray[np.int64]) -> list[RowId]:
    """Ids of rows (rows, T) of tokens."""
    return [hashlib.sha256(row.astype("<i8").tobytes()).digest() for row in tokens]


def rows_key(rows: Sequence[RowId]) -> str:
    """sha256 (hex) of rows in their order."""
    return _sha256(b"".join(rows))


def score_sums(score: Score) -> Sums:
    """Sums (8, rows) of a score."""
    return np.array([score.kl_ref_mix, score.kl_mix_ref, score.nll, *score.top_k], dtype=np.float64)


class ProbeStore:
    """Probes of one context in a database. Raises: as Database."""

    def __init__(self, database: Database, context: ProbeContext) -> None:
        self.database, self.context = database, context
        self.key = context_key(context)

    def check_writable(self) -> None:
        """Raise what the first `add` would raise, before anything was computed for it."""
        self.database.check_writable()

    def find(self, keys: Iterable[str], rows: Sequence[RowId]) -> dict[str, Sums]:
        """Mix key -> sums (8, rows) of mixes that are there, NaN in rows that were not scored."""
        places: dict[RowId, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row, []).append(place)
        found: dict[str, Sums] = {}
        with self.database.reading() as connection:
            if connection is None:
                return found
            for chunk in _chunks(keys):
                wanted = (
                    select(scores.c.mix, scores.c.sums, token_rows.c.rows)
                    .join(token_rows)
                    .where(scores.c.context == self.key, scores.c.mix.in_(chunk))
                    .order_by(scores.c.created, scores.c.token_rows)
                )
                for key, sums, stored in connection.execute(wanted):
                    into = found.setdefault(key, np.full((SUMS, len(rows)), np.nan))
                    self._fill(into, unpacked(sums, stored, self.database.name), split_rows(stored), places)
        return found

    def add(self, found: Sequence[tuple[ProbedMix, Sums]], rows: Sequence[RowId], row_length: int) -> None:
        """Keep sums (8, rows) of mixes on the same rows; on return they are on the disk, or none of them is.

        Of two that have scored the same, the first is kept.
        """
        if not found:
            return
        packed, group = b"".join(rows), rows_key(rows)
        now = _now()
        with self.database.writing() as connection:
            insert = self.database.insert_new
            insert(connection, contexts, [{"id": self.key, "content": self.context.model_dump_json()}])
            insert(connection, mixes, [{"id": content_key(mix), "content": _swaps(mix)} for mix, _ in found])
            insert(connection, token_rows, [{"id": group, "row_length": row_length, "rows": packed}])
            insert(connection, scores, [self._score(mix, sums, group, now) for mix, sums in found])

    def timing(self, what: str, measure: Callable[[], float]) -> float:
        """Seconds of a pass for `what` in this context: as first measured, so that the same plan follows again."""
        key = _sha256(canonical([self.key, what]).encode())
        found = self._timed(key)
        if found is None:
            row = {"id": key, "seconds": measure(), "created": _now()}
            with self.database.writing() as connection:
                self.database.insert_new(connection, timings, [row])
            found = self._timed(key)
        assert found is not None, "it was written"
        return found

    def _timed(self, key: str) -> float | None:
        with self.database.reading() as connection:
            if connection is None:
                return None
            found: float | None = connection.execute(
                select(timings.c.seconds).where(timings.c.id == key)
            ).scalar_one_or_none()
        return found

    def _score(self, mix: ProbedMix, sums: Sums, group: str, now: str) -> dict[str, Any]:
        key = {"context": self.key, "mix": content_key(mix), "token_rows": group}
        return key | {"name": mix.name, "created": now, "sums": packed_sums(sums)}

    @staticmethod
    def _fill(into: Sums, sums: Sums, stored: Sequence[RowId], places: Mapping[RowId, Sequence[int]]) -> None:
        """The first score of a row stays."""
        for column, row in enumerate(stored):
            for place in places.get(row, ()):
                if np.isnan(into[0, place]):
                    into[:, place] = sums[:, column]


def split_rows(packed: bytes) -> list[RowId]:
    """Ids of rows out of their stored form."""
    return [packed[at : at + _ROW_BYTES] for at in range(0, len(packed), _ROW_BYTES)]


def packed_sums(sums: Sums) -> bytes:
    """The stored form of sums (8, rows)."""
    return sums.astype("<f8").tobytes()


def unpacked(sums: bytes, rows: bytes, where: str) -> Sums:
    """Sums (8, rows) out of their stored form. Raises: DataError for one of another length."""
    if len(sums) != len(rows) // _ROW_BYTES * SUMS * 8:
        raise DataError("a score has not as many sums as rows", where=where, fix="Bring back a copy of the store")
    return np.frombuffer(sums, dtype="<f8").reshape(SUMS, -1)


def _chunks(keys: Iterable[str]) -> Iterator[Sequence[str]]:
    distinct = list(dict.fromkeys(keys))
    for at in range(0, len(distinct), _AT_ONCE):
        yield distinct[at : at + _AT_ONCE]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _swaps(mix: ProbedMix) -> str:
    return canonical(mix.model_dump(mode="json")["swaps"])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
