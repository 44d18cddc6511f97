"""exltune's codec against the format restated from exllamav3's CUDA sources, and against its LinearEXL3."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from exltune.exl3.codebooks import CODEBOOKS, HALF_BITS, INTEGER_BITS, codebook_values
from exltune.exl3.packing import TENSOR_CORE_PERM, pack_states, unpack_states
from tests.standin import trellis

EVERY_RATE = [(codebook, bits) for codebook in CODEBOOKS for bits in INTEGER_BITS] + [("mul1", b) for b in HALF_BITS]


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_codebook_values_are_exllamav3s(codebook: str) -> None:
    assert np.array_equal(codebook_values(codebook), trellis.codebook(codebook).astype(np.float32))


def test_tensor_core_order_is_exllamav3s(exllamav3: types.ModuleType) -> None:
    from exllamav3.modules.quant.exl3_lib.quantize import tensor_core_perm

    assert np.array_equal(TENSOR_CORE_PERM, tensor_core_perm("cpu").numpy())
    assert np.array_equal(TENSOR_CORE_PERM, trellis.element_of_position())


@pytest.mark.parametrize("bits", [*INTEGER_BITS, *HALF_BITS])
def test_bit_stream_is_exllamav3s(bits: float) -> None:
    words = np.random.default_rng(3).integers(-(1 << 15), 1 << 15, (5, int(16 * bits)), dtype=np.int16)
    states = unpack_states(words, bits)
    assert np.array_equal(states, trellis.unpack(words, bits))
    assert np.array_equal(pack_states(states, bits), trellis.pack(states, bits))
    assert np.array_equal(pack_states(states, bits), words)


@pytest.mark.parametrize(("codebook", "bits"), EVERY_RATE)
def test_linear_exl3_reconstructs_the_same_weight(
    exllamav3: types.ModuleType, random_linear: Callable[..., Any], codebook: str, bits: float
) -> None:
    from exllamav3.modules.quant import LinearEXL3

    ours = random_linear(256, 128, bits, codebook)
    stored = {name.lstrip("."): tensor for name, tensor in ours.tensors("").items()}
    theirs = LinearEXL3(None, 256, 128, **stored)
    assert bits == theirs.K
    assert torch.equal(theirs.get_inner_weight_tensor().float(), ours.dequantize_rotated())
    weight = ours.dequantize()
    # Theirs is rounded to fp16 four times on its way through both Hadamards.
    torch.testing.assert_close(
        theirs.get_weight_tensor().float(), weight, rtol=0, atol=2e-3 * weight.abs().max().item()
    )


def test_few_and_many_rows_take_the_same_weight(exllamav3: types.ModuleType, random_linear: Callable[..., Any]) -> None:
    from exllamav3.modules.quant import LinearEXL3

    ours = random_linear(128, 128, 3, "mul1", bias=True)
    stored = {name.lstrip("."): tensor for name, tensor in ours.tensors("").items()}
    theirs = LinearEXL3(None, 128, 128, **stored, out_dtype=torch.float)
    rows = torch.randn(1100, 128, generator=torch.Generator().manual_seed(1)).half()
    expected = rows.float() @ ours.dequantize() + ours.bias.float()
    for count in (5, 200, 1100):  # Kernel for few rows, reconstruct, reconstruct in the original basis.
        y = theirs.forward(rows[:count], {})
        torch.testing.assert_close(y, expected[:count], rtol=0, atol=3e-3 * expected.abs().max().item())
