"""What a session is worth: the demo's stages after quantization with one, against each stage with one of its own.

    python benchmarks/session.py [--rows 512] [--passes 48] [--repeats 3] [--quants DIR]

Measure, optimize, build and judge run in turns both ways in this process, with equal options. Apart, every stage opens
model, base quants, texts and engine again, and begins with an empty store of scores; that is what stages cost before
they shared a session. Base quants are made once, before, or are those of --quants. On a busy machine the CPU seconds
tell more than the clock's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import Any
from unittest.mock import patch

from exltune.budget import Limits
from exltune.engines.tasks import ScoreTask
from exltune.pipeline.common.session import Session
from exltune.pipeline.demo import DEMO_BPW, DEMO_DATA, DEMO_MODEL
from exltune.pipeline.evaluation.verdict import judge
from exltune.pipeline.measurement.measure import measure
from exltune.pipeline.optimization.optimize import OptimizeOptions, optimize
from exltune.pipeline.quants.build import build
from exltune.pipeline.quants.quantize import quantize
from exltune.pipeline.tune import WIDE
from exltune.schema.evaluation import Verdict
from exltune.schema.measurement import Measurement
from exltune.schema.tokens import DataOptions
from exltune.search import SearchOptions
from exltune.search.space.space import AUTO, SpaceOptions
from exltune.store.names import MEASUREMENT, MODEL, QUANTS, RECIPE, SCORES
from exltune.store.records import read_recipe, read_record

#: What is read -> the function that reads it, each where a session looks it up.
READS = {
    "model opened": "exltune.pipeline.common.session.open_engine",
    "model and quants hashed": "exltune.pipeline.common.session.model_fingerprint",
    "base quants opened": "exltune.store.quants.base_quants.find_base_quants",
    "texts dealt": "exltune.corpora.dealing.token_sets",
}
#: Mixes times rows, and where they are counted.
SCORED, _RUN_TASKS = "rows of mixes scored", "exltune.store.score_cache.run_tasks"
#: Rows and passes of a first run, which compiles and fills the disk's cache.
_WARM_ROWS, _WARM_PASSES = 64, 1.0


@dataclass
class Chain:
    """The stages in a folder. together: one session for all of them."""

    folder: Path
    quants: Path
    data: DataOptions
    search: OptimizeOptions
    together: bool
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> Verdict:
        """All stages after quantization."""
        with self._counted(), ExitStack() as open_sessions:
            shared = open_sessions.enter_context(self._session(SCORES)) if self.together else None
            return self._stages(shared)

    def _stages(self, shared: Session | None) -> Verdict:
        asked = SpaceOptions(Limits(target_bpw=DEMO_BPW), head=AUTO)
        with self._stage("measure", shared) as session:
            measure(session, self.folder / MEASUREMENT)
        with self._stage("optimize", shared) as session:
            measurement = read_record(self.folder / MEASUREMENT, Measurement)
            optimize(session, measurement, asked, self.folder / RECIPE, settings=self.search)
        recipe = read_recipe(self.folder / RECIPE)
        with self._stage("build", shared) as session:
            build(recipe, session.base_quants, self.folder / MODEL, model=session.model)
        with self._stage("judge", shared) as session:
            return judge(session, self.folder / MODEL, recipe)[1]

    @contextmanager
    def _stage(self, name: str, shared: Session | None) -> Iterator[Session]:
        """The session of a stage."""
        if shared is not None:
            yield shared
            return
        with self._session(f"{name}.db") as own:
            yield own

    def _session(self, store: str) -> Session:
        return Session(DEMO_MODEL, self.data, quants=self.quants, store=self.folder / store)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count what is read and scored."""
        with ExitStack() as patches:
            patches.enter_context(_watched(_RUN_TASKS, self._count_tasks))
            for what, name in READS.items():
                patches.enter_context(_watched(name, partial(self._count, what)))
            yield

    def _count(self, what: str, *_: object) -> None:
        self.counts[what] += 1

    def _count_tasks(self, _: object, tasks: Sequence[ScoreTask], *__: object) -> None:
        self.counts[SCORED] += sum(len(task.mixes) * len(task.rows) for task in tasks)


@contextmanager
def _watched(name: str, told: Callable[..., None]) -> Iterator[None]:
    """Tell of every call of a function, with its arguments."""
    original = resolve_name(name)

    def call(*arguments: Any, **settings: Any) -> Any:
        told(*arguments)
        return original(*arguments, **settings)

    with patch(name, call):
        yield


def main() -> None:
    """Print both times, their ratio and the counts."""
    arguments = _arguments()
    data = DEMO_DATA.model_copy(update={"rows": arguments.rows})
    search = OptimizeOptions(SearchOptions(passes=arguments.passes))
    with tempfile.TemporaryDirectory() as folder:
        quants = arguments.quants or _made_quants(Path(folder), data)
        small = data.model_copy(update={"rows": _WARM_ROWS})
        _timed(Path(folder) / "warm", quants, small, OptimizeOptions(SearchOptions(passes=_WARM_PASSES)), together=True)
        runs: dict[bool, list[_Run]] = {True: [], False: []}
        for number in range(arguments.repeats):
            # In turns, so that neither way is always the first.
            for together in (True, False) if number % 2 else (False, True):
                run = _timed(Path(folder) / f"{number}{together}", quants, data, search, together=together)
                runs[together].append(run)
                print(f"{_name(together):14} {run.cpu:7.1f} s of CPU, {run.clock:7.1f} s by the clock", flush=True)
    _report(runs)


@dataclass(frozen=True)
class _Run:
    """One chain: seconds, what was read and scored, and the verdict."""

    cpu: float
    clock: float
    counts: Counter[str]
    verdict: Verdict


def _timed(folder: Path, quants: Path, data: DataOptions, search: OptimizeOptions, *, together: bool) -> _Run:
    folder.mkdir()
    chain = Chain(folder, quants, data, search, together)
    cpu, clock = time.process_time(), time.perf_counter()
    verdict = chain.run()
    return _Run(time.process_time() - cpu, time.perf_counter() - clock, chain.counts, verdict)


def _made_quants(folder: Path, data: DataOptions) -> Path:
    with Session(DEMO_MODEL, data) as session:
        quantize(session, folder / QUANTS, WIDE)
    return folder / QUANTS


def _report(runs: dict[bool, list[_Run]]) -> None:
    for what, seconds in (("CPU", lambda run: run.cpu), ("clock", lambda run: run.clock)):
        apart, one = (median(seconds(run) for run in runs[together]) for together in (False, True))
        print(f"{what}: apart / one session = {apart:.1f} s / {one:.1f} s = {apart / one:.2f}x (medians)")
    for what in (*READS, SCORED):
        told = ", ".join(f"{_name(together)} {runs[together][0].counts[what]}" for together in (False, True))
        print(f"{what}: {told}")
    verdicts = {run.verdict.difference for several in runs.values() for run in several}
    print(f"verdicts: {'equal' if len(verdicts) == 1 else 'DIFFERENT'}; {os.cpu_count()} cores, load {os.getloadavg()}")


def _name(together: bool) -> str:
    return "one session" if together else "apart"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=DEMO_DATA.rows, help="of all token sets together")
    parser.add_argument("--passes", type=float, default=SearchOptions().passes, help="of the search")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quants", type=Path, help="the demo's base quants, made before if they are not given")
    return parser.parse_args()


if __name__ == "__main__":
    main()
