"""Hand rules: reading them, and mixes from them at any budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltune.errors import UsageError
from exltune.inventory import inventory_from_config
from exltune.schema.heuristics import Heuristics
from exltune.schema.inventory import Inventory
from exltune.search import SearchProblem, load_all_rules, load_rules, rules_mix, search_problem

_MOE: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
    "vocab_size": 512,
}
_DENSE = _MOE | {"architectures": ["LlamaForCausalLM"]}
_INVENTORIES = {"moe": inventory_from_config(_MOE), "dense": inventory_from_config(_DENSE)}
_BUNDLED = load_all_rules()


def _problem(inventory: Inventory, target: float, widths: list[float]) -> SearchProblem:
    return search_problem(inventory, target_bpw=target, widths=widths, codebook="mul1", head_choice="6", head_bits=6.0)


def _rules(*rules: dict[str, Any]) -> Heuristics:
    return Heuristics.model_validate(
        {"name": "t", "description": "t", "rules": [{"source": "test", **rule} for rule in rules]}
    )


@settings(deadline=None, max_examples=40)
@given(
    rules=st.sampled_from(_BUNDLED),
    kind=st.sampled_from(sorted(_INVENTORIES)),
    share=st.floats(0, 1),
    widths=st.sampled_from([[2.0, 3.0, 4.0, 5.0, 6.0, 8.0], [2.0, 4.0], [1.0, 1.5, 2.5, 3.0, 8.0]]),
)
def test_every_file_fills_every_feasible_budget(
    rules: Heuristics, kind: str, share: float, widths: list[float]
) -> None:
    inventory = _INVENTORIES[kind]
    sizes = _problem(inventory, 4.0 if 4.0 in widths else 3.5, widths).sizes
    low, high = (
        sum(sizes.group_bytes(group.id, bits) for group in inventory.groups) for bits in (widths[0], widths[-1])
    )
    problem = _problem(inventory, sizes.bpw_of(int(low + share * (high - low))), widths)
    bits = rules_mix(problem, rules)
    left = problem.budget_bytes - problem.groups_bytes(bits)
    assert set(bits) == {group.id for group in inventory.groups}
    assert set(bits.values()) <= set(widths)
    assert left >= 0
    for group, width in bits.items():
        above = [other for other in widths if other > width]
        assert not above or sizes.group_bytes(group, above[0]) - sizes.group_bytes(group, width) > left


def test_the_bundled_files_are_named_after_their_seeds() -> None:
    assert len(_BUNDLED) >= 4
    for path in sorted((Path(__file__).parents[2] / "heuristics").glob("*.yaml")):
        assert load_rules(path).name == path.stem


def test_extra_bits_stand_above_the_rest() -> None:
    inventory = _INVENTORIES["moe"]
    rules = _rules({"match": {"roles": ["attn.*"]}, "extra_bits": 2, "priority": 1})
    sizes = _problem(inventory, 4.0, [2, 3, 4, 5, 6, 8]).sizes
    wanted = {group.id: 5.0 if group.role.part == "attn" else 3.0 for group in inventory.groups}
    target = sizes.mix_size(wanted | {"head": 6.0}).bpw
    assert rules_mix(_problem(inventory, target, [2, 3, 4, 5, 6, 8]), rules) == wanted


def test_later_rules_override_field_by_field_and_matches_are_all_conditions() -> None:
    inventory = _INVENTORIES["moe"]
    rules = _rules(
        {"match": {"roles": ["attn.*"]}, "bits": 4, "priority": 1},
        {"match": {"roles": ["attn.o"], "layers": [-2, -1]}, "bits": 8},
        {"match": {"depth": [0.0, 0.25], "keys": ["*.v_proj"]}, "bits": 6},
        {"match": {"architectures": ["Llama*"]}, "bits": 8},
    )
    sizes = _problem(inventory, 4.0, [2, 4, 6, 8]).sizes
    wanted = {group.id: 4.0 if group.role.part == "attn" else 2.0 for group in inventory.groups}
    wanted |= {"6.attn.o": 8.0, "7.attn.o": 8.0, "0.attn.kv": 6.0, "1.attn.kv": 6.0}
    target = sizes.mix_size(wanted | {"head": 6.0}).bpw
    assert rules_mix(_problem(inventory, target, [2, 4, 6, 8]), rules) == wanted


def test_bounds_hold_until_nothing_else_is_left() -> None:
    inventory = _INVENTORIES["moe"]
    rules = _rules(
        {"match": {"roles": ["experts.*"]}, "max_bits": 3},
        {"match": {"roles": ["shared.*"]}, "min_bits": 4, "priority": 1},
    )
    rest = {group.id: 8.0 for group in inventory.groups if group.role.part != "experts"}
    sizes = _problem(inventory, 4.0, [2, 3, 4, 8]).sizes
    capped = rest | {group.id: 3.0 for group in inventory.groups if group.role.part == "experts"}
    target = sizes.mix_size(capped | {"head": 6.0}).bpw
    assert rules_mix(_problem(inventory, target, [2, 3, 4, 8]), rules) == capped
    full = rules_mix(_problem(inventory, sizes.uniform_size(8, 6).bpw, [2, 3, 4, 8]), rules)
    assert set(full.values()) == {8.0}
    smallest = rules_mix(_problem(inventory, sizes.uniform_size(2, 6).bpw, [2, 3, 4, 8]), rules)
    assert set(smallest.values()) == {2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "cannot be read"),
        ("name: a\ndescription: b\nrules: []", "rules"),
        ("name: a\ndescription: b\nrules: [{source: x}]", "needs one of"),
        ("name: a\ndescription: b\nrules: [{source: x, bits: 9}]", r"rules\.0\.bits"),
        ("name: a\ndescription: b\nrules: [{source: x, bist: 3}]", r"rules\.0\.bist"),
    ],
)
def test_wrong_files_say_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_rules(tmp_path / "bad.yaml")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_rules(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="no rules"):
        load_all_rules(tmp_path)
