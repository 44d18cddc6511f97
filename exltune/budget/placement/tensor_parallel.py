"""Tensor parallelism: attention by heads, routed experts by number, dense matrices by columns."""

from __future__ import annotations

from collections.abc import Sequence

from exltune.budget.memory.profile import LayerProfile
from exltune.budget.memory.transients import (
    attention_transient,
    dense_transient,
    head_transient,
    moe_transient,
    routing_rows,
)
from exltune.budget.memory.weights import Weights
from exltune.budget.placement.demand import Workload
from exltune.budget.placement.split import Load

_HALF, _FLOAT = 2, 4


def parallel_loads(work: Workload, weights: Weights, capacities: Sequence[int]) -> list[Load]:
    """Bytes on each card; capacities without the bytes that every card keeps free.

    exllamav3's allocator goes from component to component and deals its channels by the memory that is left, so the
    cards end level, each in proportion to its memory, to one channel: the largest is added. Norms, router gates and
    their copies lie on every card; latent attention and a shared expert stay whole and count as one channel. Of cards
    of different sizes the largest can get half a percent more than this, which the reserve covers.
    A card's overhead is the largest of all components.
    Source: exllamav3 1.6.5, model/model_tp_alloc.py (initial_split), make_tp_allocation of modules/{attn,mla_attn,
    gated_delta_net,mlp,block_sparse_mlp,linear}.py.
    """
    on_every_card = sum(layer.fp16_bytes for layer in work.profile.layers)
    other = sum(work.other) + work.profile.final_bytes
    usable = [max(capacity - on_every_card - other - max(work.static), 0) for capacity in capacities]
    total = max(sum(usable), 1)
    split_weights = weights.total - on_every_card
    channel = _largest_channel(work, weights)
    return [
        Load(
            weights=on_every_card + -(-split_weights * card // total) + channel,
            kv=-(-work.kv_bytes * card // total),
            other=other,
            static=max(work.static),
            transient=_transient(work, card, total),
        )
        if card
        else Load()
        for card in usable
    ]


def _largest_channel(work: Workload, weights: Weights) -> int:
    sizes = zip(work.profile.layers, weights.layers, weights.experts, work.kv, strict=True)
    return max(max(_channels(layer, size, experts, kv)) for layer, size, experts, kv in sizes)


def _channels(layer: LayerProfile, size: int, experts: int, kv: int) -> tuple[int, int]:
    """Bytes of one expert, and of the largest piece of all else: a head with its cache, or one that stays whole."""
    rest = size - experts - layer.fp16_bytes
    heads = layer.cache.kv_heads
    return experts // max(layer.shape.experts, 1), max(rest, (rest + kv) // heads) if heads else rest + kv


def _transient(work: Workload, card: int, total: int) -> int:
    inventory, chunk = work.profile.inventory, work.use.chunk
    stream = chunk * inventory.hidden_size * (_HALF + _FLOAT)
    layers = max(_layer_transient(work, layer, card, total) for layer in work.profile.layers)
    head = head_transient(inventory.hidden_size, inventory.vocab_size, work.overheads)
    return round(work.overheads.transient_factor * (stream + max(layers, head)))


def _layer_transient(work: Workload, layer: LayerProfile, card: int, total: int) -> int:
    shape, chunk = layer.shape, work.use.chunk
    heads = layer.cache.kv_heads or 1
    local_heads = -(-heads * card // total)
    attention = attention_transient(shape, layer.cache, chunk, work.overheads) * local_heads // heads
    mlp = -(-dense_transient(shape, chunk) * card // total)
    if shape.experts:
        routed = -(-chunk * shape.experts_per_token * card // total)
        mlp = max(mlp, moe_transient(shape, chunk, work.overheads, routed) + routing_rows(shape, chunk))
    return max(attention, mlp)
