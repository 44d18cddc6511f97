"""Attention that reads keys and values through a quantized cache, as one of transformers' attention functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from exltune.exl3.cache_quant import fake_quantize_cache
from exltune.schema.mix import REFERENCE, CacheChoice

#: The name under which transformers finds it.
ATTENTION = "exltune_cache"

_KEYWORD = "exltune_cache"


def cache_keywords(cache: CacheChoice) -> Mapping[str, Any]:
    """Arguments of a decoder layer, beside its own, for this cache; none if unquantized.

    Decoder layers hand keywords that they do not know on to the attention function.
    """
    return {} if cache == (REFERENCE, REFERENCE) else {_KEYWORD: cache}


def cached_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """sdpa over the cache's rounded key and value (rows, kv_heads, T, head_dim), after norm and rotation.

    All positions are read from the cache, a token's own among them: exllamav3 quantizes the keys and values of a
    chunk into the cache before it attends to them.
    Source: exllamav3 1.6.5, modules/attn.py decode_flash_attn and _sim_kvq_inplace, modules/attention_fn/dispatch.py
    attn_dispatch (update_kv_direct, then get_qkv), triton_paged.py (dequant_cache_paged_window with kv_append_len).
    """
    k, v = kwargs.pop(_KEYWORD, (REFERENCE, REFERENCE))
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, _read(key, k), _read(value, v), attention_mask, **kwargs
    )
    return output


def _read(states: Tensor, choice: str) -> Tensor:
    return states if choice == REFERENCE else fake_quantize_cache(states, int(choice))


AttentionInterface.register(ATTENTION, cached_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
