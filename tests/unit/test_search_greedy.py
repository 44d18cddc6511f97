"""Seeds that exllamav3's ways of allocating make of a measurement."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from synthetic_measurement import synthetic_measurement

from exltune.inventory import inventory_from_config
from exltune.schema.measurement import Measurement
from exltune.search import BASELINES, SearchProblem, search_problem
from exltune.search.baselines.greedy import exllamav3_greedy
from exltune.search.law.costs import nmse

WIDTHS = (2.0, 3.0, 4.0)
INVENTORY = inventory_from_config(
    {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 256,
        "vocab_size": 256,
    }
)
GROUPS = [group.id for group in INVENTORY.groups]


def problem_of(klds: dict[str, tuple[float, ...]], target: float) -> SearchProblem:
    """A problem with these swaps at 2, 3 and 4 bits, nats/token; groups that are not named have none at all."""
    made = synthetic_measurement(INVENTORY, WIDTHS, (6.0,), level=4)
    groups = []
    for group in made.exltune.groups:
        values = klds.get(group.id, (0.0,) * 3)
        probes = [one.model_copy(update={"kld_nats": kld}) for one, kld in zip(group.probes, values, strict=True)]
        groups.append(group.model_copy(update={"probes": tuple(probes)}))
    detail = made.exltune.model_copy(update={"groups": tuple(groups)})
    return problem_with(made.model_copy(update={"exltune": detail}), target)


def problem_with(measurement: Measurement | None, target: float) -> SearchProblem:
    return search_problem(
        INVENTORY,
        target_bpw=target,
        widths=WIDTHS,
        codebook="mul1",
        head_choice="2",
        head_bits=6,
        measurement=measurement,
    )


def raised(bits: dict[str, float] | None) -> dict[str, float]:
    assert bits is not None
    return {group: width for group, width in bits.items() if width > WIDTHS[0]}


def test_greedy_takes_what_lowers_kl_and_leaves_the_rest() -> None:
    helps, harms = GROUPS[0], GROUPS[1]
    problem = problem_of({helps: (0.3, 0.1, 0.02), harms: (0.1, 0.2, 0.3)}, 4.0)
    assert raised(exllamav3_greedy(problem)) == {helps: 4.0}


@pytest.mark.parametrize(("spare", "expected"), [(0, {}), (1, {GROUPS[0]: 3.0})])
def test_greedy_never_spends_the_whole_budget(spare: int, expected: dict[str, float]) -> None:
    problem = problem_of({GROUPS[0]: (0.3, 0.1, 0.02)}, 3.0)
    needed = problem.groups_bytes(dict.fromkeys(GROUPS, 2.0) | {GROUPS[0]: 3.0})
    tight = replace(problem, groups_budget_bytes=needed + spare)
    assert raised(exllamav3_greedy(tight)) == expected


def test_convex_is_the_optimum_of_the_lowest_swaps_alone() -> None:
    """Against every mix there is; swaps at more bits are made to mislead."""
    scale = {group: 0.1 * (1 + i * i) for i, group in enumerate(GROUPS)}
    problem = problem_of({group: (kld, 0.0, 5.0) for group, kld in scale.items()}, 2.9)

    def cost(widths: tuple[float, ...]) -> float:
        return sum(scale[g] * float(nmse(width)) for g, width in zip(GROUPS, widths, strict=True))

    within = (
        widths
        for widths in product(WIDTHS, repeat=len(GROUPS))
        if problem.groups_bytes(dict(zip(GROUPS, widths, strict=True))) <= problem.groups_budget_bytes
    )
    found = BASELINES["convex"](problem)
    assert found is not None
    assert cost(tuple(float(found.mix.choices[g]) for g in GROUPS)) == pytest.approx(cost(min(within, key=cost)))


@pytest.mark.parametrize("name", ["convex", "exllamav3-greedy"])
def test_nothing_is_proposed_without_a_measurement(name: str) -> None:
    assert BASELINES[name](problem_with(None, 2.9)) is None
