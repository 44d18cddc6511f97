"""Tune the small models and keep their real l3 measurements under measurements/.

Prints, for each model, the held-out table's KL, the methods tried and the verdict, as README quotes them.

    python benchmarks/measurements.py [--models glm4moe qwen3moe qwen3] [--work DIR] [--target-bpw 3.4]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rich.console import Console

from exltune.budget import Limits
from exltune.cli.console import RichReporter
from exltune.cli.tables import evaluation_table, standings_table, verdict_lines
from exltune.pipeline.common.session import Session
from exltune.pipeline.demo import DEMO_DATA
from exltune.pipeline.tune import WIDE, evaluation_of, tune
from exltune.schema.measurement import Measurement
from exltune.search.space.space import AUTO, SpaceOptions
from exltune.store.names import MEASUREMENT
from exltune.store.records import read_record, write_record

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["glm4moe", "qwen3moe", "qwen3"])
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "measurements")
    parser.add_argument("--target-bpw", type=float, default=3.4)
    arguments = parser.parse_args()
    console = Console(width=160)
    for name in arguments.models:
        out = arguments.work / name
        shutil.rmtree(out, ignore_errors=True)
        asked = SpaceOptions(Limits(target_bpw=arguments.target_bpw), head=AUTO)
        with Session(ROOT / "models" / name, DEMO_DATA, reporter=RichReporter()) as session:
            result = tune(session, out, asked, WIDE)
        measurement = read_record(out / MEASUREMENT, Measurement)
        write_record(ROOT / "measurements" / f"{name}.json", relative(measurement))
        console.rule(name)
        console.print(standings_table(result.verdict.standings))
        console.print(evaluation_table(evaluation_of(out).rows))
        for line in verdict_lines(result.verdict):
            console.print(line)


def relative(measurement: Measurement) -> Measurement:
    """The measurement with paths from the repository's root, so that the file says the same on every machine."""

    def cut(path: str) -> str:
        return str(Path(path).resolve().relative_to(ROOT))

    detail = measurement.exltune
    source = detail.provenance.model_copy(update={"model_path": cut(detail.provenance.model_path)})
    return measurement.model_copy(
        update={
            "base": measurement.base.model_copy(update={"dir": cut(measurement.base.dir)}),
            "alts": tuple(alt.model_copy(update={"dir": cut(alt.dir)}) for alt in measurement.alts),
            "exltune": detail.model_copy(
                update={"quants": {key: cut(path) for key, path in detail.quants.items()}, "provenance": source}
            ),
        }
    )


if __name__ == "__main__":
    main()
