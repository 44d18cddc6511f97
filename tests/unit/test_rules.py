"""Hand rules: reading them, and mixes from them at any budget."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltune.errors import UsageError
from exltune.inventory import groups_at_level, inventory_from_config
from exltune.schema.heuristics import Heuristics
from exltune.schema.inventory import Inventory
from exltune.search import SearchProblem, load_all_rules, load_rules, rules_mix, search_problem
from exltune.search.rules.floors import floors
from exltune.search.rules.rules import find_rules
from exltune.search.rules.wishes import matches

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
_ROOT = Path(__file__).parents[2]
_FILES = sorted((_ROOT / "exltune" / "heuristics").glob("*.yaml"))
_CONFIGS = {
    "moe": _MOE,
    "dense": _MOE | {"architectures": ["LlamaForCausalLM"]},
    **{
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((_ROOT / "models").glob("*/config.json"))
    },
    "glm-4.7": json.loads((_ROOT / "tests/fixtures/configs/glm-4.7.json").read_text(encoding="utf-8")),
}
_INVENTORIES = {name: inventory_from_config(config) for name, config in _CONFIGS.items()}
_BUNDLED = load_all_rules()
_WIDTHS = ((2.0, 3.0, 4.0, 5.0, 6.0, 8.0), (2.0, 4.0), (1.0, 1.5, 2.5, 3.0, 8.0), (3.0,), (2.0, 4.0, 8.0, 16.0))


def _problem(inventory: Inventory, target: float, widths: list[float]) -> SearchProblem:
    return search_problem(inventory, target_bpw=target, widths=widths, codebook="mul1", head_choice="6", head_bits=6.0)


def _rules(*rules: dict[str, Any]) -> Heuristics:
    return Heuristics.model_validate(
        {"name": "t", "description": "t", "rules": [{"source": "test", **rule} for rule in rules]}
    )


@cache
def _space(kind: str, widths: tuple[float, ...]) -> SearchProblem:
    """A model at its smallest."""
    inventory = _INVENTORIES[kind]
    probe = search_problem(inventory, target_bpw=4, widths=[1, 8], codebook="mul1", head_choice="6", head_bits=6.0)
    smallest = sum(probe.sizes.group_bytes(group, widths[0]) for group in probe.group_ids)
    return replace(probe, widths=widths, groups_budget_bytes=smallest)


def _check_full(problem: SearchProblem, bits: dict[str, float]) -> None:
    """Within the budget, pairs whole, and what is left is less than the smallest possible promotion."""
    left = problem.groups_budget_bytes - problem.groups_bytes(bits)
    pairs = {part.members: {bits[group] for group in part.members} for part in groups_at_level(problem.inventory, 3)}
    assert list(bits) == list(problem.group_ids)
    assert set(bits.values()) <= set(problem.widths)
    assert left >= 0
    assert all(len(widths) == 1 for widths in pairs.values())
    for low, high in pairwise(problem.widths):
        assert all(_step(problem, pair, low, high) > left for pair, widths in pairs.items() if widths == {low})


def _step(problem: SearchProblem, groups: Iterable[str], low: float, high: float) -> int:
    size = problem.sizes.group_bytes
    return sum(size(group, high) - size(group, low) for group in groups)


_KINDS = st.sampled_from([kind for kind in _INVENTORIES if kind != "glm-4.7"])


@settings(deadline=None, max_examples=120)
@given(rules=st.sampled_from(_BUNDLED), kind=_KINDS, share=st.floats(0, 1), widths=st.sampled_from(_WIDTHS))
def test_every_file_fills_every_feasible_budget(
    rules: Heuristics, kind: str, share: float, widths: tuple[float, ...]
) -> None:
    space = _space(kind, widths)
    largest = space.groups_bytes(dict.fromkeys(space.group_ids, widths[-1]))
    low = space.groups_budget_bytes
    problem = replace(space, groups_budget_bytes=low + int(share * (largest - low)))
    bits = rules_mix(problem, rules)
    _check_full(problem, bits)
    assert rules_mix(problem, rules) == bits


@pytest.mark.slow
@pytest.mark.parametrize("rules", _BUNDLED, ids=lambda rules: rules.name)
def test_every_file_fills_budgets_of_glm(rules: Heuristics) -> None:
    space = _space("glm-4.7", _WIDTHS[0])
    low, high = (space.groups_bytes(dict.fromkeys(space.group_ids, bits)) for bits in (2, 8))
    assert set(rules_mix(space, rules).values()) == {2}
    assert set(rules_mix(replace(space, groups_budget_bytes=high), rules).values()) == {8}
    used = []
    for share in (0.001, 0.1, 0.2, 0.5, 0.999):
        problem = replace(space, groups_budget_bytes=low + int(share * (high - low)))
        bits = rules_mix(problem, rules)
        _check_full(problem, bits)
        used.append(problem.groups_bytes(bits))
    assert used == sorted(used)


@settings(deadline=None, max_examples=30)
@given(rules=st.sampled_from(_BUNDLED), kind=_KINDS, share=st.floats(0, 1))
def test_floors_hold_in_mixes_at_every_budget(rules: Heuristics, kind: str, share: float) -> None:
    space = _space(kind, _WIDTHS[0])
    least = floors([next(one for one in _BUNDLED if one.name == "backbone-first")], space.inventory, space.widths)
    low = space.groups_bytes(dict.fromkeys(space.group_ids, 2.0) | least)
    high = space.groups_bytes(dict.fromkeys(space.group_ids, 8.0))
    problem = replace(space, floors=least, groups_budget_bytes=low + int(share * (high - low)))
    bits = rules_mix(problem, rules)
    _check_full(problem, bits)
    assert all(bits[group] >= bound for group, bound in least.items())


def test_groups_of_one_priority_are_scaled_down_together() -> None:
    space = _space("moe", (2.0, 3.0, 4.0, 6.0))
    rules = _rules({"match": {"roles": ["experts.down"]}, "min_bits": 6, "priority": 1})
    down = [group for group in space.group_ids if group.endswith("experts.down")]
    step = space.sizes.group_bytes(down[0], 3) - space.sizes.group_bytes(down[0], 2)
    budget = space.groups_budget_bytes + (len(down) + 2) * step
    bits = rules_mix(replace(space, groups_budget_bytes=budget), rules)
    assert [bits[group] for group in down] == [4, 4, *[3] * (len(down) - 2)]


def test_unquantized_where_the_model_is_a_choice_else_the_highest_width() -> None:
    rules = next(one for one in _BUNDLED if one.name == "experts-4-rest-16")
    for widths, highest in (((2.0, 4.0, 8.0, 16.0), 16), ((2.0, 4.0, 8.0), 8)):
        space = _space("moe", widths)
        wanted = {group.id: 4.0 if group.role.part == "experts" else highest for group in space.inventory.groups}
        problem = replace(space, groups_budget_bytes=space.groups_bytes(wanted))
        assert rules_mix(problem, rules) == wanted


def test_dense_layers_and_sparse_models() -> None:
    space = _space("moe", (2.0, 4.0))
    rules = _rules({"match": {"sparse_model": True, "sparse_layer": False}, "bits": 4, "priority": 1})
    wanted = {group.id: 4.0 if group.layer == 0 else 2.0 for group in space.inventory.groups}
    assert rules_mix(replace(space, groups_budget_bytes=space.groups_bytes(wanted)), rules) == wanted
    dense = _space("dense", (2.0, 4.0)).inventory
    assert not any(matches(rules, dense).values())


def test_the_bundled_files_are_named_after_their_seeds() -> None:
    listed = {"backbone-first", "down-first", "early-blocks", "dense-protected", "hq-like"}
    assert listed | {"experts-3-backbone-4", "experts-4-rest-16"} <= {rules.name for rules in _BUNDLED}
    assert [load_rules(path).name for path in _FILES] == [path.stem for path in _FILES]
    assert [rules.name for rules in _BUNDLED] == [path.stem for path in _FILES]


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
    wanted |= {"6.attn.o": 8.0, "7.attn.o": 8.0, "0.attn.v": 6.0, "1.attn.v": 6.0}
    target = sizes.mix_size(wanted | {"head": 6.0}).bpw
    assert rules_mix(_problem(inventory, target, [2, 4, 6, 8]), rules) == wanted


def test_a_pair_climbs_as_one_until_a_rule_names_one_of_it() -> None:
    space = _space("moe", (2.0, 3.0, 4.0))
    step = {name: _step(space, [f"0.attn.{name}"], 2, 3) for name in ("k", "v")}
    for roles, room, expected in (
        (["attn.kv"], step["k"] + step["v"], {"0.attn.k": 3, "0.attn.v": 3}),
        # Whatever is left goes to what comes first, as soon as it fits: not to half of a pair.
        (["attn.kv"], step["k"] + step["v"] - 1, {"0.attn.k": 2, "0.attn.v": 2}),
        (["attn.v"], step["v"], {"0.attn.k": 2, "0.attn.v": 3}),
    ):
        rules = _rules({"match": {"roles": roles}, "extra_bits": 1, "priority": 1})
        problem = replace(space, groups_budget_bytes=space.groups_budget_bytes + room)
        assert {group: rules_mix(problem, rules)[group] for group in expected} == expected
    whole = replace(space, groups_budget_bytes=space.groups_budget_bytes + step["k"] + step["v"], keep_pairs=True)
    rules = _rules({"match": {"roles": ["attn.v"]}, "min_bits": 3, "priority": 1})
    bits = rules_mix(whole, rules)
    assert (bits["0.attn.k"], bits["0.attn.v"]) == (3, 3)


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
        ("name: a\ndescription: b\nrules: [{source: x, bits: 9}]", r"rules\.0\.bits.*1 to 8, or 16"),
        ("name: a\ndescription: b\nrules: [{source: x, min_bits: 5, max_bits: 3}]", "at least 5 and at most 3"),
        ("name: a\ndescription: b\nrules: [{bits: 3}]", r"rules\.0\.source"),
        ("- 3", "the whole file"),
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
        load_all_rules(directory=tmp_path)


def test_own_rules_come_last_and_need_a_name_of_their_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: own\ndescription: b\nrules: [{source: x, bits: 3}]")
    known = load_all_rules([own])
    assert [*known[:-1]] == [*_BUNDLED]
    assert known[-1] == load_rules(own) == find_rules("own", known) == find_rules(str(own), _BUNDLED)
    with pytest.raises(UsageError, match=r"own\.yaml.*named own.*own\.yaml"):
        load_all_rules([own, own])
    with pytest.raises(UsageError, match=r"'mine' names no rules and no file.*hq-like"):
        find_rules("mine", known)
