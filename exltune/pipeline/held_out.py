"""Whether a quant may have seen the rows that it is judged on."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from exltune.corpora import TokenSet
from exltune.errors import DataError, GateRefusedError
from exltune.pipeline.base_quants import RECIPE
from exltune.pipeline.data import token_sets
from exltune.pipeline.quantize import RECORD
from exltune.schema.provenance import Provenance
from exltune.schema.quant import QuantRecord
from exltune.schema.tokens import SPLIT_SHARES, DataSettings, Split
from exltune.store.records import read_recipe, read_record


def check_held_out(
    quant: Path, reference: Path, data: DataSettings, tokens: TokenSet, *, trust: bool
) -> tuple[str, ...]:
    """Refuse a quant that was calibrated or searched on `tokens`, or that nobody can tell of unless `trust` is given.

    exltune notes the hash of what it used. A set of the same texts is disjoint from the held-out rows whatever its
    size, for no document moves from one set to another. Returns remarks. Raises: GateRefusedError.
    """
    notes = _notes(quant)
    if any(note.tokens_sha256 == tokens.info.sha256 for note in notes.values()):
        raise GateRefusedError(
            f"the held-out rows are the ones it was made with ({', '.join(notes)})",
            where=str(quant),
            fix="Judge it on other text with --data",
        )
    unknown = [name for name, note in notes.items() if not _is_of_these_texts(note, reference, data)]
    if notes and not unknown:
        return ()
    told = f"made with other texts or settings ({', '.join(unknown)})" if notes else "made without notes of its texts"
    if not trust:
        raise GateRefusedError(
            f"it was {told}: nobody can tell that the held-out rows are new to it",
            where=str(quant),
            fix="Give the --data it was quantized with, or --trust-data if you know that it has not seen these texts "
            "(exllamav3 calibrates on its bundled texts)",
        )
    return (f"{quant}: {told}; that the held-out rows are new to it was taken on trust",)


def _notes(quant: Path) -> dict[str, Provenance]:
    """What exltune noted beside the quant, by file."""
    found = {}
    if (quant / RECORD).is_file():
        found[RECORD] = read_record(quant / RECORD, QuantRecord).provenance
    if (quant / RECIPE).is_file():
        made = read_recipe(quant / RECIPE).exltune
        if made is not None:
            found[RECIPE] = made.provenance
    return found


def _is_of_these_texts(note: Provenance, reference: Path, data: DataSettings) -> bool:
    """Whether dealing the same texts again, as the note says, gives its rows in another set than the held-out one."""
    if note.rows is None or note.row_length is None or note.seed is None:
        return False
    made_of = [split for split in Split if split is not Split.HELD_OUT]
    for share in sorted({SPLIT_SHARES[split] for split in made_of}, reverse=True):
        rows = note.rows * sum(SPLIT_SHARES.values()) // share
        dealt = {"rows": rows, "row_length": note.row_length, "seed": note.seed}
        try:
            sets = token_sets(DataSettings.model_validate(data.model_dump() | dealt), reference)
        except (DataError, ValidationError):
            continue
        if any(sets[split].info.sha256 == note.tokens_sha256 for split in made_of):
            return True
    return False
