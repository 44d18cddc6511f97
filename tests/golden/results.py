"""All golden results, how near they must come, and their files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from exltune.schema.versions import versions_of
from tests.golden import computed, planned

FOLDER = Path(__file__).resolve().parent

#: fp64 arithmetic alone: other orders of summation move the last digits.
_EXACT = 1e-9
#: An iterative fit in fp64, whose last step depends on LAPACK.
_FITTED = 1e-5
#: Through a model in fp32: matrix products sum in another order on other CPUs and thread counts, an error of some 1e-6
#: of a logit; KL of 0.1 nats moves by about 1e-5 of itself. Any real change of the arithmetic is far larger.
_FP32 = 1e-4
#: The same in fp16.
_FP16 = 2e-2


@dataclass(frozen=True)
class Golden:
    """compute: (an empty folder) -> results as JSON. rtol: how far numbers with a fraction may be off, relatively.

    uses: algorithms that the computation goes through: where one of them has another version, so may these results.
    """

    compute: Callable[[Path], object]
    rtol: float = _EXACT
    uses: tuple[str, ...] = ()


_SCORED = ("streaming", "metrics", "format", "inventory")
_SEARCHED = ("inventory", "codec", "size", "law")

GOLDEN: Mapping[str, Golden] = {
    "inventory": Golden(planned.inventory),
    "format": Golden(computed.format_, _FP32),
    "codec": Golden(computed.codec, _FP32, ("format",)),
    "quantize": Golden(
        computed.quantize, _FP32, ("codec", "capture.reference", "score.reference", "streaming", "format", "inventory")
    ),
    "capture.reference": Golden(computed.capture_reference, _FP32, ("score.reference", *_SCORED)),
    "capture.exllamav3": Golden(computed.capture_exllamav3, _FP16, ("score.exllamav3", *_SCORED)),
    "score.reference": Golden(computed.score_reference, _FP32, _SCORED),
    "score.exllamav3": Golden(computed.score_exllamav3, _FP16, _SCORED),
    "streaming": Golden(computed.streaming, uses=("inventory",)),
    "metrics": Golden(computed.metrics, _FITTED),
    "token-sets": Golden(computed.token_sets_),
    "generate": Golden(computed.generate, uses=("token-sets",)),
    "measure": Golden(planned.measure, _FITTED, ("codec", "inventory")),
    "size": Golden(planned.size, uses=("inventory",)),
    "memory": Golden(planned.memory, uses=("inventory", "size")),
    "law": Golden(planned.law, _FITTED, ("inventory", "codec", "size", "search")),
    "rules": Golden(planned.rules, uses=(*_SEARCHED, "search")),
    "baselines": Golden(planned.baselines, uses=(*_SEARCHED, "search", "rules")),
    "search": Golden(planned.search, _FITTED, (*_SEARCHED, "rules", "baselines", "memory")),
    "judge": Golden(planned.judge, _FITTED, (*_SEARCHED, "search", "rules", "baselines", "metrics")),
    "build": Golden(computed.build, uses=("format", "inventory")),
}

#: Algorithms without golden results, and why; the lock of sources alone is on them.
WITHOUT = {
    "convert.exllamav3": "exllamav3's converter takes half a minute on the stand-in: "
    "tests/integration/test_exllamav3_engine_convert.py runs it",
}


@dataclass(frozen=True)
class Recorded:
    """A golden file. versions: of the algorithm, and of those that it uses."""

    versions: Mapping[str, int]
    results: object


def versions(algorithm: str) -> dict[str, int]:
    """Versions that an algorithm's results have now."""
    return versions_of((algorithm, *sorted(GOLDEN[algorithm].uses)))


def read(algorithm: str) -> Recorded | None:
    """What is recorded of an algorithm, None where nothing is."""
    file = _file(algorithm)
    return Recorded(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def write(algorithm: str, recorded: Recorded) -> None:
    """Record results of an algorithm."""
    content = {"versions": dict(recorded.versions), "results": recorded.results}
    _file(algorithm).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def as_json(results: object) -> object:
    """Results as a golden file gives them back."""
    return json.loads(json.dumps(results))


def differences(before: object, now: object, rtol: float, path: str = "") -> Iterator[str]:
    """Where two results are not the same; numbers with a fraction may be off by rtol of the larger one."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from differences(before.get(key), now.get(key), rtol, f"{path}.{key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, rtol, f"{path}.{number}")
    elif not _same(before, now, rtol):
        yield f"{path.lstrip('.')}: {before!r} became {now!r}"


def _same(before: object, now: object, rtol: float) -> bool:
    if isinstance(before, float) and isinstance(now, float | int):
        return math.isclose(before, now, rel_tol=rtol, abs_tol=1e-9)
    return type(before) is type(now) and before == now


def _file(algorithm: str) -> Path:
    return FOLDER / f"{algorithm}.json"
