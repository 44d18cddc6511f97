"""Whole probe stores: their content, and taking one into another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, select

from exltune.errors import DataError
from exltune.metrics import score_from_rows
from exltune.schema.probe import Merged, ProbeContext, ProbedMix, StoredProbe, StoredSet, Swap
from exltune.store.database import Database
from exltune.store.probe_tables import contexts, mixes, scores, token_rows
from exltune.store.probes import content_key, context_key, packed_sums, rows_key, score_sums, split_rows, unpacked

_PROBES = (
    select(contexts.c.content, mixes.c.content, scores, token_rows.c.rows, token_rows.c.row_length)
    .select_from(scores)
    .join(contexts)
    .join(mixes)
    .join(token_rows)
    .order_by(scores.c.created, scores.c.context, scores.c.mix, scores.c.token_rows)
)


def stored_sets(database: Database) -> list[StoredSet]:
    """The content of a store, by context and rows, oldest first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, probe in _probes(database):
        entry = found.setdefault(key, {"probe": probe, "mixes": set(), "swaps": set(), "times": []})
        entry["mixes"].add(content_key(probe.mix))
        entry["swaps"] |= {(unit, swap.choice, swap.sha256) for unit, swap in probe.mix.swaps.items()}
        entry["times"].append(probe.created)
    return [_stored_set(group, entry) for (_, group), entry in found.items()]


def stored_probes(database: Database) -> Iterator[StoredProbe]:
    """All probes of a store, oldest first."""
    return (probe for _, probe in _probes(database))


def merge(database: Database, probes: Iterable[StoredProbe]) -> Merged:
    """Add probes to a store; those that it has stay as they are. All of them are added or none.

    Raises: DataError for a probe that the store has with other numbers, and as Database.
    """
    added = known = 0
    with database.writing() as connection:
        for probe in probes:
            if _known(connection, probe, database.name):
                known += 1
                continue
            _insert(database, connection, probe)
            added += 1
    return Merged(store=database.name, added=added, known=known)


def _probes(database: Database) -> Iterator[tuple[tuple[str, str], StoredProbe]]:
    with database.reading() as connection:
        for row in connection.execute(_PROBES) if connection is not None else ():
            context, content, _, _, group, name, created, sums, rows, row_length = row
            swaps = {unit: Swap.model_validate(swap) for unit, swap in json.loads(content).items()}
            probe = StoredProbe(
                context=ProbeContext.model_validate_json(context),
                mix=ProbedMix(name=name, swaps=swaps),
                row_length=row_length,
                rows=tuple(part.hex() for part in split_rows(rows)),
                created=created,
                score=score_from_rows(name, unpacked(sums, rows, database.name), row_length - 1),
            )
            yield (row[2], group), probe


def _stored_set(group: str, entry: dict[str, Any]) -> StoredSet:
    probe: StoredProbe = entry["probe"]
    return StoredSet(
        context=probe.context,
        token_rows=group,
        rows=len(probe.rows),
        row_length=probe.row_length,
        mixes=len(entry["mixes"]),
        choices=tuple(sorted({choice for _, choice, _ in entry["swaps"]}, key=lambda choice: (len(choice), choice))),
        quants=len({sha256 for _, _, sha256 in entry["swaps"] if sha256 is not None}),
        first=min(entry["times"]),
        last=max(entry["times"]),
    )


def _known(connection: Connection, probe: StoredProbe, where: str) -> bool:
    wanted = select(scores.c.sums).where(
        scores.c.context == context_key(probe.context),
        scores.c.mix == content_key(probe.mix),
        scores.c.token_rows == rows_key(_rows(probe)),
    )
    found = connection.execute(wanted).scalar_one_or_none()
    if found is None:
        return False
    if found != packed_sums(score_sums(probe.score)):
        raise DataError(
            f"{probe.mix.name!r} on {len(probe.rows)} rows is in both stores with different numbers "
            f"(model {probe.context.model_sha256[:12]}, {probe.context.engine})",
            where=where,
            fix="One of the two was damaged or made on a device that computes differently: keep them apart",
        )
    return True


def _insert(database: Database, connection: Connection, probe: StoredProbe) -> None:
    rows, context, mix = _rows(probe), context_key(probe.context), content_key(probe.mix)
    swaps = json.dumps(probe.mix.model_dump(mode="json")["swaps"], sort_keys=True)
    insert, group = database.insert_new, rows_key(rows)
    insert(connection, contexts, [{"id": context, "content": probe.context.model_dump_json()}])
    insert(connection, mixes, [{"id": mix, "content": swaps}])
    insert(connection, token_rows, [{"id": group, "row_length": probe.row_length, "rows": b"".join(rows)}])
    score = {"name": probe.mix.name, "created": probe.created, "sums": packed_sums(score_sums(probe.score))}
    insert(connection, scores, [{"context": context, "mix": mix, "token_rows": group, **score}])


def _rows(probe: StoredProbe) -> list[bytes]:
    return [bytes.fromhex(row) for row in probe.rows]
