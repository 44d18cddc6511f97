"""The source of token sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from exltune.corpora.tokenizer import ModelTokenizer


class Sample(Protocol):
    """A document of one domain that stays together in one token set; `id` names it within the domain."""

    @property
    def domain(self) -> str:
        """Its kind."""
        ...

    @property
    def id(self) -> str:
        """Its name."""
        ...

    def encode(self, tokenizer: ModelTokenizer) -> Sequence[int]:
        """Its token ids. Raises: DataError naming the file and the row, where they cannot be made."""
        ...
