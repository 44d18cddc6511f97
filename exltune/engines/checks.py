"""Refusals of every engine before it works: tokens outside the vocabulary, mixes that it cannot make."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from exltune.errors import DataError, UsageError
from exltune.exl3.cache_quant import GROUP
from exltune.schema.inventory import Inventory
from exltune.schema.mix import CACHE_CHOICES, CACHE_K, CACHE_V, REFERENCE, Choice, Mix


def check_tokens(tokens: Tensor, inventory: Inventory, model_dir: Path) -> None:
    """Raise DataError unless tokens are rows (rows, T) of two or more ids of the vocabulary."""
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise DataError(f"tokens of shape {tuple(tokens.shape)} cannot be scored", fix="Give rows of 2 or more")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= inventory.vocab_size:
        raise DataError(
            f"token ids reach from {low} to {high}, the vocabulary has {inventory.vocab_size}",
            where=str(model_dir),
            fix="Use the tokenizer of this model",
        )


def check_mix(mix: Mix, inventory: Inventory, choices: Collection[Choice], head_dim: int) -> None:
    """Raise UsageError unless the mix gives every group one of `choices`, and the cache bits that it can have."""
    groups = {group.id for group in (*inventory.groups, inventory.head)}
    weights = {id_: choice for id_, choice in mix.choices.items() if id_ not in (CACHE_K, CACHE_V)}
    if weights.keys() != groups:
        missing, unknown = sorted(groups - weights.keys()), sorted(weights.keys() - groups)
        raise UsageError(f"groups without a choice: {missing}; unknown groups: {unknown}", where=f"mix {mix.name!r}")
    strangers = sorted(set(weights.values()) - set(choices))
    if strangers:
        have = ", ".join(sorted(choices))
        raise UsageError(f"choices without a quant: {strangers}", where=f"mix {mix.name!r}", fix=f"Given are {have}")
    _check_cache(mix, head_dim)


def _check_cache(mix: Mix, head_dim: int) -> None:
    for key, choice in zip((CACHE_K, CACHE_V), mix.cache, strict=True):
        if choice not in CACHE_CHOICES:
            raise UsageError(
                f"{key} cannot have {choice!r} bits",
                where=f"mix {mix.name!r}",
                fix=f"Choose one of {', '.join(CACHE_CHOICES)}",
            )
        if choice != REFERENCE and head_dim % GROUP:
            raise UsageError(
                f"{key} cannot be quantized: head_dim is {head_dim}, no multiple of {GROUP}",
                where=f"mix {mix.name!r}",
                fix=f"Leave {key} at {REFERENCE}",
            )
