"""Time the exact joint optimum of weights, head and KV cache on GLM-4.7, and hold it against every cache alone.

The measurement is made up over the real inventory at level l3: 638 units at 8 widths, a head at 5, k and v at 7 each.
Times are of one core's own work, and by the clock where that differs (other processes).

    OMP_NUM_THREADS=1 python benchmarks/joint.py [--vram 144GiB] [--context 102400] [--brute-force]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from synthetic_measurement import synthetic_measurement  # noqa: E402

from exltune.budget import Limits, model_profile, parse_size  # noqa: E402
from exltune.errors import BudgetError  # noqa: E402
from exltune.inventory import inventory_from_config  # noqa: E402
from exltune.schema.hardware import FP16_CACHE, CacheBits, Hardware, Use  # noqa: E402
from exltune.schema.measurement import Measurement  # noqa: E402
from exltune.search import Surrogate, solve  # noqa: E402
from exltune.search.space.joint import Joint, Optimum  # noqa: E402
from exltune.search.space.space import SpaceOptions, search_space  # noqa: E402

CONFIG = ROOT / "tests/fixtures/configs/glm-4.7.json"
WIDTHS, HEADS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0), (4.0, 5.0, 6.0, 7.0, 8.0)
Result = TypeVar("Result")


def timed(what: str, call: Callable[[], Result]) -> Result:
    """Run, and print how long it took."""
    cpu, clock = time.process_time(), time.perf_counter()
    result = call()
    print(f"{what}: {time.process_time() - cpu:.2f} s of one core, {time.perf_counter() - clock:.2f} s by the clock")
    return result


def joint_optimum(config: dict[str, object], measurement: Measurement, limits: Limits, use: Use) -> float:
    """What `optimize --cache auto --head-bits auto` does before it scores anything; predicted KL, nats/token."""
    asked = SpaceOptions(limits, use, cache="auto", head="auto")
    space = search_space(config, CONFIG, measurement, asked)
    law = Surrogate(space.problem)
    best = solve(space.problem, law.energies())
    assert best is not None
    found = space.problem.candidate_of("", best)
    cache = ",".join(found.mix.choices.get(key, "16") for key in ("cache.k", "cache.v"))
    kld = float(2.718281828459045 ** law.predict([best])[0])
    print(f"  {found.bpw:.3f} bpw, head choice {found.mix.choices['head']}, cache {cache}, predicted KL {kld:.6f}")
    return kld


def best_alone(config: dict[str, object], measurement: Measurement, limits: Limits, use: Use) -> Optimum:
    """The best of every head with every cache, each with an exact knapsack of its own."""
    best: Optimum | None = None
    for head in HEADS:
        alone = Joint(model_profile(config), measurement, head_bits=head)
        for cache in (FP16_CACHE, *(CacheBits(k=k, v=v) for k, v in product(range(2, 9), repeat=2))):
            try:
                found = alone.optimum(limits, use.model_copy(update={"cache": cache}))
            except BudgetError:
                continue
            best = found if best is None or found.predicted_kld < best.predicted_kld else best
    assert best is not None
    return best


def main() -> None:
    """Print the times, and whether brute force agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vram", default="144GiB")
    parser.add_argument("--context", type=int, default=102400)
    parser.add_argument("--brute-force", action="store_true", help="also solve every cache and head alone: minutes")
    args = parser.parse_args()
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    inventory = inventory_from_config(config)
    measurement = synthetic_measurement(inventory, WIDTHS, [*HEADS, 8.0])
    probes = sum(len(unit.probes) for unit in (*measurement.exltune.groups, *measurement.exltune.wider))
    print(f"{len(measurement.exltune.groups)} units, {probes} probes, {args.vram}, {args.context} tokens")
    limits, use = Limits(Hardware(vram_bytes=parse_size(args.vram))), Use(context=args.context)
    kld = timed("joint optimum, all included", lambda: joint_optimum(config, measurement, limits, use))
    law = timed("law", lambda: Joint(model_profile(config), measurement, head_open=True))
    timed("optimum at another context", lambda: law.best(limits, use.model_copy(update={"context": 65536})))
    if args.brute_force:
        alone = timed("brute force", lambda: best_alone(config, measurement, limits, use))
        print(f"  cache {alone.cache}, head {alone.head_bits:g} bits, predicted KL {alone.predicted_kld:.6f}")
        print(f"  joint / brute force = {kld / alone.predicted_kld:.9f}")


if __name__ == "__main__":
    main()
