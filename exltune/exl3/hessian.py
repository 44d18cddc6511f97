"""The Hessian of a linear's input and its block LDL factor in the rotated basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from exltune.exl3.hadamard import pad_to_width, rotate_columns, rotate_rows

BLOCK = 16
#: Share of the mean diagonal that is added to the diagonal (exllamav3's sigma_reg).
DAMPING = 0.025
_TOO_SMALL = 1e-20


@dataclass(frozen=True, eq=False)
class Hessian:
    """Sum of x xᵀ over `count` input vectors x: matrix (in, in) float32 or float64."""

    matrix: torch.Tensor
    count: int


class Signs(Protocol):
    """Draws random signs, so that this module knows no seeds."""

    def __call__(self, size: int) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class RotatedHessian:
    """A damped mean Hessian and its factor in the basis the tiles live in, H S Hess S H with signs S.

    signs: (in_padded,) ±1. matrix: in the original basis, (in_padded, in_padded) float32, or None without usable
    activations. feedback: the block LDL factor with its block diagonal zero, or None likewise.
    """

    signs: torch.Tensor
    matrix: torch.Tensor | None
    feedback: torch.Tensor | None


def rotate_hessian(hessian: Hessian | None, in_features: int, signs: Signs, damping: float = DAMPING) -> RotatedHessian:
    """Damp, pad, sign-flip and rotate a Hessian, and factor it; an empty or non-finite one gives no feedback.

    Source: exllamav3 1.6.5, modules/quant/exl3_lib/quantize.py, finalize_capture_H.
    """
    padded = pad_to_width(in_features)
    flips = signs(padded)
    if hessian is None or hessian.count == 0:
        return RotatedHessian(flips, None, None)
    mean = hessian.matrix.double() / hessian.count
    level = mean.diagonal().mean().item()
    if not torch.isfinite(mean).all() or level < _TOO_SMALL:
        return RotatedHessian(flips, None, None)
    full = torch.zeros(padded, padded, dtype=torch.float64)
    full[:in_features, :in_features] = mean
    full.diagonal().add_(damping * level)
    matrix = full.float()
    full *= flips.double() * flips.double().unsqueeze(1)
    rotated = rotate_rows(rotate_columns(full))
    return RotatedHessian(flips, matrix, block_ldl(rotated).float())


def block_ldl(matrix: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """L with unit diagonal blocks, matrix = L D Lᵀ, minus its diagonal blocks: (n, n), strictly block lower.

    Source: QuIP# (Tseng et al. 2024), section 4.1.
    """
    n = matrix.shape[0]
    lower = torch.linalg.cholesky(matrix)  # (n, n)
    blocks = lower.view(n, n // block, block)  # (n, block column, block)
    diagonal = torch.stack([lower[i : i + block, i : i + block] for i in range(0, n, block)])
    inverse = torch.linalg.inv(diagonal)  # (block column, block, block)
    unit = torch.einsum("rcb,cbd->rcd", blocks, inverse).reshape(n, n)
    for i in range(0, n, block):
        unit[i : i + block, i : i + block] = 0.0
    return unit
