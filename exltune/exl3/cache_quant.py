"""exllamav3's quantized KV cache as it returns values: groups of 32, rotated, scaled by their largest, rounded."""

from __future__ import annotations

import torch
from torch import Tensor

#: Values that share a scale.
GROUP = 32

_ROOT = GROUP**-0.5


def fake_quantize_cache(x: Tensor, bits: int) -> Tensor:
    """Quantize and dequantize the groups of 32 along the last dimension: (..., n * 32) float32 -> the same shape.

    The input is rounded to fp16, as the kernel reads it, and so is the result. A group is rotated by
    H32 / sqrt(32) and divided by its largest magnitude; the grid is that of midpoints, (2q + 1) / 2^bits - 1, so it has
    no zero. Values are divided by the scale in fp32, and multiplied by the scale in fp16. All sums are taken in the
    kernel's order: the result is the kernel's bit for bit where division is IEEE's (--use_fast_math takes a reciprocal
    that may be an ulp off, and then a value on the border of two cells may fall to the other side).
    Source: exllamav3 1.6.5, exllamav3_ext/cache/q_cache_kernels.cuh quant_block_x4 and dequant_block_x4, compand_a 0.
    """
    half_steps = float(1 << (bits - 1))
    # (32, groups): every operation then runs over long rows.
    groups = x.half().reshape(-1, GROUP).T.to(torch.float32, memory_format=torch.contiguous_format)
    rotated = _butterfly(groups).mul_(_ROOT)
    scale = rotated.abs().amax(0).add_(1e-10)
    index = rotated.mul_(scale.reciprocal()).mul_(half_steps).add_(half_steps).floor_()
    index.clamp_(0.0, 2.0 * half_steps - 1.0)
    step = scale.half().float().mul_(_ROOT).mul_(1.0 / half_steps)
    values = _butterfly(index.sub_(half_steps - 0.5).mul_(step))
    # Attention reads the last dimension as one run.
    return values.half().float().T.contiguous().view(x.shape)


def _butterfly(x: Tensor) -> Tensor:
    """H32 of ones and minus ones applied to the columns of x (32, n), neighbours first; x is overwritten."""
    spare = torch.empty_like(x)
    for stage in range(5):
        pairs, sums = (part.view(GROUP >> (stage + 1), 2, 1 << stage, -1) for part in (x, spare))
        torch.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        x, spare = spare, x
    return x
