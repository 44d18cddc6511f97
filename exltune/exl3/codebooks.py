"""The three procedural codebooks: 65536 values, one for every 16-bit trellis state.

Source: exllamav3 1.6.5, exllamav3_ext/quant/codebook.cuh.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from exltune.errors import UsageError

Codebook = Literal["mul1", "mcg", "3inst"]
CODEBOOKS: tuple[Codebook, ...] = get_args(Codebook)

#: Bit widths that every codebook has, and those that only mul1 has.
INTEGER_BITS = (1, 2, 3, 4, 5, 6, 7, 8)
HALF_BITS = (1.5, 2.5, 3.5)

MCG_MULTIPLIER = 0xCBAC1FED
MUL1_MULTIPLIER = 0x83DCD12D


@cache
def codebook_values(codebook: Codebook) -> npt.NDArray[np.float32]:
    """Value of every state, (65536,), exact fp16 numbers held as float32."""
    states = np.arange(65536, dtype=np.uint32)
    if codebook == "mul1":
        values = _mul1(states)
    elif codebook == "mcg":
        values = _sum_of_halves(states * np.uint32(MCG_MULTIPLIER))
    else:
        values = _sum_of_halves(states * np.uint32(89226354) + np.uint32(64248484))
    values.flags.writeable = False
    return values


def marker(codebook: Codebook) -> int | None:
    """The multiplier stored beside a tensor to name its codebook; 3inst stores none."""
    return {"mul1": MUL1_MULTIPLIER, "mcg": MCG_MULTIPLIER, "3inst": None}[codebook]


def check_bits(bits: float, codebook: Codebook) -> None:
    """Refuse a bit width that does not exist. Raises: UsageError."""
    if bits in INTEGER_BITS or (bits in HALF_BITS and codebook == "mul1"):
        return
    known = ", ".join(f"{b:g}" for b in sorted((*INTEGER_BITS, *HALF_BITS)))
    reason = "half-integer widths need the mul1 codebook" if bits in HALF_BITS else f"known widths: {known}"
    raise UsageError(f"{bits:g} bits with codebook {codebook} do not exist", fix=reason)


def _sum_of_halves(product: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    bits = (product & np.uint32(0x8FFF8FFF)) ^ np.uint32(0x3B603B60)
    low = (bits & np.uint32(0xFFFF)).astype(np.uint16).view(np.float16)
    high = (bits >> np.uint32(16)).astype(np.uint16).view(np.float16)
    return (low + high).astype(np.float32)


def _mul1(states: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    product = states * np.uint32(MUL1_MULTIPLIER)
    byte_sum = sum((product >> np.uint32(8 * i)) & np.uint32(0xFF) for i in range(4))
    summed = (byte_sum + np.uint32(0x6400)).astype(np.uint16).view(np.float16)
    scale, bias = np.array([0x1EEE, 0xC931], dtype=np.uint16).view(np.float16).astype(np.float64)
    # fma rounds once: the product and the sum are exact in float64.
    values: npt.NDArray[np.float32] = (summed.astype(np.float64) * scale + bias).astype(np.float16).astype(np.float32)
    return values
