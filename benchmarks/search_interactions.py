"""Whether pairs of roles, neighbouring layers, or an exponent for every unit say more of a mix than the law does.

    python benchmarks/search_interactions.py [--models ...]

The mixes are those that the benchmark's searches scored, at every target. The law is fitted to four fifths of them;
what it leaves of log KL is explained, or not, by products of the energy shares of two roles or of two adjacent layers,
through a ridge whose penalty is chosen inside the training mixes. Errors are of the fifth that was left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt
import torch
from search_methods import PASSES, Cell, search
from search_stage import DELTAS, MODELS, stage_of

from exltune.search import SearchOptions, SearchProblem, Surrogate
from exltune.search.law.surrogate import uniform_mixes

Floats = npt.NDArray[np.float64]

_FOLDS = 5
_PENALTIES = 10.0 ** np.arange(-3, 3.5, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--deltas", nargs="+", type=float, default=list(DELTAS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = (
        "law",
        "with a curve over log KL",
        "with pairs of roles",
        "with neighbouring layers",
        "with all",
        "own q",
    )
    print("| model | mixes | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * (len(columns) + 1))
    for model in arguments.models:
        problem, assignment, klds, centres = scored_mixes(model, arguments.deltas)
        errors = cross_validated(problem, assignment, klds, centres)
        print(f"| {model} | {len(klds)} | " + " | ".join(f"{100 * error:.2f} %" for error in errors) + " |", flush=True)


def scored_mixes(
    model: str, deltas: Sequence[float]
) -> tuple[SearchProblem, list[tuple[int, ...]], list[float], list[float]]:
    """Mixes that the searches scored on the whole search set, with their KL, and the best KL at every target."""
    found: dict[tuple[int, ...], float] = {}
    centres = []
    for delta in deltas:
        cell = Cell(stage_of(model), delta)
        outcome, _ = search(cell, cell.stage.space(delta), SearchOptions(passes=PASSES))
        assert outcome.search is not None
        ledger, here = outcome.search.ledger, {}
        for mix, kld in ledger.scored():
            assignment = cell.problem.assignment_of(mix.choices)
            if assignment is not None and len(mix.kld_rows) >= ledger.rows:
                here[assignment] = kld
        centres.append(min(here.values()))
        found |= here
    return cell.problem, list(found), list(found.values()), centres


def cross_validated(
    problem: SearchProblem, assignment: Sequence[tuple[int, ...]], klds: Sequence[float], centres: Sequence[float]
) -> list[float]:
    """RMS error of log KL on left-out mixes: the law, with a curve, pairs of roles, neighbours, all, own q."""
    rng = np.random.default_rng(0)
    folds = rng.permutation(len(assignment)) % _FOLDS
    left = [np.zeros(len(assignment)) for _ in range(6)]
    for fold in range(_FOLDS):
        inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        law, own = Surrogate(problem), Surrogate(_with_own_roles(problem))
        plain, plain_klds = uniform_mixes(problem)
        for one in (law, own):
            one.fit([*plain, *(assignment[i] for i in inside)], [*plain_klds, *(klds[i] for i in inside)], centres)
        residual = np.log(klds) - law.predict(assignment)
        left[5][outside] = (np.log(klds) - own.predict(assignment))[outside]
        roles, layers = _pairs(problem, law, assignment)
        left[0][outside] = residual[outside]
        level = law.predict(assignment)
        curve = np.stack([level, level**2, level**3], axis=1)
        every = (curve, np.hstack([curve, roles]), np.hstack([curve, layers]), np.hstack([curve, roles, layers]))
        for place, features in enumerate(every, start=1):
            left[place][outside] = residual[outside] - _ridge(features, residual, inside, outside, rng)
    return [float(np.sqrt(np.mean(one**2))) for one in left]


def _with_own_roles(problem: SearchProblem) -> SearchProblem:
    """The problem with a role for every unit, and so an exponent."""
    found = replace(problem)
    found.__dict__["units"] = tuple(unit.model_copy(update={"role": unit.id}) for unit in problem.units)
    return found


def _pairs(problem: SearchProblem, law: Surrogate, assignment: Sequence[tuple[int, ...]]) -> tuple[Floats, Floats]:
    """Products of energy shares (mixes, pairs) of all pairs of roles, and of adjacent layers."""
    energies = law.energies()
    z = np.array([[energies[u][k] for u, k in enumerate(one)] for one in assignment])
    z /= z.sum(axis=1, keepdims=True)
    roles = list(dict.fromkeys(unit.role for unit in problem.units))
    by_role = np.stack([z[:, [unit.role == role for unit in problem.units]].sum(axis=1) for role in roles], axis=1)
    layers = sorted({unit.layer for unit in problem.units if unit.layer is not None})
    by_layer = np.stack([z[:, [unit.layer == layer for unit in problem.units]].sum(axis=1) for layer in layers], axis=1)
    pairs = combinations_with_replacement(range(len(roles)), 2)
    return (
        np.stack([by_role[:, i] * by_role[:, j] for i, j in pairs], axis=1),
        np.concatenate([by_layer[:, :-1] * by_layer[:, 1:], by_layer**2], axis=1),
    )


def _ridge(
    features: Floats,
    residual: Floats,
    inside: npt.NDArray[np.intp],
    outside: npt.NDArray[np.intp],
    rng: np.random.Generator,
) -> Floats:
    """Predictions for the mixes outside from those inside, at the penalty that inner folds like best."""
    centre, scale = features[inside].mean(axis=0), features[inside].std(axis=0) + 1e-12
    scaled = (features - centre) / scale

    def predict(fit: npt.NDArray[np.intp], to: npt.NDArray[np.intp], penalty: float) -> Floats:
        mean = residual[fit].mean()
        gram = scaled[fit].T @ scaled[fit] + penalty * len(fit) * np.eye(scaled.shape[1])
        return np.asarray(mean + scaled[to] @ np.linalg.solve(gram, scaled[fit].T @ (residual[fit] - mean)))

    inner = rng.permutation(len(inside)) % _FOLDS
    misses = [
        sum(
            float(
                np.sum((residual[inside[inner == k]] - predict(inside[inner != k], inside[inner == k], penalty)) ** 2)
            )
            for k in range(_FOLDS)
        )
        for penalty in _PENALTIES
    ]
    return predict(inside, outside, float(_PENALTIES[int(np.argmin(misses))]))


if __name__ == "__main__":
    main()
