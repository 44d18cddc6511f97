"""The attention of a decoder layer, kind by kind: its linears, its other tensors, and its part of the cache.

Source: exllamav3 1.6.5, modules/{attn,sliding_attn,mla_attn,gated_delta_net}.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from exltune.inventory.config import Latent, LinearHeads, ModelShape, model_shape
from exltune.inventory.reader import text_reader
from exltune.schema.attention import CacheLayer
from exltune.schema.inventory import LinearSpec, Role

_PAGE = 256
#: Tokens that a sliding layer keeps beyond its window, for rollback (sliding_window_overp).
_SLACK = 2 * _PAGE


def cache_layers(config: Mapping[str, Any], where: str = "config.json") -> tuple[CacheLayer, ...]:
    """The state of every decoder layer, in order. Raises: UnsupportedArchitectureError, NotAModelError."""
    shape = model_shape(config, where)
    return tuple(_cache_layer(shape, layer) for layer in range(shape.layers))


def context_limit(config: Mapping[str, Any], where: str = "config.json") -> int | None:
    """The tokens that the model was made for (max_position_embeddings), None where its config does not say.

    Raises: NotAModelError.
    """
    reader = text_reader(config, where)
    return reader.number("max_position_embeddings") if reader.has("max_position_embeddings") else None


def attention_linears(shape: ModelShape, layer: int) -> Iterator[LinearSpec]:
    """The linears of one layer's attention in forward order, fp16 gates included."""
    if shape.attention[layer] == "linear":
        assert shape.linear is not None
        return _delta_net(shape, shape.linear, layer)
    if shape.attention[layer] == "mla":
        assert shape.latent is not None
        return _latent(shape, shape.latent, layer)
    return _grouped(shape, layer)


def attention_tensors(shape: ModelShape, layer: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of the other tensors of one layer's attention; fp16 linears are not among them."""
    prefix = attention_key(shape, layer)
    if shape.attention[layer] == "linear":
        assert shape.linear is not None
        heads = shape.linear
        shapes: dict[str, tuple[int, ...]] = {
            "conv1d.weight": (heads.qkv, 1, heads.kernel),
            "dt_bias": (heads.value_heads,),
            "A_log": (heads.value_heads,),
            "norm.weight": (heads.value_dim,),
        }
    elif shape.attention[layer] == "mla":
        assert shape.latent is not None
        shapes = _latent_tensors(shape, shape.latent)
    else:
        shapes = {f"{name}.weight": (shape.head_dim,) for name in ("q_norm", "k_norm") if shape.qk_norm}
        if shape.row.sinks:
            shapes["sinks"] = (shape.q_heads,)
    return {f"{prefix}.{name}": dims for name, dims in shapes.items()}


def attention_key(shape: ModelShape, layer: int) -> str:
    """Module key of one layer's attention."""
    name = "linear_attn" if shape.attention[layer] == "linear" else "self_attn"
    return f"{shape.row.names.prefix}.layers.{layer}.{name}"


def _grouped(shape: ModelShape, layer: int) -> Iterator[LinearSpec]:
    q, kv = shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    q_out = 2 * q if shape.row.gated_q else q
    for name, role, in_features, out_features, bias in (
        ("q_proj", Role.ATTN_Q, shape.hidden, q_out, shape.qkv_bias),
        ("k_proj", Role.ATTN_K, shape.hidden, kv, shape.qkv_bias),
        ("v_proj", Role.ATTN_V, shape.hidden, kv, shape.qkv_bias),
        ("o_proj", Role.ATTN_O, q, shape.hidden, shape.o_bias),
    ):
        yield _linear(shape, layer, name, role, in_features, out_features, bias)


def _latent(shape: ModelShape, latent: Latent, layer: int) -> Iterator[LinearSpec]:
    q, rank = shape.q_heads * shape.head_dim, latent.q_lora_rank
    if rank is None:
        yield _linear(shape, layer, "q_proj", Role.ATTN_Q, shape.hidden, q)
    else:
        yield _linear(shape, layer, "q_a_proj", Role.ATTN_Q_A, shape.hidden, rank, shape.qkv_bias)
        yield _linear(shape, layer, "q_b_proj", Role.ATTN_Q_B, rank, q)
    kv = latent.kv_lora_rank + latent.rope
    yield _linear(shape, layer, "kv_a_proj_with_mqa", Role.ATTN_KV_A, shape.hidden, kv, shape.qkv_bias)
    yield _linear(shape, layer, "o_proj", Role.ATTN_O, shape.q_heads * latent.v, shape.hidden, shape.o_bias)


def _latent_tensors(shape: ModelShape, latent: Latent) -> dict[str, tuple[int, ...]]:
    """exllamav3 folds kv_b into query and output and keeps it in fp16: no Linear of its module tree."""
    shapes: dict[str, tuple[int, ...]] = {
        "kv_a_layernorm.weight": (latent.kv_lora_rank,),
        "kv_b_proj.weight": (shape.q_heads * (latent.nope + latent.v), latent.kv_lora_rank),
    }
    if latent.q_lora_rank is not None:
        shapes["q_a_layernorm.weight"] = (latent.q_lora_rank,)
    return shapes


def _delta_net(shape: ModelShape, heads: LinearHeads, layer: int) -> Iterator[LinearSpec]:
    roles = {
        "in_proj_qkvz": (Role.ATTN_QKV, heads.qkv + heads.v),
        "in_proj_qkv": (Role.ATTN_QKV, heads.qkv),
        "in_proj_z": (Role.ATTN_Z, heads.v),
        "in_proj_ba": (Role.GATE, 2 * heads.value_heads),
        "in_proj_b": (Role.GATE, heads.value_heads),
        "in_proj_a": (Role.GATE, heads.value_heads),
    }
    for name in shape.row.names.linear:
        role, out_features = roles[name]
        yield _linear(shape, layer, name, role, shape.hidden, out_features)
    yield _linear(shape, layer, "out_proj", Role.ATTN_OUT, heads.v, shape.hidden)


def _linear(
    shape: ModelShape, layer: int, name: str, role: Role, in_features: int, out_features: int, bias: bool = False
) -> LinearSpec:
    key = f"{attention_key(shape, layer)}.{name}"
    return LinearSpec(key=key, role=role, layer=layer, in_features=in_features, out_features=out_features, bias=bias)


def _cache_layer(shape: ModelShape, layer: int) -> CacheLayer:
    kind = shape.attention[layer]
    if kind == "linear":
        assert shape.linear is not None
        return CacheLayer(layer=layer, kind=kind, state_bytes=_linear_state_bytes(shape.linear))
    if kind == "mla":
        assert shape.latent is not None
        rank, rope = shape.latent.kv_lora_rank, shape.latent.rope
        return CacheLayer(layer=layer, kind=kind, q_heads=shape.q_heads, kv_lora_rank=rank, qk_rope_head_dim=rope)
    return CacheLayer(
        layer=layer,
        kind=kind,
        q_heads=shape.q_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        v_head_dim=shape.head_dim,
        window=shape.window if kind == "sliding" else None,
        state_bytes=_ring_bytes(shape, shape.window) if kind == "sliding" and shape.window else 0,
    )


def _ring_bytes(shape: ModelShape, window: int) -> int:
    tokens = -(-(window - 1 + _SLACK) // _PAGE) * _PAGE
    return 2 * 2 * tokens * shape.kv_heads * shape.head_dim


def _linear_state_bytes(heads: LinearHeads) -> int:
    convolution = 2 * heads.qkv * heads.kernel
    recurrent = 2 * 2 * heads.value_heads * heads.key_dim * heads.value_dim
    staged = 2 * heads.qkv + (2 + 4) * heads.value_heads
    return convolution + recurrent + staged
