"""Our own samplers keep the contract; those of others come by entry point."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fake_distributions import install
from optuna.samplers import RandomSampler

from exltune.errors import UsageError
from exltune.search import (
    SAMPLERS,
    Knobs,
    SamplerRow,
    Surrogate,
    knob_study,
    load_all_rules,
    open_storage,
    rule_bits,
    sampler,
    sampler_names,
    search_problem,
    solve,
)
from exltune.testing.laws import INVENTORY, WIDTHS, measured, random_law
from exltune.testing.samplers import SamplerContract

Give = Callable[..., None]


@pytest.mark.slow
class TestOurSamplers(SamplerContract):
    """Every row of the table."""

    @pytest.fixture(params=sorted(SAMPLERS))
    def row(self, request: pytest.FixtureRequest) -> SamplerRow:
        if request.param == "cmaes" and find_spec("cmaes") is None:
            pytest.skip("cmaes is not installed")
        return SAMPLERS[request.param]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Give:
    """Install a distribution with samplers; its modules are not imported yet."""
    source = (
        "import optuna\nfrom exltune.search import SamplerRow\n"
        "OTHER = SamplerRow(lambda seed: optuna.samplers.RandomSampler(seed=seed))\nBARE = optuna.samplers.TPESampler\n"
    )
    (tmp_path / "fake_samplers.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fake_samplers", raising=False)

    def give(name: str = "exltune-fake", **rows: str) -> None:
        install(monkeypatch, tmp_path / name, name, "exltune.samplers", rows)

    return give


def test_samplers_of_others_are_listed_without_being_imported(give: Give) -> None:
    assert sampler_names() == tuple(SAMPLERS)
    give(other="fake_samplers:OTHER")
    assert sampler_names() == (*SAMPLERS, "other")
    assert "fake_samplers" not in sys.modules
    assert isinstance(sampler("other", 0, objectives=2), RandomSampler)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("fake_samplers:BARE", "is not a SamplerRow"),
        ("fake_samplers:NONE", "cannot be imported .*NONE"),
        ("no_such_module_of_ours:ROW", "cannot be imported .*no_such_module_of_ours"),
    ],
)
def test_what_is_not_a_sampler_is_refused(give: Give, target: str, reason: str) -> None:
    give(bad=target)
    with pytest.raises(UsageError, match=f"the sampler 'bad' {reason}") as error:
        sampler("bad", 0)
    assert error.value.where == f"entry point {target} of exltune-fake 1.5"


def test_two_samplers_of_one_name_are_refused(give: Give) -> None:
    give(tpe="fake_samplers:OTHER")
    with pytest.raises(UsageError, match=r"given by exltune and by exltune-fake 1\.5"):
        sampler("tpe", 0)


def test_a_package_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(UsageError, match="needs the package cmaes") as error:
        sampler("cmaes", 0)
    assert error.value.fix == "pip install 'exltune[cmaes]'"


def test_samplers_of_one_objective_refuse_a_front() -> None:
    with pytest.raises(UsageError, match="one objective only"):
        sampler("cmaes", 0, objectives=2)


def test_unknown_samplers_are_told_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="no sampler 'annealing'") as error:
        sampler("annealing", 0)
    assert all(name in str(error.value) for name in SAMPLERS)


def test_a_rule_pulls_towards_its_own_bits() -> None:
    """With all weight on a rule, units that it gives more bits become dearer to leave low, by a factor of 2 a bit."""
    problem = search_problem(
        INVENTORY,
        target_bpw=3.0,
        widths=WIDTHS,
        codebook="mul1",
        head_choice="6",
        head_bits=6.0,
        measurement=measured(random_law(), rows=2),
    )
    rules = rule_bits(problem, load_all_rules()[:2])
    knobs = Knobs(knob_study(open_storage(None), "k", sampler("random", 0), objectives=1), [problem], [rules])
    energies = Surrogate(problem).energies()
    optimum = solve(problem, energies)
    assert optimum is not None
    for _ in range(40):
        turn = knobs.ask(energies, [optimum])
        setting = knobs.study.trials[turn.trial].params
        knobs.tell(turn.trial, None, 0)
        if setting["rule"] == "none":
            continue
        wanted = rules[setting["rule"]]
        for number, unit in enumerate(problem.units):
            logs = np.log(energies[number])
            logs = logs + setting["exponent"] * (logs - logs[0]) + setting[f"part.{unit.part}"]
            more = wanted[number] - unit.options[optimum[number]].bits
            expected = logs + setting["rule_weight"] * np.log(2) * more
            assert np.log(turn.energies[number]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        return
    pytest.fail("no rule in 40 settings")


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_out_of_range_is_told(seed: int) -> None:
    with pytest.raises(UsageError, match=r"`seed` .* is out of range.*0 to 4294967295"):
        sampler("random", seed)
