"""Prove the measurement: cheap estimates against exhaustive swaps on many rows, three small models with real quants.

    python benchmarks/measurement.py [--models ...] [--shares]

Every replicate draws 128 rows as its search set; the truth is every swap on all the other rows. Cost is counted in
passes: every layer and the head once on all 128 rows, states that swaps share counted once (`measurement.passes`),
as a share of what swapping every group, head and cache at every width costs. A method's mix is the exact knapsack on
its estimates; it is scored on rows that neither side has seen, beside the mix from the truth. Scores are kept under
out/measurement-benchmark/: the benchmark goes on where it was stopped. The table goes to measurements/measurement.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from measurement_methods import METHODS, ROWS, VERSION, Draw, Guess, truth_of
from measurement_truth import BLOCK, BLOCKS, WORK, members, pool_of, score_truth
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr
from search_stage import MODELS, ROOT

from exltune.budget import SizeModel
from exltune.schema.mix import Mix
from exltune.search.solve.knapsack import Option, solve_knapsack
from exltune.store.identity import identity

#: Shares of the exhaustive cost.
SHARES = (0.05, 0.1, 0.2)
#: What an issue's target is met at.
TENTH = 0.1
#: Targets of the mixes in bpw above the uniform K=2 quant, and the blocks of the pool that score them.
DELTAS, FRESH = (0.2, 0.5, 1.0, 1.5), (14, 15)

#: Replicates, and those of them whose mixes are scored at a tenth of the cost: most of what the targets are about.
REPLICATES = {"law (default)": (12, 12), "law, adaptive rows": (12, 12), "S*rfn^p, p by role": (12, 2)}
_OTHERS = (6, 1)

#: Shares of methods that cost nothing, or whose first half of the passes must already do.
_ONLY = {"rfn alone": (TENTH,), "law, adaptive rows": SHARES[1:]}

#: What an estimate depends on beside the methods and the scores that are kept.
_ALGORITHMS, _LIBRARIES = ("measure", "size", "codec", "search"), ("numpy", "scipy")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One method at one cost on one model, means over replicates.

    cost: share of the exhaustive passes. spearman: rank correlation with the truth over all swaps, and within 2 and 3
    bits. covered: share of the truth within the 95 % intervals, widened by the truth's own error. mix: KL of the
    method's mix over that of the truth's mix, less 1, with its standard error over targets and replicates.
    """

    model: str
    method: str
    share: float
    cost: float
    spearman: float
    spearman_k2: float
    spearman_k3: float
    covered: float | None
    mix: float | None
    mix_se: float | None


def kept_row(model: str, method: str, share: float, seeds: int, mix_seeds: int) -> Row:
    """A line of the table, from its file where it was done before with these versions."""
    asked = {"model": model, "method": method, "share": share, "seeds": seeds, "mix_seeds": mix_seeds}
    key = identity("measurement benchmark", algorithms=_ALGORITHMS, libraries=_LIBRARIES, methods=VERSION, asked=asked)
    file = WORK / "rows" / f"{key[:20]}.json"
    if file.is_file():
        return Row(**json.loads(file.read_text()))
    row = row_of(model, method, share, seeds, mix_seeds)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(row)))
    return row


def row_of(model: str, method: str, share: float, seeds: int, mix_seeds: int) -> Row:
    """One line of the table."""
    found = [(draw, METHODS[method](draw, share)) for draw in (Draw(model, seed) for seed in range(seeds))]
    places = [truth_of(model).pool.choices.index(choice) for choice in ("2", "3")]
    within = [
        np.mean([_correlation(guess.log_kld[:, place], draw.true[0][:, place]) for draw, guess in found])
        for place in places
    ]
    ratios = [one for draw, guess in found[:mix_seeds] for one in _mix_ratios(draw, guess)]
    covered = [_covered(draw, guess) for draw, guess in found if guess.spread is not None]
    return Row(
        model=model,
        method=method,
        share=share,
        cost=float(np.mean([guess.passes for _, guess in found])) / truth_of(model).exhaustive,
        spearman=float(np.mean([_correlation(guess.log_kld, draw.true[0]) for draw, guess in found])),
        spearman_k2=float(within[0]),
        spearman_k3=float(within[1]),
        covered=float(np.mean(covered)) if covered else None,
        mix=float(np.mean(ratios)) - 1 if ratios else None,
        mix_se=float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))) if ratios else None,
    )


def _correlation(one: Floats, other: Floats) -> float:
    return float(spearmanr(one.ravel(), other.ravel())[0])


def _covered(draw: Draw, guess: Guess) -> float:
    log_kld, error = draw.true
    assert guess.spread is not None
    return float(np.mean(np.abs(guess.log_kld - log_kld) < 1.96 * np.hypot(guess.spread, error)))


def _mix_ratios(draw: Draw, guess: Guess) -> list[float]:
    """KL of the guess's mix over that of the truth's, at every target."""
    ratios = []
    for delta in DELTAS:
        ours, best = (fresh_kld(draw.model, mix_of(draw, klds, delta)) for klds in (guess.log_kld, draw.true[0]))
        ratios.append(float(ours.mean() / best.mean()))
    return ratios


def mix_of(draw: Draw, log_kld: Floats, delta: float) -> Mix:
    """The knapsack's mix on single KLs, made monotone in bits; `delta` bpw above the lowest quant."""
    pool = truth_of(draw.model).pool
    sizes = SizeModel(pool.inventory, pool.quants[0].codebook)
    items, lowest, groups = {}, 0, members(pool.inventory)
    for part, logs in zip(draw.parts, log_kld, strict=True):
        klds = isotonic_regression(np.exp(logs), increasing=False).x
        bytes_of = [sum(sizes.group_bytes(group, bits) for group in groups[part.id]) for bits in part.bits]
        lowest += bytes_of[0]
        items[part.id] = [Option(c, b, float(k)) for c, b, k in zip(part.choices, bytes_of, klds, strict=True)]
    budget = lowest + int(delta * pool.inventory.quantizable_parameters / 8)
    head = {pool.inventory.head.id: pool.head.choice}
    chosen = solve_knapsack(items, budget)
    return Mix(name="mix", choices={group: chosen[part] for part in chosen for group in groups[part]} | head)


def fresh_kld(model: str, mix: Mix) -> Floats:
    """(rows,) KL(reference‖mix) on the fresh blocks, scored once and kept."""
    pool = pool_of(model)
    key = hashlib.sha256(repr(sorted(mix.choices.items())).encode()).hexdigest()[:20]
    file = WORK / "mixes" / model / f"{key}.npy"
    if not file.is_file():
        tokens = torch.cat([pool.tokens[number * BLOCK : (number + 1) * BLOCK] for number in FRESH])
        (score,) = pool.engine.score([mix], tokens)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.array(score.kl_ref_mix) / score.positions)
    return np.asarray(np.load(file))


def table(rows: Sequence[Row]) -> str:
    """The table in Markdown: means over models."""
    lines = [
        "| Method | Cost | Spearman, all | within K=2 | within K=3 | 95 % intervals cover | Mix against the truth's |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, share in dict.fromkeys((row.method, row.share) for row in rows):
        some = [row for row in rows if (row.method, row.share) == (method, share)]
        covered = _mean(row.covered for row in some)
        mix = _mean(row.mix for row in some)
        lines.append(
            f"| {method} | {_mean(row.cost for row in some):.1%} | {_mean(r.spearman for r in some):.3f} "
            f"| {_mean(r.spearman_k2 for r in some):.3f} | {_mean(r.spearman_k3 for r in some):.3f} "
            f"| {'' if covered is None else f'{covered:.1%}'} | {'' if mix is None else f'{mix:+.1%}'} |"
        )
    return "\n".join(lines)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def verdicts(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The issue's targets, for the default at a tenth of the cost, model by model."""
    found: list[dict[str, object]] = []
    for row in rows:
        if row.method != "law (default)" or row.share != TENTH:
            continue
        assert row.covered is not None
        assert row.mix is not None
        for target, value, met in (
            ("Spearman over all >= 0.95", row.spearman, row.spearman >= 0.95),
            ("Spearman within K=2 >= 0.9", row.spearman_k2, row.spearman_k2 >= 0.9),
            ("Spearman within K=3 >= 0.9", row.spearman_k3, row.spearman_k3 >= 0.9),
            ("intervals cover 93-97 %", row.covered, 0.93 <= row.covered <= 0.97),
            ("mix within 2 % of the truth's", row.mix, row.mix <= 0.02),
        ):
            found.append({"model": row.model, "target": target, "value": value, "met": bool(met)})
    return found


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    score_truth(arguments.models, BLOCKS)
    rows = []
    for method in reversed(METHODS):
        for share in _ONLY.get(method, SHARES) if arguments.shares else (TENTH,):
            for model in arguments.models:
                seeds, mix_seeds = REPLICATES.get(method, _OTHERS)
                rows.append(kept_row(model, method, share, seeds, mix_seeds if share == TENTH else 0))
                print(rows[-1], flush=True)
    met = verdicts(rows)
    settings = {
        "replicates": REPLICATES,
        "other_replicates": _OTHERS,
        "rows": ROWS,
        "pool_rows": {model: truth_of(model).rows for model in arguments.models},
    }
    summary = {**vars(arguments), **settings, "targets": met, "rows_of_table": [asdict(row) for row in rows]}
    (ROOT / "measurements" / "measurement.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(table(rows))
    for one in met:
        print(f"{one['model']:9} {one['target']:32} {one['value']:.3f} {'met' if one['met'] else 'MISSED'}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--shares", action="store_true", help="also at other costs than a tenth")
    return parser.parse_args()


if __name__ == "__main__":
    main()
