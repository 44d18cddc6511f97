"""128-wide Hadamard transforms with 1/sqrt(128) a side: orthonormal, symmetric, their own inverse."""

from __future__ import annotations

from functools import cache

import torch
from scipy.linalg import hadamard

WIDTH = 128


@cache
def hadamard_matrix() -> torch.Tensor:
    """Sylvester's matrix scaled to be orthonormal, (128, 128) float32."""
    return torch.from_numpy(hadamard(WIDTH, dtype=float)).mul(WIDTH**-0.5).float()


def rotate_rows(x: torch.Tensor) -> torch.Tensor:
    """H applied to every 128 rows of x: (k, n) -> (k, n)."""
    k, n = x.shape
    return (hadamard_matrix().to(x.dtype) @ x.view(k // WIDTH, WIDTH, n)).view(k, n)


def rotate_columns(x: torch.Tensor) -> torch.Tensor:
    """H applied to every 128 columns of x: (k, n) -> (k, n)."""
    k, n = x.shape
    return (x.reshape(k, n // WIDTH, WIDTH) @ hadamard_matrix().to(x.dtype)).view(k, n)


def pad_to_width(size: int) -> int:
    """The size rounded up to a multiple of 128."""
    return -(-size // WIDTH) * WIDTH
