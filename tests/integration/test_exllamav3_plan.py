"""Overheads and tensor-parallel splits against exllamav3's own shape-only code."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from exltune.budget import cache_bytes, model_profile, parse_cache, spread_bits
from exltune.budget.memory.profile import LayerProfile, ModelProfile
from exltune.budget.memory.transients import moe_transient
from exltune.budget.memory.weights import Weights
from exltune.budget.placement.demand import workload
from exltune.budget.placement.placement import place
from exltune.schema.hardware import Overheads, Use

GIB = 1 << 30
CONFIGS = Path(__file__).resolve().parents[1] / "fixtures" / "configs"


def profile(name: str) -> ModelProfile:
    return model_profile(json.loads((CONFIGS / f"{name}.json").read_text()))


def their_bound(layer: LayerProfile, rows: int, assignments: int) -> int:
    """BlockSparseMLP._prefill_bound, which takes shapes alone."""
    import torch
    from exllamav3.modules.block_sparse_mlp import BlockSparseMLP

    shape = layer.shape
    width, hidden = shape.expert_intermediate, shape.hidden
    block = types.SimpleNamespace(expert_size=hidden, interm_dtype=torch.half)
    dims = ((hidden, width), (hidden, width), (width, hidden), False)
    fixed, variable = BlockSparseMLP._prefill_bound(block, rows, assignments, width, dims)
    return int(fixed + variable)


@pytest.mark.parametrize("name", ["glm-4.7", "qwen3-30b-a3b", "mixtral-8x7b", "gpt-oss-120b", "kimi-k2"])
@pytest.mark.parametrize("chunk", [1, 256, 2048, 4096, 8192])
def test_prefill_of_routed_experts(exllamav3: types.ModuleType, name: str, chunk: int) -> None:
    layer = profile(name).layers[-1]
    theirs = their_bound(layer, chunk, chunk * layer.shape.experts_per_token)
    # They pad routed rows in floating point.
    assert moe_transient(layer.shape, chunk, Overheads()) == pytest.approx(theirs, abs=2 * 4 * layer.shape.hidden)


def test_known_prefill_bounds_of_glm_4_7() -> None:
    shape = profile("glm-4.7").layers[-1].shape
    assert [round(moe_transient(shape, chunk, Overheads()) / 2**20) for chunk in (2048, 4096)] == [908, 1320]


@pytest.mark.parametrize(("name", "kind"), [("glm-4.7", "full"), ("moonlight-16b-a3b", "mla"), ("gpt-oss-20b", "full")])
@pytest.mark.parametrize("pair", ["2,2", "5,4", "8,8", "fp16"])
def test_cache_of_a_layer(exllamav3: types.ModuleType, name: str, kind: str, pair: str) -> None:
    from exllamav3.cache import mla, quant
    from exllamav3.cache.fp16 import CacheLayer_fp16

    layer = next(found for found in profile(name).cache if found.kind == kind)
    widths = {"num_kv_heads": layer.kv_heads, "head_dim": layer.head_dim, "kv_lora_rank": layer.kv_lora_rank}
    plain = {"index_head_dim": 0, "index_kpool": 1, "indexer_mode": None, "idx_plane_dim": 0}
    attention = types.SimpleNamespace(**widths, **plain, qk_rope_head_dim=layer.qk_rope_head_dim)
    bits = parse_cache(pair)
    theirs = {
        ("full", True): quant.CacheLayer_quant,
        ("full", False): CacheLayer_fp16,
        ("mla", True): mla.CacheLayer_MLA_quant,
        ("mla", False): mla.CacheLayer_MLA_fp16,
    }[kind, bits.quantized]
    more = {"k_bits": bits.k, "v_bits": bits.v} if bits.quantized else {}
    made = theirs(None, attention, 0, 1024, **more)
    assert cache_bytes([layer], 1000, bits.k, bits.v) == made.storage_size()


def test_constants(exllamav3: types.ModuleType) -> None:
    from exllamav3.constants import PAGE_SIZE
    from exllamav3.modules import block_sparse_mlp, moe_batch_recon
    from exllamav3.modules.quant import exl3
    from exllamav3.util.memory import ARENA_BLOCK_BYTES

    from exltune.budget.memory import cache, transients

    ours = Overheads()
    assert cache.PAGE_TOKENS == PAGE_SIZE
    assert ours.arena_tail_bytes == ARENA_BLOCK_BYTES
    assert ours.fused_rows == block_sparse_mlp.FUSED_ROWS_WIDE
    assert ours.recon_batch == moe_batch_recon.RECON_BATCH
    assert ours.recon_rows == moe_batch_recon.RECON_ROWS
    assert ours.recon_bytes == moe_batch_recon.RECON_MB << 20
    assert transients._PADDING_TENTHS / 10 == moe_batch_recon.PAD_MAX
    assert transients._RECONSTRUCT_COLUMNS == exl3.MAX_RECONSTRUCT_SLICE_N


def their_components(found: ModelProfile, weights: Weights, kv: tuple[int, ...]) -> list[Any]:
    """What make_tp_allocation of Attention, GatedMLP, BlockSparseMLP and the head would say of a GLM-4.7."""
    from exllamav3.model.model_tp_alloc import TPAllocation

    def component(storage: int, channels: int, per_device: int = 0, most: int | None = None) -> Any:
        return TPAllocation(
            key=f"{len(made)}",
            channel_width=1,
            channel_unit="channels",
            storage_per_device=per_device,
            storage_to_split=storage,
            channels_to_split=channels,
            max_devices=most,
        )

    made: list[Any] = []
    size = found.sizes.group_bytes
    for layer, kv_bytes in zip(found.layers, kv, strict=True):
        parts: dict[str, int] = {}
        for group in found.inventory.groups:
            if group.id in layer.groups:
                parts[group.role.part] = parts.get(group.role.part, 0) + size(group.id, 3)
        made.append(component(parts["attn"] + kv_bytes, layer.cache.kv_heads, layer.plain_bytes))
        if "mlp" in parts:
            made.append(component(parts["mlp"], layer.shape.intermediate // 128))
        else:
            router = layer.fp16_bytes + layer.router_copies_bytes
            made.append(component(parts["experts"], layer.shape.experts, router))
            made.append(component(parts["shared"], 1, most=1))
    made.append(component(weights.head, found.inventory.vocab_size // 128))
    return made


@pytest.mark.parametrize("cards", [(48, 48, 48, 48), (96, 96), (24,) * 8, (80, 48, 48)])
def test_tensor_parallel_split(exllamav3: types.ModuleType, cards: tuple[int, ...]) -> None:
    """Storage on every card as the allocator of exllamav3 deals it: ours is above by little.

    Cards of different sizes get its whole pieces, the shared experts, one-sidedly: half a percent.
    """
    from exllamav3.model.model_tp_alloc import TPAllocator

    found = profile("glm-4.7")
    use = Use(context=65536, cache=parse_cache("5,4"), tensor_parallel=True)
    work, weights = workload(found, use, Overheads()), spread_bits(found, 3, 6)
    allocator = TPAllocator(their_components(found, weights, work.kv), use.chunk, 32)
    _, storage, _ = allocator.initial_split([card * GIB - work.per_card for card in cards])
    ours = place(work, weights, [card * GIB for card in cards])
    for card, theirs in zip(ours.cards, storage, strict=True):
        mine = card.weights_bytes + card.kv_bytes + sum(work.other) + found.final_bytes
        assert 0.995 * theirs <= mine <= theirs + 0.6 * GIB
        assert len(set(cards)) > 1 or theirs <= mine
