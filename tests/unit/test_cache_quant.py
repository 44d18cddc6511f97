"""The cache's rounding against exllamav3's kernels, restated lane by lane in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exltune.exl3.cache_quant import GROUP, fake_quantize_cache
from exltune.schema.mix import CACHE_BITS
from exltune.testing.cache_kernels import dequantize, quantize


def kernel(x: torch.Tensor, bits: int) -> torch.Tensor:
    words, scales = quantize(x.half().numpy().reshape(-1, GROUP), bits)
    return torch.from_numpy(dequantize(words, scales, bits).astype(np.float32)).view(x.shape)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awkward() -> torch.Tensor:
    """Groups of many magnitudes, some with outliers, ties, zeros or values that fp16 holds as subnormals."""
    x = normal(4096, GROUP) * 10.0 ** (6 * normal(4096, 1, seed=1)).clamp(-8, 3)
    x[::5, 7] *= 100
    x[1::7] = x[1::7].sign()
    x[2::11] = 0
    x[3::13, 1:] = 0
    return x.clamp(-1e4, 1e4)


@pytest.mark.parametrize("bits", CACHE_BITS)
def test_every_bit_is_the_kernels(bits: int) -> None:
    for x in (normal(4096, GROUP), awkward()):
        assert torch.equal(fake_quantize_cache(x, bits), kernel(x, bits))


@pytest.mark.parametrize("bits", [2, 5])
@pytest.mark.parametrize("width", [32, 128])
def test_groups_lie_along_the_last_dimension(bits: int, width: int) -> None:
    x = normal(3, 2, 5, width).transpose(1, 2)
    found = fake_quantize_cache(x, bits)
    assert found.shape == x.shape
    assert found.is_contiguous()
    assert torch.equal(found[2, 4, 1, -32:], fake_quantize_cache(x[2, 4, 1, -32:], bits))


def test_the_input_stays_as_it_is() -> None:
    x = normal(4, GROUP).half().float()
    before = x.clone()
    fake_quantize_cache(x, 4)
    assert torch.equal(x, before)


def test_the_error_halves_with_every_bit() -> None:
    x = normal(1 << 13, GROUP)
    errors = [float((fake_quantize_cache(x, bits) - x).norm() / x.norm()) for bits in CACHE_BITS]
    # A value is somewhere in a cell of 2s / 2^bits, but the largest of a group is at the end of one: 3 times the mean
    # square error of the other 31. A rotated group is as normal as x.
    scale = float(x.abs().amax(-1).square().mean() * 34 / 32) ** 0.5
    assert errors == pytest.approx([scale * 2.0**-bits * 3**-0.5 for bits in CACHE_BITS], rel=0.01)


@pytest.mark.parametrize("bits", CACHE_BITS)
def test_zeros_stay_zeros(bits: int) -> None:
    assert not fake_quantize_cache(torch.zeros(2, GROUP), bits).any()
    # The fp16 scale of so small a group is zero.
    assert not fake_quantize_cache(torch.full((1, GROUP), 1e-9), bits).any()


@pytest.mark.parametrize("bits", CACHE_BITS)
def test_signs_and_powers_of_two_carry_through(bits: int) -> None:
    x = normal(512, GROUP)
    found = fake_quantize_cache(x, bits)
    mirrored = (fake_quantize_cache(-x, bits) == -found).all(-1)
    # But for values on the border of two cells, such as a zero, which always goes up.
    assert mirrored.float().mean() > 0.98
    torch.testing.assert_close(fake_quantize_cache(4 * x, bits), 4 * found, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bits", CACHE_BITS)
def test_the_rotation_spreads_an_outlier(bits: int) -> None:
    x = torch.zeros(1, GROUP)
    x[0, 5] = 32.0
    # Rotated, all 32 are of one magnitude: the outermost midpoints, 2^-bits short of it, whatever the place.
    expected = torch.zeros(1, GROUP)
    expected[0, 5] = 32.0 * (1 - 2.0**-bits)
    torch.testing.assert_close(fake_quantize_cache(x, bits), expected, rtol=1e-3, atol=1e-6)
