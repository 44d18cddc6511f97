"""Provenance and job hashes: equal hashes mean equal results, so that finished work can be taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from exltune import __version__
from exltune.corpora import TokenSet
from exltune.inventory import model_fingerprint
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataOptions
from exltune.store.quants.reference import reference_quant
from exltune.store.records import canonical

#: Packages that store, report and parse; the code of all others decides results.
_IDLE = ("cli", "pipeline", "publish", "schema", "store")
#: Packages whose code decides a score.
_SCORING = ("engines", "exl3", "inventory", "metrics")
_PACKAGE = Path(__file__).resolve().parent.parent


def job_hash(*parts: object) -> str:
    """sha256 over the code and everything else that a result depends on."""
    return hashlib.sha256(canonical([__version__, code_sha256(), *parts]).encode()).hexdigest()


@cache
def code_sha256() -> str:
    """sha256 over the sources that decide results: after an update, old work is not taken for new."""
    return _sources_sha256(lambda parts: parts[0] not in _IDLE)


@cache
def score_code_sha256(engine: str) -> str:
    """sha256 over the sources that decide what a mix scores on given tokens; an engine's own are in its package."""

    def decides(parts: tuple[str, ...]) -> bool:
        others = parts[0] == "engines" and len(parts) > 2 and parts[1] != engine
        return parts[0] in _SCORING and not others

    return _sources_sha256(decides)


def _sources_sha256(decides: Callable[[tuple[str, ...]], bool]) -> str:
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        name = file.relative_to(_PACKAGE)
        if decides(name.parts):
            digest.update(str(name).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


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
