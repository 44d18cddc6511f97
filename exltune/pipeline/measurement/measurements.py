"""`exltune measurements`: the content of probe stores, merged and exported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from exltune.errors import DataError, UsageError
from exltune.metrics import mean_and_se, mean_interval
from exltune.schema.probe import Merged, ShownProbe, StoredProbe, StoredSet
from exltune.store.database import Database
from exltune.store.files import refuse_existing_file
from exltune.store.names import SCORES
from exltune.store.probe_exchange import merge, stored_probes, stored_sets
from exltune.store.probe_files import CSV, JSONL, read_probes, write_probes


def listed(store: str) -> list[StoredSet]:
    """The content of a store. Raises: DataError where there is none, and as Database."""
    return stored_sets(_opened(store))


def shown(store: str, name: str) -> list[ShownProbe]:
    """All probes of a mix by its name, or of a group (head, cache.k, cache.v) by its id.

    Raises: UsageError for a name that is not there, and as listed.
    """
    probes = list(stored_probes(_opened(store)))
    found = [_shown(probe) for probe in probes if name == probe.mix.name or list(probe.mix.swaps) == [name]]
    found = found or [_shown(probe) for probe in probes if probe.mix.name.rpartition("@")[0] == name]
    if not found:
        names = sorted({probe.mix.name for probe in probes} | {unit for probe in probes for unit in probe.mix.swaps})
        near = ", ".join(get_close_matches(name, names)) or ", ".join(names[:5])
        raise UsageError(f"no probe is called {name!r}", where=store, fix=f"There are, for example: {near}")
    return sorted(found, key=lambda probe: (probe.name, probe.created))


def merged(store: str, sources: Sequence[str]) -> Merged:
    """Take other stores, and files that were exported, into one; its own probes stay as they are.

    Raises: DataError for a probe that two of them have with different numbers: nothing is merged then.
    """
    if not sources:
        raise UsageError("no sources are given", fix="exltune measurements merge STORE SOURCE...")
    return merge(Database(_place(store)), (probe for source in sources for probe in _source(source)))


def exported(store: str, out: Path, *, force: bool = False) -> int:
    """Write all probes of a store as JSON lines or CSV; their number. Raises: UsageError for another suffix."""
    if out.suffix not in (JSONL, CSV):
        raise UsageError(
            f"{out} has no suffix that tells its form", fix=f"Name it {out.stem}{JSONL} or {out.stem}{CSV}"
        )
    refuse_existing_file(out, force=force)
    return write_probes(out, stored_probes(_opened(store)))


def _source(source: str) -> Iterator[StoredProbe]:
    path = Path(source)
    if path.suffix in (JSONL, CSV) and path.is_file():
        return read_probes(path)
    return stored_probes(_opened(source))


def _opened(store: str) -> Database:
    database = Database(_place(store))
    if not database.exists:
        raise DataError(
            "there is no probe store", where=store, fix="Give the `store`, or the directory, of a measurement"
        )
    return database


def _place(store: str) -> str:
    """A measurement's directory stands for the store in it."""
    return str(Path(store) / SCORES) if "://" not in store and Path(store).is_dir() else store


def _shown(probe: StoredProbe) -> ShownProbe:
    sums, positions = probe.score.kl_ref_mix, probe.score.positions
    mean, se = mean_and_se(sums, positions)
    interval = mean_interval(sums, positions) if len(sums) > 1 else None
    return ShownProbe(
        context=probe.context,
        name=probe.mix.name,
        swaps=probe.mix.swaps,
        rows=len(probe.rows),
        row_length=probe.row_length,
        kld_nats=mean,
        kld_se_nats=None if math.isnan(se) else se,
        ci95=None if interval is None else (interval.ci_low, interval.ci_high),
        created=probe.created,
    )
