"""The tensors of a model from its shape: linears in forward order, and everything that is never quantized."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from exltune.inventory.config import ModelShape
from exltune.schema.inventory import LinearSpec, Role

HEAD_KEY = "lm_head"
EMBEDDING = "model.embed_tokens.weight"


def linears(shape: ModelShape) -> Iterator[LinearSpec]:
    """Every linear in forward order, router gates and the head included."""
    for layer in range(shape.layers):
        yield from _attention(shape, layer)
        if layer < shape.dense_layers:
            prefix = f"model.layers.{layer}.mlp"
            roles = (Role.MLP_GATE_UP, Role.MLP_DOWN)
            yield from _gated_mlp(prefix, layer, roles, shape.hidden, shape.dense_intermediate, shape.mlp_bias)
        else:
            yield from _sparse_mlp(shape, layer)
    yield LinearSpec(key=HEAD_KEY, role=Role.HEAD, layer=None, in_features=shape.hidden, out_features=shape.vocab)


def unquantized_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that stays as it is: embedding, norms, routers and their buffers.

    Biases are not here: they belong to their linears.
    """
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (shape.hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (shape.hidden,)
        if shape.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (shape.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (shape.head_dim,)
        if layer >= shape.dense_layers:
            shapes[f"{prefix}.mlp.gate.weight"] = (shape.experts, shape.hidden)
            shapes |= {f"{prefix}.mlp.gate.{name}": (shape.experts,) for name in shape.row.router_buffers}
    shapes["model.norm.weight"] = (shape.hidden,)
    return shapes


def parameters(shape: ModelShape) -> int:
    """Elements of all tensors that the model uses; a tied head counts once."""
    total = sum(prod(dims) for dims in unquantized_shapes(shape).values())
    for spec in linears(shape):
        if spec.role is Role.ROUTER or (spec.role is Role.HEAD and shape.tied):
            continue
        total += spec.in_features * spec.out_features + spec.out_features * spec.bias
    return total


def _attention(shape: ModelShape, layer: int) -> Iterator[LinearSpec]:
    q, kv = shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for name, role, in_features, out_features, bias in (
        ("q_proj", Role.ATTN_Q, shape.hidden, q, shape.qkv_bias),
        ("k_proj", Role.ATTN_KV, shape.hidden, kv, shape.qkv_bias),
        ("v_proj", Role.ATTN_KV, shape.hidden, kv, shape.qkv_bias),
        ("o_proj", Role.ATTN_O, q, shape.hidden, shape.o_bias),
    ):
        yield LinearSpec(
            key=f"model.layers.{layer}.self_attn.{name}",
            role=role,
            layer=layer,
            in_features=in_features,
            out_features=out_features,
            bias=bias,
        )


def _gated_mlp(
    prefix: str, layer: int, roles: tuple[Role, Role], hidden: int, intermediate: int, bias: bool
) -> Iterator[LinearSpec]:
    gate_up, down = roles
    for name, role, in_features, out_features in (
        ("gate_proj", gate_up, hidden, intermediate),
        ("up_proj", gate_up, hidden, intermediate),
        ("down_proj", down, intermediate, hidden),
    ):
        yield LinearSpec(
            key=f"{prefix}.{name}",
            role=role,
            layer=layer,
            in_features=in_features,
            out_features=out_features,
            bias=bias,
        )


def _sparse_mlp(shape: ModelShape, layer: int) -> Iterator[LinearSpec]:
    prefix = f"model.layers.{layer}.mlp"
    yield LinearSpec(
        key=f"{prefix}.gate",
        role=Role.ROUTER,
        layer=layer,
        in_features=shape.hidden,
        out_features=shape.experts,
    )
    if shape.shared_intermediate:
        roles = (Role.SHARED_GATE_UP, Role.SHARED_DOWN)
        shared = f"{prefix}.shared_experts"
        yield from _gated_mlp(shared, layer, roles, shape.hidden, shape.shared_intermediate, False)
    roles = (Role.EXPERTS_GATE_UP, Role.EXPERTS_DOWN)
    for expert in range(shape.experts):
        key = f"{prefix}.experts.{expert}"
        yield from _gated_mlp(key, layer, roles, shape.hidden, shape.moe_intermediate, False)
