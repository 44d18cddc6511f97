"""Token sets of a model from data settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from exltune.corpora import Document, TokenSet, make_token_sets, read_texts, small_model_documents
from exltune.corpora.sharp import SHARES
from exltune.errors import DataError
from exltune.schema.tokens import DataSettings, Split, Texts


def data_settings(paths: Sequence[Path], *, rows: int, row_length: int, seed: int = 0) -> DataSettings:
    """Settings for the user's files, or for the bundled texts where none are given."""
    texts = Texts.FILES if paths else Texts.BUNDLED
    absolute = tuple(str(path.resolve()) for path in paths)
    return DataSettings(texts=texts, paths=absolute, rows=rows, row_length=row_length, seed=seed)


def token_sets(settings: DataSettings, model_dir: Path) -> dict[Split, TokenSet]:
    """The four token sets of a model. Raises: DataError."""
    documents, shares = _documents(settings, model_dir)
    rows = {split: settings.rows_of(split) for split in Split}
    return make_token_sets(documents, model_dir, settings.row_length, rows, settings.seed, shares)


def ids(tokens: TokenSet) -> torch.Tensor:
    """Token ids (rows, T) int64 as engines take them."""
    return torch.from_numpy(tokens.ids)


def check_tokens(tokens: TokenSet, expected: str | None, where: Path) -> None:
    """Check that texts are still what they were. Raises: DataError."""
    if expected is not None and tokens.info.sha256 != expected:
        raise DataError(
            "the texts or the tokenizer have changed since this file was written",
            where=str(where),
            fix="Bring the old texts back, or measure again",
        )


def _documents(settings: DataSettings, model_dir: Path) -> tuple[list[Document], Mapping[str, float] | None]:
    if settings.texts is Texts.SMALL_MODEL:
        return small_model_documents(model_dir, settings.row_length), SHARES
    return read_texts(list(settings.paths) if settings.texts is Texts.FILES else None), None
