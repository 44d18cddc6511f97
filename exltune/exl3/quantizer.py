"""One linear from weights to trellis: scales, rotation, global scale, LDLQ, packing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from exltune.errors import NonFiniteError
from exltune.exl3.codebooks import Codebook, check_bits
from exltune.exl3.hadamard import pad_to_width, rotate_columns, rotate_rows
from exltune.exl3.hessian import Hessian, RotatedHessian, rotate_hessian
from exltune.exl3.ldlq import ldlq, proxy_error
from exltune.exl3.linear import QuantizedLinear
from exltune.exl3.packing import pack_states
from exltune.exl3.scale import search_scale

#: Smallest channel scale; a dead channel gets a zero scale instead (exllamav3 1.6.5, regularize()).
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
    rotated, row_scale, column_scale = _regularize(padded, hessian.signs, random_signs(padded.shape[1], f"{seed}.out"))
    suh = (row_scale / search_scale(rotated, bits, codebook)).half()
    # What is stored is fp16: dividing by the rounded scale leaves its rounding out of the error.
    target = rotated * (row_scale / _nonzero(suh.float())).unsqueeze(1)
    quantized, states = ldlq(target, hessian.feedback, bits, codebook)
    shape = (states.shape[0], states.shape[1], -1)
    trellis = torch.from_numpy(pack_states(states.reshape(-1, states.shape[-1]), bits)).view(shape)
    linear = QuantizedLinear(trellis, suh, column_scale, codebook, _pad_bias(bias, padded.shape[1]))
    proxy = proxy_error(target, quantized, hessian.matrix)
    return linear, QuantStats(proxy, relative_error(padded, linear), hessian.feedback is not None)


def relative_error(weight: torch.Tensor, linear: QuantizedLinear) -> float:
    """rfn: Frobenius norm of the error over that of weight (in, out)."""
    scale = weight.norm().item()
    return float((weight - linear.dequantize()).norm().item() / scale) if scale > 0 else 0.0


def random_signs(size: int, seed: str) -> torch.Tensor:
    """±1, (size,) float32, from a name: the same on every machine and in every order of work."""
    digest = hashlib.sha256(seed.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randint(0, 2, (size,), generator=generator).float().mul_(2).sub_(1)


def _regularize(
    weight: torch.Tensor, row_signs: torch.Tensor, column_signs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated weight of unit row rms (k, n), row scales (k,), column scales svh (n,) fp16."""
    rms = weight.square().mean(dim=0).sqrt()  # (n,)
    mean = rms.mean().clamp_min(_DEAD)
    svh = (column_signs * rms / mean).half()
    columns = rotate_columns(weight / _nonzero(svh.float()))
    row_rms = columns.square().mean(dim=1).sqrt()  # (k,)
    row_scale = row_signs * torch.where(row_rms > _DEAD, row_rms, torch.ones_like(row_rms))
    return rotate_rows(columns / row_scale.unsqueeze(1)), row_scale, svh


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    """Zero scales mark dead channels, whose weights are zero already; one avoids 0 / 0."""
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
