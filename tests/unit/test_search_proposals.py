"""Costs from a measurement, and the seeds that every method makes of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltune.budget import SizeModel
from exltune.errors import BudgetError, UsageError
from exltune.inventory import groups_at_level, inventory_from_config
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import MeasuredGroup, Measurement, MeasurementDetail, Probe, QuantRef
from exltune.schema.mix import choice_of_bits
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataOptions
from exltune.search import BASELINES, SearchProblem, baseline_mixes, load_all_rules, search_problem
from exltune.search.law.costs import fitted_costs, measured_costs, nmse
from exltune.testing.laws import INVENTORY as _INVENTORY

_WIDTHS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
_RULES = load_all_rules()

Law = Callable[[str, float], float]


def _measurement(
    law: Law,
    *,
    level: int = 3,
    base: str = "16",
    base_kld: float = 0.0,
    widths: tuple[float, ...] = _WIDTHS,
    se: float = 1e-5,
    inventory: Inventory = _INVENTORY,
) -> Measurement:
    """A measurement whose probes follow `law(unit id, width)`."""
    units = tuple(
        MeasuredGroup(
            **part.model_dump(),
            probes=tuple(
                Probe(
                    choice=choice_of_bits(width),
                    bits=width,
                    size_bytes=0,
                    kld_nats=law(part.id, width),
                    kld_se_nats=se,
                    kld_rows=(),
                )
                for width in widths
            ),
        )
        for part in groups_at_level(inventory, level)
    )
    provenance = Provenance(exltune_version="0", engine="test", model_path="m", model_sha256="0")
    detail = MeasurementDetail(
        level=level,
        base=base,
        quants={},
        quant_sha256={},
        head_choice="6",
        head_bits=6.0,
        codebook="mul1",
        data=DataOptions(),
        groups=units,
        provenance=provenance,
    )
    return Measurement(
        base=QuantRef(dir="2", bpw=2.0),
        alts=(),
        groups=(),
        base_kld=base_kld,
        arch_string=inventory.architecture,
        exltune=detail,
    )


def _scale(unit: str) -> float:
    return {"attn": 0.05, "mlp": 0.2, "shared": 0.3, "experts": 1.0}[unit.split(".")[1]] * (1 + int(unit[0]))


def _power_law(unit: str, width: float) -> float:
    exponent = 2.0 if ".attn" in unit else 1.5
    return _scale(unit) * float(nmse(width)) ** (exponent / 2)


def _problem(target: float, measurement: Measurement | None = None) -> SearchProblem:
    return search_problem(
        _INVENTORY,
        target_bpw=target,
        widths=_WIDTHS,
        codebook="mul1",
        head_choice="6",
        head_bits=6.0,
        measurement=measurement,
    )


@pytest.mark.parametrize("level", [2, 3])
def test_the_law_is_recovered_from_two_probes(level: int) -> None:
    table = fitted_costs(_measurement(_power_law, level=level, widths=(2.0, 4.0), se=1e-7), _WIDTHS)
    for unit in table.units:
        for width in _WIDTHS:
            assert table.costs[unit.id][width] == pytest.approx(_power_law(unit.id, width), rel=0.08)


def test_the_law_is_recovered_over_a_quantized_base() -> None:
    def over_base(unit: str, width: float) -> float:
        return 0.4 + _power_law(unit, width) - _power_law(unit, 3.0)

    table = fitted_costs(_measurement(over_base, base="3", base_kld=0.4, se=1e-7), _WIDTHS)
    for unit in table.units:
        assert table.costs[unit.id][3.0] == 0.0
        assert table.costs[unit.id][5.0] < 0.0
        for width in _WIDTHS:
            assert table.costs[unit.id][width] == pytest.approx(over_base(unit.id, width) - 0.4, rel=0.08, abs=1e-4)


def test_measured_costs_never_rise_with_bits_nor_fall_below_zero() -> None:
    noisy = dict(zip(_WIDTHS, (0.1, 0.02, 0.03, 0.001, -0.002, 0.0005), strict=True))
    table = measured_costs(_measurement(lambda _, width: noisy[width]), _WIDTHS)
    expected = [0.1, 0.025, 0.025, 0.001, 0.0, 0.0]
    for unit in table.units:
        assert [table.costs[unit.id][width] for width in _WIDTHS] == pytest.approx(expected, abs=1e-9)


def test_widths_without_probes_take_the_laws_cost() -> None:
    table = measured_costs(_measurement(_power_law, widths=(2.0, 3.0, 6.0), se=1e-7), _WIDTHS)
    for unit in table.units:
        assert table.costs[unit.id][3.0] == pytest.approx(_power_law(unit.id, 3.0), rel=1e-6)
        assert table.costs[unit.id][4.0] == pytest.approx(_power_law(unit.id, 4.0), rel=0.08)


def test_predictions_are_sums_of_single_swaps() -> None:
    table = measured_costs(_measurement(_power_law, level=2), _WIDTHS)
    bits = {group.id: 4.0 if group.role.part == "attn" else 3.0 for group in _INVENTORY.groups}
    expected = sum(_power_law(unit.id, 4.0 if ".attn" in unit.id else 3.0) for unit in table.units)
    assert table.predict(bits) == pytest.approx(expected, rel=1e-9)
    assert table.predict(bits | {"0.attn.q": 8.0}) is None


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(share=st.floats(0, 1), level=st.sampled_from([None, 2, 3]))
def test_every_seed_is_within_every_feasible_budget(share: float, level: int | None) -> None:
    sizes = SizeModel(_INVENTORY, "mul1")
    low, high = (sizes.uniform_size(bits, 6).bpw for bits in (2, 8))
    measurement = None if level is None else _measurement(_power_law, level=level)
    problem = _problem(low + share * (high - low), measurement)
    seeds = baseline_mixes(problem, _RULES)
    names = [seed.name for seed in seeds]
    missing = set(BASELINES) - set(names)
    measured = {"exllamav3-greedy", "convex", "knapsack", "knapsack-fit"}
    assert missing <= {"exllamav3-hq"} | (set() if measurement else measured)
    assert {rules.name for rules in _RULES} <= set(names)
    for seed in seeds:
        assert set(seed.mix.choices) == {group.id for group in _INVENTORY.groups} | {"head"}
        assert seed.mix.choices["head"] == "6"
        size = sizes.mix_size({name: float(choice) for name, choice in seed.mix.choices.items()})
        assert (seed.size_bytes, seed.bpw) == (size.size_bytes, size.bpw)
        assert seed.bpw <= problem.target_bpw + 1e-9
        assert level != 3 or seed.predicted_kld is not None


def test_the_knapsack_has_the_least_prediction_and_uses_what_is_left() -> None:
    measurement = _measurement(_power_law)
    seeds = {seed.name: seed for seed in baseline_mixes(_problem(3.9, measurement), _RULES)}
    table = measured_costs(measurement, _WIDTHS)
    for seed in seeds.values():
        assert seed.predicted_kld is not None
        predicted = table.predict({group.id: float(seed.mix.choices[group.id]) for group in _INVENTORY.groups})
        assert predicted is not None
        assert seeds["knapsack"].predicted_kld <= predicted * 1.001
    flat = {seed.name: seed for seed in baseline_mixes(_problem(3.9, _measurement(lambda _, width: 0.0)))}
    assert flat["knapsack"].bpw > 3.85


def test_targets_out_of_range() -> None:
    with pytest.raises(BudgetError, match="below the smallest possible"):
        _problem(2.1)
    with pytest.raises(BudgetError, match="above the largest possible"):
        _problem(9.0)


def test_a_measurement_of_another_model_is_refused() -> None:
    other = inventory_from_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "vocab_size": 256,
        }
    )
    with pytest.raises(UsageError, match="does not fit the model"):
        _problem(3.9, _measurement(lambda _, width: 0.1, inventory=other))


def test_the_codecs_error_halves_a_bit() -> None:
    rfn = np.sqrt(nmse(np.array([2.0, 3.0, 4.0])))
    assert rfn == pytest.approx([0.261, 0.132, 0.0667], abs=1e-3)
