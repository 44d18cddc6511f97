"""A measurement on one and on two Ray workers of one core each: seconds of scoring, and the ratio.

    python benchmarks/ray_workers.py MODEL QUANTS [--rows N] [--row-length T] [--max-ram SIZE]

Both run on a local cluster with fresh stores; the time is that from the first finished probes on, when engines are
open. A small --max-ram makes many small tasks, as a large model has them. The bytes of both are compared.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exltune.budget import parse_size
from exltune.corpora.dealing import data_options_of
from exltune.engines import Resources
from exltune.engines.base import Progress
from exltune.engines.ray.cluster import Cluster
from exltune.engines.ray.options import RayOptions
from exltune.measurement import Budget
from exltune.pipeline.common.reporter import Silent
from exltune.pipeline.common.session import EngineOptions, Session
from exltune.pipeline.measurement.measure import MeasureOptions, measure


class Stopwatch(Silent):
    """Seconds from the moment when all workers are ready to the end of the measuring stage."""

    seconds = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Every stage; only the last one's seconds stay."""
        started: list[float] = []

        def progress(done: int, total: int, what: str) -> None:
            if done:
                started.append(time.perf_counter())

        yield progress
        self.seconds = time.perf_counter() - started[0]


def main() -> None:
    """Measure twice and print the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("quants", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--row-length", type=int, default=128)
    parser.add_argument("--max-ram", default="24MiB")
    asked = parser.parse_args()
    texts = data_options_of([], rows=asked.rows, row_length=asked.row_length)
    resources = Resources(state_bytes=parse_size(asked.max_ram, "--max-ram"))
    engine = EngineOptions(resources=resources, ray=RayOptions())
    seconds, files = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            out, watch = Path(folder) / str(workers) / "m.json", Stopwatch()
            limit_workers(workers)
            with Session(
                asked.model, texts, quants=asked.quants, engine=engine, store=out.with_name("scores.db"), reporter=watch
            ) as session:
                measure(session, out, MeasureOptions(budget=Budget(everything=True)))
            seconds[workers] = watch.seconds
            files.append(out.read_bytes())
            print(f"{workers} worker(s): {watch.seconds:.1f} s")
    print(
        f"two workers are {seconds[1] / seconds[2]:.2f}x one, on {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}"
    )
    print("the measurements are equal to the byte" if files[0] == files[1] else "the measurements DIFFER")


def limit_workers(count: int) -> None:
    """Let a cluster start this many workers, whatever it has room for."""
    Cluster._room = lambda _: count  # type: ignore[method-assign,misc,assignment]


if __name__ == "__main__":
    main()
