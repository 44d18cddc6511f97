"""One linear from weights to trellis: scales, rotation, global scale, LDLQ, packing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from exltune.errors import NonFiniteError
from exltune.exl3.codebooks import Codebook, check_bits
from exltune.exl3.hadamard import pad_to_width, rotate_columns, rotate_rows
from exltune.exl3.hessian import Hessian, RotatedHessian, rotate_hessian
from exltune.exl3.ldlq import ldlq, proxy_error
from exltune.exl3.linear import QuantizedLinear
from exltune.exl3.packing import pack_states
from exltune.exl3.refit import refit_scales
from exltune.exl3.scale import search_scale

#: A channel of a smaller rms is dead.
_DEAD = 1e-30


@dataclass(frozen=True)
class QuantStats:
    """proxy_err: tr(EᵀHE)/tr(WᵀHW). rfn: ‖W - Q‖ / ‖W‖ in the original basis. feedback: whether LDLQ had a Hessian."""

    proxy_err: float
    rfn: float
    feedback: bool


def prepare_hessian(hessian: Hessian | None, in_features: int, seed: str) -> RotatedHessian:
    """Rotate and factor a Hessian once for all linears that share it, at every bit width."""
    return rotate_hessian(hessian, in_features, lambda size: random_signs(size, seed))


def quantize_linear(
    weight: torch.Tensor,
    hessian: Hessian | RotatedHessian | None,
    bits: float,
    codebook: Codebook,
    seed: str,
    bias: torch.Tensor | None = None,
) -> tuple[QuantizedLinear, QuantStats]:
    """Quantize weight (in, out) float32; bias (out,) is kept in fp16.

    The result depends on the arguments alone. Raises: UsageError for bits that do not exist, NonFiniteError.
    Source: exllamav3 1.6.5, quantize_exl3() and regularize().
    """
    check_bits(bits, codebook)
    if not torch.isfinite(weight).all():
        raise NonFiniteError(f"the weight of {seed} holds NaN or inf", fix="Download the model again")
    if not isinstance(hessian, RotatedHessian):
        hessian = prepare_hessian(hessian, weight.shape[0], seed)
    padded = _pad(weight)
    columns, row_scale, svh = _regularize(padded, hessian.signs, random_signs(padded.shape[1], f"{seed}.out"))
    factor = search_scale(rotate_rows(columns / _nonzero(row_scale).unsqueeze(1)), bits, codebook)
    suh = (row_scale / factor).half()
    # The stored scale is fp16: dividing by the rounded scale leaves its rounding out of the error.
    target = rotate_rows(columns / _nonzero(suh.float()).unsqueeze(1))
    _, states = ldlq(target, hessian.feedback, bits, codebook)
    shape = (states.shape[0], states.shape[1], -1)
    trellis = torch.from_numpy(pack_states(states.reshape(-1, states.shape[-1]), bits)).view(shape)
    linear = QuantizedLinear(trellis, suh, svh, codebook, _pad_bias(bias, padded.shape[1]))
    if hessian.matrix is not None:
        row_fit, column_fit = refit_scales(padded, linear.dequantize(), hessian.matrix)
        linear = replace(linear, suh=(suh * row_fit).half(), svh=(svh * column_fit).half())
    proxy = proxy_error(padded, linear.dequantize(), hessian.matrix)
    return linear, QuantStats(proxy, relative_error(weight, linear), hessian.feedback is not None)


def relative_error(weight: torch.Tensor, linear: QuantizedLinear) -> float:
    """rfn: Frobenius norm of the error over that of weight (in, out)."""
    scale, (rows, columns) = weight.norm().item(), weight.shape
    return float((weight - linear.dequantize()[:rows, :columns]).norm().item() / scale) if scale > 0 else 0.0


def random_signs(size: int, seed: str) -> torch.Tensor:
    """±1, (size,) float32, from a name: the same on every machine and in every order of work."""
    digest = hashlib.sha256(seed.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randint(0, 2, (size,), generator=generator).float().mul_(2).sub_(1)


def _regularize(
    weight: torch.Tensor, row_signs: torch.Tensor, column_signs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight with unit column rms and rotated columns (k, n), row scales (k,), column scales svh (n,) fp16.

    Dead channels get a zero scale on either side: whatever their codebook values are, they stay dead.
    """
    rms = weight.square().mean(dim=0).sqrt()  # (n,)
    mean = rms.mean().clamp_min(_DEAD)
    svh = (column_signs * rms / mean).half()
    columns = rotate_columns(weight / _nonzero(svh.float()))
    row_rms = columns.square().mean(dim=1).sqrt()  # (k,)
    return columns, row_signs * row_rms * (row_rms > _DEAD), svh


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    """One in place of zero scales, which mark dead channels: their weights are zero already."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _pad(weight: torch.Tensor) -> torch.Tensor:
    rows, columns = weight.shape
    padded = torch.zeros(pad_to_width(rows), pad_to_width(columns))
    padded[:rows, :columns] = weight
    return padded


def _pad_bias(bias: torch.Tensor | None, size: int) -> torch.Tensor | None:
    if bias is None:
        return None
    padded = torch.zeros(size, dtype=torch.float16)
    padded[: bias.shape[0]] = bias
    return padded
