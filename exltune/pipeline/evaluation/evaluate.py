"""`exltune evaluate`: finished quants on held-out tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exltune.corpora import check_same_tokenizer
from exltune.engines.base import AUTO, open_engine
from exltune.errors import UsageError
from exltune.evaluate import evaluate_quants
from exltune.inventory import check_same_model, model_fingerprint
from exltune.pipeline.common.provenance import provenance
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.pipeline.texts.token_sets import ids, token_sets
from exltune.schema.evaluation import Evaluation
from exltune.schema.mix import REFERENCE
from exltune.schema.tokens import DataOptions, Split
from exltune.store.files import refuse_existing_file
from exltune.store.records import write_record


def evaluate(
    model: Path,
    quants: Sequence[Path],
    data: DataOptions,
    *,
    out: Path | None = None,
    engine: str = AUTO,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Rows of the table for quant directories, each checked to belong to the model; written to `out` if given.

    model: the reference, which may be a quant itself.

    Raises: QuantMismatchError, DataError, OutputExistsError, and what the engine raises.
    """
    reporter = reporter or Silent()
    if out is not None:
        refuse_existing_file(out, force=force)
    named = _names(quants)
    for path in named.values():
        check_same_model(model, path)
        check_same_tokenizer(model, path)
    tokens = token_sets(data, model)[Split.HELD_OUT]
    opened = open_engine(engine, model, named)
    with reporter.stage("Evaluating") as progress:
        rows = evaluate_quants(opened, named, ids(tokens), progress)
    source = provenance(model, opened.name, tokens, data)
    if source.reference is not None:
        own = [model_fingerprint(path) == source.model_sha256 for path in named.values()]
        rows = [row.model_copy(update={"is_reference": is_own}) for row, is_own in zip(rows, own, strict=True)]
    evaluation = Evaluation(rows=tuple(rows), provenance=source)
    if out is not None:
        write_record(out, evaluation)
    return evaluation


def _names(quants: Sequence[Path]) -> dict[str, Path]:
    """Directory names, or whole paths where two directories are named alike or one as the reference is."""
    if not quants:
        raise UsageError("no quants are given", fix="exltune evaluate MODEL QUANT...")
    resolved = [path.resolve() for path in quants]
    if len(set(resolved)) < len(resolved):
        raise UsageError("a quant is given twice", fix="Name each directory once")
    names = [REFERENCE, *(path.name for path in resolved)]
    return {
        whole.name if names.count(whole.name) == 1 else str(whole): path
        for whole, path in zip(resolved, quants, strict=True)
    }
