"""Memory of a layer beside weights and cache: prefill transients, static buffers, copies; all from shapes.

Transients of different layers on one card do not overlap: a card needs the largest, not the sum.
Source: exllamav3 1.6.5, the function named at each.
"""

from __future__ import annotations

from dataclasses import dataclass

from exltune.schema.attention import CacheLayer
from exltune.schema.hardware import Overheads

_HALF, _FLOAT = 2, 4
#: modules/quant/exl3.py: MAX_RECONSTRUCT_SLICE_N, columns of a weight that are dequantized at once.
_RECONSTRUCT_COLUMNS = 32768
#: modules/moe_batch_recon.py: PAD_MAX, padded over real rows of a group of experts, in tenths.
_PADDING_TENTHS = 11
#: modules/attention_fn/mla_triton.py: rows of latent keys and values that are expanded at once.
_LATENT_TILE = 2048
#: modules/attn.py, autosplit_extra_measure: rows of an attention tile.
_TILE_ROWS = 128
#: exllamav3_ext/quant/exl3_moe_common.cuh: MOE_SMS_PER_EXPERT.
_MULTIPROCESSORS_PER_EXPERT = 8
#: model/moe_cpu_host.py: VRAM slots of streamed experts, as stored and in native order.
_STREAM_SLOTS = 4
#: model/moe_cpu_host.py: EXL3_MOE_CPU_SLOT_ROWS.
_STREAM_ROWS = 64
#: Bytes of index tensors for one routed row (block_sparse_mlp.py, make_tp_allocation).
_ROUTED_ROW_BYTES = 48


@dataclass(frozen=True)
class LayerShape:
    """Widths that transients follow from; 0 where a layer has none.

    attention_out: outputs of all attention projections together. attention_matrix, mlp_matrix: elements of the
    largest matrix that is dequantized whole. value_width: input of o_proj. intermediate: of a dense MLP or a
    shared expert.
    """

    hidden: int
    attention_out: int
    attention_matrix: int
    value_width: int
    intermediate: int
    mlp_matrix: int
    experts: int
    experts_per_token: int
    expert_intermediate: int


def matrix_elements(rows: int, columns: int) -> int:
    """Elements of a linear that are dequantized at once (reconstruct_hgemm)."""
    return rows * min(columns, _RECONSTRUCT_COLUMNS)


def layer_transient(shape: LayerShape, cache: CacheLayer, chunk: int, overheads: Overheads, offloaded: bool) -> int:
    """Bytes that a prefill of `chunk` tokens needs for a moment in this layer, the residual stream included."""
    stream = chunk * shape.hidden * (_HALF + _FLOAT)
    mlp = dense_transient(shape, chunk)
    if shape.experts:
        mlp = max(
            mlp, _offloaded_transient(shape, chunk, overheads) if offloaded else moe_transient(shape, chunk, overheads)
        )
    largest = max(attention_transient(shape, cache, chunk, overheads), mlp)
    return round(overheads.transient_factor * (stream + largest))


def attention_transient(shape: LayerShape, cache: CacheLayer, chunk: int, overheads: Overheads) -> int:
    """Projections and output of a chunk, and the larger of a dequantized weight and attention's work space.

    A quantized cache's window is staged as fp16 (triton_paged.py); an fp16 cache's window is gathered into the same
    on compute capability 7.5 alone, and is counted everywhere, so that more cache bits never need less.
    Source: modules/attn.py (autosplit_extra_measure, make_tp_allocation), attention_fn/mla_triton.py.
    """
    rows = chunk * _HALF * (shape.attention_out + shape.value_width)
    return rows + max(_HALF * shape.attention_matrix, _attention_workspace(shape, cache, chunk, overheads))


def _attention_workspace(shape: LayerShape, cache: CacheLayer, chunk: int, overheads: Overheads) -> int:
    if cache.kind == "linear":
        # The scan computes in fp32 on the projections' fp16 outputs (modules/gated_delta_net.py).
        return chunk * _FLOAT * shape.attention_out
    tiles = -(-chunk // _TILE_ROWS) * _TILE_ROWS
    if cache.kind == "mla":
        latent = _LATENT_TILE * _HALF * (cache.kv_lora_rank + cache.qk_rope_head_dim + 2 * shape.value_width)
        return latent + _FLOAT * (-(-chunk // _LATENT_TILE) * _LATENT_TILE) * shape.value_width
    width = cache.kv_heads * cache.head_dim
    if cache.kind == "sliding":
        return 2 * _HALF * (chunk + (cache.window or 0)) * width
    padded_head = 1 << (cache.head_dim - 1).bit_length()
    staged = 2 * _HALF * overheads.staging_pages * 256 * width
    return staged + _FLOAT * tiles * cache.q_heads * padded_head


def dense_transient(shape: LayerShape, chunk: int) -> int:
    """Gate, up and activation in fp32 and fp16, the output, a dequantized weight (modules/mlp.py)."""
    if not shape.intermediate:
        return 0
    rows = chunk * (shape.intermediate * (2 * _FLOAT + _HALF) + shape.hidden * _FLOAT)
    return rows + _HALF * shape.mlp_matrix


def moe_transient(
    shape: LayerShape,
    chunk: int,
    overheads: Overheads,
    assignments: int | None = None,
    experts_width: int | None = None,
) -> int:
    """The bound that exllamav3's loader reserves for routed experts: 908 MiB for GLM-4.7 at a chunk of 2048.

    assignments: routed rows, chunk x experts_per_token by default. experts_width: the local intermediate width.
    Source: modules/block_sparse_mlp.py (_prefill_bound), modules/moe_batch_recon.py (worst_case_bytes).
    """
    routed = chunk * shape.experts_per_token if assignments is None else assignments
    width = shape.expert_intermediate if experts_width is None else experts_width
    slots = (routed * _PADDING_TENTHS // 10 + 1) * shape.hidden * _FLOAT
    fixed = (chunk + 1) * shape.hidden * _FLOAT + chunk * shape.hidden * _HALF + slots
    rows = min(chunk, routed)
    per_expert = rows * (2 * width * _HALF + 2 * shape.hidden * _HALF + shape.hidden * _FLOAT)
    return fixed + max(per_expert, _batched(shape.hidden, width, routed, overheads))


def _batched(hidden: int, width: int, assignments: int, overheads: Overheads) -> int:
    """One group of experts whose weights are dequantized together."""
    per_expert = 2 * _HALF * hidden * width
    experts = max(1, min(overheads.recon_batch, overheads.recon_bytes // per_expert))
    longest = min(overheads.recon_rows, assignments)
    rows = min(experts * longest, overheads.recon_rows, assignments * _PADDING_TENTHS // 10 + longest)
    return experts * per_expert + rows * _HALF * (hidden + 2 * width)


def _offloaded_transient(shape: LayerShape, chunk: int, overheads: Overheads) -> int:
    """Experts that are streamed from system RAM through the card (model/moe_cpu_host.py, prefill_worst_case_parts)."""
    hidden, routed = shape.hidden, chunk * shape.experts_per_token
    outputs = (chunk + min(_STREAM_ROWS, chunk) + (chunk + 1) + chunk) * hidden * _FLOAT
    fixed = outputs + (chunk + 1) * hidden * _HALF + routed * 32
    rows = min(chunk, routed)
    per_expert = rows * (_HALF * hidden + 2 * _HALF * shape.expert_intermediate + _FLOAT * hidden)
    longest = min(overheads.recon_rows, routed)
    padded = min(overheads.recon_batch * longest, overheads.recon_rows, routed * _PADDING_TENTHS // 10 + longest)
    batched = _batched(hidden, shape.expert_intermediate, routed, overheads) + padded * hidden * _FLOAT
    return fixed + max(per_expert, batched)


def static_buffers(shape: LayerShape, overheads: Overheads, offloaded: bool) -> int:
    """Buffers that all MoE layers of a card share: the fused kernel's, one expert's weight, slots of streamed experts.

    Source: modules/block_sparse_mlp.py (load_local), model/moe_cpu_host.py (_device_buffers).
    """
    if not shape.experts:
        return 0
    matrix = _HALF * shape.hidden * shape.expert_intermediate
    if offloaded:
        return round(overheads.static_factor * (_STREAM_SLOTS * overheads.offload_slot_bytes + matrix))
    concurrent = overheads.multiprocessors // _MULTIPROCESSORS_PER_EXPERT
    fused = concurrent * overheads.fused_rows * 2 * _HALF * (shape.hidden + shape.expert_intermediate)
    return round(overheads.static_factor * (fused + matrix))


def routing_rows(shape: LayerShape, chunk: int) -> int:
    """Index tensors of a chunk's routing under tensor parallelism, on every card."""
    return chunk * shape.experts_per_token * _ROUTED_ROW_BYTES


def head_transient(hidden: int, vocabulary: int, overheads: Overheads) -> int:
    """Logits of the rows that are asked for, in fp16 and fp32; so few rows dequantize no weight."""
    return overheads.output_rows * (vocabulary * (_HALF + _FLOAT) + hidden * _HALF)
