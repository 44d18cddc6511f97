"""Token sets of a model from data settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exltune.corpora import (
    Cuts,
    ModelTokenizer,
    Sample,
    TokenSet,
    make_token_sets,
    read_sources,
    small_model_documents,
)
from exltune.corpora.sharp import SHARES
from exltune.errors import DataError
from exltune.schema.tokens import BUNDLED, DataOptions, DataSource, Split, Texts

if TYPE_CHECKING:
    import torch

_NAMED = re.compile(r"([\w.+-]+)=(.+)")


def data_options_of(
    data: Sequence[str | Path],
    *,
    rows: int,
    row_length: int,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    samples: int | None = None,
    sample_tokens: int | None = None,
) -> DataOptions:
    """Settings for the user's files (`[DOMAIN=]PATH`), or for the bundled texts where none are given."""
    return DataOptions(
        texts=Texts.FILES if data else Texts.BUNDLED,
        sources=tuple(data_source(entry) for entry in data),
        weights=tuple(sorted((weights or {}).items())),
        samples=samples,
        sample_tokens=sample_tokens,
        rows=rows,
        row_length=row_length,
        seed=seed,
    )


def data_source(entry: str | Path) -> DataSource:
    """`math=folder/x.jsonl`, `x.jsonl` or `bundled`; a path with an = before its first slash is written ./a=b.txt."""
    named = _NAMED.fullmatch(entry) if isinstance(entry, str) else None
    domain, path = named.groups() if named else (None, str(entry))
    return DataSource(path=path if path == BUNDLED else str(Path(path).resolve()), domain=domain)


def token_sets(settings: DataOptions, model_dir: Path) -> dict[Split, TokenSet]:
    """The four token sets of a model. Raises: DataError."""
    return dealt(read_samples(settings, model_dir), settings, ModelTokenizer(model_dir))


def read_samples(settings: DataOptions, model_dir: Path) -> Sequence[Sample]:
    """All that the token sets are dealt from. Raises: DataError."""
    if settings.texts is Texts.SMALL_MODEL:
        return small_model_documents(model_dir, settings.row_length)
    return read_sources(settings.sources or (DataSource(path=BUNDLED),), ModelTokenizer(model_dir))


def dealt(samples: Sequence[Sample], settings: DataOptions, tokenizer: ModelTokenizer) -> dict[Split, TokenSet]:
    """The four token sets of these samples. Raises: DataError, also for a weight of a domain that is not there."""
    rows = {split: settings.rows_of(split) for split in Split}
    named = tuple(dict.fromkeys(source.domain for source in settings.sources if source.domain is not None))
    cuts = Cuts(settings.samples, settings.sample_tokens, needed=named)
    return make_token_sets(
        samples, tokenizer, settings.row_length, rows, settings.seed, domain_weights(samples, settings), cuts
    )


def ids(tokens: TokenSet) -> torch.Tensor:
    """Token ids (rows, T) int64 as engines take them."""
    import torch

    return torch.from_numpy(tokens.ids)


def check_tokens(tokens: TokenSet, expected: str | None, where: str) -> None:
    """Check that texts are unchanged. Raises: DataError."""
    if expected is not None and tokens.info.sha256 != expected:
        raise DataError(
            "the texts or the tokenizer have changed since this file was written",
            where=where,
            fix="Bring the old texts back, or measure again",
        )


def domain_weights(samples: Sequence[Sample], settings: DataOptions) -> Mapping[str, float]:
    """Domain -> its weight. Raises: DataError for a weight of a domain that is not there."""
    domains = dict.fromkeys((sample.domain for sample in samples), 1.0)
    given = SHARES if settings.texts is Texts.SMALL_MODEL else dict(settings.weights)
    strangers = [domain for domain in given if domain not in domains]
    if strangers:
        raise DataError(
            f"there is no domain {strangers[0]!r} to give a weight to", fix=f"The domains are: {', '.join(domains)}"
        )
    return {domain: given.get(domain, share) for domain, share in domains.items()}
