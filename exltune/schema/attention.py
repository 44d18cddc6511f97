"""State of one decoder layer's attention between tokens, as exllamav3 allocates it."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record


class CacheLayer(Record):
    """State of one decoder layer; the unused fields of a kind are 0.

    `full`: k and v of every token, `kv_heads` x `head_dim` each (exllamav3 pads v to k's head_dim), also where a
    `window` is set that only masks. `mla`: one latent of `kv_lora_rank` (quantized at the k bits) and one fp16 key of
    `qk_rope_head_dim` per token. `sliding` and `linear` keep nothing per token: `state_bytes` per sequence slot, which
    no cache bits change and of which exllamav3's Cache allocates `max_batch_size` (16 by default).

    A `sliding` slot is a ring of fp16 k and v: the window less one, and two pages for rollback, in whole pages of 256
    tokens. A `linear` slot is the bf16 convolution input (qkv channels x kernel), two fp16 rows of the recurrent state
    (value heads x key dim x value dim), and the inputs of one staged step (bf16 qkv and beta, fp32 g); speculative
    decoding adds to it and is not counted.
    Source: exllamav3 1.6.5, cache/{fp16,quant,mla,cache}.py, modules/sliding_attn.py (SWALayerState) and
    modules/gated_delta_net.py (GDNLayerState, recurrent_dtype as in Cache).
    """

    layer: int
    kind: Literal["full", "sliding", "mla", "linear"]
    q_heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    window: int | None = None
    state_bytes: int = 0
