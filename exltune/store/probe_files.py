"""Probes as files that other programs read: JSON lines, a probe each, and CSV, a row of a probe each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError

from exltune.errors import DataError
from exltune.schema.probe import ProbeContext, ProbedMix, StoredProbe
from exltune.schema.score import Score
from exltune.store.files import write_text
from exltune.store.probes import rows_key

JSONL, CSV = ".jsonl", ".csv"

_CONTEXT = tuple(ProbeContext.model_fields)
_REFERENCE = "reference"
_PROBE = (*_CONTEXT, "mix", "swaps", "token_rows", "row_length", "created")
_SUMS = ("kl_ref_mix", "kl_mix_ref", "nll", *(f"top_{k}" for k in range(1, 6)))
_COLUMNS = (*_PROBE, "row", *_SUMS)


def write_probes(path: Path, probes: Iterable[StoredProbe]) -> int:
    """Write probes as the file's suffix says, atomically; the number of probes."""
    probes = list(probes)
    write_text(path, _csv(probes) if path.suffix == CSV else "".join(f"{p.model_dump_json()}\n" for p in probes))
    return len(probes)


def read_probes(path: Path) -> Iterator[StoredProbe]:
    """Probes out of a file that `write_probes` wrote. Raises: DataError naming the line."""
    return _read_csv(path) if path.suffix == CSV else _read_lines(path)


def _csv(probes: Iterable[StoredProbe]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for probe in probes:
        writer.writerows((*_fixed(probe), row, *sums) for row, *sums in zip(probe.rows, *_sums(probe), strict=True))
    return text.getvalue()


def _fixed(probe: StoredProbe) -> list[object]:
    swaps = json.dumps(probe.mix.model_dump(mode="json")["swaps"], sort_keys=True)
    group = rows_key([bytes.fromhex(row) for row in probe.rows])
    context = probe.context.model_dump(mode="json")
    # A nested record is JSON in its cell, as swaps are; a missing value is an empty cell.
    cells = (json.dumps(value, sort_keys=True) if isinstance(value, dict) else value for value in context.values())
    return [*cells, probe.mix.name, swaps, group, probe.row_length, probe.created]


def _sums(probe: StoredProbe) -> list[tuple[float, ...]]:
    score = probe.score
    return [score.kl_ref_mix, score.kl_mix_ref, score.nll, *score.top_k]


def _read_lines(path: Path) -> Iterator[StoredProbe]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield StoredProbe.model_validate_json(line)
        except ValidationError as error:
            raise _unreadable(path, number, error) from error


def _read_csv(path: Path) -> Iterator[StoredProbe]:
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise DataError("its columns are not those of exported probes", where=str(path), fix="Export it again")
        for _, lines in groupby(reader, key=lambda line: [line[name] for name in _PROBE]):
            try:
                yield _probe(list(lines))
            except (ValidationError, ValueError, TypeError) as error:
                raise _unreadable(path, reader.line_num, error) from error


def _probe(lines: list[dict[str, str]]) -> StoredProbe:
    """A probe out of the lines of its rows."""
    first = lines[0]
    kl_ref_mix, kl_mix_ref, nll, *top_k = ([line[name] for line in lines] for name in _SUMS)
    return StoredProbe(
        context=_context(first),
        mix=ProbedMix(name=first["mix"], swaps=json.loads(first["swaps"])),
        row_length=int(first["row_length"]),
        rows=tuple(line["row"] for line in lines),
        created=first["created"],
        score=Score(
            mix=first["mix"],
            positions=int(first["row_length"]) - 1,
            kl_ref_mix=tuple(map(float, kl_ref_mix)),
            kl_mix_ref=tuple(map(float, kl_mix_ref)),
            nll=tuple(map(float, nll)),
            top_k=tuple(tuple(map(int, hits)) for hits in top_k),
        ),
    )


def _context(line: dict[str, str]) -> ProbeContext:
    cells: dict[str, object] = {key: line[key] for key in _CONTEXT}
    cells[_REFERENCE] = json.loads(line[_REFERENCE]) if line[_REFERENCE] else None
    return ProbeContext.model_validate(cells)


def _unreadable(path: Path, line: int, error: Exception) -> DataError:
    reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return DataError(f"line {line} is not a probe ({reason})", where=str(path), fix="Export it again")
