"""Prove the search: three small models with real EXL3 quants, six targets, every method, held-out KL(reference‖mix).

    python benchmarks/search.py [--models ...] [--seeds 3] [--jobs 2] [--ablations] [--bound]

Makes base quants and measurements under out/search-benchmark/ and keeps every score and result there: it can be
stopped at any point and goes on, and a second run prints the table at once. The table goes to measurements/search.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from search_ablations import ABLATIONS, ablation, bound
from search_methods import MIXES, PASSES, Cell, Row, baselines, both_spaces, evopress, optuna_tpe
from search_stage import DELTAS, MODELS, ROOT, WORK, key_of, prepare, stage_of
from search_table import report

from exltune.cli.console import RichReporter

#: The target of the ablations, those of the long search on the smallest model, and black boxes that come first.
ABLATED = 0.5
BOUNDED = {"glm4moe": (0.5, 1.5)}
_EARLY = (0.5, 1.5)


@dataclass(frozen=True)
class Task:
    """What one worker does at a time."""

    kind: str
    model: str
    delta: float
    seed: int = 0

    @property
    def file(self) -> Path:
        """Where its rows are kept."""
        measurement = stage_of(self.model).measurement
        key = key_of("search benchmark", measurement, task=self, passes=PASSES, mixes=MIXES)
        return WORK / "results" / f"{self.kind}-{self.model}-{self.delta:g}-{self.seed}-{key}.json"


def run(task: Task) -> tuple[list[Row], float]:
    """Rows of a task and its seconds, from its file where it was done before."""
    file = task.file
    if file.is_file():
        return [Row(**row) for row in json.loads(file.read_text())], 0.0
    began = time.monotonic()
    rows = _rows(task, Cell(stage_of(task.model), task.delta))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([asdict(row) for row in rows]))
    return rows, time.monotonic() - began


def kept(task: Task) -> list[Row]:
    """Rows of a task as it was last done, by whatever version."""
    pattern = f"{task.kind}-{task.model}-{task.delta:g}-{task.seed}-*.json"
    files = sorted((WORK / "results").glob(pattern), key=lambda file: file.stat().st_mtime)
    return [Row(**row) for row in json.loads(files[-1].read_text())] if files else []


def _rows(task: Task, cell: Cell) -> list[Row]:
    if task.kind == "ours":
        return both_spaces(cell, task.seed)
    if task.kind == "baselines":
        return baselines(cell)
    if task.kind == "blackbox":
        return [optuna_tpe(cell, task.seed), evopress(cell, task.seed)]
    if task.kind == "bound":
        return [bound(cell)]
    return [ablation(cell, task.kind)]


def tasks_of(arguments: argparse.Namespace) -> list[Task]:
    """All tasks, the ones that the table needs most first."""
    cells = [(model, delta) for delta in DELTAS for model in arguments.models]
    found = [Task(kind, *cell) for kind in ("ours", "baselines") for cell in cells]
    if arguments.bound:
        found += [Task("bound", model, delta) for model, deltas in BOUNDED.items() for delta in deltas]
    found += [Task("blackbox", *cell) for cell in cells if cell[1] in _EARLY]
    if arguments.ablations:
        found += [Task(name, model, ABLATED) for model in arguments.models for name in ABLATIONS]
    found += [Task("blackbox", *cell) for cell in cells if cell[1] not in _EARLY]
    return found + [
        Task(kind, *cell, seed)
        for kind, seeds in (("ours", arguments.seeds), ("blackbox", arguments.blackbox_seeds))
        for seed in range(1, seeds)
        for cell in cells
    ]


def work_off(tasks: Sequence[Task], jobs: int) -> Iterable[list[Row]]:
    """Rows of every task as it is done, each on one core."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_alone) as pool:
        running = {pool.submit(run, task): task for task in tasks}
        for future in as_completed(running):
            if future.exception():
                pool.shutdown(wait=False, cancel_futures=True)
            task, (rows, seconds) = running[future], future.result()
            for row in rows:
                print(
                    f"{task.model:9} +{task.delta:<4g} {row.method:20} seed {row.seed}: KL {row.kld:.4f} (search set "
                    f"{row.search_kld:.4f}), {row.bpw:.3f} bpw, {row.passes:.0f} passes, {row.mixes} mixes {row.note}",
                    flush=True,
                )
            if seconds:
                print(f"  {task.kind} in {seconds:.0f} s", flush=True)
            yield rows


def main() -> None:
    arguments = _arguments()
    for model in () if arguments.kept else arguments.models:
        prepare(model, RichReporter())
    tasks = tasks_of(arguments)
    if arguments.kept:
        rows = [row for task in tasks for row in kept(task)]
    else:
        rows = [row for many in work_off(tasks, arguments.jobs) for row in many]
    summary, markdown = report(rows, arguments.models)
    text = ",\n".join(json.dumps(row) for row in summary.pop("rows"))
    head = json.dumps(summary, indent=1)[:-2]
    (ROOT / "measurements" / "search.json").write_text(f'{head},\n "rows": [\n{text}\n]}}\n')
    print(markdown)


def _alone() -> None:
    torch.set_num_threads(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, default=3, help="search seeds of ours")
    parser.add_argument("--blackbox-seeds", type=int, default=1, help="seeds of Optuna and EvoPress")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time, each on one core")
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--bound", action="store_true", help="a very long search on the smallest model")
    parser.add_argument("--kept", action="store_true", help="run nothing: the table of what was done so far")
    return parser.parse_args()


if __name__ == "__main__":
    main()
