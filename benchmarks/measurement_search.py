"""What a search makes of the default measurement and of the exhaustive one: three small models, three targets.

    python benchmarks/measurement_search.py [--models ...] [--seeds 2]

Both measurements are on the same search set, the default one on a tenth of the passes: its swaps' first rows are taken
from the exhaustive one. The search is the pipeline's own, over all base quants and heads, with the same passes; what it
hands over is scored on held-out text, and compared in pairs of rows. Scores are kept as benchmarks/search.py keeps
them; results under out/measurement-benchmark/search/. The table goes to measurements/measurement-search.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import torch
from measurement_truth import WORK, pool_of
from scipy import stats
from search_methods import PASSES, Cell, Row, ours
from search_stage import MODELS, OPEN, QUANTS, ROOT, Stage, at_measurement, key_of, stage_of

from exltune.measurement import Budget, plan_for, probe_name, summarize
from exltune.schema.measurement import Measurement
from exltune.schema.mix import Mix
from exltune.schema.score import Score
from exltune.schema.tokens import Split
from exltune.search import SearchOptions
from exltune.store.quants.base_quants import quant_sizes

#: Targets in bpw above the uniform K=2 quant.
DELTAS = (0.5, 1.0, 1.5)
DEFAULT, EXHAUSTIVE = "default", "exhaustive"


@dataclass(frozen=True)
class Pair:
    """One search on either measurement: held-out KL(reference‖mix), nats/token, and default over exhaustive, less 1.

    ratio_ci95: paired over rows. search_set: the same ratio on the search set.
    """

    model: str
    delta: float
    seed: int
    default: float
    exhaustive: float
    ratio: float
    ratio_ci95: tuple[float, float]
    search_set: float
    default_mixes: int
    exhaustive_mixes: int


@cache
def default_measurement(model: str) -> tuple[Measurement, float]:
    """The measurement that a tenth of the passes gives, and the rows that it takes."""
    stage, pool = stage_of(model), pool_of(model)
    detail = stage.measurement.exltune
    bits = {quant.choice: quant.bits for quant in pool.quants}
    rows = len(stage.scores(Split.SEARCH))
    plan = plan_for(pool.inventory, 3, bits, pool.head, rows, Budget(), lambda: 0.0)
    swaps = {
        probe_name(unit.id, probe.choice): probe.kld_rows
        for unit in (*detail.groups, *detail.wider)
        for probe in unit.probes
    }
    scores = {
        mix.name: _score(mix, swaps.get(mix.name) or _scored(stage, mix), batch.rows.stop)
        for batch in plan.next({})
        for mix in batch.mixes
    }
    sizes = quant_sizes(pool.inventory, pool.quants, pool.head.bits, stage.session.fingerprint)
    found = summarize(pool.inventory, 3, sizes, pool.head, scores, detail.data, detail.provenance)
    return found, max(len(score.kl_ref_mix) for score in scores.values()) / rows


def _scored(stage: Stage, mix: Mix) -> Sequence[float]:
    (score,) = stage.scores(Split.SEARCH).score([mix])
    return (np.array(score.kl_ref_mix) / score.positions).tolist()


def _score(mix: Mix, klds: Sequence[float], rows: int) -> Score:
    return Score(mix=mix.name, positions=1, kl_ref_mix=tuple(klds[:rows]), kl_mix_ref=(), nll=(), top_k=())


def searched(model: str, delta: float, seed: int, kind: str) -> Row:
    """What the search hands over, from its file where it was done before with these versions."""
    stage = stage_of(model)
    measurement = default_measurement(model)[0] if kind == DEFAULT else stage.measurement
    key = key_of("measurement search", measurement, model=model, delta=delta, seed=seed, kind=kind, passes=PASSES)
    file = WORK / "search" / f"{key}.json"
    if file.is_file():
        return Row(**json.loads(file.read_text()))
    space = at_measurement(stage.space(delta, QUANTS.widths, OPEN), measurement)
    row = ours(Cell(stage, delta), kind, space, SearchOptions(passes=PASSES, seed=seed))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(row)))
    return row


def pair(model: str, delta: float, seed: int) -> Pair:
    """Both searches, compared on held-out rows."""
    few, every = (searched(model, delta, seed, kind) for kind in (DEFAULT, EXHAUSTIVE))
    mine, theirs = np.array(few.held_out), np.array(every.held_out)
    difference = (mine - theirs) / theirs.mean()
    half = float(stats.t.ppf(0.975, len(mine) - 1) * difference.std(ddof=1) / np.sqrt(len(mine)))
    ratio = float(difference.mean())
    return Pair(
        model=model,
        delta=delta,
        seed=seed,
        default=few.kld,
        exhaustive=every.kld,
        ratio=ratio,
        ratio_ci95=(ratio - half, ratio + half),
        search_set=few.search_kld / every.search_kld - 1,
        default_mixes=few.mixes,
        exhaustive_mixes=every.mixes,
    )


def table(pairs: Sequence[Pair]) -> str:
    """The table in Markdown: every search, then the mean of each model."""
    lines = ["| | " + " | ".join(f"+{delta:g} bpw" for delta in DELTAS) + " | mean |", "| --- |" + " ---: |" * 4]
    for model in dict.fromkeys(one.model for one in pairs):
        some = [one for one in pairs if one.model == model]
        cells = [", ".join(_cell(one) for one in some if one.delta == delta) for delta in DELTAS]
        lines.append(f"| {model} | {' | '.join(cells)} | {100 * np.mean([one.ratio for one in some]):+.1f} % |")
    return "\n".join(lines)


def _cell(one: Pair) -> str:
    return f"{100 * one.ratio:+.1f} ± {50 * (one.ratio_ci95[1] - one.ratio_ci95[0]):.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = []
    for seed in range(arguments.seeds):
        for delta in DELTAS:
            for model in arguments.models:
                pairs.append(pair(model, delta, seed))
                print(pairs[-1], flush=True)
    shares = {model: default_measurement(model)[1] for model in arguments.models}
    summary = {**vars(arguments), "passes": PASSES, "rows_used": shares, "pairs": [asdict(one) for one in pairs]}
    (ROOT / "measurements" / "measurement-search.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(table(pairs))


if __name__ == "__main__":
    main()
