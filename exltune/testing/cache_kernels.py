"""The kernels of the quantized KV cache, restated lane by lane from exllamav3 1.6.5: the oracle for exltune.exl3.

Source: exllamav3_ext/cache/q_cache_kernels.cuh. A group of 32 values lies in 8 lanes with 4 values each; arrays are
(groups, 8) for a register of every lane. Written for clarity; nothing here is fast.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Lanes = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]

_R32 = np.float32(0.17677669529663688110)
_LANES = np.arange(8)


def _had_4_inreg(v: list[Lanes]) -> list[Lanes]:
    s0, d0 = v[0] + v[1], v[0] - v[1]
    s1, d1 = v[2] + v[3], v[2] - v[3]
    return [s0 + s1, d0 + d1, s0 - s1, d0 - d1]


def _had_8_subgroup(v: list[Lanes]) -> list[Lanes]:
    for i in (1, 2, 4):
        other = [register[:, _LANES ^ i] for register in v]  # __shfl_xor_sync
        sign = np.where(_LANES & i, np.float32(-1), np.float32(1))
        v = [register * sign + shuffled for register, shuffled in zip(v, other, strict=True)]
    return v


def quantize(x: npt.NDArray[np.float16], bits: int) -> tuple[Words, npt.NDArray[np.float16]]:
    """quant_block_x4 without companding: (n, 32) -> words (n, bits), scales (n,)."""
    lanes = x.astype(np.float32).reshape(-1, 8, 4)
    v = _had_8_subgroup(_had_4_inreg([lanes[..., j] for j in range(4)]))
    v = [register * _R32 for register in v]
    s = np.maximum(np.maximum(abs(v[0]), abs(v[1])), np.maximum(abs(v[2]), abs(v[3]))) + np.float32(1e-10)
    for i in (1, 2, 4):
        s = np.maximum(s, s[:, _LANES ^ i])
    inv_s = np.float32(1) / s
    m = 1 << (bits - 1)
    q = []
    for register in v:
        scaled = (register * inv_s).astype(np.float64)
        # fmaf rounds once: float64 holds the exact sum.
        floor = np.floor((scaled * m + m).astype(np.float32)).astype(np.int64)
        q.append(np.clip(floor, 0, 2 * m - 1).astype(np.uint32))
    return _pack(q, bits), s[:, 0].astype(np.float16)


def dequantize(words: Words, scales: npt.NDArray[np.float16], bits: int) -> npt.NDArray[np.float16]:
    """dequant_block_x4 without companding: words (n, bits), scales (n,) -> (n, 32)."""
    m = 1 << (bits - 1)
    sm = scales.astype(np.float32) * _R32 * np.float32(1 / m)
    v = [(q.astype(np.float32) - np.float32(m - 0.5)) * sm[:, None] for q in _unpack(words, bits)]
    v = _had_8_subgroup(_had_4_inreg(v))
    return np.stack(v, axis=-1).astype(np.float16).reshape(-1, 32)


def _planes(bits: int) -> list[tuple[int, int, int]]:
    """(width, first word, bits below it in an index) of each power-of-two plane."""
    planes, left, word = [], bits, 0
    for width in (8, 4, 2, 1):
        if bits & width:
            left -= width
            planes.append((width, word, left))
            word += width
    return planes


def _pack(q: list[Words], bits: int) -> Words:
    words = np.zeros((len(q[0]), bits), dtype=np.uint32)
    for width, first, below in _planes(bits):
        for lane in range(8):
            offset = lane * 4 * width
            for j in range(4):
                field = (q[j][:, lane] >> below) & ((1 << width) - 1)
                words[:, first + (offset >> 5)] |= field << ((offset & 31) + j * width)
    return words


def _unpack(words: Words, bits: int) -> list[Words]:
    q = [np.zeros((len(words), 8), dtype=np.uint32) for _ in range(4)]
    for width, first, _ in _planes(bits):
        for lane in range(8):
            offset = lane * 4 * width
            word = words[:, first + (offset >> 5)] >> (offset & 31)
            for j in range(4):
                q[j][:, lane] = (q[j][:, lane] << width) | ((word >> (j * width)) & ((1 << width) - 1))
    return q
