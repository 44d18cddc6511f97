"""Provenance and job hashes: equal hashes mean equal results, so that finished work can be taken up again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from exltune import __version__
from exltune.corpora import TokenSet
from exltune.inventory import model_fingerprint
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataSettings
from exltune.store.records import canonical


def job_hash(*parts: object) -> str:
    """sha256 over the exltune version and everything that a result depends on."""
    return hashlib.sha256(canonical([__version__, *parts]).encode()).hexdigest()


def provenance(model_dir: Path, engine: str, tokens: TokenSet, settings: DataSettings) -> Provenance:
    """Where a result on these tokens came from."""
    return Provenance(
        exltune_version=__version__,
        engine=engine,
        model_path=str(model_dir.resolve()),
        model_sha256=model_fingerprint(model_dir),
        tokens_sha256=tokens.info.sha256,
        rows=tokens.info.rows,
        row_length=tokens.info.row_length,
        seed=settings.seed,
    )
