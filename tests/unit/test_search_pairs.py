"""Pairs that exllamav3 fuses: kept whole in a search, or split with a note of what that gives up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import LawEngine, bpw_range, run_search

from exltune.budget import SizeModel
from exltune.inventory import groups_at_level, inventory_from_config
from exltune.report.fused import unfused_note
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import Measurement
from exltune.search import BASELINES, SearchProblem, baseline_mixes, load_all_rules, search_problem, unfused
from exltune.search.problem.pairs import kept_whole
from exltune.testing.laws import CONFIG, INVENTORY, measured, random_law

_MODELS = Path(__file__).parents[2] / "models"
PAIRS = [part.members for part in groups_at_level(INVENTORY, 3) if len(part.members) > 1]


def _measured(level: int) -> Measurement:
    """Swaps under a law in which the two of a pair are far apart."""
    law = random_law(seed=1)
    uneven = {key: scale * (5 if key.endswith((".v", ".up")) else 0.2) for key, scale in law.scales.items()}
    return measured(replace(law, scales=law.scales | {one: uneven[one] for pair in PAIRS for one in pair}), level=level)


def _problem(level: int, share: float = 0.3, **changes: Any) -> SearchProblem:
    low, high = bpw_range()
    return search_problem(
        INVENTORY,
        target_bpw=low + share * (high - low),
        widths=(2.0, 3.0, 4.0, 6.0, 8.0),
        codebook="mul1",
        head_choice="6",
        head_bits=6.0,
        measurement=_measured(level),
        **changes,
    )


def _split(choices: dict[str, str]) -> list[tuple[str, ...]]:
    return [pair for pair in PAIRS if len({choices[one] for one in pair}) > 1]


@pytest.mark.parametrize(("level", "keep", "units"), [(3, False, 19), (4, False, 25), (4, True, 19), (3, True, 19)])
def test_units_follow_the_measurement_unless_pairs_are_kept(level: int, keep: bool, units: int) -> None:
    problem = _problem(level, keep_pairs=keep)
    assert len(problem.group_units) == units
    assert [member for unit in problem.group_units for member in unit.members] == list(problem.group_ids)
    names = {part.id for part in groups_at_level(INVENTORY, 4 if units == len(problem.group_ids) else 3)}
    assert {unit.id for unit in problem.group_units} == names


def test_a_kept_pair_costs_what_both_cost() -> None:
    fine, whole = _measured(4), kept_whole(_measured(4), INVENTORY)
    alone = {unit.id: unit for unit in fine.exltune.groups}
    pair = next(unit for unit in whole.exltune.groups if unit.id == "1.attn.kv")
    assert (pair.role, pair.layer, pair.members) == ("attn.kv", 1, ("1.attn.k", "1.attn.v"))
    for place, probe in enumerate(pair.probes):
        k, v = (alone[f"1.attn.{half}"].probes[place] for half in "kv")
        assert probe.kld_nats == pytest.approx(k.kld_nats + v.kld_nats)
        assert (probe.estimated, probe.kld_rows, probe.bits) == (True, (), k.bits)
        assert probe.kld_ci95_nats is not None
        assert np.mean(probe.kld_ci95_nats) == pytest.approx(probe.kld_nats)
    # What was measured together, or more coarsely, stays as it is.
    for level in (2, 3):
        assert kept_whole(_measured(level), INVENTORY) == _measured(level)


@pytest.mark.parametrize("level", [3, 4])
def test_no_method_splits_a_pair_that_is_kept(level: int) -> None:
    rules = [one for one in load_all_rules() if one.name in ("down-and-ends", "backbone-first")]
    for share in (0.05, 0.3, 0.7):
        seeds = baseline_mixes(_problem(level, share, keep_pairs=True), rules)
        assert {seed.name for seed in seeds} >= BASELINES.keys() - {"exllamav3-hq"}
        assert all(_split(seed.mix.choices) == [] for seed in seeds)
        assert all(seed.predicted_kld is not None for seed in seeds)


@pytest.mark.slow
def test_the_search_splits_pairs_where_that_pays_and_may() -> None:
    law = random_law(seed=1)
    uneven = {one: law.scales[one] * (5 if one.endswith((".v", ".up")) else 0.2) for pair in PAIRS for one in pair}
    law = replace(law, scales=law.scales | uneven)
    found = {}
    for name, problem in {"l3": _problem(3), "l4": _problem(4), "kept": _problem(4, keep_pairs=True)}.items():
        ran = run_search([problem], LawEngine(law), knobs=None)
        choices = problem.candidate_of("", ran.search.incumbent[0]).mix.choices
        found[name] = law.kld(choices)
        assert bool(_split(choices)) == (name == "l4")
    assert found["l4"] < 0.97 * found["l3"]
    assert found["kept"] == pytest.approx(found["l3"], rel=0.01)


def _bits(inventory: Inventory, **special: float) -> dict[str, float]:
    named = {name[1:].replace("_", "."): bits for name, bits in special.items()}
    assert named.keys() <= {group.id for group in inventory.groups}
    return {group.id: named.get(group.id, 3.0) for group in inventory.groups}


def test_what_a_split_gives_up() -> None:
    inventory = inventory_from_config(json.loads((_MODELS / "glm4moe" / "config.json").read_text(encoding="utf-8")))
    sizes = SizeModel(inventory, "mul1")
    bits = _bits(inventory, g0_attn_v=4, g1_attn_v=4, g3_attn_k=2, g1_shared_up=4, g2_experts_down=5)
    assert unfused(bits, sizes) == {"attn.kv": (0, 1, 3), "shared.gate_up": (1,)}
    (note,) = unfused_note(bits, sizes)
    assert "attn.kv of layer 0-1, 3, shared.gate_up of layer 1:" in note
    assert unfused_note(_bits(inventory), sizes) == ()


@pytest.mark.parametrize(
    ("changes", "codebook", "high", "given_up"),
    [
        ({"intermediate_size": 8192}, "mul1", 5.0, False),  # Faster apart.
        ({"intermediate_size": 8192}, "mul1", 6.0, True),
        ({"intermediate_size": 8192}, "mcg", 5.0, True),
        ({"intermediate_size": 8064}, "mul1", 5.0, True),
        ({"intermediate_size": 8064, "architectures": ["LlamaForCausalLM"], "mlp_bias": True}, "mul1", 5.0, False),
    ],
)
def test_what_exllamav3_runs_apart_anyway(changes: dict[str, Any], codebook: Any, high: float, given_up: bool) -> None:
    inventory = inventory_from_config(CONFIG | changes)
    found = unfused(_bits(inventory, g0_mlp_gate=high), SizeModel(inventory, codebook))
    assert found == ({"mlp.gate_up": (0,)} if given_up else {})


def test_gate_and_up_of_wide_shared_experts_are_one_launch() -> None:
    inventory = inventory_from_config(CONFIG | {"moe_intermediate_size": 8192})
    found = unfused(_bits(inventory, g1_shared_gate=4), SizeModel(inventory, "mul1"))
    assert found == {"shared.gate_up": (1,)}
