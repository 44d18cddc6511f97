"""Scales fitted again once the trellis is fixed: they are stored anyway, so a better fit costs nothing."""

from __future__ import annotations

import torch

_ROUNDS = 2
#: Ridge on the row system, as a share of its mean diagonal.
_RIDGE = 1e-6


def refit_scales(
    weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor, rounds: int = _ROUNDS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors for the rows (k,) and columns (n,) of quantized (k, n) that lessen tr(Eᵀ H E), E = weight - scaled.

    All in the original basis; hessian (k, k) damped. Columns have a closed form, c = qᵀHw / qᵀHq; rows solve
    ((Q Qᵀ) ∘ H) r = rowsum(Q ∘ HW); they take turns. A factor that is not finite and positive stays 1.
    Source: exllamav3 1.6.5, modules/quant/exl3_lib/quantize.py, refit_scales.
    """
    target = hessian @ weight  # (k, n)
    rows, columns = torch.ones(weight.shape[0]), torch.ones(weight.shape[1])
    scaled = quantized
    for _ in range(rounds):
        factor = _usable((scaled * target).sum(0) / (scaled * (hessian @ scaled)).sum(0))
        scaled, columns = scaled * factor, columns * factor
        system = (scaled @ scaled.T) * hessian  # (k, k)
        system.diagonal().add_(_RIDGE * system.diagonal().mean().clamp_min(1e-20))
        factor = _usable(torch.linalg.solve(system, (scaled * target).sum(1)))
        scaled, rows = scaled * factor.unsqueeze(1), rows * factor
    return rows, columns


def _usable(factor: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isfinite(factor) & (factor > 0), factor, torch.ones_like(factor))
