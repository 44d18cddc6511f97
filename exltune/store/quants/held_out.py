"""Whether a quant may have seen the rows that it is judged on."""

from __future__ import annotations

from pathlib import Path

from exltune.corpora import TokenSet
from exltune.corpora.dealing import token_sets
from exltune.errors import CompareRefusedError, DataError
from exltune.schema.provenance import Provenance
from exltune.schema.quant import QuantRecord
from exltune.schema.tokens import SPLIT_SHARES, DataOptions, Split
from exltune.store.names import RECIPE, RECORD
from exltune.store.records import read_recipe, read_record

_OTHERS = tuple(split for split in Split if split is not Split.HELD_OUT)


class HeldOut:
    """The held-out rows that quants are compared on, and the known facts of a quant's own texts.

    reference: the model directory, whose tokenizer counts. data: the source of the rows, `tokens`.
    """

    def __init__(self, reference: Path, data: DataOptions, tokens: TokenSet, *, trust: bool) -> None:
        self.reference, self.data, self.tokens, self.trust = reference, data, tokens, trust
        self._dealt: dict[DataOptions, frozenset[str]] = {}

    def check(self, quant: Path) -> tuple[str, ...]:
        """Refuse a quant that was calibrated or searched on these rows, or that nobody can tell of without `trust`.

        exltune notes the hash of its set. A set of the same texts is disjoint from the held-out rows whatever its
        size, for no document moves from one set to another. Returns remarks. Raises: CompareRefusedError.
        """
        notes = _notes(quant)
        if any(note.tokens_sha256 == self.tokens.info.sha256 for note in notes.values()):
            raise CompareRefusedError(
                f"the held-out rows are the ones it was made with ({', '.join(notes)})",
                where=str(quant),
                fix="Judge it on other text with `data`",
            )
        unknown = [name for name, note in notes.items() if not self._is_of_these_texts(note)]
        if notes and not unknown:
            return ()
        told = (
            f"made with other texts or settings ({', '.join(unknown)})" if notes else "made without notes of its texts"
        )
        if not self.trust:
            raise CompareRefusedError(
                f"it was {told}: nobody can tell that the held-out rows are new to it",
                where=str(quant),
                fix="Give the `data` it was quantized with, or `trust_data` if you know that these texts are new to it "
                "(exllamav3 calibrates on its bundled texts)",
            )
        return (f"{quant}: {told}; that the held-out rows are new to it was taken on trust",)

    def _is_of_these_texts(self, note: Provenance) -> bool:
        """Whether the same texts, dealt as the note says, give its rows in another set than the held-out one."""
        if note.rows is None or note.row_length is None or note.seed is None:
            return False
        for share in sorted({SPLIT_SHARES[split] for split in _OTHERS}, reverse=True):
            rows = note.rows * sum(SPLIT_SHARES.values()) // share
            dealt = {"rows": rows, "row_length": note.row_length, "seed": note.seed}
            if note.tokens_sha256 in self._hashes(self.data.model_copy(update=dealt)):
                return True
        return False

    def _hashes(self, settings: DataOptions) -> frozenset[str]:
        """Of the sets that a quant may be made with; none where the texts do not give that many rows."""
        if settings not in self._dealt:
            try:
                sets = token_sets(settings, self.reference)
            except DataError:
                sets = {}
            self._dealt[settings] = frozenset(sets[split].info.sha256 for split in _OTHERS if split in sets)
        return self._dealt[settings]


def _notes(quant: Path) -> dict[str, Provenance]:
    """exltune's notes beside the quant, by file."""
    found = {}
    if (quant / RECORD).is_file():
        found[RECORD] = read_record(quant / RECORD, QuantRecord).provenance
    if (quant / RECIPE).is_file():
        made = read_recipe(quant / RECIPE).exltune
        if made is not None:
            found[RECIPE] = made.provenance
    return found
