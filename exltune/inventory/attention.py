"""What the attention layers of a model keep in the cache, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exltune.inventory.config import model_shape, text_reader
from exltune.schema.attention import CacheLayer


def cache_layers(config: Mapping[str, Any], where: str = "config.json") -> tuple[CacheLayer, ...]:
    """What every decoder layer keeps, in order. Raises: UnsupportedArchitectureError, NotAModelError."""
    shape = model_shape(config, where)
    return tuple(
        CacheLayer(
            layer=layer,
            kind="full",
            q_heads=shape.q_heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            v_head_dim=shape.head_dim,
        )
        for layer in range(shape.layers)
    )


def context_limit(config: Mapping[str, Any], where: str = "config.json") -> int | None:
    """The tokens that the model was made for (max_position_embeddings), None where its config does not say.

    Raises: NotAModelError.
    """
    reader = text_reader(config, where)
    return reader.int("max_position_embeddings") if reader.has("max_position_embeddings") else None
