"""A model as the planner sees it, from its config alone: weights, state and needs of every layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from exltune.budget.memory.transients import LayerShape, matrix_elements
from exltune.budget.size import SizeModel
from exltune.exl3.codebooks import Codebook
from exltune.exl3.writer import KEPT_IN_FP32
from exltune.inventory import cache_layers, context_limit, inventory_from_config, model_shape
from exltune.inventory.layout import embedding_key, unquantized_shapes
from exltune.inventory.reader import text_reader
from exltune.schema.attention import CacheLayer
from exltune.schema.inventory import Inventory, LinearSpec, Role

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_HALF, _FLOAT = 2, 4
#: Experts per token where a config does not say; only prefill transients follow from it.
_EXPERTS_PER_TOKEN = 8
_EXPERTS = (Role.EXPERTS_GATE_UP, Role.EXPERTS_DOWN)


@dataclass(frozen=True)
class LayerProfile:
    """One decoder layer. Bytes: `fp16` of its router and gates, `plain` of its norms and buffers.

    routers: bytes of the copies of its router that exllamav3 makes beside it (fp16 transposed, int8 twice).
    groups: ids of its groups; experts: those of them that can be offloaded.
    """

    groups: tuple[str, ...]
    experts: tuple[str, ...]
    fp16_bytes: int
    plain_bytes: int
    router_copies_bytes: int
    cache: CacheLayer
    shape: LayerShape


@dataclass(frozen=True)
class ModelProfile:
    """A model under one codebook. embedding_bytes lie in system RAM, final_bytes (the last norm) beside the head."""

    inventory: Inventory
    sizes: SizeModel
    layers: tuple[LayerProfile, ...]
    embedding_bytes: int
    final_bytes: int
    context_limit: int | None

    @property
    def plain_bytes(self) -> int:
        """All tensors that are not linears: the bytes of a directory beside its weights_bytes."""
        return self.embedding_bytes + self.final_bytes + sum(layer.plain_bytes for layer in self.layers)

    @property
    def cache(self) -> tuple[CacheLayer, ...]:
        """The state of every layer."""
        return tuple(layer.cache for layer in self.layers)


def model_profile(config: Mapping[str, Any], codebook: Codebook = "mul1", where: str = "config.json") -> ModelProfile:
    """The profile of a model. Raises: UnsupportedArchitectureError, NotAModelError naming the missing field."""
    inventory = inventory_from_config(config, where)
    plain, embedding = _plain_bytes(config, inventory, where)
    specs: dict[int | None, list[LinearSpec]] = {}
    for spec in inventory.linears:
        specs.setdefault(spec.layer, []).append(spec)
    top_k = text_reader(config, where).number("num_experts_per_tok", "experts_per_token", _EXPERTS_PER_TOKEN)
    return ModelProfile(
        inventory=inventory,
        sizes=SizeModel(inventory, codebook),
        layers=tuple(
            _layer(inventory, cache, specs[cache.layer], plain[cache.layer], top_k)
            for cache in cache_layers(config, where)
        ),
        embedding_bytes=embedding,
        final_bytes=plain[None],
        context_limit=context_limit(config, where),
    )


def _plain_bytes(config: Mapping[str, Any], inventory: Inventory, where: str) -> tuple[dict[int | None, int], int]:
    """Bytes of the tensors that belong to no linear, as exltune writes them: by layer, and of the embedding.

    None stands for tensors in no layer: the last norm.
    """
    shape = model_shape(config, where)
    owned = {f"{spec.key}.{part}" for spec in inventory.linears if spec.role.fp16 for part in ("weight", "bias")}
    sizes = {
        name: prod(dims) * (_FLOAT if name.endswith(KEPT_IN_FP32) else _HALF)
        for name, dims in unquantized_shapes(shape).items()
        if name not in owned
    }
    embedding = sizes.pop(embedding_key(shape))
    by_layer: dict[int | None, int] = {}
    for name, size in sizes.items():
        layer = _layer_of(name)
        by_layer[layer] = by_layer.get(layer, 0) + size
    return by_layer, embedding


def _layer_of(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _layer(
    inventory: Inventory, cache: CacheLayer, specs: Sequence[LinearSpec], plain_bytes: int, experts_per_token: int
) -> LayerProfile:
    groups = [group for group in inventory.groups if group.layer == cache.layer]
    routers = [spec for spec in specs if spec.role is Role.ROUTER]
    return LayerProfile(
        groups=tuple(group.id for group in groups),
        experts=tuple(group.id for group in groups if group.role in _EXPERTS),
        fp16_bytes=sum(_fp16_bytes(spec) for spec in specs if spec.role.fp16),
        plain_bytes=plain_bytes,
        router_copies_bytes=sum(2 * _HALF * spec.in_features * spec.out_features for spec in routers),
        cache=cache,
        shape=_shape(inventory.hidden_size, specs, experts_per_token),
    )


def _fp16_bytes(spec: LinearSpec) -> int:
    return _HALF * (spec.in_features * spec.out_features + spec.out_features * spec.bias)


def _shape(hidden: int, specs: Sequence[LinearSpec], experts_per_token: int) -> LayerShape:
    attention = [spec for spec in specs if spec.role.part == "attn"]
    mlp = [spec for spec in specs if spec.role.part in ("mlp", "shared")]
    outputs = [spec for spec in attention if spec.role in (Role.ATTN_O, Role.ATTN_OUT)]
    experts = [spec for spec in specs if spec.role is Role.EXPERTS_DOWN]
    return LayerShape(
        hidden=hidden,
        attention_out=sum(spec.padded_out for spec in attention),
        attention_matrix=_largest_matrix(attention),
        value_width=max((spec.padded_in for spec in outputs), default=0),
        intermediate=max((spec.padded_in for spec in mlp if spec.role in (Role.MLP_DOWN, Role.SHARED_DOWN)), default=0),
        mlp_matrix=_largest_matrix(mlp),
        experts=len(experts),
        experts_per_token=experts_per_token if experts else 0,
        expert_intermediate=experts[0].padded_in if experts else 0,
    )


def _largest_matrix(specs: Iterable[LinearSpec]) -> int:
    return max((matrix_elements(spec.padded_in, spec.padded_out) for spec in specs), default=0)
