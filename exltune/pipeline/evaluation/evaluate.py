"""`exltune evaluate`: finished quants on held-out tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exltune.corpora import check_same_tokenizer
from exltune.errors import UsageError
from exltune.evaluation import evaluate_quants
from exltune.inventory import check_same_model
from exltune.pipeline.common.session import Session
from exltune.schema.evaluation import Evaluation
from exltune.schema.mix import REFERENCE
from exltune.schema.tokens import Split
from exltune.store.files import refuse_existing_file
from exltune.store.records import write_record


def evaluate(session: Session, quants: Sequence[Path], out: Path | None = None, *, force: bool = False) -> Evaluation:
    """Rows of the table for quant directories, each checked to belong to the model; written to `out` if given.

    session: its model is the reference, which may be a quant itself.
    Raises: QuantMismatchError, DataError, OutputExistsError, and all that the engine raises.
    """
    if out is not None:
        refuse_existing_file(out, force=force)
    names = _names(quants)
    for path in quants:
        check_same_model(session.model, path)
        check_same_tokenizer(session.model, path)
    # Choices of the session's mixes: a directory named "3" is not its base quant of 3 bits.
    choices = {str(path.resolve()): path for path in quants}
    session.add_quants(choices)
    with session.reporter.stage("Evaluating") as progress:
        tokens = session.ids(Split.HELD_OUT)
        scored = evaluate_quants(session.engine.inventory, session.scores.score, choices, tokens, progress)
    rows = [row.model_copy(update={"name": name}) for row, name in zip(scored, names, strict=True)]
    source = session.provenance(Split.HELD_OUT)
    if source.reference is not None:
        own = [session.fingerprint(path) == source.model_sha256 for path in quants]
        rows = [row.model_copy(update={"is_reference": is_own}) for row, is_own in zip(rows, own, strict=True)]
    evaluation = Evaluation(rows=tuple(rows), provenance=source)
    if out is not None:
        write_record(out, evaluation)
    return evaluation


def _names(quants: Sequence[Path]) -> list[str]:
    """Directory names, or whole paths where two directories are named alike or one as the reference is."""
    if not quants:
        raise UsageError("no quants are given", fix="exltune evaluate MODEL QUANT...")
    resolved = [path.resolve() for path in quants]
    if len(set(resolved)) < len(resolved):
        raise UsageError("a quant is given twice", fix="Name each directory once")
    names = [REFERENCE, *(path.name for path in resolved)]
    return [path.name if names.count(path.name) == 1 else str(path) for path in resolved]
