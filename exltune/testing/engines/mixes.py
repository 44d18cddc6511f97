"""Mixes of tiny models."""

from __future__ import annotations

import random

from exltune.schema.mix import CACHE_K, CACHE_V, Mix
from exltune.testing.tiny_models import TinyModel


def uniform(model: TinyModel, choice: str, **changes: str) -> Mix:
    """All groups at one choice but for the changes (`**{"1.attn.q": "2"}`)."""
    return Mix(name=f"{choice}{changes}", choices=dict.fromkeys(_groups(model), choice) | changes)


def random_mixes(model: TinyModel, count: int, seed: int = 0) -> list[Mix]:
    """Mixes with a random choice for each group."""
    draw = random.Random(seed)
    ids = _groups(model)
    return [Mix(name=f"random {n}", choices={id_: draw.choice(["2", "3", "16"]) for id_ in ids}) for n in range(count)]


def cached(mix: Mix, k: str | None = None, v: str | None = None) -> Mix:
    """A mix with bits for the cache's keys and values; None names none."""
    bits = {key: choice for key, choice in ((CACHE_K, k), (CACHE_V, v)) if choice is not None}
    return Mix(name=f"{mix.name}, cache {k},{v}", choices=mix.choices | bits)


def _groups(model: TinyModel) -> list[str]:
    return [group.id for group in (*model.inventory.groups, model.inventory.head)]
