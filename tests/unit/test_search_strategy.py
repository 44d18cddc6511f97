"""What exllamav3's strategy promises at any size; that it is exllamav3's is proved in tests/integration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltune.budget import SizeModel
from exltune.errors import BudgetError
from exltune.inventory import inventory_from_config
from exltune.search import exllamav3_strategy, smallest_strategy_at_least, strategy_within

_WIDTHS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
_MOE: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
    "vocab_size": 512,
}
_SIZES = SizeModel(inventory_from_config(_MOE), "mul1")
_LARGE = SizeModel(
    inventory_from_config(_MOE | {"num_hidden_layers": 40, "hidden_size": 1024, "moe_intermediate_size": 512}), "mcg"
)


def _groups_bytes(sizes: SizeModel, bits: dict[str, float]) -> int:
    return sum(sizes.group_bytes(group.id, bits[group.id]) for group in sizes.inventory.groups)


def test_attention_comes_first_and_ends_before_the_middle() -> None:
    bits = exllamav3_strategy(_SIZES.inventory, 2.1)
    promoted = [key for key, width in bits.items() if width == 3]
    assert promoted
    assert all("self_attn" in key for key in promoted)
    one_bundle = exllamav3_strategy(_SIZES.inventory, 2.03)
    assert {key.split(".")[2] for key, width in one_bundle.items() if width == 3} == {"0"}


def test_a_width_that_is_not_there_is_stepped_over() -> None:
    keys = exllamav3_strategy(_SIZES.inventory, 7.0, widths=_WIDTHS)
    assert set(keys.values()) == {6.0, 8.0}
    assert set(exllamav3_strategy(_SIZES.inventory, 7.0).values()) == {7.0}


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 1), hq=st.sampled_from([0, 1, 2]))
def test_within_a_budget(share: float, hq: int) -> None:
    groups = [group.id for group in _SIZES.inventory.groups]
    low, high = (_groups_bytes(_SIZES, dict.fromkeys(groups, bits)) for bits in (2.0, 8.0))
    budget = int(low + share * (high - low))
    bits = strategy_within(_SIZES, budget, _WIDTHS, hq)
    if bits is None:
        assert hq
        return
    assert set(bits.values()) <= set(_WIDTHS)
    assert _groups_bytes(_SIZES, bits) <= budget
    if not hq:
        experts = ("1.experts.gate_up", "1.experts.down")
        largest_step = sum(_SIZES.group_bytes(group, 8) - _SIZES.group_bytes(group, 6) for group in experts)
        assert budget - _groups_bytes(_SIZES, bits) < largest_step


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(share=st.floats(0, 1))
def test_the_smallest_of_at_least_a_size(share: float) -> None:
    low, high = (_SIZES.uniform_size(bits, 6).size_bytes for bits in (2, 8))
    wanted = int(low + share * (high - low))
    found = smallest_strategy_at_least(_SIZES, wanted, _WIDTHS, 6.0, "6")
    own = _SIZES.mix_size({group: float(choice) for group, choice in found.choices.items()})
    assert (found.size_bytes, found.bpw) == (own.size_bytes, own.bpw)
    assert found.size_bytes >= wanted
    for bpw in (2 + 0.06 * i for i in range(101)):
        by_key = exllamav3_strategy(_SIZES.inventory, bpw, widths=_WIDTHS)
        bits = {group.id: by_key[group.tensors[0]] for group in _SIZES.inventory.groups} | {"head": 6.0}
        size = _SIZES.mix_size(bits).size_bytes
        assert size < wanted or size >= found.size_bytes


def test_larger_models_are_met_within_half_a_percent() -> None:
    for bits in (2, 2.6, 3.15, 4.4, 6.5):
        wanted = int(_LARGE.uniform_size(2, 6).size_bytes * bits / 2)
        found = smallest_strategy_at_least(_LARGE, wanted, _WIDTHS, 6.0, "6")
        assert found.size_bytes / wanted - 1 < 0.005


def test_a_plain_quant_is_found_exactly() -> None:
    for bits in _WIDTHS:
        wanted = _SIZES.uniform_size(bits, 6).size_bytes
        found = smallest_strategy_at_least(_SIZES, wanted, _WIDTHS, 6.0, "6")
        assert found.size_bytes == wanted
        assert set(found.choices.values()) - {"6"} <= {f"{bits:g}"}


def test_nothing_is_large_enough() -> None:
    top = _SIZES.uniform_size(8, 6).size_bytes
    with pytest.raises(BudgetError, match=f"{top:,}"):
        smallest_strategy_at_least(_SIZES, top + 1, _WIDTHS, 6.0, "6")
