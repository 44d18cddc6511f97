"""Hand rules as floors, rules that contradict each other, and rules that match nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exltune.errors import BudgetError, UsageError
from exltune.inventory import inventory_from_config
from exltune.schema.heuristics import Heuristics
from exltune.search import load_all_rules, rules_mix, search_problem
from exltune.search.rules.floors import floors
from exltune.search.rules.wishes import out_of_reach, unmatched

_MODELS = Path(__file__).parents[2] / "models"
_MOE, _DENSE = (
    inventory_from_config(json.loads((_MODELS / name / "config.json").read_text(encoding="utf-8")))
    for name in ("glm4moe", "qwen3")
)
_WIDTHS = (2.0, 3.0, 4.0, 6.0)


def _rules(*rules: dict[str, Any], name: str = "mine") -> Heuristics:
    return Heuristics.model_validate(
        {"name": name, "description": "t", "rules": [{"source": "test", **rule} for rule in rules]}
    )


def _by_role(found: dict[str, float], role: str) -> set[float]:
    return {found.get(group.id, 0) for group in _MOE.groups if role in (group.role, group.role.pair)}


def test_what_counts_as_a_floor() -> None:
    rules = _rules(
        {"match": {"roles": ["attn.*"]}, "bits": 5},
        {"match": {"roles": ["shared.down"]}, "min_bits": 3},
        {"match": {"roles": ["shared.gate_up"]}, "extra_bits": 2},
        {"match": {"roles": ["experts.down"]}, "extra_bits": 4, "max_bits": 3},
        {"match": {"roles": ["experts.gate_up"]}, "max_bits": 3, "priority": 1},
        {"match": {"roles": ["mlp.*"]}, "bits": 16},
        {"match": {"roles": ["attn.v"]}, "bits": 3},
    )
    found = floors([rules], _MOE, _WIDTHS)
    expected = {
        **{"attn.q": 6, "attn.k": 6, "attn.v": 3, "attn.o": 6, "shared.down": 3, "shared.gate_up": 4},
        **{"experts.down": 3, "experts.gate_up": 0, "mlp.gate_up": 6, "mlp.down": 6},
    }
    assert {role: _by_role(found, role) for role in expected} == {role: {bits} for role, bits in expected.items()}


def test_of_several_files_the_highest_floor_counts() -> None:
    low = _rules({"match": {"roles": ["attn.*"]}, "min_bits": 3}, {"match": {"layers": [0, 0]}, "extra_bits": 1})
    high = _rules({"match": {"roles": ["attn.q"]}, "min_bits": 4}, name="other")
    found = floors([low, high], _MOE, _WIDTHS)
    assert _by_role(found, "attn.q") == {4}
    assert _by_role(found, "attn.o") == {3}
    assert found["0.mlp.down"] == 3
    assert floors([], _MOE, _WIDTHS) == {}


def test_a_floor_above_every_base_quant() -> None:
    rules = _rules({"match": {"roles": ["attn.*"]}, "min_bits": 8})
    with pytest.raises(UsageError, match=r"rule 1 of mine \(roles attn\.\*\), min_bits 8 is above .* 6 bits"):
        floors([rules], _MOE, _WIDTHS)


def test_floors_that_do_not_fit_name_the_smallest_size_that_does() -> None:
    bundled = {rules.name: rules for rules in load_all_rules()}
    least = floors([bundled["dense-protected"]], _DENSE, _WIDTHS)
    assert least == {}
    least = floors([bundled["experts-4-rest-16"]], _MOE, _WIDTHS)
    given = {"widths": _WIDTHS, "codebook": "mul1", "head_choice": "6", "head_bits": 6.0, "floors": least}
    with pytest.raises(BudgetError, match="floors") as caught:
        search_problem(_MOE, target_bpw=2.4, **given)
    smallest = float(str(caught.value).split(" has ")[1].split(" bpw")[0])
    problem = search_problem(_MOE, target_bpw=smallest + 0.001, **given)
    assert all(rules_mix(problem, bundled["down-first"])[group] >= bits for group, bits in least.items())


@pytest.mark.parametrize(
    ("first", "second"),
    [({"min_bits": 5}, {"max_bits": 3}), ({"bits": 3}, {"min_bits": 4}), ({"max_bits": 3}, {"bits": 4})],
)
def test_contradictions_name_both_rules(first: dict[str, float], second: dict[str, float]) -> None:
    one, two = {"match": {"roles": ["*.down"]}, **first}, {"match": {"layers": [0, 1]}, **second}
    within = _rules(one, two)
    problem = search_problem(_MOE, target_bpw=3, widths=_WIDTHS, codebook="mul1", head_choice="6", head_bits=6.0)
    for attempt in (lambda: rules_mix(problem, within), lambda: floors([within], _MOE, _WIDTHS)):
        with pytest.raises(UsageError, match=r"contradict each other on 0\.") as caught:
            attempt()
        assert "rule 1 of mine (roles *.down)" in str(caught.value)
        assert "rule 2 of mine (layers 0 1)" in str(caught.value)
    with pytest.raises(UsageError, match="contradict") as caught:
        floors([_rules(one), _rules(two, name="other")], _MOE, _WIDTHS)
    assert "rule 1 of mine (roles *.down)" in str(caught.value)
    assert "rule 1 of other (layers 0 1)" in str(caught.value)


def test_overriding_is_no_contradiction() -> None:
    rules = _rules({"bits": 3}, {"match": {"roles": ["attn.*"]}, "bits": 4}, {"match": {"layers": [0, 0]}, "bits": 6})
    found = floors([rules], _MOE, _WIDTHS)
    assert (found["0.attn.q"], found["1.attn.q"], found["1.experts.down"]) == (6, 4, 3)


def test_rules_that_match_nothing_are_named() -> None:
    rules = _rules(
        {"match": {"roles": ["attn.*"]}, "bits": 3},
        {"match": {"roles": ["atn.*"]}, "bits": 3},
        {"match": {"keys": ["*.lm_head"]}, "bits": 3},
        {"match": {"architectures": ["Llama*"]}, "bits": 3},
        {"match": {"sparse_model": False}, "bits": 3},
    )
    assert unmatched(rules, _MOE) == (
        "rule 2 of mine (roles atn.*) matches nothing in this Glm4MoeForCausalLM",
        "rule 3 of mine (keys *.lm_head) matches nothing in this Glm4MoeForCausalLM",
    )


@pytest.mark.slow
@pytest.mark.parametrize("rules", load_all_rules(), ids=lambda rules: rules.name)
def test_bundled_rules_all_match_in_glm(rules: Heuristics) -> None:
    config = Path(__file__).parents[1] / "fixtures/configs/glm-4.7.json"
    glm = inventory_from_config(json.loads(config.read_text(encoding="utf-8")))
    # What is for dense models alone does not apply, which is no mistake.
    assert unmatched(rules, glm) == ()
    floors([rules], glm, _WIDTHS)
    floors([rules], _DENSE, _WIDTHS)


def test_bits_out_of_reach_are_named() -> None:
    rules = _rules({"match": {"roles": ["attn.*"]}, "bits": 16}, {"match": {"roles": ["none.*"]}, "min_bits": 8})
    (warning,) = out_of_reach(rules, _MOE, _WIDTHS)
    assert warning.startswith("rule 1 of mine (roles attn.*), bits 16: the highest width at hand, 6,")
    assert out_of_reach(rules, _MOE, (*_WIDTHS, 16.0)) == ()
