"""Optuna's knobs around the exact core: how far to believe exponents, parts of layers, and the hand rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import fmean

import numpy as np
import numpy.typing as npt
import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from exltune.errors import UsageError
from exltune.plugins import Plugins
from exltune.schema.heuristics import Heuristics
from exltune.search.problem.problem import SearchProblem
from exltune.search.rules.rules import rules_mix

Floats = npt.NDArray[np.float64]
Assignment = tuple[int, ...]


@dataclass(frozen=True)
class SamplerRow:
    """A row of the table of samplers, or the object of an entry point of the group "exltune.samplers".

    make: from a seed. objectives: the most that it knows; with 1 it cannot trace the front over sizes.
    exltune.testing.samplers has the tests that it must pass. A distribution names it in its pyproject.toml:

        [project.entry-points."exltune.samplers"]
        annealing = "my_package.samplers:ANNEALING"
    """

    make: Callable[[int], BaseSampler]
    objectives: int = 2


def _cmaes(seed: int) -> BaseSampler:
    if find_spec("cmaes") is None:
        raise UsageError(
            "the sampler 'cmaes' needs the package cmaes, which is not installed", fix="pip install 'exltune[cmaes]'"
        )
    return CmaEsSampler(seed=seed, n_startup_trials=4)


#: Samplers by name; other distributions add theirs by entry point.
SAMPLERS: Mapping[str, SamplerRow] = {
    "tpe": SamplerRow(lambda seed: TPESampler(seed=seed, multivariate=True, constant_liar=True)),
    "gp": SamplerRow(lambda seed: GPSampler(seed=seed, n_startup_trials=8, deterministic_objective=False)),
    "cmaes": SamplerRow(_cmaes, objectives=1),
    "nsga2": SamplerRow(lambda seed: NSGAIISampler(seed=seed, population_size=8)),
    "random": SamplerRow(lambda seed: RandomSampler(seed=seed)),
}
_PLUGINS = Plugins("sampler", "exltune.samplers", SAMPLERS)

_NO_RULE = "none"


#: Seeds that samplers take.
_SEEDS = 1 << 32


def sampler_names() -> tuple[str, ...]:
    """Names that sampler takes; nothing is imported for it."""
    return _PLUGINS.names()


def sampler(name: str, seed: int, *, objectives: int = 1) -> BaseSampler:
    """A sampler by name.

    seed: 0 to 2^32 - 1, as NumPy takes it.
    Raises: UsageError naming the ones there are, for another seed, for a front that one cannot trace, for a package
    that is not installed, and for an entry point that gives no sampler.
    """
    if not 0 <= seed < _SEEDS:
        raise UsageError(f"`seed` {seed} is out of range", fix=f"Give a whole number from 0 to {_SEEDS - 1}")
    row = _row(name)
    if objectives > row.objectives:
        raise UsageError(f"the sampler {name!r} knows one objective only", fix="Take nsga2 or tpe for several sizes")
    return row.make(seed)


def _row(name: str) -> SamplerRow:
    entry = _PLUGINS.find(name)
    if entry is None:
        return SAMPLERS[name]
    found = _PLUGINS.load(entry)
    if not isinstance(found, SamplerRow):
        raise _PLUGINS.refused(entry, "is not a SamplerRow")
    return found


def rule_bits(problem: SearchProblem, rules: Iterable[Heuristics]) -> dict[str, list[float]]:
    """Bits of every unit by each rule file's own mix; units that a rule does not know stay at their defaults."""
    found = {}
    for one in rules:
        bits = rules_mix(problem, one)
        default = problem.candidate("", bits).choices
        found[one.name] = [
            fmean(bits[member] for member in unit.members)
            if unit.members[0] in bits
            else next(option.bits for option in unit.options if option.choice == default[unit.members[0]])
            for unit in problem.units
        ]
    return found


@dataclass(frozen=True)
class Turn:
    """One setting of the knobs: the trial's number, the problem it is for, and the energies that it believes."""

    trial: int
    problem: int
    energies: tuple[Floats, ...]


class Knobs:
    """Asks a study for settings and tells it the scores of their mixes; the study's storage may be shared by workers.

    rules: for every problem, rule name -> bits of every unit by that rule's own mix. With several problems (sizes) the
    study has two objectives, KL(reference‖mix) and bytes, and the size is one more knob.
    """

    def __init__(
        self,
        study: optuna.Study,
        problems: Sequence[SearchProblem],
        rules: Sequence[Mapping[str, Sequence[float]]],
    ) -> None:
        self.study, self.problems, self._rules = study, tuple(problems), tuple(rules)
        self._parts = tuple(dict.fromkeys(unit.part for unit in problems[0].units if len(unit.options) > 1))
        self._open: dict[int, Trial] = {}

    def ask(self, energies: Sequence[Floats], optima: Sequence[Assignment]) -> Turn:
        """A setting on top of the surrogate's energies; optima: the surrogate's own optimum of every problem."""
        trial = self.study.ask()
        self._open[trial.number] = trial
        problem = trial.suggest_int("size", 0, len(self.problems) - 1) if len(self.problems) > 1 else 0
        exponent = trial.suggest_float("exponent", -0.4, 0.4)
        belief = {part: trial.suggest_float(f"part.{part}", -1.0, 1.0) for part in self._parts}
        rule = trial.suggest_categorical("rule", [_NO_RULE, *self._rules[0]])
        weight = trial.suggest_float("rule_weight", 0.0, 1.0)
        turned = []
        for number, unit in enumerate(self.problems[problem].units):
            logs = np.log(np.maximum(energies[number], 1e-300))
            logs = logs + exponent * (logs - logs[0]) + belief.get(unit.part, 0.0)
            if rule != _NO_RULE:
                here = unit.options[optima[problem][number]].bits
                logs = logs + weight * float(np.log(2.0)) * (self._rules[problem][rule][number] - here)
            turned.append(np.exp(logs))
        return Turn(trial.number, problem, tuple(turned))

    def tell(self, trial: int, kld: float | None, size_bytes: int) -> None:
        """The score of a setting's mix; None: it was dropped or not worth scoring."""
        asked = self._open.pop(trial)
        if kld is None:
            self.study.tell(asked, state=TrialState.FAIL)
        elif len(self.problems) > 1:
            self.study.tell(asked, [kld, float(size_bytes)])
        else:
            self.study.tell(asked, kld)
