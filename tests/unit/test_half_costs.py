"""The restated kernel with fp16 costs, against a slow search of the same recurrence in numpy's fp16."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exltune.exl3.codebooks import codebook_values
from exltune.exl3.trellis import encode_tiles


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    yield importlib.import_module("half_costs")
    sys.path.pop(0)
    del sys.modules["half_costs"]


def half_sums(products: Any, costs: Any) -> Any:
    """fp64 holds the sums exactly; numpy rounds it to fp16 once."""
    return (products.astype(np.float64) + costs.astype(np.float64)).astype(np.float16)


def test_sums_are_rounded_once(script: Any) -> None:
    mantissas = np.arange(1024, 2048, dtype=np.float32)
    products, costs = np.meshgrid((mantissas * 2**-9) ** 2, mantissas * 2**-24)
    expected = half_sums(products, costs)
    found = script.half_of_sum(torch.from_numpy(products), torch.from_numpy(costs)).numpy()
    assert (found == expected).all()
    assert ((products + costs).astype(np.float16) != expected).any(), "the numbers must tell one rounding from two"


def slow(tile: Any, bits_at: Any) -> Any:
    """One tile by the recurrence, node by node; of equal costs the lowest branch. Costs are numpy's fp16."""
    table, states = codebook_values("mul1").astype(np.float16), np.arange(1 << 16)
    weights = tile.astype(np.float16)

    def forward(roll: int, end: int | None) -> tuple[Any, dict[int, Any]]:
        costs = np.zeros(1 << (16 - bits_at(roll)), dtype=np.float16)
        if end is not None:
            costs = np.full_like(costs, np.inf)
            costs[end] = 0
        history = {}
        for step in range(256):
            position = (step + roll) % 256
            here, behind = bits_at(position), bits_at(position + 1)
            gaps = table - weights[position]
            totals = half_sums(gaps.astype(np.float32) ** 2, costs[states >> here]).reshape(1 << behind, -1)
            history[position] = totals.argmin(axis=0)
            costs = totals.min(axis=0)
        return costs, history

    def backward(history: dict[int, Any], roll: int, node: int) -> tuple[int, Any]:
        found = np.zeros(256, dtype=np.uint16)
        for step in range(255, -1, -1):
            position = (step + roll) % 256
            found[position] = (int(history[position][node]) << (16 - bits_at(position + 1))) | node
            node = int(found[position]) >> bits_at(position)
            if position == 0:
                break
        return node, found

    def rank(node: int) -> tuple[int, int, int]:
        inner = node % 1024
        return int(f"{inner >> 5:05b}"[::-1], 2), int(f"{inner & 31:05b}"[::-1], 2), node >> 10

    costs, history = forward(128, None)
    last = min(np.flatnonzero(costs == costs.min()), key=lambda node: rank(int(node)))
    end, _ = backward(history, 128, int(last))
    return backward(forward(0, end)[1], 0, end)[1]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2.5, 5])
def test_states_are_those_of_the_recurrence(script: Any, bits: float) -> None:
    tile = np.random.default_rng(2).standard_normal(256, dtype=np.float32)
    (states,) = script.encode_with_half_costs(tile[None], bits)
    assert (states == slow(tile, lambda position: int(bits) + (bits % 1 > 0) * (position % 2))).all()


def test_a_comparison_counts_indices_and_distortion(script: Any) -> None:
    tiles = np.random.default_rng(3).standard_normal((2, 256), dtype=np.float32)
    states, fp32 = script.encode_with_half_costs(tiles, 4), encode_tiles(tiles, 4, "mul1")
    found = script.compared(tiles, states, fp32, states[:1])
    assert (found["differ_from_emulated"], found["emulated_tiles"]) == (0, 1)
    assert 0 < found["differ_from_fp32"] < 1
    assert found["nmse_fp32"] <= found["nmse"] < 1.2 * found["nmse_fp32"]
