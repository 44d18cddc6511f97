"""Kernels of exllamav3's extension that follow pointers (exl3_gemm.cu, exl3_gemv_int8.cu, 1.6.5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.standin import extension
from tests.standin.pretend.memory import tensor_at


def exl3_gemv_int8_max_k(device: int) -> int:
    """As on Hopper."""
    return 6


def exl3_mgemm(
    a: Tensor,
    trellis: Tensor,
    c: Tensor,
    suh: Tensor,
    a_had: Tensor,
    svh: Tensor,
    indices: Tensor | None,
    weights: Tensor | None,
    rate: float,
    _shape: int,
    mcg: bool,
    mul1: bool,
    _first: int,
    _last: int,
    _sms: int,
    _tokens: int,
    widths: Tensor | None,
    outputs: Tensor | None,
    strides: Tensor | None = None,
    sources: Tensor | None = None,
    _count: int = 0,
) -> None:
    """Several linears of one input (1, n, in) at once: c (matrices, n, out), or slices of columns to `outputs`."""
    if indices is not None or weights is not None:
        raise NotImplementedError("chosen or weighted matrices")
    if c.shape[2] % 128:
        raise RuntimeError("exl3_mgemm autotune: no compatible kernel shapes")
    size = a.shape[-1]
    for place, address in enumerate(trellis.tolist()):
        width = c.shape[2] if widths is None else int(widths[place])
        whole = width if strides is None else int(strides[place])
        source = place if sources is None else int(sources[place])
        addresses = (address, int(suh[source]), int(svh[place]))
        y = linear_at(a[0], addresses, (size, width, whole), rate, (mcg, mul1))
        if outputs is None:
            c[place].copy_(y)
        else:
            tensor_at(int(outputs[place]), y.shape, c.dtype, (whole, 1)).copy_(y)


def linear_at(
    x: Tensor, addresses: tuple[int, int, int], sizes: tuple[int, int, int], rate: float, codebook: tuple[bool, bool]
) -> Tensor:
    """x (n, in) through columns of a linear -> (n, columns) fp32.

    addresses: trellis, suh, svh. sizes: in, columns, columns of the whole. codebook: mcg, mul1.
    """
    size, width, whole = sizes
    words = int(16 * rate)
    tiles = (size // 16, width // 16, words)
    packed = tensor_at(addresses[0], tiles, torch.int16, (whole // 16 * words, words, 1))
    weight = torch.empty(size, width, dtype=torch.half)
    extension.reconstruct(weight, packed.contiguous(), rate, *codebook)
    rotated, y = torch.empty_like(x), torch.empty(len(x), width)
    extension.had_r_128(x, rotated, tensor_at(addresses[1], (size,), torch.half), None, 1.0)
    svh = tensor_at(addresses[2], (width,), torch.half)
    extension.had_r_128(rotated.float() @ weight.float(), y, None, svh, 1.0)
    return y


def functions() -> dict[str, Any]:
    """By name."""
    return {function.__name__: function for function in (exl3_gemv_int8_max_k, exl3_mgemm)}
