"""Our restatement of exllamav3's optimizer chooses what its own function chooses."""

from __future__ import annotations

import random
import types

import pytest
from synthetic_measurement import synthetic_measurement

from exltune.schema.measurement import MeasuredGroup, Measurement
from exltune.search import SearchProblem, search_problem
from exltune.search.baselines.greedy import exllamav3_greedy
from exltune.testing.laws import INVENTORY

WIDTHS = (2.0, 2.5, 3.0, 4.0, 6.0)


def problem_of(seed: int, target: float, noise: float) -> SearchProblem:
    """A problem whose swaps are blurred by so much that some to more bits look harmful; without noise some tie.

    k and v, and gate and up, were swapped together at one seed and apart at the next.
    """
    rng = random.Random(seed)
    measurement = synthetic_measurement(INVENTORY, WIDTHS, (6.0,), seed=seed, level=3 + seed % 2)
    detail = measurement.exltune
    groups = tuple(blurred(group, noise, rng) for group in detail.groups)
    return search_problem(
        INVENTORY,
        target_bpw=target,
        widths=WIDTHS,
        codebook="mul1",
        head_choice="2",
        head_bits=6,
        measurement=measurement.model_copy(update={"exltune": detail.model_copy(update={"groups": groups})}),
    )


def blurred(group: MeasuredGroup, noise: float, rng: random.Random) -> MeasuredGroup:
    def kld(bits: float, measured: float) -> float:
        return measured * (1 + noise * rng.uniform(-1, 1)) if noise else 0.01 * 2.0**-bits

    probes = tuple(one.model_copy(update={"kld_nats": kld(one.bits, one.kld_nats)}) for one in group.probes)
    return group.model_copy(update={"probes": probes})


def legacy_of(problem: SearchProblem) -> dict[str, list[dict[str, object]]]:
    """The measurement as exllamav3 reads it."""
    measurement = problem.measurement
    assert isinstance(measurement, Measurement)
    groups = []
    for group in measurement.exltune.groups:
        lowest, *others = group.probes
        size = {bits: 8 * sum(problem.sizes.group_bytes(one, bits) for one in group.members) for bits in WIDTHS}
        candidates = [
            {"dkld": one.kld_nats - lowest.kld_nats, "dbits": size[one.bits] - size[lowest.bits]} for one in others
        ]
        groups.append({"candidates": candidates})
    return {"groups": groups}


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("target", [2.4, 2.9, 3.5, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_chooses_what_exllamav3_chooses(exllamav3: types.ModuleType, seed: int, target: float, noise: float) -> None:
    from exllamav3.conversion.optimize_model import optimize

    problem = problem_of(seed, target, noise)
    lowest = 8 * problem.groups_bytes(dict.fromkeys(problem.group_ids, WIDTHS[0]))
    solution = optimize(legacy_of(problem), 0, lowest, 8 * problem.groups_budget_bytes, 1.0, len(WIDTHS) - 1)
    found = exllamav3_greedy(problem)
    units = zip(problem.units, solution, strict=True)
    assert found == {group: WIDTHS[step] for unit, step in units for group in unit.members}
    assert len(set(found.values())) > 1
