"""The tensors of a model from its shape: linears in forward order, and everything that is never quantized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from exltune.inventory.attention import attention_linears, attention_tensors
from exltune.inventory.config import ModelShape
from exltune.inventory.mlp import mlp_gates, mlp_linears, mlp_tensors
from exltune.schema.inventory import LinearSpec, Role

HEAD_KEY = "lm_head"


def linears(shape: ModelShape) -> Iterator[LinearSpec]:
    """Every linear in forward order, fp16 gates and the head included."""
    for layer in range(shape.layers):
        yield from attention_linears(shape, layer)
        yield from mlp_linears(shape, layer)
    yield LinearSpec(key=HEAD_KEY, role=Role.HEAD, layer=None, in_features=shape.hidden, out_features=shape.vocab)


def embedding_key(shape: ModelShape) -> str:
    """Name of the embedding's tensor."""
    return f"{shape.row.names.prefix}.embed_tokens.weight"


def unquantized_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that stays as it is: embedding, norms, routers and other fp16 gates, buffers.

    Biases of quantized linears are not here: they belong to their linears.
    """
    names = shape.row.names
    shapes: dict[str, tuple[int, ...]] = {embedding_key(shape): (shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"{names.prefix}.layers.{layer}"
        shapes |= {f"{prefix}.{norm}.weight": (shape.hidden,) for norm in names.norms}
        shapes |= attention_tensors(shape, layer)
        shapes |= _fp16_weights(attention_linears(shape, layer))
        if layer >= shape.dense_layers:
            shapes |= _fp16_weights(mlp_gates(shape, layer))
            shapes |= mlp_tensors(shape, layer)
    shapes[f"{names.prefix}.norm.weight"] = (shape.hidden,)
    return shapes


def parameters(shape: ModelShape, specs: Iterable[LinearSpec]) -> int:
    """Elements of all tensors that the model uses; a tied head counts once."""
    total = sum(prod(dims) for dims in unquantized_shapes(shape).values())
    for spec in specs:
        if spec.role.fp16 or (spec.role is Role.HEAD and shape.tied):
            continue
        total += spec.in_features * spec.out_features + spec.out_features * spec.bias
    return total


def _fp16_weights(specs: Iterator[LinearSpec]) -> dict[str, tuple[int, ...]]:
    return {f"{spec.key}.weight": (spec.out_features, spec.in_features) for spec in specs if spec.role.fp16}
