"""What exllamav3 calls in its compiled extension, in torch on a CPU; same names, arguments and in-place outputs.

Sources: exllamav3_ext/{norm,rope,activation,routing,hgemm}.cu, quant/{reconstruct,hadamard,pack,quantize}.cu and
cache/q_cache.cu of exllamav3 1.6.5. fp16 inputs are computed in fp32 and rounded once, where the kernels round in
between.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from exltune.testing import cache_kernels
from tests.standin import trellis

#: The int8 router projection is a kernel of its own; without it exllamav3 routes on the half gate.
HAS_DET_GEMM = False

_NEOX = 2
_SIGMOID = 0


def __getattr__(name: str) -> Any:
    """exllamav3 takes functions by name before it calls them: what is absent complains only when called."""
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"the stand-in for exllamav3_ext has no {name}")

    return absent


# Trellis


def _codebook_name(mcg: bool, mul1: bool) -> str:
    return "mul1" if mul1 else "mcg" if mcg else "3inst"


def reconstruct(unpacked: Tensor, packed: Tensor, rate: float, mcg: bool, mul1: bool) -> None:
    """Rotated-basis weight (in, out) fp16 from trellis (in/16, out/16, 16 * rate)."""
    unpacked.copy_(torch.from_numpy(trellis.reconstruct(packed.numpy(), rate, _codebook_name(mcg, mul1))))


def reconstruct_slice(unpacked: Tensor, packed: Tensor, rate: float, mcg: bool, mul1: bool, start: int) -> None:
    """Columns start .. start + unpacked.shape[1] of the above."""
    tiles = packed[:, start // 16 : (start + unpacked.shape[1]) // 16].contiguous()
    reconstruct(unpacked, tiles, rate, mcg, mul1)


def reconstruct_had_slice(
    unpacked: Tensor, packed: Tensor, suh: Tensor, svh: Tensor, rate: float, mcg: bool, mul1: bool, start: int
) -> None:
    """Original-basis columns: diag(suh) H Ŵ H diag(svh)."""
    reconstruct_slice(unpacked, packed, rate, mcg, mul1, start)
    weight = _hadamard(_hadamard(unpacked.float()).T).T
    unpacked.copy_(suh.float()[:, None] * weight * svh.float()[: unpacked.shape[1]])


def pack_trellis(packed: Tensor, unpacked: Tensor, rate: float) -> None:
    """States (a, b, 256) int16 to tiles (a, b, 16 * rate)."""
    flat = trellis.pack(unpacked.reshape(-1, 256).numpy().view(np.uint16), rate)
    packed.copy_(torch.from_numpy(flat).view_as(packed))


def pack_trellis_frac(packed: Tensor, unpacked: Tensor, whole: int, mask: int) -> None:
    """As above, whole and whole + 1 bits in turn."""
    _check_mask(mask)
    pack_trellis(packed, unpacked, whole + 0.5)


def unpack_trellis(unpacked: Tensor, packed: Tensor, rate: float) -> None:
    """Tiles (a, b, 16 * rate) to states (a, b, 256) int16."""
    states = trellis.unpack(packed.reshape(-1, packed.shape[-1]).numpy(), rate)
    unpacked.copy_(torch.from_numpy(states.view(np.int16)).view_as(unpacked))


def unpack_trellis_frac(unpacked: Tensor, packed: Tensor, whole: int, mask: int) -> None:
    """As above, whole and whole + 1 bits in turn."""
    _check_mask(mask)
    unpack_trellis(unpacked, packed, whole + 0.5)


def _check_mask(mask: int) -> None:
    if mask != trellis.HALF_RATE_MASK:
        raise NotImplementedError(f"half rates with mask {mask:#x}")


def quantize_tiles_scratch(device: int, rate: int, mcg: bool, mul1: bool, length: int) -> tuple[bool, int]:
    """(small layout, tiles in flight): keeps the scratch that exllamav3 allocates small; it is not used here."""
    return True, 1


def quantize_tiles(
    tiles: Tensor, values: Tensor, states: Tensor, costs: Tensor, edges: Tensor, rate: float, mcg: bool, mul1: bool
) -> None:
    """Encode tiles (n, 256) with exltune's encoder; values are decoded by this stand-in's own codebook."""
    from exltune.exl3.trellis import encode_tiles

    name = _codebook_name(mcg, mul1)
    encoded = np.asarray(encode_tiles(tiles.numpy(), rate, name))
    values.copy_(torch.from_numpy(trellis.codebook(name)[encoded].astype(np.float32)))
    states.copy_(torch.from_numpy(encoded.view(np.int16)))


def quantize_tiles_frac(
    tiles: Tensor, values: Tensor, states: Tensor, costs: Tensor, edges: Tensor, whole: int, mask: int
) -> None:
    """As above at whole + 0.5 bits, mul1."""
    _check_mask(mask)
    quantize_tiles(tiles, values, states, costs, edges, whole + 0.5, False, True)


# Linear algebra


@lru_cache
def _hadamard_matrix() -> Tensor:
    sign = torch.ones(1, 1)
    while sign.shape[0] < 128:
        sign = torch.cat([torch.cat([sign, sign], 1), torch.cat([sign, -sign], 1)])
    return sign / 128**0.5


def _hadamard(rows: Tensor) -> Tensor:
    """H128 over the last dimension, in blocks; fp32."""
    return (rows.reshape(-1, 128) @ _hadamard_matrix()).view_as(rows)


def had_r_128(rows: Tensor, out: Tensor, pre: Tensor | None, post: Tensor | None, scale: float) -> None:
    """out = H128(rows * pre) * scale * post."""
    value = rows.float() if pre is None else rows.float() * pre.float()
    value = _hadamard(value) * scale
    out.copy_(value if post is None else value * post.float())


def hgemm(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b, accumulated in fp32."""
    out.copy_(a.float() @ b.float())


hgemm_recon = hgemm


class BC_LinearEXL3:
    """The bound class behind LinearEXL3 for few rows; decodes its trellis on first use."""

    def __init__(
        self,
        packed: Tensor,
        suh: Tensor,
        svh: Tensor,
        rate: float,
        bias: Tensor | None,
        mcg: bool,
        mul1: bool,
        scratch: Tensor,
    ) -> None:
        self._packed, self._suh, self._svh, self._bias = packed, suh, svh, bias
        self._rate, self._mcg, self._mul1 = rate, mcg, mul1
        self._weight: Tensor | None = None

    @property
    def width(self) -> int:
        """Columns of the output."""
        return int(self._svh.shape[0])

    def run_alloc(self, x: Tensor, out_features: int, fp32: bool) -> Tensor:
        """x (..., in) fp16 to (..., out)."""
        if self._weight is None:
            self._weight = torch.empty(self._suh.shape[0], self._svh.shape[0], dtype=torch.half)
            reconstruct(self._weight, self._packed, self._rate, self._mcg, self._mul1)
        rotated = torch.empty_like(x)
        had_r_128(x, rotated, self._suh, None, 1.0)
        y = torch.empty(*x.shape[:-1], out_features)
        had_r_128(rotated.float() @ self._weight.float(), y, None, self._svh, 1.0)
        y = y.to(torch.float if fp32 else torch.half)
        return y if self._bias is None else y.add_(self._bias)


class BC_LinearFP16:
    """The bound class behind LinearFP16; never run on a CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias


class BC_GatedMLP:
    """The bound class behind GatedMLP for up to 8 tokens, gate and up not fused; like pybind11 it takes EXL3 alone."""

    def __init__(self, *arguments: Any) -> None:
        self._gate, self._up, self._down, self._limit = arguments[-4:]
        if not all(isinstance(linear, BC_LinearEXL3) for linear in (self._gate, self._up, self._down)):
            raise TypeError("__init__(): incompatible constructor arguments")

    def run_bszN(self, x: Tensor, out: Tensor) -> None:
        """x (1, n, in) fp16 to out (1, n, out)."""
        gate, up = (linear.run_alloc(x, linear.width, False) for linear in (self._gate, self._up))
        silu_mul(gate, up, up, self._limit)
        out.copy_(self._down.run_alloc(up, out.shape[-1], out.dtype == torch.float))


# Norms, rope, activation


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    out: Tensor,
    epsilon: float,
    constant_bias: float,
    constant_scale: float,
    span_heads: bool,
    add_residual: bool,
    groups: int = 1,
) -> None:
    """out (+)= norm(x) * weight, rows of the last dimension."""
    if span_heads or groups != 1:
        raise NotImplementedError("norms over heads or in groups")
    y = _normed(x.float(), weight, epsilon, constant_bias) * constant_scale
    out.copy_(out + y if add_residual else y)


def rms_norm_res_in(
    x: Tensor,
    weight: Tensor | None,
    out: Tensor,
    residual: Tensor,
    epsilon: float,
    constant_bias: float,
    constant_scale: float,
) -> None:
    """residual += x, then out = norm(residual) * weight."""
    residual.add_(x)
    rms_norm(residual, weight, out, epsilon, constant_bias, constant_scale, False, False)


def _normed(x: Tensor, weight: Tensor | None, epsilon: float, constant_bias: float) -> Tensor:
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return y if weight is None else y * (weight.float() + constant_bias)


def rope(
    q: Tensor,
    out_q: Tensor,
    k: Tensor | None,
    out_k: Tensor | None,
    inv_freq: Tensor,
    position: int,
    positions: Tensor | None,
    position_ids: Tensor | None,
    style: int,
    attn_factor: float,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    norm_eps: float,
    norm_constant_bias: float,
    llama_4_beta: float,
    llama_4_original: int,
    rotate_dims: int,
    rotate_offset: int,
) -> None:
    """Norm each head, then rotate its first 2 * len(inv_freq) lanes; q (batch, tokens, heads, head_dim)."""
    plain = positions is None and position_ids is None and llama_4_beta <= 0 and inv_freq.dim() == 1
    if style != _NEOX or not plain or rotate_dims != 1 or rotate_offset != 0:
        raise NotImplementedError("only plain rope in the neox style")
    angle = (position + torch.arange(q.shape[1])).float()[:, None] * inv_freq.float()
    cos, sin = (f(angle)[:, None] * attn_factor for f in (torch.cos, torch.sin))
    lanes = inv_freq.shape[0]
    for source, target, weight in ((q, out_q, q_norm), (k, out_k, k_norm)):
        if source is None or target is None:
            continue
        x = source.float()
        if weight is not None:
            x = _normed(x, weight, norm_eps, norm_constant_bias).half().float()
        first, second, rest = x[..., :lanes], x[..., lanes : 2 * lanes], x[..., 2 * lanes :]
        target.copy_(torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1))


def silu_mul(gate: Tensor, up: Tensor, out: Tensor, limit: float) -> None:
    """out = silu(gate) * up."""
    if limit != 0.0:
        raise NotImplementedError("a limited activation")
    out.copy_(functional.silu(gate.float()) * up.float())


# Routing


def routing_std(
    hidden: Tensor,
    gate: Tensor,
    scores: Tensor,
    experts: Tensor,
    weights: Tensor,
    expert_scale: Tensor | None,
    gate_t: Tensor | None,
    bias: Tensor | None,
    gate_i8: Tensor | None,
    gate_sb: Tensor | None,
) -> None:
    """Softmax over the chosen experts; experts, weights (rows, top_k)."""
    if expert_scale is not None or bias is not None:
        raise NotImplementedError("scaled or biased routing")
    hgemm(hidden, gate, scores)
    top = scores.float().topk(experts.shape[1])
    experts.copy_(top.indices)
    weights.copy_(top.values.softmax(-1))


def routing_ds3_nogroup(
    hidden: Tensor,
    gate: Tensor,
    scores: Tensor,
    bias: Tensor | None,
    experts: Tensor,
    weights: Tensor,
    scaling: float,
    gate_t: Tensor | None,
    activation: int,
    gate_i8: Tensor | None,
    gate_sb: Tensor | None,
) -> None:
    """Sigmoid scores; the bias chooses, the unbiased scores of the chosen are normalized and scaled."""
    if activation != _SIGMOID:
        raise NotImplementedError("an activation other than sigmoid")
    hgemm(hidden, gate, scores)
    affinity = scores.float().sigmoid()
    biased = affinity if bias is None else affinity + bias.float()
    experts.copy_(biased.topk(experts.shape[1]).indices)
    chosen = affinity.gather(1, experts)
    weights.copy_(chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * scaling)


def count_inf_nan(x: Tensor, counts: Tensor) -> None:
    """counts (2,) += how many inf and NaN."""
    counts += torch.stack([torch.isinf(x).sum(), torch.isnan(x).sum()])


# Cache


def quant_cache_cont(x: Tensor, out: Tensor, scales: Tensor, compand_a: float) -> None:
    """Groups of 32 along the last dimension, fp16, to words (int32) and fp16 scales."""
    if compand_a != 0.0:
        raise NotImplementedError("a companded cache")
    words, found = cache_kernels.quantize(x.reshape(-1, 32).numpy(), out.shape[-1] // scales.shape[-1])
    out.copy_(torch.from_numpy(words.view(np.int32)).view_as(out))
    scales.copy_(torch.from_numpy(found).view_as(scales))


def dequant_cache_cont(words: Tensor, scales: Tensor, out: Tensor, compand_a: float) -> None:
    """The way back."""
    if compand_a != 0.0:
        raise NotImplementedError("a companded cache")
    bits = words.shape[-1] // scales.shape[-1]
    values = cache_kernels.dequantize(words.reshape(-1, bits).numpy().view(np.uint32), scales.reshape(-1).numpy(), bits)
    out.copy_(torch.from_numpy(values).view_as(out))
