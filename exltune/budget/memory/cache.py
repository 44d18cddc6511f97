"""Bytes of the KV cache and of the states beside it, as exllamav3 allocates them."""

from __future__ import annotations

from collections.abc import Iterable

from exltune.schema.attention import CacheLayer
from exltune.schema.mix import UNQUANTIZED_BITS

#: Tokens of a cache page (constants.py, PAGE_SIZE).
PAGE_TOKENS = 256
#: Elements that share one fp16 scale.
_SCALE_GROUP = 32


def cache_bytes(layers: Iterable[CacheLayer], tokens: int, k_bits: int, v_bits: int, slots: int = 0) -> int:
    """Bytes of the cache of these layers for that many tokens, in whole pages of 256, and of `slots` states.

    k_bits, v_bits: 2..8 each, or 16 both. Latent attention quantizes its latent at k_bits and has no v.
    Source: exllamav3 1.6.5, cache/{quant,fp16,mla,cache}.py (storage_size); DESIGN.md section 6.
    """
    pages = -(-tokens // PAGE_TOKENS)
    return sum(
        pages * PAGE_TOKENS * layer_bytes_per_token(layer, k_bits, v_bits) + slots * layer.state_bytes
        for layer in layers
    )


def cache_bytes_per_token(layers: Iterable[CacheLayer], k_bits: int, v_bits: int) -> int:
    """Bytes that one more token takes in all layers, were pages not whole."""
    return sum(layer_bytes_per_token(layer, k_bits, v_bits) for layer in layers)


def layer_bytes_per_token(layer: CacheLayer, k_bits: int, v_bits: int) -> int:
    """Bytes of one token in one layer; 0 where only a state per sequence is kept."""
    if layer.kind == "full":
        # exllamav3 pads v to the width of k.
        width = layer.kv_heads * layer.head_dim
        return _row_bytes(width, k_bits) + _row_bytes(width, v_bits)
    if layer.kind == "mla":
        return _row_bytes(layer.kv_lora_rank, k_bits) + 2 * layer.qk_rope_head_dim
    return 0


def _row_bytes(width: int, bits: int) -> int:
    """Packed 32-bit words and one fp16 scale for every 32 elements."""
    if bits == UNQUANTIZED_BITS:
        return 2 * width
    return width // _SCALE_GROUP * (4 * bits + 2)
