"""Where a result came from."""

from __future__ import annotations

from pathlib import Path

from exltune import __version__
from exltune.corpora import TokenSet
from exltune.inventory import model_fingerprint
from exltune.pipeline.common.reference import reference_quant
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataOptions


def provenance(model_dir: Path, engine: str, tokens: TokenSet, settings: DataOptions) -> Provenance:
    """Where a result on these tokens came from."""
    return Provenance(
        exltune_version=__version__,
        engine=engine,
        model_path=str(model_dir.resolve()),
        model_sha256=model_fingerprint(model_dir),
        reference=reference_quant(model_dir),
        tokens_sha256=tokens.info.sha256,
        rows=tokens.info.rows,
        row_length=tokens.info.row_length,
        seed=settings.seed,
    )
