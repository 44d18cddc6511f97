"""The law of whole mixes: its derivatives, what it recovers, what it learns, and where it knows nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize._numdiff import approx_derivative

from exltune.errors import UsageError
from exltune.inventory import inventory_from_config
from exltune.schema.measurement import Measurement
from exltune.schema.mix import CACHE_K, CACHE_V
from exltune.search import SearchProblem, Surrogate, cache_unit, head_unit, search_problem, solve
from exltune.search.law.surrogate import EXACT, whole_mixes
from exltune.testing.laws import INVENTORY, WIDTHS, Law, measured, random_law

_FLAT = {"rows": 4}


def _problem(measurement: Measurement | None, **changes: object) -> SearchProblem:
    settings = {
        "target_bpw": 3.5,
        "widths": WIDTHS,
        "codebook": "mul1",
        "head_choice": "6",
        "head_bits": 6.0,
    }
    return search_problem(INVENTORY, measurement=measurement, **(settings | changes))


def _wide(measurement: Measurement) -> SearchProblem:
    plain = _problem(measurement)
    heads = head_unit(plain.sizes, {4.0: "4", 6.0: "6", 8.0: "8"})
    caches = [cache_unit(key, {bits: 1000 * bits for bits in range(2, 9)}) for key in (CACHE_K, CACHE_V)]
    return _problem(measurement, wider=(heads, *caches), extras={CACHE_K: "8", CACHE_V: "8"})


def _some_mixes(problem: SearchProblem, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(int(rng.integers(len(unit.options))) for unit in problem.units) for _ in range(count)]


def _kld(law: Law, problem: SearchProblem, assignment: tuple[int, ...]) -> float:
    return law.kld(problem.candidate_of("", assignment).mix.choices)


def test_derivatives_are_those_of_finite_differences() -> None:
    law = random_law(wider=True, noise=0.1)
    problem = _wide(measured(law, wider=True, **_FLAT))
    surrogate = Surrogate(problem)
    assignment = np.array(_some_mixes(problem, 5))
    assignment[3, :4] = EXACT
    mixes = whole_mixes(assignment.tolist(), [0.1, 0.2, 0.3, 0.4, 0.5], [0.2], len(problem.units))
    at = surrogate._parameters + 0.1 * np.random.default_rng(0).standard_normal(len(surrogate._parameters))
    for residuals, slopes in (
        (lambda x: surrogate._misfit(x, mixes), surrogate._slopes(at, mixes)),
        (surrogate._swap_misfit, surrogate._swap_slopes(at).toarray()),
    ):
        numeric = approx_derivative(residuals, at, method="3-point")
        assert slopes == pytest.approx(numeric, rel=1e-5, abs=1e-5 * float(np.abs(numeric).max()))


@pytest.mark.parametrize("gamma", [0.6, 0.75, 0.9])
def test_gamma_scales_and_exponents_of_a_law_are_recovered(gamma: float) -> None:
    law = random_law(gamma=gamma, q=1.8)
    problem = _problem(measured(law, **_FLAT))
    surrogate = Surrogate(problem)
    mixes = _some_mixes(problem, 60)
    truth = [_kld(law, problem, assignment) for assignment in mixes]
    difficulty = law.rows({}, range(4)).mean() / law.kld({})
    surrogate.fit(mixes, [kld * difficulty for kld in truth], [truth[0]])
    assert surrogate.gamma == pytest.approx(gamma, abs=0.04)
    for exponent in surrogate.exponents().values():
        assert exponent == pytest.approx(gamma * 1.8, rel=0.08)
    fresh = _some_mixes(problem, 40, seed=1)
    error = surrogate.predict(fresh) - np.log([difficulty * _kld(law, problem, assignment) for assignment in fresh])
    assert float(np.abs(error).max()) < 0.05


def test_predictions_get_better_with_every_mix_that_was_scored() -> None:
    # Swaps that are off by a factor of their own: only whole mixes tell how the units stand to each other.
    law = random_law(seed=1)
    rng = np.random.default_rng(0)
    off = Law({key: scale * float(np.exp(0.5 * rng.standard_normal())) for key, scale in law.scales.items()})
    problem = _problem(measured(off, **_FLAT))
    surrogate = Surrogate(problem)
    fresh = _some_mixes(problem, 40, seed=9)
    truth = np.log([_kld(law, problem, assignment) for assignment in fresh])
    errors = []
    for count in (0, 20, 80):
        mixes = _some_mixes(problem, count, seed=2)
        surrogate.fit(mixes, [_kld(law, problem, assignment) for assignment in mixes])
        errors.append(float(np.std(surrogate.predict(fresh) - truth)))
    assert errors[0] > 1.3 * errors[1] > 1.3 * 1.3 * errors[2]


def test_samples_spread_where_nothing_was_measured() -> None:
    """A unit with a swap at 2 bits alone is known there, and its exponent is a guess; with all swaps it is known."""
    law = random_law()
    few, all_widths = (
        Surrogate(_problem(measured(law, widths=widths, **_FLAT), widths=WIDTHS)) for widths in ((2.0,), WIDTHS)
    )

    def spreads(surrogate: Surrogate) -> tuple[float, float]:
        samples = [surrogate.energies(np.random.default_rng(i))[0] for i in range(60)]
        steps = np.array([np.log(z[-1] / z[0]) for z in samples])
        return float(steps.std()), float(np.log([z[0] for z in samples]).std())

    assert spreads(few)[0] > 1.4 * spreads(all_widths)[0]
    assert spreads(few)[0] > 0.5
    assert np.array_equal(few.energies()[0], few.energies()[0])


def test_the_uniform_quants_of_the_measurement_are_learned_from() -> None:
    """They tell gamma: without them the swaps alone cannot."""
    law = random_law(gamma=0.55)
    measurement = measured(law, **_FLAT)
    detail = measurement.exltune.model_copy(update={"mixes": ()})
    alone = Surrogate(_problem(measurement.model_copy(update={"exltune": detail})))
    assert abs(Surrogate(_problem(measurement)).gamma - 0.55) < 0.5 * abs(alone.gamma - 0.55)


def test_a_unit_without_probes_is_an_error() -> None:
    law = random_law()
    measurement = measured(law, **_FLAT)
    first, *others = measurement.exltune.groups
    detail = measurement.exltune.model_copy(update={"groups": (first.model_copy(update={"probes": ()}), *others)})
    with pytest.raises(UsageError, match=r"no probe of 0\.attn\.q"):
        Surrogate(_problem(measurement.model_copy(update={"exltune": detail})))
    with pytest.raises(UsageError, match="no measurement"):
        Surrogate(_problem(None))


def test_units_with_fewer_options_never_see_the_padding() -> None:
    """A floor leaves some units one or two options: everything else is as if they had all."""
    law = random_law(wider=True)
    measurement = measured(law, wider=True, **_FLAT)
    floors = {"0.attn.q": 8.0, "1.experts.down": 6.0}
    problem = _problem(measurement, floors=floors)
    surrogate = Surrogate(problem)
    energies = surrogate.energies()
    assert [len(z) for z in energies] == [len(unit.options) for unit in problem.units]
    assert [len(energies[0]), len(WIDTHS)] == [1, len(energies[1])]
    for z in energies:
        assert np.all(np.diff(z) < 0)
    for assignment in _some_mixes(problem, 5):
        summed = sum(float(z[option]) for z, option in zip(energies, assignment, strict=True))
        assert surrogate.predict([assignment]) == pytest.approx(surrogate.gamma * np.log(summed), rel=1e-9)


def test_one_width_leaves_nothing_to_choose() -> None:
    law = random_law()
    problem = _problem(measured(law, widths=(3.0,), **_FLAT), widths=(3.0,), groups_budget_bytes=10**9)
    surrogate = Surrogate(problem)
    assert solve(problem, surrogate.energies()) == (0,) * len(problem.units)
    assert np.isfinite(surrogate.energies(np.random.default_rng(0))[0]).all()


def test_parts_of_layers_are_units_too() -> None:
    law = random_law()
    problem = _problem(measured(law, level=2, **_FLAT))
    assert len(problem.units) < len(INVENTORY.groups)
    assignment = solve(problem, Surrogate(problem).energies())
    assert assignment is not None
    choices = problem.candidate_of("", assignment).mix.choices
    assert problem.assignment_of(choices) == assignment
    split = choices | {"0.attn.q": "2", "0.attn.o": "8"}
    assert problem.assignment_of(split) is None


def test_swaps_below_the_noise_count_for_little() -> None:
    law = random_law()
    measurement = measured(law, **_FLAT)
    first, *others = measurement.exltune.groups
    probes = (*first.probes[:-1], first.probes[-1].model_copy(update={"kld_nats": -1e-6, "kld_se_nats": 1e-4}))
    detail = measurement.exltune.model_copy(update={"groups": (first.model_copy(update={"probes": probes}), *others)})
    noisy = Surrogate(_problem(measurement.model_copy(update={"exltune": detail}))).energies()[0]
    assert np.log(noisy) == pytest.approx(np.log(Surrogate(_problem(measurement)).energies()[0]), abs=0.1)


def test_a_dense_model_with_a_tied_head() -> None:
    tied = inventory_from_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "vocab_size": 256,
            "tie_word_embeddings": True,
        }
    )
    law = random_law(tied, wider=True)
    problem = search_problem(
        tied,
        target_bpw=3.4,
        widths=WIDTHS,
        codebook="mul1",
        head_choice="6",
        head_bits=6.0,
        measurement=measured(law, tied, wider=True),
    )
    assignment = solve(problem, Surrogate(problem).energies())
    assert assignment is not None
    assert problem.within(assignment)
