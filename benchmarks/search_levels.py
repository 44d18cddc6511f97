"""Level l3 against l4: is it worth to let k and v, gate and up, take bits of their own? Held-out KL at equal bytes.

    python benchmarks/search_levels.py [--models ...] [--deltas ...] [--seeds 1] [--jobs 2] [--budget all]

The same search with the same passes on both measurements, the same base quants and the same bytes. --budget: of the
measurements, as `exltune measure` takes it (its default otherwise). Goes on where it was stopped, under
out/search-benchmark/.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import sqrt
from multiprocessing import get_context
from statistics import fmean, median, stdev

import torch
from search_methods import PASSES, Cell, Row, ours
from search_stage import MODELS, WORK, key_of, prepare, stage_of

from exltune.cli.console import RichReporter
from exltune.inventory import groups_at_level
from exltune.measurement import Budget, parse_budget
from exltune.search import SearchOptions

#: Targets in bpw above the uniform K=2 quant.
DELTAS = (0.2, 0.5, 1.0, 1.5, 2.2)
LEVELS = (3, 4)


@dataclass(frozen=True)
class Task:
    """One search; at: the budget of its measurement, as the command line has it."""

    model: str
    delta: float
    level: int
    seed: int
    at: str | None

    @property
    def budget(self) -> Budget:
        """Of the measurement."""
        return parse_budget(self.at)


def run(task: Task) -> Row:
    """What the search hands over, from its file where it was done before."""
    stage = stage_of(task.model, task.level, task.budget)
    key = key_of("search levels", stage.measurement, task=task, passes=PASSES)
    file = WORK / "results" / f"level-{task.model}-{task.delta:g}-l{task.level}-{task.seed}-{key}.json"
    if file.is_file():
        return Row(**json.loads(file.read_text()))
    cell = Cell(stage, task.delta)
    row = ours(cell, f"l{task.level}", stage.space(task.delta), SearchOptions(passes=PASSES, seed=task.seed))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(row)))
    return row


def main() -> None:
    arguments = _arguments()
    budget = parse_budget(arguments.budget)
    for model in arguments.models:
        for level in LEVELS:
            prepare(model, RichReporter(), level, budget)
            print(f"{model} l{level}: {_cost(model, level, budget)}", flush=True)
    cells = [(m, d, s) for s in range(arguments.seeds) for d in arguments.deltas for m in arguments.models]
    tasks = [Task(m, d, level, s, arguments.budget) for m, d, s in cells for level in LEVELS]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn"), initializer=_alone) as pool:
        rows = list(pool.map(run, tasks))
    for line in table(list(zip(rows[::2], rows[1::2], strict=True)), budget):
        print(line)


def table(pairs: Sequence[tuple[Row, Row]], budget: Budget) -> Iterator[str]:
    """Markdown: l3 beside l4 in every cell, and what l4 changes."""
    yield "| model | target | seed | l3 bpw | l3 KL | l4 bpw | l4 KL | l4 changes | 95 % interval | pairs split |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    changes, better, worse = [], 0, 0
    for coarse, fine in pairs:
        change, half = paired(coarse, fine)
        changes.append(change)
        better, worse = better + (change + half < 0), worse + (change - half > 0)
        yield (
            f"| {coarse.model} | +{coarse.delta:g} | {coarse.seed} | {coarse.bpw:.3f} | {coarse.kld:.4f} | "
            f"{fine.bpw:.3f} | {fine.kld:.4f} | {change:+.1%} | {change - half:+.1%} to {change + half:+.1%} | "
            f"{_split(fine, budget)} |"
        )
    yield ""
    yield (
        f"median {median(changes):+.1%}, mean {fmean(changes):+.1%}; l4 is better in {better} of {len(pairs)} cells "
        f"and worse in {worse} where the interval excludes zero"
    )


def paired(coarse: Row, fine: Row) -> tuple[float, float]:
    """By what share of l3's held-out KL l4's is higher, and half of the 95 % interval over rows."""
    differences = [b - a for a, b in zip(coarse.held_out, fine.held_out, strict=True)]
    half = 1.96 * stdev(differences) / sqrt(len(differences))
    return fmean(differences) / coarse.kld, half / coarse.kld


def _split(row: Row, budget: Budget) -> str:
    """How many pairs take two widths, of how many."""
    inventory = stage_of(row.model, 4, budget).space(row.delta).problem.inventory
    pairs = [part.members for part in groups_at_level(inventory, 3) if len(part.members) > 1]
    return f"{sum(len({row.choices[one] for one in pair}) > 1 for pair in pairs)} of {len(pairs)}"


def _cost(model: str, level: int, budget: Budget) -> str:
    detail = stage_of(model, level, budget).measurement.exltune
    units = (*detail.groups, *detail.wider)
    scored = [len(probe.kld_rows) for unit in units for probe in unit.probes if probe.kld_rows]
    return f"{len(detail.groups)} units, {len(scored)} swaps scored on {max(scored)} rows"


def _alone() -> None:
    torch.set_num_threads(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--deltas", nargs="+", type=float, default=DELTAS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", help="of the measurements")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="searches at a time, each on one core")
    return parser.parse_args()


if __name__ == "__main__":
    main()
