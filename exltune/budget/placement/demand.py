"""Memory of a quant in use: piece by piece for layers on cards, and in system RAM."""

from __future__ import annotations

from dataclasses import dataclass

from exltune.budget.memory.cache import PAGE_TOKENS, layer_bytes_per_token
from exltune.budget.memory.profile import LayerProfile, ModelProfile
from exltune.budget.memory.transients import head_transient, layer_transient, static_buffers
from exltune.budget.memory.weights import Weights
from exltune.budget.placement.split import Piece
from exltune.schema.hardware import Overheads, Use


@dataclass(frozen=True)
class Workload:
    """A model in use, with all that does not depend on its bits computed once: per layer and for the head."""

    profile: ModelProfile
    use: Use
    overheads: Overheads
    kv: tuple[int, ...]
    other: tuple[int, ...]
    static: tuple[int, ...]
    transient: tuple[int, ...]
    offloaded: tuple[bool, ...]

    @property
    def kv_bytes(self) -> int:
        """The cache and all states."""
        return sum(self.kv)

    @property
    def per_card(self) -> int:
        """Memory that every card keeps free or holds before its first layer.

        The reserve and the margin are the same free memory twice (model_ls.py checks both): the larger one counts.
        """
        sizes = self.overheads
        return sizes.context_bytes + max(sizes.reserve_bytes, sizes.margin_bytes) + sizes.arena_tail_bytes


def workload(profile: ModelProfile, use: Use, overheads: Overheads) -> Workload:
    """Everything but the weights. See check_use for the conditions on a use."""
    offloaded = _offloaded(profile, use.offload_layers)
    layers = list(zip(profile.layers, offloaded, strict=True))
    return Workload(
        profile=profile,
        use=use,
        overheads=overheads,
        kv=tuple(kv_bytes(layer, use) for layer in profile.layers),
        other=tuple(layer.plain_bytes + layer.router_copies_bytes for layer in profile.layers),
        static=tuple(static_buffers(layer.shape, overheads, away) for layer, away in layers),
        transient=tuple(
            layer_transient(layer.shape, layer.cache, use.chunk, overheads, away) for layer, away in layers
        ),
        offloaded=offloaded,
    )


def kv_bytes(layer: LayerProfile, use: Use) -> int:
    """One layer's cache at the context, in whole pages, and its states for all slots; 0 where no context is asked."""
    if use.context is None:
        return 0
    tokens = -(-use.context // PAGE_TOKENS) * PAGE_TOKENS
    per_token = layer_bytes_per_token(layer.cache, use.cache.k, use.cache.v)
    return tokens * per_token + use.slots * layer.cache.state_bytes


def pieces(work: Workload, weights: Weights) -> list[Piece]:
    """Every layer and, last, the head, as they lie on cards; offloaded experts leave their scales there."""
    inventory = work.profile.inventory
    away = _experts_in_ram(work, weights)
    on_cards = [size - gone for size, gone in zip(weights.layers, away, strict=True)]
    layers = [Piece(*sizes) for sizes in zip(on_cards, work.kv, work.other, work.static, work.transient, strict=True)]
    transient = head_transient(inventory.hidden_size, inventory.vocab_size, work.overheads)
    return [*layers, Piece(weights.head, 0, work.profile.final_bytes, 0, transient)]


def ram_bytes(work: Workload, weights: Weights) -> int:
    """System RAM for the embedding and offloaded experts."""
    return work.profile.embedding_bytes + sum(_experts_in_ram(work, weights))


def _experts_in_ram(work: Workload, weights: Weights) -> list[int]:
    """Trellises of offloaded experts; their scales and biases stay on the card (load_cpu_offload)."""
    scales = work.profile.sizes.group_bytes
    return [
        size - sum(scales(name, 0) for name in layer.experts) if away else 0
        for layer, size, away in zip(work.profile.layers, weights.experts, work.offloaded, strict=True)
    ]


def _offloaded(profile: ModelProfile, count: int) -> tuple[bool, ...]:
    """The first MoE layers in loading order (block_sparse_mlp_cpu.py, cpu_maybe_offload_load)."""
    flags, left = [], count
    for layer in profile.layers:
        away = bool(layer.experts) and left > 0
        flags.append(away)
        left -= away
    return tuple(flags)
